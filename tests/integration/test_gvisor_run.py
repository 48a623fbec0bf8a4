"""Runs in gVisor: what a hostile job tries must fail there as it does in bubblewrap, and nothing may be left."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import threading
import time
from functools import cache
from pathlib import Path

import pytest
import trio
from integration.launcher_without_groups import start_launcher_without_groups
from integration.sandbox_harness import (
    LIMITS,
    a_room,
    alive,
    an_order,
    guard_and_launcher,
    need_sandbox,
    sandbox_report,
    server_of_the_host,
)
from integration.test_launcher import SPEC, Service, connect_as, start_launcher_beside

from hansa.node.isolation import process_tree
from hansa.node.isolation.launcher_link import start_launcher
from hansa.node.isolation.launcher_protocol import Ended, Kill, Refused, Start, Started, receive, send
from hansa.node.isolation.preflight import check_sandbox
from hansa.proto.gang import Gang
from hansa.proto.workload import Parameter
from hansa.scheduler.run import RunFailed, RunFinished, RunOutput

RUNNER = dataclasses.replace(
    SPEC, program="hansa.worker.runner", tier="gvisor", memory_bytes=1 << 30, scratch_bytes=32 << 20, processes=1000
)
MEMORY = 2 << 30
READY_S = 60


@cache
def report():
    return check_sandbox(tier="gvisor")


def need_gvisor():
    """Skip where it cannot be had, and fail where it could be and was found wanting."""
    need_sandbox()
    if report().available:
        return
    could = shutil.which("runsc") and os.getuid() == 0 and "cgroup" in sandbox_report().limits["memory"]
    assert not could, report().reason
    pytest.skip(f"no gVisor on this machine: {report().reason}")


LOOK = """
import json, os, socket
from pathlib import Path

def outcome(attempt, *arguments):
    try:
        attempt(*arguments)
    except OSError as error:
        return error.errno
    return "done"

def read(path):
    Path(path).read_bytes() if not Path(path).is_dir() else os.listdir(path)

def connect(address, family=socket.AF_INET):
    with socket.socket(family) as line:
        line.settimeout(2)
        line.connect(address)

def fill(directory):
    written, path = 0, Path(directory, "filler")
    try:
        with path.open("wb") as file:
            while written < 1000:
                file.write(bytes(1 << 20))
                file.flush()
                written += 1
    except OSError as error:
        return [written, error.errno]
    finally:
        path.unlink()
    return [written, "done"]

def use_device():
    os.mknod("/tmp/disk", 0o60600, 2049)  # its kernel lets it, and has no such disk
    os.close(os.open("/tmp/disk", os.O_RDONLY))

