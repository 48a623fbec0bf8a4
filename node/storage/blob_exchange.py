"""Blobs from other nodes: chunk hashes first, then the chunks, each checked as it comes.

Protocol ``/hansa/blob/1``. A request is ``TreeWanted`` or ``ChunkWanted``; the answer is bare bytes, since what belongs
there is known to the last byte before it is asked for.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from hansa.node.fault_groups import one_fault
from hansa.node.network.net import Context, Net, NetError, Refused
from hansa.node.storage.blob_fetch import ChunkFetch, LackingChunks, Sources
from hansa.node.storage.blob_partial import Partial
from hansa.node.storage.blob_shelf import BlobMissing
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.bulk import BulkChannels
from hansa.node.storage.disk_faults import in_words, passes
from hansa.node.storage.line_meter import LineMeter
from hansa.proto.blob import CHUNK_BYTES, HASH_BYTES, MAX_BLOB_BYTES, BlobRef, chunk_count, root_of
from hansa.proto.codec import decode, encode
from hansa.proto.protocols import BLOB
from hansa.proto.units import Uint32

TREE_PAGE = 16_384
"""Chunk hashes in one answer: 512 KiB, the tree of a blob of 16 GiB."""
MAX_REQUEST_BYTES = 512
CHUNK_TIMEOUT_MS = 30_000
MOST_SHOWN = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeWanted:
    """Send the chunk hashes from ``first`` on, as many as one answer takes."""

    ref: BlobRef
    first: Uint32


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkWanted:
    """Send one chunk."""

    ref: BlobRef
    index: Uint32


class FetchFailed(Exception):
    """No source gave the blob. What came is kept, and the next try goes on from there.

    Attributes:
        reasons: for each source, why not.
    """

    def __init__(self, ref: BlobRef, reasons: dict[str, str]) -> None:
        """Keep both."""
        super().__init__(f"{ref}: {'; '.join(reasons.values()) or 'no source was named'}")
        self.ref = ref
        self.reasons = reasons


class DiskFailed(FetchFailed):
    """This node could not write or read what came or lies here, whoever it comes from.

    Attributes:
        passes: whether it may well go a moment later.
    """

    def __init__(self, ref: BlobRef, fault: BaseException) -> None:
        """Say it in the system's words, without paths."""
        super().__init__(ref, {"": f"this node's disk failed: {in_words(fault)}"})
        self.passes = passes(fault)


@dataclass(slots=True, eq=False)
class _Fetch:
    """A fetch that goes on, and who wants to know how far it is."""

    done: trio.Event = field(default_factory=trio.Event)
    hearers: list[Callable[[int], None]] = field(default_factory=list)

    def tell(self, size_bytes: int) -> None:
        """So many more bytes are here."""
        for hear in self.hearers:
            hear(size_bytes)

    @contextmanager
    def heard_by(self, hear: Callable[[int], None] | None) -> Iterator[None]:
        """Tell this one too, for as long as the context lasts."""
        if hear is not None:
            self.hearers.append(hear)
        try:
            yield
        finally:
            if hear is not None:
                self.hearers.remove(hear)


Moved = Callable[[int], None]
"""Told how many bytes have come since it was told last: at once, but no more than ten times a second."""


