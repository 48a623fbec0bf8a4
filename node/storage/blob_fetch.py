"""A blob from several peers at once: who brings which chunks, over a bulk channel where there is one, else over libp2p.

Each source takes chunks from one common list as fast as it brings them, so two slow lines add up and a fast one is not
held back by a slow one. What a source fails to bring goes back to the list.
"""

import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from hansa.market.bandwidth import BACK
from hansa.node.storage.blob_partial import Partial
from hansa.node.storage.bulk import BulkChannels
from hansa.node.storage.bulk_chunks import NotGiven, WrongBytes
from hansa.node.storage.bulk_line import LineBroken
from hansa.node.storage.line_meter import LineMeter
from hansa.proto.blob import CHUNK_BYTES

AT_ONCE: Final = 4
"""Chunks on their way from one source over libp2p, so that the line is full while one is checked and written."""
SOURCES_AT_ONCE: Final = 8
TELL_EVERY_S: Final = 0.1
"""To wake the event loop for every chunk of a fast line would cost it more than the chunk costs the thread."""
WORTH_A_CHANNEL_BYTES: Final = 4 * CHUNK_BYTES
"""A bulk channel costs three round trips before its first byte comes."""


@dataclass(slots=True)
class Sources:
    """Who may still be asked, and why the others may not."""

    live: deque[str]
    reasons: dict[str, str] = field(default_factory=dict)

    def pick(self) -> str | None:
        """The next one in turn."""
        if not self.live:
            return None
        self.live.rotate(-1)
        return self.live[-1]

    def drop(self, peer_id: str, why: str) -> None:
        """Ask this one no more."""
        if peer_id in self.live:
            self.live.remove(peer_id)
        self.reasons.setdefault(peer_id, why)


class LackingChunks:
    """What is still to come of one blob. Threads and tasks take from it alike; ``hear`` is told in trio what came."""

    def __init__(self, indices: list[int], hear: Callable[[int], None]) -> None:
        """``indices`` in order."""
        self._waiting = deque(indices)
        self._underway = 0
        self._arrived_bytes = 0
        self._told_s = 0.0
        self._hear = hear
        self._lock = threading.Lock()
        self._trio = trio.lowlevel.current_trio_token()
        self._changed = trio.Event()

    @property
    def is_over(self) -> bool:
        """Whether nothing is waiting and nothing underway."""
        with self._lock:
            return not self._waiting and not self._underway

    @property
    def has_waiting(self) -> bool:
        """Whether there is something to take."""
        with self._lock:
            return bool(self._waiting)

    def take(self, most: int) -> range:
        """Some that follow one another, which the caller must now bring or give back."""
        with self._lock:
            if not self._waiting:
                return range(0)
            first = self._waiting.popleft()
            after = first + 1
            while after < first + most and self._waiting and self._waiting[0] == after:
                self._waiting.popleft()
                after += 1
            self._underway += after - first
            return range(first, after)

    def done(self, size_bytes: int) -> None:
        """One of them is here."""
        now_s = time.monotonic()
        with self._lock:
            self._underway -= 1
            self._arrived_bytes += size_bytes
            is_over = not self._waiting and not self._underway
            if not is_over and now_s - self._told_s < TELL_EVERY_S:
                return
            self._told_s = now_s
        self._trio.run_sync_soon(self.tell, idempotent=True)

    def give_back(self, indices: range) -> None:
        """These could not be brought."""
        with self._lock:
            self._underway -= len(indices)
            self._waiting.extendleft(reversed(indices))
        self._trio.run_sync_soon(self.wake, idempotent=True)

    def tell(self) -> None:
        """Say what came since the last time, and that it is over if it is."""
        with self._lock:
            arrived_bytes, self._arrived_bytes = self._arrived_bytes, 0
        if arrived_bytes:
            self._hear(arrived_bytes)
        if self.is_over:
            self.wake()

    def wake(self) -> None:
        """Have everybody who waits look again."""
        self._changed.set()
        self._changed = trio.Event()

    async def change(self) -> None:
        """Wait until there may be something to do."""
        await self._changed.wait()


