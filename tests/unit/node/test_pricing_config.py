"""The owner's own pricing, as it is read from ``config.toml``."""

import datetime as dt
import zoneinfo
from pathlib import Path

import pytest

from hansa.market.pricing_rule import PPM, CurvePoint, PricingRule, minute_of_week
from hansa.node.faults import ConfigError
from hansa.node.settings.config import parse_config
from hansa.node.settings.pricing_config import clock_of, moment_ms, parse_factor
from hansa.proto.units import price_per_hour_to_e18

FILE = Path("/data/config.toml")
NOW_MS = 1_700_000_000_000


def pricing(text):
    return parse_config("[provider.pricing]\n" + text, FILE).provider.pricing


def test_without_a_table_the_posted_price_holds_and_no_program_is_run():
    found = parse_config("[provider]\nenabled = true\n", FILE).provider.pricing
    assert found.rule == PricingRule()
    assert (found.program, found.on_program_fault) == ((), "rule")


def test_everything_that_an_owner_can_write_is_understood():
    found = pricing("""
        floor = "0.20"
        spot = "90 %"
        firm = "1.25"
        program = ["/usr/bin/price", "--cheap"]
        program_timeout = "1 s"
        on_program_fault = "decline"
        [provider.pricing.models]
        "nvidia_a100_80gb_pcie" = "1.50"
        "RTX 4090" = "0.35"
        [provider.pricing.hours]
        "mon 22:00-02:00" = "0.5"
        "sun 23:00-01:00" = "70 %"
        [provider.pricing.utilisation]
        "100 %" = "1.5"
        "0 %" = "0.8"
    """)
    rule = found.rule
    assert (rule.floor_e18, rule.spot_ppm, rule.firm_ppm) == (price_per_hour_to_e18("0.20"), 900_000, 1_250_000)
    assert rule.rates == {"A100-PCIE-80GB": price_per_hour_to_e18("1.50"), "RTX4090": price_per_hour_to_e18("0.35")}
    spans = [(part.begins_minute, part.ends_minute, part.factor_ppm) for part in rule.hours]
    assert spans == [(1_320, 1_560, 500_000), (10_020, 10_080, 700_000), (0, 60, 700_000)]
    assert rule.utilisation == (
        CurvePoint(share_ppm=0, factor_ppm=800_000),
        CurvePoint(share_ppm=PPM, factor_ppm=1_500_000),
    )
    assert (found.program, found.program_timeout_ms) == (("/usr/bin/price", "--cheap"), 1_000)
    assert found.on_program_fault == "decline"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('flor = "1"', 2, "unknown key"),
        ("floor = 0.2", 2, "must be text in quotes"),
        ('spot = "-1"', 2, "must not be negative"),
        ('spot = "0"', 2, "too small"),
        ('firm = "1001"', 2, "above 1000"),
        ('program = ["price"]', 2, "absolute path"),
        ('program_files = ["/srv/../root"]', 2, "absolute path"),
        ('program_timeout = "11 s"', 2, "longer than buyers wait"),
        ('on_program_fault = "bid"', 2, "not one of the allowed words"),
        ('[provider.pricing.models]\n"H100" = "x"', 3, "plain decimal number"),
        ('[provider.pricing.models]\n"A100 80GB" = "1"\n"A100-80GB" = "2"', 4, "the same model"),
        ('[provider.pricing.hours]\n"25:00-26:00" = "1"', 3, "is no hours"),
        ('[provider.pricing.hours]\n"22:00-07:00" = "cheap"', 3, "is no share or factor"),
        ('[provider.pricing.utilisation]\n"101 %" = "1"', 3, "more than all devices"),
        ('[provider.pricing.utilisation]\n"50 %" = "1"\n"0.5" = "2"', 4, "the same share"),
    ],
)
def test_a_mistake_is_told_with_its_line(text, line, words):
    with pytest.raises(ConfigError) as caught:
        pricing(text)
    assert f"{FILE}:{line}:" in caught.value.what
    assert words in caught.value.what


@pytest.mark.parametrize(
    ("text", "millionths"), [("1", PPM), ("0.000001", 1), ("12.5 %", 125_000), ("1000", 1_000 * PPM)]
)
def test_a_factor_is_exact(text, millionths):
    assert parse_factor(text) == millionths


def test_the_clock_of_the_coming_years_is_known_at_the_start():
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")

    def offset_s(at_ms):
        return int(dt.datetime.fromtimestamp(at_ms / 1000, tz=berlin).utcoffset().total_seconds())

    rule = PricingRule(clock=clock_of(offset_s, NOW_MS))
    assert 19 <= len(rule.clock) <= 21
    for day in range(0, 3_600, 7):
        for hour in range(0, 24, 5):
            at_ms = NOW_MS + (day * 24 + hour) * 3_600_000
            local = dt.datetime.fromtimestamp(at_ms / 1000, tz=berlin)
            assert minute_of_week(rule, at_ms) == (local.weekday() * 24 + local.hour) * 60 + local.minute


def test_a_moment_is_read_by_the_owners_clock():
    evening = moment_ms("19:30", lambda _: 7_200, NOW_MS)
    assert dt.datetime.fromtimestamp(evening / 1000, tz=dt.UTC).strftime("%H:%M") == "17:30"
    assert moment_ms("2024-01-01T01:00", lambda _: 3_600, NOW_MS) == 1_704_067_200_000
    assert moment_ms("2024-01-01T00:00Z", lambda _: 3_600, NOW_MS) == 1_704_067_200_000
    with pytest.raises(ValueError, match="hour must be in"):
        moment_ms("25:61", lambda _: 0, NOW_MS)
