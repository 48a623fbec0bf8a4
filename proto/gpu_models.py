"""One form for the name of every GPU model, however a driver, a marketplace or a person writes it.

``"NVIDIA A100-SXM4-80GB"`` of a driver, ``nvidia_a100_80gb_pcie`` of a Kubernetes label, ``RTX_4090`` of a query and
``A100-80GB`` of a job all become *base*, then the *form* in which the card is made, then its *memory*, each only where
it is said and is not plain from what stands before it: ``A100-SXM4-80GB``, ``RTX4090``, ``A100-80GB``. A MIG slice is
what it is, so its profile stays: ``A100-SXM4-40GB MIG 1g.5gb``.

A name that is no GPU's, such as a processor's, stays as it is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

GIB: Final = 1 << 30
NEAR_PERCENT: Final = 7
"""A driver reports up to so much less than is printed on the box: it keeps some, and error correction takes some."""

_SEPARATORS = re.compile(r"[\s_\-/(),®™]+")
_PROFILE = re.compile(r"\bmig[\s_\-]+((?:[1-9][cC]\.)?[1-9]g\.[0-9]{1,3}gb(?:\+[a-z.]+)?)(?![0-9a-z])", re.IGNORECASE)
_MEMORY = re.compile(r"([1-9][0-9]{0,2})(?:gb|gib|g)", re.ASCII)
_GLUED_MEMORY = re.compile(r"(.*[a-z0-9]{2})m(16|32)", re.ASCII)
_FORM = re.compile(r"sxm[0-9]?|pcie|nvl|dgxs|fhhl|oam", re.ASCII)
_GLUED_FORM = re.compile(r"([a-z]+[0-9]+[a-z]?)(sxm[0-9]?|pcie|nvl)", re.ASCII)
_NOISE: Final = "nvidia amd ati geforce tesla quadro instinct radeon graphics gpu corporation generation edition vf"
_MAKERS: Final = frozenset(_NOISE.split(" "))
_STACKED: Final = frozenset(("hbm2", "hbm2e", "hbm3", "hbm3e"))

_CONSUMER = re.compile(r"(rtx|gtx|gt)?([0-9]{3,4})((?:ti|super|s|d|ada|sff|laptop|mobile|maxq|with|design)*)", re.ASCII)
_BARE = re.compile(r"(?:(?:[2345]0[5-9]0)|(?:1[06][1-8]0))", re.ASCII)
_AMPERE = re.compile(r"(?:rtx)?a(400|1000|2000|4000|4500|5000|5500|6000)(laptop|maxq)?", re.ASCII)
_PRO = re.compile(r"rtxpro([0-9]{3,4})(blackwell)?(maxq)?(server|workstation|s|se|w|wk|ws|we)?", re.ASCII)
_AMD = re.compile(r"mi[0-9]{2,3}[axp]?|rx[0-9]{3,4}(?:xtx|xt|gre|s|m)?|(?:pro)?(?:w|v)[0-9]{3,4}[a-z]?", re.ASCII)
_TITAN = re.compile(r"(?:gtx)?titan(xp|x|v|rtx|black|z)?", re.ASCII)
_CARD = re.compile(r"(?:gb|gh|gv|[abghklmpt])[0-9]{1,4}[cdgmsx]?|v100s?|cmp[0-9]{2,3}hx", re.ASCII)

_PRO_EDITIONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("server", "s", "se"), "SERVER"),
    **dict.fromkeys(("workstation", "w", "wk", "ws", "we"), "WORKSTATION"),
}
_SXM: Final[Mapping[str, str]] = {
    **dict.fromkeys(("P100", "V100"), "SXM2"),
    **dict.fromkeys(("A100", "A800"), "SXM4"),
    **dict.fromkeys(("H100", "H200", "H800", "H20"), "SXM5"),
    **dict.fromkeys(("B200", "B300"), "SXM6"),
}
"""Which generation of the socket ``SXM`` by itself means: each of these was made for one only."""
_USUAL_FORM: Final[Mapping[str, str]] = {"H200": "SXM5", "B200": "SXM6", "B300": "SXM6"}
"""How a card is made whose driver's name does not say: those that are made otherwise do."""
_MADE_WITH_GB: Final[Mapping[int, str]] = {
    8: "P4 RTX4000 GTX1070 GTX1070TI GTX1080 RTX2070 RTX2070-SUPER RTX2080 RTX2080-SUPER RTX3060TI RTX3070 "
    "RTX3070TI RTX4060",
    11: "GTX1080TI RTX2080TI",
    12: "K80 RTX3080TI RTX4070 RTX4070-SUPER RTX4070TI RTX5070 TITAN-V",
    16: "A2 A16 T4 P100 RTXA4000 RTX5000 RTX2000-ADA RTX4070TI-SUPER RTX4080 RTX4080-SUPER RTX5070TI RTX5080",
    20: "RTXA4500 RTX4000-ADA RX7900XT",
    24: "A10 A10G A30 L4 P40 RTXA5000 RTXA5500 RTX6000 RTX4500-ADA RTXPRO4000 RTX3090 RTX3090TI RTX4090 "
    "RTX4090D TITAN-RTX RX7900XTX",
    32: "V100S RTX5000-ADA RTXPRO4500 RTX5090 RTX5090D MI100 W7800",
    48: "A40 L20 L40 L40S RTXA6000 RTX8000 RTX5880-ADA RTX6000-ADA W7900",
    64: "MI210",
    80: "H100-SXM5 H100-PCIE H800",
    94: "H100-NVL",
    96: "RTXPRO6000",
    128: "MI300A",
    141: "H200",
    180: "B200",
    192: "MI300X",
    256: "MI325X",
    288: "B300 MI350X MI355X",
}
_MEMORY_GB: Final = {name: memory_gb for memory_gb, names in _MADE_WITH_GB.items() for name in names.split()}
"""Memory of models that are made with one size only, by base, or by base and form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuModel:
    """A GPU's name, understood.

    Attributes:
        base: the model, such as ``"A100"`` or ``"RTX4070TI-SUPER"``.
        form: how it is made, such as ``"SXM4"``, ``"PCIE"`` or ``"NVL"``; empty where nobody says.
        memory_gb: as it is printed on the box; 0 where the name does not say and does not imply it.
        profile: of a MIG slice, such as ``"1g.5gb"``; else empty.
    """

    base: str
    form: str = ""
    memory_gb: int = 0
    profile: str = ""

    @property
    def name(self) -> str:
        """The one form."""
        told = self.memory_gb and self.memory_gb != _implied_gb(self.base, self.form)
        parts = [self.base, *([self.form] if self.form else []), *([f"{self.memory_gb}GB"] if told else [])]
        return "-".join(parts) + (f" MIG {self.profile}" if self.profile else "")


@lru_cache(maxsize=4096)
def parse(text: str) -> GpuModel | None:
    """What a name says of a GPU; ``None`` for one that is no GPU's that anybody would know."""
    profile = ""
    if found := _PROFILE.search(text):
        profile, text = found[1].lower(), text[: found.start()]
    tokens = [token for token in _SEPARATORS.split(text.casefold().replace("max-q", "maxq")) if token]
    form, memory_gb, stacked = "", 0, False
    rest: list[str] = []
    for token in tokens:
        if token in _MAKERS:
            continue
        if token in _STACKED:
            stacked = True
        elif (match := _MEMORY.fullmatch(token)) and rest:
            memory_gb = int(match[1])
        elif _FORM.fullmatch(token) and rest:
            form = token.upper()
        elif match := _GLUED_FORM.fullmatch(token):
            rest.append(match[1])
            form = match[2].upper()
        elif match := _GLUED_MEMORY.fullmatch(token):
            rest.append(match[1])
            memory_gb = int(match[2])
        else:
            rest.append(token)
    known = _base(rest)
    if known is None:
        return None
    base, edition = known
    form = edition or form
    if stacked and not form and base in ("H100", "H800"):
        form = "SXM5"  # its driver names the kind of memory of these, and the socket of the others
    if form == "SXM":
        form = _SXM.get(base, form)
    if form == "OAM":
        form = ""  # the only way in which AMD's are made that have it in their names
    if base == "GH200":
        memory_gb = memory_gb if memory_gb < 200 else 0  # the larger figures are of the processor's own memory
    return GpuModel(base=base, form=form, memory_gb=memory_gb or _implied_gb(base, form), profile=profile)


