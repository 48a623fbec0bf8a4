"""A growing RFC 6962 tree: appending, roots and proofs in O(log n), from nodes that are written once and never change.

Only full subtrees are stored. Their hashes get numbers in the order in which they become full, so a store of them is
append-only like the log itself: after ``size`` leaves there are ``2 * size - popcount(size)`` of them. Everything here
is worked out from a function that answers a node's hash by its number; what is at the right edge is put together anew.

Roots and inclusion proofs are those of ``hansa.proto.merkle``. A consistency proof shows that a smaller tree is the
beginning of a larger one: whoever keeps old roots cannot be given another past.
"""

from collections.abc import Callable, Sequence
from typing import Final

from hansa.proto.keccak import keccak256
from hansa.proto.merkle import HASH_BYTES, LARGEST_SIZE, leaf_hash, node_hash

Node = Callable[[int], bytes]
"""A stored node's hash, by its number from 1 on."""
EMPTY_ROOT: Final = keccak256(b"")
MOST_PROOF_HASHES: Final = 65
"""No proof of a tree of 64-bit size is longer."""


def nodes_after(size: int) -> int:
    """How many nodes are stored after so many leaves."""
    return 2 * size - size.bit_count()


def _number(level: int, index: int) -> int:
    """The number of the full subtree of ``2 ** level`` leaves that is the ``index``-th of its level."""
    last_leaf = (index + 1) << level
    return nodes_after(last_leaf - 1) + level + 1


class Edge:
    """The right edge of a tree in memory: what appending needs. One hash for each bit of the size."""

    def __init__(self, size: int = 0, node: Node | None = None) -> None:
        """The edge of a tree of this size, whose nodes are stored."""
        self.size = size
        self._peaks: list[tuple[int, bytes]] = []
        begin = 0
        for level in reversed(range(size.bit_length())):
            if size >> level & 1:
                assert node is not None, "a tree that is not empty has nodes"
                self._peaks.append((level, node(_number(level, begin >> level))))
                begin += 1 << level

    def append(self, leaf: bytes) -> list[bytes]:
        """Take one more leaf (its bytes). Answers the new nodes' hashes, in the order of their numbers."""
        here, level = leaf_hash(leaf), 0
        fresh = [here]
        while self._peaks and self._peaks[-1][0] == level:
            here = node_hash(self._peaks.pop()[1], here)
            level += 1
            fresh.append(here)
        self._peaks.append((level, here))
        self.size += 1
        return fresh

    def copy(self) -> "Edge":
        """Another edge that goes on from here by itself."""
        other = Edge()
        other.size, other._peaks = self.size, list(self._peaks)
        return other

    @property
    def root(self) -> bytes:
        """The tree's root."""
        if not self._peaks:
            return EMPTY_ROOT
        here = self._peaks[-1][1]
        for _, left in reversed(self._peaks[:-1]):
            here = node_hash(left, here)
        return here


def _subtree(begin: int, end: int, node: Node) -> bytes:
    """The hash over the leaves from ``begin`` to before ``end``, where ``begin`` is where such a subtree can begin."""
    size = end - begin
    level = size.bit_length() - 1
    if size == 1 << level:
        return node(_number(level, begin >> level))
    at = begin + (1 << level)
    return node_hash(_subtree(begin, at, node), _subtree(at, end, node))


def root_at(size: int, node: Node) -> bytes:
    """The root that the log had at a size."""
    return _subtree(0, size, node) if size else EMPTY_ROOT


def inclusion(index: int, size: int, node: Node) -> tuple[bytes, ...]:
    """The proof that leaf ``index`` (from 0) is in the tree of a size, as ``hansa.proto.merkle.is_included`` wants."""
    if not 0 <= index < size:
        raise IndexError("no leaf of that number is in the tree")
    proof: list[bytes] = []
    begin, end = 0, size
    while end - begin > 1:
        at = begin + (1 << (end - begin - 1).bit_length() - 1)
        if index < at:
            proof.append(_subtree(at, end, node))
            end = at
        else:
            proof.append(_subtree(begin, at, node))
            begin = at
    return tuple(reversed(proof))


def consistency(first: int, second: int, node: Node) -> tuple[bytes, ...]:
    """The proof that the tree of size ``first`` is the beginning of the tree of size ``second``."""
    if not 0 <= first <= second:
        raise IndexError("only a smaller tree can be the beginning of a larger one")
    if first in (0, second):
        return ()
    proof: list[bytes] = []
    begin, end, whole = 0, second, True
    while first != end:
        at = begin + (1 << (end - begin - 1).bit_length() - 1)
        if first <= at:
            proof.append(_subtree(at, end, node))
            end = at
        else:
            proof.append(_subtree(begin, at, node))
            begin, whole = at, False
    if not whole:
        proof.append(_subtree(begin, end, node))
    return tuple(reversed(proof))


def is_consistent(*, first: int, first_root: bytes, second: int, second_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that the first tree is the beginning of the second.

    Any proof may come from a peer: a wrong length or number is an answer of no, never an error.
    """
    if not (type(first) is int and type(second) is int and 0 <= first <= second <= LARGEST_SIZE):
        return False
    if len(proof) > MOST_PROOF_HASHES or any(type(part) is not bytes or len(part) != HASH_BYTES for part in proof):
        return False
    if first == second:
        return not proof and first_root == second_root
    if first == 0:
        return not proof and first_root == EMPTY_ROOT
    # RFC 9162, section 2.1.4.2. A first tree that is full is a node of the second, so its root begins the proof.
    path = [first_root, *proof] if first.bit_count() == 1 else list(proof)
    if not path:
        return False
    node, last = first - 1, second - 1
    while node & 1:
        node >>= 1
        last >>= 1
    first_here = second_here = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            first_here, second_here = node_hash(sibling, first_here), node_hash(sibling, second_here)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            second_here = node_hash(second_here, sibling)
        node >>= 1
        last >>= 1
    return last == 0 and first_here == first_root and second_here == second_root
