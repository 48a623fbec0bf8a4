"""From a runner's frames to blobs, and what the checkpoint before spares the next one."""

import os

import pytest

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
