"""The network's table finds a provider that nobody told of, and strangers can neither end it, fill it nor fool it.

Each of the hostile tests goes red when the guard that it is about is taken out of ``node/network/libp2p_kad*.py``.
"""

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from kit.waiting import until
from libp2p.kad_dht import kad_dht, peer_routing, provider_store
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.routing_table import KBucket
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from hansa.node.network import libp2p_kad, libp2p_kad_host, libp2p_kad_messages, libp2p_kad_tables
from hansa.node.network.libp2p_host import Libp2pNet, open_net
from hansa.node.network.libp2p_kad import STREAMS_PER_PEER, KadTable, key_of
from hansa.node.network.libp2p_kad_host import KAD_PROTOCOL, LOOKUP, Lookup
from hansa.node.network.libp2p_kad_messages import ANSWER_BYTES, KEY_BYTES, QUESTION_BYTES, TOLD_PEERS
from hansa.node.network.libp2p_kad_tables import RECORD_LIFE_S, CappedProviders
from hansa.node.network.net import NetConfig
from hansa.node.network.reachability import Opinion, Opinions
from hansa.proto.peer_id import peer_id_of_key

pytestmark = pytest.mark.trio
NAME = "h200/eu"
KEY = key_of(NAME)
KINDS = Message.MessageType
ADDR = Multiaddr("/ip4/127.0.0.1/tcp/4001").to_bytes()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_kad, "FIRST_REFRESH_S", 0.3)
    monkeypatch.setattr(libp2p_kad, "REFRESH_EVERY_S", 5.0)
    monkeypatch.setattr(libp2p_kad, "PROVIDE_PAUSE_S", 0.01)


@asynccontextmanager
async def node() -> AsyncIterator[Libp2pNet]:
    async with open_net(NetConfig(), os.urandom(32)) as net:
        await until(lambda: net._kad._table is not None)
        yield net


def table_of(net: Libp2pNet) -> KadTable:
    table = net._kad._table
    assert table is not None
    return table


async def meet(one: Libp2pNet, other: Libp2pNet) -> None:
    one.learn(other.peer_id, other.addrs())
    other.learn(one.peer_id, one.addrs())
    await one.connect(other.peer_id)


def answers_with(net: Libp2pNet, handler: Callable[[Any], Awaitable[None]]) -> None:
    """Have a node's table answer like this, whether its own room has put its handler in place or is about to."""
    net._kad.handle = handler  # type: ignore[method-assign]
    net.serve_streams(KAD_PROTOCOL, handler)


def framed(message: Any) -> bytes:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    size, head = len(data), bytearray()
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(head) + bytes((size,)) + data


def fake_peers(count: int) -> list[ID]:
    return [ID.from_base58(peer_id_of_key(number.to_bytes(32, "big"))) for number in range(1, count + 1)]


def provides(peer_id: ID, key: bytes = KEY, **changes: Any) -> Any:
    message = Message(type=KINDS.ADD_PROVIDER, key=key, **changes)
    message.providerPeers.add(id=peer_id.to_bytes(), addrs=[ADDR])
    return message


class Stranger:
    """A node that speaks to the table of another by hand."""

    def __init__(self, net: Libp2pNet, target: Libp2pNet) -> None:
        self.net, self.target = net, target

    async def stream(self) -> Any:
        return (await self.net._host.new_stream(ID.from_base58(self.target.peer_id), [KAD_PROTOCOL])).muxed_stream

    async def say(self, *messages: Any) -> Any:
        stream = await self.stream()
        await stream.write(b"".join(map(framed, messages)))
        return stream

    async def answer(self, stream: Any) -> Any:
        """The next answer, or None where the stream was ended instead."""
        try:
            with trio.fail_after(10):
                size = shift = 0
                while True:
                    byte = (await stream.read(1))[0]
                    size |= (byte & 0x7F) << shift
                    shift += 7
                    if byte < 0x80:
                        break
                data = b""
                while len(data) < size:
                    data += await stream.read(size - len(data))
        except trio.TooSlowError:
            raise
        except Exception:  # noqa: BLE001
            return None
        message = Message()
        message.ParseFromString(data)
        return message

    async def ask(self, message: Any) -> Any:
        stream = await self.say(message)
        return await self.answer(stream)


