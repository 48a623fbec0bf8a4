"""Nothing outlives a launcher, and what it counts by itself is what the run uses: as root and as an ordinary user."""

import dataclasses
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import trio
from integration.launcher_unfurnished import start_unfurnished_launcher
from integration.launcher_without_groups import start_launcher_without_groups
from integration.sandbox_harness import LIMITS, a_room, alive, an_order, guard_and_launcher, need_sandbox
from integration.test_launcher import SPEC

from hansa.node.isolation import process_tree
from hansa.node.isolation.confine import own_processes
from hansa.node.isolation.launcher import WATCH_S
from hansa.node.isolation.launcher_link import start_launcher
from hansa.node.isolation.launcher_protocol import Ended, Refused, Start, Started, receive, send
from hansa.scheduler.run import RunFailed, RunFinished, RunProgressed

# The size of /dev/shm stands in bubblewrap's arguments, and so tells these sandboxes from all others.
SHARED_MEMORY_BYTES = SPEC.shared_memory_bytes + os.getpid()
MARK = str(SHARED_MEMORY_BYTES).encode()
RUNNER = dataclasses.replace(
    SPEC, program="hansa.worker.runner", memory_bytes=1 << 30, shared_memory_bytes=SHARED_MEMORY_BYTES
)
DELAYS_MS = (0, 3, 12, 40)


@pytest.fixture(params=[start_launcher, start_launcher_without_groups], ids=["groups", "counting"])
def launcher(request):
    """A launcher and its control socket; whatever the test does to it, both are gone afterwards."""
    need_sandbox()
    process, control = request.param()
    control.settimeout(20)
    try:
        yield process, control
    finally:
        control.close()
        process.kill()
        process.wait()


@pytest.mark.parametrize("delay_ms", DELAYS_MS)
def test_when_the_outer_process_dies_at_whatever_moment_the_run_ends_and_nothing_is_left(launcher, delay_ms):
    _process, control = launcher
    send(control, Start(run=b"run", spec=RUNNER))
    started, descriptors = receive(control)
    assert isinstance(started, Started)
    with socket.socket(fileno=descriptors[0]) as line:
        time.sleep(delay_ms / 1000)
        os.kill(started.pid, signal.SIGKILL)
        ended, _ = receive(control)
        assert isinstance(ended, Ended)
        assert left() == set()
        line.settimeout(5)
        while line.recv(65536):  # nobody holds the other end any more
            pass


@pytest.mark.parametrize("victim", ["launcher", "guard"])
@pytest.mark.parametrize("delay_ms", DELAYS_MS)
def test_when_the_launcher_dies_at_whatever_moment_nothing_is_left(launcher, delay_ms, victim):
    process, control = launcher
    send(control, Start(run=b"one", spec=RUNNER))
    started, descriptors = receive(control)
    guard, serving = guard_and_launcher(os.getpid())
    send(control, Start(run=b"two", spec=RUNNER))
    with socket.socket(fileno=descriptors[0]) as line:
        time.sleep(delay_ms / 1000)
        os.kill(serving if victim == "launcher" else guard, signal.SIGKILL)
        assert process.wait(10) == (0 if victim == "launcher" else -signal.SIGKILL)
        line.settimeout(5)
        while line.recv(65536):
            pass
    assert still_left(started.pid) == set()


@pytest.mark.parametrize("victims", [("launcher",), ("guard",), ("guard", "launcher"), ("sandbox",)], ids="+".join)
@pytest.mark.parametrize(("where", "processes"), [("outer", 1), ("inner", 2)])
def test_what_is_not_furnished_yet_dies_with_whoever_is_killed(victims, where, processes):
    need_sandbox()
    if where == "inner" and len(victims) == 2 and not makes_process_namespaces():
        pytest.skip("none but root's launcher makes process namespaces, and root not everywhere")
    process, control, awaiting = start_unfurnished_launcher(where)
    with control, os.fdopen(awaiting, "wb"):
        control.settimeout(20)
        send(control, Start(run=b"run", spec=RUNNER))
        started, descriptors = receive(control)
        assert isinstance(started, Started)
        deadline = time.monotonic() + 10
        while len(left()) < processes and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(left()) == processes
        guard, launcher = guard_and_launcher(os.getpid())
        pids = {"guard": guard, "launcher": launcher, "sandbox": started.pid}
        for victim in victims:
            os.kill(pids[victim], signal.SIGKILL)
        assert still_left(started.pid) == set()
        if victims == ("sandbox",):
            ended, _ = receive(control)
            assert isinstance(ended, Ended)
        os.close(descriptors[0])
    process.wait(10)


