"""How a run ended: from what the runner, the clock and the launcher saw to the one event that says so."""

import unicodedata
from dataclasses import dataclass
from typing import Final

import trio

from hansa.node.engine.logs import LOGGER
from hansa.node.fault_groups import leaf
from hansa.node.isolation.host_paths import without_host_paths
from hansa.node.isolation.launcher_protocol import Ended
from hansa.node.runs.run_order import RunOrder
from hansa.node.storage.disk_faults import in_words
from hansa.node.storage.sealing import SealBroken
from hansa.proto.errors import ProtocolError
from hansa.scheduler.run import RECLAIMED, RunEvent, RunFailed, RunFinished, RunStopped

LARGEST_REASON_CHARS: Final = 4000
FIRST_CHARS: Final = 500
OMITTED: Final = "\n[…]\n"
OF_THE_JOB: Final = frozenset({"user-exception", "bad-entry", "bad-state", "worker-died", "out-of-memory", "stalled"})
"""Failures of the job's own, for whose sake a run is kept: there is something to look at, and it is the buyer's."""
OF_THIS_MACHINE: Final = frozenset({"refused", "sandbox-lost"})
"""Failures whose words are bubblewrap's, the launcher's or the system's."""
PERHAPS_MEMORY: Final = frozenset({"worker-died", "ray-lost", "sandbox-lost", "silent", "stalled", "user-exception"})
"""What it looks like when the kernel ends a process for want of memory."""


class Over(Exception):
    """A run has come to its end.

    Attributes:
        kind: ``"finished"``, ``"stopped"`` or a kind of failure.
        reason: the failure in words.
    """

    def __init__(self, kind: str, reason: str = "") -> None:
        """Keep how it ended."""
        super().__init__(kind)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What else is known when a run is over.

    Attributes:
        stopping: whether it was told to stop.
        kept: how it failed before that, if it was kept to be looked at.
        ended: what the launcher said of its sandbox, if it said anything.
    """

    stopping: bool
    kept: Over | None
    ended: Ended | None


def over_of(error: Exception) -> Over:
    """The end that an exception out of a run's tasks means.

    What is a fault of ours ends this run and is logged whole: others' runs beside it have no part in it.
    """
    fault = leaf(error)
    if isinstance(fault, Over):
        return fault
    if isinstance(fault, ProtocolError):
        return Over("protocol", f"the sandbox said something it must not: {fault.where}: {fault.why}")
    if isinstance(fault, SealBroken):
        return Over("bad-state", f"what it was to go on from cannot be opened: {fault.why}")
    if isinstance(fault, trio.BrokenResourceError):
        return Over("sandbox-lost", f"talking to the sandbox failed: {type(fault).__name__}")
    if isinstance(fault, OSError):
        return Over("sandbox-lost", f"the provider's machine failed: {in_words(fault)}")
    LOGGER.error("a run ended by a fault of this node's own", exc_info=error)
    return Over("sandbox-lost", f"a fault of the provider's node: {type(fault).__name__}")


def last_event(order: RunOrder, over: Over, known: Circumstances, now_ms: int) -> RunEvent:
    """How it ended, with what the launcher saw taken into account."""
    run = order.run
    if known.kept is None:
        if over.kind == "finished" and not known.stopping:
            return RunFinished(run=run, at_ms=now_ms)
        if known.stopping:
            return RunStopped(run=run, at_ms=now_ms)
    failed = known.kept or over
    kind, reason = failed.kind, failed.reason
    # Who looks at a kept run may use up its memory, too; that is not how the job failed.
    suspicious = kind in PERHAPS_MEMORY if known.kept is None else kind == "worker-died"
    if known.ended is not None and known.ended.memory_kills > 0 and suspicious:
        kind, reason = (told := out_of_memory(order)).kind, told.reason
    elif kind == "sandbox-lost" and known.ended is not None:
        words = " ".join(printable(known.ended.words).split())[-300:]
        reason = f"{reason} (status {known.ended.status}{': ' if words else ''}{words})"
    if kind in OF_THIS_MACHINE:
        reason = without_host_paths(reason)
    return RunFailed(run=run, kind=kind, reason=clipped_reason(reason), at_ms=now_ms)


def out_of_memory(order: RunOrder) -> Over:
    """The end of a run in which the kernel ended something for want of memory."""
    return Over("out-of-memory", f"it needed more than its {order.limits.memory_bytes >> 20} MiB of memory")


def reclaimed(reason: str) -> Over:
    """The end of a run whose devices its owner takes back."""
    return Over(RECLAIMED, reason)


def clipped_reason(reason: str) -> str:
    """A reason fit for an event: of a long one its beginning, which says what it is, and its end, where it happened."""
    text = printable(reason)
    if len(text) <= LARGEST_REASON_CHARS:
        return text
    return f"{text[:FIRST_CHARS]}{OMITTED}{text[len(text) - LARGEST_REASON_CHARS + FIRST_CHARS + len(OMITTED) :]}"


def printable(text: str) -> str:
    """The text without what could steer a terminal: no control, format or private characters but newline and tab."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs"))
