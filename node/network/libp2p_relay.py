"""Serving as a relay: circuit relay v2, so that nodes which nobody can dial are reached through this one.

A node reserves a place here; another asks for a circuit to it, and from then on this node hands bytes to and fro. What
it hands on is the two ends' own secured connection: it can cut it or slow it down, and neither read nor speak in it.
Every number is limited: places and circuits, in all, for each peer and for each network; bytes and time of a circuit;
bytes a second of all of them together. The library's own relay has 8 circuits, no limit that holds, and can be ended.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import trio
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Limit, PeerId, Reservation, StopMessage
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamEOF, MuxedStreamError
from multiaddr import Multiaddr

from hansa.node.network.allowance import Allowances
from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_stream import BoundedStream
from hansa.node.network.libp2p_wire import EndedEarly, WireFault, open_protocol, receive_message, send_message
from hansa.node.network.neighbourhood import group_of
from hansa.node.network.net import RelayLimits

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
HANDSHAKE_S = 10.0
PIECE_BYTES = 64 << 10
BURST_S = 0.25
ASKS_PER_S = 0.5
"""How often one peer may ask for anything, in the long run."""
ASKS_AT_ONCE = 8
ASKS_FAR_ABOVE = 8
"""So many times as often is a flood, which earns strikes. Below that a node may only have heard of many peers here."""


class Refusal(Exception):
    """Why a peer gets nothing; ``status`` is the protocol's number for it."""

    def __init__(self, status: int, why: str) -> None:
        """Keep both."""
        super().__init__(why)
        self.status = status
        self.why = why


