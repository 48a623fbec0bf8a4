"""What a job's providers tell of its runs, shard by shard: steps, checkpoints, files, and ends."""

from dataclasses import replace

from hansa.market.effects import Send, clipped_inside
from hansa.market.machine import Step, ignore
from hansa.market.receipts import CLOCK_SKEW_MS
from hansa.market.sale_events import RECLAIMED, RECLAIMED_EARLY
from hansa.proto.messages import DeliveryAccepted
from hansa.proto.sealed import weight_bytes
from hansa.scheduler.job_events import (
    BlobArrived,
    BlobMissed,
    CheckpointAnnounced,
    FetchWanted,
    JobOver,
    KeepingArrived,
    LeaseOver,
    OutputAnnounced,
    ReclaimArrived,
    ReportArrived,
    RunEndArrived,
)
from hansa.scheduler.job_losses import KEEP_MS, is_due_if_it_succeeded, is_worth_another, lose
from hansa.scheduler.job_state import Checkpoint, Job, Output, Point, Shard, with_shards
from hansa.scheduler.rounds import MemberLeft

HISTORY_STEPS = 1_000
MOST_OUTPUTS = 1_000


def take_report(state: Job, shard: Shard, event: ReportArrived) -> Step[Job]:
    """A sign of life, with the newest step."""
    if shard.phase in ("ending", "leaving"):
        return ignore(state, "a report of a run that is over")
    newer = event.step > shard.step or not shard.metrics
    heard = replace(
        shard,
        phase="running" if event.started and shard.phase == "starting" else shard.phase,
        heard_ms=event.at_ms,
        step=max(shard.step, event.step),
        metrics=event.metrics if newer and event.metrics else shard.metrics,
    )
    after = with_shards(state, heard)
    # By step and not by arrival: one report of a step far ahead, true or not, must not hide those that follow.
    if event.metrics and event.step and all(point.step != event.step for point in state.history):
        point = Point(step=event.step, metrics=event.metrics, at_ms=event.at_ms)
        history = sorted((*state.history, point), key=lambda entry: entry.step)
        after = replace(after, history=tuple(history[-HISTORY_STEPS:]))
    return Step(state=after)


def announce_checkpoint(state: Job, shard: Shard, event: CheckpointAnnounced) -> Step[Job]:
    """A state from which the shard can go on is to be had: copy it."""
    if shard.phase in ("ending", "leaving"):
        return ignore(state, "a checkpoint of a run that is over")
    if shard.reclaim_by_ms and not shard.reclaim_saved:
        # Old news or not: a run that has leave to end has come to a checkpoint.
        shard = replace(shard, reclaim_saved=True, heard_ms=event.at_ms)
        state = with_shards(state, shard)
    newest = shard.announced or shard.copying or shard.checkpoint
    if newest is not None and (event.round, event.step) <= (newest.round, newest.step):
        return Step(state=state) if shard.reclaim_saved else ignore(state, "a checkpoint that is known or old")
    if weight_bytes(event.checkpoint, state.spec.requirements) > state.spec.state_bytes:
        return ignore(state, "a checkpoint over the job's limit")
    copying = Checkpoint(round=event.round, step=event.step, blob=event.checkpoint)
    if shard.copying is not None:
        # Whoever checkpoints faster than the line carries is copied one after the other, the newest next: else none of
        # them would ever be here.
        return Step(state=with_shards(state, replace(shard, announced=copying, heard_ms=event.at_ms)))
    fetch = FetchWanted(job=state.job, lease=shard.lease, provider=shard.provider, blob=event.checkpoint)
    return Step(state=with_shards(state, replace(shard, copying=copying, heard_ms=event.at_ms)), effects=(fetch,))


def announce_output(state: Job, shard: Shard, event: OutputAnnounced) -> Step[Job]:
    """A file of the shard's outputs is to be had: copy it."""
    if any((output.path, output.blob) == (event.path, event.blob) for output in shard.outputs):
        return ignore(state, "an output that is known")
    # A run that was started again under the same lease makes its files again, and the newer ones count.
    others = tuple(output for output in shard.outputs if output.path != event.path)
    blobs = [event.blob, *(output.blob for output in others)]
    weight = sum(weight_bytes(blob, state.spec.requirements) for blob in blobs)
    if weight > state.spec.output_bytes or len(others) >= MOST_OUTPUTS:
        return ignore(state, "outputs over the job's limit")
    outputs = (*others, Output(path=event.path, blob=event.blob))
    fetch = FetchWanted(job=state.job, lease=shard.lease, provider=shard.provider, blob=event.blob)
    return Step(state=with_shards(state, replace(shard, outputs=outputs, heard_ms=event.at_ms)), effects=(fetch,))


def take_blob(state: Job, shard: Shard, event: BlobArrived) -> Step[Job]:
    """Something that was copied is here."""
    arrived = replace(
        shard,
        outputs=tuple(replace(entry, here=entry.here or entry.blob == event.blob) for entry in shard.outputs),
    )
    came = shard.copying is not None and shard.copying.blob == event.blob
    if came:
        arrived = replace(arrived, checkpoint=shard.copying, copying=shard.announced, announced=None, refusal="")
    if arrived == shard:
        # It says nothing of the provider either: a shard that is silent is not heard from by it.
        return ignore(state, "a blob that nobody waits for")
    arrived = replace(arrived, heard_ms=event.at_ms)
    after = with_shards(state, arrived)
    if came and arrived.copying is not None:
        return Step(state=after, effects=(_fetch_copy(state, arrived),))
    if arrived.phase == "leaving" and arrived.copying is None:
        return lose(after, ((arrived, arrived.kind, arrived.reason),), event.at_ms)
    return _finish_shard(after, arrived, event.at_ms) if arrived.complete else Step(state=after)


