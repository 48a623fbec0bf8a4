"""A run's way out, on real sockets: who gets through, to where, how much, and what every attack comes to.

A server on loopback plays the internet. Only the constructor of the dialler can say that 127.0.0.2 is public; no
setting can. The last tests widen nothing: they make two network namespaces and give one a public address.
"""

import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import h11
import pytest
import trio

from hansa.node.runs import egress, egress_relay
from hansa.node.runs.egress import EgressProxy
from hansa.node.runs.egress_dial import Dialler, is_ours, networks_of
from hansa.proto.egress import IpAddress, is_public

RUN = bytes(range(32))
INTERNET = ipaddress.ip_address("127.0.0.2")
OPENED: list[trio.SocketStream] = []
"""The clients' connections, which their world closes when it ends."""
Serve = Callable[[trio.SocketStream], Awaitable[None]]


def plays_the_internet(address: IpAddress) -> bool:
    return address == INTERNET or is_public(address)


def nothing_is_ours(_address: IpAddress) -> bool:
    return False


@dataclass
class Names:
    """A resolver: each name has a list of answers, the last of which stays."""

    answers: dict[str, list[list[str]]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, name: str) -> Collection[str]:
        await trio.lowlevel.checkpoint()
        self.asked.append(name)
        if name not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        left = self.answers[name]
        return left.pop(0) if len(left) > 1 else left[0]


@dataclass
class World:
    """A proxy, a server that plays a host outside, and what the job's log says."""

    proxy: EgressProxy
    port: int
    names: Names
    reached: list[str]
    log: list[str]
    nursery: trio.Nursery

    def open(self, *hosts: str, limit_bytes: int = 1 << 30, run: bytes = RUN) -> Path:
        return self.proxy.open(run, wanted=[f"{host}:{self.port}" for host in hosts], limit_bytes=limit_bytes)

    @property
    def refusals(self) -> dict[str, int]:
        prefix = "egress.refused "
        return {key.removeprefix(prefix): n for key, n in self.proxy.counters().items() if key.startswith(prefix)}


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


@asynccontextmanager
async def a_world(
    tmp_path: Path,
    serve: Serve = echo,
    *,
    allow: Sequence[str] = ("*",),
    bytes_per_s: int = 0,
    bytes_per_run: int = 0,
) -> AsyncIterator[World]:
    names = Names({"data.example.org": [["127.0.0.2"]]})
    reached: list[str] = []
    log: list[str] = []

    async def serve_counted(stream: trio.SocketStream) -> None:
        reached.append("connection")
        with suppress(trio.BrokenResourceError):
            await serve(stream)

    dialler = Dialler(resolve=names, public=plays_the_internet, ours=nothing_is_ours)
    proxy = EgressProxy(
        tmp_path,
        allow=allow,
        say=lambda _run, text: log.append(text),
        bytes_per_s=bytes_per_s,
        bytes_per_run=bytes_per_run,
        dialler=dialler,
    )
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.2")
            port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, serve_counted, [listener])
            await nursery.start(proxy.serve)
            yield World(proxy, port, names, reached, log, nursery)
            nursery.cancel_scope.cancel()
    while OPENED:
        await OPENED.pop().aclose()


async def open_socket(path: Path) -> trio.SocketStream:
    """A connection to a socket however deep it lies, as the bind into a sandbox makes one."""
    descriptor = os.open(path.parent, os.O_PATH)
    try:
        stream = await trio.open_unix_socket(f"/proc/self/fd/{descriptor}/{path.name}")
    finally:
        os.close(descriptor)
    OPENED.append(stream)
    return stream


async def call(path: Path, request: bytes) -> tuple[int, bytes, trio.SocketStream]:
    """Send a request; give the status of the answer, what came with it, and the connection."""
    stream = await open_socket(path)
    await stream.send_all(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = await stream.receive_some()
        if not data:
            break
        answer += data
    head, _, rest = answer.partition(b"\r\n\r\n")
    return (int(head.split(b" ")[1]) if head else 0), rest, stream


async def rest_of(stream: trio.SocketStream) -> bytes:
    data = b""
    with suppress(trio.BrokenResourceError):
        while piece := await stream.receive_some():
            data += piece
    return data


def connect(host: str, port: int) -> bytes:
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


def get(url: str, more: str = "") -> bytes:
    return f"GET {url} HTTP/1.1\r\nHost: whatever.example\r\n{more}\r\n".encode()


async def serve_http(stream: trio.SocketStream) -> None:
    """Answer with what was asked, in chunks."""
    server = h11.Connection(h11.SERVER)
    head, body = b"", b""
    while True:
        event = server.next_event()
        if event is h11.NEED_DATA:
            server.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Request):
            lines = [event.method + b" " + event.target, *(b": ".join(pair) for pair in sorted(event.headers))]
            head = b"\n".join(lines)
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            break
    headers = [("Set-Cookie", "a=1"), ("Connection", "X-Hop"), ("X-Hop", "1")]
    await stream.send_all(server.send(h11.Response(status_code=200, headers=headers)))
    await stream.send_all(server.send(h11.Data(data=head + b"\n\n" + body)))
    await stream.send_all(server.send(h11.EndOfMessage()))
    await stream.send_eof()


