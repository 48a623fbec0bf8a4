"""A launcher that is root where /proc shows few processes: in a container, or where each user sees only its own."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys

import pytest
from integration.sandbox_harness import need_sandbox
from integration.test_launcher import SPEC

from hansa.node.isolation.launcher_protocol import Ended, Kill, Start, Started, receive, send

RUNNER = dataclasses.replace(SPEC, program="hansa.worker.runner", memory_bytes=1 << 30)
WAYS = {
    # The second process of this container has come and gone.
    "container": ["--pid", "--fork", "--mount-proc", "sh", "-c", 'test "$$" = 1 && /bin/true && exec "$@"', "-"],
    "hidepid": ["--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', "-"],
}


@pytest.fixture(params=WAYS)
def control(request):
    """The socket of a launcher that is started in one of these ways."""
    if os.getuid() != 0:
        pytest.skip("only root can have it so")
    need_sandbox()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", "-m", "hansa.node.isolation.launcher", str(theirs.fileno())]
    process = subprocess.Popen(["unshare", *WAYS[request.param], *command], pass_fds=(theirs.fileno(),), cwd="/")
    theirs.close()
    ours.settimeout(20)
    with ours:
        yield ours
    assert process.wait(20) == 0


@pytest.mark.parametrize("tier", ["sandbox", "gvisor"])
def test_its_sandboxes_work_and_end(control, tier):
    memory = {"memory_bytes": 2 << 30, "processes": 1000} if tier == "gvisor" else {}
    send(control, Start(run=b"run", spec=dataclasses.replace(RUNNER, tier=tier, **memory)))
    started, descriptors = receive(control)
    if tier == "gvisor" and not isinstance(started, Started):
        pytest.skip(f"no gVisor on this machine: {started.reason}")
    with contextlib.closing(socket.socket(fileno=descriptors[0])) as line:
        line.settimeout(60)
        assert line.recv(100)  # the runner says that it is ready
        send(control, Kill(run=b"run"))
        ended, _ = receive(control)
        assert isinstance(ended, Ended)
        assert ended.words == ""
