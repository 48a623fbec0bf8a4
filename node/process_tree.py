"""All processes below one, seen from outside its sandbox: to count and pause them where there are no cgroups."""

import contextlib
import os
import signal
from pathlib import Path

TMPFS_INSIDE = ("dev/shm", "tmp", "job/work", "job/outputs")


def descendants(pid: int) -> list[int]:
    """The process and everything below it. Orphans of a sandbox fall to its init, so none is missed."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += children.get(one, [])
    return found


def memory_bytes(pids: list[int]) -> int:
    """What these processes have in memory, shared pages divided among those who share them, and their tmpfs files."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError):
            for line in Path("/proc", str(pid), "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total + _tmpfs_bytes(pids)


def thread_count(pids: list[int]) -> int:
    """How many threads these processes have together."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            count += sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    return count


def set_paused(pid: int, *, paused: bool) -> None:
    """Stop or continue a sandbox. Repeated until a look finds no process more, since it may fork meanwhile."""
    number = signal.SIGSTOP if paused else signal.SIGCONT
    signalled: set[int] = set()
    for _ in range(20):
        new = set(descendants(pid)) - signalled
        if not new:
            return
        for one in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, number)
        signalled |= new


def _tmpfs_bytes(pids: list[int]) -> int:
    """Files in a sandbox's tmpfs are memory that belongs to no process; the deepest process surely is inside."""
    for pid in reversed(pids):
        used, seen = 0, False
        for inside in TMPFS_INSIDE:
            with contextlib.suppress(OSError):
                usage = os.statvfs(f"/proc/{pid}/root/{inside}")
                used += (usage.f_blocks - usage.f_bfree) * usage.f_frsize
                seen = True
        if seen:
            return used
    return 0
