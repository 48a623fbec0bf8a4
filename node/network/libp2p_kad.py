"""The network's table of who provides what: Kademlia with provider records, and what keeps strangers from using it up.

The library's table works between friends. With strangers it lets anybody store anything (100 KB under any key), keeps
each record that it is sent, believes every address and signed record that it hears of, puts whoever is named into its
routing table, answers from what it stored itself and looks no further, opens a connection to everybody that a lookup
hears of, and serves twelve streams at once without any deadline, so that twelve silent ones end it. It also speaks
the public network's protocol whatever it is told.

So it gets a host that can do nothing but what it needs (``libp2p_kad_host.py``), streams on which only small, cleaned
messages pass (``libp2p_kad_messages.py``), a store and a routing table that are bounded (``libp2p_kad_tables.py``), and
no values at all. Whoever is found here has proved nothing; its signed advert is asked for, directly.

Whoever nobody can dial asks and is not asked: it would stand in others' tables and answer none of them.
"""

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.peer_routing import PeerRouting
from libp2p.peer.id import ID
from libp2p.records.validator import NamespacedValidator

from hansa.node.network.allowance import Allowances
from hansa.node.network.libp2p_acquaintances import Acquaintances
from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_kad_host import KAD_PROTOCOL, LOOKUP, RELAYED, Lookup, NarrowHost
from hansa.node.network.libp2p_kad_messages import TOLD_PEERS, BadKad, KadStream
from hansa.node.network.libp2p_kad_tables import CappedProviders, CappedTable, ask_connections
from hansa.node.network.libp2p_stack import Stack

STREAMS_PER_PEER = 4
STREAMS_PER_NETWORK = 8
STREAMS_THROUGH_RELAYS = 16
STREAMS = 32
STREAM_S = 15.0
TRIES_PER_S = 1 / 300
TRIES_AT_ONCE = 2
"""How often one peer that asks is tried whether it answers as well."""
LOOKUPS = 2
LOOKUP_S = 30.0
ENOUGH_CONNECTIONS = 16
"""With more than these, connections that were made for a lookup are closed after it."""
REST_S = 5.0
PROVIDE_EVERY_S = 25 * 60.0
PROVIDE_PAUSE_S = 2.0
REFRESH_EVERY_S = 600.0
FIRST_REFRESH_S = 5.0
LOOK_AT_REACH_S = 5.0


def make_private() -> None:
    """Have the library speak our protocol: the prefix that it can be given is ignored."""
    for module in (common, kad_dht, peer_routing, provider_store, value_store):
        module.PROTOCOL_ID = KAD_PROTOCOL


def key_of(name: str) -> bytes:
    """A name as a key of the table: the multihash of its SHA-256, as other implementations make of a content id."""
    return b"\x12\x20" + hashlib.sha256(f"/hansa/capability/{name}".encode()).digest()


