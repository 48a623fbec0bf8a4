"""How clauses are judged: against facts, by everybody in the same way, and with the nearest change that would help.

Facts and clauses come from strangers. Whatever is wrong with one (a word that is not known here, an operator that is
none, a value that cannot be read) makes a clause unmet, with a reason; nothing is raised. What nobody states is not
met either: a provider that does not say its CUDA version has none for a job that asks for one.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hansa.market.needs_rendering import read_choice, render_choice, render_clause, said_as_wish
from hansa.market.places import is_in
from hansa.market.requirements import MOST_CHOICES, MOST_CORES_MILLI, MOST_DEVICES, MOST_OF_ONE_WORD, ordered
from hansa.market.shares import SHARE, share_asked
from hansa.market.value_forms import Kind, duration_text, size_bytes, size_text, thousandths
from hansa.market.vocabulary import ANY, VOCABULARY, Of, Word, find
from hansa.proto.gpu_models import canonical, matches
from hansa.proto.market_documents import Advert, Bid, Clause, Device, Fact, Requirements, Shortfall
from hansa.proto.units import e18_to_price_per_hour

MOST_CLAUSES: Final = 64
MOST_VALUES: Final = 256
"""Values of all clauses of one document together."""
_COMPARE: Final[Mapping[str, Any]] = {
    "<": lambda have, wanted: have < wanted,
    "<=": lambda have, wanted: have <= wanted,
    ">": lambda have, wanted: have > wanted,
    ">=": lambda have, wanted: have >= wanted,
}
_ONE_OF: Final = ("=", "in")
_NONE_OF: Final = ("!=", "not in")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A clause that does not hold.

    Attributes:
        clause: which.
        has: what the fact is, in the vocabulary's form; empty where nobody says, or it cannot be read.
        reason: why, in words: ``"cuda is 12.2"``, ``"does not say its cuda"``.
        nearest: see ``Shortfall``; ``"any"`` where only without the clause it would be a yes.
    """

    clause: Clause
    has: str
    reason: str
    nearest: str

    @property
    def shortfall(self) -> Shortfall:
        """As it goes into a decline."""
        return Shortfall(name=self.clause.name, wanted=_line(render_clause(self.clause)), nearest=_line(self.nearest))


def failures(clauses: Iterable[Clause], facts: Mapping[str, str]) -> tuple[Failure, ...]:
    """Every clause that does not hold, in their order."""
    return tuple(found for clause in clauses if (found := _failure(clause, facts)) is not None)


def unmet(clauses: Iterable[Clause], facts: Mapping[str, str]) -> tuple[Shortfall, ...]:
    """What falls short of the clauses; empty if all of them hold."""
    return tuple(found.shortfall for found in failures(clauses, facts))


def relaxed(clause: Clause, nearest: str) -> Clause | None:
    """The clause with the nearest value in it that makes it hold; ``None`` where it has to go."""
    if nearest in ("", ANY):
        return None
    match clause.operator:
        case "<" | "<=":
            return Clause(name=clause.name, operator="<=", values=(nearest,))
        case ">" | ">=":
            return Clause(name=clause.name, operator=">=", values=(nearest,))
        case "=" | "in":
            return Clause(name=clause.name, operator="in", values=tuple(sorted({*clause.values, nearest})))
        case _:
            return Clause(name=clause.name, operator="not in", values=tuple(nearest.split("; ")))


def relaxed_requirements(requirements: Requirements, shortfalls: Iterable[Shortfall]) -> Requirements:
    """Requirements with every shortfall's nearest value in them. What is of the tender and not of these stays.

    Shortfalls may be a stranger's: one that cannot be read changes nothing.
    """
    changed = requirements
    for shortfall in shortfalls:
        with contextlib.suppress(ValueError):
            changed = _changed(changed, shortfall)
    return changed