class BlobExchange:
    """Serves this node's blobs to those who may have them, and fetches others'."""

    def __init__(
        self,
        net: Net,
        store: BlobStore,
        allow: Callable[[Context, BlobRef], bool],
        bulk: BulkChannels | None = None,
        meter: LineMeter | None = None,
    ) -> None:
        """``allow`` says who may have which blob; nobody else learns whether it is here.

        With ``bulk`` large blobs are fetched on channels of their own where these can be made. ``meter`` measures how
        fast they come.
        """
        self._meter = meter or LineMeter()
        self._bulk = bulk
        self._net = net
        self._store = store
        self._allow = allow
        self._fetching: dict[BlobRef, _Fetch] = {}
        self._shown: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()

    def remember_shown(self, account: bytes, ref: BlobRef) -> None:
        """An account had a blob's bytes brought or shown here, so it need not do so again. A restart forgets it."""
        self._shown[account, ref.root] = None
        self._shown.move_to_end((account, ref.root))
        while len(self._shown) > MOST_SHOWN:
            self._shown.popitem(last=False)

    def was_shown(self, account: bytes, ref: BlobRef) -> bool:
        """Whether that is remembered."""
        return (account, ref.root) in self._shown

    def serve(self) -> None:
        """Answer from now on."""
        self._net.serve(
            BLOB, self._answer, max_request_bytes=MAX_REQUEST_BYTES, timeout_ms=CHUNK_TIMEOUT_MS, per_peer=16, total=64
        )

    async def _answer(self, context: Context, data: bytes) -> bytes:
        wanted: TreeWanted | ChunkWanted = decode(data, TreeWanted | ChunkWanted, limit_bytes=MAX_REQUEST_BYTES)
        if not self._allow(context, wanted.ref):
            raise Refused("no such blob for you")
        try:
            if isinstance(wanted, TreeWanted):
                return b"".join(
                    await trio.to_thread.run_sync(self._store.read_tree, wanted.ref, wanted.first, TREE_PAGE)
                )
            return await trio.to_thread.run_sync(self._store.read_chunk, wanted.ref, wanted.index)
        except (BlobMissing, OSError):
            raise Refused("no such blob for you") from None

    async def fetch(
        self,
        ref: BlobRef,
        sources: Sequence[str],
        *,
        like: Sequence[BlobRef] = (),
        chunk_timeout_ms: int = CHUNK_TIMEOUT_MS,
        moved: Moved | None = None,
    ) -> Path:
        """The blob's file, fetched from the named peers unless it is here. Two fetches of the same blob are one.

        ``like`` are blobs whose equal chunks need not come again, if they are here. Whoever asks says which: they must
        be ones that the sources may know all of, since these learn from what is not asked for what is here.
        ``moved`` is told of every chunk that comes, also when it is the other fetch that brings it.

        Raises:
            FetchFailed: no source gave it.
            NoRoom: the quota does not allow it.
        """
        path, _ = await self._bring(ref, sources, like, chunk_timeout_ms, moved)
        return path

    async def fetch_shown(
        self, ref: BlobRef, sources: Sequence[str], *, like: Sequence[BlobRef] = (), moved: Moved | None = None
    ) -> bool:
        """As ``fetch``. Answers whether every byte came from these peers or from what it is like.

        If not, another fetch brought it or some of it, and these peers may know no more of it than its name.
        """
        _, shown = await self._bring(ref, sources, like, CHUNK_TIMEOUT_MS, moved)
        return shown

    async def _bring(
        self, ref: BlobRef, sources: Sequence[str], like: Sequence[BlobRef], timeout_ms: int, moved: Moved | None
    ) -> tuple[Path, bool]:
        while ref in self._fetching:
            other = self._fetching[ref]
            with other.heard_by(moved):
                await other.done.wait()
        path = self._store.path(ref)
        if path is not None:
            return path, False
        self._fetching[ref] = _Fetch()
        try:
            with self._fetching[ref].heard_by(moved):
                return await self._fetch(ref, Sources(deque(dict.fromkeys(sources))), like, timeout_ms)
        except OSError as fault:
            raise DiskFailed(ref, fault) from fault
        except BaseExceptionGroup as group:
            # Of a full disk the workers that bring the chunks each have a word to say.
            failed = one_fault(group, (OSError,))
            if failed is None:
                raise
            raise DiskFailed(ref, failed) from group
        finally:
            self._fetching.pop(ref).done.set()

    async def holds(self, ref: BlobRef, index: int, sources: Sequence[str]) -> bool:
        """Whether one of the named peers sends that chunk of a blob that is here. Raises ``BlobMissing`` if it is not.

        Whoever knows a blob's name does not thereby have it. Raises ``DiskFailed`` where it cannot be read to compare.
        """
        try:
            expected = await trio.to_thread.run_sync(self._store.read_chunk, ref, index)
        except OSError as fault:
            raise DiskFailed(ref, fault) from fault
        asked = Sources(deque(dict.fromkeys(sources)))
        while (peer_id := asked.pick()) is not None:
            message = ChunkWanted(ref=ref, index=index)
            if await self._ask(asked, peer_id, message, CHUNK_BYTES, CHUNK_TIMEOUT_MS) == expected:
                return True
            asked.drop(peer_id, "it does not have it")
        return False

    async def _fetch(
        self, ref: BlobRef, sources: Sources, like: Sequence[BlobRef], timeout_ms: int
    ) -> tuple[Path, bool]:
        if ref.size_bytes > MAX_BLOB_BYTES:
            raise FetchFailed(ref, {"": "no blob is that large"})
        hashes = await trio.to_thread.run_sync(self._store.tree_of_part, ref)
        if hashes is None:
            hashes = await self._fetch_tree(ref, sources, timeout_ms)
        partial = await trio.to_thread.run_sync(self._store.begin, ref, hashes, like)
        try:
            if partial.reused_bytes:
                self._fetching[ref].tell(partial.reused_bytes)
            await self._fetch_chunks(partial, sources, timeout_ms)
            if partial.missing():
                raise FetchFailed(ref, sources.reasons)
            return await trio.to_thread.run_sync(partial.finish), not partial.kept_bytes
        finally:
            partial.close()

    async def _fetch_tree(self, ref: BlobRef, sources: Sources, timeout_ms: int) -> tuple[bytes, ...]:
        wanted = chunk_count(ref.size_bytes)
        if not wanted:
            # There is nothing to ask for, so nobody can have lied about it.
            if root_of(0, ()) == ref.root:
                return ()
            raise FetchFailed(ref, {"": "no blob without bytes has this name"})
        while (peer_id := sources.pick()) is not None:
            data = bytearray()
            while len(data) < wanted * HASH_BYTES:
                message = TreeWanted(ref=ref, first=len(data) // HASH_BYTES)
                page = await self._ask(sources, peer_id, message, TREE_PAGE * HASH_BYTES, timeout_ms)
                if not page or len(page) % HASH_BYTES:
                    break
                data += page
            hashes = tuple(bytes(data[at : at + HASH_BYTES]) for at in range(0, len(data), HASH_BYTES))
            if len(hashes) == wanted and root_of(ref.size_bytes, hashes) == ref.root:
                return hashes
            if peer_id not in sources.reasons:
                self._lied(sources, peer_id)
        raise FetchFailed(ref, sources.reasons)

    async def _fetch_chunks(self, partial: Partial, sources: Sources, timeout_ms: int) -> None:
        ref = partial.ref

        async def ask(peer_id: str, index: int) -> bytes | None:
            return await self._ask(sources, peer_id, ChunkWanted(ref=ref, index=index), CHUNK_BYTES, timeout_ms)

        lacking = LackingChunks(partial.missing(), self._fetching[ref].tell)
        fetch = ChunkFetch(
            partial,
            lacking,
            sources,
            ask=ask,
            lied=lambda peer_id: self._lied(sources, peer_id),
            bulk=self._bulk,
            chunk_s=timeout_ms / 1000,
            meter=self._meter,
        )
        await fetch.run()

    async def _ask(
        self, sources: Sources, peer_id: str, message: TreeWanted | ChunkWanted, limit: int, timeout_ms: int
    ) -> bytes | None:
        try:
            return await self._net.request(
                peer_id, BLOB, encode(message), timeout_ms=timeout_ms, max_response_bytes=limit
            )
        except NetError as fault:
            sources.drop(peer_id, fault.why)
            return None

    def _lied(self, sources: Sources, peer_id: str) -> None:
        sources.drop(peer_id, "sent bytes that are not the blob's")
        self._net.strike(peer_id, "blob.wrong_bytes")
