"""The host that the library's table gets: it can do nothing but what the table needs, and counts what that costs."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from hansa.node.network.libp2p_acquaintances import Acquaintances, author_of
from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_kad_messages import ADDR_BYTES, TOLD_ADDRS, KadStream, sound
from hansa.node.network.libp2p_stack import Stack
from hansa.node.network.neighbourhood import group_of, place_of

KAD_PROTOCOL = "/hansa/kad/1.0.0"
DIALS_PER_LOOKUP = 24
RELAYED = "a relay"
"""And its name: in place of the network of a peer that is connected through it."""


@dataclass(slots=True)
class Lookup:
    """What one search of the network may still do."""

    dials: int = DIALS_PER_LOOKUP
    dialled: set[ID] = field(default_factory=set)


LOOKUP: ContextVar[Lookup | None] = ContextVar("lookup", default=None)


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
        return sound([addr for addr in self._acquaintances.addresses(peer_id.to_base58()) if len(addr) <= ADDR_BYTES])

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

    def is_connected(self, peer_id: ID) -> bool:
        """Whether a connection to this peer stands, which the multiplexer's own pings see to."""
        return bool(self._stack.swarm.live_connections(peer_id))

    def network_of(self, peer_id: ID) -> str:
        """From which network a connected peer comes, empty for our own ones and for who is not connected."""
        standing = [each.muxed_conn for each in self._stack.swarm.live_connections(peer_id)]
        return self.network_at(standing[0]) if standing else ""

    @staticmethod
    def network_at(muxed_conn: Any) -> str:
        """From which network a connection comes, whether it stands or not; empty for our own ones."""
        if muxed_conn.path != "direct":
            return f"{RELAYED} {muxed_conn.relay}"
        remote = muxed_conn.get_remote_address()
        return group_of(remote[0]) if remote is not None and place_of(remote[0]) == "public" else ""

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
