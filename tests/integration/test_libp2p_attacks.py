"""Everything by which a stranger could end, stall or swell a node on the bare library, done to one of ours.

After each the node must still answer an honest peer. The names in brackets are those of the table in
docs/decisions/0009-libp2p-guards.md.
"""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from itertools import count

import pytest
import trio
from kit.raw_peer import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW, RawPeer, frame, line, raw_peer
from kit.waiting import until
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from hansa.node.network.libp2p_budget import ReceiveBudget
from hansa.node.network.libp2p_host import Libp2pNet, open_net
from hansa.node.network.libp2p_tcp import TcpStream
from hansa.node.network.libp2p_yamux import BoundedYamux
from hansa.node.network.net import Context, NetConfig, NetError, NetLimits, RemoteFault, Timeout, Unreachable, Verdict
from hansa.proto.peer_id import peer_id_of_key

pytestmark = pytest.mark.trio
ECHO = "/hansa/echo/1"
TOPIC = "/hansa/topic/1"
HOLD = "/hold/1"
SMALL = NetLimits(
    connections=40,
    connections_per_ip=8,
    pending_handshakes=16,
    pending_handshakes_per_ip=4,
    handshake_timeout_ms=600,
    dial_timeout_ms=700,
    streams_per_connection=32,
    receive_buffer_bytes=2 << 20,
    total_receive_buffer_bytes=3 << 20,
)
NOISE = line(b"/multistream/1.0.0") + line(b"/noise")
HELLO = line(b"/multistream/1.0.0")
UNREAD = HELLO + line(HOLD.encode())
GOSSIP = HELLO + line(b"/meshsub/1.1.0")


async def echo(_context: Context, data: bytes) -> bytes:
    await trio.lowlevel.checkpoint()
    return data


async def hold(_stream: object) -> None:
    """A handler that is busy with something else and reads nothing."""
    await trio.sleep_forever()


@asynccontextmanager
async def node(limits: NetLimits = SMALL) -> AsyncIterator[Libp2pNet]:
    """A node that must survive; on the way out an honest stranger is served."""
    async with open_net(NetConfig(limits=limits), os.urandom(32)) as net:
        net.serve(ECHO, echo, max_request_bytes=1 << 20, timeout_ms=500)
        net.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        net._host.set_stream_handler(HOLD, hold)
        await trio.sleep(0.01)
        yield net
        async with open_net(NetConfig(), os.urandom(32)) as honest:
            honest.learn(net.peer_id, net.addrs())
            assert await honest.request(net.peer_id, ECHO, b"still there?", timeout_ms=2_000) == b"still there?"


@asynccontextmanager
async def muxed(net: Libp2pNet) -> AsyncIterator[RawPeer]:
    # From another address, so that what is held against the attacker's does not fall on the honest one's.
    async with raw_peer(net.addrs()[0], source="127.0.0.2") as peer:
        yield await peer.mux()


def budget_of(net: Libp2pNet) -> ReceiveBudget:
    return net._budget


def struck(net: Libp2pNet) -> list[str]:
    return [peer.why for peer in net.peers() if peer.why]


# Before anybody is known.


@pytest.mark.parametrize("protocol", [b"/plaintext/2.0.0", b"/secio/1.0.0", b"/tls/1.0.0", b"/insecure/1.0.0"])
async def test_nothing_but_noise_secures_a_connection(protocol):
    """[C1] By the library's default anybody can pose as anybody."""
    async with node() as net, raw_peer(net.addrs()[0]) as peer:
        await peer.send_raw(HELLO + line(protocol))
        assert await peer.read_lines(2) == [b"/multistream/1.0.0", b"na"]


@pytest.mark.parametrize(
    "opening",
    [
        b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 1000,
        b"\x80\x80\x04" + b"x" * 65536,
        b"\xff\x7f" + b"x" * 1000,
        b"\x80\x80\x80\x80\x20",
        b"\x03\xff\xfe\n",
        b"\x00",
        b"\x05abcde",
        b"GET / HTTP/1.1\r\n\r\n" * 40,
        HELLO + line(b"/none") * 40,
        NOISE + b"\x00\x00" * 100,
        NOISE + (b"\xff\xff" + os.urandom(65535)) * 2,
    ],
    ids=count(1),
)
async def test_a_hostile_opening_is_hung_up_on_at_once(opening):
    """[M3, C3, L5] A length is judged before a byte behind it is kept, and few lines are read."""
    async with node() as net, raw_peer(net.addrs()[0]) as peer:
        with trio.move_on_after(1):
            with suppress(trio.BrokenResourceError):
                await peer.send_raw(opening)
        assert await peer.is_hung_up_on(0.45)


