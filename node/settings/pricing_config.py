"""``[provider.pricing]`` in ``config.toml``: the owner's rule of pricing, and the program that may take its place."""

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import dataclass

from hansa.market.pricing_rule import (
    MINUTE_MS,
    MOST_FACTOR_PPM,
    PPM,
    WEEK_MINUTES,
    ClockOffset,
    CurvePoint,
    HourFactor,
    PricingRule,
)
from hansa.market.value_forms import millionths, price_e18
from hansa.node.toml_reader import TomlTable
from hansa.proto.gpu_models import canonical
from hansa.proto.units import DurationMs
from hansa.scheduler.owner_rules import DAY_MINUTES, DAY_MS, Window, parse_window

ON_FAULT_RULE, ON_FAULT_DECLINE = "rule", "decline"
MOST_ENTRIES = 256
CLOCK_DAYS = 10 * 366
"""So far ahead a node knows at its start how its owner's clock is set; it looks anew at every start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PricingConfig:
    """How this node prices.

    Attributes:
        rule: the owner's rule, without the clock, which is read when the node starts.
        program: a program of the owner's that is asked for each price, and its arguments; empty for none.
        program_files: what else of this machine it may read.
        program_timeout_ms: how long it may take.
        on_program_fault: what is done when it names no price: ``"rule"`` or ``"decline"``.
    """

    rule: PricingRule
    program: tuple[str, ...]
    program_files: tuple[str, ...]
    program_timeout_ms: DurationMs
    on_program_fault: str


def parse_factor(text: str) -> int:
    """Read ``"1.25"`` or ``"125 %"`` as millionths.

    Raises:
        ValueError: it is no such number, or above 1000.
    """
    ppm = millionths(text)
    if ppm > MOST_FACTOR_PPM:
        raise ValueError("is above 1000")
    return ppm


def read_pricing(table: TomlTable) -> PricingConfig:
    """Read and check the table and those below it.

    Raises:
        ConfigError: anything in it is wrong.
    """
    rule = PricingRule(
        rates=_rates(table.table("models")),
        hours=_hours(table.table("hours")),
        utilisation=_utilisation(table.table("utilisation")),
        floor_e18=table.price_e18("floor", "0"),
        spot_ppm=_factor(table, "spot"),
        firm_ppm=_factor(table, "firm"),
    )
    config = PricingConfig(
        rule=rule,
        program=_paths(table, "program"),
        program_files=_paths(table, "program_files"),
        program_timeout_ms=table.duration_ms("program_timeout", "500 ms", least=50),
        on_program_fault=table.choice("on_program_fault", ON_FAULT_RULE, (ON_FAULT_RULE, ON_FAULT_DECLINE)),
    )
    if config.program_timeout_ms > 10_000:
        raise table.fault("program_timeout", "is longer than buyers wait", 'for example program_timeout = "500 ms"')
    table.finish()
    return config


def _factor(table: TomlTable, key: str) -> int:
    return table.quantity(key, "1", parse_factor, '"0.9"', least=1)


def _keys(table: TomlTable) -> list[str]:
    if len(table.values) > MOST_ENTRIES:
        raise table.fault("", f"has more than {MOST_ENTRIES} entries", "shorten it")
    return list(table.values)


def _rates(table: TomlTable) -> dict[str, int]:
    rates: dict[str, int] = {}
    for key in _keys(table):
        name = canonical(key)
        if name in rates:
            raise table.fault(key, f"is the same model as another line: {name}", "keep one of them")
        rates[name] = table.quantity(key, "", price_e18, '"2.10"', bits=128)
    return rates


def _hours(table: TomlTable) -> tuple[HourFactor, ...]:
    parts: list[HourFactor] = []
    for key in _keys(table):
        try:
            window = parse_window(key)
        except ValueError as fault:
            raise table.fault(key, "is no hours", str(fault)) from None
        factor_ppm = table.quantity(key, "", parse_factor, '"0.8"')
        parts += [HourFactor(begins_minute=a, ends_minute=b, factor_ppm=factor_ppm) for a, b in _in_week(window)]
    return tuple(parts)


def _in_week(window: Window) -> list[tuple[int, int]]:
    """The window's parts of the week, in minutes since Monday 00:00; what passes Sunday night goes on on Monday."""
    length = window.ends_minute - window.begins_minute
    length = length if length > 0 else length + DAY_MINUTES
    parts: list[tuple[int, int]] = []
    for day in sorted(window.days):
        begins = day * DAY_MINUTES + window.begins_minute
        ends = begins + length
        parts.append((begins, min(ends, WEEK_MINUTES)))
        if ends > WEEK_MINUTES:
            parts.append((0, ends - WEEK_MINUTES))
    return parts


