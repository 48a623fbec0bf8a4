"""How fast adverts are filtered and ranked, and how close the matching of many jobs comes to the best there is.

The markets are drawn from real offers (../shared/data/traces/marketplace-offers); without them it says so and does
nothing. One process, one core. Takes under two minutes: ``python tests/bench/bench_matching.py``. The oracles are
HiGHS, by way of scipy, on the linear programme of the same assignment (whose corners are whole), and scipy's own
Jonker-Volgenant, which solves nothing else.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time

import numpy as np
from marketplace_offers import NOW_MS, OFFERS, adverts, drawn_market, wishes, worth_table
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import coo_array

from hansa.scheduler.matching import Filter, expected_costs, shortlist
from hansa.scheduler.matching_assignment import IMPOSSIBLE, auction, by_value, gangs
from hansa.scheduler.matching_columns import Columns

ADVERTS = 100_000
JOBS = 200
INVITED = 64


def filters() -> None:
    """Speed of filters and scores, of a whole choice, and of a change."""
    standing, looked_for = adverts(ADVERTS, seed=1), wishes(JOBS, seed=2)
    columns = Columns()
    begin = time.perf_counter()
    for advert in standing:
        columns.put(advert)
    putting = time.perf_counter() - begin
    filter_ = Filter(columns)
    ranking, whole, found = [], [], []
    for chance, wish in enumerate(looked_for):
        begin = time.perf_counter()
        rows = filter_.rows(wish, at_ms=NOW_MS)
        costs = expected_costs(columns, rows)
        ranking.append(time.perf_counter() - begin)
        shortlist(columns, rows, costs, most=INVITED, chance=chance)
        whole.append(time.perf_counter() - begin)
        found.append(len(rows))
    begin = time.perf_counter()
    for advert in standing[:10_000]:
        columns.put(advert)
    changing = (time.perf_counter() - begin) / 10_000
    pairs = ADVERTS * JOBS / sum(ranking)
    print(f"filters and scores: {pairs / 1e6:,.1f} million (job, advert) pairs a second (wanted: 1)")
    print(
        f"one job against {len(columns):,} adverts, to the list of {INVITED}:"
        f" median {statistics.median(whole) * 1e3:.2f} ms,"
        f" slowest of {JOBS} {max(whole) * 1e3:.1f} ms (wanted: 20); {statistics.median(found):,.0f} adverts fit"
    )
    print(
        f"an advert of a new account taken in: {putting / ADVERTS * 1e6:.0f} µs, signatures not counted;"
        f" one that is said anew: {changing * 1e6:.0f} µs"
    )


def best_by_highs(worth: NDArray[np.float64]) -> tuple[float, float]:
    """The greatest welfare there is, and the seconds that HiGHS took for it."""
    jobs, lots = worth.shape
    job, lot = np.nonzero(worth > 0)
    pairs = np.arange(len(job))
    once = coo_array(
        (np.ones(2 * len(job)), (np.concatenate((job, jobs + lot)), np.concatenate((pairs, pairs)))),
        shape=(jobs + lots, len(job)),
    ).tocsr()
    begin = time.perf_counter()
    solved = linprog(-worth[job, lot], A_ub=once, b_ub=np.ones(jobs + lots), bounds=(0, 1), method="highs")
    return float(-solved.fun), time.perf_counter() - begin


def assignments() -> None:
    """Welfare against the optimum."""
    for seed in (11, 12, 13):
        worth = worth_table(1_000, 1_000, seed)
        best, seconds = best_by_highs(worth)
        gains = np.where(worth > 0, worth, 0.0)
        begin = time.perf_counter()
        rows, lots = linear_sum_assignment(gains, maximize=True)
        exact = time.perf_counter() - begin
        assert abs(gains[rows, lots].sum() / best - 1) < 1e-6
        for name, match in (("auction", auction), ("by value", by_value)):
            spent = []
            for _ in range(3):
                begin = time.perf_counter()
                result = match(worth)
                spent.append(time.perf_counter() - begin)
            welfare, took = result.welfare(worth) / best, statistics.median(spent)
            print(
                f"1,000 jobs, 1,000 lots, seed {seed}, {name:<8}: {100 * welfare:.2f} % of the optimum,"
                f" {took * 1e3:.0f} ms: {100 * took / seconds:.2f} % of HiGHS' {seconds:.1f} s,"
                f" {100 * took / exact:.0f} % of scipy's own {exact * 1e3:.0f} ms"
            )


def short_lists() -> None:
    """What is lost when every job looks at 16 lots only: the cheapest, or chance picks three quarters of them."""
    for seed in (31, 32):
        worth, price = drawn_market(1_000, 1_000, seed)
        draw = np.random.default_rng(seed)
        whole = auction(worth).welfare(worth)
        kept = []
        for cheapest, by_chance in ((16, 0), (4, 12)):
            seen = np.zeros(worth.shape, dtype=np.bool_)
            for job, row in enumerate(np.isfinite(worth)):
                fitting = np.flatnonzero(row)
                order = fitting[np.argsort(price[fitting], kind="stable")]
                rest = order[cheapest:]
                seen[job, order[:cheapest]] = True
                seen[job, draw.choice(rest, min(by_chance, len(rest)), replace=False)] = True
            pruned = np.where(seen, worth, IMPOSSIBLE)
            kept.append(100 * auction(pruned).welfare(pruned) / whole)
        print(
            f"1,000 jobs that look at 16 lots each, seed {seed}: the 16 cheapest keep {kept[0]:.1f} % of the welfare,"
            f" the 4 cheapest and 12 by chance {kept[1]:.1f} %"
        )


def gang_bound(worth: NDArray[np.float64], shards: NDArray[np.int64]) -> float:
    """What no assignment of gangs can exceed: the linear programme in which parts of a gang may be placed."""
    jobs, lots = worth.shape
    job, lot = np.nonzero(np.isfinite(worth))
    pairs, count = np.arange(len(job)), len(job)
    # Every lot once; of every job all shards or none, as a part y of it.
    once = coo_array((np.ones(count), (lot, pairs)), shape=(lots, count + jobs)).tocsr()
    whole = coo_array(
        (
            np.concatenate((np.ones(count), -shards.astype(np.float64))),
            (np.concatenate((job, np.arange(jobs))), np.concatenate((pairs, count + np.arange(jobs)))),
        ),
        shape=(jobs, count + jobs),
    ).tocsr()
    gain = np.concatenate((-worth[job, lot], np.zeros(jobs)))
    solved = linprog(
        gain, A_ub=once, b_ub=np.ones(lots), A_eq=whole, b_eq=np.zeros(jobs), bounds=(0, 1), method="highs"
    )
    return float(-solved.fun)


def gang_assignments() -> None:
    """Gangs by value against the bound."""
    for seed in (21, 22):
        worth = worth_table(150, 300, seed)
        shards = np.random.default_rng(seed).choice((1, 2, 4, 8), size=150, p=(0.4, 0.3, 0.2, 0.1))
        bound = gang_bound(worth, shards)
        begin = time.perf_counter()
        given = gangs(worth, shards)
        took = time.perf_counter() - begin
        welfare = sum(worth[job, list(lots)].sum() for job, lots in given.items())
        percent = 100 * welfare / bound
        print(f"150 gangs on 300 lots, seed {seed}: {percent:.1f} % of the linear bound, {took * 1e3:.0f} ms")


def main() -> None:
    """Measure and print."""
    if not OFFERS.exists():
        print(f"skipped: {OFFERS} is not here")
        return
    print(f"load before: {os.getloadavg()[0]:.1f}")
    filters()
    assignments()
    short_lists()
    gang_assignments()
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