def _base(words: list[str]) -> tuple[str, str] | None:
    """The base, and the edition where the name has one; ``None`` for a name that is no GPU's."""
    head = "".join(words)
    if match := _PRO.fullmatch(head):
        return f"RTXPRO{match[1]}", "MAXQ" if match[3] else _PRO_EDITIONS.get(match[4] or "", "")
    if match := _AMPERE.fullmatch(head):
        return f"RTXA{match[1]}{'-LAPTOP' if match[2] else ''}", ""
    if (match := _CONSUMER.fullmatch(head)) and (match[1] or _BARE.fullmatch(match[2])):
        return _consumer(match[1] or ("gtx" if match[2].startswith("1") else "rtx"), match[2], match[3]), ""
    if match := _TITAN.fullmatch(head):
        return "TITAN" + (f"-{match[1].upper()}" if match[1] else ""), ""
    if head == "mi250xmi250":
        return "MI250X", ""  # as AMD's driver names both
    if _AMD.fullmatch(head) and head not in ("v100", "v100s"):
        return head.removeprefix("pro").upper(), ""
    # A virtual GPU is named "A40-48Q": what it shares, and how, is no card.
    return (head.upper(), "") if len(words) == 1 and _CARD.fullmatch(head) else None


def _consumer(series: str, number: str, tail: str) -> str:
    laptop = "laptop" in tail or "mobile" in tail or "maxq" in tail
    ada, sff = "ada" in tail, "sff" in tail
    for word in ("laptop", "mobile", "maxq", "with", "design", "ada", "sff"):
        tail = tail.replace(word, "")
    faster = "super" in tail or "s" in tail.replace("super", "")
    tail = tail.replace("super", "").replace("s", "")
    name = series.upper() + number + ("TI" if "ti" in tail else "") + ("D" if "d" in tail else "")
    marks = (("SUPER", faster), ("SFF", sff), ("ADA", ada), ("LAPTOP", laptop))
    return "-".join([name, *(mark for mark, has in marks if has)])


