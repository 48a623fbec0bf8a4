from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.market.sale_events import RECLAIMED
from hansa.proto.blob import BlobRef
from hansa.proto.codec import decode, encode
from hansa.scheduler.run import (
    FAILED,
    KEPT,
    MOST_RESTARTS,
    RUN_TABLE,
    STAGING,
    STOPPED,
    STOPPING,
    SUCCEEDED,
    LeaveRun,
    Run,
    RunCheckpointed,
    RunEvent,
    RunFailed,
    RunFinished,
    RunKept,
    RunLeaveWanted,
    RunLogged,
    RunLost,
    RunOutput,
    RunPaused,
    RunProgressed,
    RunResumed,
    RunStarted,
    RunStopped,
    RunStopWanted,
    RunSynced,
    StartRun,
    StopRun,
    advance,
    device_ms,
    outstanding,
    plan_run,
)

RUN = b"r" * 32
BLOB = BlobRef(root=b"b" * 32, size_bytes=7)
OTHER = BlobRef(root=b"o" * 32, size_bytes=9)


def started(at_ms=1000):
    return RunStarted(run=RUN, at_ms=at_ms)


def progressed(step, at_ms):
    return RunProgressed(run=RUN, step=step, metrics=(("loss", 0.5),), at_ms=at_ms)


def checkpointed(round_number, step, at_ms, blob=BLOB):
    return RunCheckpointed(run=RUN, round=round_number, step=step, checkpoint=blob, at_ms=at_ms)


def stop_wanted(grace_ms, at_ms=2000, why="the owner needs the device"):
    return RunStopWanted(run=RUN, grace_ms=grace_ms, why=why, at_ms=at_ms)


def leave_wanted(by_ms, at_ms=2000, why="the owner plays"):
    return RunLeaveWanted(run=RUN, by_ms=by_ms, why=why, at_ms=at_ms)


def kept(at_ms, kind="user-exception"):
    return RunKept(run=RUN, kind=kind, reason="division by zero", until_ms=at_ms + 60_000, at_ms=at_ms)


def play(*events, state=None):
    """The state after these events and the effects of the last one."""
    state = state or plan_run(RUN).state
    effects = ()
    for event in events:
        step = advance(state, event)
        state, effects = step.state, step.effects
    return state, effects


def test_a_new_run_is_started():
    step = plan_run(RUN)
    assert step.state.phase == STAGING
    assert step.effects == (StartRun(run=RUN, checkpoint=None, round=0),)


def test_a_shard_that_was_worked_on_before_starts_from_its_checkpoint():
    step = plan_run(RUN, checkpoint=BLOB, round_number=4)
    assert step.effects == (StartRun(run=RUN, checkpoint=BLOB, round=4),)


def test_the_usual_course_ends_well_with_its_results():
    state, _ = play(
        started(1000),
        progressed(1, 1500),
        RunSynced(run=RUN, round=0, weight_ppm=1, state=BLOB, at_ms=1600),
        checkpointed(1, 1, 1700),
        RunLogged(run=RUN, text="hello", at_ms=1800),
        RunOutput(run=RUN, path="a", blob=BLOB, at_ms=1900),
        RunOutput(run=RUN, path="a", blob=OTHER, at_ms=1950),
        RunFinished(run=RUN, at_ms=3000),
    )
    assert state.phase == SUCCEEDED
    assert [(result.path, result.blob) for result in state.outputs] == [("a", OTHER)]
    assert (state.checkpoint, state.checkpoint_round, state.step) == (BLOB, 1, 1)
    assert device_ms(state, 99_999) == 2000


def test_device_time_is_counted_only_while_it_runs():
    state, _ = play(started(1000))
    assert device_ms(state, 1700) == 700
    state, _ = play(RunPaused(run=RUN, at_ms=2000), state=state)
    assert device_ms(state, 5000) == 1000
    state, _ = play(RunResumed(run=RUN, at_ms=6000), state=state)
    assert device_ms(state, 6500) == 1500
    state, _ = play(RunFinished(run=RUN, at_ms=7000), state=state)
    assert device_ms(state, 9000) == 2000


def test_staging_is_not_paid_for():
    state, _ = play(RunFailed(run=RUN, kind="refused", reason="no sandbox", at_ms=9000))
    assert state.phase == FAILED
    assert device_ms(state, 10_000) == 0


def test_a_failure_keeps_its_kind_and_words():
    state, _ = play(started(), RunFailed(run=RUN, kind="stalled", reason="no progress", at_ms=2000))
    assert (state.phase, state.end_kind, state.end_reason) == (FAILED, "stalled", "no progress")


