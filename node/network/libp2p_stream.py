"""One stream of a multiplexed connection: short reads, windows that are kept, waits that may be cancelled anywhere."""

from collections import deque
from typing import Any, Protocol, Self

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import (
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)

from hansa.node.network.libp2p_budget import Holder, ReceiveBudget
from hansa.node.network.net import NetLimits

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
FIRST_WINDOW_BYTES = 256 << 10
LARGEST_FRAME_BYTES = 64 << 10
READ_ALL_BYTES = 1 << 20


class Carrier(Holder, Protocol):
    """The connection, as its streams see it."""

    limits: NetLimits
    budget: ReceiveBudget
    round_trip_s: float

    def queue_control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """A frame without a body; never waits."""

    def queue_data(self, stream_id: int, data: bytes, flags: int = 0) -> None:
        """A frame with a body; the caller has waited for room and taken the window."""

    @property
    def has_room(self) -> bool:
        """Whether a stream may put more into the queue at once."""

    async def queue_has_room(self) -> None:
        """Wait until a stream may put more into the queue."""

    def forget(self, stream: Any) -> None:
        """Both directions are over."""

    def get_remote_address(self) -> tuple[str, int] | None:
        """The other end's socket address."""


class BoundedStream(IMuxedStream):  # type: ignore[misc]  # the library comes without types
    """One stream. Reads are short, writes wait for the peer's window."""

    def __init__(self, conn: Carrier, stream_id: int) -> None:
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

    @property
    def first(self) -> bytes:
        """What lies there to be read next; perhaps not all of it, perhaps nothing."""
        return self._chunks[0] if self._chunks else b""

    def skip(self, size: int) -> None:
        """Take so many bytes of ``first`` for read."""
        self._pop(size)

    def _pop(self, most: int) -> bytes:
        chunk = self._chunks.popleft()
        if len(chunk) > most:
            self._chunks.appendleft(chunk[most:])
            chunk = chunk[:most]
        self._buffered -= len(chunk)
        self._consumed(len(chunk))
        return chunk

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
        return self._pop(n)

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

    def write_at_once(self, data: bytes, flags: int = 0) -> bool:
        """Hand over these bytes in one frame; False if that cannot be done at once."""
        fits = len(data) <= min(self.send_window, LARGEST_FRAME_BYTES) and self.muxed_conn.has_room
        if not fits or self.was_reset or self.closed:
            return False
        self.send_window -= len(data)
        self.muxed_conn.queue_data(self.stream_id, data, flags)
        return True

    def write_last(self, data: bytes) -> bool:
        """Hand over all that will ever be written, and say so, in one frame; False if that cannot be done at once."""
        if not self.write_at_once(data, FIN):
            return False
        self.closed = True
        if self.remote_closed:
            self.muxed_conn.forget(self)
        return True

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
