"""Where a machine stands, in its owner's words, and whether that is where a job asks for.

``Frankfurt, DE`` is in ``de``, in ``Germany``, in ``europe`` and in the ``eu``; ``Rio de Janeiro`` is in none of these.
So what is between two commas is read as one name. A country is known by its code, of two letters or three, or by its
name; where none stands alone, at the end of a name (``Frankfurt DE``). Of regions of clouds ``us`` and ``eu`` are known
at the beginning (``us-east-1``). A country has its continent, and the European Union those of its members. Everything
else is matched by its words, one after the other: ``frankfurt``, ``us-east``. Whatever is said is its owner's word.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Final

from hansa.market.countries import COUNTRIES, EUROPEAN_UNION

_BETWEEN = re.compile(r"[,;/|()]+")
_SIGNS = re.compile(r"[\s\-_.']+")
_MEMBERS: Final = frozenset(EUROPEAN_UNION.split())


def folded(text: str) -> str:
    """Without capitals, accents and signs: one form of a name, however it is written."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    return " ".join(_SIGNS.split(plain.casefold())).strip()


def _read() -> tuple[dict[str, str], dict[str, str]]:
    codes: dict[str, str] = {}
    continents: dict[str, str] = {}
    for line in COUNTRIES.split("\n"):
        head, _, names = line.partition(":")
        if not names:
            continue
        two, three, continent = head.split(" ", 2)
        continents[two] = continent
        codes |= dict.fromkeys((two, three, *names.strip().split(", ")), two)
    return codes, continents


_CODES, _CONTINENTS = _read()
_AREAS: Final = {**dict.fromkeys(("eu", "european union"), "eu"), **{name: name for name in _CONTINENTS.values()}}
"""Names of more than one country."""


@lru_cache(maxsize=4_096)
def places_in(text: str) -> frozenset[str]:
    """The countries, by their codes of two letters, and the areas that a place is in; none that is only like a name."""
    segments = [folded(segment) for segment in _BETWEEN.split(text)]
    found = {_AREAS[name] for segment in segments for name in (segment, _first(segment)) if name in _AREAS}
    countries = {_CODES[segment] for segment in segments if segment in _CODES}
    if not countries:
        # A city before its country, with no comma between them.
        countries = {country for segment in segments if (country := _last(segment))}
    if "us" in countries:
        countries = {"us"}  # Its states share codes and names with countries: ca, de, Georgia.
    for country in countries:
        found |= {country, _CONTINENTS[country]} | ({"eu"} if country in _MEMBERS else set())
    return frozenset(found)


def _first(segment: str) -> str:
    return segment.split(" ", 1)[0]


def _last(segment: str) -> str:
    """The country that the last words are the name or the code of, the longest name first; or that of us-east-1."""
    words = segment.split(" ")
    ends = (" ".join(words[place:]) for place in range(len(words)))
    return next((_CODES[end] for end in ends if end in _CODES), "us" if words[0] == "us" else "")


def is_in(where: str, wanted: str) -> bool:
    """Whether a place is the one that is asked for, or is in it."""
    if where == wanted:
        return True
    name = folded(wanted)
    area = _AREAS.get(name) or _CODES.get(name)
    if area is not None:
        return area in places_in(where)
    plain = " ".join(folded(segment) for segment in _BETWEEN.split(where))
    return bool(name) and f" {name} " in f" {plain} "
