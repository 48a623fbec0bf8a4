"""How a sealed blob is laid out, and how long what it holds is. ``hansa.node.storage.sealing`` seals and opens.

A header of 64 bytes, then segments: each is the next 64 KiB of what was sealed, encrypted, with a tag of 16 bytes
behind it. The last one is shorter or full, and never missing, so an empty file is one segment of no bytes::

    magic (16) | salt (16) | commitment (32) | segment 0 | segment 1 | ... | last segment

A blob's name is the hash over all of this, as of any other: whoever holds or hands on a copy checks it without reading.
"""

from hansa.proto.blob import BlobRef
from hansa.proto.market_documents import FEATURE_SEALED, Requirements

MAGIC = b"hansa-sealed-1\0\0"
SALT_BYTES = 16
COMMITMENT_BYTES = 32
HEADER_BYTES = len(MAGIC) + SALT_BYTES + COMMITMENT_BYTES
SEGMENT_BYTES = 64 << 10
TAG_BYTES = 16
SEALED_SEGMENT_BYTES = SEGMENT_BYTES + TAG_BYTES


def is_sealed(needs: Requirements) -> bool:
    """Whether everything that a job with these requirements moves is sealed."""
    return FEATURE_SEALED in needs.features


def segment_count(plain_bytes: int) -> int:
    """How many segments so many bytes make."""
    return max(1, -(-plain_bytes // SEGMENT_BYTES))


def sealed_size_bytes(plain_bytes: int) -> int:
    """How long so many bytes are when they are sealed."""
    return HEADER_BYTES + plain_bytes + TAG_BYTES * segment_count(plain_bytes)


def plain_size_bytes(sealed_bytes: int) -> int:
    """How many bytes a sealed blob of this size holds; 0 where it is too short to be one."""
    body_bytes = max(0, sealed_bytes - HEADER_BYTES)
    return max(0, body_bytes - TAG_BYTES * -(-body_bytes // SEALED_SEGMENT_BYTES))


def weight_bytes(blob: BlobRef, needs: Requirements) -> int:
    """What a state or an output counts against its job's limits: what the job's code wrote, sealed or not."""
    return plain_size_bytes(blob.size_bytes) if is_sealed(needs) else blob.size_bytes
