"""``open_net``: the port to the network on py-libp2p.

TCP, noise and yamux only (the library's own choice of transports lets anybody pose as anybody), a secp256k1 identity,
gossip, and our own requests. No object of the library leaves this module and its neighbours.
"""

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

import trio
from libp2p.crypto import secp256k1, x25519
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.generic_selector import GenericMultistreamSelector
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from multiaddr import Multiaddr

from hansa.node.libp2p_addresses import advertised, choose_listen_addrs, split_addr
from hansa.node.libp2p_budget import ReceiveBudget
from hansa.node.libp2p_guards import Faults, guard_negotiation, guarded_service, quiet_the_library
from hansa.node.libp2p_pubsub import MAX_TOPIC_CHARS, TOPIC_PREFIX, GuardedPubsub
from hansa.node.libp2p_requests import RequestServer, open_and_ask
from hansa.node.libp2p_swarm import GuardedSwarm
from hansa.node.libp2p_yamux import yamux_class
from hansa.node.net import (
    Context,
    Gossip,
    Handler,
    NetConfig,
    NetLimits,
    Path,
    PeerStat,
    Timeout,
    TooBig,
    Unreachable,
    Validator,
)
from hansa.node.peers import AddrsLearnt, Barred, Connected, Disconnected, HangUp, Peer, PeerBook, Struck
from hansa.proto.errors import Malformed
from hansa.proto.peer_id import address_of_peer_text

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
LOOK_AT_CLOCK_S = 10.0
ARRIVALS = 64


@lru_cache(maxsize=4096)
def context_of(peer_id: str) -> Context:
    """The identity behind a peer id. Raises ``Malformed`` if it has no address."""
    return Context(peer_id=peer_id, address=address_of_peer_text(peer_id))


def _author(peer_id: str) -> Context | None:
    try:
        return context_of(peer_id)
    except Malformed:
        return None


def now_ms() -> int:
    """Monotonic, so that a set clock neither ends nor prolongs a bar."""
    return int(trio.current_time() * 1000)


class QuietHost(BasicHost):  # type: ignore[misc]  # the library comes without types
    """The library's host, which answers identify and ping but asks for neither by itself."""

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        """Addresses come by peer exchange, where they are limited and attributable."""


