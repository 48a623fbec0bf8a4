"""Sizes and lengths of time as people write them in a file or on the command line: ``"512 MiB"``, ``"90 s"``.

Exact integers come out. A bare number is refused because nobody can tell whether 512 meant bytes or mebibytes.
"""

import re
from collections.abc import Mapping
from fractions import Fraction

SIZE_UNITS: Mapping[str, int] = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
DURATION_UNITS: Mapping[str, int] = {
    "ms": 1,
    "s": 1_000,
    "min": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
}
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) *([A-Za-z]{1,8})", re.ASCII)


def _parse(text: str, units: Mapping[str, int], what: str, example: str) -> int:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{what} is a number and a unit, such as {example}")
    scale = units.get(match[2])
    if scale is None:
        raise ValueError(f"unknown unit {match[2]!r}; {what} is in one of {', '.join(units)}")
    exact = Fraction(match[1]) * scale
    if exact.denominator != 1:
        raise ValueError(f"{what} must come out as a whole number of the smallest unit")
    return int(exact)


def parse_size(text: str) -> int:
    """Read a size such as ``"512 MiB"`` as bytes.

    Raises:
        ValueError: it is no number with a unit of size.
    """
    return _parse(text, SIZE_UNITS, "a size", '"512 MiB"')


def parse_duration(text: str) -> int:
    """Read a length of time such as ``"90 s"`` or ``"2 h"`` as milliseconds.

    Raises:
        ValueError: it is no number with a unit of time.
    """
    return _parse(text, DURATION_UNITS, "a length of time", '"90 s"')


def format_size(size_bytes: int) -> str:
    """Write a size for the eye: the largest binary unit that leaves at least 1, with at most one decimal."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= scale:
            tenths = size_bytes * 10 // scale
            return f"{tenths // 10} {unit}" if tenths % 10 == 0 else f"{tenths // 10}.{tenths % 10} {unit}"
    return f"{size_bytes} B"


def format_duration(duration_ms: int) -> str:
    """Write a length of time for the eye, in the two largest units that matter: ``"1 h 5 min"``, ``"12 s"``."""
    if duration_ms < 1_000:
        return f"{duration_ms} ms"
    seconds = duration_ms // 1_000
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
