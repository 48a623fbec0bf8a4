"""What a buyer notes about a provider when a lease ends, and what the end does to its money."""

from dataclasses import replace

import pytest
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, JOB, NOW_MS, OTHER, OTHER_KEY, PROVIDER, PROVIDER_KEY, spec, tender

from hansa.market.effects import sealed
from hansa.market.purchase_state import DEAF, ONLY_BIDS, SILENT, TAKEN_BACK, UNHEARD, WITHOUT_FAULT
from hansa.market.sale_funding import UNFUNDED
from hansa.market.track_record import Record
from hansa.node.api.market_views import bids_view
from hansa.node.engine import buying, events
from hansa.node.engine.buying_turns import MOST_AT_ONCE, funds_left
from hansa.node.engine.state import restored, snapshot
from hansa.proto import messages
from hansa.scheduler import run
from hansa.scheduler.job_events import TenderWanted


def running(*keys, devices=1, notice_ms=1_000, **changes):
    """A job that runs at these providers, a shard each."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    rules = {"leases": ("spot", "firm"), "penalty_ms": 700, "reclaim_notice_ms": notice_ms}
    for key in keys:
        made.add(key, devices=devices, **rules)
    made.submit(BUYER, of=spec(shards=len(keys), **changes))
    made.tender(
        BUYER, tuple(key.address for key in keys), shards=tuple(range(len(keys))), lease=changes.get("lease", "any")
    )
    for key in keys:
        made.take(key.address, run.RunStarted(run=lease_of(made, key.address), at_ms=made.now_ms))
    made.now_ms += 1_000
    return made


def lease_of(made, account):
    (lease,) = made.engines[account].state.sale_of
    return lease


def state_of(made):
    return made.engines[BUYER].state


def fail(made, account, kind):
    made.take(account, run.RunFailed(run=lease_of(made, account), kind=kind, reason="", at_ms=made.now_ms))


def withdraw(made, account, notice_ms):
    ((_, sold),) = made.engines[account].state.sales.all()
    devices = sold.bid.devices
    made.take(account, events.DevicesWithdrawn(devices=devices, notice_ms=notice_ms, why="mine", at_ms=made.now_ms))


def whys(made):
    return {entry.provider: entry.why for _, bought in state_of(made).purchases.all() for entry in bought.placements}


def test_devices_that_were_taken_back_are_counted_as_such():
    made = running(PROVIDER_KEY)
    withdraw(made, PROVIDER, 60_000)
    made.now_ms += 60_000
    fail(made, PROVIDER, "reclaimed")
    assert state_of(made).records == {PROVIDER: Record(taken_back=1)}
    assert whys(made) == {PROVIDER: TAKEN_BACK}


def test_who_works_well_beside_a_shard_that_ends_the_job_is_noted_for_nothing():
    made = running(PROVIDER_KEY, OTHER_KEY, retries=0)
    fail(made, PROVIDER, "user-exception")
    assert state_of(made).records == {PROVIDER: Record(own=1)}
    assert whys(made)[OTHER] == WITHOUT_FAULT


def test_a_job_that_is_cancelled_says_of_nobody_that_devices_were_taken_back():
    made = running(PROVIDER_KEY, OTHER_KEY)
    made.take(BUYER, events.JobCancelled(job=JOB, reason="enough", at_ms=made.now_ms))
    assert state_of(made).records == {}
    assert set(whys(made).values()) == {WITHOUT_FAULT}


def tender_again(made, *invited):
    """The tender that the job waits for."""
    wanted = [effect for account, effect in made.effects if account == BUYER and isinstance(effect, TenderWanted)][-1]
    of = tender(
        signer=BUYER,
        shards=wanted.shards,
        bids_close_ms=made.now_ms + 2_000,
        expires_ms=made.now_ms + 60_000,
        nonce=b"u" * 32,
    )
    made.take(BUYER, events.TenderPrepared(tender=of, invited=invited, at_ms=made.now_ms))


def tenders(made):
    return sum(isinstance(effect, TenderWanted) for account, effect in made.effects if account == BUYER)


def lost_without_money(**changes):
    """A provider is lost with its lease, and what that may still cost leaves too little for another."""
    made = running(PROVIDER_KEY, retries=3, budget=615_000, **changes)
    made.lost = lambda to, _: to == PROVIDER
    made.pass_time(20_000, BUYER)
    made.add(OTHER_KEY, devices=1)
    tender_again(made, OTHER)
    job = state_of(made).jobs.get(JOB)
    assert job.missing > 0
    assert job.waits_for_money
    return made


def close_channels(made):
    """The lost provider is there again, and closes what it had open."""
    made.lost = lambda _to, _message: False
    made.take(PROVIDER, run.RunStopped(run=lease_of(made, PROVIDER), at_ms=made.now_ms))
    for _ in range(3):
        made.pass_time(3_600_000)
        for effect in buying.reminders(state_of(made), made.now_ms):
            made.tell(BUYER, effect.to, sealed(effect.message, BUYER_KEY))
    assert next(channel.phase for _, channel in state_of(made).paying.all()) == "closed"


@pytest.mark.parametrize("lease", ["any", "firm"])
def test_money_that_a_closing_channel_frees_lets_a_job_that_waits_for_it_go_on(lease):
    made = lost_without_money(lease=lease)
    before = tenders(made)
    close_channels(made)
    job = state_of(made).jobs.get(JOB)
    assert (tenders(made) - before, job.missing, job.waits_for_money) == (1, 0, False)


def test_a_channel_that_closes_wakes_nobody_who_waits_for_no_money():
    made = running(PROVIDER_KEY, retries=3)
    made.lost = lambda to, _: to == PROVIDER
    made.pass_time(20_000, BUYER)
    before = tenders(made)
    close_channels(made)
    assert tenders(made) == before


def test_a_penalty_that_can_never_be_charged_is_kept_back_from_no_budget():
    kept, lost = running(PROVIDER_KEY, lease="any", retries=3), running(PROVIDER_KEY, lease="firm", retries=3)
    left = []
    for made in (kept, lost):
        made.lost = lambda to, _: to == PROVIDER
        made.pass_time(20_000, BUYER)
        left.append(funds_left(state_of(made), state_of(made).jobs.get(JOB)))
    ((_, sold),) = lost.engines[PROVIDER].state.sales.all()
    assert sold.bid.penalty == 700
    assert left[1] - left[0] == 700


def test_a_firm_lease_that_lives_may_still_cost_all_of_it():
    spot, firm = running(PROVIDER_KEY, lease="any"), running(PROVIDER_KEY, lease="firm")
    left = [funds_left(state_of(made), state_of(made).jobs.get(JOB)) for made in (spot, firm)]
    assert left[0] == left[1]


def unheard(after_ms, *, restarts, heard=False):
    """The award has left, and its confirmation does not arrive: the buyer goes on after so long, from its journal."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1)
    made.submit(BUYER, of=spec(shards=1))
    made.lost = lambda _to, message: isinstance(message, messages.LeaseConfirmed | messages.AwardSent)
    made.tender(BUYER, (PROVIDER,))
    made.pass_time(2_000, BUYER)
    if restarts:
        made.now_ms += after_ms
        made.restart(BUYER)
    if heard:
        made.now_ms += 1
        made.tell(OTHER, BUYER, messages.RunLogSent(lease=bytes(32), text="hello"))
    made.pass_time(10_000, BUYER)
    return made


