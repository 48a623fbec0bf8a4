"""The launcher as a unit of its own: a socket in the file system, and whoever connects."""

import contextlib
import dataclasses
import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import pytest
from integration.sandbox_harness import alive, guard_and_launcher, need_sandbox

import hansa
from hansa.node.isolation import launcher_link, process_tree
from hansa.node.isolation.launcher_link import connect_launcher, launch_with
from hansa.node.isolation.launcher_protocol import Ended, Kill, Refused, Start, Started, receive, send
from hansa.node.isolation.preflight import check_sandbox
from hansa.node.isolation.sandbox import SandboxSpec

SPEC = SandboxSpec(
    program="hansa.worker.probe",
    code=str((Path(hansa.__file__).resolve().parent / "worker").resolve()),
    inputs=None,
    memory_bytes=512 << 20,
    cpu_millis=1000,
    processes=64,
    scratch_bytes=1 << 20,
    output_bytes=1 << 20,
    gpu_minors=(),
)


class Service:
    """A launcher that listens."""

    def __init__(self, directory, umask=-1):
        self.path = str(directory / "launcher.sock")
        self.process = subprocess.Popen([sys.executable, "-m", "hansa.node.isolation.launcher", self.path], umask=umask)

    def __enter__(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                connect_launcher(self.path).close()
            except OSError:
                time.sleep(0.02)
            else:
                return self
        raise AssertionError("no launcher within 20 s")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("changes", [{"scratch_bytes": 0}, {"output_bytes": 1 << 50}, {"memory_bytes": -1}])
def test_an_order_for_a_sandbox_that_cannot_be_is_refused_and_the_others_go_on(tmp_path, changes):
    """The launcher took it for a daemon that has gone, and ended all that it had."""
    need_sandbox()
    with Service(tmp_path) as service, connect_launcher(service.path) as control:
        control.settimeout(20)
        send(control, Start(run=b"odd", spec=dataclasses.replace(SPEC, **changes)))
        refused, _ = receive(control)
        assert isinstance(refused, Refused)
        assert refused.run == b"odd"
        send(control, Start(run=b"sound", spec=SPEC))
        started, descriptors = receive(control)
        assert isinstance(started, Started)
        for descriptor in descriptors:
            os.close(descriptor)


def test_only_its_owner_and_their_group_connect_whoever_starts_it(tmp_path):
    need_sandbox()
    with Service(tmp_path, umask=0) as service:
        assert Path(service.path).stat().st_mode & 0o007 == 0


def told_by(descriptors):
    """What a probe says, to its end."""
    with socket.socket(fileno=descriptors[0]) as line:
        said = b""
        while piece := line.recv(65536):
            said += piece
    return msgpack.unpackb(said)


@contextlib.contextmanager
def a_probes_line(process, control):
    """The line of a probe in a sandbox of this launcher's, which ends with the block."""
    with control:
        control.settimeout(20)
        send(control, Start(run=b"run", spec=SPEC))
        started, descriptors = receive(control)
        assert isinstance(started, Started)
        yield descriptors
    process.wait(20)


def flags_of(info):
    """The flags of an open descriptor; none of one that was closed meanwhile."""
    with contextlib.suppress(OSError):
        return [int(line.split()[1], 8) for line in info.read_text().splitlines() if line.startswith("flags:")]
    return []


def test_what_the_launcher_has_open_goes_no_further():
    """Whoever has its line to the daemon takes orders for others' sandboxes, and tells the daemon what it likes."""
    need_sandbox()
    with a_probes_line(*launcher_link.start_launcher()) as descriptors:
        told_by(descriptors)
        _guard, launcher = guard_and_launcher(os.getpid())
        infos = [info for info in Path(f"/proc/{launcher}/fdinfo").iterdir() if int(info.name) > 2]
        flags = [flag for info in infos for flag in flags_of(info)]
    assert len(flags) > 1
    assert all(flag & os.O_CLOEXEC for flag in flags)


def start_launcher_beside(spare):
    """A launcher that whoever started it gave something more, as a shell or another service manager may: twice."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    high = fcntl.fcntl(spare, fcntl.F_DUPFD_CLOEXEC, 300)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hansa.node.isolation.launcher", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), spare, high),
        )
    os.close(high)
    ours.settimeout(20)
    return process, ours


def test_a_sandbox_inherits_nothing_whatever_its_launcher_was_given(tmp_path):
    need_sandbox()
    with Path(tmp_path, "spare").open("wb") as spare:
        launcher = start_launcher_beside(spare.fileno())
    with a_probes_line(*launcher) as descriptors:
        assert told_by(descriptors)["inherited"] == []


def test_nobody_sends_the_daemon_descriptors_over_a_runners_line():
    """Some of them take as long to be closed as their sender likes."""
    need_sandbox()
    with (
        a_probes_line(*launcher_link.start_launcher()) as descriptors,
        socket.socket(fileno=descriptors[0]) as line,
    ):
        assert passes_rights(line) == 0


def passes_rights(end):
    """Whether descriptors may be sent to this end; only kernels since 6.16 can say no."""
    try:
        return end.getsockopt(socket.SOL_SOCKET, 83)
    except OSError:
        pytest.skip("this kernel has no SO_PASSRIGHTS")


def test_two_daemons_are_served_at_once_and_each_run_is_told_to_its_own(tmp_path):
    need_sandbox()
    with Service(tmp_path) as service, connect_launcher(service.path) as one, connect_launcher(service.path) as other:
        for control in (one, other):
            control.settimeout(20)
            send(control, Start(run=b"same name", spec=SPEC))
        for control in (one, other):
            started, descriptors = receive(control)
            assert isinstance(started, Started)
            assert told_by(descriptors)["uid"] == 1000
            ended, _ = receive(control)
            assert isinstance(ended, Ended)
            assert ended.status == 0


def test_a_daemon_that_hangs_up_ends_its_sandboxes_and_not_the_others(tmp_path):
    need_sandbox()
    spec = dataclasses.replace(SPEC, program="hansa.worker.runner", code=str(tmp_path), memory_bytes=1 << 30)
    with Service(tmp_path) as service, connect_launcher(service.path) as stays:
        leaves = connect_launcher(service.path)
        pids, lines = [], []
        for control in (stays, leaves):
            control.settimeout(20)
            send(control, Start(run=b"run", spec=spec))
            started, descriptors = receive(control)
            pids.append(started.pid)
            lines.append(socket.socket(fileno=descriptors[0]))
            assert lines[-1].recv(100)  # the runner says that it is ready
        left = process_tree.descendants(pids[1])
        assert len(left) >= 2
        leaves.close()
        deadline = time.monotonic() + 5
        while any(alive(pid) for pid in left) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [pid for pid in left if alive(pid)] == []
        assert alive(pids[0])
        send(stays, Kill(run=b"run"))
        ended, _ = receive(stays)
        assert ended.status == -9
        for line in lines:
            line.close()


def test_a_launcher_that_listens_and_is_killed_takes_every_sandbox_with_it(tmp_path):
    need_sandbox()
    spec = dataclasses.replace(SPEC, program="hansa.worker.runner", code=str(tmp_path), memory_bytes=1 << 30)
    with Service(tmp_path) as service, connect_launcher(service.path) as control:
        control.settimeout(20)
        send(control, Start(run=b"run", spec=spec))
        started, descriptors = receive(control)
        with socket.socket(fileno=descriptors[0]) as line:
            assert line.recv(100)  # the runner says that it is ready
            everything = process_tree.descendants(service.process.pid)[1:]
            assert started.pid in everything
            service.process.kill()
            deadline = time.monotonic() + 5
            while any(alive(pid) for pid in everything) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert [pid for pid in everything if alive(pid)] == []


def test_a_sandbox_is_tried_with_the_launcher_that_will_make_the_others(tmp_path):
    need_sandbox()
    with Service(tmp_path) as service:
        report = check_sandbox(launch=launch_with(Path(service.path)))
    assert report.available, report.reason
    gone = check_sandbox(launch=launch_with(Path(service.path)))
    assert not gone.available
    assert service.path in gone.reason


@pytest.mark.skipif(os.getuid() != 0, reason="only root can connect as another user")
def test_a_daemon_of_another_user_may_try_a_sandbox_and_name_only_what_is_its_own(tmp_path):
    need_sandbox()
    with Service(tmp_path) as service:
        tmp_path.chmod(0o755)
        os.chown(service.path, 4242, -1)
        report = check_sandbox(launch=lambda: (None, connect_as(4242, service.path)))
        assert report.available, report.reason
        with connect_as(4242, service.path) as control:
            control.settimeout(20)
            send(control, Start(run=b"run", spec=dataclasses.replace(SPEC, code=str(tmp_path))))
            answer, _ = receive(control)
        assert isinstance(answer, Refused)
        assert "does not belong" in answer.reason


@pytest.mark.skipif(os.getuid() != 0, reason="only root can connect as another user")
def test_whom_the_launcher_was_not_given_to_has_no_sandbox_made_whatever_the_mode_of_its_socket(tmp_path):
    need_sandbox()
    with Service(tmp_path) as service:
        tmp_path.chmod(0o755)
        Path(service.path).chmod(0o666)
        report = check_sandbox(launch=lambda: (None, connect_as(4242, service.path)))
        assert not report.available
        assert "does not serve uid 4242" in report.reason
        with connect_as(4242, service.path) as control:
            control.settimeout(20)
            refused, _ = receive(control)
            assert isinstance(refused, Refused)
            assert receive(control) == (None, [])
        assert check_sandbox(launch=launch_with(Path(service.path))).available


def connect_as(uid, path):
    """A connection that another user made, handed to us."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if (pid := os.fork()) == 0:
            status = 1
            try:
                os.chdir(Path(path).parent)  # the directories above it are for nobody but us
                os.setresuid(uid, uid, uid)
                with connect_launcher(Path(path).name) as control:
                    socket.send_fds(theirs, [b"x"], [control.fileno()])
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
    return socket.socket(fileno=descriptor)


def test_a_sandbox_that_cannot_be_made_leaves_nothing(tmp_path):
    need_sandbox()
    (tmp_path / "image").mkdir()
    spec = dataclasses.replace(SPEC, image=str(tmp_path / "image"))
    with Service(tmp_path) as service, connect_launcher(service.path) as control:
        control.settimeout(20)
        for _ in range(3):
            send(control, Start(run=b"run", spec=spec))
            refused, _ = receive(control)
            assert isinstance(refused, Refused)
            assert "the image has no" in refused.reason
        pids = process_tree.descendants(service.process.pid)
        groups = [path for pid in pids for path in Path("/sys/fs/cgroup").rglob(f"hansa-{pid}-*")]
        send(control, Start(run=b"run", spec=SPEC))
        started, descriptors = receive(control)
        assert isinstance(started, Started)
        for descriptor in descriptors:
            os.close(descriptor)
        serving = pids[-1]
        open_files = []
        for path in Path(f"/proc/{serving}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it is still closing what it gave away
                open_files.append(str(path.readlink()))
    assert groups == []
    assert len([name for name in open_files if name.startswith("socket:")]) <= 4, open_files


def test_a_directory_that_is_not_there_is_refused_in_words(tmp_path):
    need_sandbox()
    spec = dataclasses.replace(SPEC, code=str(tmp_path / "absent"))
    with Service(tmp_path) as service, connect_launcher(service.path) as control:
        control.settimeout(20)
        send(control, Start(run=b"run", spec=spec))
        answer, descriptors = receive(control)
        words = answer.reason if isinstance(answer, Refused) else receive(control)[0].words
        for descriptor in descriptors:
            os.close(descriptor)
    assert "No such file" in words