def test_a_wish_to_stop_is_passed_on_and_ends_as_stopped_however_it_ends():
    for end in (
        RunFinished(run=RUN, at_ms=3000),
        RunStopped(run=RUN, at_ms=3000),
        RunFailed(run=RUN, kind="user-exception", reason="x", at_ms=3000),
        RunLost(run=RUN, at_ms=3000),
    ):
        state, effects = play(started(), stop_wanted(500))
        assert state.phase == STOPPING
        assert effects == (StopRun(run=RUN, grace_ms=500),)
        assert play(end, state=state)[0].phase == STOPPED


def test_a_second_wish_may_only_shorten_the_grace():
    state, _ = play(started(), stop_wanted(5000))
    assert play(stop_wanted(9000), state=state) == (state, ())
    assert play(stop_wanted(0), state=state)[1] == (StopRun(run=RUN, grace_ms=0),)


def test_a_run_that_is_to_leave_goes_on_and_ends_as_reclaimed_however_its_end_is_told():
    for end in (
        RunStopped(run=RUN, at_ms=3000),
        RunFailed(run=RUN, kind=RECLAIMED, reason="the owner plays", at_ms=3000),
        RunLost(run=RUN, at_ms=3000),
    ):
        state, effects = play(started(), leave_wanted(60_000))
        assert state.phase == "running"
        assert effects == (LeaveRun(run=RUN, by_ms=60_000, why="the owner plays"),)
        assert outstanding(state) == effects
        ended, _ = play(end, state=state)
        assert (ended.phase, ended.end_kind, ended.end_reason) == (FAILED, RECLAIMED, "the owner plays")


def test_a_run_that_is_to_leave_may_finish_or_fail_by_itself_before():
    state, _ = play(started(), leave_wanted(60_000))
    assert play(RunFinished(run=RUN, at_ms=3000), state=state)[0].phase == SUCCEEDED
    failed, _ = play(RunFailed(run=RUN, kind="user-exception", reason="x", at_ms=3000), state=state)
    assert (failed.phase, failed.end_kind) == (FAILED, "user-exception")


def test_a_run_that_is_still_staged_leaves_at_once():
    state, effects = play(leave_wanted(60_000))
    assert effects == (StopRun(run=RUN, grace_ms=0),)
    ended, _ = play(RunStopped(run=RUN, at_ms=3000), state=state)
    assert (ended.phase, ended.end_kind) == (FAILED, RECLAIMED)


def test_a_run_that_did_not_leave_in_time_and_is_stopped_was_reclaimed_all_the_same():
    state, _ = play(started(), leave_wanted(60_000), stop_wanted(0, at_ms=60_000))
    for end in (RunStopped(run=RUN, at_ms=60_100), RunFinished(run=RUN, at_ms=60_100)):
        ended, _ = play(end, state=state)
        assert (ended.phase, ended.end_kind) == (FAILED, RECLAIMED)


def test_a_second_wish_to_leave_may_only_bring_the_moment_nearer():
    state, _ = play(started(), leave_wanted(60_000))
    assert play(leave_wanted(70_000), state=state) == (state, ())
    assert play(leave_wanted(5_000), state=state)[1] == (LeaveRun(run=RUN, by_ms=5_000, why="the owner plays"),)


def test_a_kept_run_is_not_counted_and_ends_as_it_failed_however_its_end_is_told():
    state, _ = play(started(1000), progressed(1, 1500), kept(2000))
    assert (state.phase, state.kept_kind, state.kept_until_ms) == (KEPT, "user-exception", 62_000)
    paused, _ = play(RunPaused(run=RUN, at_ms=3000), RunResumed(run=RUN, at_ms=4000), state=state)
    assert device_ms(paused, 99_999) == 1000
    for events in (
        [RunFailed(run=RUN, kind="user-exception", reason="division by zero", at_ms=9000)],
        [RunLost(run=RUN, at_ms=9000)],
        [stop_wanted(0, at_ms=8000), RunStopped(run=RUN, at_ms=9000)],
        [leave_wanted(8000), RunStopped(run=RUN, at_ms=9000)],
    ):
        ended, _ = play(*events, state=state)
        assert (ended.phase, ended.end_kind, ended.end_reason) == (FAILED, "user-exception", "division by zero")
        assert device_ms(ended, 99_999) == 1000


def test_a_checkpoint_saved_while_stopping_is_kept():
    state, _ = play(started(), stop_wanted(5000), checkpointed(3, 9, 2500), RunStopped(run=RUN, at_ms=2600))
    assert (state.phase, state.checkpoint, state.checkpoint_step) == (STOPPED, BLOB, 9)


