"""The port to the network: what every room of a node may ask of it, with no library in sight.

``node/network/libp2p_host.py`` is the real thing and ``tests/kit/memory_net.py`` the one for tests; both pass the same
contract tests. Handlers get an authenticated ``Context`` and bytes, and give bytes back. Nothing here waits for ever.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

import trio

from hansa.node.network.reachability import Opinion, Reachability

Path = Literal["direct", "relayed"]
TOLD_NEARBY = "the local network"
TOLD_EARLIER = "an earlier life of this node"
"""Whose word an address may be that no connected peer has told: hearsay as well, from a place that is private."""


class NetError(Exception):
    """A request came to nothing. Which kind it is says what the caller may do."""

    def __init__(self, peer_id: str, why: str) -> None:
        """Keep both facts as fields."""
        super().__init__(f"{peer_id}: {why}")
        self.peer_id = peer_id
        self.why = why


class Unreachable(NetError):
    """No connection could be made, or it broke before the request was taken."""


class Refused(NetError):
    """The other side understood and said no, in words. Raised by a handler, it becomes exactly that for the caller."""

    def __init__(self, why: str, peer_id: str = "") -> None:
        """A handler gives the reason only; the caller's side adds who said it."""
        super().__init__(peer_id, why)


class NotSpoken(Refused):
    """The other side does not speak this protocol, or this number of it; nothing of the request was looked at."""

    def __init__(self, peer_id: str) -> None:
        """Always the same words."""
        super().__init__("does not speak this protocol", peer_id)


class Timeout(NetError):
    """The deadline passed. The other side may or may not have acted."""


class TooBig(NetError):
    """The request or the response is over its limit."""


class RemoteFault(NetError):
    """The other side failed while answering, or sent an answer that is none."""


class Verdict(Enum):
    """What a validator says of a gossiped message."""

    ACCEPT = "accept"
    IGNORE = "ignore"
    """Not wrong, but not to be passed on: old, known, or beyond what we keep."""
    REJECT = "reject"
    """Wrong. Whoever handed it to us gets a strike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Who is speaking. The identity is proven by the connection (or, in gossip, by the author's signature).

    Attributes:
        peer_id: base58, as in ``/p2p/...``.
        address: the 20-byte EVM address of the same secp256k1 key.
        path: whether the bytes came straight or through a relay.
    """

    peer_id: str
    address: bytes
    path: Path = "direct"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetLimits:
    """How much of this machine strangers may use. Every limit has a counter that tells when it was met."""

    connections: int = 256
    connections_per_peer: int = 2
    connections_per_ip: int = 16
    pending_handshakes: int = 64
    pending_handshakes_per_ip: int = 8
    handshake_timeout_ms: int = 10_000
    handshakes_per_s: int = 10
    """With strangers, in all; each costs some five milliseconds, and what comes after it as much again."""
    handshakes_at_once: int = 64
    network_handshakes_per_s: int = 4
    network_handshakes_at_once: int = 32
    dial_timeout_ms: int = 8_000
    dials: int = 128
    failed_dial_pause_ms: int = 500
    streams_per_connection: int = 256
    receive_buffer_bytes: int = 32 << 20
    """For one connection, over all its streams."""
    total_receive_buffer_bytes: int = 256 << 20
    """For all connections together; whoever holds the most is hung up on."""
    largest_window_bytes: int = 4 << 20
    ping_every_ms: int = 20_000
    ping_timeout_ms: int = 30_000
    gossip_message_bytes: int = 64 << 10
    gossip_messages_per_s: int = 200
    """From one neighbour; twice that may come in one burst."""
    strikes_per_minute: int = 5
    bar_s: int = 300
    known_peers: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """How much a node that serves as a relay does for others. A network is 24 bits of IPv4, 48 of IPv6."""

    reservations: int = 128
    reservations_per_network: int = 8
    reservation_s: int = 3_600
    circuits: int = 64
    circuits_per_peer: int = 16
    circuits_per_network: int = 16
    circuit_s: int = 1_800
    circuit_bytes: int = 256 << 20
    """Each way, for one circuit."""
    bytes_per_s: int = 8 << 20
    """For all circuits together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetConfig:
    """Where to listen and whom to start from.

    Attributes:
        listen: multiaddrs such as ``/ip4/0.0.0.0/tcp/4077``; port 0 chooses a free one.
        bootstrap: full multiaddrs (with ``/p2p/``) of nodes that are kept connected.
        announce: what to tell others instead of the listening addresses, e.g. behind a forwarded port.
        relay: whether this node hands on the bytes of nodes that cannot be dialled.
        upnp: whether a router may be asked to forward our port.
    """

    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    bootstrap: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    relay: bool = False
    upnp: bool = False
    limits: NetLimits = field(default_factory=NetLimits)
    relay_limits: RelayLimits = field(default_factory=RelayLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStat:
    """What this node thinks of one peer.

    Attributes:
        phase: ``new``, ``live``, ``quiet`` or ``barred``.
        strikes: how many still count.
        barred_for_ms: how long it stays barred, 0 if it is not.
        whys: what the newest strikes were for, oldest first, also when they no longer count.
    """

    peer_id: str
    address: bytes
    phase: str
    path: Path
    addrs: tuple[str, ...]
    strikes: int
    barred_for_ms: int
    why: str = ""
    whys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayStat:
    """A relay that keeps a place for us, and for how long by its word."""

    peer_id: str
    left_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How others reach this node, as far as it knows.

    Attributes:
        verdict: what enough of those that were asked say.
        addrs: what others are told.
        opinions: who was asked and what each said.
        hides_ports: our router gives each connection another port, so that no direct way can be made through it.
        relays: where we have a place.
        upnp: what our router said, empty if it was not asked.
        serves_as_relay: whether this node hands on the bytes of others.
        reservations: places taken here, where it does.
        circuits: circuits that stand here.
        relayed_bytes: what it handed on since it was started.
        restarts: how often the library's parts have fallen and been made anew.
    """

    verdict: Reachability = "unknown"
    addrs: tuple[str, ...] = ()
    opinions: tuple[Opinion, ...] = ()
    hides_ports: bool = False
    relays: tuple[RelayStat, ...] = ()
    upnp: str = ""
    serves_as_relay: bool = False
    reservations: int = 0
    circuits: int = 0
    relayed_bytes: int = 0
    restarts: int = 0