async def test_a_huge_announced_header_makes_nothing_be_kept():
    """[M3] On the bare library four such connections held a gigabyte."""
    async with node() as net, raw_peer(net.addrs()[0]) as peer:
        await peer.send_raw(b"\x80\x80\x80\x80\x20")
        taken = 0
        with trio.fail_after(2), suppress(trio.BrokenResourceError):
            while True:
                await peer.send_raw(bytes(65536))
                taken += 65536
        assert taken < 16 << 20, "no more than the kernels' own buffers"


async def test_silent_and_dripping_strangers_leave_room_for_others_and_are_put_out():
    """[H3] Pending connections are few, fewer from one address, and short."""
    async with node() as net, AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(raw_peer(net.addrs()[0], source="127.0.0.2")) for _ in range(60)]
        await trio.sleep(0.05)
        async with open_net(NetConfig(), os.urandom(32)) as honest:
            with trio.fail_after(0.4):
                await honest.connect(net.addrs()[0])
        assert net.counters()["inbound.ip_pending_full"] >= 50
        for peer in peers:
            assert await peer.is_hung_up_on(1.0)


async def test_a_stranger_who_falls_silent_in_the_midst_of_the_handshake_is_put_out():
    """[H3] Noise has no deadline of its own."""
    async with node() as net, raw_peer(net.addrs()[0]) as peer:
        await peer.send_raw(NOISE)
        assert await peer.is_hung_up_on(1.0)
    async with node() as net, raw_peer(net.addrs()[0]) as peer:
        await peer.secure()
        assert await peer.is_hung_up_on(1.0)


async def test_idle_connections_of_one_address_are_capped_and_others_come_in():
    """[H2] A crowd behind one address is a crowd, whoever they say they are."""
    async with node() as net, AsyncExitStack() as stack:
        for _ in range(12):
            peer = await stack.enter_async_context(raw_peer(net.addrs()[0], source="127.0.0.2"))
            with trio.move_on_after(0.3):
                try:
                    await peer.mux()
                except Exception:  # noqa: BLE001
                    continue
        assert sum(each.phase == "live" for each in net.peers()) == SMALL.connections_per_ip
        assert net.counters()["inbound.ip_full"] == 12 - SMALL.connections_per_ip


async def test_a_node_serves_any_number_of_connections_one_after_the_other():
    """[H1] The bare library gives no inbound slot back: after 250 connections it refuses everyone for ever."""
    async with node(NetLimits(connections=6, connections_per_ip=6)) as net:
        for _ in range(30):
            async with raw_peer(net.addrs()[0]) as peer:
                await peer.mux()
            await until(lambda: all(each.phase != "live" for each in net.peers()))


async def test_only_keys_that_are_an_address_come_in():
    async with node() as net, raw_peer(net.addrs()[0]) as peer:
        await peer.secure(ed25519_key=True)
        assert await peer.is_hung_up_on(0.45)


# Outbound.


@asynccontextmanager
async def tarpit(stage: int) -> AsyncIterator[int]:
    """A listener that answers so many reads and then nothing, for ever; gives its port."""

    async def stall(stream: trio.SocketStream) -> None:
        try:
            if stage:
                await stream.send_all(HELLO + (line(b"/noise") if stage > 1 else b""))
            await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, stall, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stage", [0, 1, 2])
async def test_a_dial_into_a_tarpit_ends_in_time(stage):
    """[H4] The bare library never returns."""
    async with node() as net, tarpit(stage) as port:
        with trio.fail_after(20), pytest.raises((Unreachable, Timeout)):
            await net.connect(f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id_of_key(os.urandom(32))}")


async def test_many_tarpits_do_not_keep_a_node_from_dialling_others():
    """[H5] On the bare library 32 of them block every dial."""
    limits = replace(SMALL, dial_timeout_ms=2_500)
    async with (
        node(limits) as net,
        open_net(NetConfig(), os.urandom(32)) as honest,
        tarpit(1) as port,
        trio.open_nursery() as nursery,
    ):

        async def fall_in() -> None:
            with pytest.raises((Unreachable, Timeout)):
                await net.connect(f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id_of_key(os.urandom(32))}")

        for _ in range(40):
            nursery.start_soon(fall_in)
        await trio.sleep(0.1)
        with trio.fail_after(limits.dial_timeout_ms / 1000 - 1):
            await net.connect(honest.addrs()[0])


async def test_an_address_where_another_peer_lives_is_not_the_peer():
    async with node() as net, open_net(NetConfig(), os.urandom(32)) as other:
        wrong = other.addrs()[0].rpartition("/")[0] + "/" + peer_id_of_key(os.urandom(32))
        with pytest.raises(Unreachable):
            await net.connect(wrong)
        await net.connect(other.addrs()[0])


