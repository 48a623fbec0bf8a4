"""Which of a provider's own devices a shard could run on, and what is missing when none could.

A tender names sets of devices of which any would do; every one is tried, the best liked first. Where none can be given,
the set of devices that falls short of the fewest things is found, and all of these are told: with every one of them
changed, the answer would have been a bid.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hansa.market.clauses import Failure, device_facts, failures, of_provider, relaxation, relaxed_requirements
from hansa.market.needs_rendering import render_choice, render_clause
from hansa.market.shares import SHARE, WHOLE_MILLI, share_asked
from hansa.market.value_forms import number_text, size_text
from hansa.market.vocabulary import ANY, find
from hansa.proto.gpu_models import canonical, matches
from hansa.proto.market_documents import (
    FEATURE_SEVERAL_MACHINES,
    KIND_CPU,
    Clause,
    Device,
    DeviceChoice,
    Requirements,
    Shortfall,
)
from hansa.proto.units import Bytes32, Line
from hansa.scheduler.packing import least_missed
from hansa.scheduler.placement import BY_SIZE, Choosing, best

GIB = 1 << 30
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
class Topology:
    """Which devices share a machine.

    Attributes:
        machine_of: the machine of each device that is not on the daemon's own.
        apart: machines that can have no part in a run on several.
    """

    machine_of: Mapping[Bytes32, Line] = field(default_factory=dict)
    apart: frozenset[Line] = frozenset()

    def machine(self, device: Device) -> str:
        """The machine of a device; empty for the daemon's own."""
        return self.machine_of.get(device.id, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lack:
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


class _Judge:
    """Judges a tender's clauses and sizes once for every sort of device: a stranger may send many of each."""

    def __init__(self, needs: Requirements, about: Mapping[str, str]) -> None:
        self.about = about
        self.share_milli = share_asked(needs) or WHOLE_MILLI
        self._clauses = [clause for clause in of_provider(needs.clauses) if clause.name not in _OF_THE_SET]
        self._of_set = [clause for clause in needs.clauses if clause.name in _OF_THE_SET]
        self._sizes = [("ram", needs.memory_bytes), ("disk", needs.scratch_bytes)]
        self._sorts: dict[tuple[object, ...], int] = {}
        self._sort_of: dict[Bytes32, int] = {}
        self._seen: dict[int, list[_Lack]] = {}
        self._seen_sets: dict[tuple[int, int], list[_Lack]] = {}
        self._lacks: dict[tuple[tuple[DeviceChoice, ...], int], list[_Lack]] = {}

    def lacks(self, needs: Requirements, device: Device) -> list[_Lack]:
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

    def _of(self, device: Device, sort: int) -> list[_Lack]:
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

    def of_set(self, devices: int, cores_milli: int) -> list[_Lack]:
        """The same of what is only known of several devices together."""
        key = devices, cores_milli
        if key not in self._seen_sets:
            together = {"cores": number_text(cores_milli), "devices": str(devices)}
            found = failures(self._of_set, {**self.about, **together})
            self._seen_sets[key] = [_lack_of(failure) for failure in found]
        return self._seen_sets[key]


ONE_MACHINE = Topology()
NOTHING_SAID: Mapping[str, str] = {}


def choose(
    needs: Requirements,
    free: Sequence[Device],
    owned: Sequence[Device],
    topology: Topology = ONE_MACHINE,
    about: Mapping[str, str] = NOTHING_SAID,
    *,
    choosing: Choosing = BY_SIZE,
) -> tuple[Device, ...] | Shortage:
    """The devices for one shard, on one machine if any has enough of them; on several only if the job says that it may.

    Args:
        needs: what the shard requires.
        free: devices that nobody holds.
        owned: all devices, to tell "not here" from "not now".
        topology: which of them share a machine.
        about: what is true of the provider, by the vocabulary's words.
        choosing: how much of devices is left for parts, and what a choice among several that would do goes by.
    """
    found = _choose_any(needs, free, owned, about, topology=topology, choosing=choosing)
    share = [one for one in found.shortfalls if one.name == SHARE] if isinstance(found, Shortage) else []
    if not isinstance(found, Shortage) or not share or len(found.shortfalls) == len(share):
        return found
    # What else is lacking is that of the part that would be given, and not of the one that was asked for.
    eased = relaxed_requirements(needs, share)
    rest = _choose_any(eased, owned, owned, about, topology=topology, choosing=BY_SIZE)
    more = rest if isinstance(rest, Shortage) and rest.shortfalls else Shortage(reason="", relaxation="")
    change = "share = any" if share[0].nearest == ANY else f"share = {share[0].nearest}"
    lent = "devices are lent whole there" if share[0].nearest == ANY else f"parts are {share[0].nearest} at the least"
    return Shortage(
        reason="; ".join(filter(None, (f"no device here meets share: {lent}", more.reason))),
        relaxation=" and ".join(filter(None, (change, more.relaxation))),
        shortfalls=(*share, *(one for one in more.shortfalls if one.name != SHARE)),
    )


def _choose_any(
    needs: Requirements,
    free: Sequence[Device],
    owned: Sequence[Device],
    about: Mapping[str, str],
    *,
    topology: Topology,
    choosing: Choosing,
) -> tuple[Device, ...] | Shortage:
    """By any of its sets of devices."""
    shortages: list[Shortage] = []
    judge = _Judge(needs, about)
    for wanted in _each_choice(needs):
        if wanted.devices < 1:
            shortages.append(Shortage(reason="no devices are asked for", relaxation=""))
            continue
        chosen = _choose_set(wanted, free, owned, judge, topology=topology, choosing=choosing)
        if not isinstance(chosen, Shortage):
            return chosen
        shortages.append(chosen)
    least = min(shortages, key=lambda one: len(one.shortfalls))
    return replace(least, shortfalls=tuple(_of_all_choices(needs, one) for one in least.shortfalls))


def _each_choice(needs: Requirements) -> Iterable[Requirements]:
    if not needs.choices:
        return (needs,)
    return (replace(needs, choices=(choice,), devices=choice.devices) for choice in needs.choices)


def _of_all_choices(needs: Requirements, shortfall: Shortfall) -> Shortfall:
    sets = [render_choice(choice) for choice in needs.choices]
    if shortfall.name != "gpu" or shortfall.wanted not in sets:
        return shortfall  # a condition on the model is none of the sets of devices
    wanted = " or ".join(sets)
    return replace(shortfall, wanted=wanted.encode()[:250].decode("utf-8", "ignore"))


def _choose_set(
    needs: Requirements,
    free: Sequence[Device],
    owned: Sequence[Device],
    judge: _Judge,
    *,
    topology: Topology,
    choosing: Choosing,
) -> tuple[Device, ...] | Shortage:
    """For one choice at the most."""

    def least_spoilt(options: Sequence[tuple[Device, ...]]) -> tuple[Device, ...]:
        """Where it spoils the least for what else is to be expected."""
        share, machine = judge.share_milli, topology.machine
        return best(options, share_milli=share, choosing=choosing, owned=owned, free=free, machine_of=machine)

    if judge.share_milli < WHOLE_MILLI:
        roomy = _with_room(owned, free, judge.share_milli, choosing)
        parts = _choose_among(needs, roomy, owned, judge, every=choosing is not BY_SIZE)
        return parts if isinstance(parts, Shortage) else least_spoilt(parts)
    machines = sorted({topology.machine(device) for device in owned})
    found: list[tuple[int, list[tuple[Device, ...]]]] = []
    shortages: list[Shortage] = []
    for machine in machines or [""]:
        there = [device for device in owned if topology.machine(device) == machine]
        left = [device for device in free if topology.machine(device) == machine]
        options = _choose_among(needs, left, there, judge, every=bool(choosing.demand.seen))
        if isinstance(options, Shortage):
            shortages.append(options)
        else:
            found.append((len(left), options))
    if not found and len(machines) <= 1:
        return shortages[0]
    if found and choosing.demand.seen:
        return least_spoilt([option for _free, options in found for option in options])
    number = least_missed([free_devices for free_devices, _options in found], needs.devices)
    if number is not None:
        return found[number][1][0]
    return _choose_over_several(needs, free, owned, topology, judge=judge, shortages=shortages)


def _with_room(
    owned: Sequence[Device], free: Sequence[Device], share_milli: int, choosing: Choosing
) -> Sequence[Device]:
    """Devices of which so much can be given."""
    spare = choosing.spare_of(free)
    return [device for device in owned if spare.get(device.id, 0) >= share_milli]


def _choose_over_several(
    needs: Requirements,
    free: Sequence[Device],
    owned: Sequence[Device],
    topology: Topology,
    *,
    judge: _Judge,
    shortages: Sequence[Shortage],
) -> tuple[Device, ...] | Shortage:
    """No machine has enough for itself."""
    joined = [device for device in owned if topology.machine(device) not in topology.apart]
    left = [device for device in free if topology.machine(device) not in topology.apart]
    enough = _choose_among(needs, left, joined, judge)
    if isinstance(enough, Shortage):
        return enough if len(joined) == len(owned) else _choose_least_short(shortages)
    # In the order of machines, the fullest first, so that a run is on as few of them as can be.
    fitting = _alike(needs, [device for device in left if not judge.lacks(needs, device)])
    count = {topology.machine(device): 0 for device in left}
    for device in fitting:
        count[topology.machine(device)] += 1
    fitting.sort(key=lambda device: (-count[topology.machine(device)], topology.machine(device)))
    if FEATURE_SEVERAL_MACHINES not in needs.features:
        most = max(count.values(), default=0)
        return Shortage(
            reason=f"{len(fitting)} fitting devices are free here, at most {most} of them on one machine",
            relaxation=f"devices = {most}, or several_machines = true",
            shortfalls=(_too_few(needs, most, fitting[0].model).shortfall,),
        )
    chosen = tuple(fitting[: needs.devices])
    return enough[0] if _lacks_of_set(needs, chosen, judge) else chosen


def _choose_least_short(shortages: Sequence[Shortage]) -> Shortage:
    """Of several reasons the one that a buyer can do something about."""
    return next((one for one in shortages if one.relaxation), shortages[0])


def _alike(needs: Requirements, devices: Sequence[Device]) -> list[Device]:
    """Where models were named, those of one model: a shard's devices keep each other waiting. The most numerous."""
    if not needs.choices or not devices:
        return list(devices)
    groups = _by_model(devices)
    return max(groups.values(), key=len)


def _by_model(devices: Sequence[Device]) -> dict[str, list[Device]]:
    groups: dict[str, list[Device]] = {}
    for device in devices:
        groups.setdefault(canonical(device.model), []).append(device)
    return groups


def _choose_among(
    needs: Requirements, free: Sequence[Device], owned: Sequence[Device], judge: _Judge, *, every: bool = False
) -> list[tuple[Device, ...]] | Shortage:
    """Sets that fit, the smallest first, so that large ones stay free for who needs them; ``every`` finds more."""
    if not owned:
        return Shortage(reason="this provider lends no devices at present", relaxation="")
    fitting = [device for device in owned if not judge.lacks(needs, device)]
    by_model = list(_by_model(fitting).values())
    groups = by_model if needs.choices else [fitting]
    if every:
        # Of parts each device is an option: which one is broken into, or filled up, makes all the difference.
        groups += [[device] for device in fitting] if judge.share_milli < WHOLE_MILLI else by_model
    tried: list[tuple[Device, ...]] = []
    found: list[tuple[Device, ...]] = []
    ids = {device.id for device in free}
    for group in sorted((one for one in groups if len(one) >= needs.devices), key=_size_of_smallest):
        available = sorted((device for device in group if device.id in ids), key=_size)
        if len(available) < needs.devices:
            continue
        chosen = _smallest_that_do(needs, available, judge)
        (tried if _lacks_of_set(needs, chosen, judge) else found).append(chosen)
    if found:
        return list(dict.fromkeys(found))
    if tried:
        return _shortage(_lacks_of_set(needs, tried[0], judge))
    most = max((len(group) for group in groups), default=0)
    if most >= needs.devices:
        enough = max(groups, key=len)
        busy = len([device for device in enough if device.id not in {one.id for one in free}])
        return Shortage(reason=f"{busy} of {most} fitting devices are busy", relaxation="tender again later")
    return _missing(needs, owned, most, judge)


def _size(device: Device) -> tuple[int, int, bytes]:
    return device.memory_bytes, device.cores_milli, device.id


def _size_of_smallest(group: Sequence[Device]) -> tuple[int, int, bytes]:
    return min(map(_size, group), default=(0, 0, b""))


def _smallest_that_do(needs: Requirements, available: Sequence[Device], judge: _Judge) -> tuple[Device, ...]:
    """The first neighbours in order of size whose cores and memory do together; the largest where none do."""
    windows = _neighbours(available, needs.devices)
    # A job that wants no more than so many cores may have to be given others than neighbours in size.
    by_cores = _neighbours(sorted(available, key=lambda device: (device.cores_milli, _size(device))), needs.devices)
    for window in (*windows, *by_cores):
        if not _lacks_of_set(needs, window, judge):
            return tuple(window)
    return tuple(windows[-1])


def _neighbours(devices: Sequence[Device], count: int) -> list[Sequence[Device]]:
    return [devices[start : start + count] for start in range(len(devices) - count + 1)]


def _lacks_of_set(needs: Requirements, chosen: Sequence[Device], judge: _Judge) -> list[_Lack]:
    """In what devices fall short together that may each be well."""
    lacks: list[_Lack] = []
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


def _so_many(chosen: Sequence[Device], judge: _Judge) -> str:
    if judge.share_milli < WHOLE_MILLI:
        return f"{number_text(judge.share_milli)} of a device"
    return f"{len(chosen)} device{'' if len(chosen) == 1 else 's'}"


def unmet(needs: Requirements, device: Device, about: Mapping[str, str] = NOTHING_SAID) -> tuple[Shortfall, ...]:
    """Everything in which one device, and the provider with it, falls short."""
    return tuple(lack.shortfall for lack in _Judge(needs, about).lacks(needs, device))


def _lacks_itself(needs: Requirements, device: Device, share_milli: int) -> list[_Lack]:
    """What of the fields and sets of devices one device falls short of."""
    lacks: list[_Lack] = []
    if needs.kind not in (ANY, device.kind):
        lacks.append(_lack("kind", f"kind = {needs.kind}", device.kind, f"kind = {device.kind}"))
    if needs.choices and not any(matches(one.model, device.model, device.memory_bytes) for one in needs.choices):
        lacks.append(_gpu(needs, needs.devices, device.model))
    memory_bytes = device.memory_bytes * share_milli // WHOLE_MILLI
    if memory_bytes < needs.device_memory_bytes:
        nearest, shown = size_text(memory_bytes), f"{memory_bytes / GIB:.3g} GiB"
        lacks.append(_lack("vram", f"vram >= {size_text(needs.device_memory_bytes)}", nearest, f"vram = {shown}"))
    return lacks


def _lack(name: str, wanted: str, nearest: str, change: str, reason: str = "") -> _Lack:
    operator = ">=" if name in _AT_LEAST else "="
    shortfall = Shortfall(name=name, wanted=wanted, nearest=nearest)
    return _Lack(shortfall=shortfall, change=change, reason=reason, operator=operator)


def _lack_of(failure: Failure) -> _Lack:
    change, operator = relaxation(failure), failure.clause.operator
    return _Lack(shortfall=failure.shortfall, change=change, reason=failure.reason, operator=operator)


def _gpu(needs: Requirements, devices: int, model: str) -> _Lack:
    wanted = " or ".join(render_choice(choice) for choice in needs.choices)
    nearest = render_choice(DeviceChoice(devices=devices, model=canonical(model)))
    return _lack("gpu", wanted, nearest, f"gpu = {nearest}")


def _too_few(needs: Requirements, most: int, model: str) -> _Lack:
    if needs.choices:
        return _gpu(needs, most, model)
    return replace(_lack("devices", f"devices = {needs.devices}", str(most), f"devices = {most}"), devices=most)


def _missing(needs: Requirements, owned: Sequence[Device], fitting: int, judge: _Judge) -> Shortage:
    """The devices of one model that fall short of the fewest things, and all of these."""
    nearest = min(
        (_lacks_of_group(needs, group, judge) for group in _by_model(owned).values()),
        key=lambda lacks: (len(lacks), -_count_of(lacks)),
    )
    shortage = _shortage(nearest)
    if fitting:
        reason = f"{fitting} fitting device{'s' * (fitting != 1)} here, {needs.devices} wanted"
        return replace(shortage, reason=reason)
    names = [lack.shortfall.name for lack in nearest]
    reasons = [lack.reason for lack in nearest if lack.reason]
    told = f": {'; '.join(reasons)}" if reasons else ""
    return replace(shortage, reason=f"no device here meets {' and '.join(dict.fromkeys(names))}{told}")


def _count_of(lacks: Sequence[_Lack]) -> int:
    return next((lack.devices for lack in lacks if lack.devices is not None), 1 << 32)


def _lacks_of_group(needs: Requirements, group: Sequence[Device], judge: _Judge) -> list[_Lack]:
    """What would have to change for a shard to run on the best of these, as many of them as there are."""
    best = sorted(
        ((judge.lacks(needs, device), device) for device in group), key=lambda one: (len(one[0]), _size(one[1]))
    )
    taken = best[: needs.devices]
    merged: dict[tuple[str, str], _Lack] = {}
    for lacks, _ in taken:
        for lack in lacks:
            key = lack.shortfall.name, lack.shortfall.wanted
            merged[key] = _looser(merged[key], lack) if key in merged else lack
    if len(taken) < needs.devices:
        few = _too_few(needs, len(taken), group[0].model)
        merged[few.shortfall.name, few.shortfall.wanted] = few
    for lack in _lacks_of_set(needs, [device for _, device in taken], judge):
        key = lack.shortfall.name, lack.shortfall.wanted
        merged[key] = _looser(merged[key], lack) if key in merged else lack
    return list(merged.values())


def _looser(one: _Lack, other: _Lack) -> _Lack:
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
    return _Lack(shortfall=dropped, change=f"{dropped.name} = {ANY}", reason=one.reason)


def _shortage(lacks: Sequence[_Lack]) -> Shortage:
    return Shortage(
        reason="; ".join(lack.reason or f"no device here meets {lack.shortfall.name}" for lack in lacks),
        relaxation=" and ".join(lack.change for lack in lacks),
        shortfalls=tuple(lack.shortfall for lack in lacks),
    )