# Who gets through.


@pytest.mark.trio
async def test_a_granted_host_is_reached_through_a_tunnel(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        path = world.open("data.example.org")
        status, rest, stream = await call(path, connect("data.example.org", world.port) + b"early ")
        assert status == 200
        await stream.send_all(b"and late")
        await stream.send_eof()
        assert rest + await rest_of(stream) == b"early and late"
        assert world.proxy.passed_bytes == 2 * len(b"early and late")
        assert world.refusals == {}


@pytest.mark.trio
async def test_plain_http_is_forwarded_and_says_nothing_of_the_way(tmp_path: Path) -> None:
    async with a_world(tmp_path, serve_http) as world:
        path = world.open("data.example.org")
        status, rest, stream = await call(
            path, get(f"http://data.example.org:{world.port}/a?b", "Proxy-Authorization: x\r\nX-Own: y\r\n")
        )
        answer = rest + await rest_of(stream)
        assert status == 200
        seen = answer.partition(b"GET /a?b")[2]
        assert f"host: data.example.org:{world.port}".encode() in seen
        assert b"x-own: y" in seen
        assert b"proxy" not in seen.lower()
        assert b"via" not in seen.lower()


@pytest.mark.trio
async def test_a_body_is_forwarded_to_its_end_and_nothing_behind_it(tmp_path: Path) -> None:
    async with a_world(tmp_path, serve_http) as world:
        path = world.open("data.example.org")
        url = f"http://data.example.org:{world.port}/"
        smuggled = get("http://other.example/")
        request = f"POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody".encode() + smuggled + smuggled
        status, rest, stream = await call(path, request)
        answer = rest + await rest_of(stream)
        assert status == 200
        assert b"\n\nbody\r\n0\r\n\r\n" in answer
        assert b"other.example" not in answer
        assert world.reached == ["connection"]


@pytest.mark.trio
async def test_a_body_in_chunks_is_forwarded(tmp_path: Path) -> None:
    async with a_world(tmp_path, serve_http) as world:
        path = world.open("data.example.org")
        request = (
            f"POST http://data.example.org:{world.port}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n"
            "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nTrailer: x\r\n\r\n"
        ).encode()
        status, rest, stream = await call(path, request)
        assert status == 200
        assert b"\n\nbody" in rest + await rest_of(stream)


@pytest.mark.trio
async def test_a_redirect_leads_nowhere_by_itself(tmp_path: Path) -> None:
    async def redirect(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")

    async with a_world(tmp_path, redirect) as world:
        path = world.open("data.example.org")
        status, _, _ = await call(path, get(f"http://data.example.org:{world.port}/"))
        assert status == 302
        status, _, _ = await call(path, get("http://169.254.169.254/"))
        assert status == 403
        assert world.refusals == {"private": 1}


# Who does not.


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("other.example", "not-granted"),
        ("example.org", "not-granted"),
        ("data.example.org.evil.example", "not-granted"),
        ("8.8.8.8", "not-granted"),
        ("127.0.0.1", "private"),
        ("10.0.0.1", "private"),
        ("169.254.169.254", "private"),
        ("[::1]", "private"),
        ("[::ffff:127.0.0.2]", "private"),
        ("localhost", "unreadable"),
        ("0x7f000002", "unreadable"),
        ("/run/docker.sock", "unreadable"),
    ],
)
@pytest.mark.trio
async def test_a_host_that_was_not_granted_is_refused_and_never_looked_up(tmp_path: Path, host: str, kind: str) -> None:
    async with a_world(tmp_path) as world:
        path = world.open("data.example.org")
        for request in (connect(host, world.port), get(f"http://{host}:{world.port}/")):
            status, rest, _ = await call(path, request)
            assert status in (400, 403)
            assert rest.startswith(b"hansa: ")
        assert world.refusals == {kind: 2}
        assert world.names.asked == []
        assert world.reached == []


