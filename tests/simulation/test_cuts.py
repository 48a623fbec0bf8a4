"""A node may die at any instant around money; ``python tests/simulation/cuts.py`` tries all of them, this a sample."""

import pytest
from simulation.cuts import CutMarket, cuts_of

SAMPLE = 12
WORLDS = 20
"""So many are looked at for one in which something is traded: in some nobody can serve what is asked for."""


@pytest.mark.parametrize("first", [0, 100, 200])
def test_whatever_is_signed_filed_or_sent_when_a_node_dies_both_sides_still_agree_in_the_end(first):
    seed, points = next((seed, points) for seed in range(first, first + WORLDS) if (points := points_of(seed)) > 20)
    found = cuts_of(seed, max(1, points // SAMPLE), first=1 + seed % 10)
    assert sum(found.values()) >= SAMPLE - 1, "each of these instants came, and a node died there"


def points_of(seed):
    calm = CutMarket(seed)
    calm.play()
    return calm.points