@dataclass(frozen=True, slots=True)
class _FromOne:
    """The common list as one source sees it, so that what it brings is counted as its own."""

    lacking: LackingChunks
    count: Callable[[int], None]

    def take(self, most: int) -> range:
        """See ``LackingChunks``."""
        return self.lacking.take(most)

    def done(self, size_bytes: int) -> None:
        """See ``LackingChunks``."""
        self.count(size_bytes)
        self.lacking.done(size_bytes)

    def give_back(self, indices: range) -> None:
        """See ``LackingChunks``."""
        self.lacking.give_back(indices)


@dataclass(slots=True, eq=False)
class _Source:
    """One peer that is asked for chunks."""

    peer_id: str
    is_fast: bool = False
    opening: trio.CancelScope = field(default_factory=trio.CancelScope)


class ChunkFetch:
    """Brings the chunks of one blob."""

    def __init__(
        self,
        partial: Partial,
        lacking: LackingChunks,
        sources: Sources,
        *,
        ask: Callable[[str, int], Awaitable[bytes | None]],
        lied: Callable[[str], None],
        bulk: BulkChannels | None,
        chunk_s: float,
        meter: LineMeter,
    ) -> None:
        """``ask`` brings one chunk over libp2p or drops the source; ``lied`` is told who sent wrong bytes."""
        self._partial = partial
        self._lacking = lacking
        self._sources = sources
        self._unused = deque(sources.live)
        self._ask = ask
        self._lied = lied
        self._bulk = bulk
        self._chunk_s = chunk_s
        self._meter = meter

    async def run(self) -> None:
        """Until all is here or no source is left."""
        async with trio.open_nursery() as nursery:
            for _ in range(min(SOURCES_AT_ONCE, len(self._unused))):
                nursery.start_soon(self._use_sources)
        self._lacking.tell()

    async def _use_sources(self) -> None:
        while self._unused and not self._lacking.is_over:
            source = _Source(self._unused.popleft())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._over_channel, source)
                for _ in range(AT_ONCE):
                    nursery.start_soon(self._over_libp2p, source)

    def _is_of_use(self, source: _Source) -> bool:
        return source.peer_id in self._sources.live and not self._lacking.is_over

    async def _over_libp2p(self, source: _Source) -> None:
        while self._is_of_use(source):
            run = range(0) if source.is_fast else self._lacking.take(1)
            if not run:
                await self._lacking.change()
                continue
            try:
                with self._meter.underway(source.peer_id, BACK):
                    chunk = await self._ask(source.peer_id, run.start)
                if chunk is None:
                    continue
                try:
                    await trio.to_thread.run_sync(self._partial.write, run.start, chunk)
                except ValueError:
                    self._lied(source.peer_id)
                    continue
                run = range(0)
                self._meter.moved(source.peer_id, BACK, len(chunk))
                self._lacking.done(len(chunk))
            finally:
                if run:
                    self._lacking.give_back(run)
        source.opening.cancel()

    async def _over_channel(self, source: _Source) -> None:
        if self._bulk is None or len(self._partial.missing()) * CHUNK_BYTES < WORTH_A_CHANNEL_BYTES:
            return
        channel = None
        with source.opening:
            channel = await self._bulk.open(source.peer_id, self._partial.ref)
        if channel is None:
            return
        source.is_fast = True
        lacking = _FromOne(self._lacking, partial(self._meter.moved, source.peer_id, BACK))
        try:
            while self._is_of_use(source):
                with self._meter.underway(source.peer_id, BACK):
                    await self._bulk.bring(channel, self._partial, lacking, self._chunk_s)
                while not (self._lacking.is_over or self._lacking.has_waiting):
                    await self._lacking.change()
        except NotGiven:
            self._sources.drop(source.peer_id, "no such blob for you")
        except WrongBytes:
            self._lied(source.peer_id)
        except LineBroken:
            pass  # what was underway is given back, and goes over libp2p from now on
        finally:
            source.is_fast = False
            self._lacking.wake()
            self._bulk.give_back(channel)
