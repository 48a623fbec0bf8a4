"""Which of a provider's own devices a shard could run on, and in words what is missing when none could."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hansa.proto.market_documents import FEATURE_SEVERAL_MACHINES, Device, Requirements, Shortfall
from hansa.proto.units import Bytes32, Line

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Why no devices fit: the requirement that failed, and the nearest change that would help.

    Attributes:
        reason, relaxation: in words.
        shortfalls: the same for ``hansa.market.why``: with all of these changed, devices would fit.
    """

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


ONE_MACHINE = Topology()


def choose(
    needs: Requirements, free: Sequence[Device], owned: Sequence[Device], topology: Topology = ONE_MACHINE
) -> tuple[Device, ...] | Shortage:
    """The devices for one shard, on one machine if any has enough of them; on several only if the job says that it may.

    Args:
        needs: what the shard requires.
        free: devices that nobody holds.
        owned: all devices, to tell "not here" from "not now".
        topology: which of them share a machine.
    """
    machines = sorted({topology.machine(device) for device in owned})
    if len(machines) <= 1:
        return _choose_among(needs, free, owned)
    found: list[tuple[int, str, tuple[Device, ...]]] = []
    shortages: list[Shortage] = []
    for machine in machines:
        there = [device for device in owned if topology.machine(device) == machine]
        left = [device for device in free if topology.machine(device) == machine]
        chosen = _choose_among(needs, left, there)
        if isinstance(chosen, Shortage):
            shortages.append(chosen)
        else:
            found.append((len(left), machine, chosen))
    if found:
        return min(found)[2]  # where the least is left free: whole machines stay whole
    return _choose_over_several(needs, free, owned, topology, shortages)


def _choose_over_several(
    needs: Requirements,
    free: Sequence[Device],
    owned: Sequence[Device],
    topology: Topology,
    shortages: Sequence[Shortage],
) -> tuple[Device, ...] | Shortage:
    """No machine has enough for itself."""
    joined = [device for device in owned if topology.machine(device) not in topology.apart]
    left = [device for device in free if topology.machine(device) not in topology.apart]
    # In the order of machines, the fullest first, so that a run is on as few of them as can be.
    count = {topology.machine(device): 0 for device in left}
    for device in left:
        count[topology.machine(device)] += not unmet(needs, device)
    left.sort(key=lambda device: (-count[topology.machine(device)], topology.machine(device)))
    fitting = [device for device in left if not unmet(needs, device)]
    enough = _choose_among(needs, left, joined)
    if isinstance(enough, Shortage):
        return enough if len(joined) == len(owned) else _choose_least_short(shortages)
    if FEATURE_SEVERAL_MACHINES not in needs.features:
        most = max(count.values(), default=0)
        return Shortage(
            reason=f"{len(fitting)} fitting devices are free here, at most {most} of them on one machine",
            relaxation=f"devices ≤ {most}, or several_machines = true",
        )
    chosen = tuple(fitting[: needs.devices])
    return enough if _is_too_small(needs, chosen) else chosen


def _choose_least_short(shortages: Sequence[Shortage]) -> Shortage:
    """Of several reasons the one that a buyer can do something about."""
    return next((one for one in shortages if one.relaxation), shortages[0])


def _is_too_small(needs: Requirements, chosen: Sequence[Device]) -> bool:
    memory_bytes = sum(device.memory_bytes for device in chosen if device.kind == "cpu")
    too_little = needs.kind == "cpu" and memory_bytes < needs.memory_bytes
    return too_little or sum(device.cores_milli for device in chosen) < needs.cores_milli


def _choose_among(
    needs: Requirements, free: Sequence[Device], owned: Sequence[Device]
) -> tuple[Device, ...] | Shortage:
    """The smallest that fit, so that large ones stay free for who needs them."""
    fitting = [device for device in owned if not unmet(needs, device)]
    if len(fitting) < needs.devices:
        return _missing(needs, owned, len(fitting))
    available = sorted(
        (device for device in fitting if device in free),
        key=lambda device: (device.memory_bytes, device.cores_milli, device.id),
    )
    if len(available) < needs.devices:
        busy = len(fitting) - len(available)
        return Shortage(reason=f"{busy} of {len(fitting)} fitting devices are busy", relaxation="tender again later")
    chosen = _smallest_that_do(needs, available)
    cores_milli = sum(device.cores_milli for device in chosen)
    if cores_milli < needs.cores_milli:
        return Shortage(
            reason=f"{cores_milli / 1000:g} CPU cores come with {needs.devices} devices here",
            relaxation=f"cores ≤ {cores_milli / 1000:g}",
        )
    memory_bytes = sum(device.memory_bytes for device in chosen if device.kind == "cpu")
    if needs.kind == "cpu" and memory_bytes < needs.memory_bytes:
        return Shortage(
            reason=f"{memory_bytes / GIB:.3g} GiB of memory come with {needs.devices} devices here",
            relaxation=f"memory ≤ {memory_bytes / GIB:.3g} GiB",
        )
    return chosen


def _smallest_that_do(needs: Requirements, available: Sequence[Device]) -> tuple[Device, ...]:
    """The first neighbours in order of size whose cores and memory do together; the largest where none do."""
    windows = [available[start : start + needs.devices] for start in range(len(available) - needs.devices + 1)]
    for window in windows:
        enough_cores = sum(device.cores_milli for device in window) >= needs.cores_milli
        memory_bytes = sum(device.memory_bytes for device in window if device.kind == "cpu")
        if enough_cores and (needs.kind != "cpu" or memory_bytes >= needs.memory_bytes):
            return tuple(window)
    return tuple(windows[-1])


def unmet(needs: Requirements, device: Device) -> tuple[str, str] | None:
    """The first requirement that the device fails: (name, value that it would meet). None if it meets all."""
    if needs.kind not in ("any", device.kind):
        return "kind", device.kind
    models = [choice.model.casefold() for choice in needs.choices]
    if models and not any(model in device.model.casefold() for model in models):
        return "gpu_models", device.model
    if device.memory_bytes < needs.device_memory_bytes:
        return "device_memory", f"{device.memory_bytes / GIB:.3g} GiB"
    return None


def _missing(needs: Requirements, owned: Sequence[Device], fitting: int) -> Shortage:
    if not owned:
        return Shortage(reason="this provider lends no devices at present", relaxation="")
    if fitting:
        return Shortage(
            reason=f"{fitting} fitting devices here, {needs.devices} wanted", relaxation=f"devices ≤ {fitting}"
        )
    failed = [found for device in owned if (found := unmet(needs, device)) is not None]
    # The requirement that comes last in the order of checks is the one that this provider is nearest to meeting.
    order = ("kind", "gpu_models", "device_memory")
    name, value = max(failed, key=lambda found: order.index(found[0]))
    return Shortage(reason=f"no device here meets {name}", relaxation=f"{name} = {value}")
