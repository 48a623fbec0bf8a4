"""When an owner lends a machine at all: the hours, nobody sitting at it, mains power. Facts in, words out.

No rule looks at a clock or at the machine: the time, the zone's distance from UTC and what the machine is doing come in
as facts.
"""

import re
from dataclasses import dataclass

from hansa.proto.units import DurationMs, UnixMs

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
MINUTE_MS = 60_000
DAY_MS = DAY_MINUTES * MINUTE_MS
EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday."""
_WINDOW = re.compile(r"(?:([a-z][a-z,\-]*) )?([0-9]{1,2}):([0-9]{2}) ?- ?([0-9]{1,2}):([0-9]{2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Hours in which the machine is lent.

    Attributes:
        days: the days on which it begins, Monday being 0.
        begins_minute, ends_minute: of the day; where the end is not after the beginning, it is on the day after.
    """

    days: frozenset[int]
    begins_minute: int
    ends_minute: int

    def holds(self, weekday: int, minute: int) -> bool:
        """Whether a moment is in it."""
        if self.begins_minute < self.ends_minute:
            return weekday in self.days and self.begins_minute <= minute < self.ends_minute
        if minute >= self.begins_minute:
            return weekday in self.days
        return minute < self.ends_minute and (weekday - 1) % 7 in self.days


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerRules:
    """What the owner wants.

    Attributes:
        windows: when to lend; none means always.
        not_while_used: not while somebody sits at the machine.
        used_within_ms: for how long after the last key or movement somebody does.
        on_battery: whether to lend without mains power.
    """

    windows: tuple[Window, ...] = ()
    not_while_used: bool = False
    used_within_ms: DurationMs = 600_000
    on_battery: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerFacts:
    """How things are.

    Attributes:
        at_ms: now.
        utc_offset_s: how far the owner's clock is ahead of UTC at this moment.
        idle_ms: since when nobody touched the machine; ``None`` where nobody is logged in.
        on_battery: there is a battery, and no mains power.
    """

    at_ms: UnixMs
    utc_offset_s: int = 0
    idle_ms: DurationMs | None = None
    on_battery: bool = False


def parse_window(text: str) -> Window:
    """Read ``"22:00-07:00"`` or ``"mon-fri,sun 22:00-07:00"``.

    Raises:
        ValueError: it is neither; its text is a hint.
    """
    found = _WINDOW.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError('write for example "22:00-07:00" or "mon-fri 22:00-07:00"')
    begins, ends = (60 * int(found[at]) + int(found[at + 1]) for at in (2, 4))
    if int(found[3]) > 59 or int(found[5]) > 59 or begins >= DAY_MINUTES or ends > DAY_MINUTES:
        raise ValueError("hours go from 00:00 to 24:00")
    return Window(days=_days(found[1] or ""), begins_minute=begins, ends_minute=ends)


def _days(text: str) -> frozenset[int]:
    if not text:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"days are {', '.join(DAYS)}")
        begin = DAYS.index(first)
        span = (DAYS.index(last) - begin) % 7 if dash else 0
        days.update((begin + step) % 7 for step in range(span + 1))
    return frozenset(days)


def is_open(windows: tuple[Window, ...], at_ms: UnixMs, utc_offset_s: int) -> bool:
    """Whether a moment is in one of the windows; always, if there is none."""
    if not windows:
        return True
    local_ms = at_ms + utc_offset_s * 1000
    weekday, minute = (local_ms // DAY_MS + EPOCH_WEEKDAY) % 7, local_ms % DAY_MS // MINUTE_MS
    return any(window.holds(weekday, minute) for window in windows)


def objections(rules: OwnerRules, facts: OwnerFacts, notice_ms: DurationMs = 0) -> tuple[str, ...]:
    """Why nothing of the machine is lent now, a sentence for each rule; nothing if it is.

    Args:
        rules: what the owner wants.
        facts: how things are.
        notice_ms: how long whoever computes may still take. At the end of the hours they shall have left, so they are
            told this much before it.
    """
    found = []
    now = is_open(rules.windows, facts.at_ms, facts.utc_offset_s)
    if not now or not is_open(rules.windows, facts.at_ms + notice_ms, facts.utc_offset_s):
        found.append("the owner lends at other hours")
    if rules.not_while_used and facts.idle_ms is not None and facts.idle_ms < rules.used_within_ms:
        found.append("the owner is using the machine")
    if facts.on_battery and not rules.on_battery:
        found.append("the machine runs on its battery")
    return tuple(found)
