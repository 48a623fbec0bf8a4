"""Markets of dozens of nodes of which half play: whatever they win by it, nothing is sold twice and no one overpays."""

import collections

import pytest
from simulation.strategies import BUYERS_STRATEGIES, PROVIDERS_STRATEGIES, StrategicMarket
from simulation.world import NONE

QUICK = (0, 1, 2, 7, 8, 10)
"""Seeds of worlds that are played in a second or two; the others are among the long tests."""


@pytest.mark.parametrize("seed", QUICK)
def test_whoever_plays_nothing_is_sold_twice_no_one_overpays_and_everything_ends(seed):
    StrategicMarket(seed).play()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(12, 72))
def test_the_same_in_many_more_worlds(seed):
    StrategicMarket(seed).play()


@pytest.mark.long
def test_hundreds_of_nodes_play_and_every_tender_is_decided(monkeypatch):
    monkeypatch.setattr(StrategicMarket, "PROVIDERS", (200, 200))
    monkeypatch.setattr(StrategicMarket, "BUYERS", (20, 20))
    monkeypatch.setattr(StrategicMarket, "JOBS", (15, 15))
    market = StrategicMarket(1, NONE)
    market.play()
    assert len(market.nodes) == 220


def test_where_a_third_plays_most_honest_jobs_are_served_and_the_others_know_why():
    """A winner that does not come costs four seconds and no more: the losing bids are there to replace it."""
    ends = collections.Counter()
    for seed in range(600, 603):
        market = StrategicMarket(seed, NONE, players=0.34)
        market.play()
        for buyer, _ in market.auditor.jobs.values():
            for _, of in buyer.engine.state.jobs.all() if buyer.honest else ():
                ends[of.phase] += 1
                assert of.phase == "succeeded" or of.reason
    assert ends["succeeded"] > ends["failed"] > 0, ends


def test_every_strategy_has_its_move():
    for name in (*PROVIDERS_STRATEGIES, *BUYERS_STRATEGIES):
        assert callable(getattr(StrategicMarket.LIAR, f"_{name}"))


def test_two_games_of_one_seed_agree():
    assert StrategicMarket(7).play().digest == StrategicMarket(7).play().digest
