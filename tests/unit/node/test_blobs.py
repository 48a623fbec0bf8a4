"""The store of blobs: named by content, bounded, complete or absent, and resumable after any crash."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.node.storage import blob_shelf
from hansa.node.storage.blob_shelf import BlobMissing, NoRoom
from hansa.node.storage.blobs import BlobStore
from hansa.proto.blob import CHUNK_BYTES, BlobRef, blob_ref, chunk_count, chunk_hash, chunks_of, root_of

QUOTA = 64 << 20


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "blobs", quota_bytes=QUOTA)


def hashes_of(data: bytes) -> list[bytes]:
    return [chunk_hash(chunk) for chunk in chunks_of(data)]


@settings(max_examples=30)
@given(st.integers(0, 3), st.integers(-2, 2))
def test_a_root_names_content_and_size_together(chunks, beside):
    size = max(0, chunks * CHUNK_BYTES + beside)
    data = bytes(size)
    ref = blob_ref(data)
    assert ref.root == root_of(size, hashes_of(data))
    assert blob_ref(data + b"\0") != ref
    if size:
        assert blob_ref(b"\1" + data[1:]) != ref


def test_a_tree_that_does_not_fit_the_size_has_no_root():
    with pytest.raises(ValueError, match="number"):
        root_of(CHUNK_BYTES + 1, [bytes(32)])
    with pytest.raises(ValueError, match="32 bytes"):
        root_of(1, [bytes(31)])
    with pytest.raises(ValueError, match="range"):
        root_of(-1, [])


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
def test_what_is_put_comes_out_again_whole_and_by_chunks(store, size):
    data = os.urandom(size)
    ref = store.put_bytes(data)
    assert ref == blob_ref(data)
    assert store.read_bytes(ref, size) == data
    assert b"".join(store.read_chunk(ref, index) for index in range(chunk_count(size))) == data
    assert list(store.read_tree(ref, 0, 1000)) == hashes_of(data)
    assert store.size_bytes == size


def test_files_are_for_this_user_only_and_the_name_is_the_root(store):
    ref = store.put_bytes(b"secret")
    path = store.path(ref)
    assert path is not None
    assert path.name == ref.root.hex()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700


def test_a_blob_that_is_not_here_is_missing_and_one_of_another_size_is_another(store):
    ref = store.put_bytes(b"abc")
    for other in (BlobRef(root=bytes(32), size_bytes=3), BlobRef(root=ref.root, size_bytes=4)):
        assert store.path(other) is None
        with pytest.raises(BlobMissing):
            store.read_bytes(other, 10)
    with pytest.raises(BlobMissing):
        store.read_chunk(ref, 1)
    with pytest.raises(ValueError, match="at most 2"):
        store.read_bytes(ref, 2)


def test_over_the_quota_the_longest_unused_go_and_the_pinned_stay(tmp_path):
    store = BlobStore(tmp_path, quota_bytes=300)
    first, second, third = (store.put_bytes(bytes([n]) * 100) for n in range(3))
    store.pin(first, "a job")
    store.read_bytes(second, 100)
    fourth = store.put_bytes(b"x" * 100)
    assert [store.has(ref) for ref in (first, second, third, fourth)] == [True, True, False, True]
    assert store.evicted == 1
    with pytest.raises(NoRoom):
        store.put_bytes(b"y" * 201)
    assert store.has(second), "a blob that does not fit evicts nothing"
    store.unpin(first, "another job")
    store.unpin(first, "a job")
    store.put_bytes(b"y" * 300)
    assert store.size_bytes == 300


def test_pins_and_blobs_are_there_after_a_restart(tmp_path):
    store = BlobStore(tmp_path, quota_bytes=100)
    ref = store.put_bytes(b"x" * 60)
    store.pin(ref, "a job")
    again = BlobStore(tmp_path, quota_bytes=100)
    assert again.read_bytes(ref, 60) == b"x" * 60
    with pytest.raises(NoRoom):
        again.put_bytes(b"y" * 60)


def test_a_half_written_file_is_cleared_away_and_a_blob_without_its_tree_is_not_believed_in(tmp_path):
    store = BlobStore(tmp_path, quota_bytes=QUOTA)
    ref = store.put_bytes(b"abc")
    (tmp_path / "new" / "half").write_bytes(b"...")
    path = store.path(ref)
    assert path is not None
    path.with_suffix(".tree").unlink()
    again = BlobStore(tmp_path, quota_bytes=QUOTA)
    assert not list((tmp_path / "new").iterdir())
    assert not again.has(ref)


def test_chunks_come_in_any_order_and_only_the_right_ones(store):
    data = os.urandom(2 * CHUNK_BYTES + 5)
    ref, chunks = blob_ref(data), list(chunks_of(data))
    partial = store.begin(ref, hashes_of(data))
    for index, wrong in ((0, chunks[1]), (2, chunks[2] + b"x"), (2, b""), (1, bytes(CHUNK_BYTES))):
        with pytest.raises(ValueError, match="does not fit"):
            partial.write(index, wrong)
    for index in (2, 0, 1):
        assert not store.has(ref)
        partial.write(index, chunks[index])
    assert partial.finish().read_bytes() == data
    assert store.has(ref)
    assert store.size_bytes == len(data)


def test_a_tree_that_does_not_make_the_root_starts_nothing(store):
    with pytest.raises(ValueError, match="do not make the root"):
        store.begin(blob_ref(b"abc"), [bytes(32)])
    assert store.size_bytes == 0


def test_a_fetch_reserves_its_room_before_the_first_byte_and_gives_it_back(tmp_path):
    store = BlobStore(tmp_path, quota_bytes=100)
    data = b"z" * 80
    partial = store.begin(blob_ref(data), hashes_of(data))
    with pytest.raises(NoRoom):
        store.put_bytes(b"y" * 30)
    assert BlobStore(tmp_path, quota_bytes=100).size_bytes == 80
    store.discard_part(blob_ref(data))
    assert store.size_bytes == 80, "another still fetches it"
    partial.close()
    store.discard_part(blob_ref(data))
    assert store.size_bytes == 0
    store.put_bytes(b"y" * 30)


def test_what_was_broken_off_makes_room_for_others_the_oldest_first_unless_it_is_pinned(tmp_path):
    store = BlobStore(tmp_path, quota_bytes=100)
    broken = [bytes([number]) * 30 for number in range(3)]
    for number, data in enumerate(broken):
        partial = store.begin(blob_ref(data), hashes_of(data))
        partial.close()
        partial.close()
        os.utime(partial.path, (1_000 + number, 1_000 + number))
    store.pin(blob_ref(broken[0]), "wanted")
    store.put_bytes(b"y" * 20)
    assert store.tree_of_part(blob_ref(broken[1])) is None
    assert [store.tree_of_part(blob_ref(data)) is not None for data in broken] == [True, False, True]
    going_on = store.begin(blob_ref(broken[2]), hashes_of(broken[2]))
    with pytest.raises(NoRoom):
        store.put_bytes(b"x" * 50)
    going_on.close()
    store.put_bytes(b"x" * 50)
    with pytest.raises(NoRoom):
        store.put_bytes(b"w" * 80)
    store.unpin(blob_ref(broken[0]), "wanted")
    again = BlobStore(tmp_path, quota_bytes=100)
    again.put_bytes(b"w" * 80)
    assert not list((tmp_path / "part").iterdir())


def test_a_fetch_goes_on_where_it_stopped_and_trusts_no_chunk_on_disk(store):
    data = os.urandom(4 * CHUNK_BYTES)
    ref, chunks = blob_ref(data), list(chunks_of(data))
    partial = store.begin(ref, hashes_of(data))
    partial.write(0, chunks[0])
    partial.write(2, chunks[2])
    partial.close()
    with partial.path.open("r+b") as file:
        file.seek(2 * CHUNK_BYTES)
        file.write(b"rot")
    tree = store.tree_of_part(ref)
    assert tree == tuple(hashes_of(data))
    resumed = store.begin(ref, tree)
    assert resumed.missing() == [1, 2, 3]
    resumed.close()


FETCHER = """
import sys
from pathlib import Path
from hansa.node.storage.blobs import BlobStore
from hansa.proto.blob import CHUNK_BYTES, blob_ref, chunk_hash, chunks_of
data = bytes(CHUNK_BYTES) * 64
data = b"".join(n.to_bytes(8, "big") + data[:CHUNK_BYTES - 8] for n in range(64))
store = BlobStore(Path(sys.argv[1]), quota_bytes=1 << 30)
hashes = [chunk_hash(chunk) for chunk in chunks_of(data)]
partial = store.begin(blob_ref(data), hashes)
print("missing", len(partial.missing()), flush=True)
for index in partial.missing():
    partial.write(index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    print(index, flush=True)
partial.finish()
print("done", flush=True)
"""


def test_kill_9_in_the_middle_of_a_fetch_loses_no_chunk_that_was_written(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", FETCHER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(10)]
    assert lines[0] == "missing 64\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines += process.stdout.readlines()
    process.stdout.close()
    written = sum(line.strip().isdigit() for line in lines)
    rerun = subprocess.run([sys.executable, "-c", FETCHER, tmp_path], stdout=subprocess.PIPE, text=True, check=True)
    missing = int(rerun.stdout.split()[1])
    assert 64 - written - 1 <= missing <= 64 - written
    assert rerun.stdout.endswith("done\n")


def test_a_part_that_nobody_goes_on_with_is_forgotten_after_a_week(tmp_path):
    store = BlobStore(tmp_path, quota_bytes=100)
    ref = blob_ref(b"z" * 80)
    partial = store.begin(ref, hashes_of(b"z" * 80))
    partial.close()
    old = time.time() - 8 * 86_400
    os.utime(partial.path, (old, old))
    again = BlobStore(tmp_path, quota_bytes=100)
    assert again.size_bytes == 0
    assert not list((tmp_path / "part").iterdir())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 700_000), max_size=8))
def test_a_blob_written_bit_by_bit_is_the_same_as_one_kept_at_once(sizes):
    data = b"".join(bytes([number + 1]) * size for number, size in enumerate(sizes))
    with tempfile.TemporaryDirectory() as directory:
        store = BlobStore(Path(directory), quota_bytes=1 << 30)
        writer = store.writer(len(data))
        at = 0
        for size in sizes:
            writer.write(data[at : at + size])
            at += size
        ref = writer.finish()
        assert ref == blob_ref(data)
        assert store.read_bytes(ref, len(data)) == data
        assert store.read_tree(ref, 0, 99) == tuple(chunk_hash(chunk) for chunk in chunks_of(data))
        assert store.size_bytes == len(data)
        assert list((Path(directory) / "new").iterdir()) == []


def test_a_blob_that_is_being_written_has_its_room_kept_and_gives_it_back(tmp_path):
    store = BlobStore(tmp_path, quota_bytes=100)
    writer = store.writer(60)
    with pytest.raises(NoRoom):
        store.writer(41)
    with pytest.raises(NoRoom):
        store.put_bytes(bytes(41))
    writer.write(bytes(30))
    writer.drop()
    assert store.size_bytes == 0
    assert list((tmp_path / "new").iterdir()) == []
    store.writer(100).drop()


def test_a_blob_is_neither_longer_nor_shorter_than_was_said(tmp_path):
    store = BlobStore(tmp_path, quota_bytes=100)
    writer = store.writer(3)
    writer.write(b"ab")
    with pytest.raises(ValueError, match="fewer"):
        writer.finish()
    with pytest.raises(ValueError, match="more"):
        writer.write(b"cd")
    writer.write(b"c")
    assert store.has(writer.finish())


def test_a_blob_that_is_known_may_be_written_again(tmp_path):
    store = BlobStore(tmp_path, quota_bytes=100)
    known = store.put_bytes(b"abc")
    writer = store.writer(3)
    writer.write(b"abc")
    assert writer.finish() == known
    assert store.size_bytes == 3
    assert list((tmp_path / "new").iterdir()) == []


def test_a_blob_can_be_read_to_its_end_although_it_is_evicted_meanwhile(tmp_path):
    store = BlobStore(tmp_path, quota_bytes=100)
    ref = store.put_bytes(b"abc")
    with store.reader(ref) as file:
        store.delete(ref)
        assert file.read() == b"abc"
    with pytest.raises(BlobMissing):
        store.reader(ref)


def changed_at(data: bytes, index: int) -> bytes:
    """The data with one byte of one chunk changed."""
    at = index * CHUNK_BYTES + 5
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def written(store: BlobStore, data: bytes, like: list[BlobRef], piece: int = 300_000) -> tuple[BlobRef, int]:
    """What a writer makes of the data, and how much of it was there already."""
    writer = store.writer(len(data), like)
    for at in range(0, len(data), piece):
        writer.write(data[at : at + piece])
    return writer.finish(), writer.reused_bytes


def test_a_fetch_asks_only_for_the_chunks_that_a_like_blob_does_not_have(store):
    before = os.urandom(4 * CHUNK_BYTES + 9)
    after = changed_at(before, 2)
    old = store.put_bytes(before)
    partial = store.begin(blob_ref(after), hashes_of(after), [old])
    assert partial.missing() == [2]
    assert partial.reused_bytes == 3 * CHUNK_BYTES + 9
    partial.write(2, after[2 * CHUNK_BYTES : 3 * CHUNK_BYTES])
    assert partial.finish().read_bytes() == after
    assert store.read_bytes(old, len(before)) == before


def test_chunks_that_moved_to_another_place_are_found_there(store):
    first, second = os.urandom(CHUNK_BYTES), os.urandom(CHUNK_BYTES)
    old = store.put_bytes(first + second)
    swapped = second + first + second
    partial = store.begin(blob_ref(swapped), hashes_of(swapped), [old])
    assert partial.missing() == []
    assert partial.finish().read_bytes() == swapped


def test_what_is_reused_is_checked_as_if_it_had_come_from_a_stranger(store):
    before = os.urandom(3 * CHUNK_BYTES)
    old = store.put_bytes(before)
    path = store.path(old)
    assert path is not None
    path.write_bytes(changed_at(before, 1))  # the disk went bad, or somebody was at it
    after = before + b"more"
    partial = store.begin(blob_ref(after), hashes_of(after), [old])
    assert partial.missing() == [1, 3]
    partial.close()
    ref, reused_bytes = written(store, after, [old])
    assert ref == blob_ref(after)
    assert reused_bytes == 2 * CHUNK_BYTES
    assert store.read_bytes(ref, len(after)) == after


def test_a_tree_that_claims_equal_chunks_gets_nothing_but_what_its_root_names(store):
    mine = os.urandom(2 * CHUNK_BYTES)
    old = store.put_bytes(mine)
    other = os.urandom(2 * CHUNK_BYTES)
    with pytest.raises(ValueError, match="do not make the root"):
        store.begin(blob_ref(other), hashes_of(mine), [old])
    assert store.size_bytes == len(mine)


def test_a_writer_reuses_what_a_like_blob_has(store):
    before = os.urandom(3 * CHUNK_BYTES + 100)
    old = store.put_bytes(before)
    after = changed_at(before, 0)
    assert written(store, after, [old]) == (blob_ref(after), 2 * CHUNK_BYTES + 100)
    assert store.read_bytes(blob_ref(after), len(after)) == after


def test_a_like_blob_that_is_not_here_is_no_fault_and_one_that_is_evicted_is_read_to_its_end(tmp_path):
    small = BlobStore(tmp_path / "small", quota_bytes=3 * CHUNK_BYTES)
    before = os.urandom(2 * CHUNK_BYTES)
    old = small.put_bytes(before)
    after = changed_at(before, 1)
    partial = small.begin(blob_ref(after), hashes_of(after), [old, blob_ref(b"not here")])
    assert not small.has(old)
    assert partial.missing() == [1]
    partial.close()
    small.discard_part(blob_ref(after))
    assert small.size_bytes == 0


def test_a_file_system_that_cannot_copy_between_files_has_them_copied_by_hand(store, monkeypatch):
    before = os.urandom(2 * CHUNK_BYTES)
    old = store.put_bytes(before)

    def cannot(*_: object) -> int:
        raise OSError(errno.EXDEV, "not here")

    monkeypatch.setattr(os, "copy_file_range", cannot)
    after = changed_at(before, 0)
    assert written(store, after, [old]) == (blob_ref(after), CHUNK_BYTES)
    partial = store.begin(blob_ref(after + b"x"), hashes_of(after + b"x"), [old])
    assert partial.missing() == [0, 2]
    partial.close()


def test_a_writer_for_which_there_is_no_room_leaves_nothing_open(tmp_path):
    small = BlobStore(tmp_path / "small", quota_bytes=CHUNK_BYTES)
    old = small.put_bytes(b"old")
    small.pin(old, "test")
    with pytest.raises(NoRoom):
        small.writer(CHUNK_BYTES, [old])
    with pytest.raises(NoRoom):
        small.begin(blob_ref(bytes(CHUNK_BYTES)), hashes_of(bytes(CHUNK_BYTES)), [old])
    assert [path for path in Path("/proc/self/fd").iterdir() if str(small.directory) in os.path.realpath(path)] == []


def test_what_was_replaced_is_deleted_once_nothing_holds_it_and_nobody_reads_it(store):
    old, new, other = (store.put_bytes(data) for data in (b"old", b"new", b"other"))
    store.retain([old, other], "checkpoints", 0.0)
    store.pin(other, "an output too")
    store.retain([new], "checkpoints", 3600.0)
    assert store.has(old), "somebody may still read it"
    store.retain([new], "checkpoints", 0.0)
    assert [store.has(ref) for ref in (old, new, other)] == [False, True, True]
    store.unpin(other, "an output too")
    store.retain([new], "checkpoints", 0.0)
    assert store.has(other), "it was held for another reason since, and is let go as that is"


def test_what_comes_to_be_the_newest_again_is_kept(store):
    old, new = (store.put_bytes(data) for data in (b"old", b"new"))
    for newest in ([old], [new], [old]):
        store.retain(newest, "checkpoints", 3600.0)
    store.retain([old], "checkpoints", 0.0)
    assert store.has(old)
    assert not store.has(new)


def test_what_was_replaced_makes_room_at_once_and_the_newest_never_does(tmp_path):
    small = BlobStore(tmp_path / "small", quota_bytes=10)
    old, new = (small.put_bytes(data) for data in (b"1234", b"5678"))
    small.retain([old], "checkpoints", 3600.0)
    small.retain([new], "checkpoints", 3600.0)
    small.put_bytes(b"12345")
    assert not small.has(old)
    with pytest.raises(NoRoom):
        small.put_bytes(b"1234567")
    assert small.has(new)


def test_what_was_held_before_a_restart_is_deleted_after_it(tmp_path):
    first = BlobStore(tmp_path / "blobs", quota_bytes=QUOTA)
    old, new = (first.put_bytes(data) for data in (b"old", b"new"))
    first.retain([old], "checkpoints", 0.0)
    again = BlobStore(tmp_path / "blobs", quota_bytes=QUOTA)
    again.retain([new], "checkpoints", 0.0)
    assert not again.has(old)


def test_a_disk_that_takes_no_notes_is_still_read(store, monkeypatch):
    ref = store.put_bytes(b"data")

    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", read_only)
    path = store.path(ref)
    assert path is not None
    assert path.read_bytes() == b"data"


def test_a_part_that_cannot_be_removed_goes_on_being_counted(store, monkeypatch):
    data = os.urandom(CHUNK_BYTES)
    store.begin(blob_ref(data), hashes_of(data)).close()

    def broken(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", broken)
        with pytest.raises(OSError, match="Input/output"):
            store.discard_part(blob_ref(data))
    assert store.size_bytes == CHUNK_BYTES
    store.discard_part(blob_ref(data))
    assert store.size_bytes == 0


def test_pins_that_could_not_be_written_are_written_the_next_time(store, monkeypatch):
    ref = store.put_bytes(b"data")

    def full(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(blob_shelf, "create", full)
        with pytest.raises(OSError, match="Too many"):
            store.pin_exactly({ref}, "state")
    store.pin_exactly({ref}, "state")
    assert BlobStore(store.directory, quota_bytes=QUOTA)._pins == {str(ref): ["state"]}


@pytest.mark.parametrize("content", [b"", b"{", bytes(64), b"[]", b'{"a": 3}', b"\xff"])
def test_a_list_of_pins_that_a_power_cut_damaged_keeps_no_node_from_starting(tmp_path: Path, content: bytes) -> None:
    store = BlobStore(tmp_path, quota_bytes=1 << 20)
    ref = store.put_bytes(b"a checkpoint")
    store.pin(ref, "state")
    (tmp_path / "pins.json").write_bytes(content)
    again = BlobStore(tmp_path, quota_bytes=1 << 20)
    assert again.read_bytes(ref, 100) == b"a checkpoint"
    again.pin_exactly([ref], "state")
    assert json.loads((tmp_path / "pins.json").read_bytes()) == {str(ref): ["state"]}
