"""Which of a provider's own devices a shard could run on, and in words what is missing when none could."""

from collections.abc import Sequence
from dataclasses import dataclass

from hansa.proto.market_documents import Device, Requirements

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Why no devices fit: the first requirement that failed, and the nearest change that would help."""

    reason: str
    relaxation: str


def choose(needs: Requirements, free: Sequence[Device], owned: Sequence[Device]) -> tuple[Device, ...] | Shortage:
    """The devices for one shard: the smallest that fit, so that large ones stay free for who needs them.

    Args:
        needs: what the shard requires.
        free: devices that nobody holds.
        owned: all devices, to tell "not here" from "not now".
    """
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
    models = [model.casefold() for model in needs.models]
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
