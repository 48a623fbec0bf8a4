"""What devices fall short of: each lack with the nearest change that would help, and all of them together.

A lack goes into a decline as a shortfall, for a machine to read, and as a change in words. Of several devices, or of
several sets, the one that falls short of the fewest things is told of.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hansa.market.clauses import Failure, device_facts, failures, of_provider, relaxation
from hansa.market.needs_rendering import render_choice, render_clause
from hansa.market.shares import WHOLE_MILLI, share_asked
from hansa.market.value_forms import number_text, size_text
from hansa.market.vocabulary import ANY, find
from hansa.proto.gpu_models import canonical, matches
from hansa.proto.market_documents import KIND_CPU, Clause, Device, DeviceChoice, Requirements, Shortfall
from hansa.proto.units import Bytes32

GIB = 1 << 30
NOTHING_SAID: Mapping[str, str] = {}
_OF_THE_SET = ("cores", "devices")
"""Words that tell something of all devices of a shard together."""
_AT_LEAST = ("cores", "ram", "vram")
"""What the fields of requirements set a least of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Why no devices fit, the nearest change that would help, and the same for a machine to read."""

    reason: str
    relaxation: str
    shortfalls: tuple[Shortfall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """One thing in which devices fall short: as it goes into a decline, its change in words, and why.

    Attributes:
        shortfall: as it goes into a decline.
        change: in words.
        reason: why; empty where the name says it.
        operator: of the condition, which says how two changes to it are joined.
        devices: how many there are, where it is their number that falls short.
    """

    shortfall: Shortfall
    change: str
    reason: str
    operator: str = "="
    devices: int | None = None


class Judge:
    """Judges a tender's clauses and sizes once for every sort of device: a stranger may send many of each."""

    def __init__(self, needs: Requirements, about: Mapping[str, str]) -> None:
        self.about = about
        self.share_milli = share_asked(needs) or WHOLE_MILLI
        self._clauses = [clause for clause in of_provider(needs.clauses) if clause.name not in _OF_THE_SET]
        self._of_set = [clause for clause in needs.clauses if clause.name in _OF_THE_SET]
        self._sizes = [("ram", needs.memory_bytes), ("disk", needs.scratch_bytes)]
        self._sorts: dict[tuple[object, ...], int] = {}
        self._sort_of: dict[Bytes32, int] = {}
        self._seen: dict[int, list[Lack]] = {}
        self._seen_sets: dict[tuple[int, int], list[Lack]] = {}
        self._lacks: dict[tuple[tuple[DeviceChoice, ...], int], list[Lack]] = {}

    def lacks(self, needs: Requirements, device: Device) -> list[Lack]:
        """Everything that one device lacks for these needs, which are the judge's own with one choice at the most."""
        key = needs.choices, self._sort(device)
        if key not in self._lacks:
            self._lacks[key] = [*_lacks_itself(needs, device, self.share_milli), *self._of(device, key[1])]
        return self._lacks[key]

    def _sort(self, device: Device) -> int:
        found = self._sort_of.get(device.id)
        if found is None:
            sort = device.kind, device.model, device.memory_bytes, device.facts
            found = self._sort_of[device.id] = self._sorts.setdefault(sort, len(self._sorts))
        return found

    def _of(self, device: Device, sort: int) -> list[Lack]:
        """What of the clauses and sizes one device, and its provider, fall short of."""
        if sort not in self._seen:
            facts = {**self.about, **device_facts(device)}
            # What a provider does not say of its memory and disk is no obstacle: a run is held to its limits anyway.
            sizes = [
                Clause(name=name, operator=">=", values=(size_text(least_bytes),))
                for name, least_bytes in self._sizes
                if name in facts
            ]
            self._seen[sort] = [_lack_of(failure) for failure in failures((*sizes, *self._clauses), facts)]
        return self._seen[sort]

    def of_set(self, devices: int, cores_milli: int) -> list[Lack]:
        """The same of what is only known of several devices together."""
        key = devices, cores_milli
        if key not in self._seen_sets:
            together = {"cores": number_text(cores_milli), "devices": str(devices)}
            found = failures(self._of_set, {**self.about, **together})
            self._seen_sets[key] = [_lack_of(failure) for failure in found]
        return self._seen_sets[key]


