"""``hansa exec`` as its user meets it: the real command over the real local API, and a program at the other end.

Between the API and the program stands everything but the network and the sandbox: both ends of the protocol, called
directly. With them it is tried in tests/e2e/test_way_out_and_shell.py.
"""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from kit.local_runs import SEEN_INSIDE, LocalRuns
from kit.memory_desk import MemoryDesk, job_view
from kit.memory_net import MemoryHub
from kit.memory_party import party
from kit.served_desk import served
from kit.trading import spec
from starlette.applications import Starlette

from hansa.node.api.http_api import build_api
from hansa.node.api.http_shell import shell_routes
from hansa.node.api.shell_desk import ShellDesk
from hansa.node.engine.state import NodeState
from hansa.node.runs.shell_service import ShellService
from hansa.proto.blob import BlobRef
from hansa.scheduler.job import plan

JOB, LEASE = b"\xab" * 32, b"L" * 32
PATIENCE_S = 60


@dataclass
class Far:
    """The far side, as the tests see it from another thread."""

    data: Path
    place: Path
    state: dict[str, Any]

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "hansa", "exec", JOB.hex()[:8], "--data", str(self.data), *words]

    def run(self, *words: str, typed: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(self.command(*words), input=typed, capture_output=True, timeout=PATIENCE_S, check=False)

    @property
    def open_shells(self) -> int:
        return int(self.state["service"].open_shells)

    def await_no_shells(self) -> None:
        deadline = time.monotonic() + 10
        while self.open_shells:
            assert time.monotonic() < deadline, "a shell is left"
            time.sleep(0.05)


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    monkeypatch.setenv("PYTHONPATH", SEEN_INSIDE)
    state: dict[str, Any] = {}
    place = tmp_path / "place"
    place.mkdir()

    @asynccontextmanager
    async def application() -> AsyncIterator[Starlette]:
        async with party(MemoryHub(), 1) as who, trio.open_nursery() as nursery:
            account = who.account.address
            runs = LocalRuns(LEASE, directory=place)
            service = ShellService(who.net, who.directory, runs, buyer_of={LEASE: account}.get, allowed=True)
            await nursery.start(service.serve)
            planned = plan(job=JOB, spec=spec(shards=3), package=BlobRef(root=b"p" * 32, size_bytes=1), at_ms=1).state
            waiting, running, lost = planned.shards
            shards = (
                waiting,
                replace(running, phase="running", lease=LEASE, provider=account, attempts=1),
                replace(lost, phase="lost", reason="it fell \x1b[31msilent"),
            )
            known = NodeState()
            known.jobs[JOB] = replace(planned, phase="running", shards=shards)
            # All that a desk of shells uses of a daemon; each part is a real one.
            daemon: Any = SimpleNamespace(state=known, account=who.account, shells=service)
            desk = MemoryDesk()
            desk.add(job_view(JOB.hex()))
            state.update(service=service, runs=runs, token=trio.lowlevel.current_trio_token())
            yield build_api(desk, more=shell_routes(ShellDesk(daemon)))
            nursery.cancel_scope.cancel()

    with served(tmp_path / "node", application) as data:
        yield Far(data=data, place=place, state=state)


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, command: list[str]) -> None:
        self.ours, self.theirs = pty.openpty()
        self.before = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(
            command, stdin=self.theirs, stdout=self.theirs, stderr=self.theirs, start_new_session=True
        )
        self.shown = b""

    def until(self, mark: bytes) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while mark not in self.shown:
            assert time.monotonic() < deadline, self.shown
            self.shown += os.read(self.ours, 4096)

    def type(self, data: bytes) -> None:
        os.write(self.ours, data)

    def end(self) -> int:
        status = self.process.wait(PATIENCE_S)
        os.set_blocking(self.ours, False)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.ours, 4096):
                self.shown += data
        assert termios.tcgetattr(self.theirs) == self.before, "the terminal is not as it was"
        os.close(self.ours)
        os.close(self.theirs)
        return status


def test_bytes_pass_through_a_pipeline_as_they_are(far: Far) -> None:
    every = bytes(range(256)) * 300
    done = far.run("--", "sh", "-c", "cat; echo wrong >&2; exit 6", typed=every)
    assert (done.stdout, done.stderr, done.returncode) == (every, b"wrong\n", 6)
    assert far.run("--shard", "1", "pwd").stdout == os.fsencode(far.place) + b"\n"
    assert far.run(typed=b"echo $((6 * 7))\n").stdout == b"42\n"
    far.await_no_shells()


def test_at_a_terminal_it_is_a_shell_with_the_terminals_size(far: Far) -> None:
    terminal = Terminal(far.command())
    terminal.type(b"stty -echo; stty size; echo rea''dy\r")
    terminal.until(b"ready")
    assert b"24 80" in terminal.shown
    terminal.type(b"exit 9\r")
    assert terminal.end() == 9


def test_ctrl_c_goes_to_the_far_side(far: Far) -> None:
    terminal = Terminal(far.command("--", "sh", "-c", "trap 'echo caught; exit 5' INT; echo ready; read x; read y"))
    terminal.until(b"ready")
    terminal.type(b"\x03")
    terminal.until(b"caught")
    assert terminal.end() == 5


@pytest.mark.parametrize("way_back", [b"\r~.", b"\x1d"])
def test_the_way_back_hangs_up_and_the_terminal_is_as_it_was(far: Far, way_back: bytes) -> None:
    terminal = Terminal(far.command("--", "sh", "-c", "echo ready; exec cat"))
    terminal.until(b"ready")
    terminal.type(way_back)
    assert terminal.end() == 255
    far.await_no_shells()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_no_shell_behind(far: Far, number: signal.Signals) -> None:
    terminal = Terminal(far.command("--", "sh", "-c", "echo ready; exec cat"))
    terminal.until(b"ready")
    assert far.open_shells == 1
    terminal.process.send_signal(number)
    if number == signal.SIGKILL:  # nobody can put a terminal right after that
        terminal.process.wait(PATIENCE_S)
        termios.tcsetattr(terminal.theirs, termios.TCSANOW, terminal.before)
    assert terminal.end() in (128 + number, -number)
    far.await_no_shells()


def test_a_reader_that_goes_ends_the_pipeline(far: Far) -> None:
    command = " ".join([*far.command("--", "yes"), "| head -n 1"])
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.stdout == b"y\n"
    far.await_no_shells()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shard", "0", "true"], b"shard 0 does not run, it is waiting"),
        (["--shard", "2", "true"], b"shard 2 does not run, it is lost: it fell \xef\xbf\xbd[31msilent"),
        (["--shard", "9", "true"], b"there is no shard 9: the job has shards 0 to 2"),
        (["--", "echo", "x" * 5000], b"the command is too long"),
        (["--", *["x"] * 65], b"the command is too long"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_a_hint(far: Far, words: list[str], said: bytes) -> None:
    done = far.run(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count(b"\n") == 2
    assert b"\x1b" not in done.stderr
    assert done.stdout == b""


def test_the_run_that_ends_takes_the_shell_with_it(far: Far) -> None:
    terminal = Terminal(far.command("--", "sh", "-c", "echo ready; exec cat"))
    terminal.until(b"ready")
    far.state["token"].run_sync_soon(far.state["runs"].end, LEASE)
    assert terminal.end() == 2
    assert b"the run ended, and the shell with it" in terminal.shown
    refused = far.run("true")
    assert b"the provider says: the run is not there, or has ended" in refused.stderr
