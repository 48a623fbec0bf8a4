"""Shards whose devices are taken back, and runs that are kept to be looked at: who waits for what, and what counts."""

from dataclasses import replace

import pytest
from kit.playbook import Playbook, ignored, some
from kit.trading import JOB, NOW_MS, OTHER, PROVIDER, spec

from hansa.market.effects import Send
from hansa.market.receipts import CLOCK_SKEW_MS
from hansa.proto.blob import blob_ref
from hansa.proto.messages import RunOrdered, RunStopOrdered
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
    KeepingArrived,
    LeaseOver,
    ReclaimArrived,
    ReportArrived,
    Restarted,
    RunEndArrived,
    TendersUnwanted,
    TenderWanted,
    TimePassed,
)
from hansa.scheduler.job_losses import MOST_RECLAIMS
from hansa.scheduler.rounds import MemberJoined, MemberLeft

STATE, NEWER = blob_ref(b"state"), blob_ref(b"newer")
SILENCE_MS = spec().silence_ms
NOTICE_MS = 60_000
LEFT, JOINED = some(MemberLeft, finished=False), some(MemberJoined)
STOPPED = some(Send, message=some(RunStopOrdered))
BLAMELESS, BADLY = some(LeaseOver, well=False, blameless=True), some(LeaseOver, well=False, blameless=False)
TENDERED = some(TenderWanted, shards=(0,))


def lease(attempt=0):
    return bytes([1, attempt]) * 16


def came(attempt=0, at_ms=NOW_MS):
    made = Granted(
        shard=0,
        lease=lease(attempt),
        provider=OTHER if attempt else PROVIDER,
        ends_ms=at_ms + 600_000,
        reclaim_notice_ms=NOTICE_MS,
    )
    return GangCame(granted=(made,), at_ms=at_ms)


def running(**changes):
    begin = plan(job=JOB, spec=spec(shards=1, **changes), package=blob_ref(b"package"), at_ms=NOW_MS)
    playbook = Playbook(advance, None, begin=begin) << some(TenderWanted) >> came() << JOINED << some(Send)
    return playbook >> ReportArrived(lease=lease(), step=1, metrics=(), started=True, at_ms=NOW_MS + 1_000)


def wanted_back(notice_ms=NOTICE_MS, at_ms=NOW_MS + 1_000):
    return ReclaimArrived(lease=lease(), by_ms=at_ms + notice_ms, reason="the owner plays", at_ms=at_ms)


def ended(kind="reclaimed", *, reason="the owner plays", at_ms=NOW_MS + 9_000, attempt=0):
    return RunEndArrived(lease=lease(attempt), outcome="failed", kind=kind, reason=reason, outputs=0, at_ms=at_ms)


def announced(blob, step):
    return CheckpointAnnounced(lease=lease(), round=0, step=step, checkpoint=blob, at_ms=NOW_MS + 2_000)


def arrived(blob, at_ms=NOW_MS + 10_000):
    return BlobArrived(lease=lease(), blob=blob, at_ms=at_ms)


def kept(until_ms=NOW_MS + 100_000, kind="user-exception"):
    return KeepingArrived(lease=lease(), kind=kind, reason="division by zero", until_ms=until_ms, at_ms=NOW_MS + 2_000)


def passed(at_ms):
    return TimePassed(at_ms=at_ms)


# Devices that are taken back.


def test_a_shard_whose_devices_were_taken_back_is_tendered_at_once_and_goes_on_from_its_checkpoint():
    playbook = running(retries=0) >> wanted_back() >> announced(STATE, 4) << some(FetchWanted) >> arrived(STATE)
    playbook >> ended() << LEFT << STOPPED << BLAMELESS << TENDERED
    playbook >> came(1) << JOINED << some(Send, to=OTHER, message=some(RunOrdered, checkpoint=STATE))
    assert playbook.reaches("running").shards[0].losses == 0


