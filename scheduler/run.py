"""One shard on one provider under one lease, from the order to start it to its end: the machine ``scheduler.run``.

The executor tells what happens in the sandbox as the events below, with the time in each of them; the machine keeps
what must outlive a crash of the daemon (the last checkpoint, the results, the device time) and says what is to be done.

Device time is what the buyer pays for: the milliseconds between start or resumption and pause or end. After a crash
nobody knows when the sandbox went, so the time counts only to the last thing that was heard of it.
"""

from dataclasses import dataclass, replace
from typing import assert_never

from hansa.market.machine import Step, Table, ignore, rows
from hansa.proto.blob import BlobRef
from hansa.proto.units import Bytes32, DurationMs, Line, Note, Uint32, Uint64, UnixMs

MOST_RESTARTS = 3
"""A run whose sandbox was lost this often is declared failed; the buyer may tender the shard again."""

STAGING, RUNNING, STOPPING = "staging", "running", "stopping"
SUCCEEDED, FAILED, STOPPED = "succeeded", "failed", "stopped"

FailureKind = Line
"""``user-exception``, ``bad-entry``, ``bad-state``, ``worker-died``, ``out-of-memory``, ``ray-lost``, ``sandbox-lost``,
``stalled``, ``wall-limit``, ``silent``, ``protocol``, ``refused``, ``no-room`` or ``lost``."""


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


RunEvent = (
    RunStarted | RunProgressed | RunSynced | RunCheckpointed | RunLogged | RunOutput | RunFinished | RunFailed
    | RunStopped | RunPaused | RunResumed | RunLost | RunStopWanted
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


RunEffect = StartRun | StopRun


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
        heard_ms: when something was last heard of the sandbox.
        counted_ms: device time up to ``running_since_ms``; see `device_ms`.
        round: the round that was last synced, or the checkpoint's if that is later.
        stop_grace_ms: the grace that was given once a stop was wanted.
        end_kind, end_reason: how it ended, in a word and in words; empty before that.
    """

    run: Bytes32
    phase: Line
    running_since_ms: UnixMs | None = None
    heard_ms: UnixMs = 0
    counted_ms: DurationMs = 0
    step: Uint64 = 0
    metrics: tuple[tuple[Line, float], ...] = ()
    round: Uint64 = 0
    checkpoint: BlobRef | None = None
    checkpoint_round: Uint64 = 0
    checkpoint_step: Uint64 = 0
    outputs: tuple[RunResult, ...] = ()
    restarts: Uint32 = 0
    stop_grace_ms: DurationMs = 0
    stop_why: Note = ""
    end_kind: Line = ""
    end_reason: str = ""


RUN_TABLE: Table[Run] = Table(
    name="scheduler.run",
    start=STAGING,
    terminal=frozenset({SUCCEEDED, FAILED, STOPPED}),
    allowed=rows(
        (STAGING, RunStarted, RUNNING),
        (STAGING, (RunLogged, RunPaused, RunResumed), STAGING),
        ((STAGING, RUNNING), RunStopWanted, STOPPING),
        (RUNNING, (RunProgressed, RunSynced, RunCheckpointed, RunLogged, RunOutput, RunPaused, RunResumed), RUNNING),
        (STOPPING, (RunStarted, RunProgressed, RunSynced, RunCheckpointed, RunLogged, RunOutput), STOPPING),
        (STOPPING, (RunPaused, RunResumed, RunStopWanted), STOPPING),
        (RUNNING, RunFinished, SUCCEEDED),
        (STOPPING, (RunFinished, RunFailed, RunLost), STOPPED),
        ((STAGING, RUNNING), RunFailed, FAILED),
        ((STAGING, RUNNING, STOPPING), RunStopped, STOPPED),
        ((STAGING, RUNNING), RunLost, (STAGING, FAILED)),
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
    return ()


def device_ms(state: Run, now_ms: int) -> int:
    """The device time so far, in milliseconds of one device; times the lease's devices it is what is metered."""
    if state.running_since_ms is None:
        return state.counted_ms
    return state.counted_ms + max(0, now_ms - state.running_since_ms)


def _react(before: Run, event: RunEvent) -> Step[Run]:
    state = before
    if not isinstance(event, (RunLost, RunStopWanted)):
        state = replace(state, heard_ms=max(state.heard_ms, event.at_ms))
    match event:
        case RunStarted():
            if state.running_since_ms is not None:
                return ignore(before, "started twice")
            phase = STOPPING if state.phase == STOPPING else RUNNING
            return Step(state=replace(state, phase=phase, running_since_ms=event.at_ms))
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
            return Step(state=_stop_counting(state, event.at_ms))
        case RunResumed():
            known = state.running_since_ms is not None or state.phase == STAGING
            return Step(state=state if known else replace(state, running_since_ms=event.at_ms))
        case RunFinished():
            phase = SUCCEEDED if state.phase == RUNNING else STOPPED
            return _end(state, phase, "finished", "", event.at_ms)
        case RunFailed():
            phase = STOPPED if state.phase == STOPPING else FAILED
            return _end(state, phase, event.kind, event.reason, event.at_ms)
        case RunStopped():
            return _end(state, STOPPED, "stopped", state.stop_why, event.at_ms)
        case RunLost():
            return _lost(state)
        case RunStopWanted():
            return _stop_wanted(state, event)
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
            round=max(state.round, event.round),
        )
    )


def _stop_wanted(state: Run, event: RunStopWanted) -> Step[Run]:
    """A second wish may only shorten the grace: the owner's hurry counts more than the buyer's patience."""
    if state.phase == STOPPING and event.grace_ms >= state.stop_grace_ms:
        return ignore(state, "stopping already")
    after = replace(state, phase=STOPPING, stop_grace_ms=event.grace_ms, stop_why=event.why)
    return Step(state=after, effects=outstanding(after))


def _lost(state: Run) -> Step[Run]:
    after = _stop_counting(state, state.heard_ms)
    if state.phase == STOPPING:
        return _end(after, STOPPED, "stopped", state.stop_why, state.heard_ms)
    if state.phase == STAGING and state.heard_ms == 0:
        return Step(state=after, effects=outstanding(after))  # nothing had begun, so nothing was lost
    if state.restarts >= MOST_RESTARTS:
        return _end(after, FAILED, "lost", f"its sandbox was lost {state.restarts + 1} times", state.heard_ms)
    after = replace(after, phase=STAGING, restarts=state.restarts + 1)
    return Step(state=after, effects=outstanding(after))


def _stop_counting(state: Run, at_ms: int) -> Run:
    return replace(state, counted_ms=device_ms(state, at_ms), running_since_ms=None)


def _end(state: Run, phase: str, kind: str, reason: str, at_ms: int) -> Step[Run]:
    return Step(state=replace(_stop_counting(state, at_ms), phase=phase, end_kind=kind, end_reason=reason))
