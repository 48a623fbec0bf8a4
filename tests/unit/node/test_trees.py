"""Trees come into place whole, are shared, bounded, and never taken from under a run."""

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hansa.node.isolation.build_room import TooDeep, tree_size
from hansa.node.isolation.tree_removal import remove_tree
from hansa.node.isolation.trees import Trees, link_or_copy

ME, OTHER = b"me", b"other"
MIB = 1 << 20


def made(trees: Trees, key: str, size_bytes: int = 10) -> None:
    place = trees.begin()
    (place / "file").write_bytes(os.urandom(size_bytes))
    trees.publish(place, key)


def test_a_tree_is_there_once_it_is_published_and_not_before(tmp_path: Path) -> None:
    trees = Trees(tmp_path / "t", quota_bytes=MIB)
    place = trees.begin()
    (place / "file").write_text("x")
    assert trees.take("a", ME) is None
    trees.publish(place, "a")
    taken = trees.take("a", ME)
    assert taken is not None
    assert (taken / "file").read_text() == "x"
    assert list(trees.work.iterdir()) == [trees.cache]
    assert Trees(tmp_path / "t", quota_bytes=MIB).take("a", ME) == taken


def test_of_two_that_were_made_at_once_one_stays(tmp_path: Path) -> None:
    trees = Trees(tmp_path / "t", quota_bytes=MIB)
    made(trees, "a")
    before = trees.take("a", ME)
    assert before is not None
    content = (before / "file").read_bytes()
    made(trees, "a")
    assert (before / "file").read_bytes() == content
    assert len(list((tmp_path / "t" / "ready").iterdir())) == 1


