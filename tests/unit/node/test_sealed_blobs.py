"""The store seen with keys: nothing but sealed bytes reaches the disk, and what comes out is what went in."""

from pathlib import Path

import pytest

from hansa.node.storage.blob_shelf import BlobMissing, NoRoom
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.sealed_blobs import SealedBlobs, fault_in, open_blob, opened_file, pieces_of, read_blob
from hansa.node.storage.sealing import SealBroken, new_content_key, seal
from hansa.proto.blob import BlobRef
from hansa.proto.sealed import SEGMENT_BYTES, sealed_size_bytes

CONTENT = new_content_key()
KEYS = CONTENT.of_shard(1)
WORDS = b"nobody is to find these words " * 10_000


def everything_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path, quota_bytes=4 << 20)


def written(store: BlobStore, data: bytes, piece: int = 10_000) -> BlobRef:
    writer = SealedBlobs(store, KEYS).writer(len(data))
    for at in range(0, len(data), piece):
        writer.write(data[at : at + piece])
    if not data:
        writer.write(b"")
    ref = writer.finish()
    writer.drop()
    return ref


@pytest.mark.parametrize("size_bytes", [0, 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, len(WORDS)])
def test_what_a_run_writes_lies_sealed_and_is_read_as_it_was(store: BlobStore, size_bytes: int) -> None:
    ref = written(store, WORDS[:size_bytes])
    assert ref.size_bytes == sealed_size_bytes(size_bytes)
    assert b"nobody" not in everything_in(store.directory)
    with SealedBlobs(store, KEYS).reader(ref) as file:
        assert file.read() == WORDS[:size_bytes]
    assert read_blob(store, ref, size_bytes, KEYS.both) == WORDS[:size_bytes]
    assert b"".join(pieces_of(store, ref, KEYS.both)) == WORDS[:size_bytes]


def test_nothing_of_a_blob_that_is_given_up_stays(store: BlobStore) -> None:
    writer = SealedBlobs(store, KEYS).writer(len(WORDS))
    writer.write(WORDS[:200_000])
    assert b"nobody" not in everything_in(store.directory)
    writer.drop()
    assert everything_in(store.directory) == b""
    assert store.size_bytes == 0


def test_its_room_is_kept_with_what_sealing_adds(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, quota_bytes=sealed_size_bytes(1000) - 1)
    with pytest.raises(NoRoom):
        SealedBlobs(store, KEYS).writer(1000)
    SealedBlobs(store, KEYS).writer(999).drop()


def test_a_shard_reads_its_own_and_what_is_for_all_and_no_other_shards(store: BlobStore) -> None:
    shared, own, others = (
        store.put_bytes(seal(key, b"data")) for key in (CONTENT.shared, CONTENT.own(1), CONTENT.own(2))
    )
    blobs = SealedBlobs(store, KEYS)
    assert blobs.reader(shared).read() == blobs.reader(own).read() == b"data"
    with pytest.raises(SealBroken, match="another key"):
        blobs.reader(others)
    with pytest.raises(BlobMissing):
        blobs.reader(BlobRef(root=bytes(32), size_bytes=100))


def test_without_keys_it_is_the_store_itself(store: BlobStore) -> None:
    ref = store.put_bytes(WORDS)
    with open_blob(store, ref, None) as file:
        assert file.read() == WORDS
    assert read_blob(store, ref, len(WORDS), None) == WORDS
    with pytest.raises(ValueError, match="at most 10"):
        read_blob(store, ref, 10, None)


def test_a_limit_is_one_on_what_was_sealed(store: BlobStore) -> None:
    ref = written(store, b"x" * 1000)
    assert len(read_blob(store, ref, 1000, KEYS.both)) == 1000
    with pytest.raises(ValueError, match="a blob of 1000 bytes"):
        read_blob(store, ref, 999, KEYS.both)


def test_whether_all_of_a_blob_can_be_opened_is_said_in_words(store: BlobStore) -> None:
    sealed = bytearray(seal(CONTENT.own(1), WORDS))
    assert fault_in(store, store.put_bytes(bytes(sealed)), KEYS.both) == ""
    sealed[-1] ^= 1
    assert fault_in(store, store.put_bytes(bytes(sealed)), KEYS.both) == "it was changed or cut short"
    assert fault_in(store, store.put_bytes(WORDS), KEYS.both) == "it is not sealed"


def test_what_must_be_read_as_a_file_is_one_without_a_name(store: BlobStore) -> None:
    ref = written(store, WORDS)
    with opened_file(store, ref, KEYS.both, store.directory) as path:
        assert path.stat().st_size == len(WORDS)
        assert path.read_bytes() == WORDS
        named = [found for found in store.directory.rglob("*") if found.is_file() and found.read_bytes() == WORDS]
        assert named == []
    assert b"nobody" not in everything_in(store.directory)
