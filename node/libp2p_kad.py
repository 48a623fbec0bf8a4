"""The network's table of who provides what: Kademlia with provider records, and what keeps strangers from using it up.

The library's table works between friends. With strangers it lets anybody store anything (100 KB under any key), keeps
each record that it is sent, believes every address and signed record that it hears of, puts whoever is named into its
routing table, answers from what it stored itself and looks no further, opens a connection to everybody that a lookup
hears of, and serves twelve streams at once without any deadline, so that twelve silent ones end it. It also speaks
the public network's protocol whatever it is told.

So it gets a host that can do nothing but what it needs (``NarrowHost``), streams on which only small, cleaned
messages pass (``KadStream``), a store and a routing table that are bounded, and no values at all. Whoever is found
here has proved nothing; its signed advert is asked for, directly.
"""

import hashlib
import random
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.peer_routing import PeerRouting
from libp2p.kad_dht.provider_store import ProviderRecord, ProviderStore
from libp2p.kad_dht.routing_table import RoutingTable
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator
from libp2p.stream_muxer.exceptions import MuxedStreamError
from multiaddr import Multiaddr

from hansa.node.libp2p_acquaintances import Acquaintances, author_of
from hansa.node.libp2p_guards import Faults
from hansa.node.libp2p_stack import Stack

KAD_PROTOCOL = "/hansa/kad/1.0.0"
STREAMS_PER_PEER = 4
STREAMS = 32
STREAM_S = 15.0
MESSAGES_PER_STREAM = 16
QUESTION_BYTES = 16 << 10
ANSWER_BYTES = 64 << 10
KEY_BYTES = 64
TOLD_PEERS = 20
TOLD_ADDRS = 8
ADDR_BYTES = 256
RECORDS = 20_000
RECORDS_PER_KEY = 128
RECORDS_PER_PEER = 64
RECORD_LIFE_S = 3_600.0
TOLD_PROVIDERS = 20
TABLE_PEERS = 512
DIALS_PER_LOOKUP = 24
LOOKUPS = 2
LOOKUP_S = 30.0
ENOUGH_CONNECTIONS = 16
"""With more than these, connections that were made for a lookup are closed after it."""
REST_S = 5.0
PROVIDE_EVERY_S = 25 * 60.0
PROVIDE_PAUSE_S = 2.0
REFRESH_EVERY_S = 600.0
FIRST_REFRESH_S = 5.0
BESIDE_EACH_OTHER = 3

Learn = Callable[[str, tuple[str, ...], str], None]


def make_private() -> None:
    """Have the library speak our protocol: the prefix that it can be given is ignored."""
    for module in (common, kad_dht, peer_routing, provider_store, value_store):
        module.PROTOCOL_ID = KAD_PROTOCOL


def key_of(name: str) -> bytes:
    """A name as a key of the table: the multihash of its SHA-256, as other implementations make of a content id."""
    return b"\x12\x20" + hashlib.sha256(f"/hansa/capability/{name}".encode()).digest()


@dataclass(slots=True)
class Lookup:
    """What one search of the network may still do."""

    dials: int = DIALS_PER_LOOKUP
    dialled: set[ID] = field(default_factory=set)


LOOKUP: ContextVar[Lookup | None] = ContextVar("lookup", default=None)


class BadKad(Exception):
    """A message that no node of ours sends."""


def cleaned(message: Any, peer_id: str, learn: Learn, *, is_question: bool) -> Any:
    """A message without all that we neither want nor believe; raises ``BadKad`` for one that is not for us.

    Signed records go: addresses are learnt where they are limited and attributable. So does everybody who is no node.
    """
    kinds = Message.MessageType
    if message.type not in (kinds.FIND_NODE, kinds.GET_PROVIDERS, kinds.ADD_PROVIDER, kinds.PING):
        raise BadKad("kad.values")
    if len(message.key) > KEY_BYTES:
        raise BadKad("kad.long_key")
    clean = Message(type=message.type, key=message.key)
    for told, kept in (
        (message.closerPeers, clean.closerPeers),
        (message.providerPeers, clean.providerPeers),
    ):
        for peer in told[:TOLD_PEERS]:
            name = ID(peer.id).to_base58() if len(peer.id) <= KEY_BYTES else ""
            addrs = _sound(peer.addrs)
            if author_of(name) is None or not addrs:
                continue
            if not is_question or name == peer_id:
                kept.add(id=peer.id, addrs=[addr.to_bytes() for addr in addrs], connection=peer.connection)
                learn(name, tuple(str(addr) for addr in addrs), peer_id)
    return clean


