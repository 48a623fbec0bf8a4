"""Runs jobs in real sandboxes for the tests: a blob store in memory, an executor, and every event that it told."""

import os
import random
import shutil
import socket
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio

from hansa.node.isolation import process_tree
from hansa.node.isolation.preflight import SandboxReport, check_sandbox
from hansa.node.runs.executor import Executor
from hansa.node.runs.run_order import RunLimits, RunOrder
from hansa.node.runs.warm_pool import shape_of
from hansa.node.storage.blobs import BlobStore

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
    # A machine that cannot make a sandbox is one thing. A sandbox that can be made and leaks must never pass as that,
    # nor a launcher that fell over: one that the machine refuses something says so.
    assert "leaks" not in report.reason, report.reason
    assert "did not answer" not in report.reason, report.reason
    if not report.available:
        pytest.skip(f"no sandbox on this machine: {report.reason}")


class Kept(Mapping[bytes, bytes]):
    """The blobs of a store by their roots."""

    def __init__(self, store: BlobStore) -> None:
        self._folder = store.directory / "whole"

    def __getitem__(self, root: bytes) -> bytes:
        return (self._folder / root.hex()).read_bytes()

    def __iter__(self) -> Iterator[bytes]:
        return (bytes.fromhex(path.name) for path in self._folder.iterdir() if path.suffix != ".tree")

    def __len__(self) -> int:
        return sum(1 for _ in self)


class HarnessBlobs(BlobStore):
    """A real store in a directory that goes with it, which also gives what it holds."""

    def __init__(self) -> None:
        directory = tempfile.mkdtemp(prefix="hansa-blobs-")
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        super().__init__(Path(directory), quota_bytes=8 << 30)
        self.kept = Kept(self)


@dataclass
class Room:
    """An executor at work, and what it told."""

    executor: Executor
    blobs: HarnessBlobs
    events: list[Any] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

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
    clock: Callable[[], int] = lambda: int(trio.current_time() * 1000)  # noqa: E731
    blobs, events, words = HarnessBlobs(), [], []
    executor = Executor(tell=events.append, blobs=blobs, now_ms=clock, say=words.append, **settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(executor.serve)
        try:
            yield Room(executor=executor, blobs=blobs, events=events, words=words)
        finally:
            nursery.cancel_scope.cancel()


WARM = {"warm": 1, "memory_bytes": 64 << 30}
"""Settings of a room that keeps a sandbox prepared."""


async def stands_ready(room: Room, order: RunOrder, within_s: float = 120) -> None:
    """Wait until a sandbox is prepared that this order can take."""
    if os.getuid() != 0:
        pytest.skip("only a launcher that is root prepares sandboxes")
    shape = shape_of(order)
    assert shape is not None, "no order that could take one"
    await room.executor.pool.expect(shape)
    with trio.move_on_after(within_s):
        while not room.executor.pool.standing:  # noqa: ASYNC110 - nothing tells it
            await trio.sleep(0.02)
        return
    if any("control groups" in words for words in room.words):
        pytest.skip(f"no sandbox can be prepared here: {room.words}")
    raise AssertionError(f"nothing was prepared within {within_s} s, but {room.words}")


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


def server_of_the_host(address: str = "127.0.0.1") -> socket.socket:
    """A listener at a port that nothing in a sandbox takes for itself.

    Ray in there has ports that the kernel chose (from 32768 here) and workers' (10002 to 19999): an attack that meets
    one of those in its own network would seem to have met the host.
    """
    for _ in range(100):
        try:
            return socket.create_server((address, random.randrange(20_000, 32_000)))
        except OSError:
            continue
    raise AssertionError("no port is free below those that the kernel gives out")


def is_launcher(pid):
    try:
        return b"hansa.node.isolation.launcher" in Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return False  # it has ended


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
