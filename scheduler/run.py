"""One shard on one provider under one lease, from the order to start it to its end: the machine ``scheduler.run``.

The executor tells what happens in the sandbox as the events below, with the time in each of them; the machine keeps
what must outlive a crash of the daemon (the last checkpoint, the results, the device time) and says what is to be done.

Device time is what the buyer pays for: the milliseconds between start or resumption and pause or end. After a crash
nobody knows when the sandbox went, so the time counts only to the last thing that was heard of it.
"""

from dataclasses import dataclass, replace
from typing import assert_never

from hansa.market import sale_events
from hansa.market.machine import SAME, Step, Table, ignore, rows
from hansa.proto.blob import BlobRef
from hansa.proto.units import Bytes32, DurationMs, Line, Note, Uint32, Uint64, UnixMs

MOST_RESTARTS = 3
"""A run whose sandbox was lost this often is declared failed; the buyer may tender the shard again."""

STAGING, RUNNING, KEPT, STOPPING = "staging", "running", "kept", "stopping"
SUCCEEDED, FAILED, STOPPED = "succeeded", "failed", "stopped"

FailureKind = Line
"""``user-exception``, ``bad-entry``, ``bad-state``, ``worker-died``, ``out-of-memory``, ``ray-lost``, ``sandbox-lost``,
``stalled``, ``wall-limit``, ``silent``, ``protocol``, ``refused``, ``no-room``, ``lost`` or ``reclaimed``."""

