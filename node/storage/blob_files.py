"""Files of the store of blobs: made for their owner only, on the disk before they are believed in."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hansa.proto.blob import CHUNK_BYTES, HASH_BYTES

SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:  # Linux has it, Python does not
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def is_at(descriptor: int, at: int, data: bytes) -> bool:
    """Whether these bytes stand there."""
    return os.pread(descriptor, len(data), at) == data


def write_at(descriptor: int, data: bytes | memoryview, at: int) -> None:
    """All of it, in its place."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def start_writing_out(descriptor: int, at: int, size_bytes: int) -> None:
    """Have these bytes on their way to the disk, so that little is left to wait for when all must be there."""
    if _sync_file_range is not None:
        # What it answers does not matter: whether all is on the disk, the sync at the end says.
        _sync_file_range(descriptor, at, size_bytes, SYNC_FILE_RANGE_WRITE)


def chunks_in(file: BinaryIO) -> Iterator[bytes]:
    """The file from where it stands, cut into chunks."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def cut_hashes(data: bytes) -> Iterator[bytes]:
    """The hashes of a tree. Raises ``ValueError`` if it is none."""
    if len(data) % HASH_BYTES:
        raise ValueError("not a whole number of hashes")
    return (data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))


def create(path: Path) -> BinaryIO:
    """A new file that only this user reads."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def sync(file: BinaryIO) -> None:
    """On the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The names in it, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
