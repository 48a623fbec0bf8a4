"""From a runner to the blob store: states, checkpoints and files go to the disk as they come, whatever their size."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol

import trio

from hansa.node.runs.executor_end import Over
from hansa.node.storage.blob_shelf import NoRoom
from hansa.node.storage.disk_faults import in_words, is_full, passes
from hansa.proto.blob import BlobRef
from hansa.proto.errors import Malformed, TooLarge
from hansa.proto.frames import Checkpoint, Chunk, Output, Sync

Header = Sync | Checkpoint | Output
HEADERS: Final = (Sync, Checkpoint, Output)
PATIENCE_S: Final = 20.0
RETRY_S: Final = 0.5


class Writer(Protocol):
    """A blob that is being written; the methods are called in worker threads."""

    def write(self, data: bytes) -> None:
        """The next bytes."""

    def finish(self) -> BlobRef:
        """It is complete."""

    def drop(self) -> None:
        """It will never be."""


class Blobs(Protocol):
    """What the executor needs of the blob store. Called in worker threads, since files may be large."""

    def writer(self, size_bytes: int, like: Sequence[BlobRef] = ()) -> Writer:
        """Begin a blob of this size, of which those others may hold a part. Raises ``NoRoom``."""

    def reader(self, ref: BlobRef) -> BinaryIO:
        """The bytes of a blob, which stay readable until they are closed. Raises ``BlobMissing``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A header with all of its bytes, in the store."""

    header: Header
    blob: BlobRef


class Intake:
    """Takes the frames of one runner. Those without bytes of their own pass through it."""

    def __init__(self, blobs: Blobs, admit: Callable[[Header], int], checkpoint: BlobRef | None = None) -> None:
        """Ask ``admit(header)`` how many bytes this header may bring; it may also raise ``ProtocolError``.

        ``checkpoint`` is the one that the run went on from, if there is one: what the next has of it is there already.
        """
        self._checkpoint = checkpoint
        self._blobs = blobs
        self._admit = admit
        self._header: Header | None = None
        self._writer: Writer | None = None
        self._left = 0

    async def feed(self, frame: Any) -> Any | None:
        """A frame that stands alone as it is; a header as `Stored` with its last chunk; else nothing yet.

        Raises:
            ProtocolError: a chunk without a header, a header within another, or more bytes than declared or allowed.
            Over: the store has no room, or this machine's disk fails.
        """
        if isinstance(frame, HEADERS):
            return await self._begin(frame)
        if isinstance(frame, Chunk):
            return await self._take(frame.data)
        return frame

    async def drop(self) -> None:
        """Forget what is not complete."""
        writer, self._writer, self._header = self._writer, None, None
        if writer is not None:
            # What then is left of it goes at the next start.
            with trio.CancelScope(shield=True), contextlib.suppress(OSError):
                await trio.to_thread.run_sync(writer.drop)

    async def _begin(self, header: Header) -> Stored | None:
        name = type(header).__name__
        if self._header is not None:
            raise Malformed(name, "came before the bytes of the header in front of it")
        if header.size_bytes > self._admit(header):
            raise TooLarge(name, f"{header.size_bytes} bytes are over the limit of the run")
        self._header, self._left = header, header.size_bytes
        return await self._keep(b"") if self._left == 0 else None

    async def _take(self, data: bytes) -> Stored | None:
        if self._header is None:
            raise Malformed("Chunk", "belongs to no header")
        if len(data) > self._left:
            raise TooLarge("Chunk", "more bytes than the header declared")
        self._left -= len(data)
        return await self._keep(data)

    async def _keep(self, data: bytes) -> Stored | None:
        """Write the next bytes."""
        try:
            if self._writer is None:
                await self._open_writer()
            blob = await trio.to_thread.run_sync(self._write, data)
        except NoRoom as error:
            raise Over("no-room", f"the provider has no room for what the run made: {error}") from error
        except OSError as error:
            if is_full(error):
                why = f"the provider has no room for what the run made: {in_words(error)}"
                raise Over("no-room", why) from error
            why = f"the provider could not keep what the run made: {in_words(error)}"
            raise Over("sandbox-lost", why) from error
        if blob is None:
            return None
        assert self._header is not None, "what was written has a header"
        stored = Stored(header=self._header, blob=blob)
        if isinstance(self._header, Checkpoint):
            self._checkpoint = blob
        self._writer = self._header = None
        return stored

    async def _open_writer(self) -> None:
        """Begin a blob. What is lacking for that, and soon given back by others, is waited for."""
        header = self._header
        assert header is not None, "what is written has a header"
        before = self._checkpoint if isinstance(header, Checkpoint) else None
        like, until_s = (before,) if before else (), trio.current_time() + PATIENCE_S
        while self._writer is None:
            try:
                self._writer = await trio.to_thread.run_sync(self._blobs.writer, header.size_bytes, like)
                continue
            except OSError as error:
                if not passes(error) or trio.current_time() >= until_s:
                    raise
            await trio.sleep(RETRY_S)

    def _write(self, data: bytes) -> BlobRef | None:
        assert self._writer is not None, "it was opened for it"
        self._writer.write(data)
        return self._writer.finish() if self._left == 0 else None
