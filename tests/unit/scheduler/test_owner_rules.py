"""A machine is lent in its owner's hours, by the owner's clock, when nobody sits at it and the mains are on."""

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.scheduler.owner_rules import DAY_MINUTES, OwnerFacts, OwnerRules, Window, is_open, objections, parse_window

ABROAD = timezone(timedelta(hours=2))
NIGHT = parse_window("22:00-07:00")
ZONES = ["Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Pacific/Apia", "Pacific/Kiritimati", "UTC"]
windows = st.builds(
    Window,
    days=st.frozensets(st.integers(0, 6)),
    begins_minute=st.integers(0, DAY_MINUTES - 1),
    ends_minute=st.integers(0, DAY_MINUTES),
)
moments = st.datetimes(
    datetime(1970, 1, 3),  # noqa: DTZ001 - the zone is drawn
    datetime(2200, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([ZoneInfo(z) for z in ZONES]),
)


def facts(moment: datetime, **more: object) -> OwnerFacts:
    offset = moment.utcoffset()
    assert offset is not None
    at_ms = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    return OwnerFacts(at_ms=at_ms, utc_offset_s=offset // timedelta(seconds=1), **more)  # type: ignore[arg-type]


def opened(window: Window, moment: datetime) -> bool:
    now = facts(moment)
    return is_open((window,), now.at_ms, now.utc_offset_s)


@given(windows, moments)
def test_a_window_is_open_by_the_owners_own_clock(window: Window, moment: datetime) -> None:
    # Said again in the words of a wall clock: it began today or yesterday, and has not ended.
    minute = moment.hour * 60 + moment.minute
    length = (window.ends_minute - window.begins_minute) % DAY_MINUTES or DAY_MINUTES
    today, yesterday = moment.weekday(), (moment.weekday() - 1) % 7
    began_today = today in window.days and 0 <= minute - window.begins_minute < length
    began_yesterday = yesterday in window.days and minute + DAY_MINUTES - window.begins_minute < length
    assert opened(window, moment) == (began_today or began_yesterday)


@given(windows, moments)
def test_a_window_and_the_rest_of_the_day_never_hold_together(window: Window, moment: datetime) -> None:
    every_day = Window(days=frozenset(range(7)), begins_minute=window.begins_minute, ends_minute=window.ends_minute)
    if window.ends_minute % DAY_MINUTES == window.begins_minute:
        assert opened(every_day, moment)
        return
    rest = Window(days=every_day.days, begins_minute=window.ends_minute % DAY_MINUTES, ends_minute=window.begins_minute)
    assert opened(every_day, moment) != opened(rest, moment)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime(2026, 3, 2, 21, 59, 59, tzinfo=ABROAD), False),
        (datetime(2026, 3, 2, 22, 0, tzinfo=ABROAD), True),
        (datetime(2026, 3, 3, 0, 0, tzinfo=ABROAD), True),
        (datetime(2026, 3, 3, 6, 59, 59, 999_000, tzinfo=ABROAD), True),
        (datetime(2026, 3, 3, 7, 0, tzinfo=ABROAD), False),
    ],
)
def test_a_night_goes_past_midnight(moment: datetime, expected: bool) -> None:
    assert opened(NIGHT, moment) is expected


def test_a_night_that_begins_on_friday_ends_on_saturday_and_saturdays_does_not_begin() -> None:
    fridays = parse_window("fri 22:00-07:00")
    friday = datetime(2026, 3, 6, 23, 0, tzinfo=UTC)
    hours = [opened(fridays, friday + timedelta(hours=hours)) for hours in (-24, 0, 7, 8, 24)]
    assert hours == [False, True, True, False, False]


def test_days_are_named_one_by_one_or_from_one_to_another_even_over_the_weekend() -> None:
    assert parse_window("mon,wed 1:00-2:00").days == {0, 2}
    assert parse_window("Fri-Mon 00:00-24:00").days == {4, 5, 6, 0}
    assert parse_window("mon-fri,sun 8:30 - 9:00") == Window(
        days=frozenset({0, 1, 2, 3, 4, 6}), begins_minute=510, ends_minute=540
    )


@pytest.mark.parametrize(
    "text", ["", "22-7", "25:00-26:00", "22:60-07:00", "24:00-07:00", "xyz 1:00-2:00", "mon- 1:00-2:00"]
)
def test_what_is_no_window_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ValueError, match=r"write for example|hours go|days are"):
        parse_window(text)


@given(st.text(max_size=30))
def test_any_text_is_a_window_or_refused(text: str) -> None:
    try:
        window = parse_window(text)
    except ValueError:
        return
    assert window.days <= set(range(7))


def test_who_computes_is_told_early_enough_to_be_gone_when_the_hours_end() -> None:
    rules = OwnerRules(windows=(NIGHT,))
    said = [
        objections(rules, facts(datetime(2026, 3, 3, hour, minute, tzinfo=UTC)), notice_ms=60_000)
        for hour, minute in ((6, 58), (6, 59), (21, 59), (22, 0))
    ]
    assert said == [(), ("the owner lends at other hours",), ("the owner lends at other hours",), ()]


def test_without_rules_a_machine_on_the_mains_is_always_lent() -> None:
    assert objections(OwnerRules(), OwnerFacts(at_ms=0, idle_ms=0)) == ()


def test_each_rule_says_its_own_word() -> None:
    rules = OwnerRules(windows=(NIGHT,), not_while_used=True, used_within_ms=1000)
    noon = datetime(2026, 3, 3, 12, 0, tzinfo=UTC)
    assert objections(rules, facts(noon, idle_ms=999, on_battery=True)) == (
        "the owner lends at other hours",
        "the owner is using the machine",
        "the machine runs on its battery",
    )


@given(st.none() | st.integers(0, 5000), st.booleans(), st.booleans(), st.booleans())
def test_use_and_battery_count_only_where_the_owner_says_so(
    idle_ms: int | None, not_while_used: bool, may: bool, on_battery: bool
) -> None:
    rules = OwnerRules(not_while_used=not_while_used, used_within_ms=1000, on_battery=may)
    said = objections(rules, OwnerFacts(at_ms=0, idle_ms=idle_ms, on_battery=on_battery))
    assert ("the owner is using the machine" in said) == (not_while_used and idle_ms is not None and idle_ms < 1000)
    assert ("the machine runs on its battery" in said) == (on_battery and not may)
