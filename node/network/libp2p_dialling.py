"""Connections that we make: to which addresses, in which order, through which relays, and how long it may take."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import trio
from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.protocol_muxer.generic_selector import GenericMultistreamSelector
from multiaddr import Multiaddr

from hansa.node.network.libp2p_circuit import open_circuit, split_circuit
from hansa.node.network.libp2p_connection import GuardedConn
from hansa.node.network.libp2p_guards import BufferedSocket, Faults
from hansa.node.network.libp2p_relay import ASKS_AT_ONCE, ASKS_PER_S
from hansa.node.network.libp2p_tcp import Dialler, port_of, rank
from hansa.node.network.libp2p_yamux import BoundedYamux
from hansa.node.network.neighbourhood import host_of, is_circuit
from hansa.node.network.net import NetLimits
from hansa.node.network.relay_turns import RelayTurns

NEXT_ADDRESS_AFTER_S = 0.02
"""How long one address is tried alone before the next is tried beside it."""
DIALLED_ADDRESSES = 8
DIALLED_CIRCUITS = 4
CIRCUITS_AFTER_S = 0.3
LEAVE_RELAY_AFTER_S = 10.0
"""At the latest, where nothing else of ours is under way with it."""
LOOK_AGAIN_S = 0.5
CIRCUITS_PER_S = ASKS_PER_S * 0.8
CIRCUITS_AT_ONCE = ASKS_AT_ONCE - 3
"""Of one relay. It refuses who asks more often; what is left over is for places there, ours being one of them."""

Addresses = Callable[[str], Sequence[str]]


class DiallingSwarm(Swarm):  # type: ignore[misc]  # the library comes without types
    """The half of the swarm that dials. ``GuardedSwarm`` is the whole, and sets and does what is named here."""

    self_id: ID
    limits: NetLimits
    faults: Faults
    listening: list[Multiaddr]
    dials_from_its_port: Callable[[], bool]
    _security: GenericMultistreamSelector
    _muxers: GenericMultistreamSelector
    _addresses: Addresses
    _is_given: Callable[[str, str], bool]
    _dialler: Dialler
    _dials: trio.CapacityLimiter
    _dialling: dict[ID, trio.Event]
    _failed_at: dict[ID, float]
    relay_turns: RelayTurns
    _reaching: dict[tuple[ID, str, bool], trio.Event]
    is_kept: Callable[[str], bool]

    @abstractmethod
    def live_connections(self, peer_id: ID) -> list[GuardedConn]:
        """The connections to a peer, those to be used first."""

    @abstractmethod
    async def add_conn(self, muxed_conn: BoundedYamux, direction: str = "unknown") -> GuardedConn:
        """Enter a proven connection."""

    @abstractmethod
    async def _upgrade_inbound(self, socket: BufferedSocket) -> BoundedYamux:
        """Secure and multiplex a connection as the one that was dialled."""

    @abstractmethod
    def _check(self, peer_id: ID, expected: ID | None = None) -> None:
        """Raise ``SwarmException`` for a peer that is not to be connected."""

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
        # First the relay, then a turn there: whoever names relays at addresses where they are not uses up no turns.
        through = await self._relay(relay, where, given=given)
        through.circuits += 1
        try:
            on_hearsay = not (given or self.is_kept(peer_id.to_base58()))
            if not await self.relay_turns.enter(relay, on_hearsay=on_hearsay):
                raise SwarmException("too many others wait for this relay")  # noqa: TRY301
            socket = await open_circuit(through.muxed_conn, peer_id)
            connection = await self._upgrade_outbound(RawConnection(socket, True, ConnectionType.RELAYED), peer_id)
            connection.muxed_conn.relay = name
        except BaseException:
            self._circuit_over(through)
            raise
        assert self.background_nursery is not None, "a connection was entered"
        self.background_nursery.start_soon(self._follow_circuit, connection, through)
        self._entered_on_hearsay(connection, given=given)
        return connection

    async def _relay(self, relay: ID, where: str, *, given: bool) -> GuardedConn:
        """A direct connection to a relay. ``given``: the circuit's address is no stranger's word."""
        key = (relay, where, given)
        while True:
            standing = [each for each in self.live_connections(relay) if each.muxed_conn.path == "direct"]
            if standing:
                return standing[0]
            if not where:
                raise SwarmException("a relay that we are not connected to")
            if key not in self._reaching:
                break
            # One connection is enough for many circuits.
            await self._reaching[key].wait()
        self._reaching[key] = trio.Event()
        try:
            connection = await self._connect_tcp(Multiaddr(where), relay, given=given)
        finally:
            self._reaching.pop(key).set()
        # Whoever gives us a peer behind a relay has not said that the relay itself is worth a connection for good.
        is_meant = self._is_given(relay.to_base58(), where)
        self._entered_on_hearsay(connection, given=is_meant)
        connection.for_circuits = not is_meant
        return connection

    async def _dial_tcp(self, addr: Multiaddr, peer_id: ID, *, given: bool) -> GuardedConn:
        connection = await self._connect_tcp(addr, peer_id, given=given)
        self._entered_on_hearsay(connection, given=given)
        return connection

    async def _connect_tcp(self, addr: Multiaddr, peer_id: ID, *, given: bool) -> GuardedConn:
        socket = await self._dialler.dial(addr, given=given, source_port=self.source_port_for(str(addr)))
        return await self._upgrade_outbound(RawConnection(socket, True), peer_id)

    # Connections that only somebody's word brought about.

    def _entered_on_hearsay(self, connection: GuardedConn, *, given: bool) -> None:
        """Whoever names addresses to us makes us fill a part of our own table at most; the oldest idle one goes."""
        connection.on_hearsay, connection.entered_at = not given, trio.current_time()
        standing = [
            each
            for each in self.get_connections()
            if each.on_hearsay and not each.is_closed and each is not connection and not self._is_wanted(each)
        ]
        standing.sort(key=lambda each: (not each.is_idle, each.entered_at))
        for each in standing[: max(0, len(standing) + 1 - self.limits.connections * 3 // 4)]:
            self.faults.count("connections.hearsay_full")
            self._close_soon(each)

    def _is_wanted(self, connection: GuardedConn) -> bool:
        # Relays at which we have a place are kept as well.
        return self.is_kept(connection.muxed_conn.peer_id.to_base58())

    def _close_soon(self, connection: GuardedConn) -> None:
        if self.background_nursery is not None:
            self.background_nursery.start_soon(connection.close)

    async def _follow_circuit(self, connection: GuardedConn, through: GuardedConn) -> None:
        await connection.event_closed.wait()
        self._circuit_over(through)

    def _circuit_over(self, through: GuardedConn) -> None:
        """Leave a relay that somebody named: it was needed for this."""
        through.circuits -= 1
        if through.for_circuits and not through.circuits and self.background_nursery is not None:
            self.background_nursery.start_soon(self._leave_relay, through)

    async def _leave_relay(self, through: GuardedConn) -> None:
        with trio.move_on_after(LEAVE_RELAY_AFTER_S):
            while not through.is_idle:  # noqa: ASYNC110  # streams end in many places, and none of them tells
                await trio.sleep(LOOK_AGAIN_S)
        if through.is_idle and not self._is_wanted(through):
            self.faults.count("connections.relay_left")
            await through.close()

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
        socket = await self._dialler.dial(addr, given=False, source_port=self._port_of(family), is_punch=True)
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