def _changed(needs: Requirements, shortfall: Shortfall) -> Requirements:
    name, nearest = shortfall.name, shortfall.nearest
    same = [clause for clause in needs.clauses if _line(render_clause(clause)) == shortfall.wanted]
    if same:
        kept = [clause for clause in needs.clauses if clause not in same]
        loose = [one for clause in same if (one := relaxed(clause, nearest)) is not None]
        return replace(needs, clauses=ordered((*kept, *loose)))
    match name:
        case "gpu":
            more = read_choice(nearest)
            choices = (*needs.choices, more) if more is not None else ()
            _device_count(str(more.devices if more is not None else needs.devices))
            return replace(needs, choices=choices, devices=max((one.devices for one in choices), default=needs.devices))
        case "devices":
            return replace(needs, devices=_device_count(nearest))
        case "kind":
            return replace(needs, kind=nearest)
        case "vram":
            return replace(needs, device_memory_bytes=_least(nearest, size_bytes))
        case "cores":
            return replace(needs, cores_milli=min(_least(nearest, thousandths), MOST_CORES_MILLI))
        case "ram":
            return replace(needs, memory_bytes=_least(nearest, size_bytes))
        case "disk":
            return replace(needs, scratch_bytes=_least(nearest, size_bytes))
        case "tier":
            return replace(needs, tier=nearest)
    return needs


def _least(nearest: str, read: Callable[[str], int]) -> int:
    return 0 if nearest == ANY else read(nearest)


def relaxation(failure: Failure) -> str:
    """The same as a term that a person can write."""
    changed = relaxed(failure.clause, failure.nearest)
    if changed is None:
        return f"{failure.clause.name} = {ANY}"
    if failure.clause.operator in _ONE_OF:
        return render_clause(Clause(name=changed.name, operator="=", values=(failure.nearest,)))
    return said_as_wish(changed)


def _device_count(text: str) -> int:
    """How many devices a stranger says that it would give."""
    if not (
        text.isascii() and text.isdigit() and len(text) <= len(str(MOST_DEVICES)) and 0 < int(text) <= MOST_DEVICES
    ):
        raise ValueError(f"is no number of devices up to {MOST_DEVICES}")
    return int(text)


def of_provider(clauses: Iterable[Clause]) -> tuple[Clause, ...]:
    """The clauses that a provider is asked about: all but those on what only the buyer knows."""
    return tuple(clause for clause in clauses if not _is_buyers(clause))


def _is_buyers(clause: Clause) -> bool:
    word = find(clause.name)
    return word is not None and Of.BUYER in word.of


def unmet_by_bid(clauses: Iterable[Clause], facts: Mapping[str, str]) -> tuple[Shortfall, ...]:
    """What of a tender's clauses a bid falls short of.

    Args:
        clauses: the tender's.
        facts: the bid's (``facts_of``), and what the buyer knows of the provider itself (``reliability``,
            ``reputation``). Of these two, the one that is absent is not asked about.
    """
    return unmet((clause for clause in clauses if not _is_buyers(clause) or clause.name in facts), facts)


def too_many(clauses: Sequence[Clause]) -> bool:
    """Whether a stranger's document holds more clauses than anybody judges."""
    of_one = Counter(clause.name for clause in clauses)
    if len(clauses) > MOST_CLAUSES or max(of_one.values(), default=0) > MOST_OF_ONE_WORD:
        return True
    return sum(len(clause.values) for clause in clauses) > MOST_VALUES


def unreadable(requirements: Requirements) -> str:
    """Why nobody judges such requirements; empty if they are well-formed. Strangers send anything."""
    if requirements.devices < 1 or any(choice.devices < 1 for choice in requirements.choices):
        return "no devices are asked for"
    if len(requirements.choices) > MOST_CHOICES or too_many(requirements.clauses):
        return f"more than {MOST_CHOICES} sets of devices or {MOST_CLAUSES} conditions are not judged here"
    if share_asked(requirements) is None:
        return "what is asked for as a share is no part of one device"
    return ""


def why_no_answer(requirements: Requirements, devices: int, facts: Mapping[str, str]) -> str:
    """Why so many devices with these facts are no answer to what was tendered for; empty if they are.

    Only devices and their number: ``unmet_by_bid`` judges the clauses.
    """
    if not requirements.choices:
        return "" if devices == requirements.devices else "not the number of devices that was tendered for"
    model = facts.get("gpu", "")
    met = [one for one in requirements.choices if matches(one.model, model, _vram_bytes(facts))]
    if not met:
        return "not a model that was tendered for" if model else "it does not say its model"
    if not any(choice.devices == devices for choice in met):
        return f"not the number of devices that was tendered for ({' or '.join(map(render_choice, met))})"
    return ""