def _implied_gb(base: str, form: str) -> int:
    return _MEMORY_GB.get(f"{base}-{form}") or _MEMORY_GB.get(base, 0)


@lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """The one form of a model's name; the same text, without spaces around it, where it is no GPU's."""
    model = parse(text)
    return " ".join(text.split()) if model is None else model.name


@lru_cache(maxsize=16384)
def matches(wanted: str, have: str, memory_bytes: int = 0) -> bool:
    """Whether a device of one model is what somebody wants who names a model or a family of them.

    Args:
        wanted: ``"A100"`` is met by any A100 that is whole, ``"A100-80GB"`` by those of 80 GB, ``"H100-SXM"`` by those
            for that socket. A name that is no GPU's is met where all its words stand in ``have`` next to each other.
        have: the device's model, in any form.
        memory_bytes: the device's memory as its driver says it; 0 leaves it to the names.
    """
    wish, model = parse(wanted), parse(have)
    if wish is None:
        return _holds(_words(have), _words(wanted))
    if model is None or wish.base != model.base or wish.profile != model.profile:
        return False
    if wish.form and not (model.form or _USUAL_FORM.get(model.base, "")).startswith(wish.form):
        return False
    # What a wish for a model implies is no wish: a card with more than it usually has is that model still.
    asked_gb = wish.memory_gb if replace(wish, memory_gb=0).name != wish.name else 0
    if not asked_gb:
        return True
    if model.memory_gb and replace(model, memory_gb=0).name != model.name:
        return asked_gb == model.memory_gb
    if memory_bytes:
        return abs(memory_bytes - asked_gb * GIB) * 100 <= NEAR_PERCENT * asked_gb * GIB
    return asked_gb == model.memory_gb


def _words(text: str) -> list[str]:
    return [word for word in _SEPARATORS.split(text.casefold()) if word]


def _holds(words: list[str], part: list[str]) -> bool:
    return bool(part) and any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1))
