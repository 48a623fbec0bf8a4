"""Being reached through relays, and reaching others through them: the client's side of circuit relay v2.

A circuit is a stream to the relay that, once agreed, carries another connection: noise and the multiplexer are spoken
end to end over it, so that whoever answers has proven itself exactly as on a socket.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, StopMessage
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamEOF, MuxedStreamError
from multiaddr import Multiaddr

from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_relay import HOP
from hansa.node.network.libp2p_stream import BoundedStream
from hansa.node.network.libp2p_wire import EndedEarly, WireFault, open_protocol, receive_message, send_message
from hansa.node.network.neighbourhood import CIRCUIT, host_of, place_of
from hansa.proto.errors import Malformed
from hansa.proto.peer_id import parse_peer_id

ANSWER_S = 10.0
LEAST_RESERVATION_S = 60
LONGEST_RESERVATION_S = 24 * 3600
MOST_RELAY_ADDRS = 3
NAME_BYTES = 64
"""A peer's name; to write a longer one in base58 takes time that grows with its square."""


class CircuitSocket(ReadWriteCloser):  # type: ignore[misc]  # the library comes without types
    """A circuit where the library expects a socket."""

    def __init__(self, stream: BoundedStream) -> None:
        """Around a stream on which nothing but the other end's bytes comes any more."""
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        """What has come, or nothing at the end."""
        try:
            return await self._stream.read(n or 1)
        except MuxedStreamEOF:
            return b""
        except MuxedStreamError as fault:
            raise ConnectionResetError("the circuit broke") from fault

    async def write(self, data: bytes) -> None:
        """All of it."""
        try:
            await self._stream.write(data)
        except MuxedStreamError as fault:
            raise ConnectionResetError("the circuit broke") from fault

    async def close(self) -> None:
        """End the circuit."""
        await trio.lowlevel.checkpoint()
        self._stream.abort()

    def get_remote_address(self) -> tuple[str, int] | None:
        """The relay's address is not the peer's, so there is none."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A reservation at a relay.

    Attributes:
        until: by trio's clock.
        addrs: the addresses through which we are reached, without our own name.
    """

    relay: str
    until: float
    addrs: tuple[str, ...]


def split_circuit(addr: str) -> tuple[str, str]:
    """The relay's address (perhaps empty) and its peer id. Raises ``SwarmException`` for what is no single circuit."""
    bare, mark, rest = addr.partition(CIRCUIT)
    where, named, relay = bare.rpartition("/p2p/")
    if not mark or rest or not named or "/p2p" in where:
        raise SwarmException("not an address through one relay")
    try:
        parse_peer_id(relay)
    except Malformed as fault:
        raise SwarmException("a relay whose name is none") from fault
    return where, relay


async def open_circuit(relay: Any, peer_id: ID) -> CircuitSocket:
    """Have a relay connect us to a peer. ``relay`` is a multiplexed connection. Raises ``SwarmException``."""
    try:
        with trio.fail_after(ANSWER_S):
            stream = await open_protocol(relay, HOP)
            try:
                await send_message(stream, HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=peer_id.to_bytes())))
                _must_be_ok(await receive_message(stream, HopMessage))
            except BaseException:
                stream.abort()
                raise
    except (WireFault, MuxedStreamError, MuxedConnUnavailable, trio.TooSlowError) as fault:
        raise SwarmException("the relay makes no circuit") from fault
    return CircuitSocket(stream)


async def reserve(relay: Any) -> Place:
    """Ask a relay for a place. Raises ``WireFault`` (it is none, or refuses) and what a stream may raise."""
    name = relay.peer_id.to_base58()
    # Around the negotiation too: whoever asks for places waits for this, and renews none meanwhile.
    with trio.fail_after(ANSWER_S):
        stream = await open_protocol(relay, HOP)
        try:
            await send_message(stream, HopMessage(type=HopMessage.RESERVE))
            answer = await receive_message(stream, HopMessage)
        finally:
            stream.abort()
    _must_be_ok(answer)
    # By the relay's clock, which may be wrong: a place is asked for again in good time whatever it says.
    life_s = min(LONGEST_RESERVATION_S, max(LEAST_RESERVATION_S, answer.reservation.expire - int(time.time())))
    remote = relay.get_remote_address()
    addrs = _addresses_of(answer.reservation.addrs, name, remote)
    return Place(relay=name, until=trio.current_time() + life_s, addrs=addrs)


