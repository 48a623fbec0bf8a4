"""When money runs low a job waits with what it has, and goes on from there when there is more."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.playbook import Playbook, ignored, some
from kit.trading import NOW_MS, OTHER, PROVIDER, THIRD, spec

from hansa.market.effects import Send
from hansa.market.sale_funding import UNFUNDED
from hansa.proto.blob import blob_ref
from hansa.proto.messages import DeliveryAccepted, RunOrdered, RunStopOrdered
from hansa.scheduler import job
from hansa.scheduler.job import advance, plan
from hansa.scheduler.job_events import (
    BlobArrived,
    BudgetRaised,
    CancelWanted,
    CheckpointAnnounced,
    FetchWanted,
    GangCame,
    GangFunded,
    Granted,
    JobOver,
    LeaseOver,
    ReportArrived,
    RunEndArrived,
    TenderFailed,
    TendersUnwanted,
    TenderWanted,
    TimePassed,
)
from hansa.scheduler.job_queue import looks_until_ms
from hansa.scheduler.rounds import MemberJoined, MemberLeft

WHO = (PROVIDER, OTHER, THIRD)
JOINED, LEFT = some(MemberJoined), some(MemberLeft)
STOPPED = some(Send, message=some(RunStopOrdered))
TAKEN = some(Send, message=some(DeliveryAccepted))
ORDERED = some(Send, message=some(RunOrdered))


def lease(shard, attempt=0):
    return bytes([shard + 1, attempt]) * 16


def came(*shards, attempt=0, hold_ms=0, same=False):
    grants = (
        Granted(shard=shard, lease=lease(shard, attempt), provider=WHO[not same and shard], ends_ms=NOW_MS + 600_000)
        for shard in shards
    )
    return GangCame(granted=tuple(grants), hold_ms=hold_ms, at_ms=NOW_MS)


def too_dear(*shards, missing=500):
    return TenderFailed(shards=shards, reason="too dear", deserted=False, missing=missing, at_ms=NOW_MS + 5_000)


def raised(amount, at_ms=NOW_MS + 3_600_000):
    return BudgetRaised(amount=amount, at_ms=at_ms)


def ended(of, outcome="succeeded", kind=""):
    return RunEndArrived(lease=of, outcome=outcome, kind=kind, reason="", outputs=0, at_ms=NOW_MS + 9_000)


def gathering(**changes):
    step = plan(job=b"j" * 32, spec=spec(**changes), package=blob_ref(b"package"), at_ms=NOW_MS)
    return Playbook(advance, None, begin=step) << some(TenderWanted)


def running(shards=2, **changes):
    playbook = gathering(shards=shards, **changes) >> came(*range(shards))
    for _ in range(shards):
        playbook << JOINED << ORDERED
    return playbook


def one_waits(**changes):
    """Of two shards one was lost, and the budget does not reach for another lease of it."""
    playbook = running(**changes) >> ended(lease(1), "failed", "worker-died") << LEFT << STOPPED << some(LeaseOver)
    playbook << some(TenderWanted, shards=(1,))
    return playbook >> too_dear(1)


def test_a_first_tender_that_is_too_dear_waits_for_money_and_not_for_ever_in_vain():
    playbook = gathering() >> too_dear(0, 1)
    state = playbook.reaches("gathering", missing=500, waits_for_money=True)
    assert job.deadline_ms(state) is None, "it waits for its developer, however long"
    playbook >> raised(500) << some(TenderWanted, shards=(0, 1))
    playbook.reaches("gathering", missing=0, waits_for_money=False, spec=spec(budget=spec().budget + 500))


def test_a_shard_that_the_budget_cannot_pay_for_again_waits_and_goes_on_from_its_checkpoint():
    blob = blob_ref(b"state")
    playbook = running(retries=3)
    playbook >> CheckpointAnnounced(lease=lease(1), round=2, step=5, checkpoint=blob, at_ms=NOW_MS) << some(FetchWanted)
    playbook >> BlobArrived(lease=lease(1), blob=blob, at_ms=NOW_MS)
    playbook >> ended(lease(1), "failed", "worker-died") << LEFT << STOPPED << some(LeaseOver)
    playbook << some(TenderWanted, shards=(1,)) >> too_dear(1)
    playbook.reaches("running", waits_for_money=True)
    playbook >> raised(1) << some(TenderWanted, shards=(1,))
    playbook >> came(1, attempt=1) << JOINED
    playbook << some(Send, message=some(RunOrdered, lease=lease(1, 1), round=2, checkpoint=blob))
    playbook.reaches("running", waits_for_money=False)


def test_a_shard_that_waits_for_money_never_runs_into_the_limit_for_finding_a_provider():
    playbook = one_waits() >> raised(1, NOW_MS + 10**9) << some(TenderWanted)
    playbook >> TenderFailed(shards=(1,), reason="nobody", deserted=False, at_ms=NOW_MS + 10**9 + 1_000)
    playbook.reaches("running")


def test_what_another_shard_did_not_use_lets_the_waiting_one_go_on():
    playbook = one_waits() >> ended(lease(0)) << LEFT << TAKEN << some(LeaseOver, well=True)
    playbook << some(TenderWanted, shards=(1,))
    playbook.reaches("running", waits_for_money=False)


def test_a_shard_that_just_became_short_is_not_tried_again_at_once():
    playbook = running() >> ended(lease(1), "stopped", UNFUNDED) << LEFT << STOPPED
    playbook << some(LeaseOver, well=False, blameless=True)
    playbook.reaches("running", waits_for_money=True, missing=0)


def starving(shards=2, **changes):
    """A job whose shards all ended, one after the other, for want of credit."""
    playbook = running(shards, **changes)
    for shard in range(shards):
        playbook >> ended(lease(shard), "stopped", UNFUNDED) << LEFT << STOPPED << some(LeaseOver)
    return playbook


def test_shards_that_starve_one_after_the_other_do_not_wake_each_other():
    """What their providers lend has not grown: they would decline, and then the job is lost."""
    state = starving(3).reaches("running", waits_for_money=True, missing=0)
    assert [shard.short for shard in state.shards] == [True] * 3
    assert job.deadline_ms(state) is None


def test_one_that_starved_frees_its_part_of_the_budget_for_one_that_lacks_some_and_stays_itself():
    playbook = one_waits() >> ended(lease(0), "stopped", UNFUNDED) << LEFT << STOPPED << some(LeaseOver)
    state = (playbook << some(TenderWanted, shards=(1,))).reaches("running", missing=0)
    assert [shard.short for shard in state.shards] == [True, False]


def test_one_that_starved_once_and_lacks_the_budget_now_goes_on_with_what_another_left():
    playbook = running() >> ended(lease(1), "stopped", UNFUNDED) << LEFT << STOPPED << some(LeaseOver)
    playbook >> raised(0) << some(TenderWanted, shards=(1,)) >> too_dear(1)
    playbook >> ended(lease(0)) << LEFT << TAKEN << some(LeaseOver, well=True) << some(TenderWanted, shards=(1,))
    playbook.reaches("running", waits_for_money=False)


@pytest.mark.parametrize("together", [True, False])
def test_what_a_lease_that_ended_well_left_on_a_channel_is_there_for_those_of_its_own_provider(together):
    playbook = gathering(shards=2) >> came(0, 1, same=together) << JOINED << ORDERED << JOINED << ORDERED
    playbook >> ended(lease(1), "stopped", UNFUNDED) << LEFT << STOPPED << some(LeaseOver)
    playbook >> ended(lease(0)) << LEFT << TAKEN << some(LeaseOver, well=True)
    if together:
        playbook << some(TenderWanted, shards=(1,))
    playbook.reaches("running", waits_for_money=not together)


def nobody(*shards, at_ms):
    return TenderFailed(shards=shards, reason="you may owe nothing more", deserted=False, at_ms=at_ms)


def test_one_that_starved_and_looked_in_vain_for_as_long_as_it_may_waits_for_money_again_and_says_why():
    playbook = starving() >> raised(0, NOW_MS) << some(TenderWanted) << some(TenderWanted)
    until_ms = looks_until_ms(playbook.reaches("running"), playbook.reaches("running").shards[0])
    playbook >> nobody(0, at_ms=until_ms - 1)
    shard = playbook.reaches("running").shards[0]
    assert (shard.short, shard.retry_ms) == (False, until_ms)
    playbook >> TimePassed(at_ms=until_ms) << some(TenderWanted, shards=(0,)) >> nobody(0, at_ms=until_ms)
    shard = playbook.reaches("running", waits_for_money=True, missing=0).shards[0]
    assert (shard.short, shard.retry_ms, shard.unfilled) == (True, 0, "you may owe nothing more")
    playbook >> raised(0, until_ms + 1) << some(TenderWanted, shards=(0,))
    playbook.reaches("running", waits_for_money=False)


def test_one_that_lost_its_provider_still_ends_the_job_after_looking_in_vain():
    playbook = running(retries=3) >> ended(lease(1), "failed", "worker-died") << LEFT << STOPPED << some(LeaseOver)
    playbook << some(TenderWanted)
    until_ms = looks_until_ms(playbook.reaches("running"), playbook.reaches("running").shards[1])
    over = advance(playbook.reaches("running"), nobody(1, at_ms=until_ms)).state
    assert (over.phase, "found no other provider" in over.reason) == ("failed", True)


@pytest.mark.parametrize("late_ms", [0, 1])
def test_a_deadline_still_ends_one_that_starved(late_ms):
    playbook = starving(deadline_after_ms=20_000) >> raised(0, NOW_MS + 10_000)
    playbook << some(TenderWanted) << some(TenderWanted)
    over = advance(playbook.reaches("running"), nobody(0, at_ms=NOW_MS + 20_000 + late_ms)).state
    assert (over.phase, "the job's deadline has passed" in over.reason) == ("failed", True)


def test_a_lease_that_was_not_funded_costs_no_retry_and_waits_for_the_word_that_the_wallet_is_filled():
    playbook = running(retries=0) >> ended(lease(1), "failed", UNFUNDED) << LEFT << STOPPED << some(LeaseOver)
    assert [shard.losses for shard in playbook.reaches("running").shards] == [0, 0]
    (playbook >> raised(0) << some(TenderWanted, shards=(1,))).reaches("running", waits_for_money=False)


def test_a_job_that_waits_for_money_can_be_cancelled():
    playbook = gathering() >> too_dear(0, 1) >> CancelWanted(reason="too dear", at_ms=NOW_MS) << some(TendersUnwanted)
    (playbook << some(JobOver)).reaches("cancelled")


def test_a_budget_can_be_raised_before_it_is_needed_and_not_after_the_end():
    (running() >> raised(7)).reaches("running", spec=spec(budget=spec().budget + 7))
    over = gathering() >> CancelWanted(reason="no", at_ms=NOW_MS) << some(TendersUnwanted) << some(JobOver)
    (over >> raised(7) << ignored("BudgetRaised while cancelled")).reaches("cancelled", spec=spec())


def test_a_gang_starts_together_once_all_of_it_can_be_paid():
    playbook = gathering() >> came(0, 1, hold_ms=60_000) << JOINED << JOINED
    assert job.outstanding(playbook.reaches("running"), NOW_MS) == ()
    playbook >> GangFunded(leases=(lease(0), lease(1)), at_ms=NOW_MS + 1_000) << ORDERED << ORDERED
    playbook >> GangFunded(leases=(lease(0), lease(1)), at_ms=NOW_MS + 2_000)
    assert len(job.outstanding(playbook.reaches("running"), NOW_MS)) == 2


def test_a_start_that_is_held_back_for_too_long_is_ordered_all_the_same():
    playbook = gathering(silence_ms=10**9) >> came(0, 1, hold_ms=60_000) << JOINED << JOINED
    assert job.deadline_ms(playbook.reaches("running")) == NOW_MS + 60_000
    playbook >> TimePassed(at_ms=NOW_MS + 60_000) << ORDERED << ORDERED
    playbook.reaches("running")


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1), st.integers(0, 1_000)), max_size=25))
def test_whatever_comes_a_shard_waits_for_a_tender_for_money_or_for_its_time_and_a_short_one_has_no_tender(course):
    """A shard that waits for nothing would wait for ever."""
    state = running(retries=1_000).reaches("running")
    tendered, attempts = set(), [0, 0]
    for kind, shard, amount in course:
        now = lease(shard, attempts[shard])
        event = {
            0: ended(now, "failed", "worker-died"),
            1: ended(now, "failed", UNFUNDED),
            2: replace(too_dear(shard), missing=amount + 1) if shard in tendered else None,
            3: TenderFailed(shards=(shard,), reason="nobody", deserted=False, at_ms=NOW_MS)
            if shard in tendered
            else None,
            4: raised(amount, NOW_MS + 1_000),
            5: TimePassed(at_ms=job.deadline_ms(state) or NOW_MS),
            6: ReportArrived(lease=now, step=1, metrics=(), started=True, at_ms=NOW_MS),
        }[kind]
        if event is None:
            continue
        if isinstance(event, TenderFailed):
            tendered.discard(shard)
        step = advance(state, event)
        state = step.state
        if state.phase != "running":
            return
        for effect in step.effects:
            if isinstance(effect, TenderWanted):
                assert not tendered & set(effect.shards), "a shard is tendered twice at once"
                tendered |= set(effect.shards)
        for each in state.shards:
            if each.phase == "waiting":
                waits = (each.shard in tendered, each.short, bool(each.retry_ms))
                assert sum(waits) == 1, f"shard {each.shard} waits for {waits}"
