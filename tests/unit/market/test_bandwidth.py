"""What is believed of a line that this node measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.market.bandwidth import (
    BACK,
    FRESH_MS,
    KEPT,
    LEAST_BYTES,
    LEAST_SLOW_BYTES,
    LONG_MS,
    MOST_BYTES_PER_S,
    THERE,
    Bandwidth,
    noted,
    rate_of,
)
from hansa.market.pace import KEPT as ROUNDS_KEPT
from hansa.market.pace import LONGEST_WORK_MS, Pace, with_round
from hansa.proto.codec import decode, encode

NOW_MS = 10**12
EMPTY = Bandwidth(provider=b"p" * 20)


def after(*rates, before=EMPTY, is_bound=False, way=BACK):
    for place, rate in enumerate(rates):
        before = noted(before, way, rate, is_bound=is_bound, at_ms=NOW_MS + place)
    return before


def known(line, way=BACK):
    return line.bytes_per_s(way, NOW_MS + 100)


def test_one_stall_does_not_ruin_a_line_and_one_fast_hour_does_not_make_it():
    assert known(after(100, 100, 100, 1)) == 100
    assert known(after(100, 100, 100, 9_999)) == 100


def test_who_was_fast_and_is_slow_now_counts_as_slow_after_four_transfers():
    line = after(*[1_000] * KEPT)
    assert [known(after(*[10] * count, before=line)) for count in range(5)] == [1_000] * 4 + [10]


def test_each_way_is_its_own():
    line = after(100, before=after(7, way=THERE))
    assert (known(line, THERE), known(line, BACK)) == (7, 100)


def test_what_our_own_line_may_have_held_up_raises_the_figure_and_never_lowers_it():
    line = after(100)
    assert after(50, 50, 50, before=line, is_bound=True) == line
    raised = after(200, 300, before=line, is_bound=True)
    assert known(raised) == 200
    assert known(after(5, is_bound=True)) == 5


def test_what_is_old_says_nothing():
    line = after(100)
    assert line.bytes_per_s(BACK, NOW_MS + FRESH_MS - 1) == 100
    assert line.bytes_per_s(BACK, NOW_MS + FRESH_MS) == 0
    # So what may be our own line's fault counts again.
    later = noted(line, BACK, 20, is_bound=True, at_ms=NOW_MS + FRESH_MS)
    assert later.bytes_per_s(BACK, NOW_MS + FRESH_MS) == 20


@pytest.mark.parametrize(
    ("size_bytes", "took_ms", "rate"),
    [
        (LEAST_BYTES, 1_000, LEAST_BYTES),
        (LEAST_BYTES - 1, 1_000, 0),
        (LEAST_BYTES - 1, LONG_MS, (LEAST_BYTES - 1) // 5),
        (LEAST_SLOW_BYTES - 1, 60_000, 0),
        (LEAST_BYTES, 0, LEAST_BYTES * 1_000),
        (1 << 39, 1, MOST_BYTES_PER_S),
        (1 << 62, 1_000, 0),
    ],
)
def test_a_transfer_says_something_if_it_was_large_or_long(size_bytes, took_ms, rate):
    assert rate_of(size_bytes, took_ms) == rate


@given(st.lists(st.tuples(st.sampled_from((THERE, BACK)), st.integers(1, MOST_BYTES_PER_S), st.booleans())))
def test_what_is_kept_of_a_line_is_bounded_and_can_be_written_down(drawn):
    line = EMPTY
    for way, rate, is_bound in drawn:
        line = noted(line, way, rate, is_bound=is_bound, at_ms=NOW_MS)
    assert max(len(line.there), len(line.back)) <= KEPT
    assert decode(encode(line), Bandwidth, limit_bytes=10_000) == line


def test_of_the_newest_rounds_the_middle_one_counts():
    pace = None
    for work_ms in (10, 1_000, 1_000, 1 << 60):
        pace = with_round(pace, Pace(kind=b"k" * 32, state_bytes=work_ms, works_ms=(work_ms,)))
    assert (pace.work_ms, pace.state_bytes, pace.works_ms[-1]) == (1_000, 1 << 60, LONGEST_WORK_MS)
    for _ in range(ROUNDS_KEPT):
        pace = with_round(pace, Pace(kind=b"k" * 32, state_bytes=5, works_ms=(0,)))
    assert (len(pace.works_ms), pace.work_ms) == (ROUNDS_KEPT, 1)
