"""The kinds of values in the requirements language: the one form in which each is written, and how values compare.

What stands in adverts, bids and tenders is in that form, so that equal things are equal text. Values come from
strangers too; whatever cannot be read raises ``ValueError`` with a sentence, and nothing else.

There is one grammar of quantities: what a person writes in a job file, in ``needs``, in ``config.toml`` or on the
command line is read by the functions here.
"""

import math
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from fractions import Fraction
from typing import Any, Final

from hansa.market.isolation import STRENGTH
from hansa.proto.gpu_models import canonical
from hansa.proto.units import CURRENCY_DECIMALS, PRICE_DECIMALS, Amount, PriceE18, parse_amount, price_per_hour_to_e18

MOST_WORDS: Final = 64
"""Members of one value that is a list."""


class Kind(StrEnum):
    """What sort of value a word has."""

    SIZE = "size"
    NUMBER = "number"
    COUNT = "count"
    VERSION = "version"
    DURATION = "duration"
    SHARE = "share"
    PRICE = "price"
    RATE = "rate"
    TIER = "tier"
    TEXT = "text"
    WORDS = "words"
    PLACE = "place"
    MODEL = "model"
    ACCOUNT = "account"


_NUMBER: Final = r"([0-9]{1,18})(?:\.([0-9]{1,9}))?"
_QUANTITY = re.compile(rf"{_NUMBER} *([A-Za-z%][A-Za-z/]{{0,8}})?", re.ASCII)
_ONE_QUANTITY = re.compile(rf"{_NUMBER} *([A-Za-z]{{1,8}})", re.ASCII)
_QUANTITIES = re.compile(rf"{_ONE_QUANTITY.pattern}(?: *[0-9]{{1,18}} *[A-Za-z]{{1,8}}){{1,3}}", re.ASCII)
_VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,5}", re.ASCII)
_PLAIN = re.compile(_NUMBER, re.ASCII)
# As many digits as a price on the wire can have for an hour: strangers' prices are written in this form too.
_PRICE = re.compile(r"([0-9]{1,40})(?:\.([0-9]{1,18}))?", re.ASCII)
_PPM: Final = 1_000_000
_SIZES: Final[Mapping[str, int]] = {
    **{f"{letter}ib": 1 << power for letter, power in (("k", 10), ("m", 20), ("g", 30), ("t", 40))},
    **{f"{letter}i": 1 << power for letter, power in (("k", 10), ("m", 20), ("g", 30), ("t", 40))},
    **{f"{letter}b": 10**power for letter, power in (("k", 3), ("m", 6), ("g", 9), ("t", 12))},
    "b": 1,
}
_SHOWN_SIZES: Final = (
    *(("TiB", 1 << 40), ("TB", 10**12), ("GiB", 1 << 30), ("GB", 10**9), ("MiB", 1 << 20), ("MB", 10**6)),
    *(("KiB", 1 << 10), ("kB", 10**3), ("B", 1)),
)
_DURATIONS: Final[Mapping[str, int]] = {
    "ms": 1,
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1_000),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60_000),
    **dict.fromkeys(("h", "hour", "hours"), 3_600_000),
    **dict.fromkeys(("d", "day", "days"), 86_400_000),
}
_SHOWN_DURATIONS: Final = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1))
_RATES: Final[Mapping[str, int]] = {
    **{f"{letter}bit/s": 10**power for letter, power in (("k", 3), ("m", 6), ("g", 9))},
    **{f"{letter}bps": 10**power for letter, power in (("k", 3), ("m", 6), ("g", 9))},
    **{f"{letter}b/s": 8 * 10**power for letter, power in (("k", 3), ("m", 6), ("g", 9))},
    "bit/s": 1,
}
_BITS_OR_BYTES: Final = re.compile(r"[A-Za-z]b/s", re.ASCII)
_SHOWN_RATES: Final = (("Gbit/s", 10**9), ("Mbit/s", 10**6), ("kbit/s", 10**3), ("bit/s", 1))
_LARGEST: Final = 1 << 63
_ACCOUNT = re.compile(r"0x[0-9a-f]{40}", re.ASCII)


def _quantity(text: str, units: Mapping[str, int], what: str, example: str) -> int:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[3] is None:
        raise ValueError(f"is no {what}: a number and a unit, such as {example}")
    scale = units.get(match[3].casefold())
    if scale is None:
        raise ValueError(f"has an unknown unit {match[3]!r}; a {what} is for example {example}")
    exact = Fraction(f"{match[1]}.{match[2] or 0}") * scale
    # What is 1.1 GiB to people are 1181116006.4 bytes: powers of two have no tenths.
    is_binary = scale > 1 and scale & (scale - 1) == 0
    whole = math.ceil(exact) if is_binary else exact
    if exact >= _LARGEST or whole.denominator != 1:
        raise ValueError(f"is no {what} that could be counted")
    return int(whole)


