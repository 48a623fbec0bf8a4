"""The guards around the library's own moving parts. ``docs/decisions/0009-libp2p-guards.md`` lists what each is for.

py-libp2p is pinned to one version because some of these replace private functions. Each is taken out by a test, which
then sees the daemon die or its memory grow.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.tools.anyio_service.trio_manager import TrioManager

MAX_HEADER_BYTES = 1 << 10
MAX_PROPOSALS = 16
"""Lines that a peer may send before it has agreed on a protocol."""
RESTART_S = 1.0
SOCKET_READ_BYTES = 256 << 10
MAX_REPORTS = 64

logger = logging.getLogger("hansa.net")


def quiet_the_library() -> None:
    """The library logs each hang-up as an error; a stranger must not be able to fill a disk with that."""
    for name in ("libp2p", "multiaddr", "async_service"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Faults:
    """Where the guards report: counters by reason, and strikes against peers."""

    def __init__(self, strike: Callable[[str, str], None] = lambda _peer_id, _why: None) -> None:
        """``strike`` gets a peer id and the reason in words."""
        self.counters: Counter[str] = Counter()
        self.strike = strike
        self._reported: set[tuple[str, str]] = set()

    def count(self, reason: str) -> None:
        """One more of these."""
        self.counters[reason] += 1

    def blame(self, peer_id: str, reason: str) -> None:
        """One more of these, and this peer did it."""
        self.counters[reason] += 1
        self.strike(peer_id, reason)

    def report(self, reason: str, fault: Exception) -> None:
        """An exception of ours that a peer provoked: counted always, written down the first time for each kind."""
        self.counters[reason] += 1
        kind = (reason, type(fault).__name__)
        if kind not in self._reported and len(self._reported) < MAX_REPORTS:
            self._reported.add(kind)
            logger.warning("%s; further ones of this kind are only counted", reason, exc_info=fault)


# Negotiation.


async def read_header_line(reader: Any) -> str:
    """One line of multistream-select: its length is read and judged before the line is.

    The library believes any length, takes the bytes (1 GiB from four unauthenticated connections) and lets a byte that
    is not UTF-8 end the program.
    """
    length, shift = 0, 0
    while True:
        byte = await reader.read(1)
        if not byte:
            raise MultiselectCommunicatorError("closed while negotiating")
        length |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            break
        shift += 7
        if shift > 7:
            raise MultiselectCommunicatorError("a header line longer than allowed")
    if not 0 < length <= MAX_HEADER_BYTES:
        raise MultiselectCommunicatorError("a header line longer than allowed")
    line = bytearray()
    while len(line) < length:
        part = await reader.read(length - len(line))
        if not part:
            raise MultiselectCommunicatorError("closed while negotiating")
        line += part
    if line[-1:] != b"\n":
        raise MultiselectCommunicatorError("a header line without its end")
    try:
        return line[:-1].decode()
    except UnicodeDecodeError as fault:
        raise MultiselectCommunicatorError("a header line that is no text") from fault


async def _guarded_read(self: MultiselectCommunicator) -> str:
    self.lines_read = getattr(self, "lines_read", 0) + 1
    if self.lines_read > MAX_PROPOSALS:
        raise MultiselectCommunicatorError("too many proposals")
    try:
        return await read_header_line(self.read_writer)
    except MultiselectCommunicatorError:
        raise
    except Exception as fault:
        raise MultiselectCommunicatorError("broken while negotiating") from fault


def guard_negotiation() -> None:
    """Replace the library's reader of header lines, for connections and streams alike."""
    MultiselectCommunicator.read = _guarded_read


# Services.


class GuardedManager(TrioManager):  # type: ignore[misc]  # the library comes without types
    """Runs a service's tasks so that an exception in one of them ends that task and nothing else.

    The library's manager ends the service, its nursery, and with it the program. Tasks that should run for ever are
    started again after a second.
    """

    def __init__(self, service: Any, faults: Faults) -> None:
        """``faults`` counts what was caught."""
        super().__init__(service)
        self._faults = faults
        self._name = type(service).__name__.lower()

    def run_task(
        self, async_fn: Any, *args: Any, daemon: bool = False, name: str | None = None, _internal: bool = False
    ) -> None:
        """Start a task in the background; the library's search for its parent task is left out (it is O(tasks))."""
        if _internal or self._task_nursery is None or self.is_cancelled:
            super().run_task(async_fn, *args, daemon=daemon, name=name, _internal=_internal)
            return
        self._task_nursery.start_soon(self._guarded, async_fn, args, daemon)

    async def _guarded(self, async_fn: Any, args: tuple[Any, ...], daemon: bool) -> None:
        while True:
            try:
                await async_fn(*args)
            except Exception:  # noqa: BLE001  # whatever a peer provoked in the library
                self._faults.count(f"{self._name}.task_failed")
            if not daemon:
                return
            await trio.sleep(RESTART_S)


@asynccontextmanager
async def guarded_service(service: Any, faults: Faults) -> AsyncIterator[None]:
    """Run one of the library's services under a ``GuardedManager``."""
    async with trio.open_nursery() as nursery:
        manager = GuardedManager(service, faults)
        service._manager = manager  # noqa: SLF001  # where the library's own helper puts it
        nursery.start_soon(manager.run)
        await manager.wait_started()
        try:
            yield
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await manager.stop()
            nursery.cancel_scope.cancel()


# Sockets.


class BufferedSocket(ReadWriteCloser):  # type: ignore[misc]  # the library comes without types
    """A socket that is read in large pieces: the library makes two system calls for each noise record."""

    def __init__(self, stream: Any, turns: trio.StrictFIFOLock | None = None) -> None:
        """Around the library's own wrapper. With ``turns`` each piece of a handshake waits for its turn.

        Of all strangers together one is then at work in a turn of the event loop: what many say at once would hold up
        whoever is here for as many milliseconds as there are strangers, in each of the turns that a request takes.
        """
        self._stream, self._turns = stream, turns
        self._buffer = bytearray()
        self._receive: Callable[[int], Awaitable[bytes]] = stream.read
        self._send: Callable[[bytes], Awaitable[None]] = stream.write
        if isinstance(stream, TrioTCPStream):
            # Its locks cost a turn of the event loop each, and one task reads here and one writes.
            self._receive, self._send = stream.stream.receive_some, stream.stream.send_all

    async def read(self, n: int | None = None) -> bytes:
        """Exactly ``n`` bytes, or fewer at the end; with no ``n`` whatever there is."""
        if n is None:
            n = len(self._buffer) or 1
        while len(self._buffer) < n:
            data = await self._receive(SOCKET_READ_BYTES)
            if not data:
                break
            self._buffer += data
            if self._turns is not None:
                async with self._turns:
                    pass
        result = bytes(memoryview(self._buffer)[:n])
        del self._buffer[: len(result)]
        return result

    async def take(self) -> bytes:
        """Whatever there is, at least one byte; none at the end."""
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            return data
        return await self._receive(SOCKET_READ_BYTES)

    async def write(self, data: bytes) -> None:
        """All of it."""
        await self._send(data)

    async def close(self) -> None:
        """Close the socket."""
        await self._stream.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """The other end."""
        address: tuple[str, int] | None = self._stream.get_remote_address()
        return address