# Multiplexing.


@pytest.mark.parametrize(
    "attack",
    [
        b"\x01" + frame(DATA, SYN, 1, 0)[1:],
        frame(9, SYN, 1, 0),
        frame(DATA, SYN, 2, 0),
        frame(WINDOW, SYN, 1, 0) * 2,
        frame(DATA, 0, 0, 4, b"abcd"),
        frame(WINDOW, SYN, 0, 0),
        frame(DATA, SYN, 1, 0xFFFFFFFF),
        frame(DATA, 0, 99, 0xFFFFFFFF),
        frame(GO_AWAY, 0, 0, 2),
    ],
    ids=count(1),
)
async def test_frames_that_no_multiplexer_sends_end_the_connection(attack):
    async with node() as net, muxed(net) as peer:
        await peer.send(attack)
        assert await peer.is_hung_up_on(1)


@pytest.mark.parametrize(
    "harmless",
    [
        frame(DATA, FIN, 77, 0),
        frame(WINDOW, RST, 77, 0),
        frame(WINDOW, ACK, 77, 5),
        frame(DATA, 0, 77, 4, b"late"),
        frame(PING, ACK, 0, 12345),
        frame(PING, SYN, 0, 7) * 50,
        frame(WINDOW, SYN, 1, 0xFFFFFFFF) + frame(WINDOW, 0, 1, 0xFFFFFFFF) * 5,
    ],
    ids=count(1),
)
async def test_late_frames_are_dropped_and_the_connection_goes_on(harmless):
    async with node() as net, muxed(net) as peer:
        await peer.send(harmless + frame(PING, SYN, 0, 4242))
        with trio.fail_after(1):
            while True:
                kind, flags, _, value, _ = await peer.next_frame()
                if (kind, flags, value) == (PING, ACK, 4242):
                    break


async def test_a_peer_that_ignores_the_window_is_cut_off_before_its_bytes_are_kept():
    """[M1] The bare library keeps them: 751 MiB in fifteen seconds."""
    async with node() as net, muxed(net) as peer:
        await peer.open(1, UNREAD)
        for _ in range(5):
            await peer.send(frame(DATA, 0, 1, 60_000) + bytes(60_000))
        assert await peer.is_hung_up_on(1)
        assert struck(net) == ["mux.sent beyond the window"]


async def test_bytes_in_streams_that_nobody_reads_are_bounded_for_a_connection():
    """[M2] What one peer sends and nobody reads."""
    async with node() as net, muxed(net) as peer:
        most = 0
        with suppress(RawConnError, ConnectionClosedError):
            for stream_id in range(1, 61, 2):
                await peer.open(stream_id, UNREAD)
                for _ in range(4):
                    await peer.send(frame(DATA, 0, stream_id, 65_000) + bytes(65_000))
                    await trio.sleep(0.001)
                    most = max(most, budget_of(net).held_bytes)
        assert await peer.is_hung_up_on(1)
        assert 1 << 20 < most <= SMALL.receive_buffer_bytes + (256 << 10)
        await until(lambda: budget_of(net).held_bytes == 0)
        assert struck(net)[0].startswith("mux.hoards memory")


async def test_when_all_memory_is_taken_the_hoarder_goes_and_the_modest_stay():
    """[M2] Over all connections together."""
    async with node() as net, muxed(net) as modest, AsyncExitStack() as stack:
        await modest.open(1, UNREAD)
        await modest.send(frame(DATA, 0, 1, 1000) + bytes(1000))
        with suppress(RawConnError, ConnectionClosedError):
            for _ in range(2):
                hoarder = await stack.enter_async_context(muxed(net))
                for stream_id in range(1, 21, 2):
                    await hoarder.open(stream_id, UNREAD)
                    for _ in range(3):
                        await hoarder.send(frame(DATA, 0, stream_id, 65_000) + bytes(65_000))
        await until(lambda: bool(struck(net)))
        assert struck(net)[0] == "mux.hoards memory: holds the most when all is taken"
        assert not await modest.is_hung_up_on(0.1)


async def test_streams_beyond_the_limit_are_reset_and_the_rest_go_on():
    """[H7] The bare library's limit is global: one peer takes it all and everybody else waits."""
    async with node() as net, muxed(net) as peer:
        await peer.send(b"".join(frame(WINDOW, SYN, stream_id, 0) for stream_id in range(1, 201, 2)))
        resets = set()
        with trio.move_on_after(0.4):
            while True:
                _, flags, stream_id, _, _ = await peer.next_frame()
                if flags & RST:
                    resets.add(stream_id)
        assert len(resets) >= 100 - SMALL.streams_per_connection
        assert sum(len(conn.streams) for conn in net._swarm.get_connections()) <= SMALL.streams_per_connection + 2


