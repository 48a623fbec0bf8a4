"""Who finds no place waits and asks again, ever less often, and never when it would be of no use."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from kit.playbook import Playbook, ignored, some
from kit.trading import JOB, NOW_MS, PROVIDER, needs, spec

from hansa.proto.blob import blob_ref
from hansa.scheduler import job
from hansa.scheduler.job import advance, plan
from hansa.scheduler.job_events import (
    BudgetRaised,
    CancelWanted,
    GangCame,
    Granted,
    JobOver,
    RoomSeen,
    RunEndArrived,
    TenderFailed,
    TendersUnwanted,
    TenderWanted,
    TimePassed,
)
from hansa.scheduler.job_queue import LEAST_PAUSE_MS, LONGEST_PAUSE_MS, RETRY_MS, due_ms

OVER = JobOver(job=JOB)
HOUR_MS = 3_600_000
LEASE = b"L" * 32


def start(**changes):
    return plan(job=JOB, spec=spec(**changes), package=blob_ref(b"package"), at_ms=NOW_MS)


def failed(after_ms, *, shards=(0, 1), reason="it takes 2 bids at once, and none could win", **changes):
    return TenderFailed(
        **{"shards": shards, "reason": reason, "deserted": False, "at_ms": NOW_MS + after_ms, **changes}
    )


def passed(after_ms):
    return TimePassed(at_ms=NOW_MS + after_ms)


def queued(**changes):
    return Playbook(advance, None, begin=start(queue_ms=HOUR_MS, **changes)) << some(TenderWanted, shards=(0, 1))


def test_a_queued_job_asks_for_all_of_its_gang_again_after_a_while():
    playbook = queued() >> failed(2_000)
    state = playbook.reaches("gathering")
    assert {shard.unfilled for shard in state.shards} == {"it takes 2 bids at once, and none could win"}
    assert job.deadline_ms(state) == NOW_MS + 2_000 + RETRY_MS
    playbook >> passed(2_000 + RETRY_MS) << some(TenderWanted, shards=(0, 1), attempt=1)
    assert job.deadline_ms(playbook.reaches("gathering")) is None, "while a tender is out nothing is waited for"
    grants = tuple(Granted(shard=shard, lease=bytes([shard]) * 32, provider=PROVIDER, ends_ms=0) for shard in (0, 1))
    begun = advance(playbook.reaches("gathering"), GangCame(granted=grants, at_ms=NOW_MS + 9_000)).state
    assert begun.phase == "running"
    assert {(shard.tries, shard.unfilled) for shard in begun.shards} == {(0, "")}


def test_without_a_queue_the_first_tender_is_the_only_one():
    playbook = Playbook(advance, None, begin=start()) << some(TenderWanted)
    playbook >> failed(2_000) << some(TendersUnwanted) << OVER
    playbook.reaches("failed", reason="unfilled: it takes 2 bids at once, and none could win")


def ask_until_it_ends(state, step_ms):
    """Let every tender come to nothing; answers when they were sent, and the state in the end."""
    asked_ms, at_ms = [NOW_MS], NOW_MS
    while state.phase == "gathering":
        at_ms += step_ms
        state = advance(state, failed(at_ms - NOW_MS)).state
        if state.phase != "gathering":
            break
        at_ms = job.deadline_ms(state)
        step = advance(state, TimePassed(at_ms=at_ms))
        assert [type(effect) for effect in step.effects] == [TenderWanted]
        asked_ms.append(at_ms)
        assert len(asked_ms) < 2_000, "it asks without end"
        state = step.state
    return asked_ms, state


@given(st.integers(0, 48 * HOUR_MS), st.integers(100, 60_000))
def test_a_job_that_nobody_serves_asks_ever_less_often_and_ends_when_its_time_is_over(queue_ms, step_ms):
    asked_ms, state = ask_until_it_ends(start(queue_ms=queue_ms).state, step_ms)
    assert state.phase == "failed"
    assert NOW_MS + queue_ms <= state.ended_ms <= NOW_MS + queue_ms + step_ms
    assert "unfilled: it takes 2 bids" in state.reason
    pauses = [later - earlier for earlier, later in pairwise(asked_ms)]
    assert pauses[:-1] == sorted(pauses[:-1]), "each is at least as long as the one before"
    assert len(asked_ms) <= queue_ms // LONGEST_PAUSE_MS + 10, "devices are not held without end"


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=200))
def test_whoever_makes_a_noise_about_devices_is_not_asked_all_the_time(gaps):
    state, at_ms, asked_ms = start(queue_ms=24 * HOUR_MS).state, NOW_MS, []
    state = advance(state, failed(0)).state
    for gap_ms in gaps:
        at_ms += gap_ms
        due = job.deadline_ms(state)
        if due is not None and due <= at_ms:
            at_ms = max(at_ms, due)
            state = advance(state, TimePassed(at_ms=at_ms)).state
            asked_ms.append(at_ms)
            state = advance(state, failed(at_ms - NOW_MS)).state
        state = advance(state, RoomSeen(at_ms=at_ms)).state
    # The second tender comes after three seconds whatever is heard; noise brings forward only what comes later.
    assert all(later - earlier >= LEAST_PAUSE_MS for earlier, later in pairwise(asked_ms[2:]))


def test_a_provider_that_appears_is_asked_soon():
    playbook = queued()
    at_ms = 0
    for _ in range(8):
        at_ms += 2_000
        playbook >> failed(at_ms)
        at_ms = job.deadline_ms(playbook.reaches("gathering")) - NOW_MS
        playbook >> passed(at_ms) << some(TenderWanted)
    playbook >> failed(at_ms + 2_000)
    waits_until_ms = job.deadline_ms(playbook.reaches("gathering"))
    assert waits_until_ms == NOW_MS + at_ms + 2_000 + LONGEST_PAUSE_MS
    playbook >> RoomSeen(at_ms=NOW_MS + at_ms + 100_000)
    assert job.deadline_ms(playbook.reaches("gathering")) == NOW_MS + at_ms + 100_000
    playbook >> passed(at_ms + 100_000) << some(TenderWanted, shards=(0, 1))
    playbook >> RoomSeen(at_ms=NOW_MS + at_ms + 101_000) << ignored("room for no shard that waits")


def test_what_cannot_end_by_its_deadline_is_not_tendered_any_more():
    wall_ms = needs().wall_ms
    playbook = queued(deadline_after_ms=wall_ms + 60_000)
    assert due_ms(playbook._state) == NOW_MS + wall_ms + 60_000
    playbook >> failed(2_000) >> passed(5_000) << some(TenderWanted) >> failed(55_000)
    assert job.deadline_ms(playbook.reaches("gathering")) == NOW_MS + 60_000, "the last chance"
    playbook >> passed(60_000) << some(TenderWanted)
    playbook >> failed(62_000) << some(TendersUnwanted) << OVER
    state = playbook.reaches("failed")
    assert state.reason.startswith("unfilled: it could not end by its deadline any more: it takes 2 bids")


def test_a_shard_that_moves_is_tendered_up_to_the_deadline_itself():
    playbook = Playbook(advance, None, begin=start(shards=1, deadline_after_ms=needs().wall_ms, stall_ms=HOUR_MS))
    playbook << some(TenderWanted)
    granted = Granted(shard=0, lease=LEASE, provider=PROVIDER, ends_ms=NOW_MS + 2 * HOUR_MS)
    state = advance(playbook._state, GangCame(granted=(granted,), at_ms=NOW_MS)).state
    lost = RunEndArrived(lease=LEASE, outcome="failed", kind="lost", reason="", outputs=0, at_ms=NOW_MS + 1_000)
    state = advance(state, lost).state
    state = advance(state, failed(2_000, shards=(0,))).state
    assert state.shards[0].retry_ms == NOW_MS + 2_000 + RETRY_MS
    state = advance(state, failed(needs().wall_ms, shards=(0,))).state
    assert state.phase == "failed"
    assert "found no other provider, and the job's deadline has passed" in state.reason


def test_a_lost_shard_looks_on_for_as_long_as_the_queue_lets_it_where_that_is_longer_than_a_stall():
    playbook = Playbook(advance, None, begin=start(shards=1, queue_ms=HOUR_MS)) << some(TenderWanted)
    granted = Granted(shard=0, lease=LEASE, provider=PROVIDER, ends_ms=NOW_MS + 2 * HOUR_MS)
    state = advance(playbook._state, GangCame(granted=(granted,), at_ms=NOW_MS)).state
    lost = RunEndArrived(lease=LEASE, outcome="failed", kind="lost", reason="", outputs=0, at_ms=NOW_MS)
    state = advance(state, lost).state
    assert advance(state, failed(HOUR_MS - 1, shards=(0,))).state.phase == "running"
    assert advance(state, failed(HOUR_MS, shards=(0,))).state.phase == "failed"


def test_who_waits_for_money_does_so_no_longer_than_it_could_be_of_use():
    wall_ms = needs().wall_ms
    playbook = queued(deadline_after_ms=wall_ms + 60_000) >> failed(2_000, missing=5)
    assert job.deadline_ms(playbook.reaches("gathering")) == NOW_MS + 60_001
    playbook >> passed(60_001) << some(TendersUnwanted) << OVER
    assert "waited for money until it could not end by its deadline" in playbook.reaches("failed").reason


def test_a_queued_job_can_be_cancelled_and_can_wait_for_money_between():
    playbook = queued() >> failed(2_000, missing=5)
    assert playbook.reaches("gathering").waits_for_money
    assert job.deadline_ms(playbook.reaches("gathering")) is None
    playbook >> BudgetRaised(amount=5, at_ms=NOW_MS + 10_000) << some(TenderWanted, shards=(0, 1))
    playbook >> failed(12_000)
    playbook >> CancelWanted(reason="enough", at_ms=NOW_MS + 13_000) << some(TendersUnwanted) << OVER
    playbook.reaches("cancelled", reason="enough")
