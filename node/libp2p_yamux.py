"""Yamux with its limits kept, wire-compatible with everybody else's.

The library's own multiplexer logs when a peer ignores the receive window and keeps the bytes (750 MiB in 15 s), never
notices a frozen peer, breaks a stream whose reader pauses for five seconds, and loses the connection when a write is
cancelled. Here the window is a promise that is enforced, one writer task owns the socket so that any caller may be
cancelled, and a ping finds out who is dead.
"""

import contextlib
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Self

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from multiaddr import Multiaddr

from hansa.node.libp2p_budget import ReceiveBudget
from hansa.node.net import NetLimits

HEADER = struct.Struct(">BBHII")
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
FIRST_WINDOW_BYTES = 256 << 10
LARGEST_FRAME_BYTES = 64 << 10
QUEUE_BYTES = 1 << 20
"""Streams wait once this much is queued for the socket."""
BACKLOG_BYTES = 8 << 20
"""Only answers that a peer provokes and does not read can get the queue so far."""
REFUSED_STREAMS = 4096
"""A peer that opens so many streams beyond its limit on one connection is not merely in a hurry."""
READ_ALL_BYTES = 1 << 20

Offence = Callable[[str], None]


class BoundedStream(IMuxedStream):  # type: ignore[misc]  # the library comes without types
    """One stream. Reads are short, writes wait for the peer's window."""

    def __init__(self, conn: "BoundedYamux", stream_id: int) -> None:
        """A stream in the state after its opening frame."""
        self.muxed_conn = conn
        self.stream_id = stream_id
        self.receive_window = FIRST_WINDOW_BYTES
        self.largest_window = FIRST_WINDOW_BYTES
        self.send_window = FIRST_WINDOW_BYTES
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._unannounced = 0
        self._announced_at = trio.current_time()
        self._event = trio.Event()
        self.remote_closed = False
        self.closed = False
        self.was_reset = False
        self.abandoned = False

    def _wake(self) -> None:
        """Let every waiting reader and writer look again."""
        self._event.set()
        self._event = trio.Event()

    # What the connection's reader does.

    def take(self, data: bytes) -> None:
        """Keep what arrived; the caller has checked the window."""
        if self.abandoned:
            return
        self._chunks.append(data)
        self._buffered += len(data)
        self._wake()
        self.muxed_conn.budget.take(self.muxed_conn, len(data))

    def end(self) -> None:
        """The peer will write no more."""
        self.remote_closed = True
        self._wake()

    def grant(self, size: int) -> None:
        """The peer is ready for more."""
        self.send_window = min(self.send_window + size, 1 << 32)
        self._wake()

    def kill(self) -> None:
        """Reset by either side or with the connection. What came before can still be read: it may be the reason."""
        self.was_reset = True
        self._wake()

    # What callers do.

    async def read(self, n: int | None = None) -> bytes:
        """Up to ``n`` bytes as soon as there are any; with no ``n`` all until the end, up to a mebibyte."""
        if n is None:
            return await self._read_all()
        if n == 0:
            return b""
        while not self._chunks:
            if self.was_reset:
                raise MuxedStreamReset("the stream was reset")
            if self.remote_closed:
                raise MuxedStreamEOF("the peer has finished")
            await self._event.wait()
        chunk = self._chunks.popleft()
        if len(chunk) > n:
            self._chunks.appendleft(chunk[n:])
            chunk = chunk[:n]
        self._buffered -= len(chunk)
        self._consumed(len(chunk))
        return chunk

    async def _read_all(self) -> bytes:
        whole = bytearray()
        while len(whole) <= READ_ALL_BYTES:
            try:
                whole += await self.read(READ_ALL_BYTES)
            except MuxedStreamEOF:
                return bytes(whole)
        raise MuxedStreamError("more than may be read without a length")

    def _consumed(self, size: int) -> None:
        """Give the window back at half, and widen it while the reader keeps up with a fast peer."""
        self.muxed_conn.budget.give_back(self.muxed_conn, size)
        self._unannounced += size
        if self.remote_closed or self.was_reset or self._unannounced * 2 < self.largest_window:
            return
        now = trio.current_time()
        delta = self._unannounced
        if now - self._announced_at < 4 * self.muxed_conn.round_trip_s + 0.02:
            wider = min(self.largest_window * 2, self.muxed_conn.limits.largest_window_bytes)
            delta += wider - self.largest_window
            self.largest_window = wider
        self._announced_at = now
        self._unannounced = 0
        self.receive_window += delta
        self.muxed_conn.queue_control(WINDOW, 0, self.stream_id, delta)

    async def write(self, data: bytes) -> None:
        """Hand everything to the connection's writer, waiting for the peer's window. Cancelling it is safe."""
        view = memoryview(data)
        while view:
            self._check_writable()
            if self.send_window == 0:
                await self._event.wait()
                continue
            await self.muxed_conn.queue_has_room()
            self._check_writable()
            size = min(len(view), self.send_window, LARGEST_FRAME_BYTES)
            if size == 0:
                continue
            self.send_window -= size
            self.muxed_conn.queue_data(self.stream_id, bytes(view[:size]))
            view = view[size:]

    def _check_writable(self) -> None:
        if self.was_reset:
            raise MuxedStreamReset("the stream was reset")
        if self.closed:
            raise MuxedStreamClosed("the stream is closed for writing")

    async def close(self) -> None:
        """Say that nothing more will be written; reading goes on."""
        await trio.lowlevel.checkpoint()
        self.finish()

    def finish(self) -> None:
        """``close`` without waiting for anything."""
        if self.closed or self.was_reset:
            return
        self.closed = True
        self.muxed_conn.queue_control(WINDOW, FIN, self.stream_id, 0)
        if self.remote_closed:
            self.muxed_conn.forget(self)

    async def reset(self) -> None:
        """End both directions at once."""
        await trio.lowlevel.checkpoint()
        self.abort()

    def abandon(self) -> None:
        """Nobody will read here again: drop what is buffered and what may still come."""
        self.abandoned = True
        self._chunks.clear()
        self.muxed_conn.budget.give_back(self.muxed_conn, self._buffered)
        self._buffered = 0

    def abort(self) -> None:
        """``reset`` without waiting for anything."""
        self.abandon()
        if self.was_reset or (self.closed and self.remote_closed):
            self.muxed_conn.forget(self)
            return
        self.muxed_conn.queue_control(WINDOW, RST, self.stream_id, 0)
        self.muxed_conn.forget(self)

    def set_deadline(self, ttl: int) -> None:
        """Deadlines are cancel scopes here."""
        raise NotImplementedError("put the call into a trio.fail_after")

    def get_remote_address(self) -> tuple[str, int] | None:
        """The other end of the connection."""
        return self.muxed_conn.get_remote_address()

    async def __aenter__(self) -> Self:
        """The stream; leaving closes it."""
        return self


