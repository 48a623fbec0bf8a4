"""What two books differ in, found by comparing digests of parts of them.

An entry is an account and the sequence of its advert. The accounts of a class are cut into ``2 ** bits`` ranges by
their first bits, and the digest of a range is the XOR of its entries' marks. Whoever wants to learn sends its
digests; the other side answers with the entries of the ranges that differ, in the order of accounts, one page at a
time. Two books that are equal cost the digests and nothing else; one that is empty is told everything.

A digest is no proof of anything: whoever lies about its own only gets the wrong answer, and what is fetched in the
end are adverts with their signatures.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from hansa.proto.units import Address

Words = NDArray[np.uint64]

MOST_BITS = 12
LEAVES = 1 << MOST_BITS
FEW = 8
"""About so many entries share a range."""
MARK_BYTES = 8
SEQUENCE_BYTES = 8
ENTRY_BYTES = 20 + SEQUENCE_BYTES


def mark(account: Address, sequence: int) -> int:
    """What stands for an entry in a digest."""
    said = account + sequence.to_bytes(SEQUENCE_BYTES, "big")
    return int.from_bytes(blake2b(said, digest_size=MARK_BYTES).digest(), "big")


def bits_for(entries: int) -> int:
    """Into how many ranges, as a power of two, so many entries are cut."""
    return min(MOST_BITS, max(0, (entries // FEW).bit_length()))


def range_of(account: Address, bits: int) -> int:
    """The number of the range that an account is in."""
    return int.from_bytes(account[:2], "big") >> (16 - bits)


@dataclass(slots=True)
class Shelf:
    """The entries of one class, and their digests, kept up to date with each change."""

    sequences: dict[Address, int] = field(default_factory=dict)
    accounts: list[Address] = field(default_factory=list)
    """Sorted."""
    leaves: Words = field(default_factory=lambda: np.zeros(LEAVES, dtype=np.uint64))

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self.accounts)

    def put(self, account: Address, sequence: int) -> None:
        """An account has a new advert."""
        leaf, known = range_of(account, MOST_BITS), self.sequences.get(account)
        if known is None:
            insort(self.accounts, account)
        else:
            self.leaves[leaf] ^= np.uint64(mark(account, known))
        self.sequences[account] = sequence
        self.leaves[leaf] ^= np.uint64(mark(account, sequence))

    def remove(self, account: Address) -> None:
        """An account has none any more."""
        known = self.sequences.pop(account, None)
        if known is not None:
            self.leaves[range_of(account, MOST_BITS)] ^= np.uint64(mark(account, known))
            del self.accounts[bisect_left(self.accounts, account)]

    def digests(self, bits: int) -> bytes:
        """The digests of all ranges, ``MARK_BYTES`` each."""
        folded: Words = np.bitwise_xor.reduce(self.leaves.reshape(1 << bits, -1), axis=1)
        return folded.astype(">u8").tobytes()

    def differing(self, bits: int, theirs: bytes, after: Address) -> Iterator[Address]:
        """Accounts beyond ``after``, in order, of ranges in which the other side has something else."""
        own, first = self.digests(bits), range_of(after, bits)
        for number in range(first, 1 << bits):
            place = slice(MARK_BYTES * number, MARK_BYTES * (number + 1))
            if own[place] == theirs[place]:
                continue
            low = (number << (16 - bits)).to_bytes(2, "big")
            start = bisect_left(self.accounts, low) if number > first else bisect_right(self.accounts, after)
            for position in range(start, len(self.accounts)):
                account = self.accounts[position]
                if range_of(account, bits) != number:
                    break
                yield account


def packed(entries: Iterable[tuple[Address, int]]) -> bytes:
    """Entries as they go on the wire."""
    return b"".join(account + sequence.to_bytes(SEQUENCE_BYTES, "big") for account, sequence in entries)


def unpacked(data: bytes) -> Iterator[tuple[Address, int]]:
    """Entries as they came; what is left over at the end is none."""
    for start in range(0, len(data) - ENTRY_BYTES + 1, ENTRY_BYTES):
        entry = data[start : start + ENTRY_BYTES]
        yield Address(entry[:20]), int.from_bytes(entry[20:], "big")
