"""Who gets what: against exact answers, and what no assignment may ever do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hansa.scheduler.matching_assignment import IMPOSSIBLE, NONE, Assignment, assign, auction, by_value, gangs

optimize = pytest.importorskip("scipy.optimize", reason="scipy is the oracle, and is not installed")


def best(worth: NDArray[np.float64]) -> float:
    """The greatest welfare there is."""
    gains = np.where(worth > 0, worth, 0.0)
    rows, lots = optimize.linear_sum_assignment(gains, maximize=True)
    return float(gains[rows, lots].sum())


def table(seed: int, jobs: int, lots: int) -> NDArray[np.float64]:
    draw = np.random.default_rng(seed)
    worth = draw.lognormal(0, 0.6, (jobs, 1)) * draw.uniform(0.6, 1.2, (jobs, lots)) - draw.lognormal(-0.3, 0.5, lots)
    return np.where(draw.random((jobs, lots)) < 0.4, IMPOSSIBLE, worth)


def check(result: Assignment, worth: NDArray[np.float64]) -> None:
    taken = result.lot[result.lot != NONE]
    assert len(set(taken.tolist())) == len(taken), "no lot is given twice"
    for job in np.flatnonzero(result.lot != NONE):
        assert worth[job, result.lot[job]] > 0, "nobody gets what is worth nothing"


tables = st.tuples(st.integers(0, 1_000), st.integers(0, 12), st.integers(0, 12)).map(lambda drawn: table(*drawn))


@settings(max_examples=200, deadline=None)
@given(tables)
def test_no_lot_is_given_twice_and_nothing_worthless_at_all(worth: NDArray[np.float64]) -> None:
    for result in (by_value(worth), auction(worth), assign(worth)):
        check(result, worth)


@settings(max_examples=200, deadline=None)
@given(tables, st.sampled_from((0.5, 0.05, 0.001)))
def test_the_auction_ends_within_its_step_for_each_job_of_the_best(worth: NDArray[np.float64], step: float) -> None:
    result = auction(worth, step=step)
    possible = worth[worth > 0]
    slack = len(worth) * step * float(possible.mean()) if possible.size else 0.0
    assert result.welfare(worth) >= best(worth) - slack - 1e-9


@settings(max_examples=100, deadline=None)
@given(tables)
def test_at_the_auction_s_prices_nobody_would_rather_have_something_else(worth: NDArray[np.float64]) -> None:
    result = auction(worth, step=0.05)
    possible = worth[worth > 0]
    by = 0.05 * float(possible.mean()) if possible.size else 0.0
    for job, lot in enumerate(result.lot):
        most = max((worth[job] - result.price).max(initial=0.0), 0.0)
        has = worth[job, lot] - result.price[lot] if lot != NONE else 0.0
        assert has >= most - by - 1e-9
    sold = set(result.lot.tolist())
    assert all(price == 0 for lot, price in enumerate(result.price) if lot not in sold)


def test_both_ways_are_near_the_best_in_a_large_market() -> None:
    worth = table(5, 150, 150)
    assert auction(worth).welfare(worth) >= 0.98 * best(worth)
    assert by_value(worth).welfare(worth) >= 0.9 * best(worth)


def test_many_jobs_bid_and_few_are_served_by_value() -> None:
    few, many = table(1, 199, 50), table(1, 200, 50)
    assert not assign(few).price.any()
    assert assign(many).price.any()


def test_the_most_valuable_job_chooses_first() -> None:
    worth = np.array([[3.0, 2.0], [9.0, 1.0]])
    assert by_value(worth).lot.tolist() == [1, 0]


def test_a_market_of_nobody_or_nothing_is_no_market() -> None:
    for shape in ((0, 0), (0, 3), (3, 0)):
        worth = np.zeros(shape)
        for result in (by_value(worth), auction(worth)):
            assert result.lot.tolist() == [NONE] * shape[0]
        assert gangs(worth, np.ones(shape[0], dtype=np.int64)) == {}


@settings(max_examples=150, deadline=None)
@given(tables, st.data())
def test_a_gang_gets_all_its_lots_or_none(worth: NDArray[np.float64], data: st.DataObject) -> None:
    shards = np.array([data.draw(st.integers(1, 4)) for _ in range(len(worth))], dtype=np.int64)
    given_ = gangs(worth, shards)
    taken = [lot for lots in given_.values() for lot in lots]
    assert len(taken) == len(set(taken))
    for job, lots in given_.items():
        assert len(lots) == shards[job]
        assert np.isfinite(worth[job, list(lots)]).all()
        assert worth[job, list(lots)].sum() > 0


def test_gangs_choose_in_the_order_of_what_a_shard_is_worth() -> None:
    worth = np.array([[4.0, 4.0, 4.0], [5.0, 5.0, 5.0], [9.0, IMPOSSIBLE, IMPOSSIBLE]])
    assert gangs(worth, np.array([2, 2, 1])) == {2: (0,), 1: (1, 2)}


def test_gangs_come_near_the_exact_best() -> None:
    reached, possible = 0.0, 0.0
    for seed in range(6):
        worth = table(seed, 8, 14)
        shards = np.random.default_rng(seed).integers(1, 4, 8)
        reached += sum(float(worth[job, list(lots)].sum()) for job, lots in gangs(worth, shards).items())
        possible += exact_gangs(worth, shards)
    assert reached >= 0.85 * possible


def exact_gangs(worth: NDArray[np.float64], shards: NDArray[np.int64]) -> float:
    """The integer programme: x of every pair, y of every job."""
    jobs, lots = worth.shape
    gain = np.concatenate((-np.where(np.isfinite(worth), worth, 0.0).ravel(), np.zeros(jobs)))
    once = np.hstack((np.tile(np.eye(lots), jobs), np.zeros((lots, jobs))))
    whole = np.hstack((np.kron(np.eye(jobs), np.ones(lots)), -np.diag(shards.astype(float))))
    most = np.concatenate((np.isfinite(worth).ravel().astype(float), np.ones(jobs)))
    solved = optimize.milp(
        gain,
        constraints=(
            optimize.LinearConstraint(once, ub=np.ones(lots)),
            optimize.LinearConstraint(whole, np.zeros(jobs), np.zeros(jobs)),
        ),
        integrality=np.ones(len(gain)),
        bounds=optimize.Bounds(0, most),
    )
    return float(-solved.fun)
