"""Connections: who is let in, who is dialled, and what happens when either goes wrong.

The library's swarm waits 250 ms on every dial, never returns from a dial that stalls, lets 32 such dials block all
others, forgets to give inbound slots back, and ends the program when a stream handler raises. This one keeps its
interface (pubsub, identify and the listeners use it) and replaces those parts.
"""

from collections.abc import Callable, Sequence
from socket import MSG_PEEK
from typing import Any

import trio
from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType
from libp2p.io.trio import TrioTCPStream
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.net_stream import NetStream, StreamState
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.generic_selector import GenericMultistreamSelector
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from hansa.node.libp2p_circuit import CircuitSocket, open_circuit, split_circuit
from hansa.node.libp2p_guards import Admission, BufferedSocket, Faults
from hansa.node.libp2p_stream import BoundedStream
from hansa.node.libp2p_tcp import Dialler, open_listener, port_of, rank
from hansa.node.libp2p_yamux import BoundedYamux
from hansa.node.neighbourhood import host_of, is_circuit
from hansa.node.net import NetLimits, TlsHandler
from hansa.proto.peer_id import parse_peer_id

NEXT_ADDRESS_AFTER_S = 0.02
"""How long one address is tried alone before the next is tried beside it."""
DIALLED_ADDRESSES = 8
TLS_HANDSHAKE = b"\x16"
"""The first byte of a TLS connection. That of libp2p is the length of its first line, 0x13."""
DIALLED_CIRCUITS = 4
CIRCUITS_AFTER_S = 0.3

Addresses = Callable[[str], Sequence[str]]
Barred = Callable[[str], bool]


class GuardedConn(SwarmConn):  # type: ignore[misc]  # the library comes without types
    """A connection whose stream handlers may raise anything."""

    muxed_conn: BoundedYamux

    async def start(self) -> None:
        """Handle the peer's streams until the connection ends, which ends their handlers too."""
        self.event_started.set()
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    nursery.start_soon(self._handle_muxed_stream, await self.muxed_conn.accept_stream())
            except MuxedConnUnavailable:
                nursery.cancel_scope.cancel()
        await self.close()

    async def _handle_muxed_stream(self, muxed_stream: BoundedStream) -> None:
        stream = await self._add_stream(muxed_stream)
        try:
            await self.swarm.common_stream_handler(stream)
        except Exception as fault:  # noqa: BLE001  # any protocol's handler, ours or the library's, on a peer's bytes
            self.swarm.stream_failed(self.muxed_conn.peer_id.to_base58(), fault)
            muxed_stream.abort()
        finally:
            # Whoever handled it is done with it: nothing may stay buffered or half open on a handler's neglect.
            self.remove_stream(stream)
            muxed_stream.finish()
            muxed_stream.abandon()

    async def _add_stream(self, muxed_stream: BoundedStream) -> NetStream:
        stream = NetStream(muxed_stream, self, None)
        await stream.set_state(StreamState.OPEN)
        self.streams.add(stream)
        return stream

    async def close(self) -> None:
        """End it, and tell those who want to know in the background."""
        if self.event_closed.is_set():
            return
        self.event_closed.set()
        self.swarm.remove_conn(self)
        self.swarm.conn_closed(self)
        await self.muxed_conn.close()


