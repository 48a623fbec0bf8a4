"""Which credit lines that were replaced are remembered, for how long, and how few."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from kit.trading import BUYER, NOW_MS, PROVIDER

from hansa.market.mutual import LATE_MS, LINE_LIFE_MS, MOST_BEFORE, Mutual, relied_on, with_line
from hansa.proto.documents import CreditLine


def line(limit, nonce, signed_ms):
    return CreditLine(
        creditor=PROVIDER, debtor=BUYER, unit=bytes(32), limit=limit, not_after=signed_ms + LINE_LIFE_MS, nonce=nonce
    )


def after(*lines, since_ms=NOW_MS, late_ms=0):
    """What is known after lines that came one after the other, each ``late_ms`` after it says to have been signed."""
    known = Mutual()
    for nonce, (limit, signed_ms) in enumerate(lines, 1):
        known = with_line(known, line(limit, nonce, signed_ms), since_ms=since_ms, at_ms=signed_ms + late_ms)
    return known


NEXT = line(0, 10**6, NOW_MS)


def test_a_line_is_remembered_only_while_a_lease_lives_that_was_awarded_before_it_was_replaced():
    assert after((9, NOW_MS - 5), (1, NOW_MS + 1)).before[0].limit == 9
    assert not after((9, NOW_MS - 5), (1, NOW_MS)).before
    assert not after((9, NOW_MS - 5), (1, NOW_MS + 1), since_ms=None).before


def test_a_line_that_says_to_be_older_than_its_way_here_can_take_is_taken_for_newer():
    assert not after((9, NOW_MS - 5), (1, NOW_MS), late_ms=LATE_MS).before
    assert after((9, NOW_MS - 5), (1, NOW_MS), late_ms=LATE_MS + 1).before


def test_a_line_from_the_future_replaces_none_later_than_now():
    known = with_line(after((9, NOW_MS - 5)), line(1, 2, 10**15), since_ms=NOW_MS, at_ms=NOW_MS + 7)
    assert [entry.until_ms for entry in known.before] == [NOW_MS + 7]


def test_each_lease_goes_by_the_most_that_was_lent_since_its_own_award():
    known = after((9, NOW_MS - 5), (7, NOW_MS + 10), (8, NOW_MS + 20), (1, NOW_MS + 30))
    shown = replace(NEXT, nonce=4)
    assert [relied_on(known, shown, since_ms=NOW_MS + after_ms) for after_ms in (0, 9, 10, 29, 30)] == [9, 9, 8, 8, 0]
    assert relied_on(known, replace(NEXT, nonce=3), since_ms=NOW_MS + 10) == 7, "it goes by an older line than 8"


def test_nobody_gains_by_lowering_its_line_more_often_than_is_remembered():
    lines = [(40 - number, NOW_MS + number) for number in range(40)]
    known = after(*lines)
    assert len(known.before) == MOST_BEFORE
    assert all(relied_on(known, NEXT, since_ms=NOW_MS + number) >= 40 - number for number in range(39))


@given(
    lines=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), min_size=1, max_size=60),
    award=st.integers(0, 60),
)
def test_however_many_lines_are_signed_few_are_kept_and_none_gains_by_it(lines, award):
    at_ms, known, since = NOW_MS - 2, Mutual(), []
    for nonce, (limit, after_ms) in enumerate(lines, 1):
        if known.taken is not None and at_ms + after_ms > NOW_MS + award:
            since.append(known.taken.limit)
        at_ms += after_ms
        known = with_line(known, line(limit, nonce, at_ms), since_ms=NOW_MS, at_ms=at_ms)
    assert len(known.before) <= MOST_BEFORE
    judged = relied_on(known, NEXT, since_ms=NOW_MS + award)
    assert judged >= max(since, default=0), "never less than was lent"
    if len(lines) <= MOST_BEFORE:
        assert judged == max(since, default=0)
