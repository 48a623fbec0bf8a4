"""What is sealed opens to the same bytes for who has the key, and nothing else opens: not a bit, not a piece moved."""

import copy
import io
import os
import pickle
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import example, given
from hypothesis import strategies as st

from hansa.node.storage.sealing import (
    BlobKey,
    ContentKey,
    SealBroken,
    Sealer,
    SealingReader,
    new_content_key,
    open_sealed,
    seal,
)
from hansa.proto.sealed import (
    COMMITMENT_BYTES,
    HEADER_BYTES,
    MAGIC,
    SEALED_SEGMENT_BYTES,
    SEGMENT_BYTES,
    sealed_size_bytes,
)

KEY, OTHER = BlobKey(b"k" * 32), BlobKey(b"o" * 32)
SIZES = st.one_of(
    st.integers(0, 300),
    st.sampled_from([SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES, 3 * SEGMENT_BYTES + 7]),
)


def opened(sealed: bytes, *keys: BlobKey) -> bytes:
    with open_sealed(io.BytesIO(sealed), keys or (KEY,)) as file:
        return file.read()


def refused(sealed: bytes, *keys: BlobKey) -> str:
    with pytest.raises(SealBroken) as caught:
        opened(sealed, *keys)
    return caught.value.why


def segments(sealed: bytes) -> tuple[bytes, list[bytes]]:
    body = sealed[HEADER_BYTES:]
    return sealed[:HEADER_BYTES], [
        body[at : at + SEALED_SEGMENT_BYTES] for at in range(0, len(body), SEALED_SEGMENT_BYTES)
    ]


# What it is for.


