"""The list of the files that a job brings beside its package: read strictly, checked, and asked who needs what.

A list is a blob of its own that the workload names. It comes from a stranger, on both sides: a provider's staging and
the buyer's own daemon read it with the same function, so what a buyer may submit is what a provider will take.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from hansa.node.storage.blob_shelf import BlobMissing
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.sealed_blobs import read_blob
from hansa.node.storage.sealing import BlobKey, SealBroken
from hansa.proto.blob import MAX_BLOB_BYTES, BlobRef
from hansa.proto.codec import decode
from hansa.proto.errors import Malformed, ProtocolError, TooLarge
from hansa.proto.frames import is_safe_path
from hansa.proto.workload import (
    FILE_IMAGE,
    FILE_INPUT,
    FILE_LOCK,
    FILE_WHEEL,
    MAX_FILE_LIST_BYTES,
    MAX_FILES,
    FileList,
    ListedFile,
)

MOST_DIRECTORIES = MAX_FILES
KINDS = (FILE_IMAGE, FILE_INPUT, FILE_LOCK, FILE_WHEEL)
IMAGE_REFERENCE = re.compile(
    r"[a-z0-9][a-z0-9.:-]{0,200}(/[a-z0-9][a-z0-9._-]{0,200}){1,8}@sha256:[0-9a-f]{64}", re.ASCII
)
"""A registry, a path and a digest; never a tag, which may mean something else tomorrow."""


def read_file_list(data: bytes, shards: int) -> FileList:
    """A file list of a job with so many shards, with everything that can be checked without the files themselves.

    Raises:
        ProtocolError: it is none, or names something that must not be.
    """
    found: FileList = decode(data, FileList, limit_bytes=MAX_FILE_LIST_BYTES)
    if found.image and not IMAGE_REFERENCE.fullmatch(found.image):
        raise Malformed("files", "names an image in another way than registry/name@sha256:digest")
    keys = [(file.kind, file.path, file.shards) for file in found.files]
    if any(before >= after for before, after in pairwise(keys)):
        raise Malformed("files", "is not in the order of kind and path, or names a file twice")
    for file in found.files:
        _check_file(file, shards)
    kinds = [file.kind for file in found.files]
    if kinds.count(FILE_LOCK) > 1 or kinds.count(FILE_IMAGE) + bool(found.image) > 1:
        raise Malformed("files", "holds more than one lock or image")
    _check_paths(found.files)
    return found


def _check_file(file: ListedFile, shards: int) -> None:
    if file.kind not in KINDS:
        raise Malformed("files", "holds a file of an unknown kind")
    if not is_safe_path(file.path):
        raise Malformed("files", "holds a path that leads elsewhere")
    if file.blob.size_bytes > MAX_BLOB_BYTES:
        raise Malformed("files", "holds a file that is larger than any blob")
    if list(file.shards) != sorted(set(file.shards)) or any(shard >= shards for shard in file.shards):
        raise Malformed("files", "holds a file for shards that are none")
    if file.kind != FILE_INPUT and (file.shards or "/" in file.path):
        raise Malformed("files", "holds a lock, wheel or image in a directory, or for some shards only")
    if file.kind == FILE_WHEEL and not file.path.endswith(".whl"):
        raise Malformed("files", "holds a wheel that is none")


def _check_paths(files: Iterable[ListedFile]) -> None:
    """No shard gets two files of one name, and no path is a file for one and a directory for another."""
    taken: dict[tuple[str, str], set[int] | None] = {}
    for file in files:
        key = (file.kind, file.path)
        if key not in taken:
            taken[key] = set(file.shards) or None
            continue
        others = taken[key]
        if others is None or not file.shards or others & set(file.shards):
            raise Malformed("files", "gives a shard two files of one name")
        others.update(file.shards)
    directories: set[str] = set()
    for kind, path in taken:
        parent = path.rpartition("/")[0]
        while parent and parent not in directories:
            if (kind, parent) in taken:
                raise Malformed("files", "uses one name for a file and for a directory")
            directories.add(parent)
            parent = parent.rpartition("/")[0]
        if len(directories) > MOST_DIRECTORIES:  # a name of 256 letters may bring 127 of them
            raise TooLarge("files", f"more than {MOST_DIRECTORIES} directories")


def files_of(files: FileList, shard: int) -> Iterator[ListedFile]:
    """What one shard needs."""
    return (file for file in files.files if not file.shards or shard in file.shards)


def heaviest_bytes(files: FileList, shards: int) -> int:
    """The most that the files of one shard weigh together."""
    for_all = sum(file.blob.size_bytes for file in files.files if not file.shards)
    own = [0] * shards
    for file in files.files:
        for shard in file.shards:
            own[shard] += file.blob.size_bytes
    return for_all + max(own)


class FileLists:
    """The lists of this buyer's jobs, read once each: who may fetch what is asked for every chunk."""

    def __init__(self, store: BlobStore) -> None:
        """The lists lie in this store."""
        self._store = store
        self._known: dict[BlobRef, dict[bytes, frozenset[int] | None]] = {}
        self._blobs: dict[BlobRef, frozenset[BlobRef]] = {}

    def load(self, ref: BlobRef, shards: int, keys: Sequence[BlobKey] | None = None) -> None:
        """Read a job's list from the store, if it is there and was not read yet. Blocks."""
        if ref in self._known:
            return
        try:
            self.keep(ref, read_file_list(read_blob(self._store, ref, MAX_FILE_LIST_BYTES, keys), shards))
        except (BlobMissing, SealBroken, ValueError, ProtocolError):
            return

    def keep(self, ref: BlobRef, files: FileList) -> None:
        """Know a list that has been read."""
        takers: dict[bytes, frozenset[int] | None] = {}
        for file in files.files:
            before = takers.get(file.blob.root, frozenset())
            takers[file.blob.root] = None if before is None or not file.shards else before | set(file.shards)
        self._known[ref] = takers
        self._blobs[ref] = frozenset(file.blob for file in files.files)

    def keep_only(self, refs: Iterable[BlobRef]) -> None:
        """Forget the lists of jobs that are over."""
        wanted = set(refs)
        for ref in [ref for ref in self._known if ref not in wanted]:
            del self._known[ref], self._blobs[ref]

    def blobs(self, ref: BlobRef) -> frozenset[BlobRef]:
        """Everything that a list names."""
        return self._blobs.get(ref, frozenset())

    def is_for(self, ref: BlobRef, blob: BlobRef, shard: int) -> bool:
        """Whether a shard needs this blob, by the list."""
        takers = self._known.get(ref, {})
        if blob.root not in takers:
            return False
        shards = takers[blob.root]
        return shards is None or shard in shards
