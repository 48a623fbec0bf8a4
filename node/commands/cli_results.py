"""Writing a job's outputs below one directory of the user's, whatever paths a stranger's code has chosen for them.

Every step down is opened relative to the one above and without following links, each file is written under a name of
its own, checked against its hash, and then linked into place; a file that stands there already is never replaced.
"""

import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hansa.node.faults import OperatorError
from hansa.node.plain_text import plain
from hansa.proto.blob import CHUNK_BYTES, BlobRef, chunk_hash, root_of
from hansa.proto.frames import is_safe_path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Hasher:
    """A blob's root from pieces of any length."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._hashes: list[bytes] = []
        self.size_bytes = 0

    def add(self, piece: bytes) -> None:
        self.size_bytes += len(piece)
        self._held += piece
        while len(self._held) >= CHUNK_BYTES:
            self._hashes.append(chunk_hash(bytes(self._held[:CHUNK_BYTES])))
            del self._held[:CHUNK_BYTES]

    def blob(self) -> BlobRef:
        last = [chunk_hash(bytes(self._held))] if self._held else []
        return BlobRef(root=root_of(self.size_bytes, self._hashes + last), size_bytes=self.size_bytes)


@contextmanager
def _below(directory: Path, parts: list[str]) -> Iterator[int]:
    """A descriptor of the directory so many steps below, made where it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    # The directory itself is the user's own choice and may be a link; what lies below is not.
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            with suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=here)
            step = os.open(part, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = step
        yield here
    finally:
        os.close(here)


def write_output(directory: Path, shard: int, path: str, blob: BlobRef, pieces: Iterable[bytes]) -> Path:
    """Write one output to ``directory/shard-N/path``. ``pieces`` is not read where the very file is there already.

    Raises:
        OperatorError: the path leads elsewhere, another file stands there, or the bytes are not the blob.
    """
    parts, name, target = _place(directory, shard, path)
    try:
        with _below(directory, parts) as here:
            if not _is_there(here, name, blob, target):
                _write(here, name, blob, pieces, target)
    except OSError as fault:
        hint = "choose another directory: -o DIR"
        raise OperatorError(f"cannot write {plain(target)}: {fault.strerror}", hint) from None
    return target


def write_opened(directory: Path, shard: int, path: str, size_bytes: int, pieces: Iterable[bytes]) -> Path:
    """Write one output of a sealed job to ``directory/shard-N/path``; the daemon has opened and checked it.

    Raises:
        OperatorError: as ``write_output`` does.
    """
    parts, name, target = _place(directory, shard, path)
    partial = f".hansa-{secrets.token_hex(8)}"
    try:
        with _below(directory, parts) as here:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(partial, flags, 0o644, dir_fd=here), "w+b") as file:
                try:
                    came_bytes = 0
                    for piece in pieces:
                        came_bytes += len(piece)
                        if came_bytes > size_bytes:
                            break
                        file.write(piece)
                    file.flush()
                    if came_bytes != size_bytes:
                        raise OperatorError(f"not all of {plain(target)} came, or more", "fetch it again")
                    with suppress(FileExistsError):
                        os.link(partial, name, src_dir_fd=here, dst_dir_fd=here)
                        return target
                    if not _is_same(here, name, file):
                        hint = "choose another directory: -o DIR"
                        raise OperatorError(f"{plain(target)} is there already and is something else", hint)
                finally:
                    os.unlink(partial, dir_fd=here)
    except OSError as fault:
        hint = "choose another directory: -o DIR"
        raise OperatorError(f"cannot write {plain(target)}: {fault.strerror}", hint) from None
    return target


def _is_same(here: int, name: str, file: BinaryIO) -> bool:
    """Whether what stands there already holds the same bytes. Its own name is not followed if it is a link."""
    if not stat.S_ISREG(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
        return False
    file.seek(0)
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here), "rb") as there:
        while piece := file.read(CHUNK_BYTES):
            if there.read(len(piece)) != piece:
                return False
        return not there.read(1)


def _place(directory: Path, shard: int, path: str) -> tuple[list[str], str, Path]:
    """The directories below, the file's name, and all of it together. Raises ``OperatorError``."""
    if not is_safe_path(path):
        odd = f"shard {shard} named an output {plain(path, 80)!r}"
        raise OperatorError(odd, "nothing is written outside the shard's own directory")
    *parts, name = [f"shard-{shard}", *path.split("/")]
    return parts, name, directory.joinpath(*parts, name)


def _is_there(here: int, name: str, blob: BlobRef, target: Path) -> bool:
    try:
        found = os.stat(name, dir_fd=here, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if stat.S_ISREG(found.st_mode) and found.st_size == blob.size_bytes:
        hasher = _Hasher()
        with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here), "rb") as file:
            while piece := file.read(CHUNK_BYTES):
                hasher.add(piece)
        if hasher.blob() == blob:
            return True
    raise OperatorError(f"{plain(target)} is there already and is something else", "choose another directory: -o DIR")


def _write(here: int, name: str, blob: BlobRef, pieces: Iterable[bytes], target: Path) -> None:
    partial = f".hansa-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    hasher = _Hasher()
    with os.fdopen(os.open(partial, flags, 0o644, dir_fd=here), "wb") as file:
        try:
            for piece in pieces:
                hasher.add(piece)
                if hasher.size_bytes > blob.size_bytes:
                    break
                file.write(piece)
            file.flush()
            if hasher.size_bytes != blob.size_bytes or hasher.blob() != blob:
                raise OperatorError(f"the bytes of {plain(target)} are not what was promised", "fetch them again")
            os.link(partial, name, src_dir_fd=here, dst_dir_fd=here)
        finally:
            os.unlink(partial, dir_fd=here)
