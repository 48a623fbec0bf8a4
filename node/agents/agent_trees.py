"""Directories that a run is furnished with, brought to another machine of the same provider and kept there by content.

Code and inputs hold what a stranger packed, so the receiving side trusts nothing that it reads: every entry is made in
a fresh directory, below a directory that this very stream made, and a link is made but never followed. What arrived is
hashed while it is written, and gets its place only under the digest that was asked for.
"""

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import trio
from blake3 import blake3

from hansa.proto.errors import Malformed, TooLarge

BLOCK_BYTES = 256 << 10
LARGEST_HEADER_BYTES = 16 << 10
MOST_ENTRIES = 1_000_000
WRITABLE_BY_OTHERS = 0o022
"""Nobody on this machine changes what was hashed, whatever its modes were elsewhere."""
DIRECTORY, FILE, LINK, END = "d", "f", "l", "."


def digest_of(directory: Path) -> bytes:
    """The name of everything in a directory: paths, contents, links and permissions, and no times or owners."""
    whole = blake3()
    for header, path in _entries(directory):
        if header[1] == FILE:
            content = blake3()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    content.update(block)
            whole.update(_framed([*header, content.digest()]))
        else:
            whole.update(_framed(header))
    return whole.digest()


def blocks_of(directory: Path) -> Iterator[bytes]:
    """A directory as one stream of bytes, in pieces of a fitting size."""
    block = bytearray()
    for header, path in _entries(directory):
        block += _framed(header)
        if header[1] == FILE:
            left = header[3]
            with path.open("rb") as file:
                while left:
                    piece = file.read(min(left, BLOCK_BYTES))
                    if not piece:
                        raise OSError(f"{path} became shorter while it was read")
                    left -= len(piece)
                    block += piece
                    if len(block) >= BLOCK_BYTES:
                        yield bytes(block)
                        block.clear()
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    yield bytes(block) + _framed(["", END, 0, 0])


