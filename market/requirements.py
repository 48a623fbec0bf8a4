"""What a job needs and what a provider accepts, from text to the market's documents.

``parse_needs`` reads ``[resources] needs`` of a job and ``--needs`` of the command line, ``parse_rules`` a provider's
``accepts``. Both give clauses in one canonical form: of equal meaning is equal text. ``hansa.market.needs_rendering``
writes it; how clauses are judged is in ``hansa.market.clauses``.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from hansa.market.needs_text import NeedsError, Term, Value, terms_of
from hansa.market.shares import SHARE, WHOLE_MILLI, share_clause
from hansa.market.value_forms import duration_ms, price_e18, size_bytes, thousandths
from hansa.market.vocabulary import ANY, VOCABULARY, WORDS, Of, Word, find
from hansa.proto.gpu_models import canonical, parse
from hansa.proto.market_documents import FEATURES, KIND_GPU, Clause, DeviceChoice, Requirements
from hansa.proto.units import PriceE18

MOST_DEVICES: Final = 64
MOST_CORES_MILLI: Final = 10_000_000
"""Ten thousand cores for a run: nothing lends as many, and a number beyond does not fit on the wire."""
MOST_CHOICES: Final = 16
MOST_OF_ONE_WORD: Final = 8
"""Conditions on one thing. Providers judge no more: names of a list belong into one condition."""
TIMES: Final = "\N{MULTIPLICATION SIGN}"
_COUNTED = re.compile(rf"([0-9]{{1,4}}(?:\.[0-9]{{1,6}})?)(?: ?[{TIMES}xX*] ?| (?=[A-Za-z]))(\S.*)")
_COUNTED_AFTER = re.compile(rf"(\S.*?) ?[:{TIMES}*] ?([0-9]{{1,4}}(?:\.[0-9]{{1,6}})?)")
_AT_LEAST: Final = ("vram", "cores", "ram", "disk")
"""Words whose lower bound has a field of its own in ``Requirements``."""
_SHOWN: Final = ("H100", "H200", "A100", "A100-80GB", "B200", "L4", "L40S", "A10", "T4", "V100", "RTX3090", "RTX4090")
_MODELS: Final = (*_SHOWN, "RTX5090", "RTXA6000", "RTX6000-ADA", "RTXPRO6000", "MI300X", "GH200", "A40", "P100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a text says that a job needs. ``None`` and empty values were not said.

    Attributes:
        choices: sets of devices of which any one does, the best liked first.
        kind: ``"gpu"`` or ``"cpu"``.
        devices: whole devices for a shard, of any model; only without choices.
        device_memory_bytes: least memory of each device.
        cores_milli: least CPU cores, all devices together, in thousandths.
        memory_bytes: main memory of the run.
        scratch_bytes: room for its files.
        tier: the isolation, or a stronger one.
        features: what the provider must have beside devices, sorted.
        clauses: what must hold beside that, in the canonical order.
        price_e18_per_device_ms: the price ceiling.
        deadline_ms: so long from now the job is worth nothing.
        lease: ``"firm"`` or ``"spot"``.
    """

    choices: tuple[DeviceChoice, ...] = ()
    kind: str = ""
    devices: int | None = None
    device_memory_bytes: int | None = None
    cores_milli: int | None = None
    memory_bytes: int | None = None
    scratch_bytes: int | None = None
    tier: str = ""
    features: tuple[str, ...] = ()
    clauses: tuple[Clause, ...] = ()
    price_e18_per_device_ms: PriceE18 | None = None
    deadline_ms: int | None = None
    lease: str = ""

    def applied_to(self, base: Requirements) -> Requirements:
        """Requirements with everything that was said in the place of what stood there; features and clauses add up."""
        return replace(
            base,
            kind=self.kind or base.kind,
            choices=self.choices or base.choices,
            devices=max((one.devices for one in self.choices), default=self.devices or base.devices),
            device_memory_bytes=_said(self.device_memory_bytes, base.device_memory_bytes),
            cores_milli=_said(self.cores_milli, base.cores_milli),
            memory_bytes=_said(self.memory_bytes, base.memory_bytes),
            scratch_bytes=_said(self.scratch_bytes, base.scratch_bytes),
            tier=self.tier or base.tier,
            features=tuple(sorted({*base.features, *self.features})),
            clauses=ordered((*_without_share(base.clauses, self.clauses), *self.clauses)),
        )