class GuardedSwarm(Swarm):  # type: ignore[misc]  # the library comes without types
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
        self.on_relayed: Callable[[GuardedConn], None] = lambda _connection: None
        self.listening: list[Multiaddr] = []
        self._admission = Admission(limits, faults)
        self._dials = trio.CapacityLimiter(limits.dials)
        self._dialling: dict[ID, trio.Event] = {}
        self._failed_at: dict[ID, float] = {}
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
        if self.on_tls is None or not isinstance(read_write_closer, TrioTCPStream):
            return False
        with trio.fail_after(self.limits.handshake_timeout_ms / 1000):
            return bool(await read_write_closer.stream.socket.recv(1, MSG_PEEK) == TLS_HANDSHAKE)

    async def _take_socket(self, stream: trio.SocketStream) -> None:
        await self._handle_inbound_connection(TrioTCPStream(stream))

    async def _handle_inbound_connection(self, read_write_closer: Any, maddr: Any = None) -> None:  # noqa: ARG002
        remote = read_write_closer.get_remote_address()
        ticket = self._admission.enter(remote[0] if remote else "")
        try:
            if ticket is not None and await self._is_for_tls(read_write_closer):
                assert self.on_tls is not None, "asked for"
                await self.on_tls(read_write_closer.stream, lambda: self._admission.admit(ticket))
            elif ticket is not None:
                muxed = await self._upgrade_inbound(BufferedSocket(read_write_closer))
                self._admission.admit(ticket)
                connection = await self.add_conn(muxed, "inbound")
                await connection.event_closed.wait()
        except Exception:  # noqa: BLE001  # a stranger's handshake can fail in any way
            self.faults.count("inbound.handshake_failed")
        finally:
            if ticket is not None:
                self._admission.leave(ticket)
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await read_write_closer.close()

    async def take_circuit(self, socket: CircuitSocket, relay: ID, said: ID) -> None:
        """Serve a connection that a relay brought; only if it is from whom the relay said."""
        ticket = self._admission.enter(f"relay {relay}")
        try:
            if ticket is not None:
                muxed = await self._upgrade_inbound(BufferedSocket(socket), ConnectionType.RELAYED)
                if muxed.peer_id != said:
                    self.faults.count("circuit.somebody_else")
                    await muxed.close()
                    return
                self._admission.admit(ticket)
                connection = await self.add_conn(muxed, "inbound")
                self.on_relayed(connection)
                await connection.event_closed.wait()
        except Exception:  # noqa: BLE001  # a stranger's handshake can fail in any way
            self.faults.count("inbound.handshake_failed")
        finally:
            if ticket is not None:
                self._admission.leave(ticket)
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await socket.close()

    async def _upgrade_inbound(
        self, socket: BufferedSocket, kind: ConnectionType = ConnectionType.DIRECT
    ) -> BoundedYamux:
        raw = RawConnection(socket, False, kind)
        timeout_s = self.limits.handshake_timeout_ms / 1000
        with trio.fail_after(timeout_s):
            _, transport = await self._security.select(raw, False, timeout_s)
            secured = await transport.secure_inbound(raw)
            peer_id = secured.get_remote_peer()
            self._check(peer_id)
            _, muxer = await self._muxers.select(secured, False, timeout_s)
        muxed: BoundedYamux = muxer(secured, peer_id)
        return muxed

    # Outbound.

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """The connections to a peer, making one if there is none. Never takes longer than the dial timeout."""
        while not (standing := self.live_connections(peer_id)):
            if peer_id in self._dialling:
                await self._dialling[peer_id].wait()
                if not self.live_connections(peer_id):
                    raise SwarmException("no address of this peer answers")
                continue
            # A caller in a hurry waits a little rather than being told of a failure that may be over.
            pause_s = self._failed_at.get(peer_id, -1e9) + self.limits.failed_dial_pause_ms / 1000 - trio.current_time()
            if pause_s <= 0:
                break
            await trio.sleep(pause_s)
        else:
            return standing
        self._dialling[peer_id] = trio.Event()
        try:
            with trio.move_on_after(self.limits.dial_timeout_ms / 1000):
                async with self._dials:
                    connection = await self._dial_first(peer_id)
                if connection is not None:
                    self._failed_at.pop(peer_id, None)
                    return [connection]
            self.faults.count("dial.failed")
            if len(self._failed_at) > self.limits.known_peers:
                self._failed_at.clear()
            self._failed_at[peer_id] = trio.current_time()
            raise SwarmException("no address of this peer answers")
        finally:
            self._dialling.pop(peer_id).set()

    def forgive_dial(self, peer_id: ID) -> None:
        """The next dial may be made at once, whatever failed a moment ago."""
        self._failed_at.pop(peer_id, None)

    async def _dial_first(self, peer_id: ID) -> GuardedConn | None:
        """Try the addresses, each a moment after the one before; the first that proves to be the peer wins."""
        found: list[GuardedConn] = []
        async with trio.open_nursery() as nursery:
            direct, circuits = self._dialable(peer_id)
            for addr in (*direct, *circuits):
                failed = trio.Event()
                if circuits and addr is circuits[0] and direct:
                    # A direct connection is worth a wait; one that will never come is not worth a long one.
                    await trio.sleep(CIRCUITS_AFTER_S)

                async def attempt(addr: Multiaddr = addr, failed: trio.Event = failed) -> None:
                    try:
                        found.append(await self._dial_one(addr, peer_id))
                        nursery.cancel_scope.cancel()
                    except Exception:  # noqa: BLE001  # whatever is at that address
                        self.faults.count("dial.address_failed")
                        failed.set()

                nursery.start_soon(attempt)
                with trio.move_on_after(NEXT_ADDRESS_AFTER_S):
                    await failed.wait()
        return found[0] if found else None

    def _dialable(self, peer_id: ID) -> tuple[list[Multiaddr], list[Multiaddr]]:
        """Where the peer can be dialled directly, and through which relays."""
        addresses, circuits = [], []
        for text in sorted(self._addresses(peer_id.to_base58()), key=rank):
            try:
                addr = Multiaddr(text)
                names = [each.name for each in addr.protocols()]
            except Exception:  # noqa: BLE001  # the library raises many kinds for what is no multiaddr
                self.faults.count("dial.bad_address")
                continue
            if is_circuit(text):
                circuits.append(addr)
            elif (
                len(names) >= 2
                and names[0] in {"ip4", "ip6", "dns", "dns4", "dns6"}
                and names[1:] in (["tcp"], ["tcp", "p2p"])
            ):
                addresses.append(addr)
        return addresses[:DIALLED_ADDRESSES], circuits[:DIALLED_CIRCUITS]

    async def _dial_one(self, addr: Multiaddr, peer_id: ID) -> GuardedConn:
        given = self._is_given(peer_id.to_base58(), str(addr))
        if not is_circuit(str(addr)):
            return await self._dial_tcp(addr, peer_id, given=given)
        where, name = split_circuit(str(addr))
        relay = ID.from_base58(name)
        if relay in (peer_id, self.self_id):
            raise SwarmException("a circuit that leads nowhere")
        standing = [each for each in self.live_connections(relay) if each.muxed_conn.path == "direct"]
        if standing:
            through = standing[0]
        elif where:
            through = await self._dial_tcp(Multiaddr(where), relay, given=given)
        else:
            raise SwarmException("a relay that we are not connected to")
        socket = await open_circuit(through.muxed_conn, peer_id)
        return await self._upgrade_outbound(RawConnection(socket, True, ConnectionType.RELAYED), peer_id)

    async def _dial_tcp(self, addr: Multiaddr, peer_id: ID, *, given: bool) -> GuardedConn:
        socket = await self._dialler.dial(addr, given=given, source_port=self.source_port_for(str(addr)))
        return await self._upgrade_outbound(RawConnection(socket, True), peer_id)

    async def try_address(self, addr: Multiaddr, peer_id: ID) -> bool:
        """Whether a peer answers at an address, found out on a connection of its own that ends at once."""
        socket = await self._dialler.dial(addr, given=False)
        try:
            raw = RawConnection(BufferedSocket(socket), True)
            _, transport = await self._security.select(raw, True, self.limits.dial_timeout_ms / 1000)
            secured = await transport.secure_outbound(raw, peer_id)
            return bool(secured.get_remote_peer() == peer_id)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await socket.close()

    async def punch(self, host: str, port: int, peer_id: ID, *, as_client: bool) -> GuardedConn:
        """Connect from our own port to a peer that does the same now. Who is the client was agreed before."""
        family = "ip6" if ":" in host else "ip4"
        addr = Multiaddr(f"/{family}/{host}/tcp/{port}")
        socket = await self._dialler.dial(addr, given=False, source_port=self._port_of(family))
        if as_client:
            return await self._upgrade_outbound(RawConnection(socket, True), peer_id)
        try:
            muxed = await self._upgrade_inbound(BufferedSocket(socket))
            if muxed.peer_id != peer_id:
                raise SwarmException("another peer lives at that address")  # noqa: TRY301
            return await self.add_conn(muxed, "outbound")
        except BaseException:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await socket.close()
            raise

    def source_port_for(self, addr: str) -> int | None:
        """From where to dial: from our own port while nobody can dial us, so that others see which hole it makes."""
        return self._port_of(host_of(addr)[0]) if self.dials_from_its_port() else None

    def _port_of(self, family: str) -> int | None:
        ports = [port_of(addr) for addr in self.listening if str(addr).startswith(f"/{family}/")]
        return ports[0] if ports else None

    async def _upgrade_outbound(self, raw: RawConnection, peer_id: ID) -> GuardedConn:
        timeout_s = self.limits.dial_timeout_ms / 1000
        try:
            raw.stream = BufferedSocket(raw.stream)
            _, transport = await self._security.select(raw, True, timeout_s)
            secured = await transport.secure_outbound(raw, peer_id)
            self._check(secured.get_remote_peer(), expected=peer_id)
            _, muxer = await self._muxers.select(secured, True, timeout_s)
            return await self.add_conn(muxer(secured, peer_id), "outbound")
        except BaseException:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await raw.close()
            raise

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
        if not self.live_connections(connection.muxed_conn.peer_id):
            self._on_disconnected(connection.muxed_conn.peer_id.to_base58())
        if self.background_nursery is not None:
            self.background_nursery.start_soon(self._notify, "disconnected", connection)

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