def test_a_file_is_shared_or_copied_and_never_put_over_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, shared, copied = tmp_path / "source", tmp_path / "shared", tmp_path / "copied"
    source.write_text("what was built")
    link_or_copy(source, shared)
    assert shared.stat().st_ino == source.stat().st_ino
    taken = tmp_path / "taken"
    taken.write_text("another's")
    with pytest.raises(FileExistsError):
        link_or_copy(source, taken)
    assert taken.read_text() == "another's"

    def refuse(*_paths: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(source, copied)
    assert copied.stat().st_ino != source.stat().st_ino
    assert (copied.read_text(), copied.stat().st_mode & 0o777) == ("what was built", 0o444)


def test_a_daemon_that_is_killed_in_the_middle_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    """Killed at many moments of making and publishing; what a later start finds is whole or nothing."""
    code = """
import sys
from pathlib import Path
from hansa.node.isolation.tree_removal import remove_tree
from hansa.node.isolation.trees import Trees, link_or_copy
trees = Trees(Path(sys.argv[1]), quota_bytes=1 << 30)
print("begun", flush=True)
for number in range(10_000):
    place = trees.begin()
    for name in range(20):
        (place / str(name)).write_bytes(bytes(1000))
    trees.publish(place, str(number))
"""
    for moment in range(6):
        directory = tmp_path / str(moment)
        process = subprocess.Popen([sys.executable, "-c", code, str(directory)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.03 + moment * 0.013)
        process.kill()
        process.wait()
        process.stdout.close()
        trees = Trees(directory, quota_bytes=1 << 30)
        for key in trees.names():
            taken = trees.take(key, ME)
            assert taken is not None
            assert len(list(taken.iterdir())) == 20
            assert all(path.stat().st_size == 1000 for path in taken.iterdir())
        assert list(trees.work.iterdir()) == [trees.cache]
        assert not list((directory / "ready").glob("gone-*"))


def test_over_the_quota_the_cache_goes_first_then_the_longest_unused_and_never_one_in_use(tmp_path: Path) -> None:
    trees = Trees(tmp_path / "t", quota_bytes=4 * MIB)
    for key in "abc":
        made(trees, key, MIB)
        time.sleep(0.01)
    (trees.cache / "left").write_bytes(bytes(2 * MIB))
    assert trees.take("a", ME) is not None
    trees.make_room()
    assert not (trees.cache / "left").exists()
    assert sorted(trees.names()) == ["a", "b", "c"], "without the cache there is room for all"
    made(trees, "d", MIB)
    trees.make_room()
    assert sorted(trees.names()) == ["a", "c", "d"], "b was not asked for since it was made"
    trees.quota_bytes = 1
    trees.make_room()
    assert trees.names() == ["a"], "in use"
    trees.let_go(OTHER)
    trees.make_room()
    assert trees.names() == ["a"]
    trees.let_go(ME)
    trees.make_room()
    assert trees.names() == []


def test_files_that_trees_share_count_once(tmp_path: Path) -> None:
    trees = Trees(tmp_path / "t", quota_bytes=1 << 30)
    before = trees.used_bytes()
    (trees.cache / "wheel").write_bytes(os.urandom(MIB))
    for key in "ab":
        place = trees.begin()
        os.link(trees.cache / "wheel", place / "wheel")
        trees.publish(place, key)
    assert trees.used_bytes() - before < MIB + 100_000


def test_what_a_tool_leaves_is_opened_to_readers_without_following_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "secret").write_text("x")
    (outside / "secret").chmod(0o600)
    trees = Trees(tmp_path / "t", quota_bytes=1 << 30)
    place = trees.begin()
    (place / "file").symlink_to(outside / "secret")
    (place / "directory").symlink_to(outside)
    (place / "shut").mkdir(mode=0o300)
    (place / "suid").write_text("x")
    (place / "suid").chmod(0o6711)
    (place / "shut" / "inner").write_text("x")
    (place / "shut" / "inner").chmod(0o200)
    os.mkfifo(place / "pipe")
    trees.publish(place, "a")
    assert stat.S_IMODE((outside / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(outside.stat().st_mode) == 0o700
    tree = trees.take("a", ME)
    assert tree is not None
    assert (tree / "file").is_symlink()
    assert not (tree / "pipe").exists()
    assert stat.S_IMODE((tree / "shut").stat().st_mode) == 0o755
    assert stat.S_IMODE((tree / "shut" / "inner").stat().st_mode) == 0o644
    assert stat.S_IMODE((tree / "suid").stat().st_mode) == 0o755, "nobody runs it as its owner"


def test_a_link_in_place_of_the_directory_is_no_tree_and_leads_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "kept").write_text("x")
    trees = Trees(tmp_path / "t", quota_bytes=1 << 30)
    place = trees.begin()
    place.rmdir()
    place.symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        trees.publish(place, "a")
    trees.discard(place)
    assert trees.names() == []
    assert stat.S_IMODE(outside.stat().st_mode) == 0o700
    assert (outside / "kept").exists()
    assert not list((tmp_path / "t" / "ready").iterdir())


def test_a_tree_with_locked_directories_can_be_removed_and_nothing_outside_goes(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    directory = tmp_path / "tree"
    (directory / "a" / "b").mkdir(parents=True)
    (directory / "a" / "b" / "file").write_text("x")
    (directory / "a" / "out").symlink_to(outside)
    (directory / "a" / "b").chmod(0o000)
    (directory / "a").chmod(0o500)
    remove_tree(directory)
    assert not directory.exists()
    assert (outside / "kept").exists()


def test_counting_stops_when_there_are_enough(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "x").touch()
    assert tree_size(tmp_path)[1] == 100
    assert tree_size(tmp_path, enough_files=60)[1] <= 62


def _deep(directory: Path, levels: int) -> None:
    """As an archive of a few kilobytes makes it. Each level is made from within, so that no path is too long."""
    directory.mkdir()
    here = os.open(directory, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_directories_of_any_depth_are_removed_also_when_a_node_starts_anew(tmp_path: Path) -> None:
    _deep(tmp_path / "deep", 3000)
    remove_tree(tmp_path / "deep")
    assert not (tmp_path / "deep").exists()
    trees = Trees(tmp_path / "t", quota_bytes=1 << 30)
    _deep(trees.work / "new-left", 3000)
    assert list(Trees(tmp_path / "t", quota_bytes=1 << 30).work.iterdir()) == [trees.cache]


def test_a_tree_that_is_nested_too_deeply_is_not_published_and_goes(tmp_path: Path) -> None:
    trees = Trees(tmp_path / "t", quota_bytes=1 << 30)
    place = trees.begin()
    _deep(place / "deep", 1500)
    with pytest.raises(OSError, match="nested more than 200 deep"):
        trees.publish(place, "a")
    trees.discard(place)
    assert trees.names() == []
    assert not list((tmp_path / "t" / "ready").iterdir())


def test_what_lies_too_deep_to_be_counted_is_never_taken_for_nothing(tmp_path: Path) -> None:
    trees = Trees(tmp_path / "t", quota_bytes=1 << 30)
    _deep(trees.cache / "archive", 2500)
    with pytest.raises(TooDeep):
        tree_size(trees.work)
    trees.discard(trees.begin())
    assert tree_size(trees.work)[1] == 1, "a cache like that is thrown away"


def _long(directory: Path, most: int) -> None:
    """Directories below one whose longest path has so many characters."""
    here = directory
    while (room := most - len(str(here)) - 1) > 0:
        # No last step of one character is ever left.
        name = "d" * min(room, 200 if room > 210 else room)
        here = here / name
        here.mkdir(parents=True)


@pytest.mark.parametrize("over", [-1, 0, 1, 20])
def test_what_could_not_be_looked_at_under_its_own_name_is_not_published(tmp_path: Path, over: int) -> None:
    trees, key = Trees(tmp_path / "t", quota_bytes=1 << 30), "image-" + "a" * 64
    final = tmp_path / "t" / "ready" / key / "tree"
    place = trees.begin()
    _long(place, 4095 + over - len(str(final)) + len(str(place)))
    if over < 1:
        trees.publish(place, key)
        assert trees.names() == [key]
    else:
        with pytest.raises(OSError, match="too long"):
            trees.publish(place, key)
        assert trees.names() == []
    trees.make_room()


def test_what_nobody_can_count_any_more_goes_first_and_not_from_under_a_run(tmp_path: Path) -> None:
    """The directory of all of them has a longer path than it had when they came."""
    trees = Trees(tmp_path / "t", quota_bytes=1 << 30)
    for key in ("used", "unused", "sound"):
        made(trees, key)
    for key in ("used", "unused"):
        _deep(tmp_path / "t" / "ready" / key / "tree" / "deep", 2500)
    assert trees.take("used", ME) is not None
    with pytest.raises(TooDeep):
        trees.used_bytes()
    trees.make_room()
    assert sorted(trees.names()) == ["sound", "used"]
    trees.let_go(ME)
    trees.make_room()
    assert trees.names() == ["sound"]
