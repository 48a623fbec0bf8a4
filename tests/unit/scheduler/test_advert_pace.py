"""However many providers there are, their class says the same number of adverts a second."""

from hypothesis import given
from hypothesis import strategies as st

from hansa.scheduler.advert_pace import (
    FIRST_EVERY_MS,
    FIRST_PAUSE_MS,
    LAST_EVERY_MS,
    LONGEST_LIFE_MS,
    SHARE_MS,
    every_ms,
    life_ms,
    pause_ms,
    was_hardly_heard,
)


@given(st.integers(0, 1 << 40))
def test_an_advert_is_said_again_well_before_it_ends_and_never_stands_for_too_long(providers):
    assert FIRST_EVERY_MS <= every_ms(providers) <= LAST_EVERY_MS
    assert 3 * every_ms(providers) < life_ms(providers) <= LONGEST_LIFE_MS
    assert FIRST_PAUSE_MS <= pause_ms(providers) <= every_ms(providers)


@given(st.integers(FIRST_EVERY_MS // SHARE_MS, LAST_EVERY_MS // SHARE_MS))
def test_a_class_says_five_adverts_a_second_however_many_are_in_it(providers):
    assert providers * 1000 / every_ms(providers) <= 5.001


def test_in_a_small_market_a_change_is_said_within_a_second():
    assert pause_ms(0) == pause_ms(75) == FIRST_PAUSE_MS
    assert pause_ms(1_000) == 20_000
    assert life_ms(0) == 60_000


def test_what_was_said_when_hardly_anybody_was_there_is_said_anew_as_they_come():
    assert was_hardly_heard(0, 1)
    assert was_hardly_heard(3, 4)
    assert not was_hardly_heard(0, 0)
    assert not was_hardly_heard(4, 5)
    assert not was_hardly_heard(3, 2)