class RelayService:
    """The places and circuits of this node."""

    def __init__(
        self,
        limits: RelayLimits,
        faults: Faults,
        *,
        addrs: Callable[[], Sequence[str]],
        connections: Callable[[ID], Sequence[Any]],
        barred: Callable[[str], bool],
    ) -> None:
        """Nobody has a place yet.

        Args:
            limits: how much may be asked of this node.
            faults: where refusals are counted.
            addrs: where this node can be dialled.
            connections: those that stand to a peer, direct ones first.
            barred: whether we have nothing to do with a peer.
        """
        self._limits = limits
        self._faults = faults
        self._addrs = addrs
        self._connections = connections
        self._barred = barred
        self._places: dict[ID, tuple[float, str]] = {}
        self._circuits: Counter[ID] = Counter()
        self._circuits_of_group: Counter[str] = Counter()
        self._asks = Allowances(ASKS_PER_S, ASKS_AT_ONCE, trio.current_time)
        self._floods = Allowances(ASKS_PER_S * ASKS_FAR_ABOVE, ASKS_AT_ONCE * ASKS_FAR_ABOVE, trio.current_time)
        self._paid_until = 0.0
        self.relayed_bytes = 0

    @property
    def reservations(self) -> int:
        """Places that are taken now."""
        self._sweep()
        return len(self._places)

    @property
    def circuits(self) -> int:
        """Circuits that stand now."""
        return self._circuits.total() // 2

    async def on_stream(self, stream: NetStream) -> None:
        """Answer one message of a peer's; a circuit is served on this very stream until it ends."""
        muxed: BoundedStream = stream.muxed_stream
        asker: ID = stream.muxed_conn.peer_id
        try:
            with trio.fail_after(HANDSHAKE_S):
                message = await receive_message(muxed, HopMessage)
            group = self._admit(asker, stream.muxed_conn)
            if message.type == HopMessage.RESERVE:
                await self._reserve(muxed, asker, group)
            elif message.type == HopMessage.CONNECT:
                await self._connect(muxed, asker, group, message)
            else:
                await self._answer(muxed, circuit_pb2.UNEXPECTED_MESSAGE)
        except Refusal as no:
            self._faults.count(f"relay.refused: {no.why}")
            await self._answer(muxed, no.status)
        except (EndedEarly, trio.TooSlowError, MuxedStreamError):
            self._faults.count("relay.asker_gone")
            muxed.abort()
        except WireFault:
            self._faults.blame(asker.to_base58(), "relay.malformed")
            await self._answer(muxed, circuit_pb2.MALFORMED_MESSAGE)

    def _admit(self, asker: ID, connection: Any) -> str:
        """The asker's network."""
        remote = connection.get_remote_address()
        if connection.path != "direct" or remote is None:
            raise Refusal(circuit_pb2.PERMISSION_DENIED, "asked through another relay")
        if not self._floods.take(asker):
            self._faults.strike(asker.to_base58(), "relay.flood")
        if not self._asks.take(asker):
            raise Refusal(circuit_pb2.RESOURCE_LIMIT_EXCEEDED, "asks too often")
        return group_of(remote[0])

    async def _answer(self, stream: BoundedStream, status: Any) -> None:
        try:
            await send_message(stream, HopMessage(type=HopMessage.STATUS, status=status))
            stream.finish()
        except MuxedStreamError:
            stream.abort()

    # Places.

    def _sweep(self) -> None:
        now = trio.current_time()
        for peer, (until, _) in list(self._places.items()):
            if until <= now or not self._direct(peer):
                del self._places[peer]

    def _direct(self, peer: ID) -> list[Any]:
        return [each for each in self._connections(peer) if each.muxed_conn.path == "direct"]

    async def _reserve(self, stream: BoundedStream, asker: ID, group: str) -> None:
        limits = self._limits
        self._sweep()
        if asker not in self._places:
            same = sum(each == group for _, each in self._places.values())
            if len(self._places) >= limits.reservations:
                raise Refusal(circuit_pb2.RESERVATION_REFUSED, "no place is free")
            if same >= limits.reservations_per_network:
                raise Refusal(circuit_pb2.RESERVATION_REFUSED, "its network has too many places")
        self._places[asker] = (trio.current_time() + limits.reservation_s, group)
        self._faults.count("relay.reserved")
        expire = int(time.time()) + limits.reservation_s
        place = Reservation(expire=expire, addrs=[Multiaddr(addr).to_bytes() for addr in self._addrs()])
        await send_message(
            stream,
            HopMessage(type=HopMessage.STATUS, status=circuit_pb2.OK, reservation=place, limit=self._limit()),
        )
        stream.finish()

    def _limit(self) -> Limit:
        return Limit(duration=self._limits.circuit_s, data=self._limits.circuit_bytes)

    # Circuits.

    async def _connect(self, stream: BoundedStream, asker: ID, group: str, message: HopMessage) -> None:
        wanted = ID(bytes(message.peer.id))
        self._sweep()
        if wanted not in self._places or wanted == asker or self._barred(wanted.to_base58()):
            raise Refusal(circuit_pb2.NO_RESERVATION, "nobody of that name has a place")
        self._room_for(asker, wanted, group)
        taken = Counter((asker, wanted))
        self._circuits += taken
        self._circuits_of_group[group] += 1
        try:
            other = await self._call(asker, wanted)
            try:
                await send_message(
                    stream, HopMessage(type=HopMessage.STATUS, status=circuit_pb2.OK, limit=self._limit())
                )
                self._faults.count("relay.circuits")
                await self._pass_on(stream, other)
            finally:
                other.abort()
                stream.abort()
        finally:
            self._circuits -= taken
            self._circuits_of_group -= Counter((group,))

    def _room_for(self, asker: ID, wanted: ID, group: str) -> None:
        limits = self._limits
        for why, met in (
            ("too many circuits", self.circuits >= limits.circuits),
            ("the asker has too many circuits", self._circuits[asker] >= limits.circuits_per_peer),
            ("the one asked for has too many circuits", self._circuits[wanted] >= limits.circuits_per_peer),
            ("its network has too many circuits", self._circuits_of_group[group] >= limits.circuits_per_network),
        ):
            if met:
                raise Refusal(circuit_pb2.RESOURCE_LIMIT_EXCEEDED, why)

    async def _call(self, asker: ID, wanted: ID) -> BoundedStream:
        """Tell the one who has the place that somebody wants it."""
        try:
            with trio.fail_after(HANDSHAKE_S):
                other = await open_protocol(self._direct(wanted)[0].muxed_conn, STOP)
                try:
                    call = StopMessage(type=StopMessage.CONNECT, peer=PeerId(id=asker.to_bytes()), limit=self._limit())
                    await send_message(other, call)
                    answer = await receive_message(other, StopMessage)
                    if answer.type != StopMessage.STATUS or answer.status != circuit_pb2.OK:
                        raise WireFault("said no")  # noqa: TRY301
                except BaseException:
                    other.abort()
                    raise
        except (WireFault, IndexError, MuxedStreamError, MuxedConnUnavailable, trio.TooSlowError) as fault:
            raise Refusal(circuit_pb2.CONNECTION_FAILED, "the one asked for does not answer") from fault
        return other

    async def _pass_on(self, one: BoundedStream, other: BoundedStream) -> None:
        with trio.move_on_after(self._limits.circuit_s) as time_is_up:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, one, other, nursery.cancel_scope)
                nursery.start_soon(self._pump, other, one, nursery.cancel_scope)
        if time_is_up.cancelled_caught:
            self._faults.count("relay.circuit_time_up")

    async def _pump(self, source: BoundedStream, sink: BoundedStream, circuit: trio.CancelScope) -> None:
        passed = 0
        try:
            while True:
                piece = await source.read(PIECE_BYTES)
                passed += len(piece)
                if passed > self._limits.circuit_bytes:
                    self._faults.count("relay.circuit_bytes_used_up")
                    break
                await self._pace(len(piece))
                self.relayed_bytes += len(piece)
                await sink.write(piece)
        except MuxedStreamEOF:
            sink.finish()
            return
        except MuxedStreamError:
            self._faults.count("relay.circuit_broke")
        circuit.cancel()

    async def _pace(self, size: int) -> None:
        """Wait until all circuits together are within their rate."""
        now = trio.current_time()
        self._paid_until = max(self._paid_until, now - BURST_S) + size / self._limits.bytes_per_s
        if self._paid_until > now:
            await trio.sleep(self._paid_until - now)
