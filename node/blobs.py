"""This node's store of blobs: content-addressed files with a quota, and part files that survive any crash.

Layout, all of it readable by this user only::

    <directory>/whole/<root>          the bytes
    <directory>/whole/<root>.tree     the chunk hashes, 32 bytes each
    <directory>/part/<root>.<size>    what has been fetched so far, chunks in their places
    <directory>/part/<root>.<size>.tree
    <directory>/new/                  being written; emptied at every start
    <directory>/pins.json             what must not be evicted, and why

A file comes into ``whole`` by rename after fsync, so that what stands there is complete. A part file carries no list of
what it holds: on resuming, every chunk is hashed again, which costs a second for a few gigabytes and cannot be wrong.

A blob may be named that the new one is *like*: equal chunks are copied from it, by the kernel, which lets both files
share them on the disk where the file system can (Btrfs, XFS). It is the caller who says which: what is reused among the
blobs of one shard would, among those of all buyers, hand a stranger's bytes to whoever knows their hashes.
The methods block and may be called from threads, one lock guarding the books; callers in trio use ``trio.to_thread``.
"""

import contextlib
import errno
import json
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hansa.proto.blob import (
    CHUNK_BYTES,
    HASH_BYTES,
    BlobRef,
    chunk_count,
    chunk_hash,
    chunk_size_bytes,
    root_of,
)