@pytest.mark.trio
async def test_a_port_that_was_not_granted_is_refused(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        path = world.open("data.example.org")
        status, _, _ = await call(path, connect("data.example.org", 22))
        assert status == 403
        assert world.refusals == {"not-granted": 1}


@pytest.mark.trio
async def test_what_the_owner_does_not_allow_is_not_granted_whatever_was_asked(tmp_path: Path) -> None:
    async with a_world(tmp_path, allow=["*.example.org"]) as world:
        path = world.open("data.example.org")
        status, _, _ = await call(path, connect("data.example.org", world.port))
        assert status == 403
        assert world.log[0].startswith("network: no hosts;")


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        ["169.254.169.254"],
        ["100.64.0.1"],
        ["::1"],
        ["::ffff:127.0.0.2"],
        ["64:ff9b::7f00:2"],
        ["2002:7f00:2::"],
        ["fe80::1%lo"],
        ["224.0.0.1"],
        ["0.0.0.0"],
        ["10.0.0.1", "192.168.0.1", "::1"],
        [],
    ],
)
@pytest.mark.trio
async def test_a_name_at_a_private_address_is_not_reached(tmp_path: Path, addresses: list[str]) -> None:
    async with a_world(tmp_path) as world:
        world.names.answers["inside.example.org"] = [addresses]
        path = world.open("*.example.org")
        status, _, _ = await call(path, connect("inside.example.org", world.port))
        assert status == 403
        assert world.refusals == {"private": 1}