@pytest.mark.parametrize("after_ms", [1_000, 6_000])
def test_who_could_not_be_heard_while_the_buyer_was_away_is_blamed_for_nothing(after_ms):
    made = unheard(after_ms, restarts=True)
    assert whys(made) == {PROVIDER: UNHEARD}
    assert state_of(made).records == {}
    assert tenders(made) == 2, "its job looks for a provider at once"


def test_who_does_not_confirm_to_a_buyer_that_is_there_is_noted():
    made = unheard(0, restarts=False, heard=True)
    assert whys(made) == {PROVIDER: SILENT}
    assert state_of(made).records == {PROVIDER: Record(bad=1)}


def test_nobody_is_blamed_while_the_buyers_own_line_may_be_gone():
    made = unheard(0, restarts=False)
    assert whys(made) == {PROVIDER: DEAF}
    assert state_of(made).records == {}
    assert tenders(made) == 2, "its job looks for a provider at once"
    written = restored(snapshot(state_of(made)))
    assert written.last_heard_ms == state_of(made).last_heard_ms == NOW_MS


def test_a_closing_channel_wakes_no_job_that_went_round_without_money_for_its_leases():
    made = lost_without_money()
    job = state_of(made).jobs.get(JOB)
    round_and_round = replace(job.shards[0], kind=UNFUNDED, attempts=MOST_AT_ONCE + 1)
    state_of(made).jobs[JOB] = replace(job, shards=(round_and_round,))
    before = tenders(made)
    close_channels(made)
    assert tenders(made) == before


def test_a_trial_of_the_market_ends_with_the_bids_holds_nobody_and_is_not_repeated():
    made = SmallMarket()
    made.add(BUYER_KEY)
    for seller in (PROVIDER_KEY, OTHER_KEY):
        made.add(seller, devices=1)
    made.submit(BUYER, of=spec(shards=1, only_bids=True))
    made.tender(BUYER, (PROVIDER, OTHER))
    state = state_of(made)
    assert (state.jobs.get(JOB).phase, state.jobs.get(JOB).reason) == ("cancelled", ONLY_BIDS)
    assert [len(bought.ranking) for _, bought in state.purchases.all()] == [2]
    assert not made.heard(messages.AwardSent)
    (shown,) = bids_view(state, state.jobs.get(JOB))["tenders"]
    assert [row["result"] for row in shown["bids"]] == ["would win", "shown"]
    assert "an hour for 1 shard: the cheapest for the hour too" in shown["choice"]
    assert shown["saved_against_mean"] is not None
    assert [row["why"] for row in shown["bids"]] == ["lowest expected cost of 2 bids", "number 2 of 2 by expected cost"]
    poor = next(bought for _, bought in state.purchases.all())
    state.purchases[poor.tender_digest] = replace(poor, funds=1)
    (shown,) = bids_view(state, state.jobs.get(JOB))["tenders"]
    assert {row["result"] for row in shown["bids"]} == {"shown"}
    assert shown["choice"] == "The budget, 0.000001 USD, is not enough for any set of these bids."
    for seller in (PROVIDER, OTHER):
        assert made.engines[seller].state.capacity.allotments == {}
        assert not made.engines[seller].state.sales.live
    assert (state.records, tenders(made)) == ({}, 1)
    made.restart(BUYER)
    assert (tenders(made), state_of(made).jobs.get(JOB).phase) == (1, "cancelled")
