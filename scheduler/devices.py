"""Which of a provider's own devices a shard could run on, and what is missing when none could.

A tender names sets of devices of which any would do; every one is tried, the best liked first. Where none can be given,
the set of devices that falls short of the fewest things is found, and all of these are told: with every one of them
changed, the answer would have been a bid.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hansa.market.clauses import relaxed_requirements
from hansa.market.needs_rendering import render_choice
from hansa.market.shares import SHARE, WHOLE_MILLI
from hansa.market.vocabulary import ANY
from hansa.proto.gpu_models import canonical
from hansa.proto.market_documents import FEATURE_SEVERAL_MACHINES, Device, Requirements, Shortfall
from hansa.proto.units import Bytes32, Line
from hansa.scheduler.device_lacks import (
    NOTHING_SAID,
    Judge,
    Shortage,
    lacks_of_set,
    nearest_shortage,
    shortage_of,
    size_of,
    too_few,
)
from hansa.scheduler.packing import least_missed
from hansa.scheduler.placement import BY_SIZE, Choosing, best


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


ONE_MACHINE = Topology()


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
    judge = Judge(needs, about)
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
    judge: Judge,
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
    judge: Judge,
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
            shortfalls=(too_few(needs, most, fitting[0].model).shortfall,),
        )
    chosen = tuple(fitting[: needs.devices])
    return enough[0] if lacks_of_set(needs, chosen, judge) else chosen


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
    needs: Requirements, free: Sequence[Device], owned: Sequence[Device], judge: Judge, *, every: bool = False
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
        available = sorted((device for device in group if device.id in ids), key=size_of)
        if len(available) < needs.devices:
            continue
        chosen = _smallest_that_do(needs, available, judge)
        (tried if lacks_of_set(needs, chosen, judge) else found).append(chosen)
    if found:
        return list(dict.fromkeys(found))
    if tried:
        return shortage_of(lacks_of_set(needs, tried[0], judge))
    most = max((len(group) for group in groups), default=0)
    if most >= needs.devices:
        enough = max(groups, key=len)
        busy = len([device for device in enough if device.id not in {one.id for one in free}])
        return Shortage(reason=f"{busy} of {most} fitting devices are busy", relaxation="tender again later")
    return nearest_shortage(needs, _by_model(owned).values(), most, judge)


def _size_of_smallest(group: Sequence[Device]) -> tuple[int, int, bytes]:
    return min(map(size_of, group), default=(0, 0, b""))


def _smallest_that_do(needs: Requirements, available: Sequence[Device], judge: Judge) -> tuple[Device, ...]:
    """The first neighbours in order of size whose cores and memory do together; the largest where none do."""
    windows = _neighbours(available, needs.devices)
    # A job that wants no more than so many cores may have to be given others than neighbours in size.
    by_cores = _neighbours(sorted(available, key=lambda device: (device.cores_milli, size_of(device))), needs.devices)
    for window in (*windows, *by_cores):
        if not lacks_of_set(needs, window, judge):
            return tuple(window)
    return tuple(windows[-1])


def _neighbours(devices: Sequence[Device], count: int) -> list[Sequence[Device]]:
    return [devices[start : start + count] for start in range(len(devices) - count + 1)]
