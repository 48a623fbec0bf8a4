"""What a stranger answers on a stream of ours, or asks and does not wait for, costs him something and us nothing."""

import os
from contextlib import suppress
from itertools import pairwise

import pytest
import trio
from kit.waiting import until
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, StopMessage

from hansa.node.messaging.peer_exchange import PeersWanted
from hansa.node.network import libp2p_circuit, libp2p_relay
from hansa.node.network.libp2p_autonat import AUTONAT
from hansa.node.network.libp2p_circuit import open_circuit, reserve
from hansa.node.network.libp2p_dcutr import DCUTR
from hansa.node.network.libp2p_host import Libp2pNet, open_net
from hansa.node.network.libp2p_relay import HOP, STOP
from hansa.node.network.libp2p_wire import WireFault, open_protocol, send_message
from hansa.node.network.net import NetConfig
from hansa.node.network.reachability import Opinion, Opinions
from hansa.proto.codec import decode, encode
from hansa.proto.peer_id import peer_id_of_key

pytestmark = pytest.mark.trio
NO_LINE = b"\xff\xff\xff\xff"
NAME = peer_id_of_key(bytes(31) + b"\x01")


def connection(net: Libp2pNet, other: Libp2pNet):
    return net._swarm.live_connections(ID.from_base58(other.peer_id))[0]


def strikes(net: Libp2pNet, other: Libp2pNet) -> tuple[str, ...]:
    return next((peer.whys for peer in net.peers() if peer.peer_id == other.peer_id), ())


def seen_from_outside(net: Libp2pNet) -> None:
    opinion = Opinion(observer="x", network="n", seen_at=("45.33.1.2", 4001), reached_at=None, at_s=trio.current_time())
    net._reachability._opinions = Opinions((opinion,))


async def answer_no_line(stream: NetStream) -> None:
    with suppress(Exception):
        await stream.muxed_stream.write(NO_LINE)
        await trio.sleep(1)


# What ends nothing of ours.


async def test_an_answer_that_is_no_line_is_a_fault_of_the_wire():
    async with open_net(NetConfig(), os.urandom(32)) as stranger, open_net(NetConfig(), os.urandom(32)) as node:
        await node.connect(stranger.addrs()[0])
        stranger._swarm.common_stream_handler = answer_no_line
        with pytest.raises(WireFault), trio.fail_after(10):
            await open_protocol(connection(node, stranger).muxed_conn, HOP)


async def test_a_stranger_whom_a_relay_brought_does_not_end_the_network_s_life():
    async with open_net(NetConfig(), os.urandom(32)) as stranger, open_net(NetConfig(), os.urandom(32)) as node:
        await stranger.connect(node.addrs()[0])
        await until(lambda: node.is_live(stranger.peer_id))
        stranger._swarm.common_stream_handler = answer_no_line
        relayed = connection(node, stranger)
        relayed.muxed_conn.path = "relayed"
        seen_from_outside(node)
        node._swarm.on_relayed(relayed)
        await until(lambda: node.counters().get("dcutr.broke_off") or node.reach().restarts)
        assert node.reach().restarts == 0
        assert node.is_live(stranger.peer_id)


async def test_whatever_is_done_beside_the_network_ends_alone():
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("nobody thought of this")

    async with open_net(NetConfig(), os.urandom(32)) as node:
        node._stack.soon(fail)
        await until(lambda: node.counters().get("net.task_failed") or node.reach().restarts)
        assert node.reach().restarts == 0


async def test_an_observer_s_answer_does_not_end_the_holding_of_places():
    async with (
        open_net(NetConfig(relay=True), os.urandom(32)) as relay,
        open_net(NetConfig(), os.urandom(32)) as stranger,
        open_net(NetConfig(), os.urandom(32)) as node,
    ):
        stranger._swarm.common_stream_handler = answer_no_line
        await node.connect(stranger.addrs()[0])
        await until(lambda: node.counters().get("reach.observer_failed"))
        await node.connect(relay.addrs()[0])
        await until(lambda: node.reach().relays)


async def test_a_part_that_fails_is_begun_again_after_a_pause_and_each_time_is_counted():
    begun = []

    async def part(_stack) -> None:
        begun.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if len(begun) < 4:
            raise ValueError("a peer's doing")

    async with open_net(NetConfig(), os.urandom(32)) as node:
        node.attach(part)
        await until(lambda: len(begun) == 4)
        pauses = [later - sooner for sooner, later in pairwise(begun)]
        assert all(pause >= 0.2 * 2**number for number, pause in enumerate(pauses))
        assert sum(count for why, count in node.counters().items() if why.startswith("net.part_failed")) == 3
        await trio.sleep(0.3)
        assert len(begun) == 4, "a part that is done is not begun again"


async def test_who_holds_a_place_and_answers_badly_costs_the_asker_no_strike():
    async with (
        open_net(NetConfig(relay=True), os.urandom(32)) as relay,
        open_net(NetConfig(), os.urandom(32)) as holder,
        open_net(NetConfig(), os.urandom(32)) as asker,
    ):
        await holder.connect(relay.addrs()[0])
        await asker.connect(relay.addrs()[0])
        await until(lambda: relay._reachability.relay.reservations)
        holder._swarm.common_stream_handler = answer_no_line
        with pytest.raises(Exception, match="no circuit"):
            await open_circuit(connection(asker, relay).muxed_conn, ID.from_base58(holder.peer_id))
        await until(lambda: relay.counters().get("relay.refused: the one asked for does not answer"))
        assert strikes(relay, asker) == ()