async def test_a_crowd_of_new_names_is_let_in_at_a_pace_and_junk_takes_nobodys_turn():
    """Each handshake costs milliseconds of the one thread, and names and addresses cost nothing."""
    limits = NetLimits(handshakes_per_s=1, handshakes_at_once=2)
    came = 0
    async with node(limits) as net:
        for number in range(8):
            async with raw_peer(net.addrs()[0], source=f"127.0.1.{number + 1}") as peer:
                await peer.send_raw(b"\x03\xff\xfe\n")
                assert await peer.is_hung_up_on()

        async def come(number: int) -> None:
            nonlocal came
            with suppress(Exception):
                async with raw_peer(net.addrs()[0], source=f"127.0.0.{number}") as peer:
                    with trio.fail_after(60):
                        await peer.mux()
                    came += 1

        async with trio.open_nursery() as nursery:
            for number in range(2, 22):
                nursery.start_soon(come, number)
        assert 2 <= came < 20
        assert net.counters()["inbound.too_fast"] >= 1
        await trio.sleep(4)


async def test_one_network_of_ipv6_takes_no_more_than_its_part_from_however_many_households(monkeypatch):
    """A /48, which anybody gets, has 65,536 households."""
    numbers = count(1)

    class FromAfar(TcpStream):
        def __init__(self, stream: trio.SocketStream) -> None:
            super().__init__(stream)
            self._remote = (f"2a01:4f8:1:{next(numbers):x}::5", 4_077)

    came = 0
    async with node(NetLimits(network_handshakes_per_s=1, network_handshakes_at_once=2)) as net:

        async def come() -> None:
            nonlocal came
            with suppress(Exception), trio.fail_after(20):
                async with muxed(net):
                    came += 1

        with monkeypatch.context() as patch:
            patch.setattr("hansa.node.network.libp2p_swarm.TcpStream", FromAfar)
            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(come)
        assert 2 <= came < 12
        assert net.counters()["inbound.network_too_fast"] == 12 - came


async def test_silent_strangers_of_one_network_leave_who_comes_from_another_a_place():
    """Before, sixty-four silent connections from eight addresses kept everybody out, for ten seconds each."""
    limits = NetLimits(pending_handshakes=16, pending_handshakes_per_ip=4, handshake_timeout_ms=60_000)
    async with node(limits) as net, AsyncExitStack() as crowd:
        for number in range(32):
            await crowd.enter_async_context(raw_peer(net.addrs()[0], source=f"127.0.3.{number % 8 + 1}"))
        await until(lambda: net.counters()["inbound.pending_full"] > 0, 30)
        with trio.fail_after(30):
            async with raw_peer(net.addrs()[0], source="127.9.0.1") as peer:
                await peer.mux()
        assert net.counters()["inbound.pending_put_out"] >= 1
        await until(lambda: not any(each.is_out for each in net._swarm._admission._here), 30)


async def test_a_house_full_of_one_network_has_room_for_who_comes_from_another():
    """Before, sixteen addresses with sixteen idle connections each kept everybody out for as long as they liked."""
    limits = NetLimits(connections=16)
    async with node(limits) as net, AsyncExitStack() as crowd:
        peers = [
            await crowd.enter_async_context(raw_peer(net.addrs()[0], source=f"127.0.3.{number % 8 + 1}"))
            for number in range(16)
        ]
        for each in peers:
            await each.mux()
        await until(lambda: len(net._swarm.get_connections()) == 16, 30)
        with trio.fail_after(30):
            async with raw_peer(net.addrs()[0], source="127.9.0.1") as peer:
                await peer.mux()
                await peer.open(1, UNREAD)
                assert not await peer.is_hung_up_on(0.5)
        assert net.counters()["inbound.put_out_of_a_crowd"] == 1
        assert await peers[-1].is_hung_up_on(30)
        assert not await peers[0].is_hung_up_on(0.2)
        await until(lambda: len(net._swarm.get_connections()) < 16, 30)


async def test_whoever_was_connected_for_a_while_comes_back_through_a_crowd(monkeypatch):
    monkeypatch.setattr("hansa.node.network.libp2p_connection.ACQUAINTED_S", 0.5)
    limits = NetLimits(handshakes_per_s=1, handshakes_at_once=1)
    async with node(limits) as net:
        async with muxed(net):
            await trio.sleep(0.8)
        await until(lambda: not net._swarm.get_connections(), 30)
        net._swarm._doorway._most_waiting = 0
        async with muxed(net):
            pass
        await trio.sleep(2)