CANNOT_COPY = (errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
"""Not every kernel and file system copies between files by itself."""
PART_LIFE_S = 7 * 86_400
"""How long a part file that nobody goes on with is kept, where nothing else wants its room."""


class BlobMissing(Exception):
    """The store does not hold this blob."""

    def __init__(self, ref: BlobRef) -> None:
        """Keep which."""
        super().__init__(str(ref))
        self.ref = ref


class NoRoom(Exception):
    """The quota does not allow this blob, even with everything evicted that may be."""

    def __init__(self, wanted_bytes: int, quota_bytes: int) -> None:
        """Keep both figures."""
        super().__init__(f"{wanted_bytes} bytes do not fit into the quota of {quota_bytes}")
        self.wanted_bytes = wanted_bytes
        self.quota_bytes = quota_bytes


@dataclass(slots=True)
class _Entry:
    size_bytes: int
    used_s: float


class BlobStore:
    """Blobs on disk."""

    def __init__(self, directory: Path, *, quota_bytes: int) -> None:
        """Open the store, making it if it is new, and clear away what a crash left half written."""
        self.directory = directory
        self.quota_bytes = quota_bytes
        self.evicted = 0
        self._lock = threading.RLock()
        self._whole = directory / "whole"
        self._parts = directory / "part"
        self._new = directory / "new"
        for folder in (directory, self._whole, self._parts, self._new):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left_over in self._new.iterdir():
            left_over.unlink()
        self._pins = self._read_pins()
        self._resting: set[str] = set()
        self._open: Counter[str] = Counter()
        self._entries = {
            path.name: _Entry(path.stat().st_size, path.stat().st_mtime)
            for path in self._whole.iterdir()
            if path.suffix != ".tree" and path.with_suffix(".tree").exists()
        }
        self._reserved = {
            path.name: int(path.name.partition(".")[2])
            for path in self._parts.iterdir()
            if path.suffix != ".tree" and not self._forget_old_part(path)
        }

    # Books.

    @property
    def size_bytes(self) -> int:
        """What the store holds and has promised to part files."""
        with self._lock:
            return sum(entry.size_bytes for entry in self._entries.values()) + sum(self._reserved.values())

    def has(self, ref: BlobRef) -> bool:
        """Whether the whole blob is here."""
        with self._lock:
            entry = self._entries.get(str(ref))
            return entry is not None and entry.size_bytes == ref.size_bytes

    def path(self, ref: BlobRef) -> Path | None:
        """Where the whole blob lies, or None. Read it and leave it alone: the store believes in what it has written."""
        with self._lock:
            if not self.has(ref):
                return None
            self._touch(ref)
            return self._whole / str(ref)

    def pin(self, ref: BlobRef, why: str) -> None:
        """Never evict this blob, whether it is here yet or not, until the same reason is taken back."""
        with self._lock:
            self._pins.setdefault(str(ref), [])
            if why not in self._pins[str(ref)]:
                self._pins[str(ref)].append(why)
                self._write_pins()

    def unpin(self, ref: BlobRef, why: str) -> None:
        """Take one reason back; taking back what was never given is no fault."""
        with self._lock:
            reasons = self._pins.get(str(ref), [])
            if why in reasons:
                reasons.remove(why)
                if not reasons:
                    del self._pins[str(ref)]
                self._write_pins()

    def pin_exactly(self, refs: Collection[BlobRef], why: str) -> None:
        """Have this reason hold these blobs and no others, also against what an earlier process pinned for it."""
        wanted = {str(ref) for ref in refs}
        with self._lock:
            before = {name for name, reasons in self._pins.items() if why in reasons}
            for name in wanted - before:
                self._pins.setdefault(name, []).append(why)
            for name in before - wanted:
                self._pins[name].remove(why)
                if not self._pins[name]:
                    del self._pins[name]
            if wanted != before:
                self._write_pins()

    def retain(self, refs: Collection[BlobRef], why: str, rest_s: float) -> None:
        """As ``pin_exactly``, and what this reason held before is deleted: it was replaced by something newer.

        That happens once nothing else holds it and nobody has read it for ``rest_s``: somebody may still be copying it.
        Until then it may be evicted for the sake of other blobs.
        """
        with self._lock:
            self._resting |= {name for name, reasons in self._pins.items() if why in reasons}
            self.pin_exactly(refs, why)
            now_s = time.time()
            for name in list(self._resting):
                entry = self._entries.get(name)
                if entry is None or name in self._pins:
                    self._resting.discard(name)
                elif now_s - entry.used_s >= rest_s:
                    self._resting.discard(name)
                    self._remove(name)

    def forget_pins(self, prefix: str) -> None:
        """Take back every reason that begins so: what an earlier process held for things that ended with it."""
        with self._lock:
            kept = {
                name: [why for why in reasons if not why.startswith(prefix)] for name, reasons in self._pins.items()
            }
            kept = {name: reasons for name, reasons in kept.items() if reasons}
            if kept != self._pins:
                self._pins = kept
                self._write_pins()

    def delete(self, ref: BlobRef) -> None:
        """Forget a blob at once, pinned or not."""
        with self._lock:
            self._remove(str(ref))

    # Writing.

    def put_bytes(self, data: bytes) -> BlobRef:
        """Keep these bytes."""
        return self._put(memoryview(data)[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))

    def put_file(self, path: Path) -> BlobRef:
        """Keep a copy of this file as it is now."""
        with path.open("rb") as file:
            return self._put(_chunks(file))

    def writer(self, size_bytes: int, like: Sequence[BlobRef] = ()) -> "BlobWriter":
        """Begin a blob of this size whose bytes come bit by bit; its room is kept for it. Raises ``NoRoom``."""
        with self._lock:
            known = Likeness(self, like)
            try:
                self._make_room(size_bytes)
                writer = BlobWriter(self, self._new / secrets.token_hex(16), size_bytes, known)
            except BaseException:
                known.close()
                raise
            self._reserved[writer.path.name] = size_bytes
            return writer

    def finish_writing(self, writer: "BlobWriter", hashes: Sequence[bytes]) -> BlobRef:
        """All bytes of a writer's file are there: make it a blob."""
        ref = BlobRef(root=root_of(writer.size_bytes, hashes), size_bytes=writer.size_bytes)
        with self._lock:
            self._reserved.pop(writer.path.name, None)
            if not self.has(ref):
                self._adopt(ref, writer.path, hashes)
            self._touch(ref)
        return ref

    def drop_writing(self, writer: "BlobWriter") -> None:
        """Forget what was written, unless it became a blob."""
        with self._lock:
            self._reserved.pop(writer.path.name, None)
            writer.path.unlink(missing_ok=True)

    def check_quota(self, size_bytes: int) -> None:
        """Raise ``NoRoom`` for what could never fit."""
        if size_bytes > self.quota_bytes:
            raise NoRoom(size_bytes, self.quota_bytes)

    def new_file(self) -> Path:
        """Where a file may be written that is to become a blob; what is left there goes at the next start."""
        return self._new / secrets.token_hex(16)

    def take_file(self, path: Path) -> BlobRef:
        """Make a file that was written at ``new_file()`` a blob without copying it.

        Raises:
            NoRoom: the quota does not allow it; then it is left where it is.
        """
        with path.open("rb") as file:
            hashes = [chunk_hash(chunk) for chunk in _chunks(file)]
            size_bytes = file.tell()
            _sync(file)
        ref = BlobRef(root=root_of(size_bytes, hashes), size_bytes=size_bytes)
        with self._lock:
            if not self.has(ref):
                self._make_room(size_bytes)
                self._adopt(ref, path, hashes)
            else:
                path.unlink()
            self._touch(ref)
        return ref

    def _put(self, chunks: Iterator[bytes | memoryview]) -> BlobRef:
        temporary = self._new / secrets.token_hex(16)
        hashes, size_bytes = [], 0
        try:
            with _create(temporary) as file:
                for chunk in chunks:
                    hashes.append(chunk_hash(bytes(chunk)))
                    size_bytes += len(chunk)
                    self.check_quota(size_bytes)
                    file.write(chunk)
                _sync(file)
            ref = BlobRef(root=root_of(size_bytes, hashes), size_bytes=size_bytes)
            with self._lock:
                if not self.has(ref):
                    self._make_room(size_bytes)
                    self._adopt(ref, temporary, hashes)
                self._touch(ref)
            return ref
        finally:
            temporary.unlink(missing_ok=True)

    def _adopt(self, ref: BlobRef, complete: Path, hashes: Sequence[bytes]) -> None:
        """Move a complete file into the store. The tree goes first: a blob without its tree is not believed in."""
        tree = self._new / f"{secrets.token_hex(16)}.tree"
        with _create(tree) as file:
            file.write(b"".join(hashes))
            _sync(file)
        target = self._whole / str(ref)
        tree.rename(target.with_suffix(".tree"))
        complete.rename(target)
        _sync_folder(self._whole)
        self._entries[str(ref)] = _Entry(ref.size_bytes, time.time())

    def _make_room(self, wanted_bytes: int) -> None:
        """Evict the longest unused of what is not pinned, or raise without having evicted anything.

        What was broken off goes before what is whole: its sizes are a stranger's word, and it is of use to nobody yet.
        """
        free_bytes = self.quota_bytes - self.size_bytes
        loose = sorted((entry.used_s, name) for name, entry in self._entries.items() if name not in self._pins)
        idle = self._idle_parts()
        loose_bytes = sum(self._entries[name].size_bytes for _, name in loose)
        if wanted_bytes > free_bytes + loose_bytes + sum(self._reserved[path.name] for path in idle):
            raise NoRoom(wanted_bytes, self.quota_bytes)
        for path in idle:
            if wanted_bytes <= free_bytes:
                break
            free_bytes += self._reserved[path.name]
            self._release(path)
        for _, name in loose:
            if wanted_bytes <= free_bytes:
                break
            free_bytes += self._entries[name].size_bytes
            self._remove(name)
            self.evicted += 1

    def _idle_parts(self) -> list[Path]:
        """Parts that nobody is fetching and nothing pins, the oldest first. A writer's room has no dot in its name."""
        found = []
        for name in self._reserved:
            root, dot, _ = name.partition(".")
            if dot and not self._open[name] and root not in self._pins:
                path = self._parts / name
                with contextlib.suppress(OSError):
                    found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    def _remove(self, name: str) -> None:
        self._entries.pop(name, None)
        target = self._whole / name
        target.unlink(missing_ok=True)
        target.with_suffix(".tree").unlink(missing_ok=True)

    def _touch(self, ref: BlobRef) -> None:
        entry = self._entries[str(ref)]
        entry.used_s = time.time()
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._whole / str(ref))

    # Reading.

    def read_bytes(self, ref: BlobRef, limit: int) -> bytes:
        """The whole blob. Raises ``BlobMissing``, or ``ValueError`` if it is longer than ``limit``."""
        if ref.size_bytes > limit:
            raise ValueError(f"a blob of {ref.size_bytes} bytes, and at most {limit} are to be read")
        return self._read(ref, str(ref), 0, ref.size_bytes)

    def reader(self, ref: BlobRef) -> BinaryIO:
        """The bytes of a blob as a file, which can be read to its end whatever is evicted. Raises ``BlobMissing``."""
        path = self.path(ref)
        try:
            if path is not None:
                return path.open("rb")
        except FileNotFoundError:
            pass  # evicted between the two steps
        raise BlobMissing(ref)

    def read_chunk(self, ref: BlobRef, index: int) -> bytes:
        """One chunk. Raises ``BlobMissing``."""
        if not 0 <= index < chunk_count(ref.size_bytes):
            raise BlobMissing(ref)
        return self._read(ref, str(ref), index * CHUNK_BYTES, chunk_size_bytes(ref.size_bytes, index))

    def read_tree(self, ref: BlobRef, first: int, count: int) -> tuple[bytes, ...]:
        """Some of the chunk hashes. Raises ``BlobMissing``."""
        return tuple(_cut(self._read(ref, f"{ref}.tree", first * HASH_BYTES, count * HASH_BYTES)))

    def _read(self, ref: BlobRef, name: str, start: int, size_bytes: int) -> bytes:
        with self._lock:
            if not self.has(ref):
                raise BlobMissing(ref)
            self._entries[str(ref)].used_s = time.time()
        try:
            with (self._whole / name).open("rb") as file:
                file.seek(start)
                return file.read(size_bytes)
        except FileNotFoundError as fault:
            # Evicted between the two steps.
            raise BlobMissing(ref) from fault

    # Fetching.

    def tree_of_part(self, ref: BlobRef) -> tuple[bytes, ...] | None:
        """The chunk hashes of a fetch that was broken off, if they still fit the root."""
        try:
            hashes = tuple(_cut(self._part(ref).with_name(f"{self._part(ref).name}.tree").read_bytes()))
            return hashes if root_of(ref.size_bytes, hashes) == ref.root else None
        except (OSError, ValueError):
            return None

    def begin(self, ref: BlobRef, hashes: Sequence[bytes], like: Sequence[BlobRef] = ()) -> "Partial":
        """Start or resume fetching. Raises ``ValueError`` if the hashes do not make the root, or ``NoRoom``."""
        if root_of(ref.size_bytes, hashes) != ref.root:
            raise ValueError("the chunk hashes do not make the root")
        path = self._part(ref)
        with self._lock:
            # Opened before room is made: its file can be read to its end, also if it is evicted for the new one.
            known = Likeness(self, like)
        opened = False
        try:
            with self._lock:
                if path.name not in self._reserved:
                    self._make_room(ref.size_bytes)
                    self._reserved[path.name] = ref.size_bytes
                self._open[path.name] += 1
            opened = True
            tree = path.with_name(f"{path.name}.tree")
            if self.tree_of_part(ref) is None:
                temporary = self._new / f"{secrets.token_hex(16)}.tree"
                with _create(temporary) as file:
                    file.write(b"".join(hashes))
                    _sync(file)
                temporary.rename(tree)
                _sync_folder(self._parts)
            return Partial(self, ref, tuple(hashes), path, known)
        except OSError:
            if opened:
                self.close_part(path)
                self.discard_part(ref)
            raise
        finally:
            known.close()

    def finish(self, partial: "Partial") -> Path:
        """All chunks are there: make the part file a blob."""
        with self._lock:
            self._adopt(partial.ref, partial.path, partial.hashes)
            self._release(partial.path)
            return self._whole / str(partial.ref)

    def close_part(self, path: Path) -> None:
        """A fetch stops for now."""
        with self._lock:
            self._open[path.name] -= 1
            if self._open[path.name] <= 0:
                del self._open[path.name]

    def discard_part(self, ref: BlobRef) -> None:
        """Give up a fetch and its bytes, unless somebody else goes on with it."""
        with self._lock:
            path = self._part(ref)
            if not self._open[path.name]:
                self._release(path)

    def _release(self, path: Path) -> None:
        self._reserved.pop(path.name, None)
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.tree").unlink(missing_ok=True)

    def _part(self, ref: BlobRef) -> Path:
        return self._parts / f"{ref}.{ref.size_bytes}"

    def _forget_old_part(self, path: Path) -> bool:
        old = path.stat().st_mtime < time.time() - PART_LIFE_S
        if old:
            path.unlink()
            path.with_name(f"{path.name}.tree").unlink(missing_ok=True)
        return old

    # Pins.

    def _read_pins(self) -> dict[str, list[str]]:
        try:
            raw = json.loads((self.directory / "pins.json").read_text())
        except FileNotFoundError:
            return {}
        return {str(name): [str(why) for why in reasons] for name, reasons in raw.items()}

    def _write_pins(self) -> None:
        temporary = self._new / secrets.token_hex(16)
        with _create(temporary) as file:
            file.write(json.dumps(self._pins).encode())
            _sync(file)
        temporary.rename(self.directory / "pins.json")
        _sync_folder(self.directory)