def _must_be_ok(answer: Any) -> None:
    if answer.type != HopMessage.STATUS or answer.status != circuit_pb2.OK:
        raise WireFault("the relay refuses")


def _addresses_of(told: Any, relay: str, remote: tuple[str, int] | None) -> tuple[str, ...]:
    """Where others find the relay: of what it says of itself, what is public or where we found it."""
    found = []
    for raw in list(told)[:16]:
        with contextlib.suppress(Exception):  # the library raises many kinds for what is no multiaddr
            addr = Multiaddr(bytes(raw))
            names = [each.name for each in addr.protocols()]
            # Nothing but a host and a port: whatever else stands in there, of any length, we would tell everyone.
            if names[:2] not in (["ip4", "tcp"], ["ip6", "tcp"]) or names[2:] not in ([], ["p2p"]):
                continue
            text = str(addr).partition("/p2p/")[0]
            host = host_of(text)[1]
            # A relay may name any public address; whoever dials it will find out who lives there.
            sound = place_of(host) == "public" or (remote is not None and host == remote[0])
            if sound and str(addr.value_for_protocol("tcp")) != "0":
                found.append(text)
    found.sort(key=lambda text: remote is None or host_of(text)[1] != remote[0])
    return tuple(f"{text}/p2p/{relay}{CIRCUIT}" for text in dict.fromkeys(found))[:MOST_RELAY_ADDRS]


class StopService:
    """Takes the circuits that relays bring, from those alone with which we have a place."""

    def __init__(
        self,
        faults: Faults,
        *,
        has_place: Callable[[str], bool],
        take: Callable[[CircuitSocket, ID, ID], Awaitable[None]],
    ) -> None:
        """``take(socket, relay, said_to_be)`` serves the connection until it ends."""
        self._faults = faults
        self._has_place = has_place
        self._take = take

    async def on_stream(self, stream: NetStream) -> None:
        """One circuit, for as long as it lasts."""
        muxed: BoundedStream = stream.muxed_stream
        relay: ID = stream.muxed_conn.peer_id
        try:
            with trio.fail_after(ANSWER_S):
                message = await receive_message(muxed, StopMessage)
            if len(message.peer.id) > NAME_BYTES:
                raise WireFault("a name that is none")  # noqa: TRY301
            said = ID(bytes(message.peer.id))
            parse_peer_id(said.to_base58())
        except (EndedEarly, MuxedStreamError, trio.TooSlowError):
            self._gone(muxed)
            return
        except (WireFault, Malformed):
            self._faults.blame(relay.to_base58(), "circuit.malformed")
            muxed.abort()
            return
        if message.type != StopMessage.CONNECT or not self._has_place(relay.to_base58()):
            self._faults.count("circuit.unasked_for")
            if await self._told(muxed, circuit_pb2.PERMISSION_DENIED):
                muxed.finish()
            return
        if await self._told(muxed, circuit_pb2.OK):
            await self._take(CircuitSocket(muxed), relay, said)

    async def _told(self, stream: BoundedStream, status: Any) -> bool:
        """Whether the relay could be told; the asker may have gone meanwhile, and the relay does not wait for us."""
        try:
            with trio.fail_after(ANSWER_S):
                await send_message(stream, StopMessage(type=StopMessage.STATUS, status=status))
        except (MuxedStreamError, trio.TooSlowError):
            self._gone(stream)
            return False
        return True

    def _gone(self, stream: BoundedStream) -> None:
        self._faults.count("circuit.caller_gone")
        stream.abort()
