"""One stream by itself: what is written when its other end is gone, and what a peer's bytes do in it."""

import pytest
from kit.noted_stream import noted_stream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamReset

pytestmark = pytest.mark.trio


async def test_nothing_is_written_to_a_stream_that_was_reset() -> None:
    stream, carrier = noted_stream()
    stream.kill()
    with pytest.raises(MuxedStreamReset):
        await stream.write(b"late")
    assert not stream.write_at_once(b"late")
    assert carrier.written == []


async def test_nothing_is_written_after_the_last_word() -> None:
    stream, carrier = noted_stream()
    assert stream.write_last(b"all of it")
    with pytest.raises(MuxedStreamClosed):
        await stream.write(b"late")
    assert not stream.write_at_once(b"late")
    assert carrier.written == [b"all of it"]


async def test_what_came_before_a_reset_is_read_and_then_no_more() -> None:
    stream, _ = noted_stream(b"why")
    stream.kill()
    assert await stream.read(10) == b"why"
    with pytest.raises(MuxedStreamReset):
        await stream.read(10)


async def test_no_more_is_handed_over_at_once_than_the_peer_is_ready_for() -> None:
    stream, carrier = noted_stream()
    stream.send_window = 4
    assert not stream.write_at_once(b"five!")
    assert stream.write_at_once(b"four")
    assert (carrier.written, stream.send_window) == ([b"four"], 0)
