"""Deadlines come, whatever becomes of the wall clock."""

from hypothesis import given
from hypothesis import strategies as st

from hansa.node.engine.steady_clock import JUMP_MS, SteadyClock

BEGIN_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


class Hands:
    """Both clocks of a machine."""

    def __init__(self):
        self.wall_ms, self.monotonic_ms = BEGIN_MS, 5_000
        self.clock = SteadyClock(lambda: self.wall_ms, lambda: self.monotonic_ms)

    def pass_time(self, by_ms, set_by_ms=0):
        self.monotonic_ms += by_ms
        self.wall_ms += by_ms + set_by_ms


def test_set_back_by_an_hour_it_goes_on_at_the_pace_of_time():
    hands = Hands()
    hands.pass_time(1_000)
    hands.clock.now_ms()
    hands.pass_time(1_000, -HOUR_MS)
    assert hands.clock.now_ms() == BEGIN_MS + 2_000
    hands.pass_time(60_000)
    assert hands.clock.now_ms() == BEGIN_MS + 62_000
    assert hands.clock.ahead_ms() == HOUR_MS
    hands.pass_time(0, HOUR_MS)
    assert (hands.clock.now_ms(), hands.clock.ahead_ms()) == (BEGIN_MS + 62_000, 0), "right again, nothing happened"


def test_set_forward_it_follows_at_once():
    hands = Hands()
    hands.pass_time(1_000, HOUR_MS)
    assert hands.clock.now_ms() == BEGIN_MS + HOUR_MS + 1_000


def test_it_begins_no_earlier_than_what_it_told_in_an_earlier_life():
    hands = Hands()
    hands.clock.begin_at(BEGIN_MS - HOUR_MS)
    assert (hands.clock.now_ms(), hands.clock.ahead_ms()) == (BEGIN_MS, 0)
    hands.clock.begin_at(BEGIN_MS + HOUR_MS)
    hands.pass_time(1_000)
    assert (hands.clock.now_ms(), hands.clock.ahead_ms()) == (BEGIN_MS + HOUR_MS + 1_000, HOUR_MS)
    hands.clock.go_back()
    assert hands.clock.now_ms() == BEGIN_MS + 1_000


def test_where_nothing_runs_it_goes_back_to_the_walls_time():
    hands = Hands()
    hands.pass_time(1_000, -HOUR_MS)
    hands.clock.go_back()
    assert hands.clock.now_ms() == BEGIN_MS + 1_000 - HOUR_MS
    hands.pass_time(1_000)
    assert hands.clock.now_ms() == BEGIN_MS + 2_000 - HOUR_MS


def test_each_jump_is_told_once_and_a_small_correction_is_none():
    hands = Hands()
    for set_by_ms, told_ms in ((0, 0), (-JUMP_MS, 0), (JUMP_MS, 0), (-JUMP_MS - 1, -JUMP_MS - 1), (HOUR_MS, HOUR_MS)):
        hands.pass_time(1_000, set_by_ms)
        assert hands.clock.jumped_ms() == told_ms
        assert hands.clock.jumped_ms() == 0
    hands.pass_time(10 * HOUR_MS)
    assert hands.clock.jumped_ms() == 0, "to be asked seldom is no jump"


@given(steps=st.lists(st.tuples(st.integers(0, 10_000), st.integers(-HOUR_MS, HOUR_MS)), max_size=20))
def test_it_never_goes_back_and_is_never_slower_than_time(steps):
    hands = Hands()
    before_ms = hands.clock.now_ms()
    for by_ms, set_by_ms in steps:
        hands.pass_time(by_ms, set_by_ms)
        now_ms = hands.clock.now_ms()
        assert now_ms >= before_ms + by_ms
        assert now_ms >= hands.wall_ms
        before_ms = now_ms