def test_it_moves_when_its_last_checkpoint_is_here():
    playbook = running() >> announced(STATE, 4) << some(FetchWanted) >> arrived(STATE) >> wanted_back()
    playbook >> announced(NEWER, 8) << some(FetchWanted, blob=NEWER) >> ended() << LEFT
    state = playbook.reaches("running")
    assert state.shards[0].phase == "leaving"
    assert job.outstanding(state, NOW_MS) == (some(FetchWanted, blob=NEWER),), "fetched on after a restart"
    playbook >> ended() << ignored("an end that is known")
    playbook >> arrived(NEWER) << STOPPED << BLAMELESS << TENDERED
    playbook >> came(1) << JOINED << some(Send, message=some(RunOrdered, checkpoint=NEWER))


def test_a_last_checkpoint_that_does_not_come_is_not_waited_for_for_ever():
    playbook = running() >> wanted_back() >> announced(STATE, 4) << some(FetchWanted) >> ended() << LEFT
    due_ms = NOW_MS + 9_000 + job.FETCH_PATIENCE * SILENCE_MS
    assert job.deadline_ms(playbook.reaches("running")) == due_ms
    playbook >> passed(due_ms) << STOPPED << BLAMELESS << TENDERED


def test_devices_that_are_taken_back_cost_no_retry_but_not_without_end():
    state = running(retries=0).reaches("running")
    crowded = replace(state, shards=(replace(state.shards[0], reclaims=MOST_RECLAIMS),))
    playbook = Playbook(advance, crowded) >> wanted_back() >> ended(at_ms=NOW_MS + NOTICE_MS) << LEFT << STOPPED
    playbook << BLAMELESS
    playbook << some(TendersUnwanted) << JobOver(job=JOB)
    assert playbook.reaches("failed").reason == f"the devices of shard 0 were taken back {MOST_RECLAIMS + 1} times"


@pytest.mark.parametrize("short_ms", [0, CLOCK_SKEW_MS, CLOCK_SKEW_MS + 1])
def test_less_notice_than_promised_counts_against_the_provider_whatever_it_calls_it(short_ms):
    counted = BADLY if short_ms > CLOCK_SKEW_MS else BLAMELESS
    playbook = running() >> wanted_back(NOTICE_MS - short_ms) >> ended(at_ms=NOW_MS + NOTICE_MS)
    playbook << LEFT << STOPPED << counted << TENDERED
    assert playbook.reaches("running").shards[0].losses == 0


@pytest.mark.parametrize("after_ms", [9_000, NOTICE_MS - CLOCK_SKEW_MS])
def test_a_notice_after_which_the_run_was_not_let_go_on_counts_as_none(after_ms):
    """By its end alone nobody can tell; but a run that leaves of itself leaves at a checkpoint."""
    early = running() >> announced(STATE, 4) << some(FetchWanted) >> arrived(STATE) >> wanted_back()
    early >> ended(at_ms=NOW_MS + after_ms) << LEFT << STOPPED << BADLY << TENDERED
    left = running() >> announced(STATE, 4) << some(FetchWanted) >> arrived(STATE) >> wanted_back()
    left >> announced(STATE, 4) >> ended(at_ms=NOW_MS + after_ms) << LEFT << STOPPED << BLAMELESS << TENDERED
    late = running() >> wanted_back() >> ended(at_ms=NOW_MS + NOTICE_MS - CLOCK_SKEW_MS + 1_000)
    late << LEFT << STOPPED << BLAMELESS << TENDERED


def test_a_run_that_is_gone_without_any_notice_counts_against_its_provider():
    running() >> ended() << LEFT << STOPPED << BADLY << TENDERED


def test_a_provider_that_says_itself_that_it_broke_its_promise_is_believed():
    running() >> wanted_back() >> ended("reclaimed-early") << LEFT << STOPPED << BADLY << TENDERED