def facts_of(document: Advert | Bid, device: Device | None = None) -> dict[str, str]:
    """What a provider says, by name: of itself or in a bid, and of one device, whose own facts go first."""
    facts = {fact.name: fact.value for fact in document.facts}
    facts["tier"] = document.tier
    if isinstance(document, Bid):
        facts["notice"] = duration_text(document.reclaim_notice_ms)
        facts["lease"] = document.lease
        facts["devices"] = str(len(document.devices))
    else:
        facts |= {"region": document.region, "features": ",".join(document.features)}
    price = VOCABULARY["price"].read(e18_to_price_per_hour(document.price_e18_per_device_ms))
    facts["price"] = price
    return facts | (device_facts(device) if device is not None else {})


def device_facts(device: Device) -> dict[str, str]:
    """What is known of one device."""
    known = {fact.name: fact.value for fact in device.facts}
    named = {"gpu": canonical(device.model), "kind": device.kind}
    return known | named | ({"vram": size_text(device.memory_bytes)} if device.memory_bytes else {})


def shared_facts(devices: Sequence[Device]) -> dict[str, str]:
    """What is true of several devices together: of what can be compared the least, of the rest what all have."""
    if not devices:
        return {}
    each = [device_facts(device) for device in devices]
    shared: dict[str, str] = {}
    for name in each[0]:
        values = [facts.get(name, "") for facts in each]
        if all(value == values[0] for value in values):
            shared[name] = values[0]
        elif (word := find(name)) is not None and word.is_ordered and all(values):
            try:
                shared[name] = min((word.read(value) for value in values), key=word.key)
            except ValueError:
                continue
        elif name == "interconnect" and all(values):
            shared[name] = "pcie"  # one that is not linked is reached by the slower way
    return shared


def written(facts: Mapping[str, str]) -> tuple[Fact, ...]:
    """Facts as documents carry them, in the vocabulary's form; what is not in it, or cannot be read, is left out."""
    told: list[Fact] = []
    for name in sorted(facts):
        word = find(name)
        try:
            told += [Fact(name=name, value=word.read(facts[name]))] if word is not None else []
        except ValueError:
            continue
    return tuple(told)


def _failure(clause: Clause, facts: Mapping[str, str]) -> Failure | None:
    word = find(clause.name)
    if word is None:
        return Failure(clause=clause, has="", reason=f"{clause.name[:40]} is no word that is known here", nearest=ANY)
    listed = clause.operator in ("in", "not in")
    comparing = clause.operator in _COMPARE and word.is_ordered
    unread = Failure(clause=clause, has="", reason=f"what is asked of {word.name} cannot be read here", nearest=ANY)
    if not (listed or comparing or clause.operator in ("=", "!=")) or not clause.values:
        return unread
    if not listed and len(clause.values) != 1:
        return unread
    try:
        wanted = [word.read(value) for value in clause.values]
    except ValueError:
        return unread
    try:
        has = word.read(facts.get(word.name, ""))
    except ValueError:
        why = "devices are lent whole there" if word.name == SHARE else f"does not say its {word.name}"
        return Failure(clause=clause, has="", reason=why, nearest=ANY)
    if comparing:
        if _COMPARE[clause.operator](word.key(has), word.key(wanted[0])):
            return None
        return Failure(clause=clause, has=has, reason=f"{word.name} is {has}", nearest=has)
    hit = {value for value in wanted if _is(word, has, value, facts)}
    if bool(hit) == (clause.operator in _ONE_OF):
        return None
    # Of what is excluded, the rest may stay so.
    left = "; ".join(sorted(set(wanted) - hit)) or ANY
    nearest = left if clause.operator in _NONE_OF else has.split(",")[0] if word.kind is Kind.WORDS else has
    return Failure(clause=clause, has=has, reason=f"{word.name} is {has}", nearest=nearest)


def _is(word: Word, has: str, wanted: str, facts: Mapping[str, str]) -> bool:
    """Whether a fact is what was named, or is of the family that was named."""
    match word.kind:
        case Kind.MODEL:
            return has == wanted or matches(wanted, has, _vram_bytes(facts))
        case Kind.WORDS:
            # Of several words each is asked for.
            return set(wanted.split(",")) <= set(has.split(","))
        case Kind.PLACE:
            return is_in(has, wanted)
        case _:
            return has == wanted


def _vram_bytes(facts: Mapping[str, str]) -> int:
    word = VOCABULARY["vram"]
    try:
        return int(word.key(word.read(facts["vram"])))
    except (KeyError, ValueError):
        return 0


def _line(text: str) -> str:
    """As short as a wire field wants it."""
    return text.encode()[:250].decode("utf-8", "ignore")