def _sound(addrs: Any) -> list[Multiaddr]:
    found = []
    for data in addrs[:TOLD_ADDRS]:
        if 0 < len(data) <= ADDR_BYTES:
            try:
                addr = Multiaddr(data)
                str(addr), addr.to_bytes()
            except Exception:  # noqa: BLE001, S112  # the library raises many kinds for what is no multiaddr
                continue
            found.append(addr)
    return found


class KadStream:
    """A stream as the library's table sees it: whole, small, clean messages in, and nothing signed out."""

    def __init__(self, stream: Any, peer_id: str, learn: Learn, *, is_question: bool) -> None:
        """``is_question``: what comes in are questions, and not answers to ours."""
        self._muxed = stream.muxed_stream
        self.muxed_conn = stream.muxed_conn
        self._peer_id, self._learn, self._is_question = peer_id, learn, is_question
        self._incoming, self._outgoing = bytearray(), bytearray()
        self._messages = 0
        self.metric_send_channel = None

    async def read(self, n: int | None = None) -> bytes:
        """Up to ``n`` bytes of the next clean message; nothing at the end."""
        if not self._incoming:
            self._incoming += await self._next()
        part = bytes(self._incoming[:n])
        del self._incoming[: len(part)]
        return part

    async def _next(self) -> bytes:
        try:
            size = await self._size()
            if size is None:
                return b""
            self._messages += 1
            if size > (QUESTION_BYTES if self._is_question else ANSWER_BYTES) or self._messages > MESSAGES_PER_STREAM:
                raise BadKad("kad.too_much")
            data = bytearray()
            while len(data) < size:
                data += await self._muxed.read(size - len(data))
        except MuxedStreamError:
            return b""
        message = Message()
        try:
            message.ParseFromString(bytes(data))
        except Exception as fault:
            raise BadKad("kad.not_protobuf") from fault
        return _framed(cleaned(message, self._peer_id, self._learn, is_question=self._is_question))

    async def _size(self) -> int | None:
        size = shift = 0
        while True:
            try:
                byte: int = (await self._muxed.read(1))[0]
            except MuxedStreamError:
                return None
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                return size
            shift += 7
            if shift > 21:
                raise BadKad("kad.too_much")

    async def write(self, data: bytes) -> None:
        """Send a message when all of it is there, in one piece and without signed records."""
        self._outgoing += data
        size = shift = used = 0
        for byte in self._outgoing:
            size, used, shift = size | (byte & 0x7F) << shift, used + 1, shift + 7
            if byte < 0x80:
                break
        else:
            return
        if len(self._outgoing) < used + size:
            return
        message = Message()
        message.ParseFromString(bytes(self._outgoing[used:]))
        message.ClearField("senderRecord")
        for peer in (*message.closerPeers, *message.providerPeers):
            peer.ClearField("signedRecord")
        self._outgoing.clear()
        await self._muxed.write(_framed(message))

    async def close(self) -> None:
        """Nothing more will be said."""
        self._muxed.finish()

    async def reset(self) -> None:
        """Give it up."""
        self._muxed.abort()


