"""All processes below one, seen from outside its sandbox: to count and pause them where there are no cgroups."""

import contextlib
import os
import signal
from pathlib import Path

TMPFS_INSIDE = ("dev/shm", "tmp", "job/work", "job/outputs")
INODE_BYTES = 1024
"""What the kernel keeps in memory for each file of a tmpfs, however short it is: some 700 bytes and its name."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def descendants(pid: int) -> list[int]:
    """The process and everything below it. Orphans of a sandbox fall to its init, so none is missed."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        if (parent := parent_in(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += children.get(one, [])
    return found


def parent_in(entry: Path) -> int | None:
    """The parent's number in a process's directory in /proc, whatever the process calls itself: any bytes at all."""
    try:
        return int(entry.joinpath("stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None  # it has ended


def memory_bytes(pids: list[int], enough_bytes: int = 0) -> int:
    """What these processes have in memory together with the files in their sandbox's tmpfs.

    Where the sum of what each has in memory, in which shared pages count once for everybody who shares them, is no
    more than ``enough_bytes``, that sum is the answer: reading it costs microseconds. Only above that are shared pages
    divided among those who share them, which takes the kernel a walk through every page table.
    """
    files = _tmpfs_bytes(pids)
    most = files + sum(_resident_bytes(pid) for pid in pids)
    if most <= enough_bytes:
        return most
    own, shared = 0, 0
    for pid in pids:
        own_of_one, shared_of_one = _proportional_bytes(pid)
        own, shared = own + own_of_one, shared + shared_of_one
    # What is mapped of tmpfs is among its files already; memory that is shared without a file is not.
    return own + max(shared, files)


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


def _resident_bytes(pid: int) -> int:
    """All that a process has in memory, however many others have it, too."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0  # it has ended


def _proportional_bytes(pid: int) -> tuple[int, int]:
    """A process's share of what it has in memory: first its own and files, then what lies in shared memory."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines[1:]}
        shared = found.get("Pss_Shmem", 0)
        return found["Pss"] - shared, shared
    except (OSError, KeyError, IndexError, ValueError):
        pass  # a kernel without it, or a process that has ended
    try:
        _size, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    except (OSError, ValueError):
        return 0, 0
    return (resident - shared) * PAGE_BYTES, 0


def _tmpfs_bytes(pids: list[int]) -> int:
    """Files in a sandbox's tmpfs are memory that belongs to no process. Any process in the sandbox shows them all.

    bubblewrap's outer process is never inside, and the inner one not until the sandbox is furnished: below their root
    lie the host's /tmp and /dev/shm, which are none of the run's business.
    """
    for pid in reversed(pids):
        root = Path(f"/proc/{pid}/root")
        try:
            place = root.stat().st_dev
            if place == Path("/").stat().st_dev or root.joinpath(TMPFS_INSIDE[-1]).stat().st_dev == place:
                continue
            return sum(_used_bytes(root / inside) for inside in TMPFS_INSIDE)
        except OSError:
            continue
    return 0


def _used_bytes(mount: Path) -> int:
    """What the files of a tmpfs take, the kernel's own record of each among it; files on a disk are no memory."""
    if os.major(mount.stat().st_dev) != 0:
        return 0
    usage = os.statvfs(mount)
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize + (usage.f_files - usage.f_ffree) * INODE_BYTES
