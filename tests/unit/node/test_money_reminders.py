"""A job that waits for money is said of again and again, and no more once it goes on."""

from itertools import pairwise

from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, JOB, PROVIDER, PROVIDER_KEY, spec

from hansa.node.api.money_reminders import FIRST_PAUSE_MS, LONGEST_PAUSE_MS, MoneyReminders, jobs_that_wait
from hansa.node.engine import buying_turns, events
from hansa.scheduler.job_events import TenderFailed

MOST = 600_001


def waiting():
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1)
    made.submit(BUYER, of=spec(shards=1, budget=MOST - 1))
    made.tender(BUYER, (PROVIDER,), shards=(0,))
    return made


def state_of(made):
    return made.engines[BUYER].state


def test_a_job_that_waits_for_money_is_named_with_what_to_do():
    made = waiting()
    (view,) = jobs_that_wait(state_of(made))
    assert view["job"] == JOB.hex()
    assert view["warning"].endswith(f"hansa top-up {JOB.hex()[:12]} 0.000001")


def test_it_is_said_at_once_then_after_an_hour_and_ever_more_seldom_but_once_a_day():
    made, reminders, said = waiting(), MoneyReminders(), []
    for hour in range(24 * 30):
        at_ms = made.now_ms + hour * FIRST_PAUSE_MS
        for line in reminders.due(state_of(made), at_ms):
            assert line.startswith(f"job {JOB.hex()[:12]}: it waits for money")
            said.append(hour)
        assert not reminders.due(state_of(made), at_ms + 1), "it was said just now"
    assert said[:7] == [0, 1, 3, 7, 15, 31, 55]
    pauses = {after - before for before, after in pairwise(said[5:])}
    assert pauses == {LONGEST_PAUSE_MS // FIRST_PAUSE_MS}


def test_who_goes_on_is_said_of_no_more_and_at_once_when_it_waits_again():
    made, reminders = waiting(), MoneyReminders()
    assert reminders.due(state_of(made), made.now_ms)
    made.take(BUYER, events.JobToppedUp(job=JOB, amount=0, at_ms=made.now_ms))
    assert not state_of(made).jobs.get(JOB).waits_for_money
    assert reminders.due(state_of(made), made.now_ms) == []
    made.tender(BUYER, (PROVIDER,), shards=(0,), nonce=b"2" * 32)
    assert reminders.due(state_of(made), made.now_ms)


def test_several_shards_that_lack_money_need_at_least_what_each_of_them_lacks_and_so_it_is_said():
    """Each was tendered by itself, and each counted on all that was left: together they need more than any of them."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.submit(BUYER, of=spec(shards=2))
    for shard in (0, 1):
        failed = TenderFailed(shards=(shard,), reason="dear", deserted=False, missing=2_000_000, at_ms=made.now_ms)
        buying_turns.advance_job(state_of(made), JOB, failed)
    (view,) = jobs_that_wait(state_of(made))
    words = "it waits for money: at least 2.000000 more is needed"
    assert view["warning"] == f"{words}; hansa top-up {JOB.hex()[:12]} 2.000000"