class TreeWriter:
    """Makes a directory of such a stream, fed piece by piece."""

    def __init__(self, target: Path, *, limit_bytes: int) -> None:
        """Write below ``target``, which must not be there yet."""
        target.mkdir()
        target.chmod(0o755)  # whatever our umask: a sandbox reads it as another user; those above keep others out
        self._target = target
        self._limit_bytes = limit_bytes
        self._waiting = bytearray()
        self._made = {""}
        self._modes: list[tuple[str, int]] = []
        self._entries = 0
        self._bytes = 0
        self._file: Any = None
        self._left = 0
        self._header: list[Any] = []
        self._content = blake3()
        self._whole = blake3()
        self.complete = False

    @property
    def digest(self) -> bytes:
        """Of what was written so far."""
        return self._whole.digest()

    def feed(self, data: bytes) -> None:
        """Write what these bytes say.

        Raises:
            ProtocolError: they say what no directory of ours says.
        """
        view = memoryview(data)
        while view:
            if self.complete:
                raise Malformed("tree", "goes on after its end")
            if self._file is not None:
                piece = view[: self._left]
                self._file.write(piece)
                self._content.update(piece)
                self._left -= len(piece)
                view = view[len(piece) :]
                self._close_if_full()
                continue
            wanted = 4 if len(self._waiting) < 4 else 4 + self._header_bytes()
            piece = view[: wanted - len(self._waiting)]
            self._waiting += piece
            view = view[len(piece) :]
            if len(self._waiting) >= 4 and len(self._waiting) == 4 + self._header_bytes():
                header = _unframed(bytes(self._waiting[4:]))
                self._waiting.clear()
                self._take(header)

    def close(self) -> None:
        """Give the open file back, whether it is whole or not."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _header_bytes(self) -> int:
        size_bytes = int.from_bytes(self._waiting[:4], "big")
        if not 0 < size_bytes <= LARGEST_HEADER_BYTES:
            raise TooLarge("tree", "an entry's header")
        return size_bytes

    def _take(self, header: list[Any]) -> None:
        name, kind, mode, last = header
        if kind == END:
            for path, wanted in reversed(self._modes):  # last, since one that may not be written would hold us up
                (self._target / path).chmod((wanted | 0o700) & ~WRITABLE_BY_OTHERS)
            self.complete = True
            return
        parent, _, own = name.rpartition("/")
        strange = name.startswith("/") or own in ("", ".", "..") or "\0" in name or len(os.fsencode(name)) > 4096
        if strange or parent not in self._made:
            raise Malformed("tree", "a path that leads elsewhere")
        self._entries += 1
        if self._entries > MOST_ENTRIES:
            raise TooLarge("tree", f"more than {MOST_ENTRIES} entries")
        path = self._target / name
        try:
            if kind == DIRECTORY:
                path.mkdir(mode=0o755)
                self._made.add(name)
                self._modes.append((name, mode))
            elif kind == LINK:
                path.symlink_to(last)
            else:
                self._open(path, mode, last)
                self._header = header
                self._close_if_full()
                return
        except (FileExistsError, ValueError) as error:
            raise Malformed("tree", "an entry that stands there twice, or cannot be") from error
        self._whole.update(_framed(header))

    def _open(self, path: Path, mode: int, size_bytes: int) -> None:
        self._bytes += size_bytes
        if self._bytes > self._limit_bytes:
            raise TooLarge("tree", f"more than {self._limit_bytes} bytes")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        os.fchmod(descriptor, mode & ~WRITABLE_BY_OTHERS)
        self._left = size_bytes
        self._content = blake3()

    def _close_if_full(self) -> None:
        if self._file is not None and self._left == 0:
            self.close()
            self._whole.update(_framed([*self._header, self._content.digest()]))


class TreeStore:
    """The directories that an agent has, by digest, within a quota; those in use stay."""

    def __init__(self, directory: Path, *, quota_bytes: int) -> None:
        """Keep them below ``directory``. What was half received when the last agent ended is removed."""
        self._directory = directory
        self._quota_bytes = quota_bytes
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        for path in directory.iterdir():
            if path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)
        self._used: dict[bytes, int] = {}

    @contextlib.contextmanager
    def used(self, digest: bytes) -> Iterator[None]:
        """Do not remove it meanwhile."""
        self._used[digest] = self._used.get(digest, 0) + 1
        try:
            yield
        finally:
            self._used[digest] -= 1

    def find(self, digest: bytes) -> Path | None:
        """Where it is, if it is here."""
        path = self._directory / digest.hex()
        if not path.is_dir():
            return None
        os.utime(path)
        return path

    async def receive(self, digest: bytes, stream: trio.abc.ReceiveStream) -> Path:
        """Take a directory from a stream.

        Raises:
            ProtocolError: it is not the one that was asked for.
            OSError: it cannot be written.
        """
        # Whoever knows a name in the directory may enter, and nobody is to guess this one: what stands below it is open
        # to all, since the sandbox runs as another user.
        fresh = self._directory / f".{secrets.token_hex(16)}"
        writer = await trio.to_thread.run_sync(lambda: TreeWriter(fresh, limit_bytes=self._quota_bytes))
        try:
            while not writer.complete:
                data = await stream.receive_some(BLOCK_BYTES)
                if not data:
                    raise Malformed("tree", "ended too early")
                await trio.to_thread.run_sync(writer.feed, bytes(data))
            if writer.digest != digest:
                raise Malformed("tree", "is another one than was asked for")
            path = self._directory / digest.hex()
            await trio.to_thread.run_sync(self._keep, fresh, path)
        finally:
            writer.close()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: shutil.rmtree(fresh, ignore_errors=True))
        return path

    def _keep(self, fresh: Path, path: Path) -> None:
        with contextlib.suppress(OSError):  # another run brought the same one at the same time
            fresh.rename(path)
        sizes = {one: _size_bytes(one) for one in self._directory.iterdir() if not one.name.startswith(".")}
        total_bytes = sum(sizes.values())
        for one in sorted(sizes, key=lambda each: each.stat().st_mtime):
            if total_bytes <= self._quota_bytes:
                return
            if one != path and not self._used.get(bytes.fromhex(one.name)):
                shutil.rmtree(one, ignore_errors=True)
                total_bytes -= sizes[one]


async def send_tree(directory: Path, stream: trio.abc.SendStream) -> None:
    """Send a directory to whoever calls `TreeStore.receive`."""
    blocks = blocks_of(directory)
    while block := await trio.to_thread.run_sync(next, blocks, b""):
        await stream.send_all(block)


def _entries(directory: Path) -> Iterator[tuple[list[Any], Path]]:
    """Everything below a directory, each thing after the directory that it is in. What is no file is left out."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        for entry in sorted(os.scandir(directory / below), key=lambda one: one.name):
            name = f"{below}/{entry.name}" if below else entry.name
            path, facts = directory / name, entry.stat(follow_symlinks=False)
            mode = stat.S_IMODE(facts.st_mode) & 0o777 & ~WRITABLE_BY_OTHERS
            if entry.is_symlink():
                yield [name, LINK, 0o777, str(path.readlink())], path
            elif entry.is_dir(follow_symlinks=False):
                yield [name, DIRECTORY, mode, 0], path
                waiting.append(name)
            elif entry.is_file(follow_symlinks=False):
                yield [name, FILE, mode, facts.st_size], path


def _framed(header: list[Any]) -> bytes:
    data: bytes = msgpack.packb(header, unicode_errors="surrogateescape")
    return len(data).to_bytes(4, "big") + data


def _unframed(data: bytes) -> list[Any]:
    try:
        header = msgpack.unpackb(data, max_array_len=4, max_map_len=0, max_ext_len=0, unicode_errors="surrogateescape")
        name, kind, mode, last = header
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Malformed("tree", "no entry") from error
    if type(name) is not str or type(mode) is not int or not 0 <= mode <= 0o777:
        raise Malformed("tree", "no entry")
    is_number = type(last) is int and 0 <= last < 1 << 50
    if not (kind == LINK and type(last) is str) and not (kind in (FILE, DIRECTORY, END) and is_number):
        raise Malformed("tree", "no entry")
    return [name, kind, mode, last]


def _size_bytes(directory: Path) -> int:
    total_bytes = 0
    for below, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total_bytes += os.lstat(os.path.join(below, name)).st_size  # noqa: PTH118 - a million of them
    return total_bytes