class Libp2pNet:
    """The port to the network, on py-libp2p. Made by ``open_net``."""

    def __init__(self, config: NetConfig, secret: bytes, nursery: trio.Nursery) -> None:
        """Wire everything up; nothing runs yet."""
        self._config = config
        self._limits: NetLimits = config.limits
        self._nursery = nursery
        self._faults = Faults(self._struck)
        self._budget = ReceiveBudget(self._limits.receive_buffer_bytes, self._limits.total_receive_buffer_bytes)
        self._book = PeerBook(self._limits.known_peers)
        self._gone: dict[str, trio.Event] = {}
        self._holding: set[str] = set()
        self._arrivals: list[trio.MemorySendChannel[str]] = []
        self._jitter = random.Random()  # noqa: S311  # only spreads reconnections out
        keys = secp256k1.create_new_key_pair(secret)
        self._id = ID.from_pubkey(keys.public_key)
        self._peer_id: str = self._id.to_base58()
        store = PeerStore()
        store.add_key_pair(self._id, keys)
        self._swarm = GuardedSwarm(
            self._id,
            store,
            security=_only(NOISE, NoiseTransport(keys, noise_privkey=x25519.create_new_key_pair().private_key)),
            muxers=_only(YAMUX, yamux_class(self._limits, self._budget, self._offended)),
            limits=self._limits,
            faults=self._faults,
            addresses=self._addresses,
            barred=self._is_barred,
            stream_failed=self._stream_failed,
            on_connected=self._connected,
            on_disconnected=self._disconnected,
        )
        self._host = QuietHost(
            self._swarm, addrs_factory=self._advertised, disable_identify_address_discovery=True, negotiate_timeout=10
        )
        # Anybody may push a hundred thousand addresses through this one.
        self._host.remove_stream_handler(ID_PUSH)
        self._pubsub = GuardedPubsub(self._host, limits=self._limits, faults=self._faults, context_of=_author)

    @asynccontextmanager
    async def running(self, listen: list[Multiaddr]) -> AsyncIterator[None]:
        """Listen and gossip for as long as the context lasts."""
        async with guarded_service(self._swarm, self._faults):
            await self._swarm.listen(*listen)
            async with guarded_service(self._pubsub.router, self._faults), guarded_service(self._pubsub, self._faults):
                await self._pubsub.wait_until_ready()
                self._nursery.start_soon(self._look_at_clock)
                for addr in self._config.bootstrap:
                    peer_id, bare = split_addr(addr)
                    if peer_id != self._peer_id:
                        self.learn(peer_id, (bare,))
                        self.keep(peer_id)
                yield

    # Who we are.

    @property
    def peer_id(self) -> str:
        """Our own name, base58."""
        return self._peer_id

    def addrs(self) -> tuple[str, ...]:
        """Where others can dial us."""
        return tuple(str(addr) for addr in self._host.get_addrs())

    def _advertised(self, candidates: list[Multiaddr]) -> list[Multiaddr]:
        return advertised(candidates, self._config.announce)

    # Requests.

    def serve(
        self,
        protocol_id: str,
        handler: Handler,
        *,
        max_request_bytes: int = 256 << 10,
        timeout_ms: int = 10_000,
        per_peer: int = 8,
        total: int = 64,
    ) -> None:
        """Answer requests; see ``Net.serve``."""
        server = RequestServer(
            handler,
            self._faults,
            name=protocol_id,
            max_request_bytes=max_request_bytes,
            timeout_ms=timeout_ms,
            per_peer=per_peer,
            total=total,
        )

        async def on_stream(stream: NetStream) -> None:
            await server.handle(stream.muxed_stream, context_of(stream.muxed_conn.peer_id.to_base58()))

        self._host.set_stream_handler(protocol_id, on_stream)

    async def request(
        self,
        peer_id: str,
        protocol_id: str,
        data: bytes,
        *,
        timeout_ms: int = 10_000,
        max_response_bytes: int = 1 << 20,
    ) -> bytes:
        """Ask one peer, dialling it if need be."""
        try:
            with trio.fail_after(timeout_ms / 1000):
                connections = await self._dial(peer_id)
                return await open_and_ask(connections, peer_id, protocol_id, data, max_response_bytes)
        except trio.TooSlowError as late:
            self._faults.count(f"request.timeout {protocol_id}")
            raise Timeout(peer_id, f"no response within {timeout_ms} ms") from late

    async def _dial(self, peer_id: str) -> list[Any]:
        target = self._parse(peer_id)
        try:
            connections: list[Any] = await self._swarm.dial_peer(target)
        except SwarmException as fault:
            self._faults.count("request.unreachable")
            raise Unreachable(peer_id, str(fault)) from fault
        return connections

    def _parse(self, peer_id: str) -> ID:
        if _author(peer_id) is None:
            raise Unreachable(peer_id[:64], "not the peer id of a node")
        if self._is_barred(peer_id):
            raise Unreachable(peer_id, "barred")
        return ID.from_base58(peer_id)

    def _stream_failed(self, peer_id: str, fault: Exception) -> None:
        self._faults.report("streams.handler_failed", fault)
        self._struck(peer_id, "streams.handler_failed")

    # Gossip.

    def subscribe(self, topic: str, validate: Validator, *, queue: int = 256) -> Gossip:
        """Hear a topic; see ``Net.subscribe``."""
        assert topic.startswith(TOPIC_PREFIX), "a topic of ours starts with /hansa/"
        assert len(topic) <= MAX_TOPIC_CHARS, "a topic that others would not take"
        send, receive = trio.open_memory_channel[tuple[Context, bytes]](queue)
        self._pubsub.listen(topic, validate, send)
        self._nursery.start_soon(self._pubsub.subscribe, topic)
        return receive

    async def publish(self, topic: str, data: bytes) -> None:
        """Tell everyone who hears the topic."""
        if len(data) > self._limits.gossip_message_bytes:
            raise TooBig(self._peer_id, "a message longer than gossip carries")
        await self._pubsub.publish(topic, data)

    # Peers.

    def learn(self, peer_id: str, addrs: tuple[str, ...]) -> None:
        """Put addresses into the address book."""
        if peer_id != self._peer_id and _author(peer_id) is not None:
            bare = tuple(addr.removesuffix(f"/p2p/{peer_id}") for addr in addrs)
            self._apply(peer_id, AddrsLearnt(addrs=bare, now_ms=now_ms()))

    def known(self, limit: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Up to ``limit`` peers with addresses, those that live first."""
        order = {"live": 0, "quiet": 1}
        useful = [each for each in self._book if each.addrs and each.phase in order]
        useful.sort(key=lambda each: order[each.phase])
        return tuple((each.peer_id, each.addrs) for each in useful[:limit])

    def _addresses(self, peer_id: str) -> tuple[str, ...]:
        peer = self._book.get(peer_id)
        return peer.addrs if peer else ()

    def keep(self, peer_id: str) -> None:
        """Hold a connection to this peer."""
        self._book.kept.add(peer_id)
        if peer_id not in self._holding:
            self._holding.add(peer_id)
            self._nursery.start_soon(self._hold, peer_id)

    def release(self, peer_id: str) -> None:
        """No longer hold that connection."""
        self._book.kept.discard(peer_id)
        self._gone.pop(peer_id, trio.Event()).set()

    async def _hold(self, peer_id: str) -> None:
        pause_s = FIRST_PAUSE_S
        try:
            while peer_id in self._book.kept:
                try:
                    await self.connect(peer_id)
                    pause_s = FIRST_PAUSE_S
                    await self._until_gone(peer_id)
                except (Unreachable, Timeout):
                    self._faults.count("keep.retry")
                await trio.sleep(pause_s * self._jitter.uniform(0.5, 1.5))
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
        finally:
            self._holding.discard(peer_id)

    async def _until_gone(self, peer_id: str) -> None:
        if self._swarm.live_connections(ID.from_base58(peer_id)):
            await self._gone.setdefault(peer_id, trio.Event()).wait()

    async def connect(self, addr_or_peer_id: str, timeout_ms: int = 8_000) -> Path:
        """Dial now, whatever failed a moment ago."""
        peer_id = addr_or_peer_id
        if addr_or_peer_id.startswith("/"):
            peer_id, bare = split_addr(addr_or_peer_id)
            self.learn(peer_id, (bare,))
        self._swarm.forgive_dial(self._parse(peer_id))
        try:
            with trio.fail_after(timeout_ms / 1000):
                await self._dial(peer_id)
        except trio.TooSlowError as late:
            raise Timeout(peer_id, f"no connection within {timeout_ms} ms") from late
        return "direct"

    async def disconnect(self, peer_id: str) -> None:
        """Close every connection to this peer."""
        for connection in self._swarm.live_connections(ID.from_base58(peer_id)):
            await connection.close()

    def strike(self, peer_id: str, why: str) -> None:
        """Count a wrong against a peer."""
        self._faults.blame(peer_id, why)

    def bar(self, peer_id: str, seconds: int, why: str) -> None:
        """Hang up on a peer and have nothing to do with it for a while."""
        self._apply(peer_id, Barred(why=why, until_ms=now_ms() + seconds * 1000, now_ms=now_ms()))

    def peers(self) -> tuple[PeerStat, ...]:
        """Everyone we know of."""
        return tuple(self._stat(peer) for peer in self._book)

    def _stat(self, peer: Peer) -> PeerStat:
        return PeerStat(
            peer_id=peer.peer_id,
            address=context_of(peer.peer_id).address,
            phase=peer.phase,
            path="direct",
            addrs=peer.addrs,
            strikes=peer.counting(now_ms()),
            barred_for_ms=max(0, peer.barred_until_ms - now_ms()),
            why=peer.why,
        )

    def arrivals(self) -> trio.MemoryReceiveChannel[str]:
        """A new channel on which the ids of peers come as they connect."""
        send, receive = trio.open_memory_channel[str](ARRIVALS)
        self._arrivals.append(send)
        return receive

    def counters(self) -> Mapping[str, int]:
        """Every drop, strike, limit and retry, by reason."""
        return {**self._faults.counters, "peers.evicted": self._book.evicted, "peers.known": len(self._book)}

    # What the swarm tells.

    def _connected(self, peer_id: str) -> None:
        self._apply(peer_id, Connected(now_ms=now_ms()))
        for channel in list(self._arrivals):
            try:
                channel.send_nowait(peer_id)
            except trio.WouldBlock:
                self._faults.count("arrivals.queue_full")
            except trio.BrokenResourceError:
                self._arrivals.remove(channel)

    def _disconnected(self, peer_id: str) -> None:
        self._apply(peer_id, Disconnected(now_ms=now_ms()))
        self._gone.pop(peer_id, trio.Event()).set()

    def _offended(self, peer_id: str, why: str) -> None:
        self._faults.blame(peer_id, f"mux.{why}")

    def _struck(self, peer_id: str, why: str) -> None:
        if peer_id != self._peer_id and _author(peer_id) is not None:
            self._apply(peer_id, Struck(why=why, now_ms=now_ms()))

    def _is_barred(self, peer_id: str) -> bool:
        return self._book.is_barred(peer_id, now_ms())

    def _apply(self, peer_id: str, event: object) -> None:
        for effect in self._book.apply(peer_id, event, now_ms()):
            assert isinstance(effect, HangUp), "a machine gave an order that nobody carries out"
            self._faults.count("peers.hung_up")
            self._nursery.start_soon(self.disconnect, effect.peer_id)

    async def _look_at_clock(self) -> None:
        while True:
            await trio.sleep(LOOK_AT_CLOCK_S)
            self._book.pass_time(now_ms())


def _only(protocol: str, choice: Any) -> GenericMultistreamSelector:
    selector = GenericMultistreamSelector()
    selector.add_handler(protocol, choice)
    return selector


@asynccontextmanager
async def open_net(config: NetConfig, node_key: bytes) -> AsyncIterator[Libp2pNet]:
    """The network, for as long as the context lasts.

    Args:
        config: where to listen and whom to start from.
        node_key: the 32-byte secp256k1 secret of this node; the peer id follows from it.

    Raises:
        PortInUse: somebody else listens there.
        ConfigError: an address is none, or not this machine's.
    """
    quiet_the_library()
    guard_negotiation()
    listen = await choose_listen_addrs(config)
    async with trio.open_nursery() as nursery:
        net = Libp2pNet(config, node_key, nursery)
        async with net.running(listen):
            yield net
        nursery.cancel_scope.cancel()