@pytest.mark.trio
async def test_of_several_addresses_only_the_public_ones_are_tried(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.names.answers["mixed.example.org"] = [["127.0.0.1", "10.0.0.1", "127.0.0.2"]]
        path = world.open("*.example.org")
        status, _, _ = await call(path, connect("mixed.example.org", world.port))
        assert status == 200


@pytest.mark.trio
async def test_a_name_that_changes_its_mind_is_looked_up_once(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.names.answers["moving.example.org"] = [["127.0.0.2"], ["127.0.0.1"]]
        path = world.open("*.example.org")
        assert (await call(path, connect("moving.example.org", world.port)))[0] == 200
        assert world.names.asked == ["moving.example.org"]
        assert (await call(path, connect("moving.example.org", world.port)))[0] == 403


@pytest.mark.trio
async def test_a_network_that_the_owner_denies_is_not_reached(tmp_path: Path) -> None:
    dialler = Dialler(
        denied=[ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("2000::/3")],
        resolve=Names({"data.example.org": [["127.0.0.2"]]}),
        public=plays_the_internet,
        ours=nothing_is_ours,
    )
    with pytest.raises(Exception, match="at no public address"):
        await dialler.dial("data.example.org", 443)


@pytest.mark.trio
async def test_a_machine_is_no_public_host_to_its_own_jobs(tmp_path: Path) -> None:
    dialler = Dialler(resolve=Names({"data.example.org": [["127.0.0.2"]]}), public=plays_the_internet)
    with pytest.raises(Exception, match="at no public address"):
        await dialler.dial("data.example.org", 443)


def test_the_addresses_that_a_node_announces_are_denied_to_its_jobs() -> None:
    announced = ("/ip4/11.22.33.44/tcp/4001", "/dns4/node.example/tcp/4001", "/ip6/2606:4700::1/tcp/4001/p2p/16Uiu2")
    assert [str(each) for each in networks_of(announced)] == ["11.22.33.44/32", "2606:4700::1/128"]


def test_only_this_machines_addresses_are_ours() -> None:
    assert is_ours(ipaddress.ip_address("127.0.0.1"))
    assert not is_ours(ipaddress.ip_address("8.8.8.8"))
    assert not is_ours(ipaddress.ip_address("2606:4700::1111"))


@pytest.mark.trio
async def test_a_name_that_nobody_knows_is_said_to_be_that(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        path = world.open("*.example.org")
        status, rest, _ = await call(path, connect("nowhere.example.org", world.port))
        assert (status, b"cannot be found" in rest) == (502, True)


@pytest.mark.trio
async def test_a_host_that_does_not_answer_is_said_to_be_that(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.2", 0))
            port = nobody.getsockname()[1]
            path = world.proxy.open(RUN, wanted=[f"data.example.org:{port}"], limit_bytes=1 << 20)
            status, rest, _ = await call(path, connect("data.example.org", port))
            assert (status, b"does not answer" in rest) == (502, True)


# How much, how fast, how many, how long.


@pytest.mark.parametrize("limits", [(1000, 0), (1 << 20, 1000)])
@pytest.mark.trio
async def test_the_last_byte_that_may_pass_is_the_last(tmp_path: Path, limits: tuple[int, int]) -> None:
    received = bytearray()
    all_came = trio.Event()

    async def swallow(stream: trio.SocketStream) -> None:
        async for data in stream:
            received.extend(data)
        all_came.set()

    limit_bytes, bytes_per_run = limits
    async with a_world(tmp_path, swallow, bytes_per_run=bytes_per_run) as world:
        path = world.open("data.example.org", limit_bytes=limit_bytes)
        _, _, stream = await call(path, connect("data.example.org", world.port))
        await stream.send_all(b"x" * 600)
        await stream.send_all(b"x" * 600)
        assert await rest_of(stream) == b""
        await all_came.wait()
        assert len(received) == 1000
        assert world.proxy.passed_bytes == 1000
        status, rest, _ = await call(path, connect("data.example.org", world.port))
        assert status == 403
        assert rest.startswith(b"hansa: the job has used the 1000 bytes")
        assert sum("has used the 1000 bytes" in line for line in world.log) == 2


@pytest.mark.trio
async def test_bytes_from_outside_count_too(tmp_path: Path) -> None:
    async def flood(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(b"y" * 65536)

    async with a_world(tmp_path, flood) as world:
        path = world.open("data.example.org", limit_bytes=100_000)
        _, rest, stream = await call(path, connect("data.example.org", world.port))
        got = len(rest) + len(await rest_of(stream))
        assert got <= 100_000
        assert world.proxy.passed_bytes == 100_000


@pytest.mark.trio
async def test_http_that_is_cut_does_not_look_complete(tmp_path: Path) -> None:
    async def large(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + b"z" * 90_000)

    async with a_world(tmp_path, large) as world:
        path = world.open("data.example.org", limit_bytes=50_000)
        status, rest, stream = await call(path, get(f"http://data.example.org:{world.port}/"))
        assert status in (0, 200)
        assert len(rest) + len(await rest_of(stream)) < 90_000


@pytest.mark.trio
async def test_all_runs_together_keep_to_the_owners_pace(tmp_path: Path) -> None:
    async with a_world(tmp_path, bytes_per_s=400_000) as world:
        began = trio.current_time()

        async def exchange(run: bytes) -> None:
            path = world.open("data.example.org", run=run)
            _, rest, stream = await call(path, connect("data.example.org", world.port))
            await stream.send_all(b"x" * 100_000)
            await stream.send_eof()
            assert len(rest) + len(await rest_of(stream)) == 100_000

        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange, b"1" * 32)
            nursery.start_soon(exchange, b"2" * 32)
        # 400,000 bytes at 400,000 a second, less what may come in one burst.
        assert 0.6 < trio.current_time() - began < 5


@pytest.mark.trio
async def test_too_many_connections_are_turned_away_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "CONNECTIONS_PER_RUN", 3)
    monkeypatch.setattr(egress, "CONNECTIONS", 4)
    async with a_world(tmp_path) as world:
        path = world.open("data.example.org")
        held = [(await call(path, connect("data.example.org", world.port)))[2] for _ in range(3)]
        status, rest, _ = await call(path, connect("data.example.org", world.port))
        assert (status, rest) == (503, b"hansa: too many connections at once\n")
        other = world.open("data.example.org", run=b"2" * 32)
        held.append((await call(other, connect("data.example.org", world.port)))[2])
        assert (await call(other, connect("data.example.org", world.port)))[0] == 503
        await held[0].aclose()
        while True:
            status, _, stream = await call(path, connect("data.example.org", world.port))
            if status == 200:
                break
            await stream.aclose()
        assert world.refusals["too-many"] >= 2


@pytest.mark.trio
async def test_nobody_sends_the_daemon_descriptors(tmp_path: Path) -> None:
    """Some of them take as long to be closed as their sender likes."""
    with socket.socket(socket.AF_UNIX) as tried:
        try:
            tried.getsockopt(socket.SOL_SOCKET, 83)
        except OSError:
            pytest.skip("this kernel has no SO_PASSRIGHTS")
    async with a_world(tmp_path) as world:
        stream = await open_socket(world.open("data.example.org"))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, stream.socket.fileno().to_bytes(4, "little"))]
        with pytest.raises(PermissionError):
            await stream.socket.sendmsg([b"x"], rights)


@pytest.mark.trio
async def test_a_job_that_connects_without_end_takes_no_descriptors_from_the_daemon(tmp_path: Path) -> None:
    job = """
import resource, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, (900, 900))
kept = []
for _ in range(800):
    kept.append(socket.socket(socket.AF_UNIX))
    kept[-1].connect("egress.sock")
time.sleep(0.3)
"""
    held: list[int] = []

    def count() -> None:
        held.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))

    async def look() -> None:
        while True:
            count()
            await trio.sleep(0.01)

    async with a_world(tmp_path) as world:
        path = world.open("data.example.org")
        world.nursery.start_soon(look)
        await trio.sleep(0.05)
        before = held[0]
        await trio.run_process([sys.executable, "-c", job], cwd=path.parent)
        assert world.refusals["too-many"] > 500
        assert max(held) - before < egress.CONNECTIONS_PER_RUN + egress.GOODBYES + 20