def look(ctx):
    p = ctx.parameters
    import hansa.proto.frames, ray
    with socket.socket(socket.AF_UNIX) as way_out:
        way_out.connect("/run/hansa/egress.sock")
        answer = way_out.recv(100).decode()
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
    found = {
        "caps": [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")],
        "kernel": os.uname().release, "answer": answer, "ray": ray.__file__, "hansa": hansa.proto.frames.__file__,
        "read": {path: outcome(read, path) for path in p["secrets"]},
        "write": {path: outcome(lambda path: open(path, "ab").close(), path) for path in p["targets"]},
        "loopback": outcome(connect, ("127.0.0.1", p["port"])), "outside": outcome(connect, ("192.0.2.1", 80)),
        "abstract": outcome(connect, "\\0" + p["abstract"], socket.AF_UNIX),
        "signal": outcome(os.kill, p["host_pid"], 0), "interfaces": [name for _, name in socket.if_nameindex()],
        "pids": sum(entry.name.isdigit() for entry in Path("/proc").iterdir()),
        "setuid": [outcome(os.setgroups, [5]), outcome(os.chroot, "/job"), outcome(use_device)],
        "environment": sorted(os.environ), "inputs": Path("/job/inputs/data.txt").read_text(),
        "full": {name: fill(name) for name in ("/job/work", "/job/outputs", "/tmp", "/dev/shm")},
    }
    (ctx.outputs / "found.json").write_text(json.dumps(found))
    os.symlink("/etc/passwd", ctx.outputs / "link")
    ctx.report(step=1)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """One run that looks for ways out, and a host with something to find."""
    need_gvisor()
    directory = tmp_path_factory.mktemp("gvisor")
    (directory / "inputs").mkdir()
    (directory / "inputs" / "data.txt").write_text("the data")
    (directory / "secret").write_text("secret")
    server = server_of_the_host()
    hidden = socket.socket(socket.AF_UNIX)
    hidden.bind(f"\0hansa-test-gvisor-{os.getpid()}")
    hidden.listen()
    way_out = socket.socket(socket.AF_UNIX)
    way_out.bind(str(directory / "egress.sock"))
    (directory / "egress.sock").chmod(0o666)
    way_out.listen()

    def answer():
        with way_out.accept()[0] as connection:
            connection.sendall(b"the outside")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    facts = {
        "port": server.getsockname()[1],
        "abstract": f"hansa-test-gvisor-{os.getpid()}",
        "host_pid": os.getpid(),
        "secrets": [str(directory / "secret"), "/etc/shadow", "/root", "/var/log", "/dev/kmsg", "/dev/mem", "/mnt",
                    f"/proc/{os.getpid()}/environ", "/opt/hansa/hansa/node", "/sys/kernel/debug", "/run/systemd"],
        "targets": ["/proc/sys/kernel/core_pattern", "/usr/x", "/etc/x", "/x", "/opt/x", "/job/x", "/job/code/job.py",
                    "/opt/hansa/hansa/proto/frames.py", "/etc/passwd", "/job/inputs/x", "/opt/site0/x"],
    }  # fmt: skip

    async def act():
        async with a_room() as room:
            parameters = tuple(Parameter(name=name, value=json.dumps(value)) for name, value in facts.items())
            order = an_order(
                directory,
                LOOK,
                entry="job.py:look",
                parameters=parameters,
                limits=dataclasses.replace(LIMITS, memory_bytes=MEMORY, processes=4000, output_bytes=4 << 20),
                tier="gvisor",
                inputs=directory / "inputs",
                egress=directory / "egress.sock",
            )
            await room.executor.start(order)
            await room.wait_for((RunFinished, RunFailed), within_s=150)
            assert isinstance(room.events[-1], RunFinished), room.events[-5:]
            return {
                event.path: room.blobs.kept[event.blob.root] for event in room.events if isinstance(event, RunOutput)
            }

    outputs = trio.run(act)
    thread.join(5)
    for each in (server, hidden, way_out):
        each.close()
    assert set(outputs) == {"found.json"}, "a link among the outputs is not followed"
    return json.loads(outputs["found.json"])


@pytest.mark.slow
class TestInside:
    """Of one run that took its time to start."""

    def test_it_has_another_kernel_and_no_capability(self, found):
        assert found["kernel"] != os.uname().release
        assert found["caps"] == [0, 0, 0, 0]
        assert "done" not in found["setuid"]

    def test_it_neither_reads_nor_writes_what_is_not_its_own(self, found):
        assert {path: how for path, how in found["read"].items() if how == "done"} == {}
        assert {path: how for path, how in found["write"].items() if how == "done"} == {}

    def test_it_reaches_nobody_but_through_its_way_out(self, found):
        assert "done" not in (found["loopback"], found["outside"], found["abstract"], found["signal"])
        assert found["interfaces"] == ["lo"]
        assert found["pids"] < 30
        assert found["answer"] == "the outside"

    def test_it_is_furnished_as_every_sandbox(self, found):
        assert found["inputs"] == "the data"
        assert found["ray"] == "/opt/hansa/ray/__init__.py"
        assert found["hansa"] == "/opt/hansa/hansa/proto/frames.py"
        assert not {name for name in found["environment"] if name.startswith(("HANSA", "SSH", "SUDO"))}

    @pytest.mark.parametrize(
        ("directory", "most_mib"), [("/job/work", 64), ("/job/outputs", 4), ("/tmp", 256), ("/dev/shm", 192)]
    )
    def test_filling_a_directory_ends_at_its_size(self, found, directory, most_mib):
        written, how = found["full"][directory]
        assert how == 28
        assert written <= most_mib


def runsc_processes(pids):
    return {pid for pid in pids if alive(pid)}


@pytest.mark.parametrize("delay_ms", [0, 100, 1500])
@pytest.mark.parametrize("victims", [("launcher",), ("guard",), ("guard", "launcher"), ("sandbox",)], ids="+".join)
def test_whatever_is_killed_nothing_of_it_is_left(victims, delay_ms):
    need_gvisor()
    process, control = start_launcher()
    with control:
        control.settimeout(READY_S)
        send(control, Start(run=b"run", spec=RUNNER))
        started, descriptors = receive(control)
        assert isinstance(started, Started)
        time.sleep(delay_ms / 1000)
        everything = set(process_tree.descendants(started.pid))
        guard, launcher = guard_and_launcher(os.getpid())
        pids = {"guard": guard, "launcher": launcher, "sandbox": started.pid}
        for victim in victims:
            os.kill(pids[victim], signal.SIGKILL)
        if victims == ("sandbox",):
            assert isinstance(receive(control)[0], Ended)
            assert not runsc_processes(everything)
        with socket.socket(fileno=descriptors[0]) as line:
            line.settimeout(10)
            while line.recv(65536):  # nobody holds the other end any more
                pass
    process.wait(10)
    deadline = time.monotonic() + 5
    while runsc_processes(everything) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runsc_processes(everything)


def test_nothing_that_the_launcher_was_given_is_open_in_any_process_of_a_sandbox(tmp_path):
    need_gvisor()
    with Path(tmp_path, "spare").open("wb") as spare:
        process, control = start_launcher_beside(spare.fileno())
    with control:
        send(control, Start(run=b"run", spec=RUNNER))
        started, descriptors = receive(control)
        assert isinstance(started, Started)
        with socket.socket(fileno=descriptors[0]) as line:
            line.settimeout(READY_S)
            assert line.recv(100)
            guard, launcher = guard_and_launcher(os.getpid())
            below = process_tree.descendants(guard)
            assert len(below) > 3, "those of the sandbox, too"
            holders = {pid for pid in below if str(tmp_path / "spare") in opened_by(pid)}
        assert holders == {guard, launcher}
    process.wait(20)


def opened_by(pid):
    found = set()
    with contextlib.suppress(OSError):  # it has ended
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(entry.readlink()))
    return found


