"""What a bulk channel that gives tells the meter of its line."""

import os
from collections import Counter

import pytest
import trio

from hansa.market.bandwidth import THERE
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.bulk_serving import BulkLimits, ChunkServer
from hansa.proto.blob import CHUNK_BYTES


@pytest.mark.trio
async def test_what_the_kernel_still_holds_counts_with_the_request_in_which_it_went(tmp_path):
    store = BlobStore(tmp_path, quota_bytes=1 << 30)
    ref = store.put_bytes(os.urandom(2 * CHUNK_BYTES))
    moved = []

    class Meter:
        def moved(self, *told):
            moved.append(told)

    class Line:
        held = iter((0, 700_000, 700_000, 0))

        @property
        def unsent_bytes(self):
            return next(self.held)

        async def in_thread(self, _work, _limiter):
            await trio.lowlevel.checkpoint()

    server = ChunkServer(
        net=None,
        store=store,
        allow=lambda *_: True,
        limits=BulkLimits(),
        threads=trio.CapacityLimiter(1),
        counters=Counter(),
        meter=Meter(),
    )
    line = Line()
    for index in range(2):
        assert await server._send("peer", line, ref, range(index, index + 1))
    assert moved == [("peer", THERE, CHUNK_BYTES - 700_000), ("peer", THERE, CHUNK_BYTES + 700_000)]
