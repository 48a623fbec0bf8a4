"""A blob on its way: chunks in any order, each checked before it is written, and kept over any crash."""

import os
from pathlib import Path
from typing import Protocol

from hansa.node.storage.blob_files import start_writing_out, sync, write_at
from hansa.node.storage.blob_likeness import Likeness
from hansa.proto.blob import CHUNK_BYTES, BlobRef, chunk_hash, chunk_size_bytes


class PartKeeper(Protocol):
    """The store, as a part file sees it."""

    def finish(self, partial: "Partial") -> Path:
        """All chunks are there: make the part file a blob."""

    def close_part(self, path: Path) -> None:
        """A fetch stops for now."""


class Partial:
    """A blob on its way. Chunks may come in any order, each is checked before it is written."""

    def __init__(self, store: PartKeeper, ref: BlobRef, hashes: tuple[bytes, ...], path: Path, known: Likeness) -> None:
        """Made by ``BlobStore.begin``; finds out what is already there, and takes what is known from elsewhere."""
        self.ref = ref
        self.hashes = hashes
        self.path = path
        self.reused_bytes = 0
        self.kept_bytes = 0
        self._store = store
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=0)
        try:
            self._missing = {index for index in range(len(hashes)) if not self._is_there(index)}
            self.kept_bytes = ref.size_bytes - sum(chunk_size_bytes(ref.size_bytes, index) for index in self._missing)
            self._reuse(known)
        except OSError:
            self._file.close()
            raise

    def _is_there(self, index: int) -> bool:
        size_bytes = chunk_size_bytes(self.ref.size_bytes, index)
        chunk = os.pread(self._file.fileno(), size_bytes, index * CHUNK_BYTES)
        return len(chunk) == size_bytes and chunk_hash(chunk) == self.hashes[index]

    def missing(self) -> list[int]:
        """Which chunks are still to come, in order."""
        return sorted(self._missing)

    def _reuse(self, known: Likeness) -> None:
        """Take what is missing from a blob that is like this one. It is checked as if it had come from a stranger."""
        for index in self.missing():
            size_bytes = chunk_size_bytes(self.ref.size_bytes, index)
            copied = known.copy_to(self._file.fileno(), index * CHUNK_BYTES, self.hashes[index], size_bytes)
            if copied and self._is_there(index):
                self._missing.discard(index)
                self.reused_bytes += size_bytes

    def write(self, index: int, chunk: bytes | memoryview) -> None:
        """Keep one chunk. Raises ``ValueError`` if it is not the one that belongs there."""
        if len(chunk) != chunk_size_bytes(self.ref.size_bytes, index) or chunk_hash(chunk) != self.hashes[index]:
            raise ValueError("the chunk does not fit its hash")
        write_at(self._file.fileno(), chunk, index * CHUNK_BYTES)
        start_writing_out(self._file.fileno(), index * CHUNK_BYTES, len(chunk))
        self._missing.discard(index)

    def finish(self) -> Path:
        """Make it a blob."""
        assert not self._missing, "a blob was called complete while chunks are missing"
        sync(self._file)
        path = self._store.finish(self)
        self.close()
        return path

    def close(self) -> None:
        """Stop for now; what was fetched stays for the next time, unless its room is needed."""
        if not self._file.closed:
            self._file.close()
            self._store.close_part(self.path)