async def test_a_stream_on_which_nothing_is_said_costs_no_task():
    """Two thousand openings in one piece cost 70 ms of the loop and as many tasks before."""
    async with node() as net, muxed(net) as peer:
        await peer.open(1, HELLO + line(b"/none/1"))  # answered, so that everything that connecting starts is there
        await trio.sleep(0.3)
        before = trio.lowlevel.current_statistics().tasks_living
        await peer.send(b"".join(frame(WINDOW, SYN, stream_id, 0) for stream_id in range(3, 63, 2)))
        connection = net._swarm.get_connections()[0]
        await until(lambda: connection.muxed_conn.open_streams >= 30, 30)
        await trio.sleep(0.1)
        assert trio.lowlevel.current_statistics().tasks_living < before + 15
        had = connection.muxed_conn.open_streams
        await peer.send(frame(WINDOW, FIN, 61, 0))
        await until(lambda: connection.muxed_conn.open_streams < had, 30)
        said = HELLO + line(ECHO.encode()) + (4).to_bytes(4, "big") + b"here"
        await peer.send(frame(DATA, 0, 3, len(said), said))
        answer = b""
        with trio.fail_after(30):
            while not answer.endswith(b"here"):
                kind, _, stream_id, _, body = await peer.next_frame()
                answer += body if (kind, stream_id) == (DATA, 3) else b""


async def test_of_silent_streams_on_many_connections_who_has_most_loses_the_oldest(monkeypatch):
    """Sixty-five thousand of them, on as many connections as there may be, would be ninety megabytes."""
    monkeypatch.setattr("hansa.node.network.libp2p_budget.MOST_SILENT", 20)
    async with node() as net, muxed(net) as greedy, raw_peer(net.addrs()[0], source="127.0.0.3") as modest:
        await modest.mux()
        await modest.open(1)
        await until(lambda: budget_of(net)._all_silent == 1, 30)
        await greedy.send(b"".join(frame(WINDOW, SYN, stream_id, 0) for stream_id in range(1, 61, 2)))
        resets = []
        with trio.fail_after(30):
            while len(resets) < 11:
                _, flags, stream_id, _, _ = await greedy.next_frame()
                if flags & RST:
                    resets.append(stream_id)
        assert resets == list(range(1, 23, 2))
        assert budget_of(net)._all_silent == 20
        said = HELLO + line(ECHO.encode()) + (4).to_bytes(4, "big") + b"here"
        await modest.send(frame(DATA, 0, 1, len(said), said))
        await greedy.send(frame(WINDOW, FIN, 59, 0) + frame(WINDOW, RST, 57, 0))
        await until(lambda: budget_of(net)._all_silent == 17, 30)
    await until(lambda: budget_of(net)._all_silent == 0, 30)
    assert not budget_of(net)._silent


async def test_a_stream_whose_very_opening_ends_its_connection_is_counted_no_more(monkeypatch):
    """Else eight megabytes of answers that nobody read stayed for good, and a stranger could leave them as often."""
    monkeypatch.setattr("hansa.node.network.libp2p_yamux.BACKLOG_BYTES", 4 * 12 - 1)

    class Piece:
        """A secured connection on which pings came, and a stream after them."""

        is_initiator = False

        def __init__(self) -> None:
            self.left = [frame(PING, SYN, 0, 1) * 3 + frame(WINDOW, SYN, 1, 0)]

        def get_connection_type(self) -> ConnectionType:
            return ConnectionType.DIRECT

        async def read(self, _n: int | None) -> bytes:
            await trio.lowlevel.checkpoint()
            return self.left.pop() if self.left else b""

    budget, offences = ReceiveBudget(1, 1), list[str]()
    yamux = BoundedYamux(Piece(), ID(b""), limits=NetLimits(), budget=budget, offence=offences.append)
    await yamux._read_loop()
    assert (yamux.is_closed, offences) == (True, ["does not read our answers"])
    assert (budget._all_silent, dict(budget._silent)) == (0, {})


async def test_a_piece_of_many_frames_leaves_others_their_turns():
    """Twenty thousand frames in one read kept everybody else waiting for as long as they took."""
    frames = 20_000

    class Piece:
        """A secured connection on which there is one piece to be read."""

        is_initiator = False

        def __init__(self) -> None:
            self.left = [frame(WINDOW, 0, 1, 1) * frames]

        def get_connection_type(self) -> ConnectionType:
            return ConnectionType.DIRECT

        async def read(self, _n: int | None) -> bytes:
            await trio.lowlevel.checkpoint()
            return self.left.pop() if self.left else b""

    yamux = BoundedYamux(Piece(), ID(b""), limits=NetLimits(), budget=ReceiveBudget(1, 1), offence=pytest.fail)
    turns = 0
    async with trio.open_nursery() as nursery:

        async def count_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        nursery.start_soon(count_turns)
        await yamux._read_loop()
        nursery.cancel_scope.cancel()
    assert turns >= frames // 200


