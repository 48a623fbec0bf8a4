"""What was fetched for a run becomes directories: its code unpacked, its files linked or opened, its list read.

All of it is a stranger's, so it is bounded and checked, and what is wrong with it is said in words for its buyer.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from hansa.node.isolation.trees import link_or_copy
from hansa.node.storage.blob_shelf import BlobMissing
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.disk_faults import in_words, is_of_machine
from hansa.node.storage.file_lists import files_of, read_file_list
from hansa.node.storage.packages import unpack
from hansa.node.storage.sealed_blobs import COPY_BYTES, open_blob, read_blob
from hansa.node.storage.sealing import BlobKey, SealBroken
from hansa.proto.blob import BlobRef
from hansa.proto.errors import ProtocolError
from hansa.proto.workload import FILE_IMAGE, FILE_WHEEL, MAX_FILE_LIST_BYTES, ListedFile, Workload

LARGEST_UNPACKED_BYTES = 1 << 30


class Unstageable(Exception):
    """A run that cannot be started here, and why, in words for its buyer.

    Attributes:
        kind: what sort of failure that is to the buyer: its job's fault, or this provider's.
    """

    def __init__(self, why: str, kind: str = "bad-entry") -> None:
        """Keep both."""
        super().__init__(why)
        self.kind = kind


def stored(store: BlobStore, blob: BlobRef) -> Path:
    """The file of a blob that was fetched."""
    path = store.path(blob)
    if path is None:
        raise BlobMissing(blob)
    return path


def read_list(
    store: BlobStore, workload: Workload, shard: int, keys: Sequence[BlobKey] | None
) -> tuple[str, list[ListedFile]]:
    """The image to pull, and what of the list this shard needs; never more than the award was for."""
    assert workload.files is not None
    try:
        found = read_file_list(read_blob(store, workload.files, MAX_FILE_LIST_BYTES, keys), workload.shards)
    except (ProtocolError, ValueError, SealBroken) as fault:
        raise Unstageable(f"the list of the job's files cannot be read: {fault}") from fault
    listed = list(files_of(found, shard))
    if keys is not None and any(file.kind in (FILE_WHEEL, FILE_IMAGE) for file in listed):
        # What is made of them is kept here for the next job that brings the same, where anybody could look at it.
        raise Unstageable("a sealed job may bring no packages or images of its own")
    if sum(file.blob.size_bytes for file in listed) > workload.fetch_bytes:
        raise Unstageable("the job's files are larger than it said")
    return found.image, listed


def unpack_code(store: BlobStore, package: BlobRef, folder: Path, keys: Sequence[BlobKey] | None) -> None:
    """A run's folder, made anew with its code in it."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True, mode=0o711)
        with open_blob(store, package, keys) as archive:
            unpack(archive, folder / "code", limit_bytes=LARGEST_UNPACKED_BYTES)
    except BlobMissing:
        why = "the job's code was fetched and is gone again: this provider's blob quota is too small"
        raise Unstageable(why) from None
    except OSError as fault:
        if is_of_machine(fault):
            raise  # it is no fault of the job's that this disk is full
        raise Unstageable(f"the job's package cannot be unpacked: {in_words(fault)}") from fault
    except (ProtocolError, SealBroken) as fault:
        raise Unstageable(f"the job's package cannot be unpacked: {fault}") from fault


def lay_out(store: BlobStore, files: Sequence[ListedFile], directory: Path, keys: Sequence[BlobKey] | None) -> None:
    """A directory of hard links to the store's own files: nothing is copied, and nothing can be written through it.

    What is sealed is opened into files that go with the run. The sandbox mounts the directory read-only and runs as
    another user; the mode says so too.
    """
    directory.mkdir(mode=0o755)
    for file in files:
        target = directory / file.path
        source = store.path(file.blob)
        if source is None:
            raise Unstageable(
                "a file was fetched and is gone again: this provider's blob quota is too small", "refused"
            )
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if keys is None:
            link_or_copy(source, target)
        else:
            _open_into(store, file.blob, keys, target)


def _open_into(store: BlobStore, blob: BlobRef, keys: Sequence[BlobKey], target: Path) -> None:
    try:
        with open_blob(store, blob, keys) as source, target.open("xb") as opened:
            shutil.copyfileobj(source, opened, COPY_BYTES)
    except SealBroken as fault:
        raise Unstageable(f"one of the job's files cannot be opened: {fault}") from fault
    except BlobMissing:
        raise Unstageable("a file was fetched and is gone again", "refused") from None
