"""One TLS connection for many bytes: hands are shaken in trio, and the bytes are moved by threads.

Nobody gets a thread before it has proven who it is. Every wait has a deadline.
"""

import contextlib
import fcntl
import math
import socket
import ssl
import termios
import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar, cast

import trio

LOOK_EVERY_S: Final = 0.5
"""How often somebody looks whether a thread that waits is late."""
TAKEN_BYTES: Final = 256 << 10
"""Received at once, many records in one system call: left to itself OpenSSL makes two for each of 16 KiB."""
GIVEN_BYTES: Final = 64 << 10
"""Encrypted and sent at once: what has just been encrypted is still in the core's own cache."""
FEW_BYTES: Final = 16 << 10
MOST_FRUITLESS_BYTES: Final = 64 << 10
"""A record has 16 KiB and a handshake a few: whoever sends more of which nothing comes (tickets, new keys) goes."""
T = TypeVar("T")


class LineBroken(Exception):
    """The connection is of no use any more; ``why`` says it in words."""

    def __init__(self, why: str) -> None:
        """Keep the reason."""
        super().__init__(why)
        self.why = why


class BulkLine:
    """Both directions of one connection. One task or one thread uses it at a time."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, *, serving: bool) -> None:
        """Around a connected socket, which is this line's from now on."""
        connected.setblocking(False)
        self._socket = connected
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=serving)
        self._taken = memoryview(b"")
        self._fruitless_bytes = 0
        self.broken = False
        self._buffer = memoryview(b"")
        self._due_s = math.inf
        self._is_late = False

    def buffer(self, size_bytes: int) -> memoryview:
        """Memory that is this line's for good: to get it from the system for each request costs as much as to copy."""
        if len(self._buffer) != size_bytes:
            self._buffer = memoryview(bytearray(size_bytes))
        return self._buffer

    @property
    def certificate(self) -> bytes:
        """The other side's, after the handshake."""
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is None:
            raise self._break("showed no certificate")
        return certificate

    def check_certificate(self, expected: bytes) -> None:
        """Have it be the very one that was announced. Raises ``LineBroken``."""
        if self.certificate != expected:
            raise self._break("another certificate than was announced")

    @property
    def unsent_bytes(self) -> int:
        """What was given to the kernel and the other side's has not confirmed yet."""
        waiting = array("i", (0,))
        with contextlib.suppress(OSError, ValueError):
            fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, waiting)
        return waiting[0]

    # In trio, for what is short. The caller sets the deadline.

    async def shake_hands(self) -> None:
        """Prove each other."""
        await self._when_ready(self._tls.do_handshake)

    async def receive(self, size_bytes: int) -> bytes:
        """Exactly so many bytes, which must be few."""
        data = b""
        while len(data) < size_bytes:
            left = size_bytes - len(data)
            piece = await self._when_ready(partial(self._tls.read, left))
            if not piece:
                raise self._break("closed by the other side")
            data += piece
        return data

    async def send(self, data: bytes) -> None:
        """A few bytes."""
        view = memoryview(data)
        while view:
            view = view[await self._when_ready(partial(self._tls.write, view)) :]

    async def _when_ready(self, work: Callable[[], T]) -> T:
        try:
            while True:
                try:
                    result = work()
                except ssl.SSLWantReadError:
                    await self._let_out()
                    await self._take_in()
                else:
                    self._fruitless_bytes = 0
                    await self._let_out()
                    await trio.lowlevel.checkpoint()
                    return result
        except OSError as fault:
            with contextlib.suppress(OSError):
                self._socket.send(self._outgoing.read())  # what TLS has to say about it, if it has
            raise self._broken_by(fault) from fault

    async def _let_out(self) -> None:
        while self._outgoing.pending:
            view = memoryview(self._outgoing.read(FEW_BYTES))
            try:
                while view:
                    try:
                        view = view[self._socket.send(view) :]
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(self._socket.fileno())
            except trio.Cancelled:
                self.broken = True  # half a record may have gone
                raise

    async def _take_in(self) -> None:
        while True:
            try:
                data = self._socket.recv(FEW_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket.fileno())
                continue
            if not data:
                raise self._break("closed by the other side")
            self._write_incoming(data)
            # Where bytes lie there without end, no other wait comes before the end of them.
            await trio.lowlevel.checkpoint()
            return

    def _write_incoming(self, data: bytes | memoryview) -> None:
        if self._fruitless_bytes >= MOST_FRUITLESS_BYTES:
            raise self._break("no byte of what was to come for too long")
        self._fruitless_bytes += len(data)
        self._incoming.write(data)

    async def in_thread(self, work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        """Do something with this line in a thread. Cancelling ends it by breaking the line, and so does being late."""
        finished = False
        self._due_s = math.inf

        async def watch() -> None:
            try:
                while time.monotonic() < self._due_s:  # noqa: ASYNC110  # the thread moves it without a word
                    await trio.sleep(LOOK_EVERY_S)
                self._is_late = True
            finally:
                if not finished:
                    self.shut()

        fault: Exception | None = None
        result: list[T] = []
        # A thread waits in the system call itself: to poll before each of them costs a fifth of the speed.
        self._wait_for(None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                result.append(await trio.to_thread.run_sync(work, limiter=limiter))
            except Exception as raised:  # noqa: BLE001  # out of the nursery it would come as a group
                fault = raised
            finished = True
            nursery.cancel_scope.cancel()
        if fault is not None:
            raise fault
        self._wait_for(0)
        return result[0]

    def _wait_for(self, seconds: float | None) -> None:
        try:
            self._socket.settimeout(seconds)
        except OSError as fault:
            raise self._broken_by(fault) from fault

    # In a thread, for bulk. ``due_s`` is of ``time.monotonic``; whoever is later finds the line broken.

    def receive_into(self, view: memoryview, due_s: float) -> None:
        """Fill all of it."""
        self._due_s = due_s
        try:
            while view:
                try:
                    # Into a buffer it gives how many bytes came, of which its types know nothing.
                    got = cast("int", self._tls.read(len(view), cast("bytearray", view)))
                except ssl.SSLWantReadError:
                    got = self._take_in_blocking()
                else:
                    view = view[got:]
                    self._fruitless_bytes = 0
                if not got:
                    raise self._break("too slow" if self._is_late else "closed by the other side")
        except OSError as fault:
            raise self._broken_by(fault) from fault

    def _take_in_blocking(self) -> int:
        if not self._taken:
            self._taken = memoryview(bytearray(TAKEN_BYTES))
        got = self._socket.recv_into(self._taken)
        self._write_incoming(self._taken[:got])
        return got

    def send_all(self, view: memoryview, due_s: float) -> None:
        """Send all of it."""
        self._due_s = due_s
        try:
            while view:
                view = view[self._tls.write(view[:GIVEN_BYTES]) :]
                self._socket.sendall(self._outgoing.read())
        except OSError as fault:
            raise self._broken_by(fault) from fault

    # Both.

    def _broken_by(self, fault: OSError) -> LineBroken:
        if self._is_late:
            return self._break("too slow")
        if isinstance(fault, ssl.SSLEOFError):
            return self._break("closed by the other side")
        return self._break("TLS failed" if isinstance(fault, ssl.SSLError) else "the connection broke")

    def _break(self, why: str) -> LineBroken:
        self.broken = True
        return LineBroken(why)

    def shut(self) -> None:
        """Have whoever waits on this line stop. May be called while a thread uses it."""
        self.broken = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; no thread may use the line any more."""
        self.shut()
        self._socket.close()