def _read_rate(text: str) -> int:
    match = _QUANTITY.fullmatch(text.strip())
    if match is not None and _BITS_OR_BYTES.fullmatch(match[3] or ""):
        # A small b is a bit to some and a byte to others, which are eight apart.
        letter = "k" if match[3][0] in "kK" else match[3][0].upper()
        raise ValueError(f"has a unit that may be bits or bytes: write {letter}bit/s or {letter}B/s")
    return _quantity(text, _RATES, "rate", "500 Mbit/s")


def _shown(value: int, units: tuple[tuple[str, int], ...]) -> str:
    """The fewest of one unit that make it exactly."""
    unit, scale = max((entry for entry in units if value % entry[1] == 0), key=lambda entry: entry[1] if value else 0)
    return f"{value // scale} {unit if value else units[-1][0]}"


def _decimal(text: str, places: int, what: str) -> tuple[int, int]:
    match = _PLAIN.fullmatch(text.strip())
    if match is None or len((match[2] or "").rstrip("0")) > places:
        raise ValueError(f"is no {what}: a plain number of at most {places} decimals" if places else f"is no {what}")
    digits = (match[2] or "").rstrip("0").ljust(places, "0")
    return int(match[1] + digits), 10**places


def _trimmed(value: int, scale: int) -> str:
    whole, part = divmod(value, scale)
    decimals = str(part).rjust(len(str(scale)) - 1, "0").rstrip("0")
    return f"{whole}.{decimals}" if decimals else str(whole)


def size_text(size_bytes: int) -> str:
    """Bytes in the vocabulary's form."""
    return _shown(size_bytes, _SHOWN_SIZES)


def size_bytes(text: str) -> int:
    """A size as bytes, or a ``ValueError``."""
    return _quantity(text, _SIZES, "size", "24 GB or 40 GiB")


def duration_text(duration_ms: int) -> str:
    """Milliseconds in the vocabulary's form."""
    return _shown(duration_ms, _SHOWN_DURATIONS)


def duration_ms(text: str) -> int:
    """A length of time as milliseconds, or a ``ValueError``: ``90 s``, ``1.5 h``, or several units: ``1 h 30 min``."""
    what, example = "length of time", "90 s or 6 h"
    if not _QUANTITIES.fullmatch(text.strip()):
        return _quantity(text, _DURATIONS, what, example)
    parts = [match[0] for match in _ONE_QUANTITY.finditer(text)]
    units = [_quantity(f"1 {part.lstrip('0123456789. ')}", _DURATIONS, what, example) for part in parts]
    if units != sorted(set(units), reverse=True) or "." in text:
        raise ValueError(f"is no {what}: of several units the larger comes first and all are whole, such as 1 h 30 min")
    length_ms = sum(_quantity(part, _DURATIONS, what, example) for part in parts)
    if length_ms >= _LARGEST:
        raise ValueError(f"is no {what} that could be counted")
    return length_ms


def number_text(thousandths: int) -> str:
    """Thousandths, such as those of cores, in the vocabulary's form."""
    return _trimmed(thousandths, 1_000)


def thousandths(text: str) -> int:
    """A number of at most three decimals in thousandths, or a ``ValueError``."""
    return _decimal(text, 3, "number")[0]


def share_text(ppm: int) -> str:
    """Millionths in the vocabulary's form."""
    return _trimmed(ppm, 1_000_000)


def millionths(text: str) -> int:
    """A share or a factor in millionths, or a ``ValueError``: ``0.95`` is ``95 %``, whatever it is of."""
    stripped = text.strip()
    if stripped.endswith("%"):
        return _decimal(stripped.removesuffix("%"), 4, "percentage, such as 95 %")[0]
    return _decimal(stripped, 6, "share or factor, such as 0.95 or 95 %")[0]


def basis_points(text: str) -> int:
    """A share in basis points, or a ``ValueError``."""
    points, rest = divmod(millionths(text), 100)
    if rest:
        raise ValueError("is a percentage with more than two decimals")
    if points > _PPM // 100:
        raise ValueError("is above 100 %")
    return points


def percent_text(ppm: int) -> str:
    """Millionths in whole percent, rounded down: what is short of a hundred is never shown as a hundred."""
    return f"{ppm // 10_000} %"


def _share(text: str) -> str:
    ppm = millionths(text)
    if ppm > _PPM:
        raise ValueError("is more than the whole: a share is from 0 to 1, or 0 % to 100 %")
    return share_text(ppm)