@asynccontextmanager
async def attacked() -> AsyncIterator[tuple[Libp2pNet, Stranger]]:
    """A node and a stranger; on the way out an honest third is served."""
    async with node() as net, node() as other:
        await meet(other, net)
        yield net, Stranger(other, net)
        async with node() as honest:
            await meet(honest, net)
            answer = await Stranger(honest, net).ask(provides(ID.from_base58(honest.peer_id), key_of("honest")))
            assert answer is not None
            assert answer.type == KINDS.ADD_PROVIDER
            held = table_of(net).providers.providers[key_of("honest")]
            assert list(held) == [honest.peer_id]


async def test_a_buyer_finds_a_provider_that_it_never_heard_of_and_is_not_connected_with() -> None:
    async with AsyncExitStack() as stack:
        nets = [await stack.enter_async_context(node()) for _ in range(8)]
        for one, other in pairwise(nets):
            await meet(one, other)
        buyer, provider = nets[0], nets[-1]
        provider.advertise((NAME, "gpu-80/*"))
        found: tuple[str, ...] = ()
        with trio.fail_after(40):
            while provider.peer_id not in found:
                found = await buyer.find(NAME)
                await trio.sleep(0.1)
        assert await buyer.find("nothing like it") == ()
        assert await provider.find(NAME) == (), "oneself is nobody to be found"
        await buyer.connect(provider.peer_id)


async def test_it_speaks_a_protocol_of_its_own() -> None:
    """The library ignores the prefix that it can be given: without this, two networks would be one."""
    async with node() as net:
        assert KAD_PROTOCOL in net._host.get_mux().handlers
        assert "/ipfs/kad/1.0.0" not in net._host.get_mux().handlers
        for module in (kad_dht, peer_routing, provider_store):
            assert module.PROTOCOL_ID == KAD_PROTOCOL


@pytest.mark.parametrize("kind", ["put", "get"])
async def test_no_value_is_ever_taken_or_given(kind: str) -> None:
    """[M4] On the bare library anybody stores 100 KB under any key."""
    async with attacked() as (net, stranger):
        message = Message(type=KINDS.PUT_VALUE if kind == "put" else KINDS.GET_VALUE, key=b"plain")
        message.record.key, message.record.value = b"plain", b"v" * 10_000
        assert await stranger.ask(message) is None
        await until(lambda: net.counters().get("kad.values") == 1)
        assert table_of(net).dht.value_store.store == {}


async def test_should_a_value_come_through_the_library_refuses_it_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_kad_messages, "cleaned", lambda message, *_rest, **_more: message)
    async with node() as net, node() as other:
        await meet(other, net)
        message = Message(type=KINDS.PUT_VALUE, key=b"plain")
        message.record.key, message.record.value = b"plain", b"v" * 10_000
        await Stranger(other, net).ask(message)
        assert table_of(net).dht.value_store.store == {}


async def test_silent_streams_are_capped_for_a_peer_and_put_out_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """[H6] On the bare library twelve silent streams end the table for everybody."""
    monkeypatch.setattr(libp2p_kad, "STREAM_S", 1.0)
    async with attacked() as (net, stranger):
        streams = [await stranger.stream() for _ in range(12)]
        await until(lambda: net.counters().get("kad.busy", 0) >= 12 - STREAMS_PER_PEER)
        assert table_of(net)._streams.total() <= STREAMS_PER_PEER
        await until(lambda: net.counters().get("kad.too_slow", 0) == STREAMS_PER_PEER)
        assert table_of(net)._streams.total() == 0
        del streams


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xff\xff\x7f", "kad.too_much"),
        (b"\xff" * 30, "kad.too_much"),
        (framed(b"\xff" * 50), "kad.not_protobuf"),
        (framed(Message(type=KINDS.FIND_NODE, key=b"k" * (KEY_BYTES + 1))), "kad.long_key"),
        (framed(Message(type=KINDS.FIND_NODE, key=b"k" * 20)) * 40, "kad.too_much"),
        (framed(b"\x12" + framed(bytes(QUESTION_BYTES))), "kad.too_much"),
    ],
)
async def test_a_question_that_no_node_asks_is_a_strike(data: bytes, reason: str) -> None:
    async with attacked() as (net, stranger):
        stream = await stranger.stream()
        await stream.write(data)
        await until(lambda: net.counters().get(reason) == 1)
        assert [peer.why for peer in net.peers() if peer.peer_id == stranger.net.peer_id] == [reason]


