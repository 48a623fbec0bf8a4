"""What the network's table holds: whom to ask, and who provides what. Both are bounded, for one party and for all."""

import random
from collections import Counter, OrderedDict
from typing import Any

import trio
from libp2p.kad_dht.peer_routing import PeerRouting
from libp2p.kad_dht.provider_store import ProviderRecord, ProviderStore
from libp2p.kad_dht.routing_table import KBucket, RoutingTable
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_kad_host import RELAYED, NarrowHost

RECORDS = 20_000
RECORDS_PER_KEY = 128
RECORDS_PER_PEER = 64
RECORD_LIFE_S = 3_600.0
TOLD_PROVIDERS = 20
TABLE_PEERS = 512
TABLE_PEERS_PER_NETWORK = 8
"""Of 24 bits of IPv4 or 48 of IPv6, by where they are connected from and not by what they say."""
BESIDE_EACH_OTHER = 3


async def _is_connected(bucket: KBucket, peer_id: ID) -> bool:
    await trio.lowlevel.checkpoint()
    found: bool = bucket.host.is_connected(peer_id)
    return found


def ask_connections() -> None:
    """Have a full bucket look whether its oldest peer is connected: the library pings it, and all others wait for that.

    Who answers no pings would hold up everybody whose name is near its own, for as long as a stream may last.
    """
    KBucket._ping_peer = _is_connected  # noqa: SLF001


class CappedTable(RoutingTable):  # type: ignore[misc]  # the library comes without types
    """A routing table of peers that were met, and not of all that anybody named."""

    def __init__(self, local: ID, host: NarrowHost, faults: Faults) -> None:
        """Nobody was met yet."""
        # The library's own limit for a network goes by what peers say of themselves.
        super().__init__(local, host, max_peers_per_subnet=0)
        self._narrow, self._faults = host, faults
        self._networks: dict[ID, str] = {}
        self.met: set[ID] = set()

    async def add_peer(self, peer_obj: Any, *, skip_server_mode_check: bool = True) -> bool:  # noqa: ARG002
        """Take a peer in if it was met and there is room; the library's own rules come after that."""
        peer_id = peer_obj.peer_id if isinstance(peer_obj, PeerInfo) else peer_obj
        if peer_id not in self.met or not self._narrow.is_connected(peer_id):
            # Who has hung up meanwhile would count for no network.
            return False
        if not self.peer_in_table(peer_id) and not self._make_room(self._narrow.network_of(peer_id)):
            self._faults.count("kad.table_full")
            return False
        added: bool = await super().add_peer(peer_obj, skip_server_mode_check=True)
        if added:
            self._networks[peer_id] = self._narrow.network_of(peer_id)
        return added

    def _make_room(self, network: str) -> bool:
        """Whether a newcomer of this network may come in: for all and for each network there is so much room.

        Whoever was here once and has gone makes room; while all are connected the table stays as it is.
        """
        if network.startswith(RELAYED):
            # Nobody could ask it but through a relay, which is itself who to ask.
            return False
        standing = self.get_peer_ids()
        self._networks = {each: self._networks.get(each, "") for each in standing}
        neighbours = [each for each in standing if network and self._networks[each] == network]
        for some, is_full in (
            (neighbours, len(neighbours) >= TABLE_PEERS_PER_NETWORK),
            (standing, len(standing) >= TABLE_PEERS),
        ):
            if is_full:
                gone = next((each for each in some if not self._narrow.is_connected(each)), None)
                if gone is None:
                    return False
                self.remove_peer(gone)
                return True
        return True

    async def meet(self, peer_id: ID) -> None:
        """A peer serves the table's protocol."""
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
