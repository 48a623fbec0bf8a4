"""Yamux with its limits kept, wire-compatible with everybody else's.

The library's own multiplexer logs when a peer ignores the receive window and keeps the bytes (750 MiB in 15 s), never
notices a frozen peer, breaks a stream whose reader pauses for five seconds, and loses the connection when a write is
cancelled. Here the window is a promise that is enforced, one writer task owns the socket so that any caller may be
cancelled, and a ping finds out who is dead.
"""

import contextlib
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from multiaddr import Multiaddr

from hansa.node.network.libp2p_budget import ReceiveBudget
from hansa.node.network.libp2p_noise import records_of
from hansa.node.network.libp2p_stream import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW, BoundedStream
from hansa.node.network.net import NetLimits, Path

HEADER = struct.Struct(">BBHII")
QUEUE_BYTES = 1 << 20
"""Streams wait once this much is queued for the socket."""
BACKLOG_BYTES = 8 << 20
"""Only answers that a peer provokes and does not read can get the queue so far."""
REFUSED_STREAMS = 512
"""A peer that opens so many streams beyond its limit on one connection is not merely in a hurry."""
FRAMES_AT_A_TIME = 128
"""A piece that was read at once may hold twenty thousand frames; after so many of them others have their turn."""

Offence = Callable[[str], None]


