"""The store of blobs, seen with a job's keys: what is written goes in sealed, what is read comes out opened.

Without keys everything here is the store itself, so that who reads for a job need not ask whether it is sealed.
"""

import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from hansa.node.storage.sealing import BlobKey, SealBroken, Sealer, ShardKeys, open_sealed
from hansa.proto.blob import BlobRef
from hansa.proto.sealed import plain_size_bytes, sealed_size_bytes

COPY_BYTES = 1 << 20


class Writer(Protocol):
    """A blob that is being written."""

    def write(self, data: bytes) -> None:
        """The next bytes."""

    def finish(self) -> BlobRef:
        """It is complete."""

    def drop(self) -> None:
        """It will never be."""


class Store(Protocol):
    """As much of the store as is needed here."""

    def writer(self, size_bytes: int, like: Sequence[BlobRef] = ()) -> Writer:
        """Begin a blob of this size. Raises ``NoRoom``."""

    def reader(self, ref: BlobRef) -> BinaryIO:
        """The bytes of a blob. Raises ``BlobMissing``."""


class SealedBlobs:
    """A store for one run: what it makes is sealed under its shard's key. Never alike, so nothing is shared."""

    def __init__(self, store: Store, keys: ShardKeys) -> None:
        """See ``store`` with these keys."""
        self._store = store
        self._keys = keys

    def writer(self, size_bytes: int, like: Sequence[BlobRef] = ()) -> "SealedWriter":  # noqa: ARG002 - see the class
        """Begin a blob that holds so many bytes. Raises ``NoRoom``."""
        return SealedWriter(self._store.writer(sealed_size_bytes(size_bytes)), self._keys.own)

    def reader(self, ref: BlobRef) -> BinaryIO:
        """What a blob holds. Raises ``BlobMissing`` or ``SealBroken``."""
        return open_blob(self._store, ref, self._keys.both)


class SealedWriter:
    """A blob whose bytes are sealed before they reach the disk."""

    def __init__(self, below: Writer, key: BlobKey) -> None:
        """Write to ``below``, which has room for them."""
        self._below = below
        self._sealer = Sealer(key)

    def write(self, data: bytes) -> None:
        """The next bytes."""
        self._below.write(self._sealer.push(data))

    def finish(self) -> BlobRef:
        """It is complete."""
        self._below.write(self._sealer.finish())
        return self._below.finish()

    def drop(self) -> None:
        """It will never be."""
        self._below.drop()


def open_blob(store: Store, ref: BlobRef, keys: Sequence[BlobKey] | None) -> BinaryIO:
    """What a blob holds, as a file. Raises ``BlobMissing``, or ``SealBroken`` where there are keys."""
    file = store.reader(ref)
    return file if keys is None else open_sealed(file, keys)


def read_blob(store: Store, ref: BlobRef, limit_bytes: int, keys: Sequence[BlobKey] | None) -> bytes:
    """All that a blob holds.

    Raises:
        BlobMissing: it is not here.
        SealBroken: it cannot be opened.
        ValueError: it is longer than ``limit_bytes``.
    """
    size_bytes = ref.size_bytes if keys is None else plain_size_bytes(ref.size_bytes)
    if size_bytes > limit_bytes:
        raise ValueError(f"a blob of {size_bytes} bytes, and at most {limit_bytes} are to be read")
    with open_blob(store, ref, keys) as file:
        return file.read(size_bytes)


def pieces_of(store: Store, ref: BlobRef, keys: Sequence[BlobKey] | None) -> Generator[bytes, None, None]:
    """What a blob holds, a piece at a time. Raises as ``open_blob`` does."""
    with open_blob(store, ref, keys) as file:
        while piece := file.read(COPY_BYTES):
            yield piece


def fault_in(store: Store, ref: BlobRef, keys: Sequence[BlobKey]) -> str:
    """Why a blob cannot be opened to its end, in words; empty if it can. Raises ``BlobMissing``."""
    try:
        for _ in pieces_of(store, ref, keys):
            pass
    except SealBroken as fault:
        return fault.why
    return ""


@contextmanager
def opened_file(store: Store, ref: BlobRef, keys: Sequence[BlobKey], directory: Path) -> Iterator[Path]:
    """A path below which all that a sealed blob holds can be read while the context lasts.

    The file has no name in ``directory``, so whatever ends this process, nothing is left of it.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        for piece in pieces_of(store, ref, keys):
            file.write(piece)
        file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")