async def test_nobody_provides_for_another() -> None:
    async with attacked() as (net, stranger):
        (other,) = fake_peers(1)
        assert await stranger.ask(provides(other)) is not None
        assert table_of(net).providers.providers == {}
        assert other.to_base58() not in {peer.peer_id for peer in net.peers()}, "nor names its addresses"


async def test_a_signed_record_is_neither_read_nor_kept_nor_passed_on() -> None:
    async with attacked() as (net, stranger):
        keys = stranger.net._host.get_private_key()
        own = ID.from_base58(stranger.net.peer_id)
        record = PeerRecord(own, [Multiaddr("/ip4/10.9.8.7/tcp/1")])
        envelope = seal_record(record, keys).marshal_envelope()
        message = provides(own, senderRecord=envelope)
        message.providerPeers[0].signedRecord = envelope
        for broken in (envelope, b"no envelope"):
            message.senderRecord = broken
            answer = await stranger.ask(message)
            assert answer is not None, "a record that is broken is nobody's concern"
        answer = await stranger.ask(Message(type=KINDS.GET_PROVIDERS, key=KEY))
        assert not answer.senderRecord
        assert [peer.signedRecord for peer in answer.providerPeers] == [b""]
        store = net._host.get_peerstore()
        assert own not in store.peer_record_map


async def test_addresses_in_a_question_are_few_small_and_ones_own() -> None:
    async with attacked() as (net, stranger):
        own = ID.from_base58(stranger.net.peer_id)
        message = Message(type=KINDS.ADD_PROVIDER, key=KEY)
        addrs = [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}").to_bytes() for port in range(4000, 4100)]
        message.providerPeers.add(id=own.to_bytes(), addrs=[b"", b"\xff" * 40, b"\x35" + b"x" * 400, *addrs])
        assert await stranger.ask(message) is not None
        (record,) = table_of(net).providers.providers[KEY].values()
        assert 0 < len(record.addresses) <= libp2p_kad_messages.TOLD_ADDRS


async def test_whoever_is_only_named_is_not_in_the_routing_table() -> None:
    """The bare library takes in whoever is named in an answer: one liar fills a table with its own."""
    async with node() as net, node() as liar:
        fakes = fake_peers(15)

        async def lies(stream: Any) -> None:
            await stream.muxed_stream.read(1)
            answer = Message(type=KINDS.FIND_NODE)
            for fake in fakes:
                answer.closerPeers.add(id=fake.to_bytes(), addrs=[ADDR])
            await stream.muxed_stream.write(framed(answer))
            await trio.sleep(1)

        answers_with(liar, lies)
        await meet(net, liar)
        await table_of(net).refresh()
        assert set(table_of(net).table.get_peer_ids()) <= {ID.from_base58(liar.peer_id)}


async def test_who_has_gone_makes_room_in_a_full_routing_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_kad_tables, "TABLE_PEERS", 2)
    async with node() as net, node() as stays, node() as leaves, node() as late:
        names = [ID.from_base58(each.peer_id) for each in (stays, leaves, late)]
        table = table_of(net).table
        for each, name in zip((stays, leaves, late), names, strict=True):
            await net.connect(each.addrs()[0])
            await table.meet(name)
        assert set(table.get_peer_ids()) == set(names[:2])
        await net.disconnect(leaves.peer_id)
        await until(lambda: not net.is_live(leaves.peer_id))
        await table.meet(names[2])
        assert set(table.get_peer_ids()) == {names[0], names[2]}


