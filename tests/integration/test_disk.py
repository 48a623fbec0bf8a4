"""A run's real disk: what it writes is no memory, ends at the paid size, and leaves nothing whatever is killed."""

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
from integration.launcher_without_groups import start_launcher_without_groups
from integration.sandbox_harness import LIMITS, a_room, alive, an_order, guard_and_launcher, need_sandbox
from integration.test_launcher import SPEC

from hansa.node.devices.disk import IN_MEMORY, ON_DISK, close_disks, make_disk
from hansa.node.isolation.launcher_link import start_launcher
from hansa.node.isolation.launcher_protocol import Ended, Kill, Refused, Start, Started, receive, send
from hansa.node.isolation.preflight import check_sandbox
from hansa.scheduler.run import RunFailed, RunFinished, RunOutput

RUNNER = dataclasses.replace(SPEC, program="hansa.worker.runner", memory_bytes=1 << 30, scratch_bytes=32 << 20)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A directory for disks that no other test uses."""
    monkeypatch.setenv("HANSA_SCRATCH", str(tmp_path))
    try:
        close_disks({"": make_disk(1 << 20, tmp_path)})
    except OSError as error:
        pytest.skip(f"no disk can be made on this machine: {error}")
    need_sandbox()
    return tmp_path


def devices_in(directory):
    """The loop devices whose files are in a directory."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if file.read_text().startswith(f"{directory}/"):
                found.append(file.parent.parent.name)
        except OSError:
            continue  # it went this very moment
    return found


def gone_from(directory, within_s=5.0):
    deadline = time.monotonic() + within_s
    while devices_in(directory) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not devices_in(directory) and list(directory.iterdir()) == []


WRITE = """
import json, os
def main(ctx):
    found = {"bytes": 0}
    try:
        with open("/job/work/large", "wb") as file:
            while found["bytes"] < 3 << 30:
                found["bytes"] += file.write(bytes(1 << 20))
    except OSError as error:
        found["large"] = error.errno
    os.unlink("/job/work/large")
    made = 0
    try:
        while made < 1_000_000:
            os.close(os.open(f"/job/work/{made}", os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as error:
        found["many"] = error.errno
    found["made"] = made
    found["mounts"] = [line.split()[1:4] for line in open("/proc/self/mounts") if "/job/" in line]
    found["seen"] = os.listdir("/job/outputs")
    (ctx.outputs / "found.json").write_text(json.dumps(found))
    ctx.report(step=1)
"""


@pytest.mark.parametrize("launch", [start_launcher, start_launcher_without_groups], ids=["groups", "counting"])
def test_more_than_its_memory_may_be_written_and_no_more_than_was_paid_for(scratch, tmp_path_factory, launch):
    limits = dataclasses.replace(LIMITS, memory_bytes=800 << 20, scratch_bytes=1200 << 20)

    async def act():
        async with a_room(launch=launch) as room:
            order = an_order(tmp_path_factory.mktemp("order"), WRITE, limits=limits)
            await room.executor.start(order)
            await room.wait_for((RunFinished, RunFailed), within_s=120)
            assert isinstance(room.events[-1], RunFinished), room.events[-3:]
            (output,) = [event for event in room.events if isinstance(event, RunOutput)]
            return json.loads(room.blobs.kept[output.blob.root])

    found = trio.run(act)
    assert found["large"] == found["many"] == 28
    assert 0.95 * limits.scratch_bytes < found["bytes"] < limits.scratch_bytes
    assert found["made"] < limits.scratch_bytes // (16 << 10) + 1024
    mounts = {where: (kind, set(options.split(","))) for where, kind, options in found["mounts"]}
    for where in ("/job/work", "/job/outputs"):
        kind, options = mounts[where]
        assert kind == "ext4"
        assert {"nosuid", "nodev", "rw"} <= options
    assert found["seen"] == []
    assert gone_from(scratch)


def start_one(control, **changes):
    send(control, Start(run=b"run", spec=dataclasses.replace(RUNNER, **changes)))
    started, descriptors = receive(control)
    return started, [socket.socket(fileno=descriptor) for descriptor in descriptors]


@pytest.mark.parametrize("delay_ms", [0, 2, 5, 10, 500])
@pytest.mark.parametrize("victims", [("launcher",), ("guard",), ("guard", "launcher"), ("sandbox",)], ids="+".join)
def test_whatever_is_killed_no_disk_is_left(scratch, victims, delay_ms):
    process, control = start_launcher()
    with control:
        control.settimeout(20)
        started, lines = start_one(control)
        assert started.limits["disk"] == ON_DISK
        assert len(devices_in(scratch)) == 2
        time.sleep(delay_ms / 1000)
        guard, launcher = guard_and_launcher(os.getpid())
        pids = {"guard": guard, "launcher": launcher, "sandbox": started.pid}
        for victim in victims:
            os.kill(pids[victim], signal.SIGKILL)
        if victims == ("sandbox",):
            ended, _ = receive(control)
            assert isinstance(ended, Ended)
        for line in lines:
            line.close()
    process.wait(10)
    assert gone_from(scratch)
    deadline = time.monotonic() + 5
    while alive(started.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(started.pid)


def test_a_disk_goes_with_its_run_and_not_before(scratch):
    process, control = start_launcher()
    with control:
        control.settimeout(20)
        _started, lines = start_one(control)
        assert lines[0].recv(100)  # the runner says that it is ready
        assert len(devices_in(scratch)) == 2
        send(control, Kill(run=b"run"))
        ended, _ = receive(control)
        assert isinstance(ended, Ended)
        assert gone_from(scratch)
        lines[0].close()
    process.wait(10)


def test_a_disk_for_which_there_is_no_room_is_refused_in_words_and_leaves_nothing(scratch):
    process, control = start_launcher()
    with control:
        control.settimeout(20)
        refused, _ = start_one(control, scratch_bytes=1 << 49)
        assert isinstance(refused, Refused)
        assert "no room" in refused.reason
        started, lines = start_one(control)
        assert isinstance(started, Started)
        lines[0].close()
    process.wait(10)
    assert gone_from(scratch)


def test_where_no_disk_can_be_made_it_is_said_and_memory_is_used(monkeypatch, tmp_path):
    need_sandbox()
    monkeypatch.setenv("HANSA_SCRATCH", str(tmp_path / "absent"))
    report = check_sandbox()
    assert report.available, report.reason
    assert report.limits["disk"] == IN_MEMORY


def test_the_file_system_is_sound_and_as_large_as_was_said(scratch):
    for size in (1 << 20, (5 << 20) + 17, 100 << 20):
        disk = make_disk(size, scratch)
        checked = subprocess.run(["/sbin/e2fsck", "-fn", disk.device], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout
        assert Path("/sys/block", Path(disk.device).name, "size").read_text().strip() == str(size // 4096 * 8)
        close_disks({"": disk})
    assert gone_from(scratch)
