"""One job: its shards start together, each may be lost alone, and the job always comes to an end."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.playbook import Playbook, ignored, some
from kit.trading import JOB, NOW_MS, OTHER, PROVIDER, THIRD, spec

from hansa.market.effects import Send
from hansa.proto.blob import blob_ref
from hansa.proto.messages import DeliveryAccepted, Metric, RunOrdered, RunStopOrdered
from hansa.scheduler import job
from hansa.scheduler.job import advance, plan
from hansa.scheduler.job_events import (
    BlobArrived,
    CancelWanted,
    CheckpointAnnounced,
    FetchWanted,
    GangCame,
    Granted,
    JobOver,
    LeaseOver,
    OutputAnnounced,
    ReportArrived,
    Restarted,
    RunEndArrived,
    TenderFailed,
    TendersUnwanted,
    TenderWanted,
    TimePassed,
)
from hansa.scheduler.job_losses import in_words
from hansa.scheduler.job_queue import RETRY_MS
from hansa.scheduler.job_spec import WORTH_RETRYING
from hansa.scheduler.rounds import MemberJoined, MemberLeft

WHO = (PROVIDER, OTHER, THIRD)
STATE, FILE = blob_ref(b"state"), blob_ref(b"file")
SILENCE_MS = spec().silence_ms


def lease(shard, attempt=0):
    return bytes([shard + 1, attempt]) * 16


def granted(shard, attempt=0, ends_ms=NOW_MS + 600_000):
    return Granted(shard=shard, lease=lease(shard, attempt), provider=WHO[shard], ends_ms=ends_ms)


def came(*grants, at_ms=NOW_MS):
    return GangCame(granted=grants, at_ms=at_ms)


def report(of, step=1, *, at_ms=NOW_MS + 1_000, metrics=()):
    return ReportArrived(lease=of, step=step, metrics=metrics, started=True, at_ms=at_ms)


def ended(of, outcome="succeeded", kind="", *, outputs=0, reason="", at_ms=NOW_MS + 2_000):
    return RunEndArrived(lease=of, outcome=outcome, kind=kind, reason=reason, outputs=outputs, at_ms=at_ms)


def passed(after_ms):
    return TimePassed(at_ms=NOW_MS + after_ms)


def ordered(shard, **fields):
    return some(Send, to=WHO[shard], message=some(RunOrdered, **fields))


STOPPED = some(Send, message=some(RunStopOrdered))
BADLY, WELL = some(LeaseOver, well=False), some(LeaseOver, well=True)
BLAMELESS = some(LeaseOver, well=False, blameless=True)
LEFT, JOINED = some(MemberLeft), some(MemberJoined)
TAKEN = some(Send, message=some(DeliveryAccepted))
OVER = JobOver(job=JOB)


def start(**changes):
    return plan(job=JOB, spec=spec(**changes), package=blob_ref(b"package"), at_ms=NOW_MS)


def running(**changes):
    playbook = Playbook(advance, None, begin=start(**changes)) << some(TenderWanted, attempt=0)
    shards = spec(**changes).shards
    playbook >> came(*(granted(shard) for shard in range(shards)))
    for shard in range(shards):
        playbook << JOINED << ordered(shard, lease=lease(shard), round=0, checkpoint=None)
    return playbook


def one(**changes):
    return running(shards=1, **changes)


def lost(playbook):
    """What is always done for a shard whose attempt came to nothing."""
    return playbook << LEFT << STOPPED << BADLY


def test_a_job_from_its_tender_to_its_last_output():
    playbook = running() >> report(lease(0)) >> ended(lease(1)) << some(MemberLeft, finished=True) << TAKEN << WELL
    playbook >> OutputAnnounced(lease=lease(0), path="a", blob=FILE, at_ms=NOW_MS) << some(FetchWanted, blob=FILE)
    playbook >> ended(lease(0), outputs=1) << LEFT
    playbook.reaches("running")
    playbook >> BlobArrived(lease=lease(0), blob=FILE, at_ms=NOW_MS) << TAKEN << WELL << OVER
    playbook.reaches("succeeded")


def test_a_gang_that_was_deserted_is_tendered_again_within_the_retries():
    playbook = Playbook(advance, None, begin=start(retries=2)) << some(TenderWanted, shards=(0, 1))
    deserted = TenderFailed(shards=(0, 1), reason="too many did not confirm", deserted=True, at_ms=NOW_MS)
    playbook >> deserted << some(TenderWanted, shards=(0, 1), attempt=1)
    playbook >> deserted << some(TenderWanted, shards=(0, 1), attempt=2)
    playbook.reaches("gathering")
    playbook >> deserted << some(TendersUnwanted) << OVER
    playbook.reaches("failed", reason="unfilled: too many did not confirm")


def test_a_report_of_a_step_far_ahead_hides_none_of_those_that_follow():
    metrics = (Metric(name="loss", value=0.5),)
    playbook = one()
    for step in (10**9, 2, 1, 2):
        playbook >> report(lease(0), step=step, metrics=metrics)
    history = playbook.reaches("running").history
    assert [point.step for point in history] == [1, 2, 10**9]


def test_the_first_gang_is_all_or_none():
    playbook = Playbook(advance, None, begin=start()) << some(TenderWanted, shards=(0, 1))
    (
        playbook
        >> TenderFailed(shards=(0, 1), reason="too few", deserted=False, at_ms=NOW_MS)
        << some(TendersUnwanted)
        << OVER
    )
    playbook.reaches("failed", reason="unfilled: too few")


def test_the_end_of_a_run_may_overtake_its_outputs():
    playbook = one() >> ended(lease(0), outputs=1) << LEFT
    playbook >> OutputAnnounced(lease=lease(0), path="a", blob=FILE, at_ms=NOW_MS) << some(FetchWanted)
    playbook >> BlobArrived(lease=lease(0), blob=FILE, at_ms=NOW_MS) << TAKEN << WELL << OVER
    playbook.reaches("succeeded")


def test_a_run_that_began_again_makes_its_files_again_and_the_newer_count():
    newer = blob_ref(b"newer")
    playbook = one() >> OutputAnnounced(lease=lease(0), path="a", blob=FILE, at_ms=NOW_MS) << some(FetchWanted)
    playbook >> OutputAnnounced(lease=lease(0), path="a", blob=FILE, at_ms=NOW_MS) << ignored("an output that is known")
    playbook >> OutputAnnounced(lease=lease(0), path="a", blob=newer, at_ms=NOW_MS) << some(FetchWanted, blob=newer)
    (shard,) = playbook.reaches("running").shards
    assert [output.blob for output in shard.outputs] == [newer]


def test_outputs_have_a_limit():
    playbook = one(output_bytes=5) >> OutputAnnounced(lease=lease(0), path="a", blob=FILE, at_ms=NOW_MS)
    playbook << some(FetchWanted) >> OutputAnnounced(lease=lease(0), path="b", blob=FILE, at_ms=NOW_MS)
    playbook << ignored("outputs over the job's limit")


# Silence.


def test_a_silent_provider_is_given_up_and_its_shard_tendered_again():
    playbook = one()
    assert job.deadline_ms(playbook.reaches("running")) == NOW_MS + SILENCE_MS
    playbook >> report(lease(0), at_ms=NOW_MS + 5_000) >> passed(SILENCE_MS)
    assert job.deadline_ms(playbook.reaches("running")) == NOW_MS + 5_000 + SILENCE_MS
    lost(playbook >> passed(5_000 + SILENCE_MS)) << some(TenderWanted, shards=(0,), attempt=1)
    assert playbook.reaches("running").shards[0].reason == "its provider was lost: it fell silent"


def test_our_own_absence_is_nobodys_silence():
    playbook = one() >> Restarted(at_ms=NOW_MS + 99_000) >> passed(99_500)
    assert job.deadline_ms(playbook.reaches("running")) == NOW_MS + 99_000 + SILENCE_MS


def test_a_provider_that_talks_for_ever_is_given_up_with_its_lease():
    playbook = Playbook(advance, None, begin=start(shards=1)) << some(TenderWanted)
    playbook >> came(granted(0, ends_ms=NOW_MS + 5_000)) << JOINED << ordered(0)
    due_ms = NOW_MS + 5_000 + job.OVERDUE_MS
    playbook >> report(lease(0), at_ms=due_ms - 1)
    assert job.deadline_ms(playbook.reaches("running")) == due_ms
    lost(playbook >> TimePassed(at_ms=due_ms)) << some(TenderWanted)
    assert playbook.reaches("running").shards[0].reason == "its provider was lost: its lease is over"


def test_outputs_on_their_way_are_waited_for_longer():
    playbook = one() >> ended(lease(0), outputs=1) << LEFT >> passed(2_000 + SILENCE_MS)
    lost(playbook >> passed(2_000 + SILENCE_MS * job.FETCH_PATIENCE)) << some(TenderWanted)


def test_a_provider_whose_results_never_stop_changing_is_not_waited_for_without_end():
    playbook = one(output_bytes=job.SLOWEST_BYTES_S) >> ended(lease(0), outputs=1) << LEFT
    last_ms = NOW_MS + 2_000 + SILENCE_MS * job.FETCH_PATIENCE + 1_000
    at_ms = NOW_MS + 2_000
    for turn in range(40):
        blob = blob_ref(b"%4d" % turn)
        at_ms = min(at_ms + SILENCE_MS, last_ms - 1)
        playbook >> OutputAnnounced(lease=lease(0), path="a", blob=blob, at_ms=at_ms) << some(FetchWanted, blob=blob)
        assert job.deadline_ms(playbook.reaches("running")) <= last_ms
    assert job.deadline_ms(playbook.reaches("running")) == last_ms
    lost(playbook >> TimePassed(at_ms=last_ms)) << some(TenderWanted)
    assert playbook.reaches("running").shards[0].reason == "its provider was lost: its results did not come"


def test_our_own_absence_shortens_the_time_for_nobodys_results():
    playbook = one(output_bytes=5) >> ended(lease(0), outputs=1) << LEFT >> Restarted(at_ms=NOW_MS + 900_000)
    due_ms = NOW_MS + 900_000 + SILENCE_MS * job.FETCH_PATIENCE
    assert job.deadline_ms(playbook.reaches("running")) == due_ms


# Retries.


@pytest.mark.parametrize("kind", WORTH_RETRYING)
def test_what_another_attempt_may_not_have_is_tried_again(kind):
    lost(one() >> ended(lease(0), "failed", kind)) << some(TenderWanted, attempt=1)


@pytest.mark.parametrize("kind", ["user-exception", "out-of-memory", "bad-state", "wall-limit", "protocol", "anything"])
def test_a_fault_of_the_jobs_own_is_not(kind):
    playbook = lost(one() >> ended(lease(0), "failed", kind, reason="division by zero"))
    playbook << some(TendersUnwanted) << OVER
    assert playbook.reaches("failed").reason == f"shard 0 failed ({kind}): {in_words(kind, 'division by zero')}"


def test_retries_are_counted():
    playbook = lost(one() >> ended(lease(0), "failed", "lost")) << some(TenderWanted, attempt=1)
    playbook >> came(granted(0, 1)) << JOINED << ordered(0, lease=lease(0, 1))
    lost(playbook >> ended(lease(0, 1), "failed", "lost")) << some(TendersUnwanted) << OVER
    assert playbook.reaches("failed").reason.startswith("shard 0 was lost 2 times")


def test_the_next_attempt_goes_on_from_the_newest_checkpoint_that_is_here():
    playbook = one()
    announced = CheckpointAnnounced(lease=lease(0), round=2, step=9, checkpoint=STATE, at_ms=NOW_MS)
    playbook >> announced << some(FetchWanted, blob=STATE) >> announced << ignored("a checkpoint that is known or old")
    playbook >> BlobArrived(lease=lease(0), blob=STATE, at_ms=NOW_MS)
    later = replace(announced, round=3, checkpoint=FILE)
    playbook >> later << some(FetchWanted)  # it never arrives
    playbook >> ended(lease(0), "failed", "lost") << LEFT
    due_ms = 2_000 + job.FETCH_PATIENCE * SILENCE_MS
    assert job.deadline_ms(playbook.reaches("running")) == NOW_MS + due_ms
    playbook >> passed(due_ms) << STOPPED << BADLY << some(TenderWanted)
    playbook >> came(granted(0, 1)) << JOINED << ordered(0, round=2, checkpoint=STATE)


def test_a_blob_that_nobody_waits_for_is_ignored_and_no_sign_of_the_provider():
    late = BlobArrived(lease=lease(0), blob=FILE, at_ms=NOW_MS + 1)
    playbook = one()
    before = playbook.reaches("running")
    assert (playbook >> late << ignored("a blob that nobody waits for")).reaches("running") == before


def test_a_checkpoint_over_the_limit_is_not_fetched():
    big = CheckpointAnnounced(
        lease=lease(0), round=1, step=1, checkpoint=replace(STATE, size_bytes=(1 << 20) + 1), at_ms=NOW_MS
    )
    (one() >> big << ignored("a checkpoint over the job's limit")).reaches("running")


def test_a_shard_looks_for_another_place_for_as_long_as_a_run_may_stall():
    playbook = lost(one() >> ended(lease(0), "failed", "lost")) << some(TenderWanted)
    failed = TenderFailed(shards=(0,), reason="nobody", deserted=False, at_ms=NOW_MS + 3_000)
    playbook >> failed
    assert job.deadline_ms(playbook.reaches("running")) == NOW_MS + 3_000 + RETRY_MS
    playbook >> passed(3_000 + RETRY_MS) << some(TenderWanted, shards=(0,))
    assert job.deadline_ms(playbook.reaches("running")) is None
    playbook >> replace(failed, at_ms=NOW_MS + 62_000) << some(TendersUnwanted) << OVER
    assert playbook.reaches("failed").reason.startswith("shard 0 found no other provider: nobody")


def test_a_provider_that_returns_after_it_was_replaced_is_not_listened_to():
    playbook = lost(one() >> ended(lease(0), "failed", "lost")) << some(TenderWanted)
    playbook >> report(lease(0)) << ignored("ReportArrived of no lease that lives")
    playbook >> came(granted(0, 1)) << JOINED << ordered(0)
    playbook >> ended(lease(0)) << ignored("RunEndArrived of no lease that lives")
    playbook >> came(granted(0, 2)) << STOPPED << BADLY
    assert playbook.reaches("running").shards[0].lease == lease(0, 1)


# The end.


def test_a_job_that_is_cancelled_stops_everything():
    playbook = running() >> CancelWanted(reason="enough", at_ms=NOW_MS) << some(TendersUnwanted)
    playbook << STOPPED << BLAMELESS << STOPPED << BLAMELESS << OVER  # nobody who worked for it did anything wrong
    playbook.reaches("cancelled", reason="enough")
    playbook >> came(granted(0, 1)) << STOPPED << BADLY
    playbook >> ended(lease(0)) << ignored("news of a job that is over")


def test_one_shard_that_fails_the_job_stops_the_others():
    playbook = lost(running() >> ended(lease(0), "failed", "user-exception"))
    playbook << some(TendersUnwanted) << STOPPED << BLAMELESS << OVER
    playbook.reaches("failed")


def test_a_reason_in_any_script_fits_into_the_message():
    step = advance(running().reaches("running"), CancelWanted(reason="€" * 2_000, at_ms=NOW_MS))
    stops = [effect.message for effect in step.effects if isinstance(effect, Send)]
    assert stops
    assert all(len(stop.reason.encode()) <= 256 for stop in stops)


def test_metrics_are_kept_by_step_and_old_ones_do_not_come_back():
    def loss(value):
        return (Metric(name="loss", value=value),)

    playbook = running() >> report(lease(0), 1, metrics=loss(3.0)) >> report(lease(1), 1, metrics=loss(9.0))
    playbook >> report(lease(1), 2, metrics=loss(2.0)) >> report(lease(0), 1)
    state = playbook.reaches("running")
    assert [(point.step, point.metrics[0].value) for point in state.history] == [(1, 3.0), (2, 2.0)]
    assert [shard.metrics[0].value for shard in state.shards] == [3.0, 2.0]


def test_a_restart_orders_again_what_waits():
    state = running().reaches("running")
    assert job.outstanding(state, NOW_MS) == (ordered(0), ordered(1))
    playbook = running() >> report(lease(0)) >> ended(lease(1)) << LEFT << TAKEN << WELL
    playbook >> OutputAnnounced(lease=lease(0), path="a", blob=FILE, at_ms=NOW_MS) << some(FetchWanted)
    assert job.outstanding(playbook.reaches("running"), NOW_MS) == (some(FetchWanted, blob=FILE), TAKEN)


@given(st.data())
def test_whatever_is_said_a_job_spends_no_more_attempts_than_it_has_and_moves_at_its_deadline(data):
    state = start(shards=2).state
    kinds = st.sampled_from(["lost", "stalled", "user-exception"])
    for number in range(data.draw(st.integers(1, 15))):
        leases = st.sampled_from([shard.lease for shard in state.shards] + [b"x" * 32])
        at_ms = NOW_MS + number * 1_500
        event = data.draw(
            st.one_of(
                st.just(
                    came(*(granted(s.shard, s.attempts) for s in state.shards if s.phase == "waiting"), at_ms=at_ms)
                ),
                st.builds(report, leases, st.integers(0, 5), at_ms=st.just(at_ms)),
                st.builds(ended, leases, st.just("succeeded"), outputs=st.integers(0, 1), at_ms=st.just(at_ms)),
                st.builds(ended, leases, st.just("failed"), kinds, at_ms=st.just(at_ms)),
                st.builds(OutputAnnounced, lease=leases, path=st.just("a"), blob=st.just(FILE), at_ms=st.just(at_ms)),
                st.builds(BlobArrived, lease=leases, blob=st.just(FILE), at_ms=st.just(at_ms)),
                st.just(TenderFailed(shards=(0,), reason="no", deserted=False, at_ms=at_ms)),
                st.just(Restarted(at_ms=at_ms)),
                st.just(TimePassed(at_ms=at_ms)),
            )
        )
        before = state
        state = advance(state, event).state
        assert all(shard.attempts <= spec().retries + 1 for shard in state.shards)
        assert before.phase not in job.TABLE.terminal or state == before
        if (due_ms := job.deadline_ms(state)) is not None:
            after = advance(state, TimePassed(at_ms=due_ms)).state
            again_ms = job.deadline_ms(after)
            assert again_ms is None or again_ms > due_ms, "a deadline came and nothing moved"
