"""Circuits through relays: they carry what two nodes say, and a relay gives away no more than it means to."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import SimpleNamespace

import pytest
import trio
from kit.echo import ECHO, echo
from kit.waiting import until
from libp2p.host.autonat.pb.autonat_pb2 import Message
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, StopMessage
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.stream_muxer.exceptions import MuxedStreamError
from multiaddr import Multiaddr

from hansa.node.network import libp2p_relay, libp2p_swarm
from hansa.node.network.libp2p_acquaintances import TOLD_EARLIER
from hansa.node.network.libp2p_autonat import AUTONAT, ask_for_dial_back
from hansa.node.network.libp2p_circuit import reserve
from hansa.node.network.libp2p_dcutr import ALL_PUNCHES_AT_ONCE, DCUTR, PUNCHES_AT_ONCE, HolePuncher
from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_host import Libp2pNet, open_net
from hansa.node.network.libp2p_relay import HOP, STOP, RelayService
from hansa.node.network.libp2p_wire import WireFault, open_protocol, receive_message, send_message
from hansa.node.network.net import Context, NetConfig, NetError, NetLimits, RelayLimits, Unreachable
from hansa.node.network.reachability import Opinion, Opinions
from hansa.proto.peer_id import peer_id_of_key

pytestmark = pytest.mark.trio


def circuits(net: Libp2pNet) -> list[str]:
    return [addr for addr in net.addrs() if "p2p-circuit" in addr]


def muxed(net: Libp2pNet, other: Libp2pNet):
    return net._swarm.live_connections(ID.from_base58(other.peer_id))[0].muxed_conn


@asynccontextmanager
async def relayed(**limits: int) -> AsyncIterator[tuple[Libp2pNet, Libp2pNet, Libp2pNet]]:
    """A relay, a node that has a place there, and one that knows of neither."""
    async with (
        open_net(NetConfig(relay=True, relay_limits=RelayLimits(**limits)), os.urandom(32)) as relay,
        open_net(NetConfig(bootstrap=relay.addrs()), os.urandom(32)) as callee,
        open_net(NetConfig(), os.urandom(32)) as caller,
    ):
        callee.serve(ECHO, echo, max_request_bytes=1 << 20)
        await until(lambda: circuits(callee))
        yield relay, callee, caller


async def hop(net: Libp2pNet, relay: Libp2pNet, message: HopMessage) -> HopMessage:
    stream = await open_protocol(muxed(net, relay), HOP)
    try:
        with trio.fail_after(10):
            await send_message(stream, message)
            return await receive_message(stream, HopMessage)
    finally:
        stream.abort()


# What circuits carry.


async def test_a_node_that_nobody_dials_is_reached_through_a_relay_and_both_ends_know_it():
    async with relayed() as (relay, callee, caller):
        heard = []

        async def note(context: Context, data: bytes) -> bytes:
            heard.append(context)
            return data

        callee.serve("/hansa/note/1", note)
        assert await caller.connect(circuits(callee)[0]) == "relayed"
        assert await caller.request(callee.peer_id, "/hansa/note/1", b"x") == b"x"
        assert heard == [Context(peer_id=caller.peer_id, address=heard[0].address, path="relayed")]
        assert {peer.peer_id: peer.path for peer in caller.peers()} == {
            relay.peer_id: "direct",
            callee.peer_id: "relayed",
        }
        # A direct connection is taken for what is new as soon as there is one.
        caller.learn(callee.peer_id, tuple(addr for addr in callee.addrs() if "circuit" not in addr))
        await caller.disconnect(callee.peer_id)
        assert await caller.connect(callee.peer_id) == "direct"


async def test_a_relay_sees_none_of_what_passes_through_it(monkeypatch):
    passed = bytearray()
    pump = RelayService._pump

    async def listening(self, source, sink, circuit):
        write = sink.write

        async def tapped(data):
            passed.extend(data)
            await write(data)

        sink.write = tapped
        await pump(self, source, sink, circuit)

    monkeypatch.setattr(RelayService, "_pump", listening)
    async with relayed() as (_, callee, caller):
        secret = b"the price is 42 " * 64
        await caller.connect(circuits(callee)[0])
        assert await caller.request(callee.peer_id, ECHO, secret) == secret
        assert len(passed) > 2 * len(secret)
        assert secret[:16] not in passed
        assert ECHO.encode() not in passed


async def test_a_relay_that_brings_somebody_else_is_not_believed(monkeypatch):
    async with (
        relayed() as (relay, callee, caller),
        open_net(NetConfig(bootstrap=relay.addrs()), os.urandom(32)) as other,
    ):
        await until(lambda: circuits(other))
        other.serve(ECHO, echo)
        call = RelayService._call

        async def lie(self, asker, wanted):
            return await call(self, asker, ID.from_base58(other.peer_id))

        monkeypatch.setattr(RelayService, "_call", lie)
        with pytest.raises(Unreachable):
            await caller.connect(circuits(callee)[0])
        assert not caller._swarm.live_connections(ID.from_base58(callee.peer_id))


async def test_a_relay_that_names_somebody_else_as_the_caller_is_not_believed(monkeypatch):
    async with relayed() as (relay, callee, caller):
        call = RelayService._call

        async def lie(self, asker, wanted):
            return await call(self, ID.from_base58(relay.peer_id), wanted)

        monkeypatch.setattr(RelayService, "_call", lie)
        with pytest.raises(NetError):  # noqa: PT012
            await caller.connect(circuits(callee)[0])
            await caller.request(callee.peer_id, ECHO, b"x", timeout_ms=3_000)
        assert callee.counters()["circuit.somebody_else"]


async def test_an_acquaintance_comes_back_through_a_relay_whose_callers_flood_us(monkeypatch):
    """Everybody who comes through one relay is one caller; whom we know has a share of its own there as well."""
    monkeypatch.setattr("hansa.node.network.libp2p_connection.ACQUAINTED_S", 0.5)
    async with relayed() as (relay, callee, caller):
        await caller.connect(circuits(callee)[0])
        await trio.sleep(0.8)
        await caller.disconnect(callee.peer_id)
        await until(lambda: not callee._swarm.live_connections(ID.from_base58(caller.peer_id)))
        callee._swarm._doorway._most_waiting = callee._swarm._doorway._most_of_a_network = 0
        while callee._swarm._doorway._all.take(""):
            pass
        taken = [callee._swarm._admission.enter(f"relay {relay.peer_id}") for _ in range(16)]
        assert taken[0] is not None
        assert taken[-1] is None, "its callers hold all that they may"
        assert await caller.connect(circuits(callee)[0]) == "relayed"
        assert await caller.request(callee.peer_id, ECHO, b"x") == b"x"


async def test_places_are_kept_at_several_relays_and_a_lost_one_is_replaced():
    async with (
        open_net(NetConfig(relay=True), os.urandom(32)) as first,
        open_net(NetConfig(relay=True), os.urandom(32)) as second,
        open_net(NetConfig(relay=True), os.urandom(32)) as third,
        open_net(NetConfig(bootstrap=(*first.addrs(), *second.addrs())), os.urandom(32)) as node,
    ):
        await until(lambda: len(node.reach().relays) == 2)
        first.bar(node.peer_id, 60, "a test")
        await until(lambda: [each.peer_id for each in node.reach().relays] == [second.peer_id])
        assert all(first.peer_id not in addr for addr in node.addrs())
        await node.connect(third.addrs()[0])
        await until(lambda: {each.peer_id for each in node.reach().relays} == {second.peer_id, third.peer_id})


async def test_announced_addresses_win_over_everything_and_need_no_relay():
    async with open_net(NetConfig(relay=True), os.urandom(32)) as relay:
        config = NetConfig(bootstrap=relay.addrs(), announce=("/ip4/203.0.113.7/tcp/4077",))
        async with open_net(config, os.urandom(32)) as node:
            await until(lambda: node.reach().opinions)
            await trio.sleep(0.3)
            assert node.addrs() == (f"/ip4/203.0.113.7/tcp/4077/p2p/{node.peer_id}",)
            assert relay.reach().reservations == 0


# What relays allow.


async def test_nobody_is_called_who_has_no_place_or_is_barred():
    async with relayed() as (relay, callee, caller):
        await caller.connect(relay.addrs()[0])
        wanted = PeerId(id=ID.from_base58(caller.peer_id).to_bytes())
        answer = await hop(callee, relay, HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=b"nobody")))
        assert answer.status == circuit_pb2.NO_RESERVATION
        assert wanted.id
        relay.bar(callee.peer_id, 60, "a test")
        await until(lambda: not relay._swarm.live_connections(ID.from_base58(callee.peer_id)))
        there = PeerId(id=ID.from_base58(callee.peer_id).to_bytes())
        answer = await hop(caller, relay, HopMessage(type=HopMessage.CONNECT, peer=there))
        assert answer.status == circuit_pb2.NO_RESERVATION


async def test_one_network_takes_no_more_than_its_part_of_the_places():
    async with (
        open_net(NetConfig(relay=True, relay_limits=RelayLimits(reservations_per_network=2)), os.urandom(32)) as relay,
        AsyncExitStack() as stack,
    ):
        for _ in range(4):
            node = await stack.enter_async_context(open_net(NetConfig(), os.urandom(32)))
            await node.connect(relay.addrs()[0])
        await until(lambda: relay.counters().get("relay.refused: its network has too many places", 0) >= 2)
        assert relay.reach().reservations == 2


async def test_a_flood_of_reservations_bars_who_floods_and_leaves_places_for_others():
    async with open_net(NetConfig(relay=True), os.urandom(32)) as relay, open_net(NetConfig(), os.urandom(32)) as flood:
        await flood.connect(relay.addrs()[0])
        with pytest.raises(Exception):  # noqa: B017, PT012  # whichever way it notices
            for _ in range(100):
                await hop(flood, relay, HopMessage(type=HopMessage.RESERVE))
        assert relay.counters()["relay.refused: asks too often"] >= 5
        assert next(peer.phase for peer in relay.peers() if peer.peer_id == flood.peer_id) == "barred"
        async with open_net(NetConfig(bootstrap=relay.addrs()), os.urandom(32)) as honest:
            await until(lambda: circuits(honest))


async def test_who_only_heard_of_many_peers_behind_a_relay_is_refused_there_and_not_barred():
    """Whoever names invented peers behind a relay must not get honest nodes barred by it."""
    async with open_net(NetConfig(relay=True), os.urandom(32)) as relay, open_net(NetConfig(), os.urandom(32)) as node:
        await node.connect(relay.addrs()[0])
        for _ in range(40):
            await hop(node, relay, HopMessage(type=HopMessage.RESERVE))
        assert relay.counters()["relay.refused: asks too often"] >= 5
        assert next(peer.strikes for peer in relay.peers() if peer.peer_id == node.peer_id) == 0


async def test_who_heard_of_many_peers_behind_a_relay_asks_it_no_more_often_than_it_answers():
    """Else it is refused there, and so is the renewal of its own place."""
    limits = NetLimits(dial_timeout_ms=2_500)
    async with (
        open_net(NetConfig(relay=True), os.urandom(32)) as relay,
        open_net(NetConfig(limits=limits), os.urandom(32)) as node,
    ):
        await node.connect(relay.addrs()[0])

        async def dial(number: int) -> None:
            nobody = peer_id_of_key((90_000 + number).to_bytes(32, "big"))
            node.learn(nobody, (relay.addrs()[0] + "/p2p-circuit",))
            with suppress(NetError):
                await node.connect(nobody)

        async with trio.open_nursery() as nursery:
            for number in range(24):
                nursery.start_soon(dial, number)
        assert relay.counters()["relay.refused: nobody of that name has a place"] >= 5
        assert (await reserve(muxed(node, relay))).relay == relay.peer_id
        assert "relay.refused: asks too often" not in relay.counters()
        # Who would not have its turn in time does not wait for it, in one of the places that there are for dials.
        assert node.counters()["dial.too_many_wait_for_relay"] >= 10
        assert node._swarm.relay_turns.waiting == 0


@pytest.mark.parametrize("is_connected", [False, True], ids=["a wrong address of it", "the relay itself"])
async def test_invented_peers_behind_a_relay_do_not_use_up_the_turns_of_a_given_one(is_connected: bool):
    """Strangers name them without end; the one peer that the operator named there is reached all the same."""
    limits = NetLimits(dial_timeout_ms=5_000)
    async with relayed() as (relay, callee, _), open_net(NetConfig(limits=limits), os.urandom(32)) as node:
        where = "/ip4/127.0.0.1/tcp/1"
        if is_connected:
            where = relay.addrs()[0].split("/p2p/")[0]
            await node.connect(relay.addrs()[0])

        async def dial(number: int) -> None:
            nobody = peer_id_of_key((90_000 + number).to_bytes(32, "big"))
            node._acquaintances.learn(nobody, (f"{where}/p2p/{relay.peer_id}/p2p-circuit",), TOLD_EARLIER)
            with suppress(NetError):
                await node.connect(nobody)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(dial, number)
            await trio.sleep(0.3)
            assert await node.connect(circuits(callee)[0]) == "relayed"
            nursery.cancel_scope.cancel()
        refused = relay.counters().get("relay.refused: nobody of that name has a place", 0)
        assert refused > 0 if is_connected else refused == 0, "a relay that is not there is not asked"


async def test_a_circuit_ends_when_its_bytes_or_its_time_are_used_up():
    async with relayed(circuit_bytes=256 << 10) as (relay, callee, caller):
        await caller.connect(circuits(callee)[0])
        with pytest.raises(NetError):  # noqa: PT012
            for _ in range(8):
                await caller.request(callee.peer_id, ECHO, os.urandom(60_000))
        assert relay.counters()["relay.circuit_bytes_used_up"]
        await until(lambda: relay.reach().circuits == 0)
    async with relayed(circuit_s=1) as (relay, callee, caller):
        await caller.connect(circuits(callee)[0])
        await until(lambda: relay.counters().get("relay.circuit_time_up"))
        await until(lambda: relay.reach().circuits == 0)
        # Another one can be had at once.
        assert await caller.connect(circuits(callee)[0]) == "relayed"


async def test_one_peer_takes_no_more_than_its_part_of_the_circuits():
    async with relayed(circuits_per_peer=1) as (relay, callee, caller):
        assert await caller.connect(circuits(callee)[0]) == "relayed"
        async with open_net(NetConfig(), os.urandom(32)) as another:
            with pytest.raises(Unreachable):
                await another.connect(circuits(callee)[0])
        assert relay.counters()["relay.refused: the one asked for has too many circuits"]


async def test_nothing_is_asked_of_a_relay_through_another_one():
    async with (
        open_net(NetConfig(relay=True), os.urandom(32)) as first,
        open_net(NetConfig(relay=True, bootstrap=first.addrs()), os.urandom(32)) as hidden,
        open_net(NetConfig(), os.urandom(32)) as caller,
    ):
        await until(lambda: circuits(hidden))
        assert await caller.connect(circuits(hidden)[0]) == "relayed"
        answer = await hop(caller, hidden, HopMessage(type=HopMessage.RESERVE))
        assert answer.status == circuit_pb2.PERMISSION_DENIED
        assert hidden.reach().reservations == 0


async def test_what_is_no_message_is_a_strike_and_the_relay_goes_on():
    async with relayed() as (relay, callee, caller):
        await caller.connect(relay.addrs()[0])
        for garbage in (b"\xff\xff\xff\xff\xff", b"\x05\xff\xff\xff\xff\xff", b"\xff\xff\x7f", b""):
            stream = await open_protocol(muxed(caller, relay), HOP)
            await stream.write(garbage)
            stream.finish()
            with trio.move_on_after(2), suppress(MuxedStreamError):
                await stream.read(100)
        assert relay.counters()["relay.malformed"] >= 3
        async with open_net(NetConfig(), os.urandom(32)) as honest:
            assert await honest.connect(circuits(callee)[0]) == "relayed"


async def test_a_circuit_that_nobody_asked_for_is_not_taken():
    async with open_net(NetConfig(), os.urandom(32)) as node, open_net(NetConfig(), os.urandom(32)) as pushy:
        await pushy.connect(node.addrs()[0])
        stream = await open_protocol(muxed(pushy, node), STOP)
        there = PeerId(id=ID.from_base58(pushy.peer_id).to_bytes())
        await send_message(stream, StopMessage(type=StopMessage.CONNECT, peer=there))
        answer = await receive_message(stream, StopMessage)
        assert answer.status == circuit_pb2.PERMISSION_DENIED
        assert node.counters()["circuit.unasked_for"]


async def test_all_circuits_together_keep_to_their_rate():
    async with relayed(bytes_per_s=256 << 10) as (_, callee, caller):
        await caller.connect(circuits(callee)[0])
        start = trio.current_time()
        for _ in range(4):
            await caller.request(callee.peer_id, ECHO, os.urandom(64 << 10))
        # Half a mebibyte in both directions together, less what one burst may be ahead.
        assert trio.current_time() - start > 1.2


# What dialling back does.


async def test_nobody_is_dialled_back_but_where_the_asker_comes_from():
    async with open_net(NetConfig(), os.urandom(32)) as node, open_net(NetConfig(), os.urandom(32)) as asker:
        await asker.connect(node.addrs()[0])
        with trio.socket.socket() as victim:
            await victim.bind(("127.0.0.2", 0))
            victim.listen()
            port = victim.getsockname()[1]
            own = ID.from_base58(asker.peer_id)
            assert await ask_for_dial_back(muxed(asker, node), own, [f"/ip4/127.0.0.2/tcp/{port}"]) is None
            with trio.move_on_after(0.5) as waiting:
                await victim.accept()
            assert waiting.cancelled_caught
        assert node.counters()["autonat.refused: not where it comes from"]


async def test_nobody_is_dialled_back_for_another_or_too_often():
    async with open_net(NetConfig(), os.urandom(32)) as node, open_net(NetConfig(), os.urandom(32)) as asker:
        await asker.connect(node.addrs()[0])
        here = asker.addrs()[0].partition("/p2p/")[0]
        assert await ask_for_dial_back(muxed(asker, node), ID.from_base58(node.peer_id), [here]) is None
        own = ID.from_base58(asker.peer_id)
        answers = [await ask_for_dial_back(muxed(asker, node), own, [here]) for _ in range(8)]
        assert answers[0] == here
        # Four at once, and one more for every ten seconds that the machine takes for this.
        assert 1 <= answers.count(here) <= 6
        assert node.counters()["autonat.refused: too often"] >= 1
        # What they try leaves no connection behind.
        assert len(node._swarm.get_connections()) == 1


async def test_nobody_is_dialled_back_through_a_relay():
    async with relayed() as (_, callee, caller):
        await caller.connect(circuits(callee)[0])
        here = caller.addrs()[-1].partition("/p2p/")[0]
        assert await ask_for_dial_back(muxed(caller, callee), ID.from_base58(caller.peer_id), [here]) is None
        assert callee.counters()["autonat.refused: through a relay"]


async def test_a_liar_who_says_we_are_public_does_not_end_our_places():
    async with relayed() as (relay, callee, _):
        await until(lambda: callee.reach().opinions and callee.reach().opinions[0].reached_at)
        assert callee.reach().verdict == "unknown"
        assert circuits(callee)
        assert relay.reach().reservations == 1


async def test_only_who_comes_from_where_we_never_spoke_shows_that_strangers_get_in(monkeypatch):
    monkeypatch.setattr(libp2p_swarm, "place_of", lambda _host: "public")
    async with open_net(NetConfig(), os.urandom(32)) as node, open_net(NetConfig(), os.urandom(32)) as other:
        await node.connect(other.addrs()[0])
        await until(lambda: other.counters().get("reach.stranger_came_in"))
        assert (other.reach().verdict, node.reach().verdict) == ("public", "unknown")
        await node.disconnect(other.peer_id)
        await until(lambda: not other.is_live(node.peer_id))
        await other.connect(node.addrs()[0])
        await until(lambda: node.is_live(other.peer_id))
        await node.connect(other.peer_id)
        assert "reach.stranger_came_in" not in node.counters()


async def test_places_are_held_until_a_stranger_came_in_and_again_where_nobody_gets_in():
    here = ("45.33.9.2", 4077)

    def all_said(reached_at: str) -> Opinions:
        return Opinions(
            tuple(
                Opinion(observer=each, network=each, seen_at=here, reached_at=reached_at, at_s=trio.current_time())
                for each in ("one", "other")
            )
        )

    async with open_net(NetConfig(), os.urandom(32)) as node:
        reach = node._reachability
        reach._opinions = all_said("/ip4/45.33.9.2/tcp/4077")
        assert node.reach().verdict == "public"
        reach._on_stranger_in(here[0])
        assert not reach.is_public, "a neighbour in our own house has shown nothing"
        reach._on_stranger_in("45.33.1.1")
        assert reach.is_public
        reach._opinions = all_said("")
        await until(lambda: not reach._strangers)


async def test_a_stranger_shows_something_of_the_family_it_came_over_and_of_where_we_lived_then():
    def reached_at(host: str, family: str = "ip4") -> Opinions:
        addr = f"/{family}/{host}/tcp/4077"
        return Opinions(
            tuple(
                Opinion(observer=each, network=each, seen_at=(host, 4077), reached_at=addr, at_s=trio.current_time())
                for each in ("one", "other")
            )
        )

    async with open_net(NetConfig(), os.urandom(32)) as node:
        reach = node._reachability
        reach._opinions = reached_at("45.33.9.2")
        reach._on_stranger_in("2a01:4f8:1:1::5")
        assert not reach.is_public
        reach._on_stranger_in("45.33.1.1")
        assert reach.is_public
        reach._opinions = reached_at("45.34.8.7")
        assert not reach.is_public, "that is another network"
        reach._on_stranger_in("45.33.1.1")
        assert reach.is_public
        reach._opinions = reached_at("2a01:4f9:2:2::9", "ip6")
        assert reach.is_public, "nobody knew our outside of IPv6 when somebody came over it"
        await reach._hold_places()
        reach._opinions = reached_at("2a01:4f9:2:2:1:2:3:4", "ip6")
        assert reach.is_public, "another address in the same house"
        reach._opinions = reached_at("2a01:4f9:3:3::9", "ip6")
        assert not reach.is_public


async def test_malformed_questions_are_strikes():
    async with open_net(NetConfig(), os.urandom(32)) as node, open_net(NetConfig(), os.urandom(32)) as asker:
        await asker.connect(node.addrs()[0])
        for protocol in (AUTONAT, STOP):
            stream = await open_protocol(muxed(asker, node), protocol)
            await stream.write(b"\x05\xff\xff\xff\xff\xff")
            with pytest.raises(MuxedStreamError):
                await stream.read(10)
        assert node.counters()["autonat.malformed"] == node.counters()["circuit.malformed"] == 1
        stream = await open_protocol(muxed(asker, node), AUTONAT)
        await send_message(stream, Message(type=Message.DIAL_RESPONSE))
        assert (await receive_message(stream, Message)).dialResponse.status == Message.E_BAD_REQUEST


# What making holes does.


async def test_holes_are_made_only_for_whom_a_relay_brought():
    async with open_net(NetConfig(), os.urandom(32)) as node, open_net(NetConfig(), os.urandom(32)) as asker:
        await asker.connect(node.addrs()[0])
        stream = await open_protocol(muxed(asker, node), DCUTR)
        with pytest.raises((WireFault, MuxedStreamError)):  # noqa: PT012
            await send_message(stream, HolePunch(type=HolePunch.CONNECT))
            await receive_message(stream, HolePunch)
        assert node.counters()["dcutr.refused"]


def called_by(number: int, relay: str = "a relay") -> SimpleNamespace:
    name = ID.from_base58(peer_id_of_key((91_000 + number).to_bytes(32, "big")))
    return SimpleNamespace(is_closed=False, muxed_conn=SimpleNamespace(peer_id=name, relay=relay))


async def test_holes_that_we_begin_are_few_for_one_peer_and_in_all():
    """Who calls us through a relay names where we shall knock, as often as it calls."""
    begun = []

    class Noting(HolePuncher):
        async def _begin(self, relayed) -> None:
            await trio.lowlevel.checkpoint()
            begun.append(relayed)

    kept = set[str]()
    swarm = SimpleNamespace(live_connections=lambda _peer_id: [], is_kept=kept.__contains__)
    faults = Faults()
    puncher = Noting(swarm, faults, lambda: [("45.33.9.2", 4077)])
    async with trio.open_nursery() as nursery:
        for _ in range(PUNCHES_AT_ONCE + 4):
            nursery.start_soon(puncher.upgrade, called_by(0))
    # One more for every ten seconds that the machine takes for this.
    assert PUNCHES_AT_ONCE <= len(begun) <= PUNCHES_AT_ONCE + 2
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(1, 3 * ALL_PUNCHES_AT_ONCE):
            nursery.start_soon(puncher.upgrade, called_by(number, f"relay {number % 3}"))
    assert len(begun) <= ALL_PUNCHES_AT_ONCE + PUNCHES_AT_ONCE + 2 + 2 * (trio.current_time() - began)
    assert faults.counters["dcutr.too_often"]
    friends = [called_by(number, "relay 0") for number in range(500, 510)]
    kept.update(str(each.muxed_conn.peer_id) for each in friends)
    begun.clear()
    async with trio.open_nursery() as nursery:
        for each in friends:
            nursery.start_soon(puncher.upgrade, each)
    assert {id(each) for each in begun} == {id(each) for each in friends}, "strangers use up nothing of theirs"


async def test_strangers_behind_one_relay_leave_tries_for_those_behind_another():
    tried = []

    class Noting(HolePuncher):
        async def _begin(self, relayed) -> None:
            await trio.lowlevel.checkpoint()
            tried.append(relayed)

    swarm = SimpleNamespace(live_connections=lambda _peer_id: [], is_kept=lambda _name: False)
    puncher = Noting(swarm, Faults(), lambda: [("45.33.9.2", 4077)])
    async with trio.open_nursery() as nursery:
        for number in range(2 * ALL_PUNCHES_AT_ONCE):
            nursery.start_soon(puncher.upgrade, called_by(number))
    other = called_by(1_000, "another relay")
    await puncher.upgrade(other)
    assert tried[-1] is other


async def test_nobody_is_made_to_knock_at_many_doors_or_inner_ones():
    puncher = HolePuncher(None, None, lambda: [("45.33.9.2", 4077)])

    def targets(*addrs: str):
        return puncher._targets([Multiaddr(addr).to_bytes() for addr in addrs])

    assert targets("/ip4/127.0.0.1/tcp/22", "/ip4/192.168.1.1/tcp/80", "/ip4/169.254.169.254/tcp/80") == []
    assert targets("/ip4/45.33.9.2/tcp/22") == []
    assert len(targets(*(f"/ip4/45.33.1.{number}/tcp/1" for number in range(1, 9)))) == 2
    assert len(targets(*(f"/ip4/45.33.1.1/tcp/{number}" for number in range(1, 9)))) == 4
    assert targets("/dns4/victim.example/tcp/1", "/ip4/45.33.1.1/udp/1") == []
    assert puncher._targets([b"garbage", b""]) == []


async def test_the_library_takes_a_place_here_with_its_own_words():
    # What its client sends, and what it needs of an answer: the protocol's numbers and its framing.
    assert HOP == "/libp2p/circuit/relay/0.2.0/hop"
    from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID, STOP_PROTOCOL_ID
    from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg

    assert (str(PROTOCOL_ID), str(STOP_PROTOCOL_ID)) == (HOP, libp2p_relay.STOP)
    async with open_net(NetConfig(relay=True), os.urandom(32)) as relay, open_net(NetConfig(), os.urandom(32)) as node:
        await node.connect(relay.addrs()[0])
        stream = await open_protocol(muxed(node, relay), HOP)
        await write_delimited_msg(stream, HopMessage(type=HopMessage.RESERVE))
        answer = await read_delimited_msg(stream, HopMessage)
        assert answer.status == circuit_pb2.OK
        assert answer.reservation.expire
        assert str(Multiaddr(answer.reservation.addrs[0])) == relay.addrs()[0]
        assert answer.limit.data == RelayLimits().circuit_bytes
