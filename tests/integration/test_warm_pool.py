"""Sandboxes that are prepared: a run begins in one at once, within its own limits, and nobody's remains reach it."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import trio
from integration.sandbox_harness import (
    LIMITS,
    WARM,
    a_room,
    alive,
    an_order,
    guard_and_launcher,
    need_sandbox,
    stands_ready,
)
from integration.test_launcher import SPEC

from hansa.node.isolation import process_tree
from hansa.node.isolation.launcher_link import start_launcher
from hansa.node.isolation.launcher_protocol import Adopt, Ended, Kill, Refused, Start, Started, receive, send
from hansa.scheduler.run import RunFailed, RunFinished, RunKept, RunOutput

LEAVE_AND_LOOK = """
import json, os, subprocess
PLACES = ("/job/work", "/job/outputs", "/tmp", "/dev/shm")
def main(ctx):
    found = {"here": os.getcwd()}
    for place in PLACES:
        found[place] = [name for name in os.listdir(place) if name.startswith("left")]
        open(f"{place}/left-behind", "w").write("x")
    found["commands"] = [open(f"/proc/{p}/cmdline").read() for p in os.listdir("/proc") if p.isdigit()]
    subprocess.Popen(["sleep", "1234"])
    found["room"] = os.statvfs("/job/work").f_blocks * os.statvfs("/job/work").f_frsize
    found["code"] = open("/job/code/job.py").read()[:5]
    try:
        open("/job/code/new", "w")
    except OSError as error:
        found["write"] = error.errno
    (ctx.outputs / "found.json").write_text(json.dumps(found))
    ctx.report(step=1)
"""
EAT = "def main(ctx):\n    held = []\n    while True:\n        held.append(bytearray(b'x' * (16 << 20)))\n"


def pool_processes():
    """Everything below this process' launcher."""
    _guard, launcher = guard_and_launcher(os.getpid())
    return process_tree.descendants(launcher)[1:]


def found_in(room, run):
    outputs = [event for event in room.events if isinstance(event, RunOutput) and event.run == run]
    (output,) = [event for event in outputs if event.path == "found.json"]
    return json.loads(room.blobs.kept[output.blob.root])


@pytest.mark.slow
@pytest.mark.trio
async def test_runs_begin_in_prepared_sandboxes_and_find_nothing_of_each_other(tmp_path):
    need_sandbox()
    limits = dataclasses.replace(LIMITS, scratch_bytes=100 << 20)
    async with a_room(**WARM) as room:
        for number in (1, 2):
            order = an_order(tmp_path, LEAVE_AND_LOOK, run=bytes([number]) * 32, limits=limits)
            await stands_ready(room, order)
            await room.executor.start(order)
            await room.wait_for((RunFinished, RunFailed), count=number)
            assert isinstance(room.events[-1], RunFinished), room.events[-3:]
            assert room.executor.pool.begun == number, room.words
            found = found_in(room, order.run)
            assert found["here"] == "/job/work"
            assert all(found[place] == [] for place in ("/job/work", "/job/outputs", "/tmp", "/dev/shm")), found
            assert not any("1234" in command for command in found["commands"])
            assert 0.9 * limits.scratch_bytes < found["room"] < limits.scratch_bytes, "the paid size, not another's"
            assert (found["code"], found["write"]) == ("\nimpo", 30)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_run_in_a_prepared_sandbox_has_its_own_limit_of_memory_and_a_kept_one_says_so_at_once(tmp_path):
    need_sandbox()
    limits = dataclasses.replace(LIMITS, memory_bytes=560 << 20, keep_failed_ms=20_000)
    async with a_room(**WARM) as room:
        order = an_order(tmp_path, EAT, limits=limits)
        await stands_ready(room, order)
        await room.executor.start(order)
        kept = await room.wait_for((RunKept, RunFailed))
        assert room.executor.pool.begun == 1, room.words
        assert (kept.kind, kept.reason) == ("out-of-memory", "it needed more than its 560 MiB of memory")
        await room.executor.stop(order.run, 0)


@pytest.mark.slow
@pytest.mark.trio
async def test_one_that_waits_costs_no_processor_time_and_goes_when_a_run_needs_its_memory(tmp_path):
    need_sandbox()
    order = an_order(tmp_path, "def main(ctx):\n    ctx.report(step=1)\n")
    async with a_room(warm=1, memory_bytes=2 << 30) as room:
        await stands_ready(room, order)
        pids = pool_processes()
        await trio.sleep(0.5)
        before = ticks(pids)
        await trio.sleep(3)
        assert ticks(pids) == before
        # An image makes a run cold, and this one's memory with the prepared one's would be more than there is.
        (tmp_path / "image").mkdir()
        large = dataclasses.replace(
            order, image=tmp_path / "image", limits=dataclasses.replace(LIMITS, memory_bytes=1500 << 20)
        )
        await room.executor.start(large)
        failed = await room.wait_for(RunFailed)
        assert failed.kind == "refused"
        assert room.executor.pool.begun == 0
        with trio.fail_after(30):
            while any(alive(pid) for pid in pids):  # noqa: ASYNC110 - nothing tells it
                await trio.sleep(0.05)