def _framed(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    size, head = len(data), bytearray()
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(head) + bytes((size,)) + data


class _OwnRecord:
    """In place of our signed record, which the library wants to send along; it is cut off again."""

    def __init__(self, addrs: set[Multiaddr]) -> None:
        self._addrs = addrs

    def _env_addrs_set(self) -> set[Multiaddr]:
        return self._addrs

    def marshal_envelope(self) -> bytes:
        return b""


class NarrowStore:
    """The library's book of addresses, as its table may use it: it reads ours, and writes nothing."""

    def __init__(self, host: "NarrowHost", acquaintances: Acquaintances) -> None:
        """What is heard of addresses is learnt where streams are read."""
        self._host, self._acquaintances = host, acquaintances

    def addrs(self, peer_id: ID) -> list[Multiaddr]:
        """Where a peer may be dialled."""
        return _sound([addr for addr in self._acquaintances.addresses(peer_id.to_base58()) if len(addr) <= ADDR_BYTES])

    def add_addrs(self, _peer_id: ID, _addrs: Any, _ttl_s: int) -> None:
        """Nothing: see above."""

    def peer_ids(self) -> list[ID]:
        """Nobody: who is not in the table and not connected is not asked."""
        return []

    def get_protocols(self, _peer_id: ID) -> list[str]:
        """Unknown."""
        return []

    def get_peer_record(self, _peer_id: ID) -> None:
        """None: we pass nobody's signed record on."""

    def get_local_record(self) -> _OwnRecord:
        """A record that says nothing."""
        return _OwnRecord(set(self._host.get_addrs()))


class NarrowHost:
    """The library's host, as its table may use it."""

    def __init__(self, stack: Stack, acquaintances: Acquaintances, faults: Faults, met: Callable[[ID], Any]) -> None:
        """``met`` is told of each peer that took a stream of the table's protocol."""
        self._stack, self._faults, self._met = stack, faults, met
        self._acquaintances = acquaintances
        self._store = NarrowStore(self, acquaintances)

    def get_id(self) -> ID:
        """Ours."""
        return self._stack.host.get_id()

    def get_addrs(self) -> list[Multiaddr]:
        """Where others can dial us."""
        addrs: list[Multiaddr] = self._stack.host.get_addrs()
        return addrs[:TOLD_ADDRS]

    def get_peerstore(self) -> NarrowStore:
        """Addresses."""
        return self._store

    def get_connected_peers(self) -> list[ID]:
        """Who is connected now."""
        return [ID.from_base58(peer.peer_id) for peer in self._acquaintances.book if peer.phase == "live"]

    def set_stream_handler(self, _protocol_id: str, _handler: Any) -> None:
        """Nothing: streams come through ``KadTable``."""

    async def new_stream(self, peer_id: ID, protocol_ids: Any) -> Any:
        """A stream to a peer; where that takes a connection, one of those that the lookup may make."""
        name = peer_id.to_base58()
        if author_of(name) is None or self._acquaintances.is_barred(name):
            raise SwarmException("nobody to ask")
        swarm = self._stack.swarm
        if not swarm.live_connections(peer_id):
            lookup = LOOKUP.get()
            if lookup is None or lookup.dials <= 0:
                self._faults.count("kad.no_more_dials")
                raise SwarmException("a lookup has made its connections")
            lookup.dials -= 1
            await swarm.dial_peer(peer_id)
            lookup.dialled.add(peer_id)
        stream = await self._stack.host.new_stream(peer_id, protocol_ids)
        if KAD_PROTOCOL not in protocol_ids:
            return stream
        await self._met(peer_id)
        return KadStream(stream, name, self.learn, is_question=False)

    def learn(self, peer_id: str, addrs: tuple[str, ...], told_by: str) -> None:
        """Addresses that somebody named."""
        self._acquaintances.learn(peer_id, addrs, told_by)


class CappedTable(RoutingTable):  # type: ignore[misc]  # the library comes without types
    """A routing table of peers that were met, and not of all that anybody named."""

    def __init__(self, local: ID, host: NarrowHost) -> None:
        """Nobody was met yet."""
        super().__init__(local, host)
        self._narrow = host
        self.met: set[ID] = set()

    async def add_peer(self, peer_obj: Any, *, skip_server_mode_check: bool = True) -> bool:  # noqa: ARG002
        """Take a peer in if it was met and there is room; the library's own rules come after that."""
        peer_id = peer_obj.peer_id if isinstance(peer_obj, PeerInfo) else peer_obj
        if peer_id not in self.met:
            return False
        if self.size() >= TABLE_PEERS and not self.peer_in_table(peer_id):
            # Whoever was here once and has gone makes room; while all are connected the table stays as it is.
            connected = set(self._narrow.get_connected_peers())
            gone = next((each for each in self.get_peer_ids() if each not in connected), None)
            if gone is None:
                return False
            self.remove_peer(gone)
        added: bool = await super().add_peer(peer_obj, skip_server_mode_check=True)
        return added

    async def meet(self, peer_id: ID) -> None:
        """A peer speaks the table's protocol."""
        self.met.add(peer_id)
        try:
            await self.add_peer(peer_id)
        finally:
            self.met.discard(peer_id)


class CappedProviders(ProviderStore):  # type: ignore[misc]  # the library comes without types
    """Provider records: so many, of so many each, for so long; and a search that looks beyond them."""

    def __init__(self, host: NarrowHost, routing: PeerRouting, faults: Faults) -> None:
        """Empty."""
        super().__init__(host, routing)
        self._faults = faults
        self._order: OrderedDict[tuple[bytes, str], None] = OrderedDict()
        self._of_peer: Counter[str] = Counter()
        self.chance = random.Random()  # noqa: S311  # only picks which of many providers are told

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Keep a record; where there is no room the oldest goes."""
        name = provider.peer_id.to_base58()
        if (key, name) not in self._order and self._of_peer[name] >= RECORDS_PER_PEER:
            self._faults.count("kad.too_many_records")
            return
        self._drop(key, name)
        held = self.providers.setdefault(key, {})
        if len(held) >= RECORDS_PER_KEY:
            self._drop(key, min(held, key=lambda each: held[each].timestamp))
            held = self.providers.setdefault(key, {})
        while len(self._order) >= RECORDS:
            self._drop(*next(iter(self._order)))
            held = self.providers.setdefault(key, {})
        held[name] = ProviderRecord(provider, trio.current_time())
        self._order[key, name] = None
        self._of_peer[name] += 1

    def _drop(self, key: bytes, name: str) -> None:
        if (key, name) not in self._order:
            return
        del self._order[key, name]
        self.providers[key].pop(name)
        if not self.providers[key]:
            del self.providers[key]
        self._of_peer[name] -= 1
        if not self._of_peer[name]:
            del self._of_peer[name]

    def cleanup_expired(self) -> None:
        """Let go of what nobody said again."""
        old = trio.current_time() - RECORD_LIFE_S
        for key, name in list(self._order):
            if self.providers[key][name].timestamp < old:
                self._drop(key, name)

    def get_providers(self, key: bytes) -> list[PeerInfo]:
        """Some of those who stand under a key, picked by chance."""
        old = trio.current_time() - RECORD_LIFE_S
        standing = [each.provider_info for each in self.providers.get(key, {}).values() if each.timestamp >= old]
        return self.chance.sample(standing, min(TOLD_PROVIDERS, len(standing)))

    async def find(self, key: bytes, count: int) -> list[str]:
        """Peers under a key: those in this store, and those that the nearest nodes to the key know of."""
        found = dict.fromkeys(each.peer_id.to_base58() for each in self.get_providers(key))
        nearest = [
            each for each in await self.peer_routing.find_closest_peers_network(key) if each != self.local_peer_id
        ]

        async def ask(peer_id: ID) -> None:
            told, _ = await self._get_providers_from_peer_with_closers(peer_id, key)
            found.update(dict.fromkeys(each.peer_id.to_base58() for each in told))

        for start in range(0, len(nearest), BESIDE_EACH_OTHER):
            async with trio.open_nursery() as nursery:
                for peer_id in nearest[start : start + BESIDE_EACH_OTHER]:
                    nursery.start_soon(ask, peer_id)
            if len(found) >= count:
                break
        found.pop(self.local_peer_id.to_base58(), None)
        return list(found)[:count]


class KadTable:
    """The network's table, in one life of the library's parts."""

    def __init__(self, stack: Stack, acquaintances: Acquaintances, faults: Faults) -> None:
        """Wire it up; nobody is asked yet."""
        make_private()
        self._stack, self._acquaintances, self._faults = stack, acquaintances, faults
        self.host = NarrowHost(stack, acquaintances, faults, self._meet)
        self.dht = KadDHT(
            self.host,
            DHTMode.SERVER,
            # No namespace at all, so that no value is ever taken: what changes belongs into signed adverts.
            validator=NamespacedValidator({}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
        )
        self.dht._inbound_limiter = trio.CapacityLimiter(STREAMS)  # noqa: SLF001  # ours come first, and have deadlines
        self.table = self.dht.routing_table = CappedTable(self.host.get_id(), self.host)
        self.routing = self.dht.peer_routing = PeerRouting(self.host, self.table)
        self.providers = self.dht.provider_store = CappedProviders(self.host, self.routing, faults)
        self._streams: Counter[str] = Counter()
        self._lookups = trio.CapacityLimiter(LOOKUPS)

    async def _meet(self, peer_id: ID) -> None:
        await self.table.meet(peer_id)

    async def handle(self, stream: Any) -> None:
        """Answer one peer's questions, as long as they are few, small and soon over."""
        peer_id = stream.muxed_conn.peer_id.to_base58()
        if self._streams[peer_id] >= STREAMS_PER_PEER or self._streams.total() >= STREAMS:
            self._faults.count("kad.busy")
            stream.muxed_stream.abort()
            return
        self._streams[peer_id] += 1
        try:
            with trio.move_on_after(STREAM_S) as deadline:
                await self._meet(stream.muxed_conn.peer_id)
                narrow = KadStream(stream, peer_id, self.host.learn, is_question=True)
                await self._answer(narrow, peer_id)
            if deadline.cancelled_caught:
                self._faults.count("kad.too_slow")
                stream.muxed_stream.abort()
        finally:
            self._streams[peer_id] -= 1
            if not self._streams[peer_id]:
                del self._streams[peer_id]

    async def _answer(self, narrow: KadStream, peer_id: str) -> None:
        fault: BadKad | None = None
        whole = narrow.read

        async def read(n: int | None = None) -> bytes:
            # The library takes any exception of a read for the end of the stream, and says nothing of it.
            nonlocal fault
            try:
                return await whole(n)
            except BadKad as bad:
                fault = bad
                raise

        narrow.read = read  # type: ignore[method-assign]
        await self.dht.handle_stream(narrow)
        if fault is not None:
            self._faults.blame(peer_id, str(fault))

    async def search(self, work: Callable[[], Any]) -> Any:
        """One search of the network: so many new connections, so long, so many beside each other."""
        async with self._lookups:
            lookup = Lookup()
            token = LOOKUP.set(lookup)
            found = None
            try:
                with trio.move_on_after(LOOKUP_S) as deadline:
                    found = await work()
                if deadline.cancelled_caught:
                    self._faults.count("kad.lookup_too_slow")
                return found
            finally:
                LOOKUP.reset(token)
                self._stack.soon(self._close, frozenset(lookup.dialled))

    async def _close(self, dialled: frozenset[ID]) -> None:
        await trio.sleep(REST_S)
        too_many = max(0, len(self.host.get_connected_peers()) - ENOUGH_CONNECTIONS)
        idle = [peer_id for peer_id in dialled if peer_id.to_base58() not in self._acquaintances.book.kept]
        for peer_id in sorted(idle, key=str)[:too_many]:
            for connection in self._stack.swarm.live_connections(peer_id):
                # Whoever has more to do with this peer meanwhile is not to be disturbed.
                if connection.is_idle:
                    await connection.close()

    async def refresh(self) -> None:
        """Look for oneself: that is how neighbours in the table are found."""
        own = self.host.get_id().to_bytes()
        await self.search(lambda: self.routing.find_closest_peers_network(own))
        self.providers.cleanup_expired()

    async def provide(self, name: str) -> bool:
        """Say under a name, to those who keep it, that we are there."""
        return bool(await self.search(lambda: self.providers.provide(key_of(name))))

    async def find(self, name: str, limit: int) -> list[str]:
        """Peers that are said to be under a name."""
        return await self.search(lambda: self.providers.find(key_of(name), limit)) or []


class KadRoom:
    """What the network's port offers of the table, over all lives of the library's parts."""

    def __init__(self, acquaintances: Acquaintances, faults: Faults) -> None:
        """Nothing is provided yet."""
        self._acquaintances, self._faults = acquaintances, faults
        self._names: tuple[str, ...] = ()
        self._changed = trio.Event()
        self._table: KadTable | None = None

    async def handle(self, stream: Any) -> None:
        """A stranger's stream."""
        if self._table is None:
            stream.muxed_stream.abort()
        else:
            await self._table.handle(stream)

    async def run(self, stack: Stack) -> None:
        """One life: refresh the table, and say again and again what is provided."""
        self._table = KadTable(stack, self._acquaintances, self._faults)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._refresh, self._table)
                nursery.start_soon(self._provide, self._table)
        finally:
            self._table = None

    async def _refresh(self, table: KadTable) -> None:
        await trio.sleep(FIRST_REFRESH_S)
        while True:
            await table.refresh()
            # A table of few peers is soon out of date, and asking few costs little.
            await trio.sleep(REFRESH_EVERY_S if table.table.size() >= TOLD_PEERS else REFRESH_EVERY_S / 10)

    async def _provide(self, table: KadTable) -> None:
        while True:
            changed = self._changed
            told = 0
            for name in self._names:
                told += await table.provide(name)
                await trio.sleep(PROVIDE_PAUSE_S)
            # With nobody told there was nobody there yet.
            pause_s = PROVIDE_EVERY_S if told or not self._names else FIRST_REFRESH_S
            with trio.move_on_after(pause_s):
                await changed.wait()

    def advertise(self, names: tuple[str, ...]) -> None:
        """Be found under these names from now on, and no others."""
        if names != self._names:
            self._names = names
            self._changed.set()
            self._changed = trio.Event()

    async def find(self, name: str, limit: int) -> list[str]:
        """Peers that are said to be under a name; nobody while the network is down."""
        if self._table is None:
            return []
        try:
            return await self._table.find(name, limit)
        except Exception as fault:  # noqa: BLE001  # whatever a peer's answer provoked in the library
            self._faults.report("kad.find_failed", fault)
            return []
