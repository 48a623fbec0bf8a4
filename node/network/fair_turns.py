"""Whose turn it is among strangers: names and addresses cost nothing, networks of one's own cost something.

Turns go round among families of addresses, in each among regions, in each of these among networks, and in a network
among households: each to the one whose last turn is longest ago. Who had a turn is remembered and not who asked, so
that a party gets no more turns by standing in a row many times, or by coming again and again.
"""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

MOST_REMEMBERED = 4096
"""Parties of one size and family: at ten turns a second the oldest of them had its turn seven minutes ago."""
Circles = Sequence[str]


class Claimant(Protocol):
    """Somebody who wants a turn, or has a place."""

    @property
    def circles(self) -> Circles:
        """To whom it belongs, the largest party first; everybody to as many."""

    @property
    def number(self) -> int:
        """Later ones have larger numbers."""


One = TypeVar("One", bound=Claimant)


class Turns:
    """Who had the last turns, and what follows from that."""

    def __init__(self) -> None:
        """Nobody had one."""
        self._given = 0
        self._last: defaultdict[tuple[str, int], OrderedDict[str, int]] = defaultdict(OrderedDict)

    def note(self, circles: Circles) -> None:
        """All of these parties had a turn now."""
        self._given += 1
        for size, party in enumerate(circles):
            had = self._had(circles, size)
            had[party] = self._given
            had.move_to_end(party)
            if len(had) > MOST_REMEMBERED:
                had.popitem(last=False)

    def _last_of(self, circles: Circles) -> list[int]:
        return [self._had(circles, size).get(party, 0) for size, party in enumerate(circles)]

    def _had(self, circles: Circles, size: int) -> OrderedDict[str, int]:
        """Parties of one size that had turns, of one family where they are smaller than that."""
        return self._last[circles[0] if size else "", size]

    def next_of(self, some: Iterable[One]) -> One:
        """Whose turn it is: of the party that had none for longest, in it of its own such party, and so on."""
        return min(some, key=lambda each: (*self._last_of(each.circles), each.number))

    def dispensable(self, some: Sequence[One]) -> One:
        """Who goes if there are too many: of the party that is here most often, in it of its own such party, and so on.

        Of parties of which as many are here the one that had its turn last, or whose last one came last; and of one
        household who came last. ``some`` come in the order of their numbers.
        """
        for size in range(len(some[0].circles)):
            here = Counter(each.circles[size] for each in some)
            if len(here) > 1:
                newest = {each.circles[size]: each.number for each in some}
                last = self._had(some[0].circles, size)
                out = max(here, key=lambda party: (here[party], last.get(party, 0), newest[party]))
                some = [each for each in some if each.circles[size] == out]
        return max(some, key=lambda each: each.number)