@pytest.mark.parametrize(("silent_ms", "counted"), [(NOTICE_MS, BLAMELESS), (NOTICE_MS - 1, BADLY)])
def test_a_machine_that_is_gone_with_its_devices_was_taken_back_all_the_same(silent_ms, counted):
    """It costs no retry; but who falls silent before the moment that it named gave less notice than it said."""
    playbook = running(retries=0) >> wanted_back()
    heard_ms = NOW_MS + 1_000 + silent_ms - SILENCE_MS
    playbook >> ReportArrived(lease=lease(), step=1, metrics=(), started=True, at_ms=heard_ms)
    assert job.deadline_ms(playbook.reaches("running")) == heard_ms + SILENCE_MS
    playbook >> passed(heard_ms + SILENCE_MS) << LEFT << STOPPED << counted << TENDERED


def test_results_that_never_come_are_a_loss_whatever_was_taken_back_meanwhile():
    succeeded = replace(ended(""), outcome="succeeded", outputs=1)
    playbook = running() >> wanted_back() >> succeeded << some(MemberLeft, finished=True)
    due_ms = NOW_MS + 9_000 + job.FETCH_PATIENCE * SILENCE_MS
    playbook >> passed(due_ms) << LEFT << STOPPED << BADLY << TENDERED
    (shard,) = playbook.reaches("running").shards
    assert (shard.losses, shard.reclaims, shard.reason) == (1, 0, "its provider was lost: its results did not come")


def test_a_run_that_is_over_announces_no_further_checkpoints():
    playbook = running() >> announced(STATE, 4) << some(FetchWanted) >> wanted_back() >> ended() << LEFT
    due_ms = job.deadline_ms(playbook.reaches("running"))
    playbook >> announced(NEWER, 8) << ignored("a checkpoint of a run that is over")
    assert job.deadline_ms(playbook.reaches("running")) == due_ms, "else its provider could put that off for ever"


def test_a_run_that_lives_on_after_its_devices_were_to_be_gone_is_given_up():
    playbook = running() >> wanted_back()
    late_ms = NOW_MS + 1_000 + NOTICE_MS + job.OVERDUE_MS
    playbook >> ReportArrived(lease=lease(), step=2, metrics=(), started=True, at_ms=late_ms - 1)
    assert job.deadline_ms(playbook.reaches("running")) == late_ms
    playbook >> passed(late_ms) << LEFT << STOPPED << BLAMELESS << TENDERED


def test_a_buyer_that_was_away_gives_the_word_of_the_end_time_to_come():
    at_ms = NOW_MS + 300_000
    playbook = running() >> wanted_back() >> Restarted(at_ms=at_ms)
    assert job.deadline_ms(playbook.reaches("running")) == at_ms + SILENCE_MS


def test_a_second_word_brings_the_moment_nearer_and_never_takes_it_back():
    playbook = running() >> wanted_back() >> wanted_back() << ignored("devices that are taken back already")
    playbook >> wanted_back(1_000)
    assert playbook.reaches("running").shards[0].reclaim_early


def test_the_next_lease_knows_nothing_of_the_notice_of_the_last():
    playbook = running() >> wanted_back(0) >> ended() << LEFT << STOPPED << BADLY << TENDERED
    playbook >> came(1) << JOINED << some(Send)
    (shard,) = playbook.reaches("running").shards
    assert (shard.reclaim_by_ms, shard.reclaim_early, shard.reclaim_why) == (0, False, "")


# Runs that are kept to be looked at.


def test_a_kept_run_is_neither_silent_nor_replaced_until_it_ends():
    playbook = running(keep_failed_ms=200_000) >> kept() << LEFT
    assert job.deadline_ms(playbook.reaches("running")) == NOW_MS + 100_000 + job.OVERDUE_MS
    playbook >> ReportArrived(lease=lease(), step=1, metrics=(), started=True, at_ms=NOW_MS + 3_000)
    assert playbook.reaches("running").shards[0].phase == "kept"
    playbook >> kept() << ignored("the keeping of a run that does not run")
    playbook >> ended("user-exception") << STOPPED << BADLY << some(TendersUnwanted) << JobOver(job=JOB)
    assert playbook.reaches("failed").shards[0].kind == "user-exception"


