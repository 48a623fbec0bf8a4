"""Where a machine stands: countries, areas and cities are told apart from words that only look like them."""

import pycountry
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.market.countries import COUNTRIES, EUROPEAN_UNION
from hansa.market.places import folded, is_in, places_in


@pytest.mark.parametrize(
    ("where", "wanted", "found"),
    [
        ("frankfurt, de, eu", "de", True),
        ("frankfurt, de", "eu", True),
        ("frankfurt de", "germany", True),
        ("frankfurt, germany", "deu", True),
        ("frankfurt, germany", "europe", True),
        ("rio de janeiro", "de", False),
        ("rio de janeiro, brazil", "de", False),
        ("rio de janeiro, brazil", "br", True),
        ("rio de janeiro, brazil", "south america", True),
        ("rio de janeiro, br", "rio de janeiro", True),
        ("wilmington, de, us", "de", False),
        ("wilmington, de, us", "us", True),
        ("los angeles, ca, usa", "ca", False),
        ("toronto, on, ca", "canada", True),
        ("la, us", "laos", False),
        ("zurich, ch", "europe", True),
        ("zurich, ch", "eu", False),
        ("london, uk", "gb", True),
        ("london, england", "united kingdom", True),
        ("cote d'ivoire", "ci", True),
        ("Abidjan, Côte d'Ivoire", "ivory coast", True),
        ("us-east-1", "us", True),
        ("us-east-1", "us-east", True),
        ("eu-west-2", "eu", True),
        ("eu-west-2", "europe", False),
        ("eu", "de", False),
        ("loopback", "us", False),
        ("seoul, korea", "kr", True),
        ("pyongyang, north korea", "kr", False),
        ("san jose, costa rica", "cr", True),
        ("kinshasa, cd", "congo", False),
        ("frankfurt, de", "frankfurt", True),
        ("frankfurt, de", "frank", False),
        ("hong kong", "cn", False),
        ("de", "de", True),
        ("", "de", False),
        ("in my cellar", "in", False),
        ("it room, ch", "it", False),
        ("room it, ch", "it", False),
        ("atlanta, georgia, us", "ge", False),
        ("tbilisi, georgia", "asia", True),
        ("newark, new jersey, usa", "je", False),
        ("santa fe, new mexico, us", "mx", False),
        ("port moresby, papua new guinea", "gn", False),
        ("usage unknown", "us", False),
    ],
)
def test_a_place_is_where_it_is_asked_for(where, wanted, found):
    assert is_in(where, wanted) == found


def test_every_country_is_known_by_its_codes_and_names_and_has_a_continent():
    lines = [line for line in COUNTRIES.split("\n") if line]
    assert {line[:2].upper() for line in lines} == {country.alpha_2 for country in pycountry.countries}
    for country in pycountry.countries:
        code = country.alpha_2.lower()
        for name in (country.alpha_2, country.alpha_3, getattr(country, "common_name", country.name.partition(",")[0])):
            if "(" not in name and folded(name) not in ("congo", "virgin islands", "bonaire"):
                assert is_in(f"somewhere, {name}", code), (country.alpha_2, name)
    names = [name for line in lines for name in line.partition(": ")[2].split(", ")]
    assert len(names) == len(set(names)), "two countries of one name"
    assert all(name == folded(name) for name in names)
    assert len(EUROPEAN_UNION.split()) == 27
    assert {line.partition(":")[0][7:] for line in lines} == {
        *("africa", "antarctica", "asia", "europe", "north america", "oceania", "south america"),
    }


@given(st.text(max_size=40), st.text(max_size=20))
def test_any_words_are_a_place_or_none_and_a_place_is_in_itself(where, wanted):
    assert is_in(where, where)
    assert is_in(where, wanted) in (True, False)
    assert all(len(name) >= 2 for name in places_in(where))
