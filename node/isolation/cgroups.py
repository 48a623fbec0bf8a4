"""Limits on a whole run, by the kernel's control groups where this process may make them.

Version 2 needs a delegated subtree (``Delegate=yes`` in the unit); version 1 needs root. Where neither is to be had,
`hansa.node.isolation.process_tree` counts and kills instead, which is slower and rougher, and preflight says so.
"""

import contextlib
import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

V1_CONTROLLERS = ("memory", "pids", "cpu", "freezer")
CPU_PERIOD_US = 100_000
PREFIX = "hansa-"
LEAF = "launcher"
"""Where the launcher itself sits in version 2, beside its groups: one that has processes may hand no controllers on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimits:
    """What one run may use; ``processes`` counts threads, as the kernel does."""

    memory_bytes: int
    cpu_millis: int
    processes: int


class Group(Protocol):
    """The control group of one run."""

    held: dict[str, str]

    def add(self, pid: int) -> None:
        """Put a process into it."""

    def freeze(self, *, frozen: bool) -> None:
        """Let nothing in it compute, or let it again."""

    def kill(self) -> None:
        """End whatever is in it."""

    def is_frozen(self) -> bool:
        """Whether nothing in it computes any more."""

    def limit(self, limits: GroupLimits) -> None:
        """Other limits from now on. Raises ``OSError`` where it uses more than that already."""

    def favour(self, *, little: bool) -> None:
        """Give it a quarter of the processor time that others get where there is not enough, or as much as they."""

    def pids(self) -> list[int]:
        """The processes in it."""

    def memory_kills(self) -> int:
        """How often something in it was killed for want of memory."""

    def peak_bytes(self) -> int:
        """The most memory it had."""

    def remove(self) -> None:
        """Take it away once it is empty."""


class GroupV1:
    """One directory in each controller's hierarchy."""

    def __init__(self, directories: dict[str, Path], limits: GroupLimits) -> None:
        """Make the directories and write the limits."""
        self._directories = directories
        self.held = {"memory": "cgroup v1", "processes": "cgroup v1", "cpu": "cgroup v1", "pause": "cgroup v1"}
        for directory in directories.values():
            directory.mkdir()
        with contextlib.suppress(OSError):
            directories["memory"].joinpath("memory.swappiness").write_text("0")
        self.limit(limits)

    def limit(self, limits: GroupLimits) -> None:
        """Memory with swap may never be less than memory without, so which comes first depends."""
        memory = self._directories["memory"]
        plain, with_swap = memory / "memory.limit_in_bytes", memory / "memory.memsw.limit_in_bytes"
        wanted = str(limits.memory_bytes)
        rising = int(plain.read_text()) < limits.memory_bytes
        for file in (with_swap, plain) if rising else (plain, with_swap):
            if file is plain or file.exists():  # kernels without swap accounting have no such file
                file.write_text(wanted)
        self._directories["pids"].joinpath("pids.max").write_text(str(limits.processes))
        cpu = self._directories["cpu"]
        cpu.joinpath("cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
        cpu.joinpath("cpu.cfs_quota_us").write_text(str(max(1000, CPU_PERIOD_US * limits.cpu_millis // 1000)))

    def add(self, pid: int) -> None:
        """Put a process into each directory."""
        for directory in self._directories.values():
            directory.joinpath("cgroup.procs").write_text(str(pid))

    def favour(self, *, little: bool) -> None:
        """1024 is what everybody has."""
        with contextlib.suppress(OSError):
            self._directories["cpu"].joinpath("cpu.shares").write_text("256" if little else "1024")

    def pids(self) -> list[int]:
        """The kernel's own list."""
        return [int(pid) for pid in self._directories["pids"].joinpath("cgroup.procs").read_text().split()]

    def freeze(self, *, frozen: bool) -> None:
        """Freezing takes a moment; it is done when the file says so."""
        state = self._directories["freezer"] / "freezer.state"
        state.write_text("FROZEN" if frozen else "THAWED")

    def is_frozen(self) -> bool:
        """The kernel's own word; it says FREEZING before."""
        return self._directories["freezer"].joinpath("freezer.state").read_text().strip() == "FROZEN"

    def kill(self) -> None:
        """Signal everything that is in it, and thaw it, since frozen processes do not die."""
        for _ in range(50):
            pids = self._directories["pids"].joinpath("cgroup.procs").read_text().split()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            self.freeze(frozen=False)
            if not pids:
                return
            time.sleep(0.01)

    def memory_kills(self) -> int:
        """The kernel's own count."""
        text = self._directories["memory"].joinpath("memory.oom_control").read_text()
        counts = dict(line.split() for line in text.splitlines())
        return int(counts.get("oom_kill", "0"))

    def peak_bytes(self) -> int:
        """The kernel's own record."""
        return int(self._directories["memory"].joinpath("memory.max_usage_in_bytes").read_text())

    def remove(self) -> None:
        """An empty group still counts dying processes for a moment, so try for a while."""
        _remove(list(self._directories.values()))


class GroupV2:
    """One directory in the unified hierarchy."""

    def __init__(self, directory: Path, limits: GroupLimits) -> None:
        """Make the directory and write the limits."""
        self._directory = directory
        self.held = {"memory": "cgroup v2", "processes": "cgroup v2", "cpu": "cgroup v2", "pause": "cgroup v2"}
        directory.mkdir()
        with contextlib.suppress(OSError):
            directory.joinpath("memory.swap.max").write_text("0")
        # One process of a run killed for memory leaves a half-dead Ray behind; rather all of it, and said so.
        directory.joinpath("memory.oom.group").write_text("1")
        self._write(limits)

    def limit(self, limits: GroupLimits) -> None:
        """A limit below what is used would kill what is there, so that is looked at first."""
        if int(self._directory.joinpath("memory.current").read_text()) > limits.memory_bytes:
            raise OSError(errno.EBUSY, "it uses more memory than that already")
        self._write(limits)

    def _write(self, limits: GroupLimits) -> None:
        directory = self._directory
        directory.joinpath("memory.max").write_text(str(limits.memory_bytes))
        directory.joinpath("pids.max").write_text(str(limits.processes))
        quota = max(1000, CPU_PERIOD_US * limits.cpu_millis // 1000)
        directory.joinpath("cpu.max").write_text(f"{quota} {CPU_PERIOD_US}")

    def add(self, pid: int) -> None:
        """Put a process into it."""
        self._directory.joinpath("cgroup.procs").write_text(str(pid))

    def favour(self, *, little: bool) -> None:
        """100 is what everybody has."""
        with contextlib.suppress(OSError):
            self._directory.joinpath("cpu.weight").write_text("25" if little else "100")

    def pids(self) -> list[int]:
        """The kernel's own list."""
        return [int(pid) for pid in self._directory.joinpath("cgroup.procs").read_text().split()]

    def freeze(self, *, frozen: bool) -> None:
        """The kernel freezes the whole subtree."""
        self._directory.joinpath("cgroup.freeze").write_text("1" if frozen else "0")

    def is_frozen(self) -> bool:
        """The kernel's own word."""
        text = self._directory.joinpath("cgroup.events").read_text()
        return dict(line.split() for line in text.splitlines()).get("frozen") == "1"

    def kill(self) -> None:
        """The kernel kills the whole subtree, frozen or not."""
        self._directory.joinpath("cgroup.kill").write_text("1")

    def memory_kills(self) -> int:
        """The kernel's own count."""
        text = self._directory.joinpath("memory.events").read_text()
        return int(dict(line.split() for line in text.splitlines()).get("oom_kill", "0"))

    def peak_bytes(self) -> int:
        """The kernel's own record, which kernels before 5.19 do not keep."""
        try:
            return int(self._directory.joinpath("memory.peak").read_text())
        except OSError:
            return 0

    def remove(self) -> None:
        """An empty group still counts dying processes for a moment, so try for a while."""
        _remove([self._directory])


def make_group(name: str, limits: GroupLimits, root: Path = Path("/sys/fs/cgroup")) -> Group | None:
    """A control group for one run, or ``None`` where this process may not make one."""
    try:
        own = dict(_own_paths())
        if root.joinpath("cgroup.controllers").exists():
            directory = _delegated(root / own.get("", "/").lstrip("/")) / (PREFIX + name)
            return _new_group_v2(directory, limits)
        directories = {c: root / c / own[c].lstrip("/") / (PREFIX + name) for c in V1_CONTROLLERS}
    except (OSError, KeyError):
        return None
    try:
        return GroupV1(directories, limits)
    except OSError:
        _remove([directory for directory in directories.values() if directory.exists()])
        return None


def _new_group_v2(directory: Path, limits: GroupLimits) -> GroupV2:
    try:
        return GroupV2(directory, limits)
    except OSError:
        if directory.exists():
            _remove([directory])
        raise


def remove_leftovers(root: Path = Path("/sys/fs/cgroup")) -> None:
    """Take away the groups of launchers that were killed, and what is frozen in them; names begin with their pid.

    What a launcher leaves behind is being killed, but in version 1 whatever is frozen dies only once it is thawed.
    """
    own = dict(_own_paths())
    if root.joinpath("cgroup.controllers").exists():
        place = root / own.get("", "/").lstrip("/")
        places = [place.parent if place.name == LEAF else place]
    else:
        places = [root / c / own[c].lstrip("/") for c in V1_CONTROLLERS if c in own]
    leftovers = []
    for directory in (directory for place in places for directory in place.glob(PREFIX + "*")):
        owner = directory.name.removeprefix(PREFIX).split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            leftovers.append(directory)
            _end(directory)
    _remove(leftovers)


def _end(directory: Path) -> None:
    """End what is in a directory that nobody owns any more; it shows those in other process namespaces as 0."""
    with contextlib.suppress(OSError):
        everything = directory / "cgroup.kill"
        if everything.exists():
            everything.write_text("1")
    with contextlib.suppress(OSError, ValueError):
        for pid in map(int, directory.joinpath("cgroup.procs").read_text().split()):
            if pid > 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        state = directory / "freezer.state"
        if state.exists():
            state.write_text("THAWED")


def _own_paths() -> list[tuple[str, str]]:
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        found += [(controller, path) for controller in controllers.split(",")]
    return found


def _delegated(base: Path) -> Path:
    """Make the controllers usable below ``base``: a group with processes of its own may hand none on."""
    wanted = {"memory", "pids", "cpu"}
    if not wanted <= set(base.joinpath("cgroup.controllers").read_text().split()):
        raise OSError("the controllers were not delegated to us")
    if base.name == LEAF:
        return base.parent
    if not wanted <= set(base.joinpath("cgroup.subtree_control").read_text().split()):
        leaf = base / LEAF
        leaf.mkdir(exist_ok=True)
        for pid in base.joinpath("cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                leaf.joinpath("cgroup.procs").write_text(pid)
        base.joinpath("cgroup.subtree_control").write_text("+memory +pids +cpu")
    return base


def _remove(directories: list[Path]) -> None:
    for directory in directories:
        for _ in range(50):
            try:
                directory.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.01)
            else:
                break
