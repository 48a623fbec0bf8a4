"""The buyer's machine for one job: its shards, their checkpoints, their outputs, and what happens when one is lost.

The first gang is all or none. From then on every shard has its own fate: one that is lost, or fails in a way that is
worth another try, is tendered again alone and goes on from its last checkpoint, within the job's retries.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from hansa.market.effects import Send, clipped
from hansa.market.machine import SAME, Step, Table, ignore, rows
from hansa.proto.blob import BlobRef
from hansa.proto.messages import DeliveryAccepted, Metric, RunOrdered, RunStopOrdered
from hansa.proto.units import Address, Bytes32, Line, Uint32, Uint64, UnixMs
from hansa.scheduler.job_events import (
    BlobArrived,
    CancelWanted,
    CheckpointAnnounced,
    FetchWanted,
    GangCame,
    JobOver,
    LeaseOver,
    OutputAnnounced,
    ReportArrived,
    Restarted,
    RoundUnsound,
    RunEndArrived,
    TenderFailed,
    TendersUnwanted,
    TenderWanted,
    TimePassed,
)
from hansa.scheduler.job_spec import JobSpec
from hansa.scheduler.rounds import Member, MemberJoined, MemberLeft

KEEP_MS = 3_600_000
HISTORY_STEPS = 1_000
MOST_OUTPUTS = 1_000
RETRY_MS = 3_000
"""A shard that found no place is tendered again after this."""
FETCH_PATIENCE = 3
"""Outputs of a run that ended are waited for this many times the silence limit."""

OVERDUE_MS = 60_000
"""For so long after a lease's end its provider may still tell how the run ended, clocks and stopping counted in."""