Handler = Callable[[Context, bytes], Awaitable[bytes]]
TlsHandler = Callable[[trio.SocketStream, Callable[[], None]], Awaitable[None]]
"""Gets a connection whose first byte is TLS's, and whom to tell once its peer is proven; returns when it is over."""
Validator = Callable[[Context, bytes], Verdict]
Gossip = trio.MemoryReceiveChannel[tuple[Context, bytes]]


class Net(Protocol):
    """Requests, gossip and connections between nodes."""

    @property
    def peer_id(self) -> str:
        """Our own name, base58."""

    def addrs(self) -> tuple[str, ...]:
        """Where others can dial us: full multiaddrs with ``/p2p/``, never an unspecified address."""

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
        """Answer requests. A handler may raise anything: ``Refused`` goes to the caller, all else is our own affair.

        ``per_peer`` and ``total`` bound how many run at once; beyond that the caller is refused as busy. A handler that
        raises ``ProtocolError`` gives the caller a strike. ``older`` are numbers of this protocol from before, answered
        by the same handler under the same limits.
        """

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
        """Ask one peer, dialling it if need be. Raises a ``NetError`` of the kind that it is.

        With ``agree_first`` the request is sent when the peer has said that it speaks the protocol, which costs a round
        trip: who does not may end the stream over what it takes for further proposals, before its no has come.
        """

    def subscribe(self, topic: str, validate: Validator, *, queue: int = 256) -> Gossip:
        """Hear a topic. ``validate`` runs before anything is kept or passed on; what it accepts goes to the channel.

        A full channel drops and counts. Our own messages do not come back to us.
        """

    def unsubscribe(self, topic: str) -> None:
        """Hear a topic no longer, nor pass it on; its channels end."""

    async def publish(self, topic: str, data: bytes) -> None:
        """Tell everyone who hears the topic. Raises ``TooBig`` over the limit for gossip."""

    def listeners(self, topic: str) -> frozenset[str]:
        """Neighbours that hear a topic, by their own word."""

    def advertise(self, names: tuple[str, ...]) -> None:
        """Be found under these names in the network's table from now on, and under no others."""

    async def find(self, name: str, limit: int = 20) -> tuple[str, ...]:
        """Peers that are said to be under a name: nothing is proved. Their addresses are in the address book."""

    def learn(self, peer_id: str, addrs: tuple[str, ...], told_by: str | None = None) -> None:
        """Put addresses into the address book.

        ``told_by`` is the peer whose word they are, or ``TOLD_NEARBY`` or ``TOLD_EARLIER``; without it they are the
        operator's or our own, and come before all hearsay. A peer's word on
        addresses that are not public counts only if it is connected from such a place itself or the operator named one.
        """

    def known(self, limit: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Up to ``limit`` peers with addresses, those that live first: what may be told to a newcomer."""

    def keep(self, peer_id: str) -> None:
        """Hold a connection to this peer: dial again, with growing and jittered pauses, whenever it is lost."""

    def release(self, peer_id: str) -> None:
        """No longer hold that connection; it is not closed."""

    async def connect(self, addr_or_peer_id: str, timeout_ms: int = 8_000) -> Path:
        """Dial now, whatever failed a moment ago. Raises ``Unreachable`` or ``Timeout``."""

    async def disconnect(self, peer_id: str) -> None:
        """Close every connection to this peer."""

    def strike(self, peer_id: str, why: str) -> None:
        """Count a wrong against a peer; enough of them within a minute bar it."""

    def bar(self, peer_id: str, seconds: int, why: str) -> None:
        """Hang up on a peer and have nothing to do with it for a while."""

    def peers(self) -> tuple[PeerStat, ...]:
        """Everyone we know of."""

    def phases(self) -> Mapping[str, str]:
        """Everyone we know of, and the phase of each: much cheaper than all of ``peers``."""

    def is_live(self, peer_id: str) -> bool:
        """Whether a connection to this peer stands."""

    def dialled(self, peer_id: str) -> tuple[str, int] | None:
        """IP address and port at which we reached this peer ourselves, without a relay, if that connection stands."""

    def serve_tls(self, handler: TlsHandler) -> None:
        """Hand over who begins with TLS where we listen, under the same limits on connections as everybody else."""

    def reach(self) -> Reach:
        """How others reach this node."""

    def arrivals(self) -> trio.MemoryReceiveChannel[str]:
        """A new channel on which the ids of peers come as they connect; it drops when nobody reads."""

    def counters(self) -> Mapping[str, int]:
        """Every drop, strike, limit and retry, by reason."""