# What a relay says of itself.


async def test_no_address_is_told_that_does_not_fit_where_addresses_are_told():
    async with open_net(NetConfig(), os.urandom(32)) as node:
        long = "/ip4/45.33.1.2/tcp/1/http-path/" + "x" * 600
        node._reachability.found_addrs = lambda: (long, "/ip4/45.33.1.2/tcp/2")
        assert f"/ip4/45.33.1.2/tcp/2/p2p/{node.peer_id}" in node.addrs()
        decode(encode(PeersWanted(addrs=node.addrs()[:8])), PeersWanted, limit_bytes=64 << 10)
        assert node.counters()["addresses.too_long_to_tell"]


async def say_nothing(_stream):
    await trio.sleep_forever()


async def test_a_relay_that_says_nothing_is_left_after_a_while(monkeypatch):
    monkeypatch.setattr(libp2p_circuit, "ANSWER_S", 0.5)
    async with open_net(NetConfig(), os.urandom(32)) as silent, open_net(NetConfig(), os.urandom(32)) as node:
        await node.connect(silent.addrs()[0])
        silent._swarm.common_stream_handler = say_nothing
        with trio.move_on_after(10) as waiting:
            with pytest.raises(trio.TooSlowError):
                await reserve(connection(node, silent).muxed_conn)
        assert not waiting.cancelled_caught


# Who goes early has done no wrong.


@pytest.mark.parametrize("protocol", [HOP, STOP, AUTONAT, DCUTR])
async def test_who_ends_early_is_no_wrongdoer(protocol):
    async with (
        open_net(NetConfig(relay=True), os.urandom(32)) as node,
        open_net(NetConfig(announce=("/ip4/203.0.113.7/tcp/4077",)), os.urandom(32)) as hasty,
    ):
        await hasty.connect(node.addrs()[0])
        await until(lambda: node.is_live(hasty.peer_id))
        if protocol == DCUTR:
            connection(node, hasty).muxed_conn.path = "relayed"
        for said in (b"", b"\x80", b"\x05ab"):
            for end in ("finish", "abort"):
                stream = await open_protocol(connection(hasty, node).muxed_conn, protocol)
                if said:
                    await stream.write(said)
                getattr(stream, end)()
        gone = {HOP: "relay.asker_gone", STOP: "circuit.caller_gone", AUTONAT: "autonat.asker_gone"}
        await until(lambda: node.counters().get(gone.get(protocol, "dcutr.broke_off"), 0) >= 6 or strikes(node, hasty))
        assert strikes(node, hasty) == ()


async def test_a_circuit_that_its_asker_leaves_early_is_no_wrong_of_the_relay_s(monkeypatch):
    async with (
        open_net(NetConfig(relay=True), os.urandom(32)) as relay,
        open_net(NetConfig(), os.urandom(32)) as holder,
        open_net(NetConfig(announce=("/ip4/203.0.113.7/tcp/4077",)), os.urandom(32)) as asker,
    ):
        await holder.connect(relay.addrs()[0])
        await asker.connect(relay.addrs()[0])
        await until(lambda: relay._reachability.relay.reservations)

        async def far(muxed_conn, protocol):
            stream = await open_protocol(muxed_conn, protocol)
            try:
                await trio.sleep(1)
            except BaseException:
                stream.abort()
                raise
            return stream

        monkeypatch.setattr(libp2p_relay, "open_protocol", far)
        wanted = PeerId(id=ID.from_base58(holder.peer_id).to_bytes())
        for _ in range(6):
            stream = await open_protocol(connection(asker, relay).muxed_conn, HOP)
            await send_message(stream, HopMessage(type=HopMessage.CONNECT, peer=wanted))
        await trio.sleep(0.5)
        await connection(asker, relay).close()
        await until(lambda: holder.counters().get("circuit.caller_gone", 0) >= 5 or strikes(holder, relay), 15)
        assert strikes(holder, relay) == strikes(relay, asker) == ()


async def test_a_caller_who_is_gone_when_a_circuit_is_taken_is_no_wrong_of_the_relay_s():
    async with (
        open_net(NetConfig(relay=True), os.urandom(32)) as relay,
        open_net(NetConfig(), os.urandom(32)) as holder,
    ):
        await holder.connect(relay.addrs()[0])
        await until(lambda: relay._reachability.relay.reservations)
        call = StopMessage(type=StopMessage.CONNECT, peer=PeerId(id=ID.from_base58(NAME).to_bytes()))
        for _ in range(6):
            stream = await open_protocol(connection(relay, holder).muxed_conn, STOP)
            await send_message(stream, call)
            stream.abort()
        over = ("circuit.caller_gone", "inbound.handshake_failed")
        await until(lambda: sum(holder.counters().get(why, 0) for why in over) >= 6 or strikes(holder, relay))
        assert strikes(holder, relay) == ()
