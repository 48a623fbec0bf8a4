"""Frames of piped programs: whole in any pieces, and nothing else passes for one."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.proto.pipes import MAX_PIPE_BYTES, STDERR, STDIN, STDOUT, BrokenPipes, PipeReader, pack_piped

FRAMES = st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=50)), max_size=8)


@given(FRAMES, st.integers(1, 20))
def test_frames_come_out_as_they_went_in_whatever_the_pieces(frames: list[tuple[int, bytes]], size: int) -> None:
    line = b"".join(pack_piped(kind, data) for kind, data in frames)
    reader = PipeReader((STDOUT, STDERR))
    pieces = [line[at : at + size] for at in range(0, len(line), size)]
    assert [frame for piece in pieces for frame in reader.feed(piece)] == frames


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_any_bytes_are_frames_or_refused_and_little_is_held(pieces: list[bytes]) -> None:
    reader = PipeReader((STDOUT, STDERR))
    with suppress(BrokenPipes):
        for piece in pieces:
            for kind, data in reader.feed(piece):
                assert kind in (STDOUT, STDERR)
                assert len(data) <= MAX_PIPE_BYTES


@pytest.mark.parametrize("head", [b"\x00\0\0\0\1x", b"\x03\0\0\0\1x", b"\x01\0\0\x40\x01", b"\x01\xff\xff\xff\xff"])
def test_a_head_of_another_kind_or_size_is_refused_at_once(head: bytes) -> None:
    with pytest.raises(BrokenPipes):
        list(PipeReader((STDOUT, STDERR)).feed(head))


def test_the_end_of_input_is_a_frame_without_bytes() -> None:
    assert list(PipeReader((STDIN,)).feed(pack_piped(STDIN, b""))) == [(STDIN, b"")]