def lacks_of_set(needs: Requirements, chosen: Sequence[Device], judge: Judge) -> list[Lack]:
    """In what devices fall short together that may each be well."""
    lacks: list[Lack] = []
    cores_milli = sum(device.cores_milli for device in chosen) * judge.share_milli // WHOLE_MILLI
    if cores_milli < needs.cores_milli:
        cores = f"{cores_milli / 1000:g} CPU core" + ("s come" if cores_milli != 1_000 else " comes")
        reason = f"{cores} with {_so_many(chosen, judge)} here, {needs.cores_milli / 1000:g} wanted"
        change = f"cores >= {cores_milli / 1000:g}"
        lacks.append(
            _lack("cores", f"cores >= {number_text(needs.cores_milli)}", number_text(cores_milli), change, reason)
        )
    # What comes with a GPU is a fact of its machine; what comes with a slot is its own, whatever kind was asked for.
    memory_bytes = sum(device.memory_bytes for device in chosen if device.kind == KIND_CPU)
    memory_bytes = memory_bytes * judge.share_milli // WHOLE_MILLI
    if all(device.kind == KIND_CPU for device in chosen) and memory_bytes < needs.memory_bytes:
        reason = (
            f"{memory_bytes / GIB:.3g} GiB of memory come with {_so_many(chosen, judge)} here, "
            f"{needs.memory_bytes / GIB:.3g} GiB wanted"
        )
        change = f"ram >= {memory_bytes / GIB:.3g} GiB"
        lacks.append(_lack("ram", f"ram >= {size_text(needs.memory_bytes)}", size_text(memory_bytes), change, reason))
    return lacks + judge.of_set(len(chosen), cores_milli)


def _lacks_of_group(needs: Requirements, group: Sequence[Device], judge: Judge) -> list[Lack]:
    """What would have to change for a shard to run on the best of these, as many of them as there are."""
    best = sorted(
        ((judge.lacks(needs, device), device) for device in group), key=lambda one: (len(one[0]), size_of(one[1]))
    )
    taken = best[: needs.devices]
    merged: dict[tuple[str, str], Lack] = {}
    for lacks, _ in taken:
        for lack in lacks:
            key = lack.shortfall.name, lack.shortfall.wanted
            merged[key] = _looser(merged[key], lack) if key in merged else lack
    if len(taken) < needs.devices:
        few = too_few(needs, len(taken), group[0].model)
        merged[few.shortfall.name, few.shortfall.wanted] = few
    for lack in lacks_of_set(needs, [device for _, device in taken], judge):
        key = lack.shortfall.name, lack.shortfall.wanted
        merged[key] = _looser(merged[key], lack) if key in merged else lack
    return list(merged.values())


def nearest_shortage(needs: Requirements, models: Iterable[Sequence[Device]], fitting: int, judge: Judge) -> Shortage:
    """The devices of one model that fall short of the fewest things, and all of these.

    Args:
        needs: what a shard requires.
        models: all devices, those of a model together.
        fitting: how many fit one by one, which are too few.
        judge: of these needs.
    """
    nearest = min(
        (_lacks_of_group(needs, group, judge) for group in models),
        key=lambda lacks: (len(lacks), -_count_of(lacks)),
    )
    shortage = shortage_of(nearest)
    if fitting:
        reason = f"{fitting} fitting device{'s' * (fitting != 1)} here, {needs.devices} wanted"
        return replace(shortage, reason=reason)
    names = [lack.shortfall.name for lack in nearest]
    reasons = [lack.reason for lack in nearest if lack.reason]
    told = f": {'; '.join(reasons)}" if reasons else ""
    return replace(shortage, reason=f"no device here meets {' and '.join(dict.fromkeys(names))}{told}")


def too_few(needs: Requirements, most: int, model: str) -> Lack:
    """So many can be had together at the most."""
    if needs.choices:
        return _gpu(needs, most, model)
    return replace(_lack("devices", f"devices = {needs.devices}", str(most), f"devices = {most}"), devices=most)


