"""A list of files is a stranger's: what it may name, who gets what, and how much that weighs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.file_lists import FileLists, files_of, heaviest_bytes, read_file_list
from hansa.proto.blob import MAX_BLOB_BYTES, BlobRef, blob_ref
from hansa.proto.codec import encode
from hansa.proto.errors import Malformed, ProtocolError, TooLarge
from hansa.proto.workload import MAX_FILE_LIST_BYTES, FileList, ListedFile

SHARDS = 3
DATA, OTHER = blob_ref(b"data"), blob_ref(b"other data")


def a_file(path: str, *shards: int, kind: str = "input", blob: BlobRef = DATA) -> ListedFile:
    return ListedFile(kind=kind, path=path, blob=blob, shards=shards)


def a_list(*files: ListedFile, image: str = "") -> FileList:
    return FileList(image=image, files=files)


def read(files: FileList) -> FileList:
    return read_file_list(encode(files), SHARDS)


SOUND = a_list(
    a_file("image.tar", kind="image"),
    a_file("all"),
    a_file("own", 0, blob=OTHER),
    a_file("own", 1, 2),
    a_file("tree/deep/x"),
    a_file("hansa.lock", kind="lock"),
    a_file("a-1-py3-none-any.whl", kind="wheel"),
)


def test_a_sound_list_comes_back_as_it_was_written() -> None:
    assert read(SOUND) == SOUND
    pinned = "docker.io/library/python@sha256:" + "ab" * 32
    assert read(a_list(image=pinned)).image == pinned


def test_names_bring_no_more_directories_than_a_list_may_hold_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hansa.node.storage.file_lists.MOST_DIRECTORIES", 300)
    deep = "/d" * 100
    assert read(a_list(*(a_file(f"{number}{deep}/x") for number in range(2))))
    with pytest.raises(TooLarge, match="more than 300 directories"):
        read(a_list(*(a_file(f"{number}{deep}/x") for number in range(3))))
    assert read(a_list(*(a_file(f"a{deep}/{number:03}") for number in range(400)))), "shared ones count once"


def test_a_shard_gets_its_own_files_and_those_of_all() -> None:
    assert [file.path for file in files_of(SOUND, 1) if file.kind == "input"] == ["all", "own", "tree/deep/x"]
    assert [file.blob for file in files_of(SOUND, 0) if file.path == "own"] == [OTHER]


def test_the_heaviest_shard_is_what_a_provider_may_have_to_fetch() -> None:
    listed = a_list(a_file("all"), a_file("own", 0, blob=OTHER), a_file("own", 1))
    assert heaviest_bytes(listed, SHARDS) == DATA.size_bytes + OTHER.size_bytes


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ([a_file("../up")], "leads elsewhere"),
        ([a_file("/etc/passwd")], "leads elsewhere"),
        ([a_file("a//b")], "leads elsewhere"),
        ([a_file("a\nb")], "leads elsewhere"),
        ([a_file("b"), a_file("a")], "order"),
        ([a_file("a"), a_file("a")], "twice"),
        ([a_file("a"), a_file("a", 1)], "two files of one name"),
        ([a_file("a", 0, 1), a_file("a", 1)], "two files of one name"),
        ([a_file("a", 0), a_file("a/b", 1)], "a file and for a directory"),
        ([a_file("a"), a_file("a-"), a_file("a/b/c")], "a file and for a directory"),
        ([a_file("a", 3)], "shards that are none"),
        ([a_file("a", 1, 0)], "shards that are none"),
        ([a_file("a", kind="key")], "unknown kind"),
        ([a_file("x.lock", kind="lock"), a_file("y.lock", kind="lock")], "more than one"),
        ([a_file("x.tar", kind="image"), a_file("y.tar", kind="image")], "more than one"),
        ([a_file("d/x.whl", kind="wheel")], "in a directory"),
        ([a_file("x.whl", 0, kind="wheel")], "for some shards only"),
        ([a_file("x.tar.gz", kind="wheel")], "a wheel that is none"),
        ([a_file("a", blob=BlobRef(root=bytes(32), size_bytes=MAX_BLOB_BYTES + 1))], "larger than any blob"),
    ],
)
def test_what_must_not_be_in_a_list_is_refused(files: list[ListedFile], why: str) -> None:
    with pytest.raises(Malformed, match=why):
        read(a_list(*files))


@pytest.mark.parametrize("image", ["python", "python:3.11", "docker.io/library/python:3.11", "x/y@sha256:ab", "-x/y@"])
def test_an_image_is_named_by_its_digest_or_not_at_all(image: str) -> None:
    with pytest.raises(Malformed, match="names an image"):
        read(a_list(image=image))


def test_an_image_comes_from_one_place() -> None:
    with pytest.raises(Malformed, match="more than one"):
        read(a_list(a_file("i.tar", kind="image"), image="docker.io/library/python@sha256:" + "ab" * 32))


def test_a_list_that_is_too_long_is_not_even_looked_at() -> None:
    with pytest.raises(TooLarge):
        read_file_list(bytes(MAX_FILE_LIST_BYTES + 1), SHARDS)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_list_or_a_fault_of_the_peer(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_file_list(data, SHARDS)


@given(st.data())
def test_whatever_is_changed_in_a_list_no_shard_ever_gets_two_files_of_one_name(data: Any) -> None:
    names = st.sampled_from(["a", "a/b", "a/b/c", "b", "a.b", "b/c"])
    shards = st.lists(st.integers(0, SHARDS - 1), max_size=2).map(lambda found: tuple(sorted(set(found))))
    files = data.draw(st.lists(st.builds(lambda path, own: a_file(path, *own), names, shards), max_size=5))
    try:
        taken = read(a_list(*sorted(files, key=lambda file: (file.kind, file.path, file.shards))))
    except ProtocolError:
        return
    for shard in range(SHARDS):
        paths = [file.path for file in files_of(taken, shard)]
        assert len(set(paths)) == len(paths)
        assert not any(other.startswith(path + "/") for path in paths for other in paths)


def test_lists_are_read_once_and_known_by_who_may_have_what(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", quota_bytes=1 << 20)
    listed = a_list(a_file("all", blob=blob_ref(b"all")), a_file("own", 0, blob=OTHER), a_file("own", 1))
    ref = store.put_bytes(encode(listed))
    lists = FileLists(store)
    assert lists.blobs(ref) == frozenset()
    assert not lists.is_for(ref, OTHER, 0)
    lists.load(ref, SHARDS)
    store.delete(ref)
    lists.load(ref, SHARDS)
    assert lists.blobs(ref) == {blob_ref(b"all"), OTHER, DATA}
    assert [lists.is_for(ref, blob_ref(b"all"), shard) for shard in range(3)] == [True, True, True]
    assert [lists.is_for(ref, OTHER, shard) for shard in range(3)] == [True, False, False]
    assert not lists.is_for(ref, blob_ref(b"unlisted"), 0)
    lists.keep_only([])
    assert lists.blobs(ref) == frozenset()


def test_a_blob_that_is_listed_for_some_and_for_all_is_for_all(tmp_path: Path) -> None:
    lists = FileLists(BlobStore(tmp_path / "blobs", quota_bytes=1 << 20))
    lists.keep(DATA, a_list(a_file("a", 0), replace(a_file("b"), blob=DATA), a_file("c", 1)))
    assert all(lists.is_for(DATA, DATA, shard) for shard in range(3))
