"""Which job gets which devices when many wait at once: the most valuable first, or an auction. numpy, no I/O.

A table has a row for every job and a column for every lot (one device, or one advert that is lent whole), and says what
the match is worth: what the job is worth to its buyer less what it would cost there. What cannot be is ``IMPOSSIBLE``;
a match that is worth nothing is not made. The auction is Bertsekas' with all jobs bidding at once: it ends within the
number of jobs times its step of the best there is, and in practice far closer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

IMPOSSIBLE = -np.inf
AUCTION_FROM = 200
"""With so many jobs waiting the auction is worth its time; with fewer a live market does as well without."""
STEP = 0.05
"""The auction's step, as a part of the mean worth of what is possible."""
NONE = -1
"""Stands for no lot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Who got what.

    Attributes:
        lot: of every job the column that it got, or ``NONE``.
        price: of every lot what it went up to in the auction; 0 without one.
    """

    lot: Ints
    price: Floats

    def welfare(self, worth: Floats) -> float:
        """What all matches together are worth."""
        jobs = np.flatnonzero(self.lot != NONE)
        return float(worth[jobs, self.lot[jobs]].sum())


def assign(worth: Floats, *, auction_from: int = AUCTION_FROM) -> Assignment:
    """One lot for every job, or none: by value while few wait, by auction when many do."""
    return auction(worth) if len(worth) >= auction_from else by_value(worth)


def by_value(worth: Floats) -> Assignment:
    """The job with the most to gain first, each to what is best for it of what is left. The first of equals."""
    jobs, lots = worth.shape
    lot = np.full(jobs, NONE, dtype=np.int64)
    left = np.ones(lots, dtype=np.bool_)
    if lots:
        for job in np.argsort(-worth.max(axis=1), kind="stable"):
            best = int(np.argmax(np.where(left, worth[job], IMPOSSIBLE)))
            if left[best] and worth[job, best] > 0:
                lot[job] = best
                left[best] = False
    return Assignment(lot=lot, price=np.zeros(lots, dtype=np.float64))


def auction(worth: Floats, *, step: float = STEP) -> Assignment:
    """Every job without a lot bids for the one that leaves it the most, by as much as the next best leaves it less.

    Prices begin at 0 and only rise, and a lot that was ever bid for stays sold: so what nobody got costs nothing, which
    is what makes the end nearly the best for all. A job that nothing would leave anything is out.
    """
    jobs, lots = worth.shape
    lot, owner = np.full(jobs, NONE, dtype=np.int64), np.full(lots, NONE, dtype=np.int64)
    price = np.zeros(lots, dtype=np.float64)
    possible = worth > 0
    if not possible.any():
        return Assignment(lot=lot, price=price)
    table = np.where(possible, worth, IMPOSSIBLE)
    by = max(step * float(worth[possible].mean()), float(np.finfo(np.float64).tiny))
    waiting = np.flatnonzero(possible.any(axis=1))
    while len(waiting):
        net = table[waiting] - price
        best = net.argmax(axis=1)
        rows = np.arange(len(waiting))
        most = net[rows, best]
        stays = most > 0
        net[rows, best] = IMPOSSIBLE
        # Staying without is the next best thing for a job that could be nowhere else.
        second = np.maximum(net.max(axis=1), 0.0)
        bidders, wanted, bid = waiting[stays], best[stays], (most - second + by)[stays]
        # The highest bid for every lot; of equal ones the first job's.
        order = np.lexsort((bidders, -bid, wanted))
        first = order[np.flatnonzero(np.diff(wanted[order], prepend=-1))]
        winners, won = bidders[first], wanted[first]
        outbid = owner[won]
        outbid = outbid[outbid != NONE]
        lot[outbid] = NONE
        price[won] += bid[first]
        owner[won], lot[winners] = winners, won
        lost = bidders[lot[bidders] == NONE]
        waiting = np.concatenate((lost, outbid))
    return Assignment(lot=lot, price=price)


def gangs(worth: Floats, shards: Ints) -> dict[int, tuple[int, ...]]:
    """Lots for jobs that need several, all or none: the most valuable shard first. The answer names the lots of each.

    Args:
        worth: of one shard of every job on every lot.
        shards: how many lots every job needs.
    """
    jobs, lots = worth.shape
    left = np.ones(lots, dtype=np.bool_)
    given: dict[int, tuple[int, ...]] = {}
    # What a job could get at best says in which order they choose; what is left decides what each gets.
    hopes = [_best_of(row, np.ones(lots, dtype=np.bool_), int(count)) for row, count in zip(worth, shards, strict=True)]
    hope = np.array([sum(worth[job, list(found)]) / max(len(found), 1) for job, found in enumerate(hopes)])
    for job in np.argsort(-hope, kind="stable") if jobs else ():
        found = _best_of(worth[job], left, int(shards[job]))
        if found:
            given[int(job)] = found
            left[list(found)] = False
    return given


def _best_of(row: Floats, left: NDArray[np.bool_], count: int) -> tuple[int, ...]:
    """The lots that are worth the most to one job; none where there are too few, or all together are worth nothing."""
    possible = np.flatnonzero(left & (row > IMPOSSIBLE))
    if not 0 < count <= len(possible):
        return ()
    best = possible[np.argsort(-row[possible], kind="stable")[:count]]
    return tuple(int(lot) for lot in best) if row[best].sum() > 0 else ()