RECLAIMED = sale_events.RECLAIMED
"""The kind of end of a run whose devices its owner took back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The first line of the job's code is about to run."""

    run: Bytes32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgressed:
    """The job reported a step, with finite figures."""

    run: Bytes32
    step: Uint64
    metrics: tuple[tuple[Line, float], ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSynced:
    """The shard gave its state to a round and waits for the result.

    Attributes:
        weight_ppm: how much the state counts, in millionths.
        state: the encoded state, as `hansa.proto.tensors` has it.
    """

    run: Bytes32
    round: Uint64
    weight_ppm: Uint64
    state: BlobRef
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCheckpointed:
    """The job gave a state from which it can go on."""

    run: Bytes32
    round: Uint64
    step: Uint64
    checkpoint: BlobRef
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLogged:
    """The job printed something. No control characters but newline and tab are left in it."""

    run: Bytes32
    text: str
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutput:
    """A file of the results is there."""

    run: Bytes32
    path: str
    blob: BlobRef
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The job's code returned in every worker, and all results were told."""

    run: Bytes32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed:
    """The run is over and not well; the reason is for people."""

    run: Bytes32
    kind: FailureKind
    reason: str
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStopped:
    """The run ended because it was told to."""

    run: Bytes32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPaused:
    """Nothing of the run computes; its memory stays."""

    run: Bytes32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed:
    """It computes again."""

    run: Bytes32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLost:
    """The daemon was restarted and the sandbox is gone. Told by the engine for every run that had not ended."""

    run: Bytes32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStopWanted:
    """Somebody (the buyer, the owner, the lease's end) wants the run to end.

    Attributes:
        grace_ms: how long it may take to save what is worth saving.
        why: one clause for people.
    """

    run: Bytes32
    grace_ms: DurationMs
    why: Note
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKept:
    """The run has failed and stays as it is for a while, to be looked at. ``RunFailed`` follows when that is over.

    Attributes:
        kind: what sort of failure.
        reason: in words.
        until_ms: when it goes.
    """

    run: Bytes32
    kind: FailureKind
    reason: str
    until_ms: UnixMs
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLeaveWanted:
    """The owner takes the devices back: the run is to end at its next checkpoint.

    Attributes:
        by_ms: when it ends at the latest.
        why: the owner's reason.
    """

    run: Bytes32
    by_ms: UnixMs
    why: Note
    at_ms: UnixMs


RunEvent = (
    RunStarted | RunProgressed | RunSynced | RunCheckpointed | RunLogged | RunOutput | RunFinished | RunFailed
    | RunStopped | RunPaused | RunResumed | RunLost | RunStopWanted | RunKept | RunLeaveWanted
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRun:
    """Make a sandbox and start the job's code in it, from a checkpoint if there is one."""

    run: Bytes32
    checkpoint: BlobRef | None
    round: Uint64


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRun:
    """Let the run end within its grace, then end it."""

    run: Bytes32
    grace_ms: DurationMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveRun:
    """Let the run go on to its next checkpoint and end it there, or at ``by_ms`` if none comes before.

    Its end is told as ``RunFailed`` of kind ``RECLAIMED`` or as ``RunStopped``, which mean the same here.
    """

    run: Bytes32
    by_ms: UnixMs
    why: Note


RunEffect = StartRun | StopRun | LeaveRun


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One file of the results."""

    path: str
    blob: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is known of a run.

    Attributes:
        running_since_ms: since when the device time is counted, if it is.
        begun: whether the job's code runs, or is paused: not while a sandbox is being made for it.
        paused: whether it is paused.
        heard_ms: when something was last heard of the sandbox.
        counted_ms: device time up to ``running_since_ms``; see `device_ms`.
        round: the round that was last synced, or the checkpoint's if that is later.
        checkpoint_ms, checkpoint_at_ms: the device time and the moment of the newest checkpoint.
        stop_grace_ms: the grace that was given once a stop was wanted.
        leave_by_ms, leave_why: until when it has to leave its devices, and why; 0 while it need not.
        kept_kind, kept_reason, kept_until_ms: how it failed, while it is kept to be looked at.
        end_kind, end_reason: how it ended, in a word and in words; empty before that.
    """

    run: Bytes32
    phase: Line
    running_since_ms: UnixMs | None = None
    begun: bool = False
    paused: bool = False
    heard_ms: UnixMs = 0
    counted_ms: DurationMs = 0
    step: Uint64 = 0
    metrics: tuple[tuple[Line, float], ...] = ()
    round: Uint64 = 0
    checkpoint: BlobRef | None = None
    checkpoint_round: Uint64 = 0
    checkpoint_step: Uint64 = 0
    checkpoint_ms: DurationMs = 0
    checkpoint_at_ms: UnixMs = 0
    outputs: tuple[RunResult, ...] = ()
    restarts: Uint32 = 0
    stop_grace_ms: DurationMs = 0
    stop_why: Note = ""
    leave_by_ms: UnixMs = 0
    leave_why: Note = ""
    kept_kind: Line = ""
    kept_reason: str = ""
    kept_until_ms: UnixMs = 0
    end_kind: Line = ""
    end_reason: str = ""


RUN_TABLE: Table[Run] = Table(
    name="scheduler.run",
    start=STAGING,
    terminal=frozenset({SUCCEEDED, FAILED, STOPPED}),
    allowed=rows(
        (STAGING, RunStarted, RUNNING),
        (STAGING, (RunLogged, RunPaused, RunResumed), STAGING),
        ((STAGING, RUNNING, KEPT), RunStopWanted, STOPPING),
        (RUNNING, (RunProgressed, RunSynced, RunCheckpointed, RunLogged, RunOutput, RunPaused, RunResumed), RUNNING),
        (STOPPING, (RunStarted, RunProgressed, RunSynced, RunCheckpointed, RunLogged, RunOutput), STOPPING),
        (STOPPING, (RunPaused, RunResumed, RunStopWanted), STOPPING),
        ((STAGING, RUNNING), RunKept, KEPT),
        (KEPT, (RunLogged, RunPaused, RunResumed), KEPT),
        # Nothing is there yet that could be saved, so it goes at once.
        (STAGING, RunLeaveWanted, STOPPING),
        ((RUNNING, KEPT, STOPPING), RunLeaveWanted, SAME),
        (RUNNING, RunFinished, SUCCEEDED),
        (STOPPING, (RunFinished, RunFailed, RunLost), (STOPPED, FAILED)),
        ((STAGING, RUNNING, KEPT), RunFailed, FAILED),
        ((STAGING, RUNNING, KEPT, STOPPING), RunStopped, (STOPPED, FAILED)),
        ((STAGING, RUNNING), RunLost, (STAGING, FAILED)),
        (KEPT, RunLost, FAILED),
    ),
)


def plan_run(run: bytes, *, checkpoint: BlobRef | None = None, round_number: int = 0) -> Step[Run]:
    """A new run, to be started from this checkpoint if the shard was worked on before."""
    state = Run(run=run, phase=STAGING, checkpoint=checkpoint, checkpoint_round=round_number, round=round_number)
    return Step(state=state, effects=outstanding(state))


def advance(state: Run, event: RunEvent) -> Step[Run]:
    """What an event makes of a run."""
    assert event.run == state.run, "an event of another run"
    return RUN_TABLE.advance(state, event, _react)


def outstanding(state: Run) -> tuple[RunEffect, ...]:
    """What is still to be done for a run, e.g. after a restart of the daemon (which first tells `RunLost`)."""
    if state.phase == STAGING:
        return (StartRun(run=state.run, checkpoint=state.checkpoint, round=state.checkpoint_round),)
    if state.phase == STOPPING:
        return (StopRun(run=state.run, grace_ms=state.stop_grace_ms),)
    if state.leave_by_ms and state.phase not in RUN_TABLE.terminal:
        return (LeaveRun(run=state.run, by_ms=state.leave_by_ms, why=state.leave_why),)
    return ()


def device_ms(state: Run, now_ms: int) -> int:
    """The device time so far, in milliseconds of one device; times the lease's devices it is what is metered."""
    if state.running_since_ms is None:
        return state.counted_ms
    return state.counted_ms + max(0, now_ms - state.running_since_ms)


def _react(before: Run, event: RunEvent) -> Step[Run]:
    state = before
    if not isinstance(event, (RunLost, RunStopWanted, RunLeaveWanted)):
        state = replace(state, heard_ms=max(state.heard_ms, event.at_ms))
    match event:
        case RunStarted():
            if state.running_since_ms is not None:
                return ignore(before, "started twice")
            phase = STOPPING if state.phase == STOPPING else RUNNING
            # The word that it began may come after it was paused; what does not compute is not paid for.
            since_ms = None if state.paused or state.kept_kind else event.at_ms
            return Step(state=replace(state, phase=phase, begun=True, running_since_ms=since_ms))
        case RunProgressed():
            return Step(state=replace(state, step=max(state.step, event.step), metrics=event.metrics))
        case RunSynced():
            return Step(state=replace(state, round=max(state.round, event.round)))
        case RunCheckpointed():
            return _checkpointed(state, event)
        case RunLogged():
            return Step(state=state)
        case RunOutput():
            others = tuple(result for result in state.outputs if result.path != event.path)
            return Step(state=replace(state, outputs=(*others, RunResult(path=event.path, blob=event.blob))))
        case RunPaused():
            return Step(state=replace(_stop_counting(state, event.at_ms), paused=True))
        case RunResumed():
            state = replace(state, paused=False)
            # What is kept to be looked at may be let go on, and is not paid for.
            counts = state.running_since_ms is None and state.begun and not state.kept_kind
            return Step(state=replace(state, running_since_ms=event.at_ms) if counts else state)
        case RunKept():
            kept = replace(state, kept_kind=event.kind, kept_reason=event.reason, kept_until_ms=event.until_ms)
            return Step(state=replace(_stop_counting(kept, event.at_ms), phase=KEPT))
        case RunFinished() if state.phase == RUNNING:
            return _end(state, SUCCEEDED, "finished", "", event.at_ms)
        case RunFailed() if state.phase != STOPPING:
            return _end(state, FAILED, event.kind, event.reason, event.at_ms)
        case RunFinished():
            return _end_as_told(state, "finished", "", event.at_ms)
        case RunFailed():
            return _end_as_told(state, event.kind, event.reason, event.at_ms)
        case RunStopped():
            return _end_as_told(state, "stopped", state.stop_why, event.at_ms)
        case RunLost():
            return _lost(state)
        case RunStopWanted():
            return _stop_wanted(state, event)
        case RunLeaveWanted():
            return _leave_wanted(state, event)
        case _:
            assert_never(event)


def _checkpointed(state: Run, event: RunCheckpointed) -> Step[Run]:
    """A checkpoint replaces the one before it; the job decides what it goes on from, so a lower step is no fault."""
    return Step(
        state=replace(
            state,
            checkpoint=event.checkpoint,
            checkpoint_round=event.round,
            checkpoint_step=event.step,
            checkpoint_ms=device_ms(state, event.at_ms),
            checkpoint_at_ms=event.at_ms,
            round=max(state.round, event.round),
        )
    )


def _stop_wanted(state: Run, event: RunStopWanted) -> Step[Run]:
    """A second wish may only shorten the grace: the owner's hurry counts more than the buyer's patience."""
    if state.phase == STOPPING and event.grace_ms >= state.stop_grace_ms:
        return ignore(state, "stopping already")
    after = replace(state, phase=STOPPING, stop_grace_ms=event.grace_ms, stop_why=event.why)
    return Step(state=after, effects=outstanding(after))


def _leave_wanted(state: Run, event: RunLeaveWanted) -> Step[Run]:
    """A second wish may only bring the moment nearer."""
    if state.leave_by_ms and event.by_ms >= state.leave_by_ms:
        return ignore(state, "leaving already")
    after = replace(state, leave_by_ms=event.by_ms, leave_why=event.why)
    if state.phase == STAGING:
        after = replace(after, phase=STOPPING, stop_grace_ms=0, stop_why=event.why)
    return Step(state=after, effects=() if state.phase == STOPPING else outstanding(after))


def _lost(state: Run) -> Step[Run]:
    """The sandbox is gone. A run that was to leave has left: it is not started again for what is left of its time."""
    after = _stop_counting(state, state.heard_ms)
    if state.phase in (KEPT, STOPPING) or state.leave_by_ms:
        return _end_as_told(after, "stopped", state.stop_why, state.heard_ms)
    if state.phase == STAGING and state.heard_ms == 0:
        return Step(state=after, effects=outstanding(after))  # nothing had begun, so nothing was lost
    if state.restarts >= MOST_RESTARTS:
        return _end(after, FAILED, "lost", f"its sandbox was lost {state.restarts + 1} times", state.heard_ms)
    after = replace(after, phase=STAGING, restarts=state.restarts + 1, begun=False, paused=False)
    return Step(state=after, effects=outstanding(after))


def _end_as_told(state: Run, kind: str, reason: str, at_ms: int) -> Step[Run]:
    """It ended because it was to end. What its buyer has to know is why: it had failed, or its devices were wanted."""
    if state.kept_kind:
        return _end(state, FAILED, state.kept_kind, state.kept_reason, at_ms)
    if state.leave_by_ms:
        return _end(state, FAILED, RECLAIMED, state.leave_why, at_ms)
    return _end(state, STOPPED, kind, reason, at_ms)


def _stop_counting(state: Run, at_ms: int) -> Run:
    return replace(state, counted_ms=device_ms(state, at_ms), running_since_ms=None)


def _end(state: Run, phase: str, kind: str, reason: str, at_ms: int) -> Step[Run]:
    return Step(state=replace(_stop_counting(state, at_ms), phase=phase, end_kind=kind, end_reason=reason))
