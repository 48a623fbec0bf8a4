"""What a provider falls short in, one condition at a time: whether a change covers it, how far that goes, and in words.

A condition is made wider, never another one: a bound is moved, a name is added to those that would do, an exclusion or
the whole condition is dropped. So whoever met it before meets it afterwards, and the bids that there are stay. The one
exceptions are what a job has one of: its currency, and the kind of its devices.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from hansa.market.pricing import price_not_below
from hansa.market.shares import SHARE
from hansa.market.vocabulary import ANY, find
from hansa.proto.market_documents import KIND_CPU, Shortfall
from hansa.proto.units import e18_to_price_per_hour, format_amount

PRICE = "price"
"""The price of one device and hour, in the currency: the one thing of which a change is told as a difference."""
TIER = "tier"
BUSY = "free"
"""The devices are there and somebody has them: a shortfall that goes away by waiting."""
LATER = "tender again later"
"""What a provider says to that: no change of the tender's would help, so it names no shortfall."""
SWAPPED = frozenset({"currency", "kind"})
"""A job has one of these: who changes it loses those that it was right for."""
OF_THE_JOB = frozenset({"devices", "shards", "wall", "prepay", "features", "network", "licence", "purpose"})
"""What a job says it will take or do, or what it is, and not a bound on what others have."""
SETS = frozenset({"features", "network"})
"""Of these the nearest value is what of the job's list may stay."""
NOTHING = ("any", "none")
_TERM = re.compile(r"(?:[a-z_]{1,32} )?(<=|>=|!=|==|=|<|>|not in\b|in\b) *(.*)", re.DOTALL)


def busy(devices: int) -> Shortfall:
    """So many devices are there, and not free."""
    return Shortfall(name=BUSY, wanted=f"{BUSY} = {devices}", nearest="later")


def price_shortfall(ceiling_e18: int, price_e18: int) -> Shortfall:
    """A price that is above the ceiling."""
    wanted = e18_to_price_per_hour(ceiling_e18)
    return Shortfall(name=PRICE, wanted=f"{PRICE} <= {wanted}", nearest=price_not_below(price_e18))


@lru_cache(maxsize=16_384)
def _operator_and_value(wanted: str) -> tuple[str, str]:
    """What a condition says, such as ``>=`` and ``24 GiB``; an empty operator where only the value stands."""
    match = _TERM.fullmatch(wanted.strip())
    return (match[1], match[2].strip()) if match else ("", wanted.strip())


@lru_cache(maxsize=16_384)
def _size_of(name: str, value: str) -> Any:
    """A value that has a size, as something that is compared; ``None`` for any other."""
    word = find(name)
    if word is None or not word.is_ordered:
        return None
    try:
        return word.key(word.read(value))
    except ValueError:
        return None


def covers(change: Shortfall, need: Shortfall) -> bool:
    """Whether a condition that is changed like this is one that a provider with this shortfall meets."""
    if (change.name, change.wanted) != (need.name, need.wanted):
        return False
    if change.nearest in (need.nearest, ANY):
        return True
    operator, value = _operator_and_value(change.wanted)
    if operator in ("!=", "not in"):
        # What stays excluded is named: the fewer, the more come.
        return set(change.nearest.split("; ")) <= set(need.nearest.split("; "))
    if change.name in SETS:
        return _listed(change.nearest) <= _listed(need.nearest)
    wanted, given, needed = (_size_of(change.name, text) for text in (value, change.nearest, need.nearest))
    if wanted is None or given is None or needed is None:
        return False
    return bool(given <= needed <= wanted or wanted <= needed <= given)


def _listed(value: str) -> frozenset[str]:
    return frozenset() if value in NOTHING else frozenset(value.split(","))


def cost_of(change: Shortfall) -> Fraction:
    """How much is given up: the share by which a size changes, one for anything else, half of it for waiting."""
    if change.name == BUSY:
        return Fraction(1, 2)
    value = _operator_and_value(change.wanted)[1]
    if change.name in SETS:
        return Fraction(len(_listed(value) - _listed(change.nearest)), max(1, len(_listed(value))))
    wanted, nearest = _size_of(change.name, value), _size_of(change.name, change.nearest)
    if type(wanted) is not int or type(nearest) is not int or change.name == TIER:
        return Fraction(1)
    return Fraction(abs(nearest - wanted), max(wanted, nearest, 1))


def is_hopeless(shortfall: Shortfall) -> bool:
    """Whether no change would help, or one that makes another job of it: what is written for a GPU needs one."""
    return not shortfall.nearest or (shortfall.name == "kind" and shortfall.nearest == KIND_CPU)


def in_one_form(shortfalls: Iterable[Shortfall]) -> tuple[Shortfall, ...]:
    """Sizes as the vocabulary writes them, so that ``price <= 0.420000`` and ``price <= 0.42`` are counted as one."""
    return tuple(
        replace(one, wanted=_wanted_in_one_form(one), nearest=_value_in_one_form(one.name, one.nearest))
        for one in shortfalls
    )


def _wanted_in_one_form(shortfall: Shortfall) -> str:
    operator, value = _operator_and_value(shortfall.wanted)
    same = _value_in_one_form(shortfall.name, value)
    return f"{shortfall.name} {operator} {same}" if operator and same != value else shortfall.wanted


def _value_in_one_form(name: str, value: str) -> str:
    word = find(name)
    if word is None or not word.is_ordered:
        return value
    try:
        return word.read(value)
    except ValueError:
        return value


def change_in_words(change: Shortfall) -> str:
    """The condition as it would have to be: ``vram >= 22 GiB``, ``region may also be us``."""
    name, nearest = change.name, change.nearest
    operator, value = _operator_and_value(change.wanted)
    if name == SHARE:
        return f"{name} = {nearest}" if nearest != ANY else f"{name} = {ANY}, a whole device"
    if name in SETS:
        return f"{name} = {nearest}" if nearest not in NOTHING else f"it asks for no {name}"
    if nearest == ANY:
        return f"{name} may be anything" if operator not in ("<=", ">=", "<", ">") else f"{name} has no limit"
    if operator in ("!=", "not in"):
        return f"{name} not in ({nearest.replace(';', ',')})"
    wanted, size = _size_of(name, value), _size_of(name, nearest)
    if name in OF_THE_JOB or value == ANY or name in SWAPPED or (name == TIER and wanted is not None):
        return f"{name} = {nearest}"
    if wanted is not None and size is not None:
        return f"{name} {'>=' if size < wanted else '<='} {nearest}"
    return f"{name} may also be {nearest}"


def price_in_words(change: Shortfall, unit: str) -> str:
    """By how much more an hour would have to be paid."""
    wanted, nearest = _size_of(PRICE, _operator_and_value(change.wanted)[1]), _size_of(PRICE, change.nearest)
    if wanted is None or nearest is None:
        return f"at {change.nearest} per {unit}"
    whole, _, places = format_amount(max(0, nearest - wanted)).partition(".")
    return f"at +{whole}.{places.rstrip('0').ljust(2, '0')} per {unit}"


def later_in_words(change: Shortfall) -> str:
    """Until when the devices are somebody's, if that is known."""
    return "later (busy now)" if change.nearest in ("", "later") else f"later (busy until about {change.nearest})"
