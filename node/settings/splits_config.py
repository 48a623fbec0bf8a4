"""Shares of a job's payments as people write them: in a job file ``[[splits]]``, in ``config.toml`` a limit.

A percentage has at most two decimals, so it is exact in basis points.
"""

from typing import Any

from hansa.market.value_forms import basis_points
from hansa.node.toml_reader import TomlTable
from hansa.proto.errors import Malformed
from hansa.proto.signing import parse_address
from hansa.proto.splits import MOST_SPLITS, Split, check_splits


def parse_percent(text: str) -> int:
    """Read ``"2.5"`` or ``"2.5 %"`` as basis points, here 250: by a key whose own name is ``percent``.

    Raises:
        ValueError: it is no such number, or above 100 %.
    """
    return basis_points(f"{text.strip().removesuffix('%')}%")


def read_percent(table: TomlTable, key: str, default: str) -> int:
    """A key that holds a percentage, in basis points. A bare ``"1"`` would be the whole to some and 1 % to others."""
    text, hint = table.text(key, default, most=16), f'for example {key} = "10 %"'
    if not text.rstrip().endswith("%"):
        raise table.fault(key, "must be a percentage with its sign", hint)
    try:
        return basis_points(text)
    except ValueError as fault:
        raise table.fault(key, str(fault), hint) from None


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