@given(SIZES)
def test_what_is_sealed_opens_to_the_same_bytes(size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    sealed = seal(KEY, data)
    assert len(sealed) == sealed_size_bytes(size_bytes)
    assert opened(sealed) == data
    assert opened(sealed, OTHER, KEY) == data
    assert size_bytes < 8 or data not in sealed


@given(SIZES, st.integers(1, 200_000))
def test_it_does_not_matter_in_which_pieces_they_come(size_bytes: int, piece: int) -> None:
    data = os.urandom(size_bytes)
    sealer, sealed = Sealer(KEY), b""
    for at in range(0, size_bytes, max(piece, size_bytes // 50 + 1)):
        sealed += sealer.push(data[at : at + max(piece, size_bytes // 50 + 1)])
    assert opened(sealed + sealer.finish()) == data
    reader, read = SealingReader(io.BytesIO(data), KEY), b""
    while some := reader.read(max(piece, 1000)):
        read += some
    assert opened(read) == data


@given(st.integers(0, 3 * SEGMENT_BYTES + 7), st.integers(0, SEGMENT_BYTES + 100))
def test_it_may_be_read_from_the_middle(start: int, size_bytes: int) -> None:
    data = bytes(range(256)) * (3 * SEGMENT_BYTES // 256) + b"rest"
    with open_sealed(io.BytesIO(seal(KEY, data)), (KEY,)) as file:
        file.seek(start)
        assert file.read(size_bytes) == data[start : start + size_bytes]
        assert file.seek(-4, os.SEEK_END) == len(data) - 4
        assert file.read() == b"rest"


def test_two_blobs_of_the_same_bytes_are_never_alike() -> None:
    assert seal(KEY, b"same") != seal(KEY, b"same")
    first, second = seal(KEY, bytes(100)), seal(KEY, bytes(100))
    assert not set(segments(first)[1]) & set(segments(second)[1])


def test_the_layout_is_the_one_that_is_written_down() -> None:
    sealed = seal(KEY, b"some bytes")
    header, (segment,) = segments(sealed)
    assert header.startswith(MAGIC)
    salt = header[len(MAGIC) : -COMMITMENT_BYTES]
    made = HKDF(algorithm=SHA256(), length=64, salt=salt, info=b"hansa sealed blob 1").derive(b"k" * 32)
    assert header.endswith(made[32:])
    assert AESGCM(made[:32]).decrypt(bytes(11) + b"\x01", segment, None) == b"some bytes"


def test_little_is_in_memory_however_much_there_is() -> None:
    class Endless(io.RawIOBase):
        def __init__(self) -> None:
            super().__init__()
            self.left = 64 << 20

        def read(self, size_bytes: int = -1, /) -> bytes:
            assert 0 < size_bytes <= 1 << 20
            piece = bytes(min(self.left, size_bytes))
            self.left -= len(piece)
            return piece

    endless = Endless()
    reader = SealingReader(endless, KEY)  # type: ignore[arg-type]
    largest = total = 0
    while some := reader.read(1 << 20):
        largest, total = max(largest, len(some)), total + len(some)
    assert total == sealed_size_bytes(64 << 20)
    assert largest <= (1 << 20) + 2 * SEALED_SEGMENT_BYTES


# What opens for nobody.


@given(st.integers(0, 3 * SEGMENT_BYTES), st.integers(0, 1 << 62), st.integers(0, 7))
@example(0, 0, 0)
def test_a_flipped_bit_is_noticed_wherever_it_is(size_bytes: int, at: int, bit: int) -> None:
    sealed = bytearray(seal(KEY, bytes(size_bytes)))
    sealed[at % len(sealed)] ^= 1 << bit
    refused(bytes(sealed))


@given(SIZES, st.integers(1, 1 << 62))
def test_whatever_is_cut_off_is_missed(size_bytes: int, cut: int) -> None:
    sealed = seal(KEY, bytes(size_bytes))
    refused(sealed[: len(sealed) - 1 - cut % len(sealed)])


@given(SIZES, st.binary(min_size=1, max_size=100))
def test_whatever_is_added_is_noticed(size_bytes: int, more: bytes) -> None:
    refused(seal(KEY, bytes(size_bytes)) + more)


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "two change places": lambda parts: [parts[1], parts[0], *parts[2:]],
    "one comes twice": lambda parts: [parts[0], parts[0], *parts[2:]],
    "one is left out": lambda parts: [parts[0], *parts[2:]],
    "the last is left out": lambda parts: parts[:-1],
    "the last comes twice": lambda parts: [*parts, parts[-1]],
    "the first is the last": lambda parts: parts[:1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_segments_stay_in_their_places(change: str) -> None:
    header, parts = segments(seal(KEY, os.urandom(4 * SEGMENT_BYTES)))
    assert refused(header + b"".join(CHANGES[change](parts))) == "it was changed or cut short"


def test_a_segment_of_another_blob_under_the_same_key_is_none_of_this_one() -> None:
    header, parts = segments(seal(KEY, os.urandom(2 * SEGMENT_BYTES)))
    _, others = segments(seal(KEY, os.urandom(2 * SEGMENT_BYTES)))
    for mixed in ([others[0], parts[1]], [parts[0], others[1]], others):
        assert refused(header + b"".join(mixed)) == "it was changed or cut short"


def test_nothing_is_given_of_a_segment_that_was_changed_and_all_of_those_before() -> None:
    data = os.urandom(3 * SEGMENT_BYTES)
    sealed = bytearray(seal(KEY, data))
    sealed[HEADER_BYTES + SEALED_SEGMENT_BYTES + 5] ^= 1
    with open_sealed(io.BytesIO(bytes(sealed)), (KEY,)) as file:
        assert file.read(SEGMENT_BYTES) == data[:SEGMENT_BYTES]
        with pytest.raises(SealBroken):
            file.read(1)


def test_a_wrong_key_is_told_from_changed_bytes_and_from_what_is_not_sealed() -> None:
    assert refused(seal(KEY, b"bytes"), OTHER) == "it is sealed under another key"
    assert refused(seal(KEY, b"")[:-1]) == "it was cut short"
    for no_seal in (b"", b"short", os.urandom(1000), bytes(HEADER_BYTES)):
        assert refused(no_seal) == "it is not sealed"


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    refused(data)
    refused(MAGIC + data)


# Keys.


def test_each_shard_has_a_key_of_its_own_and_none_of_them_tells_another() -> None:
    content = new_content_key()
    keys = [content.own(number) for number in range(3)] + [content.shared]
    assert len({key.secret() for key in keys} | {content.secret()}) == 5
    sealed = seal(content.own(1), b"of shard 1")
    assert opened(sealed, *content.of_shard(1).both) == b"of shard 1"
    assert refused(sealed, *content.of_shard(0).both) == "it is sealed under another key"
    assert opened(seal(content.shared, b"of all"), *content.of_shard(2).both) == b"of all"
    assert ContentKey(content.secret()).of_shard(1) == content.of_shard(1)


def test_nothing_that_prints_or_copies_a_key_shows_it() -> None:
    content = ContentKey(b"SECRET--" * 4)
    for key in (content, content.shared, content.of_shard(0)):
        for text in (repr(key), str(key), f"{key}", f"{[key]!r}"):
            assert "SECRET" not in text
            assert content.shared.secret().hex() not in text
        with pytest.raises(TypeError, match="not to be copied"):
            pickle.dumps(key)
        with pytest.raises(TypeError, match="not to be copied"):
            copy.deepcopy(key)
    for wrong in (b"SECRET", b"SECRET--" * 5, "SECRET--" * 4):
        with pytest.raises(ValueError, match="exactly 32 bytes") as caught:
            ContentKey(wrong)  # type: ignore[arg-type]
        assert "SECRET" not in str(caught.value)
