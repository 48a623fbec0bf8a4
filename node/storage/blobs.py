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

import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from hansa.node.storage.blob_files import chunks_in, create, cut_hashes, sync, sync_folder
from hansa.node.storage.blob_likeness import Likeness
from hansa.node.storage.blob_partial import Partial
from hansa.node.storage.blob_shelf import BlobMissing, BlobShelf, Entry
from hansa.node.storage.blob_writer import BlobWriter
from hansa.proto.blob import (
    CHUNK_BYTES,
    HASH_BYTES,
    BlobRef,
    chunk_count,
    chunk_hash,
    chunk_size_bytes,
    root_of,
)


class BlobStore(BlobShelf):
    """Blobs on disk."""

    # Writing.

    def put_bytes(self, data: bytes) -> BlobRef:
        """Keep these bytes."""
        return self._put(memoryview(data)[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))

    def writer(self, size_bytes: int, like: Sequence[BlobRef] = ()) -> BlobWriter:
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

    def finish_writing(self, writer: BlobWriter, hashes: Sequence[bytes]) -> BlobRef:
        """All bytes of a writer's file are there: make it a blob."""
        ref = BlobRef(root=root_of(writer.size_bytes, hashes), size_bytes=writer.size_bytes)
        with self._lock:
            self._reserved.pop(writer.path.name, None)
            if not self.has(ref):
                self._adopt(ref, writer.path, hashes)
            self._touch(ref)
        return ref

    def drop_writing(self, writer: BlobWriter) -> None:
        """Forget what was written, unless it became a blob."""
        with self._lock:
            self._reserved.pop(writer.path.name, None)
            writer.path.unlink(missing_ok=True)

    def new_file(self) -> Path:
        """Where a file may be written that is to become a blob; what is left there goes at the next start."""
        return self._new / secrets.token_hex(16)

    def take_file(self, path: Path) -> BlobRef:
        """Make a file that was written at ``new_file()`` a blob without copying it.

        Raises:
            NoRoom: the quota does not allow it; then it is left where it is.
        """
        with path.open("rb") as file:
            hashes = [chunk_hash(chunk) for chunk in chunks_in(file)]
            size_bytes = file.tell()
            sync(file)
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
            with create(temporary) as file:
                for chunk in chunks:
                    hashes.append(chunk_hash(bytes(chunk)))
                    size_bytes += len(chunk)
                    self.check_quota(size_bytes)
                    file.write(chunk)
                sync(file)
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
        with create(tree) as file:
            file.write(b"".join(hashes))
            sync(file)
        target = self._whole / str(ref)
        tree.rename(target.with_suffix(".tree"))
        complete.rename(target)
        sync_folder(self._whole)
        self._entries[str(ref)] = Entry(ref.size_bytes, time.time())

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
        return tuple(cut_hashes(self._read(ref, f"{ref}.tree", first * HASH_BYTES, count * HASH_BYTES)))

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
            hashes = tuple(cut_hashes(self._part(ref).with_name(f"{self._part(ref).name}.tree").read_bytes()))
            return hashes if root_of(ref.size_bytes, hashes) == ref.root else None
        except (OSError, ValueError):
            return None

    def begin(self, ref: BlobRef, hashes: Sequence[bytes], like: Sequence[BlobRef] = ()) -> Partial:
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
                with create(temporary) as file:
                    file.write(b"".join(hashes))
                    sync(file)
                temporary.rename(tree)
                sync_folder(self._parts)
            return Partial(self, ref, tuple(hashes), path, known)
        except OSError:
            if opened:
                self.close_part(path)
                self.discard_part(ref)
            raise
        finally:
            known.close()

    def finish(self, partial: Partial) -> Path:
        """All chunks are there: make the part file a blob."""
        with self._lock:
            self._adopt(partial.ref, partial.path, partial.hashes)
            self._release(partial.path)
            return self._whole / str(partial.ref)

    def discard_part(self, ref: BlobRef) -> None:
        """Give up a fetch and its bytes, unless somebody else goes on with it."""
        with self._lock:
            path = self._part(ref)
            if not self._open[path.name]:
                self._release(path)

    def _part(self, ref: BlobRef) -> Path:
        return self._parts / f"{ref}.{ref.size_bytes}"