async def test_a_flood_of_streams_ends_the_connection():
    async with node() as net, muxed(net) as peer:
        syns = b"".join(frame(WINDOW, SYN, stream_id, 0) for stream_id in range(1, 10_001, 2))
        with trio.move_on_after(2), suppress(Exception):
            await peer.send(syns)
        assert await peer.is_hung_up_on(2)
        assert struck(net) == ["mux.floods us with streams"]


async def test_pings_are_answered_at_a_pace_however_many_come_in_one_piece():
    """The bare library makes eight thousand answers of a quarter of a mebibyte, and a second of the thread."""
    async with node() as net, muxed(net) as peer:
        await peer.open(1, HELLO + line(b"/ipfs/ping/1.0.0"))
        for _ in range(4):
            await peer.send(frame(DATA, 0, 1, 50_000, bytes(50_000)))
        heard = b""
        with trio.move_on_after(4):
            while True:
                kind, _, stream_id, _, body = await peer.next_frame()
                heard += body if (kind, stream_id) == (DATA, 1) else b""
        answers = len(heard.removeprefix(HELLO + line(b"/ipfs/ping/1.0.0"))) // 32
        assert 1 <= answers <= 60


async def test_a_peer_that_provokes_answers_and_reads_none_is_cut_off():
    async with node() as net, muxed(net) as peer:
        with trio.fail_after(30), suppress(RawConnError, ConnectionClosedError):
            while True:
                await peer.send(frame(PING, SYN, 0, 1) * 5000)
        await until(lambda: not net._swarm.get_connections(), 3)
        assert struck(net) == ["mux.does not read our answers"]


async def test_a_frozen_peer_is_noticed():
    """[L1] The bare library never notices."""
    limits = NetLimits(ping_every_ms=100, ping_timeout_ms=300)
    async with node(limits) as net, muxed(net):
        await until(lambda: any(each.phase == "live" for each in net.peers()))
        await until(lambda: all(each.phase == "quiet" for each in net.peers()), 1.5)


async def test_a_request_that_is_given_up_half_sent_leaves_the_connection_whole():
    """[L3] On the bare library a cancelled write cuts an encrypted record, and nothing works any more."""
    async with node() as net, open_net(NetConfig(), os.urandom(32)) as honest:
        honest.learn(net.peer_id, net.addrs())
        arrivals = net.arrivals()
        await honest.connect(net.peer_id)
        for size in (1, 1 << 20, 8 << 20):
            for timeout_ms in (1, 3, 7):
                try:
                    await honest.request(net.peer_id, ECHO, bytes(size), timeout_ms=timeout_ms)
                except NetError:
                    continue
        assert await honest.request(net.peer_id, ECHO, b"x", timeout_ms=10_000) == b"x"
        assert arrivals.statistics().current_buffer_used == 1, "it is still the first connection"


async def test_a_reader_may_pause_for_longer_than_the_librarys_five_seconds():
    """[L3] Here the pause is short and the library's limit is not there at all: nothing but the ping ends a stream."""
    async with node() as net, muxed(net) as peer:
        await peer.open(1, HELLO + line(ECHO.encode()) + (300_000).to_bytes(4, "big"))
        for _ in range(4):
            await peer.send(frame(DATA, 0, 1, 60_000) + bytes(60_000))
        await trio.sleep(0.1)
        await peer.send(frame(DATA, 0, 1, 60_000) + bytes(60_000))
        # We give no window, so the node's answer of 300 kB stays half sent until its own deadline resets the stream.
        got = 0
        with trio.move_on_after(2):
            while True:
                kind, flags, stream_id, length, _ = await peer.next_frame()
                got += length if kind == DATA and stream_id == 1 else 0
                if flags & RST and stream_id == 1:
                    break
        assert 200_000 < got <= 256 << 10


# Streams.


@pytest.mark.parametrize(
    "opening",
    [b"\x03\xff\xfe\n", b"\xff\xff\xff\xff\x7f", HELLO + b"\x03\xff\xfe\n", HELLO + line(b"/none") * 40, b"\x00" * 100],
    ids=count(1),
)
async def test_a_hostile_stream_header_resets_the_stream_and_nothing_else(opening):
    """[C3, L5] One byte that is not UTF-8 ends the program on the bare library."""
    async with node() as net, muxed(net) as peer:
        await peer.open(1, opening)
        with trio.fail_after(1):
            while True:
                _, flags, stream_id, _, _ = await peer.next_frame()
                if stream_id == 1 and flags & RST:
                    break
        assert any(each.phase == "live" for each in net.peers())


