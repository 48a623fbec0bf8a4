"""Which bids together: the best set that the money is enough for.

The best bids, one after the other, may come to more than is left of a budget, while others would do: dear devices that
are fast finish for less and may cost more. So where the best ones are too dear, the set with the least expected cost is
looked for among those that can be paid. That is a knapsack with a number of items, and no two that give one device
twice. It is searched from the best downward, leaving out whatever cannot come to less than what was found, or cannot be
paid any more: exact within ``MOST_STEPS`` steps, each of which looks at one bid. Who sent so many bids that this is not
enough gets the best that was found by then, which is never worse than any set that comes of weighing cost against money
in one of ``WEIGHTS`` ways, the cheapest of all among them; where no two bids give the same device, that one is there if
any is. Integers only.
"""

from bisect import insort
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from hansa.market.shares import WHOLE_MILLI

MOST_STEPS = 20_000
"""So many bids are looked at, the same ones again for every set that they are tried in; a fraction of a second."""
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
        hourly: what an hour of them costs.
        way_ms: how long the states of a round are on its line.
    """

    bid: bytes
    provider: bytes
    cost: int
    most: int
    parts: Parts
    hourly: int = 0
    way_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """What is given already, and what more there may be.

    Attributes:
        sold: devices that were sold already.
        had: how many shards each provider has already.
        most_each: how many shards of a job one provider may have; 0 for any number.
    """

    sold: Parts = field(default_factory=Counter)
    had: Mapping[bytes, int] = field(default_factory=dict)
    most_each: int = 0

    def after(self, one: Candidate) -> "Headroom":
        """What there is once it was taken."""
        had = {**self.had, one.provider: self.had.get(one.provider, 0) + 1}
        return Headroom(sold=self.sold + one.parts, had=had, most_each=self.most_each)


def fits_beside(sold: Parts, parts: Parts) -> bool:
    """Whether nothing would be had twice: parts of one device may be, up to the whole."""
    return all(sold[device] + milli <= WHOLE_MILLI for device, milli in parts.items())


def one_after_the_other(candidates: Sequence[Candidate], count: int, room: Headroom) -> tuple[Candidate, ...]:
    """The first of them that can stand beside each other; fewer than ``count`` where there are no more."""
    given = _Given(room)
    for one in candidates:
        if len(given.taken) == count:
            break
        if given.takes(one):
            given.take(one)
    return tuple(given.taken)


def cheapest(candidates: Sequence[Candidate], count: int, room: Headroom) -> tuple[Candidate, ...]:
    """A set that needs as little money as can be."""
    return one_after_the_other(sorted(candidates, key=lambda one: (one.most, one.cost, one.bid)), count, room)


def best_affordable(
    candidates: Sequence[Candidate], count: int, funds: int, room: Headroom
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
    search.look(count, room)
    return search.best


def _money(taken: Sequence[Candidate]) -> int:
    return sum(one.most for one in taken)


def _cost(taken: Sequence[Candidate]) -> int:
    return sum(one.cost for one in taken)


class _Search:
    """One search: what is the best so far, and what the rest can come to at the least."""

    def __init__(self, *, candidates: Sequence[Candidate], funds: int) -> None:
        self.candidates = candidates
        self.funds = funds
        self.best: tuple[Candidate, ...] | None = None
        self.best_cost = 0
        self.costs = [0, *accumulate(one.cost for one in candidates)]
        self.least: list[list[int]] = []

    def start(self, count: int, room: Headroom) -> None:
        """Sets to begin with, and for every place in the line the least money that so many after it can need."""
        cost, money = max(1, _cost(self.candidates)), max(1, _money(self.candidates))
        for power in range(WEIGHTS):
            weight = (1 << power) - 1 if power + 1 < WEIGHTS else 1 << 128
            weighed = sorted(
                self.candidates, key=lambda one: (one.cost * money * 64 + one.most * cost * weight, one.bid)
            )
            self.take_if_better(one_after_the_other(weighed, count, room), count)
        self.take_if_better(cheapest(self.candidates, count, room), count)
        lowest: list[int] = []
        for one in reversed(self.candidates):
            insort(lowest, one.most)
            del lowest[count:]
            self.least.append([0, *accumulate(lowest)])
        self.least.reverse()

    def take_if_better(self, taken: tuple[Candidate, ...], count: int) -> None:
        """Keep a set if it is whole, can be paid, and is better than what was found before."""
        if len(taken) < count or _money(taken) > self.funds:
            return
        cost = _cost(taken)
        if self.best is None or cost < self.best_cost:
            self.best, self.best_cost = taken, cost

    def look(self, count: int, room: Headroom) -> None:
        """Every set, as far as it could be better than the best: the deepest first, without a call for each bid.

        There may be a thousand shards, which is deeper than calls go; and strangers send the bids, so every turn is a
        step, whether the bid that it looks at can be taken or not.
        """
        given, place, taken_at = _Given(room), 0, list[int]()
        for _ in range(MOST_STEPS):
            left = count - len(given.taken)
            if left and self._may_be_better(given, place, left):
                one = self.candidates[place]
                if given.takes(one) and given.money + one.most <= self.funds:
                    given.take(one)
                    taken_at.append(place)
                place += 1
                continue
            if not left:
                self.take_if_better(tuple(given.taken), count)
            if not taken_at:
                return
            given.drop()
            place = taken_at.pop() + 1

    def _may_be_better(self, given: "_Given", place: int, left: int) -> bool:
        """Whether so many of those from this place on can still be paid, and cost less than the best that was found."""
        if place + left > len(self.candidates) or given.money + self.least[place][left] > self.funds:
            return False
        # They stand in the order of their cost: whatever comes later costs no less than those just ahead.
        ahead = self.costs[place + left] - self.costs[place]
        return self.best is None or given.cost + ahead < self.best_cost


class _Given:
    """What is taken beside what was given already; the last of it can be put back."""

    def __init__(self, room: Headroom) -> None:
        self._sold, self._had, self._most_each = Counter(room.sold), dict(room.had), room.most_each
        self.taken: list[Candidate] = []
        self.cost, self.money = 0, 0

    def takes(self, one: Candidate) -> bool:
        """Whether a bid can be taken too."""
        if self._most_each and self._had.get(one.provider, 0) >= self._most_each:
            return False
        return fits_beside(self._sold, one.parts)

    def take(self, one: Candidate) -> None:
        """Take it."""
        self.taken.append(one)
        self._count(one, 1)

    def drop(self) -> None:
        """Put back what was taken last."""
        self._count(self.taken.pop(), -1)

    def _count(self, one: Candidate, sign: int) -> None:
        for device, milli in one.parts.items():
            self._sold[device] += sign * milli
        self._had[one.provider] = self._had.get(one.provider, 0) + sign
        self.cost += sign * one.cost
        self.money += sign * one.most
