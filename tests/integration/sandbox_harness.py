"""Runs jobs in real sandboxes for the tests: a blob store in memory, an executor, and every event that it told."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio
from blake3 import blake3

from hansa.node import process_tree
from hansa.node.executor import Executor
from hansa.node.run_order import RunLimits, RunOrder
from hansa.node.sandbox import SandboxReport, check_sandbox
from hansa.proto.blob import BlobRef

LIMITS = RunLimits(
    memory_bytes=1 << 30,
    cpu_millis=2000,
    processes=800,
    scratch_bytes=64 << 20,
    wall_ms=90_000,
    stall_ms=60_000,
    state_bytes=32 << 20,
    output_bytes=8 << 20,
    log_bytes=256 << 10,
)


@cache
def sandbox_report() -> SandboxReport:
    return check_sandbox()


def need_sandbox() -> None:
    report = sandbox_report()
    if not report.available:
        pytest.skip(f"no sandbox on this machine: {report.reason}")


class MemoryBlobs:
    """Keeps blobs in memory; the names are made up."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}

    def put_bytes(self, data: bytes) -> BlobRef:
        root = blake3(data).digest()
        self.kept[root] = data
        return BlobRef(root=root, size_bytes=len(data))

    def read_bytes(self, ref: BlobRef, limit: int) -> bytes:
        data = self.kept[ref.root]
        assert len(data) <= limit
        return data


@dataclass
class Room:
    """An executor at work, and what it told."""

    executor: Executor
    blobs: MemoryBlobs
    events: list[Any] = field(default_factory=list)

    async def wait_for(self, kind: type | tuple[type, ...], count: int = 1, within_s: float = 60) -> Any:
        """The ``count``-th event of a kind; if the run ends before, the test fails with what was told."""
        with trio.move_on_after(within_s):
            while True:
                found = [event for event in self.events if isinstance(event, kind)]
                if len(found) >= count:
                    return found[count - 1]
                if any(type(event).__name__ == "RunFailed" for event in self.events) and not self.executor.running:
                    break  # whatever was waited for, it will not come
                await trio.sleep(0.02)
        raise AssertionError(f"no {kind} within {within_s} s, but {self.events[-20:]}")

    @property
    def log(self) -> str:
        return "".join(event.text for event in self.events if type(event).__name__ == "RunLogged")


@asynccontextmanager
async def a_room(**settings: Any) -> AsyncIterator[Room]:
    room = Room(executor=None, blobs=MemoryBlobs())  # type: ignore[arg-type]
    clock: Callable[[], int] = lambda: int(trio.current_time() * 1000)  # noqa: E731
    room.executor = Executor(tell=room.events.append, blobs=room.blobs, now_ms=clock, **settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(room.executor.serve)
        try:
            yield room
        finally:
            nursery.cancel_scope.cancel()


def an_order(directory: Path, code: str, **changes: Any) -> RunOrder:
    """A run of one shard whose code is this text with a function ``main``."""
    folder = directory / "code"
    folder.mkdir(exist_ok=True)
    (folder / "job.py").write_text(code)
    facts: dict[str, Any] = {
        "run": b"r" * 32,
        "entry": "job.py:main",
        "code": folder,
        "inputs": None,
        "shard": 0,
        "shards": 1,
        "workers": 1,
        "parameters": (),
        "limits": LIMITS,
    }
    return RunOrder(**{**facts, **changes})


def is_launcher(pid):
    return b"hansa.node.launcher" in Path("/proc", str(pid), "cmdline").read_bytes()


def guard_and_launcher(pid):
    """The launcher below a process, and its parent that watches over it."""
    # Below the launcher may be one that looks like it still: a child that has not become bubblewrap yet.
    guard, launcher, *_ = [one for one in process_tree.descendants(pid) if is_launcher(one)]
    assert parent_of(launcher) == guard
    return guard, launcher


def parent_of(pid):
    return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])


def alive(pid):
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