def needs_of(requirements: Requirements) -> Needs:
    """The part of requirements that the language can say."""
    return Needs(
        choices=requirements.choices,
        kind="" if requirements.kind == ANY else requirements.kind,
        devices=None if requirements.choices else requirements.devices,
        device_memory_bytes=requirements.device_memory_bytes or None,
        cores_milli=requirements.cores_milli or None,
        memory_bytes=requirements.memory_bytes,
        scratch_bytes=requirements.scratch_bytes,
        tier=requirements.tier,
        features=requirements.features,
        clauses=requirements.clauses,
    )


def parse_needs(text: str) -> Needs:
    """What a job needs.

    Raises:
        NeedsError: the text is not in the language; it knows the place, and what to write instead.
    """
    reader = _Needs(text)
    for term in terms_of(text):
        reader.read(term)
    return reader.done()


def parse_rules(text: str) -> tuple[Clause, ...]:
    """The conditions under which a provider takes a job.

    Raises:
        NeedsError: as for ``parse_needs``.
    """
    found: list[Clause] = []
    for term in terms_of(text):
        if not term.name.text:
            hint = "say for example devices <= 4 and wall <= 24 h"
            raise _fault(term.values[0], "is no condition on a job", hint, text)
        found += _clauses(_word_of(term, text, of_jobs=True), term, text)
    return ordered(found)


def ordered(clauses: Iterable[Clause]) -> tuple[Clause, ...]:
    """Clauses in the canonical order, each once."""
    return tuple(sorted(set(clauses), key=lambda one: (one.name, one.operator, one.values)))


def _without_share(clauses: tuple[Clause, ...], newer: tuple[Clause, ...]) -> tuple[Clause, ...]:
    """Of a part of a device there is one word only: the newer one goes before."""
    said = any(clause.name == SHARE for clause in newer)
    return tuple(clause for clause in clauses if not said or clause.name != SHARE)


