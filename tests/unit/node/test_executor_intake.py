"""From a runner's frames to blobs, and what the checkpoint before spares the next one."""

import errno
import os
from pathlib import Path

import pytest

from hansa.node.runs import executor_intake
from hansa.node.runs.executor_end import Over
from hansa.node.runs.executor_intake import Intake, Stored
from hansa.node.storage.blobs import BlobStore
from hansa.proto.blob import CHUNK_BYTES
from hansa.proto.frames import MAX_CHUNK_BYTES, Checkpoint, Chunk, Sync

pytestmark = pytest.mark.trio


async def send(intake: Intake, header, data: bytes) -> Stored:
    """One state, as a runner sends it."""
    complete = await intake.feed(header)
    for at in range(0, len(data), MAX_CHUNK_BYTES):
        complete = await intake.feed(Chunk(data=data[at : at + MAX_CHUNK_BYTES]))
    assert isinstance(complete, Stored)
    return complete


class WatchedStore(BlobStore):
    """A store that remembers what its writers reused."""

    def writer(self, size_bytes, like=()):
        self.newest = super().writer(size_bytes, like)
        return self.newest


async def test_a_checkpoint_takes_from_the_one_before_what_has_not_changed(tmp_path):
    store = WatchedStore(tmp_path, quota_bytes=1 << 30)
    data = os.urandom(4 * CHUNK_BYTES)
    begun = store.put_bytes(data)
    intake = Intake(store, lambda _header: 1 << 30, begun)
    for step, expected_bytes in ((1, 3 * CHUNK_BYTES), (2, 3 * CHUNK_BYTES)):
        data = data[: step * CHUNK_BYTES] + os.urandom(CHUNK_BYTES) + data[(step + 1) * CHUNK_BYTES :]
        stored = await send(intake, Checkpoint(round=0, step=step, size_bytes=len(data)), data)
        assert store.newest.reused_bytes == expected_bytes
        assert store.read_bytes(stored.blob, len(data)) == data
    await send(intake, Sync(round=0, weight=1.0, size_bytes=len(data)), data)
    assert store.newest.reused_bytes == 0


class FailingStore(BlobStore):
    """A store on a machine that has something to say when a blob is begun."""

    def __init__(self, directory: Path, *faults: int) -> None:
        super().__init__(directory, quota_bytes=1 << 30)
        self.faults = list(faults)

    def writer(self, size_bytes, like=()):
        if self.faults:
            number = self.faults.pop(0)
            raise OSError(number, os.strerror(number), "/home/owner/.hansa/blobs/new/x")
        return super().writer(size_bytes, like)


async def test_what_is_lacking_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(executor_intake, "RETRY_S", 0.01)
    store = FailingStore(tmp_path, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    stored = await send(Intake(store, lambda _header: 1 << 30), Sync(round=0, weight=1.0, size_bytes=5), b"state")
    assert store.read_bytes(stored.blob, 5) == b"state"


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, "no-room"), (errno.EDQUOT, "no-room"), (errno.EIO, "sandbox-lost"), (errno.EROFS, "sandbox-lost")],
)
async def test_a_disk_that_fails_ends_the_run_in_words_without_a_path(tmp_path, number, kind):
    intake = Intake(FailingStore(tmp_path, number), lambda _header: 1 << 30)
    with pytest.raises(Over) as over:
        await send(intake, Sync(round=0, weight=1.0, size_bytes=5), b"state")
    assert over.value.kind == kind
    assert os.strerror(number) in over.value.reason
    assert "/home" not in over.value.reason


async def test_what_lacks_for_long_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(executor_intake, "RETRY_S", 0.01)
    monkeypatch.setattr(executor_intake, "PATIENCE_S", 0.1)
    intake = Intake(FailingStore(tmp_path, *[errno.EMFILE] * 1000), lambda _header: 1 << 30)
    with pytest.raises(Over) as over:
        await send(intake, Sync(round=0, weight=1.0, size_bytes=5), b"state")
    assert over.value.kind == "sandbox-lost"


async def test_half_a_state_that_cannot_be_removed_is_left_for_the_next_start(tmp_path, monkeypatch):
    intake = Intake(BlobStore(tmp_path, quota_bytes=1 << 30), lambda _header: 1 << 30)
    await intake.feed(Sync(round=0, weight=1.0, size_bytes=5))
    await intake.feed(Chunk(data=b"st"))

    def broken(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", broken)
        await intake.drop()
    assert list((tmp_path / "new").iterdir())
    assert BlobStore(tmp_path, quota_bytes=1 << 30).size_bytes == 0
    assert not list((tmp_path / "new").iterdir())
