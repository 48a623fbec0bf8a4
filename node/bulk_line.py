"""One TLS connection for many bytes: hands are shaken in trio, and the bytes are moved by threads.

TLS works on memory here and the socket is read and written in large pieces: a TLS socket makes two system calls for
every 16 KiB that it reads. Nobody gets a thread before it has proven who it is. Every wait has a deadline.
"""

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, TypeVar, cast

import trio

SOCKET_BYTES: Final = 256 << 10
"""How much is read from the socket, or encrypted for it, at once."""
T = TypeVar("T")


class LineBroken(Exception):
    """The connection is of no use any more; ``why`` says it in words."""

    def __init__(self, why: str) -> None:
        """Keep the reason."""
        super().__init__(why)
        self.why = why


class Line:
    """Both directions of one connection. One task or one thread uses it at a time."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, *, serving: bool) -> None:
        """Around a connected socket, which is this line's from now on."""
        connected.setblocking(False)
        self._socket = connected
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=serving)
        self._buffer = bytearray(SOCKET_BYTES)
        self.broken = False

    @property
    def certificate(self) -> bytes:
        """The other side's, after the handshake."""
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is None:
            raise LineBroken("showed no certificate")
        return certificate

    def check_certificate(self, expected: bytes) -> None:
        """Have it be the very one that was announced. Raises ``LineBroken``."""
        if self.certificate != expected:
            raise self._break("another certificate than was announced")

    # In trio, for what is short.

    async def shake_hands(self) -> None:
        """Prove each other. The caller sets the deadline."""
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await self._flush()
                    await self._fill()
            await self._flush()
        except ssl.SSLError as fault:
            self.broken = True
            with contextlib.suppress(LineBroken), trio.move_on_after(1):
                await self._flush()  # the alert says to an honest peer what is wrong
            raise LineBroken("the TLS handshake failed") from fault

    async def receive(self, size_bytes: int) -> bytes:
        """Exactly so many bytes, which must be few. The caller sets the deadline."""
        data = bytearray()
        while len(data) < size_bytes:
            try:
                piece = self._tls.read(size_bytes - len(data))
            except ssl.SSLWantReadError:
                await self._fill()
                continue
            except ssl.SSLError as fault:
                raise self._break("the TLS connection ended") from fault
            if not piece:
                raise self._break("closed by the other side")
            data += piece
        return bytes(data)

    async def send(self, data: bytes) -> None:
        """A few bytes. The caller sets the deadline."""
        self._encrypt(data)
        await self._flush()

    async def _fill(self) -> None:
        await trio.lowlevel.wait_readable(self._socket.fileno())
        self._take_in()

    async def _flush(self) -> None:
        view = memoryview(self._outgoing.read())
        while view:
            sent = self._try_to_send(view)
            if not sent:
                await trio.lowlevel.wait_writable(self._socket.fileno())
            view = view[sent:]

    async def in_thread(self, work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        """Do something with this line in a thread. Cancelling ends it by breaking the line."""
        finished = False

        async def break_if_cancelled() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if not finished:
                    self.shut()

        fault: Exception | None = None
        result: list[T] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(break_if_cancelled)
            try:
                result.append(await trio.to_thread.run_sync(work, limiter=limiter))
            except Exception as raised:  # noqa: BLE001  # out of the nursery it would come as a group
                fault = raised
            finished = True
            nursery.cancel_scope.cancel()
        if fault is not None:
            raise fault
        return result[0]

    # In a thread, for bulk.

    def receive_into(self, view: memoryview, deadline_s: float) -> None:
        """Fill all of it. ``deadline_s`` is of ``time.monotonic``."""
        while view:
            try:
                got = cast("int", self._tls.read(len(view), view))  # with a buffer it says how much it read
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, deadline_s)
                self._take_in()
                continue
            except ssl.SSLError as fault:
                raise self._break("the TLS connection ended") from fault
            if not got:
                raise self._break("closed by the other side")
            view = view[got:]

    def send_all(self, view: memoryview, deadline_s: float) -> None:
        """Send all of it. ``deadline_s`` is of ``time.monotonic``."""
        for start in range(0, len(view), SOCKET_BYTES):
            self._encrypt(view[start : start + SOCKET_BYTES])
            sealed = memoryview(self._outgoing.read())
            while sealed:
                sent = self._try_to_send(sealed)
                if not sent:
                    self._wait(select.POLLOUT, deadline_s)
                sealed = sealed[sent:]

    def _wait(self, wanted: int, deadline_s: float) -> None:
        left_s = deadline_s - time.monotonic()
        poll = select.poll()
        try:
            poll.register(self._socket, wanted)
            ready = left_s > 0 and poll.poll(left_s * 1000)
        except (OSError, ValueError) as fault:
            raise self._break("closed on this side") from fault
        if not ready:
            raise self._break("too slow")

    # Both.

    def _take_in(self) -> None:
        try:
            got = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as fault:
            raise self._break("the connection broke") from fault
        if not got:
            raise self._break("closed by the other side")
        self._incoming.write(memoryview(self._buffer)[:got])

    def _encrypt(self, data: bytes | memoryview) -> None:
        try:
            self._tls.write(data)  # into memory, which takes it whole
        except ssl.SSLError as fault:
            raise self._break("the TLS connection ended") from fault

    def _try_to_send(self, view: memoryview) -> int:
        try:
            return self._socket.send(view)
        except BlockingIOError:
            return 0
        except OSError as fault:
            raise self._break("the connection broke") from fault

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
