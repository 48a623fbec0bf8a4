"""A node may die at any instant around money; ``python tests/simulation/cuts.py`` tries all of them, this a sample."""

import pytest
from simulation.cuts import CutMarket, cuts_of

SAMPLE = 12


@pytest.mark.parametrize("seed", [5, 7, 13])
def test_whatever_is_signed_filed_or_sent_when_a_node_dies_both_sides_still_agree_in_the_end(seed):
    calm = CutMarket(seed)
    calm.play()
    assert calm.points > 20
    found = cuts_of(seed, max(1, calm.points // SAMPLE), first=1 + seed)
    assert sum(found.values()) >= SAMPLE - 1, "each of these instants came, and a node died there"