class Partial:
    """A blob on its way. Chunks may come in any order, each is checked before it is written."""

    def __init__(
        self, store: BlobStore, ref: BlobRef, hashes: tuple[bytes, ...], path: Path, known: "Likeness"
    ) -> None:
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

    def _reuse(self, known: "Likeness") -> None:
        """Take what is missing from a blob that is like this one. It is checked as if it had come from a stranger."""
        for index in self.missing():
            size_bytes = chunk_size_bytes(self.ref.size_bytes, index)
            copied = known.copy_to(self._file.fileno(), index * CHUNK_BYTES, self.hashes[index], size_bytes)
            if copied and self._is_there(index):
                self._missing.discard(index)
                self.reused_bytes += size_bytes

    def write(self, index: int, chunk: bytes) -> None:
        """Keep one chunk. Raises ``ValueError`` if it is not the one that belongs there."""
        if len(chunk) != chunk_size_bytes(self.ref.size_bytes, index) or chunk_hash(chunk) != self.hashes[index]:
            raise ValueError("the chunk does not fit its hash")
        _write_at(self._file.fileno(), chunk, index * CHUNK_BYTES)
        self._missing.discard(index)

    def finish(self) -> Path:
        """Make it a blob."""
        assert not self._missing, "a blob was called complete while chunks are missing"
        _sync(self._file)
        path = self._store.finish(self)
        self.close()
        return path

    def close(self) -> None:
        """Stop for now; what was fetched stays for the next time, unless its room is needed."""
        if not self._file.closed:
            self._file.close()
            self._store.close_part(self.path)


