"""Who computes on a GPU: a run of ours, or somebody else for whom it has to make room.

The driver knows processes by the numbers that the machine's first process gives them. A run of ours is whatever
descends from its sandbox's outermost process, from this daemon, or from the launcher's service.
"""

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from hansa.node.gpus import GpuProcess

MUCH_DRAWING_BYTES = 1 << 30
"""A screen and its desktop hold some hundred MiB; somebody who plays or renders holds more than this."""
MOST_ANCESTORS = 64


def strangers(
    processes: Iterable[GpuProcess], ours: Collection[int], *, leased: bool, proc: Path = Path("/proc")
) -> str:
    """Who uses a GPU and is none of ours, in words; empty for nobody.

    Args:
        processes: as the driver tells them.
        ours: processes whose descendants are ours.
        leased: a run of ours has the GPU. Then a process that cannot be seen from here (this daemon may live in a
            container) is taken for the run's, since nobody can tell.
        proc: the kernel's list of processes.
    """
    found = []
    drawing_bytes = 0
    for process in processes:
        seen = (proc / str(process.pid)).exists()
        if (not seen and leased) or (seen and _descends(process.pid, ours, proc)):
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
