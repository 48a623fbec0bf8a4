"""Which bids together, where the shards of a job wait for each other: the slowest line is paid for by all.

In every round each shard's state goes to the buyer's node, and the new one comes back. The round is over when the last
state is there, and whoever waits is paid as for work. With ``work_ms`` of work between two rounds, and the way of the
states taking ``way_ms`` on the slowest line of the gang, an hour of work therefore costs

    the sum over the gang of (its own terms + price x devices x hour x way_ms / work_ms)

which no table of bids, each scored for itself, can say. But with the longest way that may be taken held fixed, it is a
sum again: the best set is looked for among the bids whose way is no longer, as ever (``hansa.market.affordable``), once
for every way that a bid has. So it is exact wherever that search is, unless there are more than ``MOST_WAYS`` of them.

How long shards *compute* is not weighed here: whether a slow device makes the others wait is up to the job's code,
which may share out work by steps or by time. The state has to go over the line either way. Integers only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from hansa.market.affordable import Candidate, Headroom, best_affordable, one_after_the_other
from hansa.market.scoring import MOST_TERM, Scored
from hansa.proto.units import Amount, DurationMs

T = TypeVar("T")

MOST_WAYS = 32
"""Of more, as many are tried that stand evenly among them; always the longest, with which every bid may win."""
MOST_SEARCHES = 8
"""Of those whose best bids are too dear together, the set that can be paid is searched for with so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """Those of a gang that are there already, or may as well be.

    Attributes:
        hourly: what an hour of all their devices costs.
        way_ms: how long the states of a round take on the slowest of their lines.
    """

    hourly: Amount = 0
    way_ms: DurationMs = 0

    def with_member(self, hourly: int, way_ms: int) -> "Company":
        """With one more."""
        return Company(hourly=self.hourly + hourly, way_ms=max(self.way_ms, way_ms))


def waiting(company: Company, work_ms: int) -> int:
    """What it costs a gang that it waits for its states, for as much work as an hour does."""
    return min(company.hourly * company.way_ms // work_ms, MOST_TERM)


def best_gang(
    candidates: Sequence[Candidate], count: int, funds: int, room: Headroom, *, company: Company, work_ms: int
) -> tuple[Candidate, ...] | None:
    """The set of so many bids with the least expected cost, its waiting for each other included.

    Args:
        candidates: the bids, with their costs but for the waiting; the best first.
        count: how many are needed.
        funds: how much their leases may come to together.
        room: what is given already.
        company: who is in the gang already.
        work_ms: how long shards work between two rounds; 0 where nothing is known of rounds.
    """
    longest_ms = max((company.way_ms, *(one.way_ms for one in candidates)))
    if not work_ms or not longest_ms or not candidates or count < 1:
        return best_affordable(candidates, count, funds, room)
    best: tuple[Candidate, ...] | None = None
    best_cost = 0
    dear: list[list[Candidate]] = []
    by_bid = {one.bid: one for one in candidates}
    for way_ms in _ways(candidates, count, company):
        # Multiplied by the work between two rounds, so that nothing is rounded.
        may = [
            replace(one, cost=one.cost * work_ms + one.hourly * way_ms) for one in candidates if one.way_ms <= way_ms
        ]
        may.sort(key=lambda one: (one.cost, one.bid))
        taken = one_after_the_other(may, count, room)
        if len(taken) < count or sum(one.most for one in taken) > funds:
            dear.append(may)
            continue
        cost = _cost(taken, by_bid, company, work_ms)
        if best is None or cost < best_cost:
            best, best_cost = taken, cost
    for may in _evenly(dear, MOST_SEARCHES):
        found = best_affordable(may, count, funds, room)
        if found is not None and (best is None or _cost(found, by_bid, company, work_ms) < best_cost):
            best, best_cost = found, _cost(found, by_bid, company, work_ms)
    return tuple(by_bid[one.bid] for one in best) if best is not None else None


def _ways(candidates: Sequence[Candidate], count: int, company: Company) -> list[int]:
    """The longest ways that a gang may have, in order: with a shorter one than the first there are too few bids."""
    ways = sorted(one.way_ms for one in candidates)
    least = max(company.way_ms, ways[count - 1]) if len(ways) >= count else ways[-1]
    return _evenly(sorted({max(least, way_ms) for way_ms in ways}), MOST_WAYS)


def _evenly(found: list[T], most: int) -> list[T]:
    """So many of them at the most, the first and the last among them."""
    if len(found) <= most:
        return found
    return [found[place * (len(found) - 1) // (most - 1)] for place in range(most)]


def _cost(taken: Iterable[Candidate], by_bid: Mapping[bytes, Candidate], company: Company, work_ms: int) -> int:
    own = 0
    for one in taken:
        known = by_bid[one.bid]
        own += known.cost
        company = company.with_member(known.hourly, known.way_ms)
    return own * work_ms + company.hourly * company.way_ms


def with_waiting(
    ranking: Sequence[Scored],
    hourly: Mapping[bytes, int],
    taken: Iterable[bytes],
    company: Company,
    work_ms: int,
) -> tuple[Scored, ...]:
    """The table with the term ``rounds``: what a bid's line costs the gang, beside the others as they would be chosen.

    Of the chosen ones it is the waiting of their own devices, so that their scores add up to what the gang costs. Any
    other is charged with what the gang would wait longer for it, had it the place of the one whose hour is the
    cheapest. With that none of the others scores better than one of the chosen, unless devices or money stand in its
    way.

    Args:
        ranking: all bids, scored but for this term.
        hourly: what an hour of all of a bid's devices costs.
        taken: the bids that would be chosen.
        company: who is in the gang already.
        work_ms: how long shards work between two rounds.
    """
    ways = {entry.bid: entry.way_ms for entry in ranking}
    chosen = set(taken)
    gang, others = company, company.hourly
    for bid in chosen:
        gang = gang.with_member(hourly[bid], ways[bid])
    if chosen:
        others = gang.hourly - min(hourly[bid] for bid in chosen)
    weighed = []
    for entry in ranking:
        longer_ms = max(0, entry.way_ms - gang.way_ms)
        term = (hourly[entry.bid] * max(entry.way_ms, gang.way_ms) + others * longer_ms) // work_ms
        rounds = min(term, MOST_TERM)
        weighed.append(replace(entry, rounds=rounds, expected_cost=entry.expected_cost - entry.rounds + rounds))
    return tuple(sorted(weighed, key=lambda entry: (bool(entry.excluded), entry.expected_cost, entry.bid)))