@pytest.mark.trio
async def test_who_asks_slowly_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "HEAD_S", 0.3)
    async with a_world(tmp_path) as world:
        path = world.open("data.example.org")
        stream = await open_socket(path)
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - which of the sends fails is not known
            for letter in connect("data.example.org", world.port):
                await stream.send_all(bytes([letter]))
                await trio.sleep(0.1)
        assert (await rest_of(stream)).startswith(b"HTTP/1.1 408 ")
        assert world.refusals == {"unreadable": 1}


@pytest.mark.trio
async def test_a_connection_on_which_nothing_passes_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_relay, "IDLE_S", 0.3)
    async with a_world(tmp_path) as world:
        path = world.open("data.example.org")
        _, _, stream = await call(path, connect("data.example.org", world.port))
        for _ in range(3):
            await trio.sleep(0.2)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
        assert await rest_of(stream) == b""


@pytest.mark.trio
async def test_a_log_is_told_of_each_refusal_once_and_of_so_many_only(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        path = world.open("data.example.org")
        for number in range(2 * egress.MOST_LINES):
            for _ in range(2):
                await (await call(path, connect(f"h{number}.example", 443)))[2].aclose()
        assert len(world.log) == egress.MOST_LINES + 2
        assert world.log[1] == "network: the job may not speak to h0.example:443\n"
        assert "not shown" in world.log[-1]
        assert world.refusals == {"not-granted": 4 * egress.MOST_LINES}


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x00" * 100, b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nA" + b"a" * 70_000],
)
@pytest.mark.trio
async def test_a_host_that_speaks_no_http_gives_an_answer_all_the_same(tmp_path: Path, answer: bytes) -> None:
    async def strange(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)

    async with a_world(tmp_path, strange) as world:
        path = world.open("data.example.org")
        status, rest, _ = await call(path, get(f"http://data.example.org:{world.port}/"))
        assert (status, rest) == (502, b"hansa: the host's answer is no HTTP\n")


@pytest.mark.trio
async def test_a_broken_body_is_answered(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        path = world.open("data.example.org")
        url = f"http://data.example.org:{world.port}/"
        head = f"POST {url} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n".encode()
        status, _, _ = await call(path, head)
        assert status == 400


# The socket, and the run's end.


@pytest.mark.trio
async def test_the_socket_is_the_daemons_own_and_goes_with_the_run(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    async with a_world(deep) as world:
        path = world.open("data.example.org")
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.stat().st_mode & 0o777 == 0o666
        assert len(os.fsencode(path)) > 200
        _, _, stream = await call(path, connect("data.example.org", world.port))
        world.proxy.close(RUN)
        assert await rest_of(stream) == b""
        assert not path.parent.exists()
        world.proxy.close(RUN)


@pytest.mark.trio
async def test_a_way_that_is_opened_again_begins_anew(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        first = world.open("data.example.org", limit_bytes=10)
        _, _, stream = await call(first, connect("data.example.org", world.port) + b"x" * 11)
        await rest_of(stream)
        again = world.open("data.example.org", limit_bytes=10)
        assert again == first
        assert (await call(again, connect("data.example.org", world.port)))[0] == 200
        assert world.proxy.passed_bytes == 10


# Nothing widened: two network namespaces, and a public address in one of them.


def may_make_namespaces() -> str:
    """How to make a network namespace here, or nothing."""
    for flags in (["--net"], ["--net", "--user", "--map-root-user"]):
        probe = ["unshare", *flags, "sh", "-c", "ip tuntap add dev t0 mode tap"]
        try:
            if subprocess.run(probe, capture_output=True, timeout=10, check=False).returncode == 0:
                return " ".join(flags)
        except OSError:
            return ""
    return ""


def test_the_real_policy_reaches_a_public_host_and_nothing_of_ours() -> None:
    flags = may_make_namespaces()
    if not flags:
        pytest.skip("no network namespaces can be made here (unshare, ip of iproute2 and /dev/net/tun are needed)")
    script = Path(__file__).with_name("egress_in_a_namespace.py")
    environment = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        ["unshare", *flags.split(), sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    words = [word for word in done.stdout.split() if word != "ready"]
    assert words == ["public", "200", "own", "403", "lan", "403", "metadata", "403"]
