"""Who computes on a GPU: a run of ours, or somebody else for whom it has to make room.

The driver knows processes by the numbers that the machine's first process gives them. A run of ours is whatever
descends from its sandbox's outermost process, from this daemon, or from the launcher's service; and where this daemon
may not see that, what the launcher says is in its sandboxes.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hansa.node.devices.gpus import GpuProcess

MUCH_DRAWING_BYTES = 1 << 30
"""A screen and its desktop hold some hundred MiB; somebody who plays or renders holds more than this."""
MOST_ANCESTORS = 64


CONFIRMED_S = 1.0
"""The launcher must have told so long after a process was first seen, and still not know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the launcher told of one run.

    Attributes:
        at_s: when, on a clock that is never set.
        pids: the processes in its sandbox.
        cpu_ms: processor time that they have used.
    """

    at_s: float
    pids: frozenset[int]
    cpu_ms: int


@dataclass(slots=True)
class Foreigners:
    """Which processes on leased GPUs are nobody's of ours, as far as the launcher's word proves it.

    It proves something only if the launcher and the driver mean the same process by a number, which they do not where
    this node lives in a container: so the two must have agreed once on all that computes on a leased GPU.
    """

    numbers_agree: bool = False
    _first_seen_s: dict[int, float] = field(default_factory=dict)

    def look(self, leased: Iterable[Iterable[GpuProcess]], told: Iterable[Told | None], at_s: float) -> frozenset[int]:
        """Those that are.

        Args:
            leased: what the driver lists on each leased GPU.
            told: what the launcher told of each run, if it has.
            at_s: when the driver listed it.
        """
        answers = list(told)
        known = {pid for answer in answers if answer is not None for pid in answer.pids}
        by_gpu = [{process.pid for process in processes if process.computes} for processes in leased]
        self.numbers_agree = self.numbers_agree or any(pids and pids <= known for pids in by_gpu)
        unknown = {pid for pids in by_gpu for pid in pids} - known
        self._first_seen_s = {pid: self._first_seen_s.get(pid, at_s) for pid in unknown}
        if not self.numbers_agree or not answers or None in answers:
            return frozenset()
        oldest_s = min(answer.at_s for answer in answers if answer is not None)
        return frozenset(pid for pid, since_s in self._first_seen_s.items() if oldest_s > since_s + CONFIRMED_S)


def told_cpu_ms(told: Mapping[int, Told | None]) -> dict[int, int]:
    """Processor time of each run by its outermost process, as the launcher told."""
    return {pid: answer.cpu_ms for pid, answer in told.items() if answer is not None}


def strangers(
    processes: Iterable[GpuProcess],
    ours: Collection[int],
    *,
    leased: bool,
    foreign: Collection[int] = (),
    proc: Path = Path("/proc"),
) -> str:
    """Who uses a GPU and is none of ours, in words; empty for nobody.

    Args:
        processes: as the driver tells them.
        ours: processes whose descendants are ours.
        leased: a run of ours has the GPU. Then a process that cannot be seen from here (this daemon may live in a
            container) is taken for the run's, since nobody can tell,
        foreign: but for these, of which it is known.
        proc: the kernel's list of processes.
    """
    found = []
    drawing_bytes = 0
    for process in processes:
        seen = (proc / str(process.pid)).exists()
        if (not seen and leased and process.pid not in foreign) or (seen and _descends(process.pid, ours, proc)):
            continue
        if process.computes:
            found.append(_name(process.pid, proc))
        else:
            drawing_bytes += process.memory_bytes
    if not found and drawing_bytes > MUCH_DRAWING_BYTES:
        found.append("a program that draws")
    return " and ".join(sorted(set(found))[:3])


def _descends(pid: int, ours: Collection[int], proc: Path) -> bool:
    for _ in range(MOST_ANCESTORS):
        if pid in ours:
            return True
        try:
            fields = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
            state, pid = fields[0], int(fields[1])
        except (OSError, IndexError, ValueError):
            return True  # it has ended meanwhile, and uses nothing
        if state == "Z":
            return True
        if pid <= 1:
            return False
    return False


def _name(pid: int, proc: Path) -> str:
    try:
        name = (proc / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        name = ""
    shown = "".join(letter for letter in name if letter.isprintable())[:32]
    return shown or "a process that cannot be seen from here"


def own_processes(runs: Collection[int]) -> frozenset[int]:
    """Those whose descendants are ours: this daemon, and the sandboxes of runs."""
    return frozenset({os.getpid(), *runs})