def test_a_kept_run_that_failed_in_a_way_that_is_worth_another_try_is_tried_again_after_it():
    running(keep_failed_ms=200_000) >> kept(kind="stalled") << LEFT >> ended("stalled") << STOPPED << BADLY << TENDERED


@pytest.mark.parametrize(("said", "kind"), [("reclaimed", "reclaimed-early"), ("", "failed")])
def test_what_is_kept_has_failed_and_was_not_taken_back_with_all_notice(said, kind):
    playbook = running(keep_failed_ms=200_000, retry_on=("failed",)) >> kept(kind=said) << LEFT
    (playbook >> ended("reclaimed") << STOPPED << BADLY << TENDERED)
    assert playbook.reaches("running").shards[0].kind == kind


def test_no_run_is_kept_for_longer_than_the_job_asked_for():
    playbook = running(keep_failed_ms=5_000) >> kept() << LEFT
    assert job.deadline_ms(playbook.reaches("running")) == NOW_MS + 7_000 + job.OVERDUE_MS


def test_a_kept_run_whose_end_is_never_told_ends_as_it_failed():
    playbook = running(keep_failed_ms=200_000) >> kept() << LEFT
    playbook >> passed(NOW_MS + 100_000 + job.OVERDUE_MS) << STOPPED << BADLY << some(TendersUnwanted)
    playbook << JobOver(job=JOB)
    assert playbook.reaches("failed").reason.startswith("shard 0 failed (user-exception)")


def test_a_run_that_failed_does_not_succeed_after_all():
    playbook = running(keep_failed_ms=200_000) >> kept() << LEFT
    playbook >> replace(ended(), outcome="succeeded", kind="") << STOPPED << BADLY << some(TendersUnwanted)
    (playbook << JobOver(job=JOB)).reaches("failed")


def test_a_job_that_is_cancelled_ends_its_kept_runs():
    playbook = running(keep_failed_ms=200_000) >> kept() << LEFT >> CancelWanted(reason="seen", at_ms=NOW_MS)
    playbook << some(TendersUnwanted) << STOPPED << BADLY << JobOver(job=JOB)


# Retries as the job wants them.


def test_only_what_the_job_names_is_tried_again():
    picky = running(retry_on=("out-of-memory",)) >> ended("out-of-memory") << LEFT << STOPPED << BADLY << TENDERED
    assert picky.reaches("running").shards[0].losses == 1
    playbook = running(retry_on=("out-of-memory",)) >> ended("worker-died") << LEFT << STOPPED << BADLY
    (playbook << some(TendersUnwanted) << JobOver(job=JOB)).reaches("failed")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("worker-died", "a worker died: the owner plays"),
        ("out-of-memory", "it went over its memory: the owner plays"),
        ("stalled", "it hung: there was no progress: the owner plays"),
        ("user-exception", "its code ended with an error: the owner plays"),
        ("lost", "its provider was lost: the owner plays"),
        ("never-heard-of", "never-heard-of: the owner plays"),
    ],
)
def test_kinds_of_failure_are_told_apart_in_words(kind, words):
    step = advance(running().reaches("running"), ended(kind))
    (shard,) = step.state.shards
    assert (shard.kind, shard.reason) == (kind, words)


def test_a_long_traceback_keeps_the_error_that_it_ends_with():
    trace = (
        "Traceback (most recent call last):\n"
        + '  File "/job/code/train.py", line 4, in descend\n' * 200
        + "ValueError: bad\n"
    )
    (shard,) = advance(running().reaches("running"), ended("user-exception", reason=trace)).state.shards
    assert shard.reason.startswith("its code ended with an error: Traceback")
    assert shard.reason.endswith("ValueError: bad\n")
    assert len(shard.reason.encode()) <= 2_000