def test_a_run_is_ended_by_one_order():
    need_gvisor()
    process, control = start_launcher()
    with control:
        control.settimeout(READY_S)
        send(control, Start(run=b"run", spec=RUNNER))
        started, descriptors = receive(control)
        with socket.socket(fileno=descriptors[0]) as line:
            line.settimeout(READY_S)
            assert line.recv(100)  # the runner says that it is ready, and goes when nobody is there any more
            everything = process_tree.descendants(started.pid)
            assert len(everything) > 3
            send(control, Kill(run=b"run"))
            ended, _ = receive(control)
        assert isinstance(ended, Ended)
        assert not runsc_processes(everything)
    process.wait(10)


EAT = "def main(ctx):\n    held = []\n    while True:\n        held.append(bytearray(b'x' * (16 << 20)))\n"


@pytest.mark.slow
@pytest.mark.trio
async def test_a_memory_bomb_is_told_as_what_it_is(tmp_path):
    need_gvisor()
    async with a_room() as room:
        limits = dataclasses.replace(LIMITS, memory_bytes=1 << 30, processes=4000)
        await room.executor.start(an_order(tmp_path, EAT, tier="gvisor", limits=limits))
        failed = await room.wait_for(RunFailed, within_s=150)
    assert failed.kind == "out-of-memory", failed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu_minors": (0,)}, "no GPUs"),
        ({"gang": Gang(place=0, workers=(1, 1), gpus=(0, 0), token="0" * 64)}, "several machines"),
    ],
    ids=["gpus", "gang"],
)
def test_what_it_cannot_have_is_refused_in_words(change, words):
    need_gvisor()
    process, control = start_launcher()
    with control:
        control.settimeout(READY_S)
        send(control, Start(run=b"run", spec=dataclasses.replace(RUNNER, **change)))
        refused, _ = receive(control)
        assert isinstance(refused, Refused)
        assert words in refused.reason
    process.wait(10)


def test_where_nobody_could_count_its_memory_it_is_refused():
    need_gvisor()
    process, control = start_launcher_without_groups()
    with control:
        control.settimeout(READY_S)
        send(control, Start(run=b"run", spec=RUNNER))
        refused, _ = receive(control)
        assert isinstance(refused, Refused)
        assert "control groups" in refused.reason
    process.wait(10)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can connect as another user")
def test_a_daemon_of_another_user_can_have_it(tmp_path):
    need_gvisor()
    with Service(tmp_path) as service:
        tmp_path.chmod(0o755)
        os.chown(service.path, 4242, -1)
        found = check_sandbox(launch=lambda: (None, connect_as(4242, service.path)), tier="gvisor")
    assert found.available, found.reason
