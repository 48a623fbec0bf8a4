"""The owner's ``[rules]`` in ``config.toml``: when and under which conditions the machine is lent."""

import datetime as dt
import zoneinfo
from dataclasses import dataclass

from hansa.node.toml_reader import TomlTable
from hansa.scheduler.device_health import HealthRules
from hansa.scheduler.owner_rules import OwnerRules, Window, parse_window


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesConfig:
    """The owner's rules.

    Attributes:
        owner: hours, presence and battery.
        health: what concerns each GPU.
        time_zone: whose hours they are, e.g. ``"Europe/Berlin"``; empty for the machine's.
        power_limit_w: what a lent GPU may draw while this node runs; ``None`` leaves it alone.
    """

    owner: OwnerRules
    health: HealthRules
    time_zone: str
    power_limit_w: int | None

    def utc_offset_s(self, at_ms: int) -> int:
        """How far the owner's clock is ahead of UTC at a moment, with daylight saving."""
        zone = zoneinfo.ZoneInfo(self.time_zone) if self.time_zone else None
        moment = dt.datetime.fromtimestamp(at_ms / 1000, tz=dt.UTC).astimezone(zone)
        offset = moment.utcoffset()
        return int(offset.total_seconds()) if offset is not None else 0


def read_rules(table: TomlTable) -> RulesConfig:
    """Read and check the table.

    Raises:
        ConfigError: anything in it is wrong.
    """
    temperature_c = table.integer("max_temperature_c", 0, least=0, most=120)
    power_limit_w = table.integer("power_limit_w", 0, least=0, most=10_000)
    rules = RulesConfig(
        owner=OwnerRules(
            windows=_windows(table),
            not_while_used=table.boolean("not_while_used", False),
            used_within_ms=table.duration_ms("used_within", "10 min", least=1_000),
            on_battery=table.boolean("battery", False),
        ),
        health=HealthRules(max_temperature_c=temperature_c or None),
        time_zone=_time_zone(table),
        power_limit_w=power_limit_w or None,
    )
    table.finish()
    return rules


def _windows(table: TomlTable) -> tuple[Window, ...]:
    if not table.has("hours") or table.raw("hours") in ("", "always"):
        return ()
    texts = (table.text("hours"),) if isinstance(table.raw("hours"), str) else table.texts("hours", (), most=32)
    try:
        return tuple(parse_window(text) for text in texts)
    except ValueError as fault:
        raise table.fault("hours", "holds something that is no hours", str(fault)) from None


def _time_zone(table: TomlTable) -> str:
    name = table.text("time_zone", "", empty=True)
    try:
        if name:
            zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise table.fault("time_zone", "is none that this machine knows", 'for example "Europe/Berlin"') from None
    return name