async def test_one_network_has_only_so_much_of_the_routing_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """By where peers are connected from: what they say of their addresses is their own affair."""
    monkeypatch.setattr(libp2p_kad_tables, "TABLE_PEERS_PER_NETWORK", 2)
    monkeypatch.setattr(libp2p_kad, "TRIES_AT_ONCE", 0)
    async with node() as net, node() as stays, node() as leaves, node() as late:
        monkeypatch.setattr(libp2p_kad_host, "place_of", lambda _host: "public")
        table = table_of(net).table
        names = [ID.from_base58(each.peer_id) for each in (stays, leaves, late)]
        for each, name in zip((stays, leaves, late), names, strict=True):
            await net.connect(each.addrs()[0])
            await table.meet(name)
        assert set(table.get_peer_ids()) == set(names[:2])
        await net.disconnect(leaves.peer_id)
        await until(lambda: not net.is_live(leaves.peer_id))
        await table.meet(names[2])
        assert set(table.get_peer_ids()) == {names[0], names[2]}


async def test_one_network_has_only_so_many_streams_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_kad, "STREAMS_PER_NETWORK", 3)
    async with node() as net, node() as one, node() as other:
        monkeypatch.setattr(libp2p_kad_host, "place_of", lambda _host: "public")
        streams = []
        for each in (one, other):
            await meet(each, net)
            streams += [await Stranger(each, net).stream() for _ in range(2)]
        await until(lambda: net.counters().get("kad.busy", 0) >= 1)
        assert table_of(net)._networks.total() <= 3


async def test_strangers_through_one_relay_leave_streams_for_those_who_come_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libp2p_kad, "STREAMS_PER_NETWORK", 2)
    monkeypatch.setattr(libp2p_kad, "STREAMS_THROUGH_RELAYS", 3)
    async with node() as net, node() as one, node() as other, node() as third:
        through = {one.peer_id: "a relay A", other.peer_id: "a relay B", third.peer_id: "a relay C"}
        monkeypatch.setattr(
            libp2p_kad_host.NarrowHost, "network_at", staticmethod(lambda muxed: through.get(str(muxed.peer_id), ""))
        )
        streams = []
        for each, held in (
            (one, {"a relay A": 2}),
            (other, {"a relay A": 2, "a relay B": 1}),
            (third, {"a relay A": 2, "a relay B": 1}),
        ):
            await meet(each, net)
            streams += [await Stranger(each, net).stream() for _ in range(3)]
            await until(lambda held=held: table_of(net)._networks == Counter(held))
        through[third.peer_id] = ""
        streams += [await Stranger(third, net).stream() for _ in range(3)]
        await until(lambda: table_of(net)._networks[""] == 3)


async def test_who_hangs_up_counts_for_its_network_all_the_same_and_is_not_entered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with node() as net, node() as one:
        await meet(one, net)
        monkeypatch.setattr(libp2p_kad_host, "place_of", lambda _host: "public")
        peer_id = ID.from_base58(one.peer_id)
        host, table = table_of(net).host, table_of(net).table
        connection = net._swarm.live_connections(peer_id)[0].muxed_conn
        network = host.network_of(peer_id)
        assert network == host.network_at(connection) != ""
        await one.disconnect(net.peer_id)
        await until(lambda: connection.is_closed and not host.is_connected(peer_id))
        assert host.network_at(connection) == network
        monkeypatch.setattr(libp2p_kad, "STREAMS_PER_NETWORK", 0)
        stream = SimpleNamespace(muxed_conn=connection, muxed_stream=SimpleNamespace(abort=lambda: None))
        await table_of(net).handle(stream)
        assert net.counters()["kad.busy"] == 1
        table.remove_peer(peer_id)
        await table.meet(peer_id)
        assert not table.peer_in_table(peer_id)


async def test_a_full_bucket_asks_its_connections_and_waits_for_nobody() -> None:
    """The bare library pings the oldest peer, and whoever answers none holds up all whose names are near its own."""

    async def silent(_stream: Any) -> None:
        await trio.sleep_forever()

    async with node() as net, node() as old, node() as newcomer:
        host = table_of(net).host
        bucket = KBucket(host, 1)
        await net.connect(old.addrs()[0])
        old.serve_streams("/ipfs/ping/1.0.0", silent)
        assert await bucket.add_peer(info(ID.from_base58(old.peer_id)))
        with trio.fail_after(2):
            assert not await bucket.add_peer(info(ID.from_base58(newcomer.peer_id)))
        await net.disconnect(old.peer_id)
        await until(lambda: not net.is_live(old.peer_id))
        assert await bucket.add_peer(info(ID.from_base58(newcomer.peer_id)))


