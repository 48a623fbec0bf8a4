"""The two sockets that the host's side offers, a launcher's and a daemon's, attacked by a program of its machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from integration.sandbox_harness import need_sandbox
from integration.test_launcher import SPEC, Service

from hansa.node.commands.first_setup import Wishes, set_up
from hansa.node.isolation import process_tree
from hansa.node.isolation.launcher_link import connect_launcher
from hansa.node.isolation.launcher_protocol import MAX_PACKET_BYTES, Ended, Start, Started, receive, send

BOMB = b"\xdd\xff\xff\xff\xff"
PACKETS = (b"", b"\0", b"\xff" * 1000, BOMB * 10, b"\x91" * 60_000, b"\x81\xa7message\xa5Start", os.urandom(5000))


def descriptors(pid):
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def alone(pid, within_s=20):
    """How many descriptors a launcher holds once nobody is connected any more."""
    deadline = time.monotonic() + within_s
    while process_tree.descendants(pid) != [pid]:
        assert time.monotonic() < deadline, "somebody is still served"
        time.sleep(0.05)
    return descriptors(pid)


def flood_with_descriptors(line, count):
    """As many as a packet may carry, as often as somebody takes them."""
    nothing = os.open("/dev/null", os.O_RDONLY)
    try:
        for _ in range(count):
            socket.send_fds(line, [b"\xc1"], [nothing] * 250)
    except OSError:
        pass  # it hung up, which is an answer
    finally:
        os.close(nothing)


def probe(path):
    """A sandbox from this launcher, made and ended as it should be."""
    with connect_launcher(path) as control:
        control.settimeout(30)
        send(control, Start(run=b"probe", spec=SPEC))
        started, given = receive(control)
        assert isinstance(started, Started)
        with socket.socket(fileno=given[0]) as line:
            assert line.recv(100)
        ended, _ = receive(control)
        assert isinstance(ended, Ended)
        assert ended.status == 0


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    need_sandbox()
    with Service(tmp_path_factory.mktemp("launcher")) as service:
        yield service


@pytest.mark.parametrize("packet", PACKETS, ids=range(len(PACKETS)))
def test_a_packet_that_is_none_ends_its_own_connection_only(launcher, packet):
    with connect_launcher(launcher.path) as control:
        control.settimeout(20)
        if packet:
            control.send(packet)
            assert control.recv(100) == b"", "it hung up"
    probe(launcher.path)


def test_a_packet_of_two_gigabytes_cannot_even_be_sent(launcher):
    with connect_launcher(launcher.path) as control:
        with pytest.raises(OSError, match=r"too long|No buffer"):
            control.send(bytes(16 << 20))
        control.settimeout(20)
        control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        control.send(b"\xc4" * (MAX_PACKET_BYTES + 1))
        assert control.recv(100) == b""
    probe(launcher.path)


def test_descriptors_are_closed_again_however_many_come(launcher):
    before = alone(launcher.process.pid)
    for _ in range(3):
        with connect_launcher(launcher.path) as control:
            flood_with_descriptors(control, 200)
    assert alone(launcher.process.pid) <= before
    probe(launcher.path)


def test_one_that_never_reads_holds_up_nobody_else(launcher):
    with connect_launcher(launcher.path) as deaf:
        deaf.setblocking(False)
        try:
            while True:
                send(deaf, Start(run=os.urandom(8), spec=SPEC_OF_NOTHING))
        except BlockingIOError:
            pass
        before = time.monotonic()
        probe(launcher.path)
        assert time.monotonic() - before < 20


SPEC_OF_NOTHING = type(SPEC)(**{**{name: getattr(SPEC, name) for name in SPEC.__slots__}, "code": "/nowhere/at/all"})


def test_a_hundred_connections_that_say_nothing_are_no_harm(launcher):
    lines = [connect_launcher(launcher.path) for _ in range(100)]
    try:
        probe(launcher.path)
    finally:
        for line in lines:
            line.close()


# ---- the daemon's API ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """A node that lends nothing, and its socket."""
    wishes = Wishes(
        provides=False,
        listen=("/ip4/127.0.0.1/tcp/0",),
        bootstrap=(),
        region="loopback",
        price_per_hour="0.40",
        gpus=(),
        cpu_slots=0,
        cpu_cores_per_slot=1,
        memory_per_slot="1 GiB",
        meter_interval="1 s",
        metrics_port=0,
    )
    directory = tmp_path_factory.mktemp("daemon") / "data"
    made = set_up(directory, wishes)
    command = [sys.executable, "-m", "hansa", "node", "run", "--data", str(made.config.data_dir)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    path = str(made.config.data_dir / "api.sock")
    try:
        deadline = time.monotonic() + 60
        while status(path) is None:
            assert time.monotonic() < deadline, "no daemon within a minute"
            assert process.poll() is None, "it ended"
            time.sleep(0.1)
        yield process, path
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def api(path):
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(20)
    try:
        line.connect(path)
    except OSError:
        line.close()
        raise
    return line


def status(path):
    """What the node says of itself, by the plainest means; nothing if it does not answer."""
    try:
        with api(path) as line:
            line.sendall(b"GET /v1/node HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            said = b"".join(iter(lambda: line.recv(65536), b""))
    except OSError:
        return None
    head, _, body = said.partition(b"\r\n\r\n")
    return json.loads(body) if b" 200 " in head.splitlines()[0] and body.startswith(b"{") else None


REQUESTS = {
    "noise": os.urandom(4000),
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(200),
    "two gigabytes to come": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\n"
    + bytes(1 << 20),
    "a negative length": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
    "headers without end": b"GET /v1/node HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100_000,
    "a line without end": b"GET /" + b"a" * (1 << 20),
    "nested without end": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + b"[" * 500_000,
}


@pytest.mark.parametrize("request_bytes", REQUESTS.values(), ids=REQUESTS.keys())
def test_a_request_that_is_none_leaves_the_daemon_answering(daemon, request_bytes):
    process, path = daemon
    with api(path) as line:
        try:
            line.sendall(request_bytes)
            line.settimeout(3)
            line.recv(4096)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            pass
        assert status(path) is not None
    assert process.poll() is None


def test_descriptors_and_silence_leave_the_daemon_answering(daemon):
    process, path = daemon
    before = descriptors(process.pid)
    lines = [api(path) for _ in range(60)]
    try:
        for line in lines[:20]:
            flood_with_descriptors(line, 20)
        for line in lines[20:40]:
            # Asks, and never reads the answer.
            line.settimeout(0.2)
            try:
                line.sendall(b"GET /v1/node HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            except (TimeoutError, BrokenPipeError, ConnectionResetError):
                continue
        assert status(path) is not None
    finally:
        for line in lines:
            line.close()
    deadline = time.monotonic() + 45  # what was asked for is still answered, one after the other
    while descriptors(process.pid) > before + 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert descriptors(process.pid) <= before + 3
    assert process.poll() is None


def test_the_socket_is_its_owners_alone(daemon):
    _process, path = daemon
    assert Path(path).stat().st_mode & 0o077 == 0
