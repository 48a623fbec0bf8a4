"""The Merkle tree of RFC 6962 over keccak256: one root for many leaves, and short proofs that a leaf is under it.

Leaves are hashed behind a 0x00 byte and inner nodes behind a 0x01 byte, so that no inner node can be passed off as a
leaf (the second preimage that plain trees suffer from). A tree that is not full is split at the largest power of two
below its size and never padded, so no two lists of leaves share a root.

keccak256 instead of the RFC's SHA-256 because receipts' meter lines may have to be opened inside a contract, where it
is the cheap hash. An empty tree's root is keccak256 of nothing.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from hansa.proto.keccak import keccak256

LEAF_PREFIX: Final = b"\x00"
NODE_PREFIX: Final = b"\x01"
HASH_BYTES: Final = 32
LARGEST_SIZE: Final = (1 << 64) - 1


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf."""
    return keccak256(LEAF_PREFIX + data)


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node, from its two children's hashes."""
    return keccak256(NODE_PREFIX + left + right)


def _split(size: int) -> int:
    """The largest power of two below ``size`` (at least 2)."""
    return 1 << (size - 1).bit_length() - 1


def _root_of_hashes(hashes: Sequence[bytes]) -> bytes:
    if len(hashes) == 1:
        return hashes[0]
    at = _split(len(hashes))
    return node_hash(_root_of_hashes(hashes[:at]), _root_of_hashes(hashes[at:]))


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """The root over leaves given as their bytes, in their order."""
    hashes = [leaf_hash(leaf) for leaf in leaves]
    return _root_of_hashes(hashes) if hashes else keccak256(b"")


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The hashes that lead from the leaf at ``index`` up to the root, nearest first."""
    if not 0 <= index < len(leaves):
        raise IndexError("no leaf of that number is in the tree")
    hashes = [leaf_hash(leaf) for leaf in leaves]
    proof: list[bytes] = []
    while len(hashes) > 1:
        at = _split(len(hashes))
        if index < at:
            proof.append(_root_of_hashes(hashes[at:]))
            hashes = hashes[:at]
        else:
            proof.append(_root_of_hashes(hashes[:at]))
            hashes = hashes[at:]
            index -= at
    return tuple(reversed(proof))


def is_included(*, root: bytes, size: int, leaf: bytes, index: int, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that ``leaf`` (its bytes) is number ``index`` of the ``size`` leaves under ``root``.

    Any proof may come from a peer: a wrong length or number is an answer of no, never an error.
    """
    if not (type(size) is int and type(index) is int and 0 <= index < size <= LARGEST_SIZE):
        return False
    if any(type(part) is not bytes or len(part) != HASH_BYTES for part in proof):
        return False
    # RFC 9162, section 2.1.3.2: walk up from the leaf, its number telling on which side each sibling stands.
    node, last = index, size - 1
    here = leaf_hash(leaf)
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            here = node_hash(sibling, here)
            while not node & 1 and node:
                # The right edge of a tree that is not full: levels at which this node had no sibling.
                node >>= 1
                last >>= 1
        else:
            here = node_hash(here, sibling)
        node >>= 1
        last >>= 1
    return last == 0 and here == root