def told_that_nobody_reaches_us(net: Libp2pNet) -> None:
    now_s = trio.current_time()
    for network in ("one", "other"):
        opinion = Opinion(observer=network, network=network, seen_at=None, reached_at="", at_s=now_s)
        net._reachability._opinions = net._reachability._opinions.with_new(opinion)


async def test_who_cannot_be_dialled_asks_the_table_and_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_kad, "LOOK_AT_REACH_S", 0.05)
    async with node() as net, node() as hidden, node() as buyer:
        told_that_nobody_reaches_us(hidden)
        await until(lambda: KAD_PROTOCOL not in hidden._host.get_mux().handlers)
        await meet(hidden, net)
        await meet(buyer, net)
        hidden.advertise((NAME,))
        with trio.fail_after(40):
            while await buyer.find(NAME) != (hidden.peer_id,):  # noqa: ASYNC110
                await trio.sleep(0.1)
        await until(lambda: bool(net.counters().get("kad.only_asks")))
        assert ID.from_base58(hidden.peer_id) not in table_of(net).table.get_peer_ids()
        await until(lambda: ID.from_base58(buyer.peer_id) in table_of(net).table.get_peer_ids())
        # Found to be public after all, it is asked as others are.
        hidden._reachability._opinions = Opinions()
        await until(lambda: KAD_PROTOCOL in hidden._host.get_mux().handlers)
        assert await Stranger(net, hidden).ask(Message(type=KINDS.FIND_NODE, key=b"k" * 20)) is not None


async def test_who_announces_an_address_serves_the_table_whatever_observers_say() -> None:
    async with open_net(NetConfig(announce=("/ip4/127.0.0.1/tcp/1",)), os.urandom(32)) as net:
        told_that_nobody_reaches_us(net)
        assert not net._reachability.is_hidden