class BlobWriter:
    """A blob whose bytes come in order, in pieces of any size. At most one chunk of it is in memory."""

    def __init__(self, store: BlobStore, path: Path, size_bytes: int, known: "Likeness") -> None:
        """Made by ``BlobStore.writer``."""
        self.path = path
        self.size_bytes = size_bytes
        self.reused_bytes = 0
        self._store = store
        self._known = known
        self._file = _create(path)
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
            _sync(self._file)
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
        if self._known.copy_to(descriptor, at, digest, len(data)) and _is_at(descriptor, at, data):
            self.reused_bytes += len(data)
        else:
            _write_at(descriptor, data, at)
        self._hashes.append(digest)
        self._chunk.clear()


class Likeness:
    """Where the chunks lie of blobs that a new one is like. Made while the store is locked; its files stay readable."""

    def __init__(self, store: BlobStore, like: Sequence[BlobRef]) -> None:
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
            _write_at(target, os.pread(file.fileno(), size_bytes, start), at)
        return True

    def close(self) -> None:
        """Nothing more is copied."""
        for file in self._files:
            file.close()


def _is_at(descriptor: int, at: int, data: bytes) -> bool:
    return os.pread(descriptor, len(data), at) == data


def _write_at(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _cut(data: bytes) -> Iterator[bytes]:
    if len(data) % HASH_BYTES:
        raise ValueError("not a whole number of hashes")
    return (data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
