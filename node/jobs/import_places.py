"""Countries by their two letters, and what else their people may call them.

Who lends a machine says in words of their own where it stands, such as "Bergen, Norway". A condition on countries in
two letters alone would miss most of them, and one that excludes a country would let it pass. So their names go with
them.
"""

from collections.abc import Iterable

_NAMES = {
    "ae": "uae, united arab emirates, dubai",
    "am": "armenia",
    "ar": "argentina",
    "at": "austria",
    "au": "australia",
    "az": "azerbaijan",
    "bd": "bangladesh",
    "be": "belgium",
    "bg": "bulgaria",
    "br": "brazil, brasil",
    "by": "belarus",
    "ca": "canada",
    "ch": "switzerland",
    "cl": "chile",
    "cn": "china, prc",
    "co": "colombia",
    "cy": "cyprus",
    "cz": "czechia, czech republic",
    "de": "germany, deutschland",
    "dk": "denmark",
    "ee": "estonia",
    "eg": "egypt",
    "es": "spain",
    "fi": "finland",
    "fr": "france",
    "gb": "uk, united kingdom, great britain, england, scotland, wales",
    "ge": "georgia",
    "gr": "greece",
    "hk": "hong kong",
    "hr": "croatia",
    "hu": "hungary",
    "id": "indonesia",
    "ie": "ireland",
    "il": "israel",
    "in": "india",
    "ir": "iran",
    "is": "iceland",
    "it": "italy",
    "jp": "japan",
    "ke": "kenya",
    "kp": "north korea",
    "kr": "korea, south korea",
    "kz": "kazakhstan",
    "lt": "lithuania",
    "lu": "luxembourg",
    "lv": "latvia",
    "ma": "morocco",
    "md": "moldova",
    "mn": "mongolia",
    "mt": "malta",
    "mx": "mexico",
    "my": "malaysia",
    "nl": "netherlands, holland",
    "no": "norway",
    "nz": "new zealand",
    "pe": "peru",
    "ph": "philippines",
    "pk": "pakistan",
    "pl": "poland",
    "pt": "portugal",
    "qa": "qatar",
    "ro": "romania",
    "rs": "serbia",
    "ru": "russia, russian federation",
    "sa": "saudi arabia",
    "se": "sweden",
    "sg": "singapore",
    "si": "slovenia",
    "sk": "slovakia",
    "sy": "syria",
    "th": "thailand",
    "tn": "tunisia",
    "tr": "turkey, türkiye",
    "tw": "taiwan",
    "ua": "ukraine",
    "us": "usa, united states",
    "uz": "uzbekistan",
    "vn": "vietnam, viet nam",
    "za": "south africa",
}
_RESERVED = ("in", "and", "or", "not", "any")


def in_words(codes: Iterable[str]) -> tuple[str, ...]:
    """Each country's letters and names, as the list of a condition in ``needs`` has them."""
    words = [word for code in codes for word in (code, *_NAMES.get(code, "").split(", ")) if word]
    return tuple(f"'{word}'" if " " in word or word in _RESERVED else word for word in dict.fromkeys(words))


def is_known(code: str) -> bool:
    """Whether the country's names are known."""
    return code in _NAMES