async def test_a_lookup_makes_only_so_many_connections_however_many_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the bare library a lookup connects with everybody it hears of."""
    monkeypatch.setattr(libp2p_kad, "FIRST_REFRESH_S", 1_000.0)
    async with node() as net, node() as liar:
        made = iter(range(1, 100_000))

        async def lies(stream: Any) -> None:
            await stream.muxed_stream.read(1)
            answer = Message(type=KINDS.FIND_NODE)
            for _ in range(TOLD_PEERS):
                fake = peer_id_of_key(next(made).to_bytes(32, "big"))
                answer.closerPeers.add(id=ID.from_base58(fake).to_bytes(), addrs=[ADDR])
            await stream.muxed_stream.write(framed(answer))
            await trio.sleep(1)

        answers_with(liar, lies)
        await meet(net, liar)
        lookup = Lookup(dials=5)
        monkeypatch.setattr(libp2p_kad, "Lookup", lambda: lookup)
        failed = net.counters().get("dial.failed", 0)
        with trio.fail_after(40):
            await table_of(net).refresh()
        assert lookup.dials == 0
        assert net.counters().get("dial.failed", 0) - failed <= 5
        assert net.counters()["kad.no_more_dials"] > 0
        assert LOOKUP.get() is None
        with pytest.raises(Exception, match="connections"):
            await table_of(net).host.new_stream(fake_peers(1)[0], [KAD_PROTOCOL])


async def test_an_answer_that_is_too_long_or_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_kad, "LOOKUP_S", 2.0)
    async with node() as net, node() as liar:
        told: list[bytes] = [framed(bytes(ANSWER_BYTES + 1)), b"\x80\x80"]

        async def lies(stream: Any) -> None:
            await stream.muxed_stream.read(1)
            await stream.muxed_stream.write(told[0])
            await trio.sleep_forever()

        answers_with(liar, lies)
        await meet(net, liar)
        with trio.fail_after(20):
            assert await net.find(NAME) == ()
            told.pop(0)
            assert await net.find(NAME) == ()


async def test_liars_answers_about_providers_are_hearsay_and_not_kept() -> None:
    """The bare library keeps the providers that it hears of as if they had come themselves, and passes them on."""
    async with node() as net, node() as liar:
        fakes = fake_peers(100)

        async def lies(stream: Any) -> None:
            await stream.muxed_stream.read(1)
            answer = Message(type=KINDS.GET_PROVIDERS, key=KEY)
            for fake in fakes:
                answer.providerPeers.add(id=fake.to_bytes(), addrs=[ADDR])
            answer.providerPeers.add(id=b"no peer id", addrs=[ADDR])
            await stream.muxed_stream.write(framed(answer))
            await trio.sleep(1)

        answers_with(liar, lies)
        await meet(net, liar)
        await until(lambda: table_of(net).table.size() == 1)
        found = await net.find(NAME, 500)
        assert len(found) <= TOLD_PEERS
        assert set(found) <= {fake.to_base58() for fake in fakes}
        assert table_of(net).providers.providers == {}


# The store.


@asynccontextmanager
async def store() -> AsyncIterator[CappedProviders]:
    async with node() as net:
        yield table_of(net).providers


def info(peer_id: ID) -> PeerInfo:
    return PeerInfo(peer_id, [Multiaddr("/ip4/127.0.0.1/tcp/1")])


async def test_the_store_of_records_is_bounded_for_a_key_for_a_peer_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_kad_tables, "RECORDS_PER_KEY", 5)
    monkeypatch.setattr(libp2p_kad_tables, "RECORDS_PER_PEER", 3)
    monkeypatch.setattr(libp2p_kad_tables, "RECORDS", 12)
    async with store() as records:
        peers = fake_peers(20)
        for peer_id in peers:
            records.add_provider(b"one", info(peer_id))
            await trio.sleep(0.001)
        assert list(records.providers[b"one"]) == [peer_id.to_base58() for peer_id in peers[-5:]], "the newest stay"
        for number in range(10):
            records.add_provider(b"key %d" % number, info(peers[0]))
        assert sorted(records.get_provided_keys(peers[0])) == [b"key 0", b"key 1", b"key 2"]
        assert records.size() == 8, "five of the first key, and these"
        assert sum(peers[0].to_base58() in held for held in records.providers.values()) == 3
        for number, peer_id in enumerate(peers[1:10]):
            records.add_provider(b"other %d" % number, info(peer_id))
        assert records.size() == 12
        assert len(records._order) == 12
        assert sum(records._of_peer.values()) == 12


async def test_a_record_that_is_not_said_again_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async with store() as records:
        (peer_id,) = fake_peers(1)
        records.add_provider(KEY, info(peer_id))
        assert [each.peer_id for each in records.get_providers(KEY)] == [peer_id]
        later = trio.current_time() + RECORD_LIFE_S + 1
        monkeypatch.setattr(trio, "current_time", lambda: later)
        assert records.get_providers(KEY) == []
        records.cleanup_expired()
        assert records.size() == 0


async def test_of_many_providers_some_are_told_by_chance() -> None:
    async with store() as records:
        for peer_id in fake_peers(60):
            records.add_provider(KEY, info(peer_id))
        told = [frozenset(each.peer_id for each in records.get_providers(KEY)) for _ in range(20)]
        assert {len(some) for some in told} == {libp2p_kad_tables.TOLD_PROVIDERS}
        assert len(set(told)) > 10


async def test_the_part_that_serves_the_table_begins_anew_with_what_is_so_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fell while the node was hidden: what it had taken away it has to give back."""
    monkeypatch.setattr(libp2p_kad, "LOOK_AT_REACH_S", 1_000.0)
    async with node() as net:
        net._host.remove_stream_handler(KAD_PROTOCOL)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(net._kad.run, net._stack)
            await until(lambda: KAD_PROTOCOL in net._host.get_mux().handlers)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["refresh", "provide"])
async def test_a_search_that_fails_in_the_library_ends_no_part(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls = []

    async def failing(_self: Any, *_args: Any) -> Any:
        calls.append(name)
        raise RuntimeError("whatever a peer's answer provoked")

    for pause in ("FIRST_REFRESH_S", "REFRESH_EVERY_S", "PROVIDE_PAUSE_S"):
        monkeypatch.setattr(libp2p_kad, pause, 0.05)
    monkeypatch.setattr(libp2p_kad.KadTable, name, failing)
    async with node() as net:
        net.advertise((NAME,))
        await until(lambda: len(calls) >= 3)
        assert net.counters()[f"kad.{name}_failed"] >= 2
        assert not [each for each in net.counters() if each.startswith("net.part_failed")]
