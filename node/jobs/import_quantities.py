"""Quantities as other systems write them, made exact: ``16Gi``, ``100m``, ``640G``, ``24GB..80GB``, ``2h30m``.

What a card is sold as, such as "80 GB", is between its bytes in thousands and in powers of two: an H100 of "80 GB"
reports 79.6 GiB, a card of "24 GB" reports 24.0 GiB or a little less. So least sizes of a GPU's memory are taken in
thousands, and largest in powers of two: no card falls out of a class that it was sold in.
"""

import re
from collections.abc import Mapping
from decimal import Decimal

from hansa.node.jobs.import_yaml import Value, shown

_BINARY = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_THOUSANDS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15, "e": 10**18}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]{0,3})", re.ASCII)
_DURATION = re.compile(r"([0-9]{1,9}) ?([a-z]{1,8})", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
LARGEST_BYTES = 1 << 60

KUBERNETES = {
    **{f"{unit}i": 1 << bits for unit, bits in (("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50), ("E", 60))},
    **{unit if unit == "k" else unit.upper(): size for unit, size in _THOUSANDS.items()},
    "": 1,
}
"""How Kubernetes and Akash write sizes; case matters."""

HUMAN = {
    **{f"{unit}b": size for unit, size in _THOUSANDS.items()},
    **_THOUSANDS,
    **{f"{unit}ib": 1 << bits for unit, bits in _BINARY.items()},
    **{f"{unit}i": 1 << bits for unit, bits in _BINARY.items()},
    "b": 1,
    "": 1,
}
"""How Bacalhau writes sizes: ``G`` is 10^9, ``GiB`` is 2^30, in any case."""

POWERS = {**{f"{u}b": 1 << bits for u, bits in _BINARY.items()}, **{u: 1 << bits for u, bits in _BINARY.items()}}
"""How SkyPilot and dstack mean sizes of main memory and disks: ``GB`` is 2^30, in any case."""


def size_bytes(value: Value, units: Mapping[str, int], *, text: str | None = None, bare: int = 1) -> int:
    """A size in bytes.

    Args:
        value: where it stands.
        units: what a unit means; looked up as written, then in small letters.
        text: the part of the value that is meant, if it is not all of it.
        bare: what a number without a unit counts.
    """
    written = (value.text() if text is None else text).strip()
    match = _SIZE.fullmatch(written)
    taken = [f"16{unit}" for unit in ("Gi", "GB", "G") if unit in units or unit.lower() in units]
    hint = f"write a number with a unit, such as {' or '.join(taken[:2])}"
    if match is None:
        if "{{" in written:
            value.integer(0, 1)  # which says what is to be done about a template
        raise value.fault(f'"{shown(written)}" is no size', hint)
    scale = units.get(match[2], units.get(match[2].lower())) if match[2] else bare
    if scale is None:
        raise value.fault(f'"{shown(written)}" has an unknown unit', hint)
    size = Decimal(match[1]) * scale
    if size >= LARGEST_BYTES:
        raise value.fault(f'"{shown(written)}" is more than there is anywhere', "write a smaller size")
    return int(size)


def cores_milli(value: Value, *, text: str | None = None) -> int:
    """CPU cores in thousandths: ``4``, ``0.1``, ``100m``, ``4+``."""
    written = (value.text() if text is None else text).strip()
    if match := re.fullmatch(r"([0-9]{1,7})m", written, re.ASCII):
        return int(match[1])
    match = re.fullmatch(r"([0-9]{1,4}(?:\.[0-9]{1,9})?)", written, re.ASCII)
    if match is None:
        if "{{" in written:
            value.integer(0, 1)
        raise value.fault(f'"{shown(written)}" is no number of CPU cores', "write for example 4, 0.5 or 500m")
    return int(Decimal(match[1]) * 1000)


def split_range(value: Value) -> tuple[str, str]:
    """The least and the most of ``A..B``, ``A..``, ``..B``; a lone value is both. Either may be empty, not both."""
    if value.is_mapping:
        least, most = value.get("min"), value.get("max")
        pair = ("" if least is None else least.text().strip(), "" if most is None else most.text().strip())
    else:
        text = value.text().replace(" ", "")
        first, dots, last = text.partition("..")
        pair = (first, last) if dots else (text, text)
    if not any(pair):
        raise value.fault("is a range without ends", "write for example 16GB.. or 16GB..80GB")
    return pair


def duration_ms(value: Value) -> int:
    """A length of time: ``90``, ``90s``, ``2h``, ``1h30m``, ``1d``; a bare number is seconds."""
    written = value.text().strip().lower().replace(" ", "")
    if written.isascii() and written.isdigit() and len(written) < 10:
        return int(written) * 1000
    seconds, rest = 0, written
    while rest and (match := _DURATION.match(rest)):
        unit = _SECONDS.get(match[2]) or _SECONDS.get(match[2][0] if match[2] not in ("ms", "us", "ns") else "")
        if unit is None:
            break
        seconds, rest = seconds + int(match[1]) * unit, rest[match.end() :]
    if rest or not written:
        if "{{" in written:
            value.integer(0, 1)
        raise value.fault(f'"{shown(written)}" is no length of time', "write for example 90s, 30m or 2h")
    return seconds * 1000


def in_needs(size: int, *, largest: bool = False) -> str:
    """A size as ``needs`` has it, in the unit in which it is whole."""
    for unit, scale in (("GiB", 1 << 30), ("GB", 10**9), ("MiB", 1 << 20), ("MB", 10**6)):
        if size % scale == 0:
            return f"{size // scale} {unit}"
    return f"{size} B" if not largest else f"{-(-size // 10**6)} MB"