def test_a_sandbox_whose_end_nobody_would_see_is_ended_at_once():
    need_sandbox()
    process, control, awaiting = start_unfurnished_launcher("unwatched")
    with control, os.fdopen(awaiting, "wb"):
        control.settimeout(20)
        send(control, Start(run=b"run", spec=RUNNER))
        refused, _ = receive(control)
        assert isinstance(refused, Refused)
        assert "Too many open files" in refused.reason
        _guard, launcher = guard_and_launcher(os.getpid())
        assert [pid for pid in process_tree.descendants(launcher) if pid != launcher and alive(pid)] == []
    process.wait(10)


def test_a_launcher_that_is_told_to_end_ends_its_sandboxes_first(launcher):
    process, control = launcher
    send(control, Start(run=b"run", spec=RUNNER))
    started, descriptors = receive(control)
    process.terminate()
    assert process.wait(10) == 0
    assert not alive(started.pid)
    assert left() == set()
    ended, _ = receive(control)
    assert isinstance(ended, Ended)
    os.close(descriptors[0])


@pytest.mark.trio
async def test_a_run_that_fits_is_not_ended_for_what_the_host_keeps_in_its_own_directories(tmp_path):
    need_sandbox()
    code = "import time\ndef main(ctx):\n    time.sleep(1.5)\n    ctx.report(step=1)\n"
    async with a_room(launch=start_launcher_without_groups) as room:
        await trio.sleep(2 * WATCH_S)  # a launcher that had nothing to do counts a new run at once
        await room.executor.start(an_order(tmp_path, code, workers=2))
        await room.wait_for((RunFinished, RunFailed))
    assert isinstance(room.events[-1], RunFinished), room.events[-1]


USES = {
    "memory of its own": "held = bytearray(b'x' * (700 << 20))",
    "files": (
        "for path in ('/tmp/x', '/dev/shm/x', '/job/work/x'):\n"
        "        with open(path, 'wb') as file:\n"
        "            for _ in range(180):\n"
        "                file.write(bytes(1 << 20))"
    ),
}


@pytest.mark.trio
@pytest.mark.parametrize("use", USES)
async def test_a_run_that_does_not_fit_is_ended_by_counting(tmp_path, monkeypatch, use):
    need_sandbox()
    monkeypatch.setenv("HANSA_SCRATCH", str(tmp_path / "absent"))  # so that no file is on a disk
    code = (
        f"import time\ndef main(ctx):\n    ctx.report(step=1)\n    time.sleep(1)\n    {USES[use]}\n    time.sleep(30)\n"
    )
    limits = dataclasses.replace(LIMITS, memory_bytes=800 << 20, scratch_bytes=256 << 20)
    async with a_room(launch=start_launcher_without_groups) as room:
        await room.executor.start(an_order(tmp_path, code, limits=limits))
        await room.wait_for(RunProgressed)
        await room.wait_for((RunFinished, RunFailed), within_s=20)
    assert isinstance(room.events[-1], RunFailed)
    assert room.events[-1].kind == "out-of-memory"


def makes_process_namespaces():
    if os.getuid() != 0:
        return False
    pid = os.fork()
    if pid == 0:
        with own_processes() as had:
            os._exit(0 if had else 1)
    _, status = os.waitpid(pid, 0)
    return status == 0


def left():
    """Every process of bubblewrap's that was made for a test of this file, wherever it hangs in the tree."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            try:
                command = entry.joinpath("cmdline").read_bytes()
            except OSError:
                continue
            if MARK in command.split(b"\0"):
                found.add(int(entry.name))
    return found


def still_left(outer, within_s=5.0):
    """Who is there after a while; the outer process may not have become bubblewrap yet."""
    deadline = time.monotonic() + within_s
    while (found := left() | {pid for pid in (outer,) if alive(pid)}) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found