def _fetch_copy(state: Job, shard: Shard) -> FetchWanted:
    assert shard.copying is not None, "this is what is fetched"
    return FetchWanted(job=state.job, lease=shard.lease, provider=shard.provider, blob=shard.copying.blob)


def miss_blob(state: Job, shard: Shard, event: BlobMissed) -> Step[Job]:
    """A checkpoint was not to be had, and will be asked for again unless there is a newer one."""
    if shard.copying is None or shard.copying.blob != event.blob or not (shard.announced or event.refusal):
        return ignore(state, "a blob that is waited for on")
    after = replace(shard, copying=shard.announced, announced=None, refusal=event.refusal or shard.refusal)
    told = with_shards(state, after)
    if after.copying is not None:
        return Step(state=told, effects=(_fetch_copy(state, after),))
    # Nothing more comes, and what is here is still the last good one.
    if after.phase == "leaving":
        return lose(told, ((after, after.kind, after.reason),), event.at_ms)
    return Step(state=told)


def take_run_end(state: Job, shard: Shard, event: RunEndArrived) -> Step[Job]:
    """The run is over. One that did not succeed is given up once the newest checkpoint that it announced is here."""
    if shard.phase in ("ending", "leaving"):
        return ignore(state, "an end that is known")
    if event.outcome != "succeeded" or shard.phase == "kept":
        kind, reason = _kind_of(shard, event)
        if shard.copying is None or not is_worth_another(state, kind):
            return lose(state, ((shard, kind, reason),), event.at_ms)
        left = MemberLeft(lease=shard.lease, finished=False, at_ms=event.at_ms)
        leaving = replace(shard, phase="leaving", kind=kind, reason=reason, heard_ms=event.at_ms, over_ms=event.at_ms)
        return Step(state=with_shards(state, leaving), effects=(left,) if shard.phase != "kept" else ())
    ending = replace(shard, phase="ending", expected=event.outputs, heard_ms=event.at_ms, over_ms=event.at_ms)
    left = MemberLeft(lease=shard.lease, finished=True, at_ms=event.at_ms)
    after = with_shards(state, ending)
    step = _finish_shard(after, ending, event.at_ms) if ending.complete else Step(state=after)
    return Step(state=step.state, effects=(left, *step.effects))


def _kind_of(shard: Shard, event: RunEndArrived) -> tuple[str, str]:
    """What sort of end this is. A provider's word that it kept its promise is held against what was heard before."""
    if shard.phase == "kept":
        return shard.kind, shard.reason
    kind = event.kind or event.outcome
    if kind != RECLAIMED or shard.phase != "running":
        early = shard.reclaim_early
    else:
        # A run that leaves before it must leaves at a checkpoint. Without one it was not let go on for the notice.
        in_time = shard.reclaim_saved or event.at_ms + CLOCK_SKEW_MS >= shard.reclaim_by_ms
        early = shard.reclaim_early or not shard.reclaim_by_ms or not in_time
    return (RECLAIMED_EARLY if kind == RECLAIMED and early else kind), event.reason


def _failure(kind: str) -> str:
    """What sort of failure a kept run had. Nothing is kept of devices that are taken back, so that word breaks one."""
    return RECLAIMED_EARLY if kind == RECLAIMED else kind or "failed"


def take_keeping(state: Job, shard: Shard, event: KeepingArrived) -> Step[Job]:
    """The run failed and stays to be looked at: its silence is no loss, and nothing takes its place before it goes."""
    if shard.phase not in ("starting", "running"):
        return ignore(state, "the keeping of a run that does not run")
    kept = replace(
        shard,
        phase="kept",
        kind=_failure(event.kind),
        reason=clipped_inside(event.reason, 2_000),
        kept_until_ms=min(event.until_ms, event.at_ms + state.spec.keep_failed_ms),
        heard_ms=event.at_ms,
    )
    left = MemberLeft(lease=shard.lease, finished=False, at_ms=event.at_ms)
    return Step(state=with_shards(state, kept), effects=(left,))


def take_reclaim(state: Job, shard: Shard, event: ReclaimArrived) -> Step[Job]:
    """The devices are taken back. The run goes on to its next checkpoint; noted here is when, and how fairly."""
    if shard.phase in ("ending", "leaving"):
        return ignore(state, "devices of a run that is over")
    if shard.reclaim_by_ms and event.by_ms >= shard.reclaim_by_ms:
        return ignore(state, "devices that are taken back already")
    early = event.by_ms + CLOCK_SKEW_MS < event.at_ms + shard.reclaim_notice_ms
    told = replace(
        shard,
        reclaim_by_ms=event.by_ms,
        reclaim_why=event.reason,
        reclaim_early=shard.reclaim_early or early,
        heard_ms=event.at_ms,
    )
    return Step(state=with_shards(state, told))


def _finish_shard(state: Job, shard: Shard, at_ms: int) -> Step[Job]:
    """A shard is done and everything it made is here."""
    taken = Send(to=shard.provider, message=DeliveryAccepted(lease=shard.lease), keep_until_ms=at_ms + KEEP_MS)
    due = is_due_if_it_succeeded(state, shard)
    over = LeaseOver(lease=shard.lease, well=True, due=due, at_ms=at_ms)
    after = with_shards(state, replace(shard, phase="finished"))
    if any(entry.phase != "finished" for entry in after.shards):
        return Step(state=after, effects=(taken, over))
    ended = replace(after, phase="succeeded", ended_ms=at_ms)
    return Step(state=ended, effects=(taken, over, JobOver(job=state.job)))
