"""Money, time and prices: exact both ways, and nothing but plain numbers read."""

from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.proto.units import (
    AtMost,
    Exactly,
    TwosComplement,
    Unsigned,
    amount_for,
    e18_to_price_per_hour,
    format_amount,
    parse_amount,
    price_per_hour_to_e18,
)

UINT128 = st.integers(0, (1 << 128) - 1)
NOT_NUMBERS = ["", " ", "1_000", "\uff11\uff12", "\u0663", "\u00b2",
               "-1", "+1", "1e3", ".5", "5.", "1,5", "0x10", "NaN", "Infinity", "1.2.3",
               " 1", "1\n", "9" * 5000, "1." + "0" * 5000]  # fmt: skip


def test_an_h100_at_two_an_hour_has_the_known_price():
    assert price_per_hour_to_e18("2") == 555555555555555556
    assert amount_for(3_600_000, price_per_hour_to_e18("2")) == 2_000_000


def test_amounts_are_written_with_six_decimals():
    assert format_amount(1_234_567) == "1.234567"
    assert format_amount(0) == "0.000000"
    assert format_amount(1) == "0.000001"
    assert format_amount(-1_500_000) == "-1.500000"
    assert parse_amount("1.25") == 1_250_000


@given(UINT128)
def test_an_amount_written_and_read_is_the_same(amount):
    assert parse_amount(format_amount(amount)) == amount


@given(st.integers(0, 10**15))
def test_a_price_that_a_person_wrote_comes_back_as_written(millionths_per_hour):
    text = format_amount(millionths_per_hour)
    assert e18_to_price_per_hour(price_per_hour_to_e18(text)) == text


@given(st.integers(0, 10**21), st.integers(0, 18))
def test_a_price_is_the_exact_quotient_rounded_up(digits, places):
    with localcontext() as context:
        context.prec = 60
        text = format(Decimal(digits).scaleb(-places), "f")
    exact = Fraction(digits, 10**places) * 10**24 / 3_600_000
    assert 0 <= price_per_hour_to_e18(text) - exact < 1


@given(UINT128, UINT128)
def test_what_is_owed_is_the_exact_floor(device_ms, price_e18):
    owed = Fraction(device_ms * price_e18, 10**18)
    assert 0 <= owed - amount_for(device_ms, price_e18) < 1


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20), st.integers(0, 10**24))
def test_slicing_the_time_neither_skims_nor_adds(intervals, price_e18):
    paid, total = 0, 0
    for interval in intervals:
        total += interval
        due = amount_for(total, price_e18) - paid
        assert due >= 0, "nothing that was paid comes back"
        paid += due
        assert paid == total * price_e18 // 10**18, "what was paid is the floor of the whole, however it was cut"


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_what_is_no_plain_decimal_number_is_refused_in_words(text):
    for read, what in ((parse_amount, "an amount"), (price_per_hour_to_e18, "a price")):
        with pytest.raises(ValueError, match=f"^{what} must be a plain decimal number"):
            read(text)


def test_too_fine_or_too_large_is_refused_in_words():
    with pytest.raises(ValueError, match="at most 6 decimals"):
        parse_amount("0.0000001")
    with pytest.raises(ValueError, match="below 2\\^128"):
        parse_amount(format_amount(1 << 128))
    with pytest.raises(ValueError, match="at most 18 decimals"):
        price_per_hour_to_e18("0." + "0" * 18 + "1")
    with pytest.raises(ValueError, match="below 2\\^128"):
        price_per_hour_to_e18("9" * 40)


@pytest.mark.parametrize("bad", [1.0, True, "1", None])
def test_money_arithmetic_takes_integers_only(bad):
    for call in (lambda: format_amount(bad), lambda: e18_to_price_per_hour(bad), lambda: amount_for(bad, 1)):
        with pytest.raises(ValueError, match="must be an integer"):
            call()
    with pytest.raises(ValueError, match="must be an integer"):
        amount_for(1, bad)
    with pytest.raises(ValueError, match="at least 0"):
        amount_for(-1, 1)
    with pytest.raises(ValueError, match="at least 0"):
        amount_for(1, -1)


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (Unsigned(8), [0, 255], [-1, 256, True, False, 1.0, "1", None, b"\1"]),
        (Unsigned(256), [0, (1 << 256) - 1], [-1, 1 << 256]),
        (TwosComplement(64), [-(1 << 63), (1 << 63) - 1], [-(1 << 63) - 1, 1 << 63, True, 0.0]),
        (Exactly(20), [bytes(20)], [bytes(19), bytes(21), b"", bytearray(20), "a" * 20, 0, None]),
        (AtMost(3), ["", "abc", "é", b"abc", (1, 2, 3)], ["abcd", "éé", b"abcd", (1, 2, 3, 4), [1], 3, None, "\ud800"]),
    ],
)
def test_each_rule_tells_good_from_bad(rule, good, bad):
    assert [rule.fault(value) for value in good] == [None] * len(good)
    assert all(type(rule.fault(value)) is str for value in bad)
