"""``open_net``: the port to the network on py-libp2p.

TCP, noise and yamux only (the library's own choice of transports lets anybody pose as anybody), a secp256k1 identity,
gossip, and our own requests. No object of the library leaves this module and its neighbours.

What is asked of the network stands here and in the acquaintances, and outlives the library's parts: when those fall,
others are made (``libp2p_lives.py``) with the same key and port, and all that was served and heard is so again.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from libp2p.crypto import secp256k1
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from hansa.node.network.libp2p_acquaintances import Acquaintances, author_of, context_of, id_of
from hansa.node.network.libp2p_addresses import advertised, choose_listen_addrs, sorted_addrs, split_addr
from hansa.node.network.libp2p_budget import ReceiveBudget
from hansa.node.network.libp2p_guards import Faults, guard_negotiation, quiet_the_library
from hansa.node.network.libp2p_kad import KadRoom
from hansa.node.network.libp2p_kad_host import KAD_PROTOCOL
from hansa.node.network.libp2p_lives import Lives, Part
from hansa.node.network.libp2p_pubsub import MAX_TOPIC_CHARS, TOPIC_PREFIX
from hansa.node.network.libp2p_reach import Reachability
from hansa.node.network.libp2p_requests import AtOnce, RequestServer, open_and_ask
from hansa.node.network.libp2p_stack import Stack
from hansa.node.network.libp2p_stream import BoundedStream
from hansa.node.network.neighbourhood import Neighbourhood
from hansa.node.network.net import (
    Gossip,
    Handler,
    NetConfig,
    NetLimits,
    Path,
    PeerStat,
    Reach,
    Timeout,
    TlsHandler,
    TooBig,
    Unreachable,
    Validator,
)

MAX_ADDR_BYTES = 256
"""What adverts and peer exchange carry: a ``Line``."""


class Libp2pNet:
    """The port to the network, on py-libp2p. Made by ``open_net``."""

    def __init__(self, config: NetConfig, secret: bytes, listen: list[Multiaddr]) -> None:
        """Wire everything up; nothing runs yet. ``listen`` are addresses with real ports."""
        self._config = config
        self._secret = secret
        self._listen = listen
        self._limits: NetLimits = config.limits
        self._faults = Faults(self._struck)
        self._budget = ReceiveBudget(self._limits.receive_buffer_bytes, self._limits.total_receive_buffer_bytes)
        self._peer_id: str = ID.from_pubkey(secp256k1.create_new_key_pair(secret).public_key).to_base58()
        self._acquaintances = Acquaintances(
            self._peer_id,
            self._limits,
            self._faults,
            Neighbourhood((*config.listen, *config.bootstrap, *config.announce)),
            connect=self.connect,
            is_connected=lambda peer_id: bool(self._swarm.live_connections(id_of(peer_id))),
            hang_up=lambda peer_id: self._stack.soon(self.disconnect, peer_id),
            remote_ip=self._remote_ip,
            path=self._path,
        )
        self._kad = KadRoom(self._acquaintances, self._faults, lambda: self._reachability.is_hidden)
        self._at_once = AtOnce()
        self._protocols: dict[str, Callable[[NetStream], Awaitable[None]]] = {KAD_PROTOCOL: self._kad.handle}
        self._topics: list[tuple[str, Validator, trio.MemorySendChannel[Any]]] = []
        self._reachability = Reachability(config, self._peer_id, self._faults, self._acquaintances)
        self._on_tls: TlsHandler | None = None
        parts = [self._hold_acquaintances, self._reachability.run, self._kad.run]
        self._lives = Lives(self._build, parts, self._faults, begin=self._begin, fell=self._acquaintances.all_gone)

    def _build(self) -> Stack:
        stack = Stack(
            self._secret,
            limits=self._limits,
            faults=self._faults,
            budget=self._budget,
            acquaintances=self._acquaintances,
            told=lambda: list(self.addrs()),
        )
        self._reachability.furnish(stack, self.addrs)
        stack.swarm.at_once = self._at_once
        for protocol_id, on_stream in self._protocols.items():
            stack.host.set_stream_handler(protocol_id, on_stream)
        for topic, validate, channel in self._topics:
            stack.pubsub.listen(topic, validate, channel)
        stack.swarm.on_tls = self._on_tls
        return stack

    # Lives.

    async def live(self, *, task_status: Any) -> None:
        """Run the library's parts, and others like them when they have fallen."""
        for addr in self._config.bootstrap:
            peer_id, bare = split_addr(addr)
            if peer_id != self._peer_id:
                self.learn(peer_id, (bare,))
                self.keep(peer_id)
        await self._lives.live(self._listen, task_status=task_status)

    def _begin(self, stack: Stack) -> None:
        for topic in dict.fromkeys(topic for topic, _, _ in self._topics):
            stack.soon(stack.pubsub.follow, topic)

    async def withdraw(self) -> None:
        """Give back what others keep for us: a port at the router."""
        await self._reachability.withdraw()

    async def _hold_acquaintances(self, _stack: Stack) -> None:
        await self._acquaintances.run()

    def attach(self, part: Part) -> None:
        """Have something run beside the host in this life of it and in those to come."""
        self._lives.attach(part)

    @property
    def _stack(self) -> Stack:
        return self._lives.stack

    @property
    def _swarm(self) -> Any:
        return self._stack.swarm

    @property
    def _host(self) -> Any:
        return self._stack.host

    @property
    def _pubsub(self) -> Any:
        return self._stack.pubsub

    # Who we are.

    @property
    def peer_id(self) -> str:
        """Our own name, base58."""
        return self._peer_id

    def addrs(self) -> tuple[str, ...]:
        """Where others can dial us."""
        here = [str(addr).partition("/p2p/")[0] for addr in advertised(self._swarm.listening, self._config.announce)]
        found = () if self._config.announce else self._reachability.found_addrs()
        full = [f"{addr}/p2p/{self._peer_id}" for addr in sorted_addrs(here, found)]
        # One that does not fit makes the whole message malformed for whoever gets it, and us the one who sent it.
        fitting = tuple(addr for addr in full if len(addr.encode()) <= MAX_ADDR_BYTES)
        if len(fitting) < len(full):
            self._faults.count("addresses.too_long_to_tell")
        return fitting

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
        older: tuple[str, ...] = (),
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

        async def handle(stream: BoundedStream, *, is_older: bool = False) -> None:
            connection: Any = stream.muxed_conn
            context = context_of(connection.peer_id.to_base58(), connection.path)
            await server.handle(stream, context, is_older=is_older)

        async def on_stream(stream: NetStream, *, is_older: bool = False) -> None:
            await handle(stream.muxed_stream, is_older=is_older)

        self.serve_streams(protocol_id, on_stream)
        self._at_once.serve(protocol_id, handle)
        for each in older:
            self.serve_streams(each, partial(on_stream, is_older=True))
            self._at_once.serve(each, partial(handle, is_older=True))

    def serve_streams(self, protocol_id: str, on_stream: Callable[[NetStream], Awaitable[None]]) -> None:
        """Have a protocol's streams handled, in this life of the host and in those to come."""
        self._protocols[protocol_id] = on_stream
        self._host.set_stream_handler(protocol_id, on_stream)

    async def request(
        self,
        peer_id: str,
        protocol_id: str,
        data: bytes,
        *,
        timeout_ms: int = 10_000,
        max_response_bytes: int = 1 << 20,
        agree_first: bool = False,
    ) -> bytes:
        """Ask one peer, dialling it if need be."""
        try:
            with trio.fail_after(timeout_ms / 1000):
                connections = await self._dial(peer_id)
                return await open_and_ask(
                    connections, peer_id, protocol_id, data, max_response_bytes, agree_first=agree_first
                )
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
        if author_of(peer_id) is None:
            raise Unreachable(peer_id[:64], "not the peer id of a node")
        if self._acquaintances.is_barred(peer_id):
            raise Unreachable(peer_id, "barred")
        return id_of(peer_id)

    # Gossip.

    def subscribe(self, topic: str, validate: Validator, *, queue: int = 256) -> Gossip:
        """Hear a topic; see ``Net.subscribe``."""
        assert topic.startswith(TOPIC_PREFIX), "a topic of ours starts with /hansa/"
        assert len(topic) <= MAX_TOPIC_CHARS, "a topic that others would not take"
        send, receive = trio.open_memory_channel[Any](queue)
        self._topics.append((topic, validate, send))
        self._pubsub.listen(topic, validate, send)
        self._stack.soon(self._pubsub.follow, topic)
        return receive

    def unsubscribe(self, topic: str) -> None:
        """Hear a topic no longer; see ``Net.unsubscribe``."""
        self._topics = [each for each in self._topics if each[0] != topic]
        self._pubsub.unlisten(topic)
        self._stack.soon(self._pubsub.follow, topic)

    async def publish(self, topic: str, data: bytes) -> None:
        """Tell everyone who hears the topic."""
        if len(data) > self._limits.gossip_message_bytes:
            raise TooBig(self._peer_id, "a message longer than gossip carries")
        await self._pubsub.publish(topic, data)

    def listeners(self, topic: str) -> frozenset[str]:
        """Neighbours that hear a topic."""
        heard_by: frozenset[str] = self._pubsub.listeners(topic)
        return heard_by

    # The network's table of providers.

    def advertise(self, names: tuple[str, ...]) -> None:
        """Be found under these names; see ``Net.advertise``."""
        self._kad.advertise(names)

    async def find(self, name: str, limit: int = 20) -> tuple[str, ...]:
        """Who is said to be under a name; see ``Net.find``."""
        return tuple(await self._kad.find(name, limit))

    # Peers.

    def learn(self, peer_id: str, addrs: tuple[str, ...], told_by: str | None = None) -> None:
        """Put addresses into the address book; see ``Net.learn``."""
        self._acquaintances.learn(peer_id, addrs, told_by)

    def known(self, limit: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Up to ``limit`` peers with addresses, those that live first."""
        return self._acquaintances.known(limit)

    def keep(self, peer_id: str) -> None:
        """Hold a connection to this peer."""
        self._acquaintances.keep(peer_id)

    def release(self, peer_id: str) -> None:
        """No longer hold that connection."""
        self._acquaintances.release(peer_id)

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
        return self._path(peer_id)

    async def disconnect(self, peer_id: str) -> None:
        """Close every connection to this peer."""
        for connection in self._swarm.live_connections(id_of(peer_id)):
            await connection.close()

    def strike(self, peer_id: str, why: str) -> None:
        """Count a wrong against a peer."""
        self._faults.blame(peer_id, why)

    def bar(self, peer_id: str, seconds: int, why: str) -> None:
        """Hang up on a peer and have nothing to do with it for a while."""
        self._acquaintances.bar(peer_id, seconds, why)

    def peers(self) -> tuple[PeerStat, ...]:
        """Everyone we know of."""
        return self._acquaintances.stats()

    def phases(self) -> Mapping[str, str]:
        """Everyone we know of, and the phase of each."""
        return {peer.peer_id: peer.phase for peer in self._acquaintances.book}

    def is_live(self, peer_id: str) -> bool:
        """Whether a connection to this peer stands."""
        return bool(self._swarm.live_connections(id_of(peer_id)))

    def dialled(self, peer_id: str) -> tuple[str, int] | None:
        """Where we reached this peer ourselves."""
        for connection in self._swarm.live_connections(id_of(peer_id)):
            muxed = connection.muxed_conn
            if muxed.is_initiator and muxed.path == "direct":
                at: tuple[str, int] | None = muxed.get_remote_address()
                return at
        return None

    def serve_tls(self, handler: TlsHandler) -> None:
        """Hand over who begins with TLS where we listen, in this life of the host and in those to come."""
        self._on_tls = handler
        self._swarm.on_tls = handler

    def reach(self) -> Reach:
        """How others reach this node."""
        return self._reachability.describe(self.addrs(), self._lives.restarts)

    def arrivals(self) -> trio.MemoryReceiveChannel[str]:
        """A new channel on which the ids of peers come as they connect."""
        return self._acquaintances.arrivals()

    def counters(self) -> Mapping[str, int]:
        """Every drop, strike, limit and retry, by reason."""
        book = self._acquaintances.book
        return {**self._faults.counters, "peers.evicted": book.evicted}

    def _struck(self, peer_id: str, why: str) -> None:
        self._acquaintances.struck(peer_id, why)

    def _path(self, peer_id: str) -> Path:
        """How a peer is connected; who is not is taken to be dialled directly."""
        connections = self._swarm.live_connections(id_of(peer_id))
        path: Path = connections[0].muxed_conn.path if connections else "direct"
        return path

    def _remote_ip(self, peer_id: str) -> str | None:
        for connection in self._swarm.live_connections(id_of(peer_id)):
            remote = connection.muxed_conn.get_remote_address()
            if remote is not None and connection.muxed_conn.path == "direct":
                return str(remote[0])
        return None


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
    net = Libp2pNet(config, node_key, await choose_listen_addrs(config))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(net.live)
            yield net
            nursery.cancel_scope.cancel()
    finally:
        await net.withdraw()
