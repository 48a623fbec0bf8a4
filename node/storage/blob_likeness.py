"""Chunks that are here already, in blobs that a new one is like."""

import errno
import os
from collections.abc import Sequence
from typing import BinaryIO, Protocol

from hansa.node.storage.blob_files import write_at
from hansa.node.storage.blob_shelf import BlobMissing
from hansa.proto.blob import CHUNK_BYTES, BlobRef, chunk_count

CANNOT_COPY = (errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
"""Not every kernel and file system copies between files by itself."""


class Readable(Protocol):
    """The store, as far as likeness needs it."""

    def read_tree(self, ref: BlobRef, first: int, count: int) -> tuple[bytes, ...]:
        """Some of the chunk hashes. Raises ``BlobMissing``."""

    def reader(self, ref: BlobRef) -> BinaryIO:
        """The bytes of a blob as a file. Raises ``BlobMissing``."""


class Likeness:
    """Where the chunks lie of blobs that a new one is like. Made while the store is locked; its files stay readable."""

    def __init__(self, store: Readable, like: Sequence[BlobRef]) -> None:
        """Those that are not here are no help and no fault."""
        self._files: list[BinaryIO] = []
        self._places: dict[bytes, tuple[BinaryIO, int]] = {}
        for ref in like:
            try:
                hashes = store.read_tree(ref, 0, chunk_count(ref.size_bytes))
                file = store.reader(ref)
            except BlobMissing:
                continue
            self._files.append(file)
            self._places.update({digest: (file, index * CHUNK_BYTES) for index, digest in enumerate(hashes)})

    def copy_to(self, target: int, at: int, digest: bytes, size_bytes: int) -> bool:
        """Copy the chunk of this hash to its place in another file. Says whether there was one; it is not checked."""
        place = self._places.get(digest)
        if place is None:
            return False
        file, start = place
        try:
            while size_bytes:
                copied = os.copy_file_range(file.fileno(), target, size_bytes, start, at)
                if not copied:
                    return False
                size_bytes, start, at = size_bytes - copied, start + copied, at + copied
        except OSError as fault:
            if fault.errno not in CANNOT_COPY:
                raise
            write_at(target, os.pread(file.fileno(), size_bytes, start), at)
        return True

    def close(self) -> None:
        """Nothing more is copied."""
        for file in self._files:
            file.close()