class BoundedYamux(IMuxedConn):  # type: ignore[misc]  # the library comes without types
    """All streams of one connection, with a limit on everything that a peer can make us hold."""

    def __init__(
        self, conn: ISecureConn, peer_id: ID, *, limits: NetLimits, budget: ReceiveBudget, offence: Offence
    ) -> None:
        """Nothing happens before ``start``. ``offence`` is told in words what the peer did that ends the connection."""
        self.secured_conn = conn
        self.peer_id = peer_id
        self.limits = limits
        self.budget = budget
        self.offence = offence
        self.event_started = trio.Event()
        self.round_trip_s = 0.05
        self._initiator = bool(conn.is_initiator)
        self._next_id = 1 if self._initiator else 2
        self._streams: dict[int, BoundedStream] = {}
        self._inbound = 0
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
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self._closed.is_set()

    @property
    def is_closed(self) -> bool:
        """Whether it is over."""
        return self._closed.is_set()

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
        """Only direct connections are multiplexed here so far."""
        return ConnectionType.DIRECT

    async def start(self) -> None:
        """Run until either side ends it."""
        try:
            # Sockets, noise and whatever a peer's bytes provoke there: each only means that this connection is over.
            with contextlib.suppress(Exception), self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_loop)
                    nursery.start_soon(self._ping_loop)
                    self.event_started.set()
                    await self._read_loop()
                    nursery.cancel_scope.cancel()
        finally:
            self.event_started.set()
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await self._shut()

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
        if self._streams.pop(stream.stream_id, None) is not None:
            self._inbound -= self._is_remote(stream.stream_id)
            stream.kill()

    def _is_remote(self, stream_id: int) -> bool:
        return stream_id % 2 == (0 if self._initiator else 1)

    # Writing: everything goes through one queue and one task.

    def queue_control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """A frame without a body; never waits."""
        self._put(HEADER.pack(0, kind, flags, stream_id, value))

    def queue_data(self, stream_id: int, data: bytes) -> None:
        """A frame with a body; the caller has waited for room and taken the window."""
        self._put(HEADER.pack(0, DATA, 0, stream_id, len(data)) + data)

    def _put(self, frame: bytes) -> None:
        if self._closed.is_set():
            return
        self._queue.append(frame)
        self._queued += len(frame)
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
            while not self._queue:
                self._queue_filled = trio.Event()
                await self._queue_filled.wait()
            size, batch = 0, []
            while self._queue and size < QUEUE_BYTES:
                size += len(self._queue[0])
                batch.append(self._queue.popleft())
            await self.secured_conn.write(b"".join(batch))
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
            buffer += await self.secured_conn.read(None)
            start = 0
            while not self._closed.is_set():
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

    def _finish_remote(self, stream: BoundedStream) -> None:
        stream.end()
        if stream.closed and self._streams.pop(stream.stream_id, None) is not None:
            # What is buffered can still be read; only the number is free again.
            self._inbound -= self._is_remote(stream.stream_id)

    def _open_inbound(self, stream_id: int) -> None:
        if not self._is_remote(stream_id) or stream_id in self._streams:
            self.abort("opened a stream under a number that is not its to use")
            return
        if self._inbound >= self.limits.streams_per_connection:
            self._refused += 1
            self.queue_control(WINDOW, RST, stream_id, 0)
            if self._refused > REFUSED_STREAMS:
                self.abort("floods us with streams")
            return
        stream = BoundedStream(self, stream_id)
        self._streams[stream_id] = stream
        self._inbound += 1
        self.queue_control(WINDOW, ACK, stream_id, 0)
        try:
            self._accept_send.send_nowait(stream)
        except trio.WouldBlock:
            stream.abort()


def yamux_class(limits: NetLimits, budget: ReceiveBudget, offence: Callable[[str, str], None]) -> Any:
    """What makes a ``BoundedYamux`` of a secured connection and a peer id; ``offence`` also gets the peer id."""

    def make(conn: ISecureConn, peer_id: ID) -> BoundedYamux:
        return BoundedYamux(
            conn, peer_id, limits=limits, budget=budget, offence=lambda why: offence(peer_id.to_base58(), why)
        )

    return make