def _utilisation(table: TomlTable) -> tuple[CurvePoint, ...]:
    points: dict[int, int] = {}
    for key in _keys(table):
        try:
            share_ppm = parse_factor(key)
        except ValueError as fault:
            raise table.fault(key, str(fault), 'for example "50 %" = "1.2"') from None
        if share_ppm > PPM:
            raise table.fault(key, "is more than all devices", 'for example "100 %" = "1.5"')
        if share_ppm in points:
            raise table.fault(key, "is the same share as another line", "keep one of them")
        points[share_ppm] = table.quantity(key, "", parse_factor, '"1.2"')
    return tuple(CurvePoint(share_ppm=share, factor_ppm=points[share]) for share in sorted(points))


def _paths(table: TomlTable, key: str) -> tuple[str, ...]:
    words = table.texts(key, (), most=64)
    absolute = words if key == "program_files" else words[:1]
    for word in absolute:
        if not word.startswith("/") or "/../" in f"{word}/":
            raise table.fault(key, "must begin with an absolute path", f'for example {key} = ["/usr/local/bin/price"]')
    return words


def clock_of(utc_offset_s: Callable[[int], int], from_ms: int) -> tuple[ClockOffset, ...]:
    """How an owner's clock will be ahead of UTC in the next years, with every change to the minute.

    Args:
        utc_offset_s: how far it is at a moment.
        from_ms: from when on.
    """
    known = utc_offset_s(from_ms)
    found = [ClockOffset(from_ms=0, offset_s=known)]
    before_ms = from_ms
    for after_ms in range(from_ms + DAY_MS, from_ms + CLOCK_DAYS * DAY_MS, DAY_MS):
        if (offset_s := utc_offset_s(after_ms)) != known:
            low_ms, high_ms = before_ms, after_ms
            while high_ms - low_ms > MINUTE_MS // 2:
                middle_ms = (low_ms + high_ms) // 2
                low_ms, high_ms = (low_ms, middle_ms) if utc_offset_s(middle_ms) != known else (middle_ms, high_ms)
            # Changes are at full minutes of UTC.
            found.append(ClockOffset(from_ms=-(-low_ms // MINUTE_MS) * MINUTE_MS, offset_s=offset_s))
            known = offset_s
        before_ms = after_ms
    return tuple(found)


def moment_ms(text: str, utc_offset_s: Callable[[int], int], now_ms: int) -> int:
    """Read ``"14:30"`` (today, by the owner's clock) or an ISO date and time as a moment.

    Raises:
        ValueError: it is neither.
    """
    offset = dt.timedelta(seconds=utc_offset_s(now_ms))
    local = dt.datetime.fromtimestamp(now_ms / 1000, tz=dt.UTC) + offset
    if re.fullmatch(r"[0-9]{1,2}:[0-9]{2}", text):
        hour, minute = (int(part) for part in text.split(":"))
        local = local.replace(hour=hour, minute=minute, second=0, microsecond=0)
        return int((local - offset).timestamp() * 1000)
    found = dt.datetime.fromisoformat(text)
    if found.tzinfo is not None:
        return int(found.timestamp() * 1000)
    as_utc_ms = int(found.replace(tzinfo=dt.UTC).timestamp() * 1000)
    return as_utc_ms - utc_offset_s(as_utc_ms) * 1000
