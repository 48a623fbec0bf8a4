"""A blob's name: the hash over its chunks' hashes, so that every chunk can be checked the moment it arrives.

The root is ``blake3(b"hansa-blob-1" || size as u64 big-endian || blake3 of each chunk in order)``. Chunks are 1 MiB,
the last one shorter; an empty blob has none. The size is part of the name, so nobody can serve a file of another one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blake3 import blake3

from hansa.proto.units import Bytes32, Uint64

CHUNK_BYTES = 1 << 20
"""How much is hashed, sent and checked at once."""
HASH_BYTES = 32
MAX_BLOB_BYTES = 1 << 40
"""No blob is longer: its list of chunk hashes (32 MiB) is still something that a node may be asked to hold."""
DOMAIN = b"hansa-blob-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """Bytes known by their hash.

    Attributes:
        root: 32 bytes, see the module.
        size_bytes: how long the blob is; the root covers it.
    """

    root: Bytes32
    size_bytes: Uint64

    def __str__(self) -> str:
        """The root in hex, which is also the name of the file in a store."""
        return self.root.hex()


def chunk_count(size_bytes: int) -> int:
    """How many chunks a blob of that size has."""
    return -(-size_bytes // CHUNK_BYTES)


def chunk_size_bytes(size_bytes: int, index: int) -> int:
    """How long chunk ``index`` of a blob of that size is."""
    return min(CHUNK_BYTES, size_bytes - index * CHUNK_BYTES)


def chunk_hash(chunk: bytes | memoryview) -> bytes:
    """The 32 bytes by which one chunk is checked."""
    return blake3(chunk).digest()


def root_of(size_bytes: int, chunk_hashes: Sequence[bytes]) -> bytes:
    """The root over a blob's chunk hashes.

    Raises:
        ValueError: the number or the length of the hashes does not fit the size.
    """
    if not 0 <= size_bytes <= MAX_BLOB_BYTES:
        raise ValueError("size_bytes is out of range")
    if len(chunk_hashes) != chunk_count(size_bytes):
        raise ValueError("the number of chunk hashes does not fit the size")
    if any(len(digest) != HASH_BYTES for digest in chunk_hashes):
        raise ValueError("a chunk hash is not 32 bytes")
    return blake3(DOMAIN + size_bytes.to_bytes(8, "big") + b"".join(chunk_hashes)).digest()


def chunks_of(data: bytes) -> Iterator[bytes]:
    """Cut ``data`` into chunks."""
    view = memoryview(data)
    for start in range(0, len(data), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


def blob_ref(data: bytes) -> BlobRef:
    """The name of these bytes."""
    hashes = [chunk_hash(chunk) for chunk in chunks_of(data)]
    return BlobRef(root=root_of(len(data), hashes), size_bytes=len(data))
