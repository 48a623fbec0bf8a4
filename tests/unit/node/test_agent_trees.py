"""A directory arrives on another machine as it was, and no stream reaches outside the directory that it makes."""

import contextlib
import os
import re
from pathlib import Path

import msgpack
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.node.agents.agent_trees import TreeStore, TreeWriter, blocks_of, digest_of, send_tree
from hansa.proto.errors import Malformed, ProtocolError, TooLarge

LIMIT = 1 << 20


@pytest.fixture
def tree(tmp_path):
    directory = tmp_path / "tree"
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "empty").mkdir()
    (directory / "a").write_bytes(os.urandom(600_000))
    (directory / "deep" / "run").write_text("#!/bin/sh\n")
    (directory / "deep" / "run").chmod(0o755)
    (directory / "deep" / "er" / "nothing").touch()
    (directory / "link").symlink_to("/etc/hostname")
    (directory / os.fsdecode(b"odd\xff")).write_text("x")
    os.mkfifo(directory / "fifo")
    return directory


def framed(*entry):
    data = msgpack.packb(list(entry))
    return len(data).to_bytes(4, "big") + data


def entries(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")}


def test_a_directory_comes_back_as_it_was_however_the_stream_is_cut(tree, tmp_path):
    data = b"".join(blocks_of(tree))
    for number, size in enumerate((1 << 20, 7919)):
        writer = TreeWriter(tmp_path / f"out{number}", limit_bytes=LIMIT)
        for start in range(0, len(data), size):
            writer.feed(data[start : start + size])
        assert writer.complete
        out = tmp_path / f"out{number}"
        assert writer.digest == digest_of(tree) == digest_of(out)
        assert entries(out) == entries(tree) - {"fifo"}
        assert (out / "a").read_bytes() == (tree / "a").read_bytes()
        assert (out / "link").readlink() == Path("/etc/hostname")
        assert (out / "deep" / "run").stat().st_mode & 0o777 == 0o755


def test_nobody_else_on_the_machine_can_change_what_arrived(tmp_path):
    stream = framed("d", "d", 0o777, 0) + framed("d/f", "f", 0o666, 1) + b"x" + framed("", ".", 0, 0)
    writer = TreeWriter(tmp_path / "out", limit_bytes=LIMIT)
    writer.feed(stream)
    assert writer.complete
    assert (tmp_path / "out" / "d").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out" / "d" / "f").stat().st_mode & 0o777 == 0o644


def test_everything_that_matters_changes_the_digest(tree):
    seen = {digest_of(tree)}
    changes = (
        lambda: (tree / "a").write_bytes(b"x"),
        lambda: (tree / "deep" / "run").chmod(0o644),
        lambda: (tree / "empty").rename(tree / "void"),
        lambda: ((tree / "link").unlink(), (tree / "link").symlink_to("/etc/passwd")),
    )
    for change in changes:
        change()
        assert digest_of(tree) not in seen
        seen.add(digest_of(tree))


@pytest.mark.parametrize(
    "stream",
    [
        framed("../a", "f", 0o644, 0),
        framed("/a", "f", 0o644, 0),
        framed("a/b", "f", 0o644, 0),
        framed("a/../../b", "f", 0o644, 0),
        framed("link", "l", 0o777, "/tmp") + framed("link/a", "f", 0o644, 0),
        framed("a", "f", 0o644, 0) + framed("a/b", "f", 0o644, 0),
        framed("a", "l", 0o777, "b") + framed("a", "f", 0o644, 0),
        framed("a", "f", 0o4755, 0),
        framed("a", "c", 0o644, 0),
        framed("a", "f", 0o644, -1),
        framed("a", "f", 0o644, "b"),
        framed("a", "l", 0o777, 1),
        framed("a\0b", "f", 0o644, 0),
        framed("a", "f", 0o644),
        framed("", ".", 0, 0) + b"x",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
    ],
)
def test_a_stream_that_says_what_no_directory_says_is_refused(tmp_path, stream):
    out = tmp_path / "in" / "out"
    out.parent.mkdir()
    writer = TreeWriter(out, limit_bytes=LIMIT)
    with pytest.raises(ProtocolError):
        writer.feed(stream)
    writer.close()
    assert entries(tmp_path) <= {"in", "in/out", "in/out/a", "in/out/link"}


def test_more_than_the_limit_is_refused_before_it_is_written(tmp_path):
    writer = TreeWriter(tmp_path / "out", limit_bytes=LIMIT)
    with pytest.raises(TooLarge):
        writer.feed(framed("a", "f", 0o644, LIMIT + 1))


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_make_a_directory_or_a_protocol_error(tmp_path_factory, data):
    writer = TreeWriter(tmp_path_factory.mktemp("any") / "out", limit_bytes=LIMIT)
    with contextlib.suppress(ProtocolError):
        writer.feed(data)
    writer.close()


@pytest.mark.trio
async def test_a_store_takes_what_it_asked_for_and_nothing_else(tree, tmp_path):
    store = TreeStore(tmp_path / "store", quota_bytes=LIMIT)
    digest = digest_of(tree)
    for asked in (digest, bytes(32)):
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_tree, tree, theirs)
            if asked == digest:
                assert digest_of(await store.receive(asked, ours)) == digest
            else:
                with pytest.raises(Malformed):
                    await store.receive(asked, ours)
    assert store.find(digest) is not None
    assert store.find(bytes(32)) is None
    assert {path.name for path in (tmp_path / "store").iterdir()} == {digest.hex()}


@pytest.mark.trio
async def test_nobody_guesses_where_a_strangers_directory_is_while_it_comes(tmp_path, tree):
    store = TreeStore(tmp_path / "store", quota_bytes=4 * LIMIT)
    assert (tmp_path / "store").stat().st_mode & 0o066 == 0, "nor lists what is there"
    names = set()
    for _ in range(2):
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.receive, digest_of(tree), ours)
            await theirs.send_all(next(blocks_of(tree))[:100])
            with trio.fail_after(10):
                while not (found := {path.name for path in (tmp_path / "store").iterdir()}):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            names |= found
            nursery.cancel_scope.cancel()
    assert len(names) == 2, "they are drawn by chance, and those that were given up are gone"
    assert all(re.fullmatch(r"\.[0-9a-f]{32}", name) for name in names)


@pytest.mark.trio
async def test_the_oldest_go_when_there_is_too_much_but_not_those_in_use(tmp_path):
    store = TreeStore(tmp_path / "store", quota_bytes=250_000)
    digests = []
    for number in range(4):
        tree = tmp_path / f"tree{number}"
        tree.mkdir()
        (tree / "a").write_bytes(os.urandom(100_000))
        digests.append(digest_of(tree))
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_tree, tree, theirs)
            path = await store.receive(digests[-1], ours)
        os.utime(path, (number, number))
        if number == 0:
            held = store.used(digests[0])
            held.__enter__()
    assert [store.find(digest) is not None for digest in digests] == [True, False, False, True]
    held.__exit__(None, None, None)
