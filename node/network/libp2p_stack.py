"""One life of the library's parts: connections, host, gossip. When one has fallen another is made (``Lives``)."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.crypto import secp256k1, x25519
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.generic_selector import GenericMultistreamSelector
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from multiaddr import Multiaddr

from hansa.node.network.libp2p_acquaintances import Acquaintances, author_of
from hansa.node.network.libp2p_budget import ReceiveBudget
from hansa.node.network.libp2p_guards import Faults, guarded_service
from hansa.node.network.libp2p_ping import PING_PROTOCOL, answer_pings
from hansa.node.network.libp2p_pubsub import GuardedPubsub
from hansa.node.network.libp2p_swarm import GuardedSwarm
from hansa.node.network.libp2p_yamux import yamux_class
from hansa.node.network.net import NetLimits


class QuietHost(BasicHost):  # type: ignore[misc]  # the library comes without types
    """The library's host, which answers identify and ping but asks for neither by itself."""

    told: Callable[[], list[str]] | None = None

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        """Addresses come by peer exchange, where they are limited and attributable."""

    def get_transport_addrs(self) -> list[Multiaddr]:
        """Where the swarm listens."""
        return list(self._network.listening)

    def get_addrs(self) -> list[Multiaddr]:
        """What others are told, relays included (the library cuts those off at the relay's name)."""
        return [Multiaddr(addr) for addr in self.told()] if self.told is not None else []


class Stack:
    """Swarm, host and gossip of one life."""

    def __init__(
        self,
        secret: bytes,
        *,
        limits: NetLimits,
        faults: Faults,
        budget: ReceiveBudget,
        acquaintances: Acquaintances,
        told: Callable[[], list[str]],
    ) -> None:
        """Wire everything up; nothing runs yet. ``told`` gives the full addresses that others are told."""
        self._faults = faults
        self._acquaintances = acquaintances
        keys = secp256k1.create_new_key_pair(secret)
        peer_id = ID.from_pubkey(keys.public_key)
        store = PeerStore()
        store.add_key_pair(peer_id, keys)
        self.swarm = GuardedSwarm(
            peer_id,
            store,
            security=_only(NOISE, NoiseTransport(keys, noise_privkey=x25519.create_new_key_pair().private_key)),
            muxers=_only(YAMUX, yamux_class(limits, budget, self._offended)),
            limits=limits,
            faults=faults,
            addresses=acquaintances.addresses,
            barred=acquaintances.is_barred,
            given=acquaintances.is_given,
            stream_failed=self._stream_failed,
            on_connected=acquaintances.connected,
            on_disconnected=acquaintances.disconnected,
        )
        self.swarm.is_kept = lambda name: name in acquaintances.book.kept
        self.host = QuietHost(self.swarm, disable_identify_address_discovery=True, negotiate_timeout=10)
        self.host.told = told
        # Anybody may push a hundred thousand addresses through this one.
        self.host.remove_stream_handler(ID_PUSH)
        self.host.set_stream_handler(PING_PROTOCOL, answer_pings)
        self.pubsub = GuardedPubsub(self.host, limits=limits, faults=faults, context_of=author_of)
        self.nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def running(self, listen: list[Multiaddr]) -> AsyncIterator[None]:
        """Listen and gossip for as long as the context lasts."""
        async with guarded_service(self.swarm, self._faults):
            await self.swarm.listen(*listen)
            async with (
                guarded_service(self.pubsub.router, self._faults),
                guarded_service(self.pubsub, self._faults),
                trio.open_nursery() as nursery,
            ):
                await self.pubsub.wait_until_ready()
                self.nursery = nursery
                try:
                    yield
                finally:
                    self.nursery = None
                nursery.cancel_scope.cancel()

    def soon(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Have something done in this life, if it lasts. What it raises ends it, and nothing else."""
        if self.nursery is not None:
            self.nursery.start_soon(self._guarded, work, arguments)

    async def _guarded(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            await work(*arguments)
        except Exception as fault:  # noqa: BLE001  # whatever a peer provoked must not end this life
            self._faults.report("net.task_failed", fault)

    def _stream_failed(self, peer_id: str, fault: Exception) -> None:
        self._faults.report("streams.handler_failed", fault)
        self._faults.strike(peer_id, "streams.handler_failed")

    def _offended(self, peer_id: str, why: str) -> None:
        self._faults.blame(peer_id, f"mux.{why}")


def _only(protocol: str, choice: Any) -> GenericMultistreamSelector:
    selector = GenericMultistreamSelector()
    selector.add_handler(protocol, choice)
    return selector