class KadTable:
    """The network's table, in one life of the library's parts."""

    def __init__(self, stack: Stack, acquaintances: Acquaintances, faults: Faults) -> None:
        """Wire it up; nobody is asked yet."""
        make_private()
        ask_connections()
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
        self.table = self.dht.routing_table = CappedTable(self.host.get_id(), self.host, faults)
        self.routing = self.dht.peer_routing = PeerRouting(self.host, self.table)
        self.providers = self.dht.provider_store = CappedProviders(self.host, self.routing, faults)
        self._streams: Counter[str] = Counter()
        self._networks: Counter[str] = Counter()
        self._tries = Allowances(TRIES_PER_S, TRIES_AT_ONCE, trio.current_time)
        self._lookups = trio.CapacityLimiter(LOOKUPS)

    async def _meet(self, peer_id: ID) -> None:
        await self.table.meet(peer_id)

    async def handle(self, stream: Any) -> None:
        """Answer one peer's questions, as long as they are few, small and soon over."""
        asker = stream.muxed_conn.peer_id
        # Of this very connection: who asks and hangs up at once still counts for its network.
        peer_id, network = asker.to_base58(), self.host.network_at(stream.muxed_conn)
        if (
            self._streams[peer_id] >= STREAMS_PER_PEER
            or self._streams.total() >= STREAMS
            or (network and self._networks[network] >= STREAMS_PER_NETWORK)
            or (network.startswith(RELAYED) and self._streams_through_relays() >= STREAMS_THROUGH_RELAYS)
        ):
            self._faults.count("kad.busy")
            stream.muxed_stream.abort()
            return
        taken, of_network = Counter((peer_id,)), Counter((network,))
        self._streams += taken
        self._networks += of_network
        try:
            with trio.move_on_after(STREAM_S) as deadline:
                await self._note(asker)
                narrow = KadStream(stream, peer_id, self.host.learn, is_question=True)
                await self._answer(narrow, peer_id)
            if deadline.cancelled_caught:
                self._faults.count("kad.too_slow")
                stream.muxed_stream.abort()
        finally:
            self._streams -= taken
            self._networks -= of_network

    def _streams_through_relays(self) -> int:
        return sum(number for network, number in self._networks.items() if network.startswith(RELAYED))

    async def _note(self, asker: ID) -> None:
        """Somebody asks: if it answers as well it belongs into the table, and only a try shows whether it does."""
        if self.table.peer_in_table(asker):
            await self._meet(asker)
        elif self._tries.take(asker):
            self._stack.soon(self._try, asker)

    async def _try(self, peer_id: ID) -> None:
        with trio.move_on_after(STREAM_S):
            try:
                stream = await self._stack.host.new_stream(peer_id, [KAD_PROTOCOL])
            except Exception:  # noqa: BLE001  # it is gone, or speaks no such thing, which the library says in many ways
                self._faults.count("kad.only_asks")
                return
            stream.muxed_stream.abort()
            await self._meet(peer_id)

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

    def __init__(self, acquaintances: Acquaintances, faults: Faults, is_hidden: Callable[[], bool]) -> None:
        """Nothing is provided yet. ``is_hidden``: whether others have found that they cannot dial us."""
        self._is_hidden = is_hidden
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
                nursery.start_soon(self._serve_while_public, stack)
        finally:
            self._table = None

    async def _serve_while_public(self, stack: Stack) -> None:
        """Serve the table as long as others can dial us, as far as we know; it begins with serving."""
        # This part may have fallen in a life that goes on, and that it had told not to serve.
        stack.host.set_stream_handler(KAD_PROTOCOL, self.handle)
        serves = True
        while True:
            if serves is self._is_hidden():
                serves = not serves
                self._faults.count("kad.serves_again" if serves else "kad.only_asks_now")
                if serves:
                    stack.host.set_stream_handler(KAD_PROTOCOL, self.handle)
                else:
                    stack.host.remove_stream_handler(KAD_PROTOCOL)
            await trio.sleep(LOOK_AT_REACH_S)

    async def _refresh(self, table: KadTable) -> None:
        await trio.sleep(FIRST_REFRESH_S)
        while True:
            await self._tried("refresh", table.refresh)
            # A table of few peers is soon out of date, and asking few costs little.
            await trio.sleep(REFRESH_EVERY_S if table.table.size() >= TOLD_PEERS else REFRESH_EVERY_S / 10)

    async def _provide(self, table: KadTable) -> None:
        while True:
            changed = self._changed
            told = 0
            for name in self._names:
                told += bool(await self._tried("provide", partial(table.provide, name)))
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
        return await self._tried("find", partial(self._table.find, name, limit)) or []

    async def _tried(self, what: str, search: Callable[[], Awaitable[Any]]) -> Any:
        """What a search finds; None where it failed, for which no part of ours is to fall."""
        try:
            return await search()
        except Exception as fault:  # noqa: BLE001  # whatever a peer's answer provoked in the library
            self._faults.report(f"kad.{what}_failed", fault)
            return None
