"""Connections: who is let in, and what happens when that goes wrong; ``libp2p_dialling.py`` is the other half.

The library's swarm waits 250 ms on every dial, never returns from a dial that stalls, lets 32 such dials block all
others, forgets to give inbound slots back, and ends the program when a stream handler raises. This one keeps its
interface (pubsub, identify and the listeners use it) and replaces those parts.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from socket import MSG_PEEK
from typing import Any

import trio
from libp2p.connection_types import ConnectionType
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import Direction
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.generic_selector import GenericMultistreamSelector
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from hansa.node.network.admission import Admission, Ticket
from hansa.node.network.doorway import Doorway
from hansa.node.network.libp2p_circuit import CircuitSocket
from hansa.node.network.libp2p_connection import GuardedConn
from hansa.node.network.libp2p_dialling import CIRCUITS_AT_ONCE, CIRCUITS_PER_S, Addresses, DiallingSwarm
from hansa.node.network.libp2p_guards import BufferedSocket, Faults
from hansa.node.network.libp2p_requests import AtOnce
from hansa.node.network.libp2p_tcp import Dialler, TcpStream, open_listener
from hansa.node.network.libp2p_yamux import BoundedYamux
from hansa.node.network.neighbourhood import household_of, place_of
from hansa.node.network.net import NetLimits, TlsHandler
from hansa.node.network.relay_turns import RelayTurns
from hansa.proto.peer_id import parse_peer_id

TLS_HANDSHAKE = b"\x16"
"""The first byte of a TLS connection. That of libp2p is the length of its first line, 0x13."""

Barred = Callable[[str], bool]


class GuardedSwarm(DiallingSwarm):
    """All connections of this node."""

    background_nursery: trio.Nursery | None

    def __init__(
        self,
        peer_id: ID,
        peerstore: PeerStore,
        *,
        security: GenericMultistreamSelector,
        muxers: GenericMultistreamSelector,
        limits: NetLimits,
        faults: Faults,
        addresses: Addresses,
        barred: Barred,
        given: Callable[[str, str], bool],
        stream_failed: Callable[[str, Exception], None],
        on_connected: Callable[[str], None],
        on_disconnected: Callable[[str], None],
    ) -> None:
        """Nothing listens yet.

        Args:
            peer_id: ours.
            peerstore: the library's, which holds our key.
            security: what a connection may be secured with.
            muxers: what it may be multiplexed with.
            limits: how much strangers may use.
            faults: where drops are counted.
            addresses: the multiaddrs of a peer.
            barred: whether we have nothing to do with a peer.
            given: whether an address of a peer's is no stranger's word.
            stream_failed: told of a handler that raised.
            on_connected: told of each connection once its peer is proven.
            on_disconnected: told when a peer's last connection is gone.
        """
        super().__init__(
            peer_id,
            peerstore,
            None,
            transports=[TCP()],
            connection_config=ConnectionConfig(
                max_connections=limits.connections,
                min_connections=0,
                low_watermark=0,
                high_watermark=limits.connections,
                inbound_stream_protocol_negotiation_timeout=limits.handshake_timeout_ms / 1000,
                outbound_stream_protocol_negotiation_timeout=limits.handshake_timeout_ms / 1000,
            ),
        )
        self.limits = limits
        self.faults = faults
        self.stream_failed = stream_failed
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._security = security
        self._muxers = muxers
        self._addresses = addresses
        self._is_barred = barred
        self._is_given = given
        self._dialler = Dialler(faults)
        self.dials_from_its_port: Callable[[], bool] = lambda: False
        self.is_kept: Callable[[str], bool] = lambda _name: False
        self.at_once = AtOnce()
        self.on_relayed: Callable[[GuardedConn], None] = lambda _connection: None
        self.on_stranger_in: Callable[[str], None] = lambda _host: None
        self.listening: list[Multiaddr] = []
        # One stream of a passer-by's begins in each turn of the loop, however many connections they have; the lock is
        # held for that long, and given on in a row.
        self.turns = trio.StrictFIFOLock()
        self._doorway = Doorway(limits, faults.count, is_here=self._has_been_here)
        self._admission = Admission(limits, faults.count, self._doorway.turns, self._without_a_ticket)
        self._dials = trio.CapacityLimiter(limits.dials)
        self._dialling: dict[ID, trio.Event] = {}
        self._failed_at: dict[ID, float] = {}
        self.relay_turns = RelayTurns(CIRCUITS_PER_S, CIRCUITS_AT_ONCE, faults.count)
        self._reaching = {}
        self.on_tls: TlsHandler | None = None

    async def run(self) -> None:
        """Hold the connections' tasks; on the way out close everything at once."""
        async with trio.open_nursery() as nursery:
            self.background_nursery = nursery
            self.event_background_nursery_created.set()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(3):
                    async with trio.open_nursery() as closing:
                        for connection in self.get_connections():
                            closing.start_soon(connection.close)
                self.background_nursery = None

    # Inbound.

    async def listen(self, *multiaddrs: Multiaddr) -> bool:
        """Take connections at these addresses. Raises ``OSError``."""
        await self.event_background_nursery_created.wait()
        assert self.background_nursery is not None
        listeners = [open_listener(addr) for addr in multiaddrs]
        for addr, listener in zip(multiaddrs, listeners, strict=True):
            await self.background_nursery.start(trio.serve_listeners, self._take_socket, [listener])
            self.listening.append(addr)
        return True

    async def _is_for_tls(self, read_write_closer: Any) -> bool:
        """Whether a new connection begins as TLS does and not as libp2p does. Its first byte is left where it is."""
        if self.on_tls is None or not isinstance(read_write_closer, TcpStream):
            return False
        return bool(await read_write_closer.stream.socket.recv(1, MSG_PEEK) == TLS_HANDSHAKE)

    async def _take_socket(self, stream: trio.SocketStream) -> None:
        await self._handle_inbound_connection(TcpStream(stream))

    async def _handle_inbound_connection(self, read_write_closer: Any, maddr: Any = None) -> None:  # noqa: ARG002
        remote = read_write_closer.get_remote_address()
        host = remote[0] if remote else ""

        async def serve(ticket: Ticket, proven: Callable[[], None]) -> None:
            if await self._is_for_tls(read_write_closer):
                assert self.on_tls is not None, "asked for"
                ticket.is_kept = lambda: True  # once it has proven itself: such a channel was agreed on before
                await self.on_tls(read_write_closer.stream, proven)
                return
            muxed = await self._upgrade_inbound(BufferedSocket(read_write_closer, self.turns), at_the_door=host)
            connection = await self._add_proven(muxed, ticket, proven)
            if remote and place_of(remote[0]) == "public" and not self._dialler.has_spoken_to(remote[0]):
                self.on_stranger_in(remote[0])
            await connection.event_closed.wait()

        await self._let_in(host, read_write_closer, serve)

    def go_on_from(self, spoken_to: OrderedDict[str, None]) -> None:
        """Take over whom an earlier life of this swarm dialled, and write down there whom this one does."""
        self._dialler.spoken_to = spoken_to

    async def take_circuit(self, socket: CircuitSocket, relay: ID, said: ID) -> None:
        """Serve a connection that a relay brought; only if it is from whom the relay said."""
        # By its name, which the relay has proof of; should it lie, then its callers share one pace of acquaintances.
        is_known = self._doorway.knows(str(said))
        caller = f"{'acquaintances by ' if is_known else ''}relay {relay}"

        async def serve(ticket: Ticket, proven: Callable[[], None]) -> None:
            muxed = await self._upgrade_inbound(
                BufferedSocket(socket, self.turns), ConnectionType.RELAYED, at_the_door=caller, is_known=is_known
            )
            if muxed.peer_id != said:
                self.faults.count("circuit.somebody_else")
                await muxed.close()
                return
            muxed.relay = relay.to_base58()
            connection = await self._add_proven(muxed, ticket, proven)
            self.on_relayed(connection)
            await connection.event_closed.wait()

        await self._let_in(caller, socket, serve)

    async def _add_proven(self, muxed: BoundedYamux, ticket: Ticket, proven: Callable[[], None]) -> GuardedConn:
        """Enter an inbound connection, which from now on goes if its network has too much of a full house."""
        ticket.is_kept = partial(self.is_kept, muxed.peer_id.to_base58())
        proven()
        connection = await self.add_conn(muxed, "inbound")
        ends = ticket.put_out

        def put_out() -> None:
            self.remove_conn(connection)
            muxed.abort()
            ends()

        ticket.put_out = put_out
        return connection

    def _without_a_ticket(self) -> int:
        return sum(each.direction is not Direction.INBOUND for each in self.get_connections())

    async def _let_in(
        self, caller: str, socket: Any, serve: Callable[[Ticket, Callable[[], None]], Awaitable[None]]
    ) -> None:
        """Give a newcomer a place, for so long until it has proven itself, and serve it until it goes.

        One deadline for all that it may have to prove: with one for each step a place would be held for twice as long.
        """
        ticket = self._admission.enter(caller)
        try:
            if ticket is not None:
                with trio.move_on_after(self.limits.handshake_timeout_ms / 1000) as pending:
                    ticket.put_out = pending.cancel

                    def proven() -> None:
                        self._admission.admit(ticket)
                        pending.deadline = inf

                    await serve(ticket, proven)
                if pending.cancelled_caught and not ticket.is_out:
                    self.faults.count("inbound.handshake_failed")
        except Exception:  # noqa: BLE001  # a stranger's handshake can fail in any way
            self.faults.count("inbound.handshake_failed")
        finally:
            if ticket is not None:
                self._admission.leave(ticket)
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await socket.close()

    async def _upgrade_inbound(
        self,
        socket: BufferedSocket,
        kind: ConnectionType = ConnectionType.DIRECT,
        at_the_door: str | None = None,
        *,
        is_known: bool | None = None,
    ) -> BoundedYamux:
        """Shake hands; ``at_the_door`` is the host of somebody who came uninvited, and waits for a turn."""
        raw = RawConnection(socket, False, kind)
        timeout_s = self.limits.handshake_timeout_ms / 1000
        with trio.fail_after(timeout_s):
            _, transport = await self._security.select(raw, False, timeout_s)
            # After what is cheap, so that whoever speaks no libp2p takes nobody's turn, and before what is dear.
            if at_the_door is not None and not await self._doorway.enter(at_the_door, is_known=is_known):
                raise SwarmException("strangers come too fast")
            secured = await transport.secure_inbound(raw)
            peer_id = secured.get_remote_peer()
            self._check(peer_id)
            _, muxer = await self._muxers.select(secured, False, timeout_s)
        muxed: BoundedYamux = muxer(secured, peer_id)
        return muxed

    # Both.

    def _check(self, peer_id: ID, expected: ID | None = None) -> None:
        """Only the one who was meant, only keys that are also an address, and nobody who is barred."""
        name = peer_id.to_base58()
        if expected is not None and peer_id != expected:
            raise SwarmException("another peer lives at that address")
        parse_peer_id(name)
        if peer_id == self.self_id:
            raise SwarmException("that is this node itself")
        if self._is_barred(name):
            self.faults.count("connections.barred")
            raise SwarmException("a barred peer")

    async def add_conn(self, muxed_conn: BoundedYamux, direction: str = "unknown") -> GuardedConn:
        """Start a proven connection and enter it, putting out the oldest where the peer has too many."""
        nursery = self.background_nursery
        if nursery is None:
            raise SwarmException("not running")
        peer_id = muxed_conn.peer_id
        if len(self.get_connections()) >= self.limits.connections:
            self.faults.count("connections.full")
            raise SwarmException("too many connections")
        connection = GuardedConn(muxed_conn, self, direction=direction)
        connection.began_at = trio.current_time()
        connection.household = self._household(muxed_conn)
        connection.set_transport_info(muxed_conn.get_transport_addresses(), muxed_conn.get_connection_type())
        nursery.start_soon(muxed_conn.start)
        await muxed_conn.event_started.wait()
        if muxed_conn.is_closed:
            raise SwarmException("closed at once")
        standing = self.connections.setdefault(peer_id, [])
        standing.append(connection)
        nursery.start_soon(connection.start)
        if len(standing) > self.limits.connections_per_peer:
            self.faults.count("connections.peer_full")
            nursery.start_soon(standing[0].close)
        self._on_connected(peer_id.to_base58())
        nursery.start_soon(self.notify_connected, connection)
        return connection

    def conn_closed(self, connection: GuardedConn) -> None:
        """Tell those who want to know; the library's may take their time."""
        household = connection.household
        if household and self._is_barred(connection.muxed_conn.peer_id.to_base58()):
            self._doorway.forget(household)
        elif household and connection.is_acquainted:
            self._doorway.remember(household)
        if not self.live_connections(connection.muxed_conn.peer_id):
            self._on_disconnected(connection.muxed_conn.peer_id.to_base58())
        if self.background_nursery is not None:
            self.background_nursery.start_soon(self._notify, "disconnected", connection)

    @staticmethod
    def _household(muxed: BoundedYamux) -> str:
        """Where a direct connection comes from or leads to; of a relayed one the peer's name."""
        if muxed.path != "direct":
            return str(muxed.peer_id)
        remote = muxed.get_remote_address()
        return household_of(remote[0]) if remote else ""

    def _has_been_here(self, household: str) -> bool:
        return any(each.household == household and each.is_acquainted for each in self.get_connections())

    def remove_conn(self, swarm_conn: GuardedConn) -> None:
        """Strike a connection from the list."""
        peer_id = swarm_conn.muxed_conn.peer_id
        standing = [each for each in self.connections.get(peer_id, []) if each is not swarm_conn]
        if standing:
            self.connections[peer_id] = standing
        else:
            self.connections.pop(peer_id, None)

    def live_connections(self, peer_id: ID) -> list[GuardedConn]:
        """The connections to a peer: direct before relayed, the newest first, which works after a silent break."""
        standing = [each for each in reversed(self.connections.get(peer_id, [])) if not each.is_closed]
        return sorted(standing, key=lambda each: each.muxed_conn.path != "direct")

    async def new_stream(self, peer_id: ID) -> NetStream:
        """A stream over a connection that stands. The library asks for these, and must not dial whom we have left."""
        for connection in self.live_connections(peer_id):
            try:
                return await connection.new_stream()
            except MuxedConnUnavailable:
                continue
        raise SwarmException("no connection to this peer")

    async def notify_opened_stream(self, stream: NetStream) -> None:
        """Nobody listens, and a nursery for each stream costs."""

    async def notify_closed_stream(self, stream: NetStream) -> None:
        """Nobody listens, and a nursery for each stream costs."""