WORTH_RETRYING = frozenset(
    {"lost", "worker-died", "out-of-memory", "ray-lost", "sandbox-lost", "stalled", "silent", "refused", "stopped"}
)
"""Kinds of failure that another attempt, perhaps elsewhere, may not have. A fault in the job's own code would recur."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A state from which a shard can go on."""

    round: Uint32
    step: Uint64
    blob: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One file of a shard's outputs."""

    path: Line
    blob: BlobRef
    here: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard of the job.

    Attributes:
        shard: its number.
        phase: waiting, starting, running, ending (its outputs are on their way), finished or lost.
        lease: the newest lease it had.
        provider: whose that is.
        step: the newest step that was reported.
        metrics: what was reported with it.
        attempts: how many leases it had.
        checkpoint: the newest one that is here.
        copying: the newest one that is announced and not here yet.
        outputs: files announced by the newest run.
        expected: how many files the run announced in all, once it ended.
        heard_ms: when its provider was last heard.
        ends_ms: when its lease ends.
        waiting_ms: since when it looks for another provider; 0 while it has one.
        retry_ms: when it is tendered again; 0 while a tender is out.
        reason: why the last attempt was lost.
    """

    shard: Uint32
    phase: str = "waiting"
    lease: Bytes32 = bytes(32)
    provider: Address = bytes(20)
    step: Uint64 = 0
    metrics: tuple[Metric, ...] = ()
    attempts: Uint32 = 0
    checkpoint: Checkpoint | None = None
    copying: Checkpoint | None = None
    outputs: tuple[Output, ...] = ()
    expected: Uint32 = 0
    heard_ms: UnixMs = 0
    ends_ms: UnixMs = 0
    waiting_ms: UnixMs = 0
    retry_ms: UnixMs = 0
    reason: str = ""

    @property
    def complete(self) -> bool:
        """Whether everything that the ended run announced is here."""
        return self.phase == "ending" and sum(output.here for output in self.outputs) >= self.expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The metrics of one step, as the first shard that reached it reported them."""

    step: Uint64
    metrics: tuple[Metric, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The state.

    Attributes:
        phase: gathering, running, succeeded, failed or cancelled.
        job: its id.
        spec: what the developer asked for.
        package: the job's directory as a blob.
        files: the list of the files beside it, if there are any.
        shards: one entry each.
        desertions: how often the first gang failed because winners did not confirm.
        history: metrics by step, in the order of steps.
        submitted_ms: when it came.
        ended_ms: when it ended; 0 before.
        reason: why it failed or was cancelled.
    """

    phase: str = "gathering"
    job: Bytes32
    spec: JobSpec
    package: BlobRef
    shards: tuple[Shard, ...]
    desertions: Uint32 = 0
    history: tuple[Point, ...] = field(default=())
    submitted_ms: UnixMs
    ended_ms: UnixMs = 0
    reason: str = ""
    files: BlobRef | None = None

    def on(self, lease: bytes) -> Shard | None:
        """The shard whose newest lease this is, while it lives."""
        alive = ("starting", "running", "ending")
        return next((shard for shard in self.shards if shard.lease == lease and shard.phase in alive), None)


TABLE: Table[Job] = Table(
    name="scheduler.job",
    start="gathering",
    terminal=frozenset({"succeeded", "failed", "cancelled"}),
    allowed=rows(
        ("gathering", GangCame, "running"),
        ("gathering", TenderFailed, ("gathering", "failed")),
        (("gathering", "running"), CancelWanted, "cancelled"),
        ("running", RoundUnsound, "failed"),
        ("running", Restarted, "running"),
        ("running", (GangCame, ReportArrived, CheckpointAnnounced, OutputAnnounced), "running"),
        ("running", (BlobArrived, RunEndArrived, TimePassed), ("running", "succeeded", "failed")),
        ("running", TenderFailed, ("running", "failed")),
        # A provider that was given up on, or lost the news, is told again that nobody waits for it.
        (("succeeded", "failed", "cancelled"), (GangCame, ReportArrived, RunEndArrived), SAME),
    ),
)


def plan(*, job: bytes, spec: JobSpec, package: BlobRef, files: BlobRef | None = None, at_ms: int) -> Step[Job]:
    """A new job, and the tender for all of its shards."""
    shards = tuple(Shard(shard=number) for number in range(spec.shards))
    planned = Job(job=job, spec=spec, package=package, files=files, shards=shards, submitted_ms=at_ms)
    numbers = tuple(range(spec.shards))
    tender = TenderWanted(job=job, shards=numbers, attempt=0, at_ms=at_ms)
    return Step(state=planned, effects=(tender,))


def advance(state: Job, event: Any) -> Step[Job]:
    """One event of a job."""
    return TABLE.advance(state, event, _react)


def deadline_ms(state: Job) -> int | None:
    """When time alone will change something: a provider has been silent for too long."""
    if state.phase != "running":
        return None
    silent = [_silent_at_ms(state, shard) for shard in state.shards if state.on(shard.lease) is shard]
    retries = [shard.retry_ms for shard in state.shards if shard.phase == "waiting" and shard.retry_ms]
    return min(silent + retries, default=None)


def _silent_at_ms(state: Job, shard: Shard) -> int:
    """When this shard's provider is given up on: after a silence, or when a run has outlived its lease."""
    if shard.phase == "ending":
        return shard.heard_ms + state.spec.silence_ms * FETCH_PATIENCE
    return min(shard.heard_ms + state.spec.silence_ms, shard.ends_ms + OVERDUE_MS)


def _react(state: Job, event: Any) -> Step[Job]:
    if state.phase in TABLE.terminal:
        return _dismiss(state, event)
    match event:
        case GangCame():
            return _start(state, event)
        case TenderFailed():
            return _hear_tender_failed(state, event)
        case CancelWanted(reason=reason, at_ms=at_ms):
            return _end(state, "cancelled", reason, at_ms)
        case RoundUnsound(round=number, reason=reason, at_ms=at_ms):
            return _end(state, "failed", f"round {number} could not be averaged: {reason}", at_ms)
        case TimePassed(at_ms=at_ms):
            return _pass_time(state, at_ms)
        case Restarted(at_ms=at_ms):
            return Step(state=_with(state, *(replace(shard, heard_ms=at_ms) for shard in state.shards)))
    shard = state.on(event.lease)
    if shard is None:
        return ignore(state, f"{type(event).__name__} of no lease that lives")
    match event:
        case ReportArrived():
            return _take_report(state, shard, event)
        case CheckpointAnnounced():
            return _announce_checkpoint(state, shard, event)
        case OutputAnnounced():
            return _announce_output(state, shard, event)
        case BlobArrived():
            return _take_blob(state, shard, event)
        case RunEndArrived():
            return _take_run_end(state, shard, event)
        case _:
            raise AssertionError(f"the table knows {type(event).__name__}, this function does not")


def _with(state: Job, *changed: Shard) -> Job:
    by_number = {shard.shard: shard for shard in changed}
    return replace(state, shards=tuple(by_number.get(shard.shard, shard) for shard in state.shards))


def _start(state: Job, event: GangCame) -> Step[Job]:
    """Order every granted shard to start, from its checkpoint if there is one."""
    started: list[Shard] = []
    effects: list[Any] = []
    for granted in event.granted:
        shard = state.shards[granted.shard]
        if shard.phase != "waiting":
            effects += _stop(granted.provider, granted.lease, "the shard has another provider", event.at_ms)
            continue
        started.append(
            replace(
                shard,
                phase="starting",
                lease=granted.lease,
                provider=granted.provider,
                attempts=shard.attempts + 1,
                copying=None,
                outputs=(),
                expected=0,
                heard_ms=event.at_ms,
                ends_ms=granted.ends_ms,
                waiting_ms=0,
                retry_ms=0,
            )
        )
        member = Member(shard=shard.shard, lease=granted.lease, provider=granted.provider)
        effects += [MemberJoined(member=member), _start_order(started[-1], event.at_ms)]
    return Step(state=replace(_with(state, *started), phase="running"), effects=tuple(effects))


def _start_order(shard: Shard, at_ms: int) -> Send:
    checkpoint = shard.checkpoint
    message = RunOrdered(
        lease=shard.lease,
        round=checkpoint.round if checkpoint else 0,
        checkpoint=checkpoint.blob if checkpoint else None,
    )
    return Send(to=shard.provider, message=message, keep_until_ms=at_ms + KEEP_MS)


def _stop(provider: bytes, lease: bytes, reason: str, at_ms: int) -> list[Any]:
    message = RunStopOrdered(lease=lease, reason=clipped(reason, 256))
    stop = Send(to=provider, message=message, keep_until_ms=at_ms + KEEP_MS, replaces=f"stop {lease.hex()}")
    return [stop, LeaseOver(lease=lease, well=False, at_ms=at_ms)]


def _hear_tender_failed(state: Job, event: TenderFailed) -> Step[Job]:
    """The first gang is all or none. A shard that looks for a new place looks on for as long as a run may stall."""
    if state.phase == "gathering":
        if not event.deserted or state.desertions >= state.spec.retries:
            return _end(state, "failed", f"unfilled: {event.reason}", event.at_ms)
        # Cheap bids that are never confirmed cost their makers nothing. They may not cost the job its life either.
        again = replace(state, desertions=state.desertions + 1)
        tender = TenderWanted(job=state.job, shards=event.shards, attempt=again.desertions, at_ms=event.at_ms)
        return Step(state=again, effects=(tender,))
    waiting = [state.shards[number] for number in event.shards if state.shards[number].phase == "waiting"]
    for shard in waiting:
        if event.at_ms >= shard.waiting_ms + state.spec.stall_ms:
            reason = f"shard {shard.shard} found no other provider: {event.reason} (it had been {shard.reason})"
            return _end(state, "failed", reason, event.at_ms)
    later = (replace(shard, retry_ms=event.at_ms + RETRY_MS) for shard in waiting)
    return Step(state=_with(state, *later))


def _pass_time(state: Job, at_ms: int) -> Step[Job]:
    """Give up on providers that fell silent, and tender again what waits for it."""
    effects: list[Any] = []
    for shard in state.shards:
        if shard.phase == "waiting" and shard.retry_ms and shard.retry_ms <= at_ms:
            state = _with(state, replace(shard, retry_ms=0))
            effects.append(_tender(state, shard, at_ms))
    alive = [shard for shard in state.shards if state.on(shard.lease) is shard]
    late = [shard for shard in alive if _silent_at_ms(state, shard) <= at_ms]
    why = {True: "its provider fell silent", False: "its lease is over"}
    lost = _lose(
        state,
        tuple((shard, "lost", why[shard.heard_ms + state.spec.silence_ms <= at_ms]) for shard in late),
        at_ms,
    )
    return Step(state=lost.state, effects=(*effects, *lost.effects))


def _tender(state: Job, shard: Shard, at_ms: int) -> TenderWanted:
    return TenderWanted(job=state.job, shards=(shard.shard,), attempt=shard.attempts, at_ms=at_ms)


def _take_report(state: Job, shard: Shard, event: ReportArrived) -> Step[Job]:
    if shard.phase == "ending":
        return ignore(state, "a report of a run that is over")
    newer = event.step > shard.step or not shard.metrics
    heard = replace(
        shard,
        phase="running" if event.started else shard.phase,
        heard_ms=event.at_ms,
        step=max(shard.step, event.step),
        metrics=event.metrics if newer and event.metrics else shard.metrics,
    )
    after = _with(state, heard)
    # By step and not by arrival: one report of a step far ahead, true or not, must not hide those that follow.
    if event.metrics and event.step and all(point.step != event.step for point in state.history):
        point = Point(step=event.step, metrics=event.metrics, at_ms=event.at_ms)
        history = sorted((*state.history, point), key=lambda entry: entry.step)
        after = replace(after, history=tuple(history[-HISTORY_STEPS:]))
    return Step(state=after)


def _announce_checkpoint(state: Job, shard: Shard, event: CheckpointAnnounced) -> Step[Job]:
    newest = shard.copying or shard.checkpoint
    if newest is not None and (event.round, event.step) <= (newest.round, newest.step):
        return ignore(state, "a checkpoint that is known or old")
    if event.checkpoint.size_bytes > state.spec.state_bytes:
        return ignore(state, "a checkpoint over the job's limit")
    copying = Checkpoint(round=event.round, step=event.step, blob=event.checkpoint)
    fetch = FetchWanted(job=state.job, lease=shard.lease, provider=shard.provider, blob=event.checkpoint)
    return Step(state=_with(state, replace(shard, copying=copying, heard_ms=event.at_ms)), effects=(fetch,))


def _announce_output(state: Job, shard: Shard, event: OutputAnnounced) -> Step[Job]:
    if any((output.path, output.blob) == (event.path, event.blob) for output in shard.outputs):
        return ignore(state, "an output that is known")
    # A run that was started again under the same lease makes its files again, and the newer ones count.
    others = tuple(output for output in shard.outputs if output.path != event.path)
    weight = sum(output.blob.size_bytes for output in others) + event.blob.size_bytes
    if weight > state.spec.output_bytes or len(others) >= MOST_OUTPUTS:
        return ignore(state, "outputs over the job's limit")
    outputs = (*others, Output(path=event.path, blob=event.blob))
    fetch = FetchWanted(job=state.job, lease=shard.lease, provider=shard.provider, blob=event.blob)
    return Step(state=_with(state, replace(shard, outputs=outputs, heard_ms=event.at_ms)), effects=(fetch,))


def _take_blob(state: Job, shard: Shard, event: BlobArrived) -> Step[Job]:
    arrived = replace(
        shard,
        heard_ms=event.at_ms,
        outputs=tuple(replace(entry, here=entry.here or entry.blob == event.blob) for entry in shard.outputs),
    )
    if shard.copying is not None and shard.copying.blob == event.blob:
        arrived = replace(arrived, checkpoint=shard.copying, copying=None)
    if arrived == shard:
        return ignore(state, "a blob that nobody waits for")
    after = _with(state, arrived)
    return _finish_shard(after, arrived, event.at_ms) if arrived.complete else Step(state=after)


def _take_run_end(state: Job, shard: Shard, event: RunEndArrived) -> Step[Job]:
    if shard.phase == "ending":
        return ignore(state, "an end that is known")
    if event.outcome != "succeeded":
        return _lose(state, ((shard, event.kind or event.outcome, event.reason),), event.at_ms)
    ending = replace(shard, phase="ending", expected=event.outputs, heard_ms=event.at_ms)
    left = MemberLeft(lease=shard.lease, finished=True, at_ms=event.at_ms)
    after = _with(state, ending)
    step = _finish_shard(after, ending, event.at_ms) if ending.complete else Step(state=after)
    return Step(state=step.state, effects=(left, *step.effects))


def _finish_shard(state: Job, shard: Shard, at_ms: int) -> Step[Job]:
    """A shard is done and everything it made is here."""
    taken = Send(to=shard.provider, message=DeliveryAccepted(lease=shard.lease), keep_until_ms=at_ms + KEEP_MS)
    over = LeaseOver(lease=shard.lease, well=True, at_ms=at_ms)
    after = _with(state, replace(shard, phase="finished"))
    if any(entry.phase != "finished" for entry in after.shards):
        return Step(state=after, effects=(taken, over))
    ended = replace(after, phase="succeeded", ended_ms=at_ms)
    return Step(state=ended, effects=(taken, over, JobOver(job=state.job)))


def _lose(state: Job, lost: tuple[tuple[Shard, str, str], ...], at_ms: int) -> Step[Job]:
    """These shards' attempts came to nothing: tender them again, or fail the job where that cannot help."""
    effects: list[Any] = []
    for shard, kind, reason in lost:
        effects.append(MemberLeft(lease=shard.lease, finished=False, at_ms=at_ms))
        effects += _stop(shard.provider, shard.lease, reason, at_ms)
        waiting = replace(
            shard, phase="waiting", copying=None, waiting_ms=at_ms, reason=clipped(f"{kind}: {reason}", 2_000)
        )
        state = _with(state, waiting)
        why = ""
        if kind not in WORTH_RETRYING:
            why = f"shard {shard.shard} failed ({kind}): {reason}"
        elif shard.attempts > state.spec.retries:
            why = f"shard {shard.shard} was lost {shard.attempts} times, the last time because: {reason}"
        if why:
            failed = _end(state, "failed", why, at_ms)
            return Step(state=failed.state, effects=(*effects, *failed.effects))
        effects.append(_tender(state, waiting, at_ms))
    return Step(state=state, effects=tuple(effects))


def _end(state: Job, phase: str, reason: str, at_ms: int) -> Step[Job]:
    effects: list[Any] = [TendersUnwanted(job=state.job, reason=reason, at_ms=at_ms)]
    for shard in state.shards:
        if state.on(shard.lease) is shard:
            effects += _stop(shard.provider, shard.lease, reason, at_ms)
    shards = tuple(replace(shard, phase="lost" if shard.phase != "finished" else shard.phase) for shard in state.shards)
    ended = replace(state, phase=phase, reason=reason, ended_ms=at_ms, shards=shards)
    return Step(state=ended, effects=(*effects, JobOver(job=state.job)))


def _dismiss(state: Job, event: Any) -> Step[Job]:
    """The job is over: whoever still works for it is told so, and whoever ended may forget it."""
    if isinstance(event, GangCame):
        told: list[Any] = []
        for granted in event.granted:
            told += _stop(granted.provider, granted.lease, f"the job is {state.phase}", event.at_ms)
        return Step(state=state, effects=tuple(told))
    return ignore(state, "news of a job that is over")


def outstanding(state: Job, at_ms: int) -> tuple[Any, ...]:
    """What waits to be taken or fetched, ordered again after a restart."""
    effects: list[Any] = []
    for shard in state.shards:
        if shard.phase == "starting":
            effects.append(_start_order(shard, at_ms))
        if state.on(shard.lease) is not shard:
            continue
        wanted = [output.blob for output in shard.outputs if not output.here]
        wanted += [shard.copying.blob] if shard.copying else []
        effects += [
            FetchWanted(job=state.job, lease=shard.lease, provider=shard.provider, blob=blob) for blob in wanted
        ]
    if not state.ended_ms or at_ms < state.ended_ms + KEEP_MS:
        effects += [
            Send(to=shard.provider, message=DeliveryAccepted(lease=shard.lease), keep_until_ms=at_ms + KEEP_MS)
            for shard in state.shards
            if shard.phase == "finished"
        ]
    return tuple(effects)
