"""What two nodes say to each other to make their books agree: digests, entries that differ, and then the adverts.

All three are requests on ``/hansa/book/2``. The first is answered with ``BookDifference``, the others with
``BookSent``.
"""

from dataclasses import dataclass
from typing import Annotated

from hansa.proto.units import Address, AtMost, Line, Uint8

MAX_SHELVES = 8
MAX_BITS = 12
DIGEST_BYTES = 8
MAX_ENTRIES = 4096
ENTRY_BYTES = 28
MAX_WANTED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelfDigests:
    """What the asker has of one class: the digests of ``2 ** bits`` ranges of accounts, 8 bytes each.

    Attributes:
        name: the class.
        bits: ranges are told apart by so many of an account's first bits.
        digests: of each range in order, the XOR of its entries' marks.
    """

    name: Line
    bits: Uint8
    digests: Annotated[bytes, AtMost(DIGEST_BYTES << MAX_BITS)]

    def __post_init__(self) -> None:
        """Refuse digests that are not as many as the bits say."""
        if self.bits > MAX_BITS or len(self.digests) != DIGEST_BYTES << self.bits:
            raise ValueError("digests that are not as many as their ranges")


@dataclass(frozen=True, slots=True, kw_only=True)
class BookCompared:
    """Here is what I have; which entries do you have in the ranges that differ, of accounts beyond ``after``?"""

    shelves: Annotated[tuple[ShelfDigests, ...], AtMost(MAX_SHELVES)]
    after: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class BookDifference:
    """The answer: accounts and the sequences of their adverts, 20 and 8 bytes each, in the order of accounts.

    Attributes:
        entries: one after the other.
        complete: whether there are none beyond the last of these.
    """

    entries: Annotated[bytes, AtMost(ENTRY_BYTES * MAX_ENTRIES)]
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvertsWanted:
    """Send me the adverts of these accounts, as many of them as one answer holds, in this order."""

    accounts: Annotated[tuple[Address, ...], AtMost(MAX_WANTED)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAdvertWanted:
    """Send me your own advert, if you lend anything now."""
