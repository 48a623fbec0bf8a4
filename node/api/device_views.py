"""Devices as the local API and Prometheus show them: what each is, how it does, who has it, and why it is not lent."""

from typing import TYPE_CHECKING, Any

from hansa.market.shares import least_milli
from hansa.market.value_forms import number_text
from hansa.node.devices.gpu_metrics import SeenDevice
from hansa.node.devices.gpus import Gpu, GpuSample
from hansa.scheduler.capacity import Capacity

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

Json = dict[str, Any]


def seen_devices(daemon: "Daemon") -> tuple[SeenDevice, ...]:
    """Every device of this node."""
    watch, capacity = daemon.watch, daemon.state.capacity
    samples = watch.samples()
    found = []
    for device in capacity.devices:
        withdrawal = capacity.claimed.get(device.id)
        gpu = watch.inventory.gpus.get(device.id)
        found.append(
            SeenDevice(
                device=device.id.hex(),
                state=capacity.phase_of(device.id),
                reasons=(*((withdrawal.why,) if withdrawal else ()), *_own_reasons(daemon, device.id)),
                gpu=gpu,
                sample=samples.get(device.id),
                xid=watch.xids.get(gpu.uuid, 0) if gpu is not None else 0,
            )
        )
    return tuple(found)


def _own_reasons(daemon: "Daemon", device: bytes) -> tuple[str, ...]:
    """Why the node itself does not lend a device: what the watch saw last, or what it once said of it."""
    withdrawal = daemon.state.capacity.withdrawn.get(device)
    return daemon.watch.reasons.get(device) or ((withdrawal.why,) if withdrawal else ())


def device_views(daemon: "Daemon") -> list[Json]:
    """Every device of this node, as JSON."""
    seen = {one.device: one for one in seen_devices(daemon)}
    views = []
    capacity = daemon.state.capacity
    for device in capacity.devices:
        one = seen[device.id.hex()]
        view: Json = {
            "id": one.device,
            "kind": device.kind,
            "model": device.model,
            "memory_bytes": device.memory_bytes,
            "cores_milli": device.cores_milli,
            "state": one.state,
            "withheld": list(one.reasons),
        }
        if least_milli(device.facts) is not None:
            view["parts"] = _parts(capacity, device.id)
        withdrawal = capacity.withheld.get(device.id)
        if withdrawal is not None and one.state == "leased":
            view["leaves_by_ms"] = withdrawal.by_ms
        if one.gpu is not None:
            view["gpu"] = _gpu_view(one.gpu)
        if one.sample is not None:
            view["now"] = _sample_view(one.sample)
        views.append(view)
    return views


def _parts(capacity: Capacity, device: bytes) -> list[Json]:
    """Who has how much of a device that is lent in parts."""
    entries = [entry for entry in capacity.allotments.values() if device in entry.devices]
    return [
        {"bid": entry.bid.hex(), "share": number_text(entry.share_milli), "phase": entry.phase} for entry in entries
    ]


def _gpu_view(gpu: Gpu) -> Json:
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "profile": gpu.profile,
        "capability": gpu.capability,
        "bus": gpu.bus,
        "numa_node": gpu.numa_node,
        "links": {link.to: link.kind for link in gpu.links},
    }


def _sample_view(sample: GpuSample) -> Json:
    return {
        "busy_percent": sample.busy_percent,
        "memory_used_bytes": sample.memory_used_bytes,
        "temperature_c": sample.temperature_c,
        "power_w": None if sample.power_mw is None else sample.power_mw // 1000,
        "throttled": list(sample.throttled),
        "processes": len(sample.processes),
    }
