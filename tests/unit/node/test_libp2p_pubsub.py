"""Gossip as a neighbour may bend it: how long a frame says that it is."""

import pytest
import trio
from kit.noted_stream import noted_stream

from hansa.node.network.libp2p_pubsub import MAX_RPC_BYTES, GuardedPubsub

pytestmark = pytest.mark.trio
CONTINUED = 0x80


async def test_a_length_that_never_ends_is_read_for_four_bytes_at_most():
    stream, _ = noted_stream(bytes((CONTINUED,)) * 1_000)
    with trio.fail_after(5):
        assert await GuardedPubsub._read_frame(None, stream, CONTINUED) is None
    assert len(await stream.read(1_000)) >= 1_000 - 4


@pytest.mark.parametrize(("length", "is_read"), [(300, True), (MAX_RPC_BYTES + 1, False)])
async def test_a_frame_is_read_up_to_the_largest_that_is_allowed(length: int, is_read: bool):
    sizes = (length & 0x7F | CONTINUED, length >> 7 & 0x7F | (CONTINUED if length >> 14 else 0), length >> 14)
    stream, _ = noted_stream(bytes(sizes[1:] if length >> 14 else sizes[1:2]) + b"x" * 300)
    assert await GuardedPubsub._read_frame(None, stream, sizes[0]) == (b"x" * 300 if is_read else None)
