"""What a provider's own rule makes of devices, hour and utilisation."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import DEVICE, NOW_MS, PRICE

from hansa.market.pricing_rule import (
    PPM,
    WEEK_MINUTES,
    ClockOffset,
    CurvePoint,
    HourFactor,
    PricingRule,
    factor_at,
    minute_of_week,
    price_of,
)
from hansa.proto.codec import decode, encode

MONDAY_MS = 1_704_067_200_000
"""2024-01-01T00:00:00Z."""
H100, A100 = (
    replace(DEVICE, kind="gpu", model=name, memory_bytes=80 << 30) for name in ("H100-SXM5", "A100-SXM4-80GB")
)
CURVE = tuple(CurvePoint(share_ppm=share, factor_ppm=factor) for share, factor in ((0, 800_000), (PPM, 1_500_000)))


def price(rule, *devices, lease="spot", share_ppm=0, at_ms=NOW_MS):
    return price_of(rule, devices, otherwise_e18=PRICE, lease=lease, share_ppm=share_ppm, at_ms=at_ms)


def test_without_a_rule_every_device_costs_the_posted_price_at_any_time():
    assert price(PricingRule(), H100, A100, share_ppm=PPM, lease="firm").price_e18 == PRICE


def test_each_of_the_very_devices_costs_its_own_rate_and_a_mixed_set_their_mean():
    rule = PricingRule(rates={"H100": 7, "A100-80GB": 4, "A100": 3})
    assert price(rule, H100).price_e18 == 7
    assert price(rule, A100).rates_e18 == (4,)
    assert price(rule, H100, A100).price_e18 == 6  # 5.5, and no rounding is down
    assert price(rule, H100, DEVICE).rates_e18 == (7, PRICE)


def test_all_factors_are_multiplied_and_rounded_once():
    rule = PricingRule(
        rates={"H100": 10**18},
        hours=(HourFactor(begins_minute=0, ends_minute=60, factor_ppm=1_300_000),),
        utilisation=CURVE,
        firm_ppm=1_200_000,
    )
    found = price(rule, H100, lease="firm", share_ppm=500_000, at_ms=MONDAY_MS)
    assert (found.hours_ppm, found.utilisation_ppm, found.lease_ppm) == (1_300_000, 1_150_000, 1_200_000)
    assert found.price_e18 == 10**18 * 13 * 115 * 12 // 10_000
    assert price(rule, H100, share_ppm=500_000, at_ms=MONDAY_MS + 3_600_000).price_e18 == 115 * 10**16


@pytest.mark.parametrize(
    ("share_ppm", "factor_ppm"),
    [(0, 800_000), (1, 800_000), (500_000, 1_150_000), (999_999, 1_499_999), (PPM, 1_500_000)],
)
def test_the_curve_is_straight_between_its_points(share_ppm, factor_ppm):
    assert factor_at(CURVE, share_ppm) == factor_ppm


def test_the_curve_is_level_beyond_its_points():
    middle = (CurvePoint(share_ppm=400_000, factor_ppm=5), CurvePoint(share_ppm=600_000, factor_ppm=3))
    assert [factor_at(middle, share) for share in (0, 400_000, 500_000, 600_000, PPM)] == [5, 5, 4, 3, 3]
    assert factor_at((), 1) == PPM


def test_the_owners_clock_is_what_counts_and_it_changes_with_the_season():
    summer_ms = MONDAY_MS + 1_000_000
    clock = (ClockOffset(from_ms=0, offset_s=-3_600), ClockOffset(from_ms=summer_ms, offset_s=7_200))
    rule = PricingRule(clock=clock)
    assert minute_of_week(PricingRule(), MONDAY_MS) == 0
    assert minute_of_week(rule, MONDAY_MS) == WEEK_MINUTES - 60
    assert minute_of_week(rule, summer_ms) == 1_000 // 60 + 120


def test_nothing_goes_below_the_floor_and_that_is_told():
    rule = PricingRule(rates={"H100": 10}, floor_e18=6, spot_ppm=500_000)
    assert (price(rule, H100).price_e18, price(rule, H100).at_floor) == (6, True)
    assert (price(rule, H100, lease="firm").price_e18, price(rule, H100, lease="firm").at_floor) == (10, False)


FACTORS = st.integers(0, 1_000 * PPM)


@given(
    rates=st.lists(st.integers(0, 1 << 128), min_size=1, max_size=5),
    floor=st.integers(0, (1 << 128) - 1),
    factor=FACTORS,
    share=st.integers(0, PPM),
    points=st.dictionaries(st.integers(0, PPM), FACTORS, max_size=6),
)
def test_whatever_the_rule_the_price_is_one_that_a_bid_can_hold_and_not_below_the_floor(
    rates, floor, factor, share, points
):
    curve = tuple(CurvePoint(share_ppm=at, factor_ppm=points[at]) for at in sorted(points))
    devices = [replace(DEVICE, model=f"model{number}") for number in range(len(rates))]
    rule = PricingRule(
        rates={device.model: rate for device, rate in zip(devices, rates, strict=True)},
        utilisation=curve,
        floor_e18=floor,
        spot_ppm=factor,
    )
    found = price(rule, *devices, share_ppm=share)
    assert floor <= found.price_e18 < 1 << 128
    exact = sum(rates) * factor * factor_at(curve, share)
    assert found.price_e18 * len(rates) * PPM**2 >= min(exact, ((1 << 128) - 1) * len(rates) * PPM**2)
    assert min(points.values(), default=PPM) <= found.utilisation_ppm <= max(points.values(), default=PPM)


def test_a_rule_is_read_back_from_the_journal_as_it_was_written():
    rule = PricingRule(
        rates={"H100": 1 << 100},
        hours=(HourFactor(begins_minute=0, ends_minute=60, factor_ppm=1),),
        clock=(ClockOffset(from_ms=0, offset_s=-18_000),),
        utilisation=CURVE,
    )
    assert decode(encode(rule), PricingRule, limit_bytes=1 << 16) == rule