class BoundedYamux(IMuxedConn):  # type: ignore[misc]  # the library comes without types
    """All streams of one connection, with a limit on everything that a peer can make us hold."""

    def __init__(
        self, conn: ISecureConn, peer_id: ID, *, limits: NetLimits, budget: ReceiveBudget, offence: Offence
    ) -> None:
        """Nothing happens before ``start``. ``offence`` is told in words what the peer did that ends the connection."""
        self.secured_conn = conn
        self._records = records_of(conn)
        self.peer_id = peer_id
        self.limits = limits
        self.budget = budget
        self.offence = offence
        self.event_started = trio.Event()
        self.path: Path = "direct" if conn.get_connection_type() is ConnectionType.DIRECT else "relayed"
        self.relay = ""
        """Through which it came or goes, if it does."""
        self.round_trip_s = 0.05
        self._initiator = bool(conn.is_initiator)
        self._next_id = 1 if self._initiator else 2
        self._streams: dict[int, BoundedStream] = {}
        self._inbound = 0
        self._silent: dict[int, None] = {}
        self._refused = 0
        accept_send, accept_receive = trio.open_memory_channel[BoundedStream](limits.streams_per_connection)
        self._accept_send, self._accept_receive = accept_send, accept_receive
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._queue_filled = trio.Event()
        self._queue_drained = trio.Event()
        self._closed = trio.Event()
        self._scope = trio.CancelScope()
        self._pings: dict[int, float] = {}
        self._ping_id = 0
        self._pong = trio.Event()
        self._body_bytes = 0
        self._body_stream = 0
        self._body_flags = 0

    # The library's view.

    @property
    def is_initiator(self) -> bool:
        """Whether we dialled."""
        return self._initiator

    @property
    def own_streams(self) -> int:
        """How many of them are of our making."""
        return sum(not self._is_remote(stream_id) for stream_id in self._streams)

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self._closed.is_set()

    @property
    def is_closed(self) -> bool:
        """Whether it is over."""
        return self._closed.is_set()

    @property
    def open_streams(self) -> int:
        """Streams that are not over in both directions."""
        return len(self._streams)

    def get_remote_address(self) -> tuple[str, int] | None:
        """The other end's socket address."""
        address: tuple[str, int] | None = self.secured_conn.get_remote_address()
        return address

    def get_transport_addresses(self) -> list[Multiaddr]:
        """The other end as a multiaddr."""
        remote = self.get_remote_address()
        if remote is None:
            return []
        family = "ip6" if ":" in remote[0] else "ip4"
        return [Multiaddr(f"/{family}/{remote[0]}/tcp/{remote[1]}")]

    def get_connection_type(self) -> ConnectionType:
        """Whether the bytes come straight or through a relay."""
        return ConnectionType.DIRECT if self.path == "direct" else ConnectionType.RELAYED

    async def start(self) -> None:
        """Run until either side ends it."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_over, self._write_loop)
                    nursery.start_soon(self._until_over, self._ping_loop)
                    self.event_started.set()
                    await self._until_over(self._read_loop)
        finally:
            self.event_started.set()
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await self._shut()

    async def _until_over(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Sockets, noise and whatever a peer's bytes provoke there: each only means that this connection is over.

        Caught here and not around all three: together with a cancellation from outside it would be no ``Exception``.
        """
        with contextlib.suppress(Exception):
            await loop()
        self._scope.cancel()

    async def close(self) -> None:
        """End it and close the socket."""
        if not self._closed.is_set():
            self._end()
            with trio.CancelScope(shield=True), trio.move_on_after(0.5):
                await self._shut()

    async def _shut(self) -> None:
        self._end()
        with contextlib.suppress(Exception):
            await self.secured_conn.close()

    def abort(self, why: str | None = None) -> None:
        """End it without waiting for anything; ``why`` is given if the peer is to blame."""
        if why is not None and not self._closed.is_set():
            self.offence(why)
        self._end()

    def _end(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._scope.cancel()
        for stream in list(self._streams.values()):
            stream.kill()
        self._streams.clear()
        self.budget.spoken_on(self, len(self._silent))
        self._silent.clear()
        self.budget.forget(self)
        self._accept_send.close()
        self._queue_drained.set()

    async def open_stream(self) -> BoundedStream:
        """A new stream towards the peer."""
        await trio.lowlevel.checkpoint()
        if self._closed.is_set():
            raise MuxedConnUnavailable("the connection is closed")
        stream = BoundedStream(self, self._next_id)
        self._next_id += 2
        self._streams[stream.stream_id] = stream
        self.queue_control(WINDOW, SYN, stream.stream_id, 0)
        return stream

    async def accept_stream(self) -> BoundedStream:
        """The next stream that the peer opened."""
        try:
            return await self._accept_receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as over:
            raise MuxedConnUnavailable("the connection is closed") from over

    def forget(self, stream: BoundedStream) -> None:
        """Both directions are over."""
        self._speaks(stream.stream_id)
        if self._streams.pop(stream.stream_id, None) is not None:
            self._inbound -= self._is_remote(stream.stream_id)
            stream.kill()

    def _is_remote(self, stream_id: int) -> bool:
        return stream_id % 2 == (0 if self._initiator else 1)

    # Writing: everything goes through one queue and one task.

    def queue_control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """A frame without a body; never waits."""
        self._put(HEADER.pack(0, kind, flags, stream_id, value))

    def queue_data(self, stream_id: int, data: bytes, flags: int = 0) -> None:
        """A frame with a body; the caller has waited for room and taken the window."""
        self._put(HEADER.pack(0, DATA, flags, stream_id, len(data)) + data)

    @property
    def has_room(self) -> bool:
        """Whether a stream may put more into the queue at once."""
        return self._queued <= QUEUE_BYTES

    def _put(self, frame: bytes, *, can_wait: bool = False) -> None:
        """Queue a frame. One that ``can_wait`` goes with the next that cannot, which a ping is at the latest."""
        if self._closed.is_set():
            return
        self._queue.append(frame)
        self._queued += len(frame)
        if not can_wait:
            self._queue_filled.set()
        if self._queued > BACKLOG_BYTES:
            self.abort("does not read our answers")

    async def queue_has_room(self) -> None:
        """Wait until a stream may put more into the queue."""
        while self._queued > QUEUE_BYTES and not self._closed.is_set():
            if self._queue_drained.is_set():
                self._queue_drained = trio.Event()
            await self._queue_drained.wait()

    async def _write_loop(self) -> None:
        while True:
            if not self._queue_filled.is_set():
                await self._queue_filled.wait()
            self._queue_filled = trio.Event()
            size, batch = 0, []
            while self._queue and size < QUEUE_BYTES:
                size += len(self._queue[0])
                batch.append(self._queue.popleft())
            if self._queue:
                self._queue_filled.set()
            await self._records.write(b"".join(batch))
            self._queued -= size
            self._queue_drained.set()

    async def _ping_loop(self) -> None:
        while True:
            self._ping_id += 1
            self._pings = {self._ping_id & 0xFFFFFFFF: trio.current_time()}
            self._pong = trio.Event()
            self.queue_control(PING, SYN, 0, self._ping_id & 0xFFFFFFFF)
            with trio.move_on_after(self.limits.ping_timeout_ms / 1000) as waiting:
                await self._pong.wait()
            if waiting.cancelled_caught:
                self.abort("dead: no answer to a ping")
                return
            await trio.sleep(self.limits.ping_every_ms / 1000)

    # Reading.

    async def _read_loop(self) -> None:
        buffer = bytearray()
        while True:
            data = await self._records.read(None)
            if not data:
                return
            buffer += data
            start = frames = 0
            while not self._closed.is_set():
                frames += 1
                if frames % FRAMES_AT_A_TIME == 0:
                    await trio.lowlevel.checkpoint()
                if self._body_bytes:
                    part = bytes(memoryview(buffer)[start : start + self._body_bytes])
                    start += len(part)
                    self._take_body(part)
                    if self._body_bytes:
                        break
                elif len(buffer) - start >= HEADER.size:
                    version, kind, flags, stream_id, length = HEADER.unpack_from(buffer, start)
                    start += HEADER.size
                    if version != 0 or kind > GO_AWAY:
                        self.abort("does not speak yamux")
                    else:
                        self._handle(kind, flags, stream_id, length)
                else:
                    break
            if self._closed.is_set():
                return
            del buffer[:start]

    def _start_body(self, flags: int, stream_id: int, size: int) -> None:
        """Judge a body by its announced length, before a byte of it is kept."""
        stream = self._streams.get(stream_id)
        # Bytes for a stream that we have reset may still be on their way; they are dropped, but not without a limit.
        window = self.limits.largest_window_bytes if stream is None else stream.receive_window
        if size > window:
            self.abort("sent beyond the window")
            return
        if stream is not None:
            stream.receive_window -= size
        self._body_bytes, self._body_stream, self._body_flags = size, stream_id, flags

    def _take_body(self, part: bytes) -> None:
        self._body_bytes -= len(part)
        stream = self._streams.get(self._body_stream)
        if stream is None:
            return
        if part:
            stream.take(part)
            self._hand_over(stream)
        if not self._body_bytes and self._body_flags & FIN:
            self._finish_remote(stream)

    def _handle(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        if kind == PING:
            self._handle_ping(flags, value)
        elif kind == GO_AWAY:
            self._end()
        elif stream_id == 0:
            self.abort("spoke on stream 0")
        else:
            self._handle_stream(kind, flags, stream_id, value)

    def _handle_ping(self, flags: int, value: int) -> None:
        if flags & SYN:
            self.queue_control(PING, ACK, 0, value)
        elif value in self._pings:
            self.round_trip_s = min(1.0, trio.current_time() - self._pings.pop(value))
            self._pong.set()

    def _handle_stream(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        if flags & SYN:
            self._open_inbound(stream_id)
        if self._closed.is_set():
            return
        stream = self._streams.get(stream_id)
        if flags & RST:
            if stream is not None:
                self.forget(stream)
        elif kind == DATA and value:
            self._start_body(flags, stream_id, value)
        elif stream is not None:
            if kind == WINDOW:
                stream.grant(value)
            if flags & FIN:
                self._finish_remote(stream)

    def _hand_over(self, stream: BoundedStream) -> None:
        """Have a stream handled once something was said on it: one that was merely opened costs no task."""
        if not self._speaks(stream.stream_id):
            return
        try:
            self._accept_send.send_nowait(stream)
        except trio.WouldBlock:
            stream.abort()

    def _speaks(self, stream_id: int) -> bool:
        """Whether this stream was silent, which it is no more."""
        if stream_id not in self._silent:
            return False
        del self._silent[stream_id]
        self.budget.spoken_on(self)
        return True

    def end_oldest_silent(self) -> None:
        """All connections together have too many, and this one most."""
        self._streams[next(iter(self._silent))].abort()

    def _finish_remote(self, stream: BoundedStream) -> None:
        stream.end()
        if stream.stream_id in self._silent:
            stream.abort()  # nothing was said on it, and nothing will be
            return
        if stream.closed and self._streams.pop(stream.stream_id, None) is not None:
            # What is buffered can still be read; only the number is free again.
            self._inbound -= self._is_remote(stream.stream_id)

    def _open_inbound(self, stream_id: int) -> None:
        if not self._is_remote(stream_id) or stream_id in self._streams:
            self.abort("opened a stream under a number that is not its to use")
            return
        if 2 * self._inbound < self.limits.streams_per_connection:
            self._refused = 0  # it was in a hurry, once
        if self._inbound >= self.limits.streams_per_connection:
            self._refused += 1
            self.queue_control(WINDOW, RST, stream_id, 0)
            if self._refused > REFUSED_STREAMS:
                self.abort("floods us with streams")
            return
        stream = BoundedStream(self, stream_id)
        self._streams[stream_id] = stream
        self._inbound += 1
        self._put(HEADER.pack(0, WINDOW, ACK, stream_id, 0), can_wait=True)
        if self._closed.is_set():
            return  # that was one answer too many, and whoever is over gives nothing back any more
        self._silent[stream_id] = None
        self.budget.opened(self)


def yamux_class(limits: NetLimits, budget: ReceiveBudget, offence: Callable[[str, str], None]) -> Any:
    """What makes a ``BoundedYamux`` of a secured connection and a peer id; ``offence`` also gets the peer id."""

    def make(conn: ISecureConn, peer_id: ID) -> BoundedYamux:
        return BoundedYamux(
            conn, peer_id, limits=limits, budget=budget, offence=lambda why: offence(peer_id.to_base58(), why)
        )

    return make