def shortage_of(lacks: Sequence[Lack]) -> Shortage:
    """All of these, joined."""
    return Shortage(
        reason="; ".join(lack.reason or f"no device here meets {lack.shortfall.name}" for lack in lacks),
        relaxation=" and ".join(lack.change for lack in lacks),
        shortfalls=tuple(lack.shortfall for lack in lacks),
    )


def size_of(device: Device) -> tuple[int, int, bytes]:
    """What devices are put in order by: the smallest first."""
    return device.memory_bytes, device.cores_milli, device.id


def _so_many(chosen: Sequence[Device], judge: Judge) -> str:
    if judge.share_milli < WHOLE_MILLI:
        return f"{number_text(judge.share_milli)} of a device"
    return f"{len(chosen)} device{'' if len(chosen) == 1 else 's'}"


def _lacks_itself(needs: Requirements, device: Device, share_milli: int) -> list[Lack]:
    """What of the fields and sets of devices one device falls short of."""
    lacks: list[Lack] = []
    if needs.kind not in (ANY, device.kind):
        lacks.append(_lack("kind", f"kind = {needs.kind}", device.kind, f"kind = {device.kind}"))
    if needs.choices and not any(matches(one.model, device.model, device.memory_bytes) for one in needs.choices):
        lacks.append(_gpu(needs, needs.devices, device.model))
    memory_bytes = device.memory_bytes * share_milli // WHOLE_MILLI
    if memory_bytes < needs.device_memory_bytes:
        nearest, shown = size_text(memory_bytes), f"{memory_bytes / GIB:.3g} GiB"
        lacks.append(_lack("vram", f"vram >= {size_text(needs.device_memory_bytes)}", nearest, f"vram = {shown}"))
    return lacks


def _lack(name: str, wanted: str, nearest: str, change: str, reason: str = "") -> Lack:
    operator = ">=" if name in _AT_LEAST else "="
    shortfall = Shortfall(name=name, wanted=wanted, nearest=nearest)
    return Lack(shortfall=shortfall, change=change, reason=reason, operator=operator)


def _lack_of(failure: Failure) -> Lack:
    change, operator = relaxation(failure), failure.clause.operator
    return Lack(shortfall=failure.shortfall, change=change, reason=failure.reason, operator=operator)


def _gpu(needs: Requirements, devices: int, model: str) -> Lack:
    wanted = " or ".join(render_choice(choice) for choice in needs.choices)
    nearest = render_choice(DeviceChoice(devices=devices, model=canonical(model)))
    return _lack("gpu", wanted, nearest, f"gpu = {nearest}")


def _count_of(lacks: Sequence[Lack]) -> int:
    return next((lack.devices for lack in lacks if lack.devices is not None), 1 << 32)


def _looser(one: Lack, other: Lack) -> Lack:
    """Of two changes to the same requirement the one that suffices for both."""
    if one.shortfall.nearest == other.shortfall.nearest:
        return one
    word, both = find(one.shortfall.name), (one.shortfall.nearest, other.shortfall.nearest)
    if one.operator in ("!=", "not in") and ANY not in both:
        left = tuple(sorted(set(both[0].split("; ")) & set(both[1].split("; "))))
        if left:  # What neither of them is may stay excluded.
            clause = Clause(name=one.shortfall.name, operator="not in", values=left)
            return replace(one, shortfall=replace(one.shortfall, nearest="; ".join(left)), change=render_clause(clause))
    elif one.operator in ("<", "<=", ">", ">=") and word is not None and word.is_ordered:
        # A size may be more than the vocabulary writes, and so be none that could be compared.
        with contextlib.suppress(ValueError):
            ordered = sorted((one, other), key=lambda lack: word.key(word.read(lack.shortfall.nearest)))
            return ordered[0] if one.operator in (">", ">=") else ordered[-1]
    dropped = replace(one.shortfall, nearest=ANY)
    return Lack(shortfall=dropped, change=f"{dropped.name} = {ANY}", reason=one.reason)
