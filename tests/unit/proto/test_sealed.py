"""How long sealed bytes are, and what they weigh."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from kit.trading import spec

from hansa.proto.blob import BlobRef
from hansa.proto.market_documents import FEATURE_SEALED
from hansa.proto.sealed import (
    HEADER_BYTES,
    SEALED_SEGMENT_BYTES,
    SEGMENT_BYTES,
    TAG_BYTES,
    is_sealed,
    plain_size_bytes,
    sealed_size_bytes,
    weight_bytes,
)

OPEN = spec().requirements
SEALED = replace(OPEN, features=(FEATURE_SEALED,))


@given(st.integers(0, 1 << 41))
def test_the_size_of_what_was_sealed_follows_from_the_sealed_size(plain_bytes: int) -> None:
    assert plain_size_bytes(sealed_size_bytes(plain_bytes)) == plain_bytes


@given(st.integers(0, 4 * SEALED_SEGMENT_BYTES))
def test_no_size_weighs_less_than_a_smaller_one(sealed_bytes: int) -> None:
    assert 0 <= plain_size_bytes(sealed_bytes) <= plain_size_bytes(sealed_bytes + TAG_BYTES + 1) <= sealed_bytes + 1


def test_an_empty_file_is_a_header_and_a_tag() -> None:
    assert sealed_size_bytes(0) == HEADER_BYTES + TAG_BYTES == 80
    assert sealed_size_bytes(SEGMENT_BYTES) == HEADER_BYTES + SEALED_SEGMENT_BYTES
    assert sealed_size_bytes(SEGMENT_BYTES + 1) == HEADER_BYTES + SEALED_SEGMENT_BYTES + 1 + TAG_BYTES


def test_a_sealed_jobs_blobs_weigh_what_its_code_wrote() -> None:
    blob = BlobRef(root=bytes(32), size_bytes=sealed_size_bytes(100_000))
    assert (is_sealed(OPEN), is_sealed(SEALED)) == (False, True)
    assert weight_bytes(blob, SEALED) == 100_000
    assert weight_bytes(blob, OPEN) == blob.size_bytes
