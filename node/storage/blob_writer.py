"""A blob whose bytes are made on this machine, bit by bit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hansa.node.storage.blob_files import create, is_at, sync, write_at
from hansa.node.storage.blob_likeness import Likeness
from hansa.proto.blob import CHUNK_BYTES, BlobRef, chunk_hash


class Keeper(Protocol):
    """The store, as a writer sees it."""

    def finish_writing(self, writer: "BlobWriter", hashes: Sequence[bytes]) -> BlobRef:
        """All bytes of a writer's file are there: make it a blob."""

    def drop_writing(self, writer: "BlobWriter") -> None:
        """Forget what was written, unless it became a blob."""


class BlobWriter:
    """A blob whose bytes come in order, in pieces of any size. At most one chunk of it is in memory."""

    def __init__(self, store: Keeper, path: Path, size_bytes: int, known: Likeness) -> None:
        """Made by ``BlobStore.writer``."""
        self.path = path
        self.size_bytes = size_bytes
        self.reused_bytes = 0
        self._store = store
        self._known = known
        self._file = create(path)
        self._hashes: list[bytes] = []
        self._chunk = bytearray()
        self._written_bytes = 0

    def write(self, data: bytes) -> None:
        """The next bytes. Raises ``ValueError`` if they are more than the blob has."""
        if self._written_bytes + len(data) > self.size_bytes:
            raise ValueError("more bytes than the blob has")
        self._written_bytes += len(data)
        view = memoryview(data)
        while view:
            piece = view[: CHUNK_BYTES - len(self._chunk)]
            self._chunk += piece
            view = view[len(piece) :]
            if len(self._chunk) == CHUNK_BYTES:
                self._keep_chunk()

    def finish(self) -> BlobRef:
        """It is complete: make it a blob. Raises ``ValueError`` if bytes are missing."""
        if self._written_bytes != self.size_bytes:
            raise ValueError("fewer bytes than the blob has")
        try:
            if self._chunk:
                self._keep_chunk()
            sync(self._file)
            return self._store.finish_writing(self, self._hashes)
        finally:
            self.drop()

    def drop(self) -> None:
        """It will never be complete, or it is already: leave nothing behind but the blob."""
        self._known.close()
        self._file.close()
        self._store.drop_writing(self)

    def _keep_chunk(self) -> None:
        data, at = bytes(self._chunk), len(self._hashes) * CHUNK_BYTES
        digest = chunk_hash(data)
        descriptor = self._file.fileno()
        if self._known.copy_to(descriptor, at, digest, len(data)) and is_at(descriptor, at, data):
            self.reused_bytes += len(data)
        else:
            write_at(descriptor, data, at)
        self._hashes.append(digest)
        self._chunk.clear()