def test_a_lost_run_goes_on_from_its_checkpoint_and_counts_only_what_was_heard_of():
    state, effects = play(started(1000), checkpointed(2, 5, 1400), progressed(6, 1900), RunLost(run=RUN, at_ms=60_000))
    assert state.phase == STAGING
    assert effects == (StartRun(run=RUN, checkpoint=BLOB, round=2),)
    assert device_ms(state, 99_999) == 900
    state, _ = play(started(70_000), state=state)
    assert device_ms(state, 70_100) == 1000


def test_a_run_lost_before_it_began_is_simply_started():
    state, effects = play(RunLost(run=RUN, at_ms=5000))
    assert state.restarts == 0
    assert effects == (StartRun(run=RUN, checkpoint=None, round=0),)


def test_a_run_lost_too_often_has_failed():
    state = plan_run(RUN).state
    for number in range(MOST_RESTARTS + 1):
        state, _ = play(started(1000 * (number + 1)), RunLost(run=RUN, at_ms=10**6), state=state)
    assert (state.phase, state.end_kind) == (FAILED, "lost")


@pytest.mark.parametrize("end", [RunFinished(run=RUN, at_ms=2000), RunFailed(run=RUN, kind="x", reason="", at_ms=2000)])
def test_what_comes_after_the_end_changes_nothing(end):
    state, _ = play(started(), end)
    for event in (
        started(5000),
        progressed(9, 5000),
        checkpointed(9, 9, 5000),
        stop_wanted(1),
        RunLost(run=RUN, at_ms=5000),
    ):
        step = advance(state, event)
        assert step.state == state
        assert step.ignored


def test_what_is_outstanding_is_asked_for_again():
    assert outstanding(plan_run(RUN).state) == (StartRun(run=RUN, checkpoint=None, round=0),)
    state, _ = play(started())
    assert outstanding(state) == ()
    state, _ = play(stop_wanted(700), state=state)
    assert outstanding(state) == (StopRun(run=RUN, grace_ms=700),)


STRAYS = st.sampled_from(
    [
        started,
        lambda t: progressed(3, t),
        lambda t: checkpointed(1, 2, t),
        lambda t: RunPaused(run=RUN, at_ms=t),
        lambda t: RunResumed(run=RUN, at_ms=t),
        lambda t: stop_wanted(100, t),
        lambda t: RunLost(run=RUN, at_ms=t),
        lambda t: RunFinished(run=RUN, at_ms=t),
        lambda t: RunStopped(run=RUN, at_ms=t),
        lambda t: leave_wanted(t + 300, t),
        kept,
        lambda t: RunFailed(run=RUN, kind="stalled", reason="", at_ms=t),
    ]
)


@given(st.lists(st.tuples(STRAYS, st.integers(0, 500)), max_size=25))
def test_in_any_story_the_device_time_never_falls_nor_exceeds_the_clock(story):
    state, now_ms, before_ms = plan_run(RUN).state, 1000, 0
    for make, passed_ms in story:
        now_ms += passed_ms
        event = make(now_ms)
        state = advance(state, event).state
        counted_ms = state.counted_ms
        assert counted_ms >= before_ms
        assert device_ms(state, now_ms) <= now_ms - 1000
        before_ms = counted_ms
        if state.phase in RUN_TABLE.terminal:
            assert state.running_since_ms is None


@given(st.lists(st.tuples(STRAYS, st.integers(0, 500)), max_size=10))
def test_every_event_and_state_survives_the_journal(story):
    state, now_ms = plan_run(RUN).state, 1000
    for make, passed_ms in story:
        now_ms += passed_ms
        event = make(now_ms)
        assert decode(encode(event), RunEvent, limit_bytes=1 << 20) == event
        state = advance(state, event).state
    assert decode(encode(state), Run, limit_bytes=1 << 20) == state
    assert replace(state) == state


def test_a_run_that_was_paused_before_it_began_counts_no_time_until_it_is_resumed():
    paused = RunPaused(run=RUN, at_ms=900)
    state, _ = play(paused, started(1000))
    assert device_ms(state, 50_000) == 0
    state, _ = play(RunResumed(run=RUN, at_ms=50_000), state=state)
    assert device_ms(state, 50_700) == 700
    again, _ = play(paused, RunResumed(run=RUN, at_ms=950), started(1000))
    assert device_ms(again, 1_700) == 700
    leaving, _ = play(paused, stop_wanted(3_000), RunResumed(run=RUN, at_ms=2_100))
    assert device_ms(leaving, 5_000) == 0, "it is resumed so that it can save something, and has not begun"
    lost, _ = play(paused, RunLost(run=RUN, at_ms=2_000), started(3_000))
    assert device_ms(lost, 3_700) == 700, "a new sandbox is not paused"


def test_no_late_word_that_it_began_makes_the_time_count_in_which_a_run_is_kept():
    state, _ = play(kept(1000), stop_wanted(3_000), started(2_000))
    assert device_ms(state, 60_000) == 0