async def test_any_handler_may_raise_anything():
    """[C2] On the bare library this ends the program, unless the text of the exception looks like a hang-up."""

    async def raises(_stream: object) -> None:
        await trio.lowlevel.checkpoint()
        raise LookupError("a fault in any protocol's handler, the library's own included")

    async with node() as net, muxed(net) as peer:
        net._host.set_stream_handler("/faulty/1", raises)
        for stream_id in (1, 3, 5):
            await peer.open(stream_id, HELLO + line(b"/faulty/1"))
        await until(lambda: net.counters().get("streams.handler_failed") == 3)
        assert struck(net) == ["streams.handler_failed"]


async def test_addresses_cannot_be_pushed():
    """[L5] Anybody may push a hundred thousand addresses through the library's identify."""
    async with node() as net, muxed(net) as peer:
        await peer.open(1, HELLO + line(b"/ipfs/id/push/1.0.0"))
        with trio.fail_after(1):
            while True:
                kind, _, stream_id, _, body = await peer.next_frame()
                if stream_id == 1 and kind == DATA and body.endswith(line(b"na")):
                    break


async def test_ping_and_identify_are_answered_as_everywhere():
    async with node() as net, muxed(net) as peer:
        await peer.open(1, HELLO + line(b"/ipfs/ping/1.0.0") + b"p" * 32)
        await peer.open(3, HELLO + line(b"/ipfs/id/1.0.0"))
        got = {1: b"", 3: b""}
        with trio.fail_after(2):
            while True:
                kind, _, stream_id, _, body = await peer.next_frame()
                if kind == DATA:
                    got[stream_id] = got.get(stream_id, b"") + body
                if got[1].endswith(b"p" * 32) and ECHO.encode() in got[3]:
                    break


# Requests.


@pytest.mark.parametrize(
    ("body", "counter"),
    [
        ((2 << 20).to_bytes(4, "big"), "serve.too_big"),
        (b"\xff\xff\xff\xff", "serve.too_big"),
        (b"\x00\x00", "serve.timeout"),
        ((100).to_bytes(4, "big") + b"half", "serve.timeout"),
    ],
    ids=count(1),
)
async def test_a_request_that_is_too_large_or_never_ends_is_given_up(body, counter):
    async with node() as net, muxed(net) as peer:
        await peer.open(1, HELLO + line(ECHO.encode()) + body)
        await until(lambda: net.counters().get(f"{counter} {ECHO}") == 1)


async def test_a_request_that_is_cut_short_is_counted():
    async with node() as net, muxed(net) as peer:
        await peer.open(1, HELLO + line(ECHO.encode()) + (100).to_bytes(4, "big") + b"half")
        await peer.send(frame(WINDOW, FIN, 1, 0))
        await until(lambda: net.counters().get(f"serve.cut_short {ECHO}") == 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00garbage",
        HELLO + b"\x05abcd\n" + b"x" * 50,
        HELLO + b"\x03\xff\xfe\n" + b"x" * 50,
        HELLO + line(ECHO.encode()) + b"\x09\x00\x00\x00\x00",
        HELLO + line(ECHO.encode()) + b"\x00\xff\xff\xff\xff",
        HELLO + line(ECHO.encode()) + b"\x01\x00\xff\xff\xff",
        HELLO + line(ECHO.encode()) + b"\x00\x00\x00\x00\x09half",
        b"",
    ],
    ids=count(1),
)
async def test_a_hostile_answer_is_an_error_for_the_caller_and_nothing_else(answer):
    async def lie(stream) -> None:
        await stream.muxed_stream.write(answer)
        await stream.muxed_stream.close()

    async with node() as net, open_net(NetConfig(), os.urandom(32)) as liar:
        # The liar's whole negotiation is replaced, so that its answer is the first thing it says.
        liar._swarm.common_stream_handler = lie
        net.learn(liar.peer_id, liar.addrs())
        with pytest.raises(NetError) as caught:
            await net.request(liar.peer_id, ECHO, b"x", timeout_ms=800)
        assert not isinstance(caught.value, Timeout)
        assert net.counters().get("streams.handler_failed", 0) == 0


async def test_a_peer_that_resets_every_stream_is_a_remote_fault():
    async with node() as net, open_net(NetConfig(), os.urandom(32)) as liar:

        async def reset(stream) -> None:
            await stream.reset()

        liar._swarm.common_stream_handler = reset
        net.learn(liar.peer_id, liar.addrs())
        with pytest.raises(RemoteFault):
            await net.request(liar.peer_id, ECHO, b"x", timeout_ms=800)