def ticks(pids):
    """Processor time of all of these."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields)


VICTIMS = (
    "init",
    pytest.param("gcs_server", marks=pytest.mark.long),
    pytest.param("raylet", marks=pytest.mark.long),
    "launcher",
)


@pytest.mark.slow
@pytest.mark.trio
@pytest.mark.parametrize("victim", VICTIMS)
async def test_whatever_of_a_prepared_sandbox_is_killed_nothing_is_left_and_the_next_run_goes_cold(tmp_path, victim):
    need_sandbox()
    order = an_order(tmp_path, "def main(ctx):\n    ctx.report(step=1)\n")
    async with a_room(**WARM) as room:
        await stands_ready(room, order)
        guard, launcher = guard_and_launcher(os.getpid())
        pids = process_tree.descendants(launcher)[1:]
        target = {"launcher": launcher, "init": pids[1]}.get(victim) or named(pids, victim)
        os.kill(target, signal.SIGKILL)
        if victim == "launcher":
            with trio.fail_after(30):
                while any(alive(pid) for pid in (*pids, guard)):  # noqa: ASYNC110 - nothing tells it
                    await trio.sleep(0.05)
            with trio.fail_after(30):
                while not room.executor._launcher.connected:  # noqa: ASYNC110 - the same
                    await trio.sleep(0.05)
        await room.executor.start(order)
        await room.wait_for((RunFinished, RunFailed))
        assert isinstance(room.events[-1], RunFinished), room.events[-3:]
        assert room.executor.pool.begun == 0
        with trio.fail_after(30):
            while any(alive(pid) for pid in pids):  # noqa: ASYNC110 - the same
                await trio.sleep(0.05)


def named(pids, name):
    (found,) = [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == name]
    return found


@pytest.mark.slow
@pytest.mark.trio
async def test_with_the_daemon_what_is_prepared_ends(tmp_path):
    need_sandbox()
    async with a_room(**WARM) as room:
        await stands_ready(room, an_order(tmp_path, ""))
        pids = pool_processes()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:  # noqa: ASYNC110 - the same
        await trio.sleep(0.02)
    assert not any(alive(pid) for pid in pids)


# The launcher alone.


PREPARED = dataclasses.replace(SPEC, program="hansa.worker.runner", code=None, memory_bytes=1 << 30, processes=600)


@pytest.fixture
def control():
    if os.getuid() != 0:
        pytest.skip("only a launcher that is root prepares sandboxes")
    need_sandbox()
    process, control = start_launcher()
    control.settimeout(60)
    with control:
        yield control
    process.wait(20)


def start(control, name, spec):
    """Start a sandbox and wait until its runner says that it is there."""
    send(control, Start(run=name, spec=spec))
    started, descriptors = receive(control)
    assert isinstance(started, Started), started
    line = socket.socket(fileno=descriptors[0])
    assert line.recv(100)
    return line


def test_a_sandbox_is_a_runs_once_and_never_again(control, tmp_path):
    run = dataclasses.replace(PREPARED, code=str(tmp_path))
    with start(control, b"prepared", PREPARED), start(control, b"cold", run):
        send(control, Adopt(run=b"one", prepared=b"prepared", spec=run))
        answer, descriptors = receive(control)
        assert isinstance(answer, Started), answer
        assert (answer.run, descriptors) == (b"one", [])
        for name in (b"prepared", b"one", b"cold", b"nobody"):
            send(control, Adopt(run=b"two", prepared=name, spec=run))
            answer, _ = receive(control)
            assert isinstance(answer, Refused), (name, answer)
        for name in (b"one", b"cold"):
            send(control, Kill(run=name))
            ended, _ = receive(control)
            assert isinstance(ended, Ended)
            assert ended.run == name


@pytest.mark.parametrize(
    "change",
    [
        {"gpu_minors": (0,)},
        {"cuda_devices": ("GPU-1",)},
        {"shared_memory_bytes": 1 << 20},
        {"tier": "gvisor"},
        {"program": "hansa.worker.probe"},
        {"environment": "/usr/lib"},
        {"image": "/usr"},
        {"code": "/nowhere"},
        {"code": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_sandbox_that_was_made_for_other_runs_is_refused(control, tmp_path, change):
    spec = dataclasses.replace(PREPARED, code=str(tmp_path))
    with start(control, b"prepared", PREPARED):
        send(control, Adopt(run=b"run", prepared=b"prepared", spec=dataclasses.replace(spec, **change)))
        told = {type(receive(control)[0]) for _ in range(2 if change == {"code": "/nowhere"} else 1)}
    assert Refused in told


SLOW = """#!/bin/sh
while [ ! -e {go} ]; do sleep 0.05; done
exec {program} "$@"
"""


def test_a_slow_disk_holds_up_nobody_else(tmp_path, monkeypatch):
    if os.getuid() != 0:
        pytest.skip("only a launcher that is root makes disks")
    need_sandbox()
    program = subprocess.run(
        ["sh", "-c", "PATH=$PATH:/usr/sbin:/sbin command -v mkfs.ext4"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not program:
        pytest.skip("there is no mkfs.ext4")
    go, wrapper = tmp_path / "go", tmp_path / "bin" / "mkfs.ext4"
    wrapper.parent.mkdir()
    wrapper.write_text(SLOW.format(go=go, program=program))
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    run = dataclasses.replace(PREPARED, code=str(tmp_path))
    go.touch()
    process, control = start_launcher()
    control.settimeout(60)
    with control:
        with start(control, b"first", run):
            go.unlink()
            for name in (b"slow", b"unwanted"):
                send(control, Start(run=name, spec=run))
            send(control, Kill(run=b"first"))
            ended, _ = receive(control)
            assert isinstance(ended, Ended), "before the slow ones have begun"
        send(control, Kill(run=b"unwanted"))
        refused, _ = receive(control)
        assert isinstance(refused, Refused)
        assert refused.run == b"unwanted"
        go.touch()
        started, descriptors = receive(control)
        assert isinstance(started, Started), started
        assert started.run == b"slow"
        for descriptor in descriptors:
            os.close(descriptor)
    process.wait(20)
