"""What a provider's runs leave on its machine: counted before and after, they must be the same.

Everything is told apart from what other programs do on the machine at the same time: processes by having been seen
below the daemon, groups by their launcher's pid, disks and files by directories that are the test's own.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from hansa.node.commands.demo_nodes import DemoNode
from hansa.node.isolation import process_tree

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(slots=True)
class Traces:
    """Watches one market's own directories.

    Attributes:
        temporary: where its daemons make temporary files (``TMPDIR``).
        scratch: where its launchers make disks (``HANSA_SCRATCH``).
        seen: every process that was seen below a daemon, with the moment when it began.
        launchers: those among them that make sandboxes.
        usual: files that are there without any run.
    """

    temporary: Path
    scratch: Path
    seen: dict[int, str] = field(default_factory=dict)
    launchers: set[int] = field(default_factory=set)
    usual: set[str] = field(default_factory=set)

    def look(self, node: DemoNode) -> list[int]:
        """Remember what runs below a daemon now, and give it: the daemon first, then guard, launcher and sandboxes."""
        assert node.process is not None
        pids = process_tree.descendants(node.process.pid)
        for pid in pids[1:]:
            if (began := began_at(pid)) is not None:
                self.seen[pid] = began
        self.launchers |= {pid for pid in pids if b"hansa.node.isolation.launcher" in command_of(pid)}
        return pids

    def survivors(self) -> dict[int, str]:
        """Who of those that were seen is still there."""
        return {pid: name_of(pid) for pid, began in self.seen.items() if began_at(pid) == began}

    def groups(self) -> list[str]:
        """Control groups of the launchers that were seen."""
        names = {f"hansa-{pid}-" for pid in self.launchers}
        return [str(path) for path in CGROUPS.glob("**/hansa-*") if any(path.name.startswith(n) for n in names)]

    def disks(self) -> list[str]:
        """Loop devices whose file lies in the test's own directory, named or not."""
        found = []
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                text = backing.read_text()
            except OSError:
                continue
            if text.startswith(str(self.scratch)):
                found.append(f"{backing.parts[3]}: {text.strip()}")
        return found

    def files(self, node: DemoNode) -> set[str]:
        """What lies where a run's things lie: temporary files, disks, unpacked code, half-written blobs."""
        data = Path(node.made.config.data_dir)
        places = (self.temporary, self.scratch, data / "runs", data / "blobs" / "new")
        return {str(path) for place in places if place.exists() for path in place.iterdir()} - self.usual

    def left(self, node: DemoNode, patience_s: float = 15.0, *, but: tuple[str, ...] = ()) -> dict[str, object]:
        """What is still there after a while, by kind; empty if all is as it should be.

        Who was killed cannot clear away: a daemon's unpacked code (``"code"``) and, if the launcher died with its
        guard, the empty control groups (``"groups"``) go when they come back.
        """
        deadline = time.monotonic() + patience_s
        while True:
            found = {
                "processes": self.survivors(),
                "groups": [] if "groups" in but else self.groups(),
                "disks": self.disks(),
                "files": {path for path in self.files(node) if not ("code" in but and "/runs/" in path)},
            }
            held = {kind: what for kind, what in found.items() if what}
            if not held or time.monotonic() > deadline:
                return held
            time.sleep(0.1)

    def forget(self) -> None:
        """Begin anew, with whatever is there now being none of ours."""
        self.seen.clear()
        self.launchers.clear()


def descriptors_of(pid: int) -> dict[str, int]:
    """How many descriptors of each kind a process holds."""
    counts: dict[str, int] = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            kind = str(link.readlink()).split(":", 1)[0]
        except OSError:
            continue
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def mounts_of(pid: int) -> set[str]:
    """Where something is mounted, as a process sees it."""
    return {line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}


def name_of(pid: int) -> str:
    """Its short name, or nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def command_of(pid: int) -> bytes:
    """Its command line, or nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def began_at(pid: int) -> str | None:
    """When it began, which tells it from a later one of the same number; nothing if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