def _said(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _fault(value: Value, why: str, hint: str, text: str) -> NeedsError:
    return NeedsError(value.text, value.position, why, hint, text)


def _word_of(term: Term, text: str, *, of_jobs: bool) -> Word:
    """The vocabulary's word that a term begins with."""
    names = [word.name for word in WORDS if _serves(word, of_jobs=of_jobs)]
    word = find(term.name.text)
    if word is not None and word.name in names:
        return word
    if word is not None:
        if of_jobs:
            raise _fault(term.name, "says nothing of a job", f"a provider's rules know {', '.join(names)}", text)
        raise _fault(term.name, "is nothing that a provider has", f"a job's needs know {', '.join(names)}", text)
    near = difflib.get_close_matches(term.name.text.casefold(), names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
    raise _fault(term.name, "is no word of the vocabulary", hint, text)


def _serves(word: Word, *, of_jobs: bool) -> bool:
    return Of.JOB in word.of if of_jobs else any(one is not Of.JOB for one in word.of)


def _read(word: Word, value: Value, text: str) -> str:
    try:
        return word.read(value.text)
    except ValueError as fault:
        raise _fault(value, str(fault), f"for example {word.example}", text) from None


def _clauses(word: Word, term: Term, text: str) -> list[Clause]:
    """A term as clauses; none where it says that anything does."""
    if any(value.text.casefold() == ANY for value in term.values):
        if term.operator in ("=", "in") and len(term.values) == 1:
            return []
        raise _fault(term.values[0], "sets no condition, so it stands alone", f"{word.name} = any", text)
    if term.operator == "..":
        if not word.is_ordered:
            raise _fault(term.values[0], f"begins a range, and {word.name} knows no order", word.example, text)
        ends = [_read(word, value, text) if value.text else "" for value in term.values]
        if all(ends) and word.key(ends[0]) > word.key(ends[1]):
            raise _fault(term.values[0], "begins a range that ends below it", f"{word.name} in low..high", text)
        found = zip((">=", "<="), ends, strict=True)
        return [Clause(name=word.name, operator=operator, values=(end,)) for operator, end in found if end]
    values = tuple(sorted({_read(word, value, text) for value in term.values}))
    if term.operator in ("<", "<=", ">", ">=") and not word.is_ordered:
        raise _fault(term.name, "knows no order, so < and > say nothing of it", f"for example {word.example}", text)
    if term.operator in ("in", "not in") and len(values) == 1:
        return [Clause(name=word.name, operator="=" if term.operator == "in" else "!=", values=values)]
    return [Clause(name=word.name, operator=term.operator, values=values)]


class _Needs:
    """Collects what the terms of one text say."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.said = Needs()
        self.clauses: list[Clause] = []
        self.choices: list[tuple[int, str]] = []
        self.parts: list[tuple[int, Value]] = []
        self.parts_of_sets = 0
        self.places: dict[str, Value] = {}

    def read(self, term: Term) -> None:
        """Take one term in."""
        if not term.name.text or (term.name.text.casefold() == "gpu" and term.operator in ("=", "in")):
            self._devices(term)
            return
        word = _word_of(term, self.text, of_jobs=False)
        for clause in _clauses(word, term, self.text):
            self._take(word, clause, term)

    def _devices(self, term: Term) -> None:
        if any(value.text.casefold() == ANY for value in term.values):
            self.said = replace(self.said, kind=KIND_GPU)
            return
        if self.choices:
            raise _fault(term.values[0], "names devices a second time", "join what would do as well with or", self.text)
        for value in term.values:
            self.choices.append(self._choice(value))
        if len(self.choices) > MOST_CHOICES:
            raise _fault(term.values[0], f"begins more than {MOST_CHOICES} choices", "name families", self.text)

    def _choice(self, value: Value) -> tuple[int, str]:
        said, model = "", value.text
        if match := _COUNTED.fullmatch(value.text):
            said, model = match[1], match[2]
        elif match := _COUNTED_AFTER.fullmatch(value.text):
            model, said = match[1], match[2]
        count = self._count(said, value) if said else 0
        if count > MOST_DEVICES or (not count and model != value.text):
            raise _fault(value, f"is not 1 to {MOST_DEVICES} devices", "for example 8xH100", self.text)
        quoted = self.text[value.position : value.position + 1] in ("'", '"')
        if parse(model) is None and not quoted:
            self._unknown(value, model)
        try:
            return count, VOCABULARY["gpu"].read(model)
        except ValueError as fault:
            raise _fault(value, str(fault), "for example 8xH100", self.text) from None

    def _count(self, said: str, value: Value) -> int:
        """So many devices; a number below one is a part of one device."""
        if "." not in said:
            return int(said)
        whole, _, decimals = said.partition(".")
        if int(whole) and not decimals.strip("0"):
            return int(whole)
        if int(whole):
            raise _fault(value, "is neither whole devices nor a part of one", "for example 0.5xH100", self.text)
        self._part(said, value)
        self.parts_of_sets += 1
        return 1

    def _part(self, said: str, value: Value) -> None:
        ppm = VOCABULARY[SHARE].key(_read(VOCABULARY[SHARE], Value(text=said, position=value.position), self.text))
        if not ppm or ppm % 1_000:
            raise _fault(value, "is no part of a device in thousandths", "for example 0.5, or 25 %", self.text)
        self.parts.append((ppm // 1_000, value))

    def _unknown(self, value: Value, model: str) -> None:
        first = model.split(" ", maxsplit=1)[0].casefold()
        word = find(first) or (find(near[0]) if (near := difflib.get_close_matches(first, VOCABULARY, n=1)) else None)
        if word is not None:
            hint = f"write for example {word.example}"
            raise _fault(value, "is no GPU model, and no operator follows it", hint, self.text)
        shown = difflib.get_close_matches(canonical(model).upper().replace(" ", ""), _MODELS, n=1)
        hint = f"did you mean {shown[0]}?" if shown else f"for example {', '.join(_SHOWN)}; any other name in quotes"
        raise _fault(value, "is no GPU model that is known here", hint, self.text)

    def _take(self, word: Word, clause: Clause, term: Term) -> None:
        """A clause into the field that is made for it, or to the others."""
        name, operator, value = word.name, clause.operator, clause.values[0]
        if name in _AT_LEAST and operator == ">=":
            self._at_least(name, value, term)
        elif name == SHARE:
            if operator not in ("=", "<="):
                raise _fault(term.name, "takes = and one value here", word.example, self.text)
            self._part(value, term.values[0])
        elif name in ("devices", "kind", "lease", "deadline", "price", "tier", "features"):
            self._set(word, clause, term)
        else:
            self.clauses.append(clause)
            if len([one for one in self.clauses if one.name == name]) > MOST_OF_ONE_WORD:
                hint = f"write a list: {name} not in (...)"
                raise _fault(term.name, f"has more than {MOST_OF_ONE_WORD} conditions", hint, self.text)

    def _at_least(self, name: str, value: str, term: Term) -> None:
        said = self.said
        match name:
            case "vram":
                self.said = replace(said, device_memory_bytes=max(size_bytes(value), said.device_memory_bytes or 0))
            case "cores":
                self.said = replace(said, cores_milli=max(thousandths(value), said.cores_milli or 0))
                if thousandths(value) > MOST_CORES_MILLI:
                    raise _fault(
                        term.values[0], "is more cores than a run can have", "for example cores >= 16", self.text
                    )
            case "ram":
                self.said = replace(said, memory_bytes=max(size_bytes(value), said.memory_bytes or 0))
            case _:
                self.said = replace(said, scratch_bytes=max(size_bytes(value), said.scratch_bytes or 0))

    def _set(self, word: Word, clause: Clause, term: Term) -> None:
        """Words that set something rather than compare."""
        name, value = word.name, clause.values[0]
        operators = {"tier": ("=", ">="), "price": ("=", "<="), "deadline": ("=", "<=")}.get(name, ("=",))
        if clause.operator not in operators:
            raise _fault(term.name, f"takes {' or '.join(operators)} and one value here", word.example, self.text)
        before = {
            "devices": self.said.devices,
            "kind": self.said.kind or None,
            "lease": self.said.lease or None,
            "deadline": self.said.deadline_ms,
            "price": self.said.price_e18_per_device_ms,
            "tier": self.said.tier or None,
        }.get(name)
        if before is not None:
            raise _fault(term.name, "is said twice", "say it once", self.text)
        self.places[name] = term.values[0]
        match name:
            case "devices":
                if not 1 <= int(value) <= MOST_DEVICES:
                    raise _fault(term.values[0], f"is not 1 to {MOST_DEVICES} devices", word.example, self.text)
                self.said = replace(self.said, devices=int(value))
            case "kind":
                self.said = replace(self.said, kind=value)
            case "lease":
                self.said = replace(self.said, lease=value)
            case "deadline":
                self.said = replace(self.said, deadline_ms=duration_ms(value))
            case "price":
                self.said = replace(self.said, price_e18_per_device_ms=self._ceiling(value, term, word))
            case "tier":
                self.said = replace(self.said, tier=value)
            case _:
                self._feature(value, term)

    def _ceiling(self, value: str, term: Term, word: Word) -> PriceE18:
        try:
            ceiling_e18 = price_e18(value)
        except ValueError as fault:
            raise _fault(term.values[0], f"is no price ceiling: {fault}", word.example, self.text) from None
        if not ceiling_e18:
            raise _fault(term.values[0], "is no price ceiling: it must be more than nothing", word.example, self.text)
        return ceiling_e18

    def _feature(self, value: str, term: Term) -> None:
        for feature in value.split(","):
            if feature not in FEATURES and not feature.startswith("python"):
                near = difflib.get_close_matches(feature, FEATURES, n=1)
                hint = (
                    f"did you mean {near[0]}?" if near else f"features are {', '.join(FEATURES)}, python3.12 and alike"
                )
                raise _fault(term.values[0], "is no feature", hint, self.text)
        self.said = replace(self.said, features=tuple(sorted({*self.said.features, *value.split(",")})))

    def done(self) -> Needs:
        """All of it, in the canonical form."""
        said = self.said
        if self.choices and said.devices is not None and all(count for count, _ in self.choices):
            hint = "say how many once"
            raise _fault(self.places["devices"], "says again how many, as each model does", hint, self.text)
        choices = [DeviceChoice(devices=count or said.devices or 1, model=model) for count, model in self.choices]
        unique = tuple(dict.fromkeys(choices))
        if said.kind and kind_of(unique) not in ("", said.kind):
            hint = f"remove kind, or write kind = {KIND_GPU}"
            raise _fault(self.places["kind"], f"is the kind, and {unique[0].model} is a GPU", hint, self.text)
        return replace(
            said,
            choices=unique,
            devices=None if unique else said.devices,
            kind=said.kind or kind_of(unique),
            clauses=ordered((*self.clauses, *self._share(unique))),
        )

    def _share(self, choices: tuple[DeviceChoice, ...]) -> tuple[Clause, ...]:
        """The part of one device that all of it asks for, if it does."""
        if not self.parts:
            return ()
        milli, place = self.parts[0]
        other = next((one for said, one in self.parts if said != milli), None)
        if other is not None:
            raise _fault(other, "is another part than the one before", "a job asks for one part", self.text)
        if 0 < self.parts_of_sets < len(self.choices):
            raise _fault(place, "is a part beside whole devices", "ask for the same part of each", self.text)
        several = max((one.devices for one in choices), default=self.said.devices or 1)
        if several > 1:
            raise _fault(place, f"is a part, and {several} devices are asked for", "a part is of one device", self.text)
        return (share_clause(milli),) if milli < WHOLE_MILLI else ()


def kind_of(choices: tuple[DeviceChoice, ...]) -> str:
    """GPUs, if any model is a GPU's."""
    return KIND_GPU if any(parse(choice.model) is not None for choice in choices) else ""
