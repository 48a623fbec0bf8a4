"""Which isolation serves which wish."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.market.isolation import STRENGTH, is_served

TIERS = st.sampled_from(STRENGTH)


@given(TIERS, TIERS)
def test_a_stronger_tier_serves_a_weaker_wish_and_never_the_other_way_round(wanted, given_tier):
    assert is_served(wanted, given_tier) == (STRENGTH.index(given_tier) >= STRENGTH.index(wanted))


@given(TIERS, TIERS, TIERS)
def test_the_order_has_no_gaps(one, two, three):
    if is_served(one, two) and is_served(two, three):
        assert is_served(one, three)


@pytest.mark.parametrize("given_tier", [*STRENGTH, "", "bunker"])
def test_who_asks_for_nothing_is_served_by_anything(given_tier):
    assert is_served("", given_tier)
    assert is_served("none", given_tier)


@given(st.text(max_size=10).filter(lambda text: text not in (*STRENGTH, "")), TIERS)
def test_a_word_that_nobody_knows_equals_only_itself(word, tier):
    assert is_served(word, word)
    assert not is_served(word, tier)
    assert is_served(tier, word) == (tier == "none")
