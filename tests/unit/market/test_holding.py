"""Device time that was held in vain: it drains, paid time covers it, and memory is bounded."""

from hansa.market.holding import BUYER_BURST_MS, MOST_BUYERS, STRANGERS_BURST_MS, Holdings, charged, wait_ms

A, B = bytes([1]) * 20, bytes([2]) * 20


def test_what_was_held_drains_with_time():
    full = charged(Holdings(), A, BUYER_BURST_MS + 1_000, paid_ms=0, devices=1, at_ms=0)
    assert wait_ms(full, A, paid_ms=0, devices=1, at_ms=0) == (4_000, 0)
    assert wait_ms(full, A, paid_ms=0, devices=1, at_ms=3_999)[0] > 0
    assert wait_ms(full, A, paid_ms=0, devices=1, at_ms=4_000) == (0, 0)
    assert wait_ms(full, B, paid_ms=0, devices=1, at_ms=0) == (0, 0)


def test_who_paid_before_may_have_more_held_and_finds_room_where_strangers_have_used_up_theirs():
    full = charged(Holdings(), A, STRANGERS_BURST_MS + 1_000, paid_ms=0, devices=1, at_ms=0)
    assert wait_ms(full, B, paid_ms=0, devices=1, at_ms=0) == (0, 2_000)
    assert wait_ms(full, B, paid_ms=1, devices=1, at_ms=0) == (0, 0)
    known = charged(Holdings(), A, BUYER_BURST_MS + 1_000, paid_ms=1_000, devices=1, at_ms=0)
    assert wait_ms(known, A, paid_ms=1_000, devices=1, at_ms=0) == (0, 0)
    assert known.strangers.device_ms == BUYER_BURST_MS


def test_buyers_without_end_take_a_bounded_room_and_the_one_that_held_most_stays():
    state = charged(Holdings(), A, 10**9, paid_ms=0, devices=1, at_ms=0)
    for number in range(MOST_BUYERS + 5):
        state = charged(state, number.to_bytes(20, "big"), 1 + number, paid_ms=0, devices=1, at_ms=0)
    assert len(state.buyers) == MOST_BUYERS
    assert A in state.buyers


def test_a_clock_that_went_back_drains_nothing():
    state = charged(Holdings(), A, 5_000, paid_ms=0, devices=1, at_ms=10_000)
    assert charged(state, A, 0, paid_ms=0, devices=1, at_ms=1).buyers[A] == state.buyers[A]