def _version(text: str) -> str:
    stripped = text.strip().removeprefix("v")
    if not _VERSION.fullmatch(stripped):
        raise ValueError("is no version, such as 12.4 or 535.86.05")
    parts = [str(int(part)) for part in stripped.split(".")]
    while len(parts) > 1 and parts[-1] == "0":
        parts.pop()
    return ".".join(parts)


def version_key(version: str) -> tuple[int, ...]:
    """Versions in order: part by part as numbers, so that 12.10 comes after 12.9."""
    return tuple(int(part) for part in version.split("."))


def _count(text: str) -> str:
    return str(_decimal(text, 0, "whole number")[0])


def amount(text: str) -> Amount:
    """Money in its smallest units, or a ``ValueError``. The currency is the node's, so no sign of one is read."""
    return parse_amount(text.strip())


def price_e18(text: str) -> PriceE18:
    """A price of one device and one hour as it is on the wire, or a ``ValueError``."""
    return price_per_hour_to_e18(text.strip())


def _price_parts(text: str) -> tuple[str, str]:
    match = _PRICE.fullmatch(text.strip())
    if match is None:
        raise ValueError("is no price of one device and one hour: a number alone, such as 2.10, in the job's currency")
    return match[1].lstrip("0") or "0", (match[2] or "").rstrip("0")


def _price(text: str) -> str:
    whole, decimals = _price_parts(text)
    return f"{whole}.{decimals}" if decimals else whole


def _price_key(value: str) -> int:
    """In smallest units an hour, and never less than is written."""
    whole, decimals = _price_parts(value)
    per_unit: int = 10 ** (PRICE_DECIMALS - CURRENCY_DECIMALS)
    return -(-int(whole + decimals.ljust(PRICE_DECIMALS, "0")) // per_unit)


def _text(text: str) -> str:
    value = " ".join(text.casefold().replace(";", " ").split())
    if not value or not value.isprintable() or '"' in value or len(value.encode()) > 256:
        raise ValueError("is no short line of text without double quotes")
    return value


def _words(text: str) -> str:
    words = sorted({_text(word) for word in text.split(",") if word.strip()})
    if not words or len(words) > MOST_WORDS:
        raise ValueError(f"is no list of 1 to {MOST_WORDS} words with commas between them")
    return ",".join(words)


def _model(text: str) -> str:
    name = canonical(text)
    if not name or not name.isprintable() or '"' in name or len(name.encode()) > 256:
        raise ValueError("is no name of a model")
    return name


def _account(text: str) -> str:
    account = text.strip().casefold()
    if not _ACCOUNT.fullmatch(account):
        raise ValueError("is no account: 0x and 40 digits, as `hansa wallet address` shows it")
    return account


def _tier(text: str) -> str:
    value = _text(text)
    if value not in STRENGTH:
        raise ValueError(f"is no isolation; there are {', '.join(STRENGTH)}")
    return value


READERS: Final[Mapping[Kind, Callable[[str], str]]] = {
    Kind.SIZE: lambda text: size_text(size_bytes(text)),
    Kind.NUMBER: lambda text: number_text(thousandths(text)),
    Kind.COUNT: _count,
    Kind.VERSION: _version,
    Kind.DURATION: lambda text: duration_text(duration_ms(text)),
    Kind.SHARE: _share,
    Kind.PRICE: _price,
    Kind.RATE: lambda text: _shown(_read_rate(text), _SHOWN_RATES),
    Kind.TIER: _tier,
    Kind.TEXT: _text,
    Kind.WORDS: _words,
    Kind.PLACE: _text,
    Kind.MODEL: _model,
    Kind.ACCOUNT: _account,
}
"""From what people and strangers write to the one form."""
KEYS: Final[Mapping[Kind, Callable[[str], Any]]] = {
    Kind.SIZE: size_bytes,
    Kind.NUMBER: thousandths,
    Kind.COUNT: int,
    Kind.VERSION: version_key,
    Kind.DURATION: duration_ms,
    Kind.SHARE: lambda value: _decimal(value, 6, "share")[0],
    Kind.PRICE: _price_key,
    Kind.RATE: _read_rate,
    Kind.TIER: STRENGTH.index,
}
"""What values in that form are compared by; kinds that are not here know no order."""


def stepped_value(kind: Kind, value: str, step: int) -> str:
    """The value next below or above, where values can be counted; else empty."""
    texts: Mapping[Kind, Callable[[int], str]] = {
        Kind.SIZE: size_text,
        Kind.NUMBER: number_text,
        Kind.COUNT: str,
        Kind.DURATION: duration_text,
        Kind.SHARE: share_text,
        Kind.RATE: lambda rate: _shown(rate, _SHOWN_RATES),
    }
    if kind not in texts:
        return ""
    moved = KEYS[kind](value) + step
    return texts[kind](moved) if moved >= 0 else ""
