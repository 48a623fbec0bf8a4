"""Which bids together: the best set that the money is enough for.

The best bids, one after the other, may come to more than is left of a budget, while others would do: dear devices that
are fast finish for less and may cost more. So where the best ones are too dear, the set with the least expected cost is
looked for among those that can be paid. That is a knapsack with a number of items, and no two that give one device
twice. It is searched from the best downward, leaving out whatever cannot come to less than what was found, or cannot be
paid any more: exact within ``MOST_STEPS`` steps. Who sent so many bids that this is not enough gets the best that was
found by then, which is never worse than any set that comes of weighing cost against money in one of ``WEIGHTS`` ways,
the cheapest of all among them; where no two bids give the same device, that one is there if any is. Integers only.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hansa.market.shares import WHOLE_MILLI

MOST_STEPS = 20_000
"""So many sets are looked into; a fraction of a second."""
WEIGHTS = 24
"""Ways to weigh money against cost, each twice the one before: the last of them sees only money."""

Parts = Counter[tuple[bytes, bytes]]
"""What of whose devices, in thousandths of a device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A bid that may win.

    Attributes:
        bid: its digest.
        provider: who made it.
        cost: what the work is expected to cost with it, by which it is compared.
        most: what its lease can cost at the most: so much must be left of the budget.
        parts: the devices that it gives.
    """

    bid: bytes
    provider: bytes
    cost: int
    most: int
    parts: Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is given already, and what more there may be.

    Attributes:
        sold: devices that were sold already.
        had: how many shards each provider has already.
        most_each: how many shards of a job one provider may have; 0 for any number.
    """

    sold: Parts = field(default_factory=Counter)
    had: Mapping[bytes, int] = field(default_factory=dict)
    most_each: int = 0

    def takes(self, one: Candidate) -> bool:
        """Whether a bid can be taken beside what is given already."""
        if self.most_each and self.had.get(one.provider, 0) >= self.most_each:
            return False
        return fits_beside(self.sold, one.parts)

    def after(self, one: Candidate) -> "Room":
        """What there is once it was taken."""
        had = {**self.had, one.provider: self.had.get(one.provider, 0) + 1}
        return Room(sold=self.sold + one.parts, had=had, most_each=self.most_each)


def fits_beside(sold: Parts, parts: Parts) -> bool:
    """Whether nothing would be had twice: parts of one device may be, up to the whole."""
    return all(sold[device] + milli <= WHOLE_MILLI for device, milli in parts.items())


def one_after_the_other(candidates: Sequence[Candidate], count: int, room: Room) -> tuple[Candidate, ...]:
    """The first of them that can stand beside each other; fewer than ``count`` where there are no more."""
    taken: list[Candidate] = []
    for one in candidates:
        if len(taken) == count:
            break
        if room.takes(one):
            room = room.after(one)
            taken.append(one)
    return tuple(taken)


def cheapest(candidates: Sequence[Candidate], count: int, room: Room) -> tuple[Candidate, ...]:
    """A set that needs as little money as can be."""
    return one_after_the_other(sorted(candidates, key=lambda one: (one.most, one.cost, one.bid)), count, room)


def best_affordable(
    candidates: Sequence[Candidate], count: int, funds: int, room: Room
) -> tuple[Candidate, ...] | None:
    """The set of so many bids with the least expected cost whose leases cannot cost more than ``funds``.

    Args:
        candidates: the bids, those with the least expected cost first.
        count: how many are needed.
        funds: how much they may come to together.
        room: what is given already.
    """
    first = one_after_the_other(candidates, count, room)
    if len(first) == count and _money(first) <= funds:
        return first
    search = _Search(candidates=candidates, funds=funds)
    search.start(count, room)
    search.look(0, (), count, room)
    return search.best


def _money(taken: Sequence[Candidate]) -> int:
    return sum(one.most for one in taken)


def _cost(taken: Sequence[Candidate]) -> int:
    return sum(one.cost for one in taken)


class _Search:
    """One search: what is the best so far, and how many steps it took."""

    def __init__(self, *, candidates: Sequence[Candidate], funds: int) -> None:
        self.candidates = candidates
        self.funds = funds
        self.best: tuple[Candidate, ...] | None = None
        self.steps = 0
        self.least: list[list[int]] = []

    def start(self, count: int, room: Room) -> None:
        """Sets to begin with, and for every place in the line the least money that so many after it can need."""
        cost, money = max(1, _cost(self.candidates)), max(1, _money(self.candidates))
        for power in range(WEIGHTS):
            weight = (1 << power) - 1 if power + 1 < WEIGHTS else 1 << 128
            weighed = sorted(
                self.candidates, key=lambda one: (one.cost * money * 64 + one.most * cost * weight, one.bid)
            )
            self.offer(one_after_the_other(weighed, count, room), count)
        self.offer(cheapest(self.candidates, count, room), count)
        lowest: list[int] = []
        for one in reversed(self.candidates):
            lowest = sorted((*lowest, one.most))[:count]
            sums = [0]
            for most in lowest:
                sums.append(sums[-1] + most)
            self.least.append(sums)
        self.least.reverse()

    def offer(self, taken: tuple[Candidate, ...], count: int) -> None:
        """Keep a set if it is whole, can be paid, and is better than what was found before."""
        if (
            len(taken) == count
            and _money(taken) <= self.funds
            and (self.best is None or _cost(taken) < _cost(self.best))
        ):
            self.best = taken

    def look(self, place: int, taken: tuple[Candidate, ...], left: int, room: Room) -> None:
        """Every set that begins with those taken, as far as it could be better than the best."""
        self.steps += 1
        cost, money = _cost(taken), _money(taken)
        if not left:
            self.offer(taken, len(taken))
            return
        while place + left <= len(self.candidates) and self.steps <= MOST_STEPS:
            ahead = self.candidates[place : place + left]
            if self.best is not None and cost + _cost(ahead) >= _cost(self.best):
                return  # They stand in the order of their cost: whatever comes later costs no less.
            if money + self.least[place][left] > self.funds:
                return
            one = self.candidates[place]
            if room.takes(one) and money + one.most <= self.funds:
                self.look(place + 1, (*taken, one), left - 1, room.after(one))
            place += 1
