"""Shares of a job's payments as people write them: in a job file ``[[splits]]``, in ``config.toml`` a limit.

A percentage has at most two decimals, so it is exact in basis points.
"""

import re
from typing import Any

from hansa.node.toml_reader import TomlTable
from hansa.proto.errors import Malformed
from hansa.proto.signing import parse_address
from hansa.proto.splits import MOST_SPLITS, WHOLE_BPS, Split, check_splits

_PERCENT = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,2}))? ?%?", re.ASCII)


def parse_percent(text: str) -> int:
    """Read ``"2.5"`` or ``"2.5 %"`` as basis points, here 250.

    Raises:
        ValueError: it is no such number, or above 100 %.
    """
    found = _PERCENT.fullmatch(text.strip())
    if found is None:
        raise ValueError("is no percentage with at most two decimals")
    bps = int(found[1]) * 100 + int((found[2] or "").ljust(2, "0"))
    if bps > WHOLE_BPS:
        raise ValueError("is above 100 %")
    return bps


def read_percent(table: TomlTable, key: str, default: str) -> int:
    """A key that holds a percentage, in basis points."""
    try:
        return parse_percent(table.text(key, default, most=16))
    except ValueError as fault:
        raise table.fault(key, str(fault), f'for example {key} = "10 %"') from None


def read_splits(top: TomlTable, key: str) -> tuple[Split, ...]:
    """The job file's ``[[splits]]``: who else than the provider is paid, and how much of every payment."""
    hint = '[[splits]] account = "0x..." percent = "2.5"'
    raw = top.raw(key) if top.has(key) else []
    if not isinstance(raw, list) or len(raw) > MOST_SPLITS:
        raise top.fault(key, f"must be at most {MOST_SPLITS} tables", hint)
    splits = tuple(sorted((_split(top, key, table) for table in raw), key=lambda split: split.account))
    try:
        check_splits(splits)
    except Malformed as fault:
        raise top.fault(key, fault.why, "each account once, and less than everything in all") from None
    return splits


def _split(top: TomlTable, key: str, raw: Any) -> Split:
    hint = '[[splits]] account = "0x..." percent = "2.5"'
    if not isinstance(raw, dict) or set(raw) != {"account", "percent"} or not all(type(v) is str for v in raw.values()):
        raise top.fault(key, "need an account and a percentage each, both in quotes", hint)
    try:
        return Split(account=parse_address(raw["account"]), bps=parse_percent(raw["percent"]))
    except Malformed as fault:
        raise top.fault(key, f"account {fault.why}", hint) from None
    except ValueError as fault:
        raise top.fault(key, f"percent {fault}", hint) from None