# Gossip.


def rpc_frame(rpc: object) -> bytes:
    data = rpc.SerializeToString()
    assert len(data) < 1 << 14
    return bytes((len(data) & 0x7F | 0x80, len(data) >> 7)) + data


def message(**changes: object) -> object:
    fields = {"data": b"x", "topicIDs": [TOPIC], "from_id": b"\x12\x20" + os.urandom(32), "seqno": os.urandom(8)}
    fields |= {"signature": b"s" * 64, "key": b"", **changes}
    return rpc_pb2.RPC(publish=[rpc_pb2.Message(**fields)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x05\xff\xff\xff\xff\xff", "gossip.not_protobuf"),
        (b"\x04junk", "gossip.not_protobuf"),
        (b"\xff\xff\xff\x7f", "gossip.rpc_too_big"),
        (b"\xff\xff\xff\xff\xff\x7f", "gossip.rpc_too_big"),
        (rpc_frame(message()), "gossip.bad_signature"),
        (rpc_frame(message(key=b"\xff\xff\xff")), "gossip.bad_signature"),
        (rpc_frame(message(key=b"\x08\x00\x12\x04junk")), "gossip.bad_signature"),
        (rpc_frame(message(key=b"\x08\x63\x12\x04junk")), "gossip.bad_signature"),
        (rpc_frame(message(from_id=b"")), "gossip.bad_signature"),
        (rpc_frame(message(from_id=b"\xff" * 40)), "gossip.bad_signature"),
        (rpc_frame(message(topicIDs=[TOPIC, TOPIC])), "gossip.malformed"),
    ],
)
async def test_hostile_gossip_is_a_strike_and_never_the_end(data, reason):
    """[C4, C5] Each of these ends the program on the bare library, or is believed."""
    async with node() as net, muxed(net) as peer:
        await peer.open(1, GOSSIP + data)
        await until(lambda: net.counters().get(reason) == 1)
        assert struck(net) == [reason]


async def test_forged_gossip_in_anothers_name_is_not_delivered():
    async with node() as net, open_net(NetConfig(), os.urandom(32)) as victim, muxed(net) as peer:
        from libp2p.peer.id import ID

        heard = net.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        forged = message(
            from_id=ID.from_base58(victim.peer_id).to_bytes(), key=victim._host.get_public_key().serialize()
        )
        await peer.open(1, GOSSIP + rpc_frame(forged))
        await until(lambda: net.counters().get("gossip.bad_signature") == 1)
        assert heard.statistics().current_buffer_used == 0


async def test_a_validator_of_ours_that_raises_on_hostile_input_only_drops_the_message():
    """[C6] On the bare library it ends the program."""

    def picky(_context: Context, data: bytes) -> Verdict:
        raise UnicodeDecodeError("utf-8", data, 0, 1, "hostile")

    async with node() as net, open_net(NetConfig(bootstrap=net.addrs()), os.urandom(32)) as author:
        net.subscribe(TOPIC, picky)
        author.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        await trio.sleep(0.4)
        await author.publish(TOPIC, b"\xff")
        await until(lambda: net.counters().get(f"gossip.validator_failed {TOPIC}") == 1)


async def test_more_subscriptions_in_one_message_than_it_may_have_are_blamed_and_not_looked_at():
    """[L5] Five thousand are ten kilobytes of nothing, which a hundred messages a second could carry."""
    async with node() as net, muxed(net) as peer:
        most = net._pubsub.max_subscriptions_per_rpc
        many = rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts() for _ in range(most + 1)])
        await peer.open(1, GOSSIP + rpc_frame(many))
        await until(lambda: net.counters().get("gossip.too_many_subscriptions") == 1)
        assert "gossip.strange_topic" not in net.counters()


async def test_a_flood_of_messages_and_topics_is_cut_to_the_rate():
    """[L5] Each is small, and together they would keep the node busy."""
    limits = NetLimits(gossip_messages_per_s=10)
    async with node(limits) as net, muxed(net) as peer:
        own = rpc_pb2.RPC(publish=[rpc_pb2.Message(data=b"x", topicIDs=["/hansa/not-ours"]) for _ in range(200)])
        odd = rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"/x/{n}") for n in range(50)])
        await peer.open(1, GOSSIP + rpc_frame(own) + rpc_frame(odd))
        await until(lambda: net.counters().get("gossip.strange_topic") == 50)
        assert net.counters()["gossip.message_rate"] >= 170
        assert set(net._pubsub.peer_topics) <= {TOPIC}
