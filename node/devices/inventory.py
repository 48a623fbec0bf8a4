"""What this machine has to lend: its GPUs as the driver names them, and CPU capacity sold as just that.

Nothing is pretended. Without a driver there are no GPUs and the note says so; a CPU slot carries the processor's own
name; and more slots than the machine has cores or memory for are refused at start-up, not at the first job.
"""

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hansa.market.shares import SHARE
from hansa.node.devices.disk import scratch_directory
from hansa.node.devices.driver_process import ask_once
from hansa.node.devices.gpus import AMD, NVIDIA, Gpu, GpuReport
from hansa.node.devices.machine_facts import gpu_facts, slot_facts
from hansa.node.faults import ConfigError
from hansa.node.quantities import format_size
from hansa.node.settings.provider_config import ProviderConfig
from hansa.node.settings.share_config import ShareConfig
from hansa.proto.keccak import keccak256
from hansa.proto.market_documents import KIND_CPU, KIND_GPU, Device, Fact
from hansa.proto.units import Address, Bytes32

CORES_KEPT_MILLI = 2_000
"""With ``cpu_slots = "auto"``, what stays with the owner."""
MODEL_BYTES = 128
NOTHING_LENT = "nothing is lent; cpu_slots = 1 under [provider] in config.toml would sell cores"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine's CPU side.

    Attributes:
        model: the processor's name as the kernel gives it.
        cores_milli: cores that this process may use, in thousandths.
        memory_bytes: main memory that this process may use.
        serial: tells this machine from others of the same owner.
        disk_bytes: room for runs' files when it was asked; 0 where that is not known.
    """

    model: str
    cores_milli: int
    memory_bytes: int
    serial: str
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Everything that is lent.

    Attributes:
        devices: as they stand in adverts and bids.
        gpus: the GPU behind a device's id, for the executor (its nodes) and for metering (its ``uuid``).
        note: what is lent and what is not, in one line.
        driver_version: empty without an NVIDIA driver.
    """

    devices: tuple[Device, ...]
    gpus: Mapping[Bytes32, Gpu]
    note: str
    driver_version: str

    def gpu_minors(self, leased: tuple[Bytes32, ...]) -> tuple[int, ...]:
        """Minor numbers of the device nodes that a run on these devices is given. CPU slots have none."""
        minors = {self.gpus[device].minor for device in leased if device in self.gpus}
        return tuple(sorted(minor for minor in minors if minor is not None))

    def device_nodes(self, leased: tuple[Bytes32, ...]) -> tuple[str, ...]:
        """Device nodes beside those of ``gpu_minors``: of slices, and of other makes than NVIDIA's."""
        return tuple(sorted({node for device in leased if device in self.gpus for node in self.gpus[device].nodes}))

    def cuda_devices(self, leased: tuple[Bytes32, ...]) -> tuple[str, ...]:
        """What CUDA calls the leased GPUs."""
        return self._uuids(leased, NVIDIA)

    def rocm_devices(self, leased: tuple[Bytes32, ...]) -> tuple[str, ...]:
        """What ROCm calls the leased GPUs."""
        return self._uuids(leased, AMD)

    def _uuids(self, leased: tuple[Bytes32, ...], vendor: str) -> tuple[str, ...]:
        gpus = [self.gpus[device] for device in leased if device in self.gpus]
        return tuple(gpu.uuid for gpu in sorted(gpus, key=lambda gpu: (gpu.index, gpu.uuid)) if gpu.vendor == vendor)


def take_inventory(
    account: Address,
    provider: ProviderConfig,
    *,
    report: GpuReport | None = None,
    machine: Machine | None = None,
) -> Inventory:
    """What this node lends under this account and these settings.

    Args:
        account: the provider's account; device ids are bound to it.
        provider: which GPUs and how many CPU slots.
        report: what the driver said; asked if not given.
        machine: what the kernel said; asked if not given.

    Raises:
        ConfigError: the settings name a GPU that is not there, or more CPU capacity than there is.
    """
    if not provider.enabled:
        return Inventory(devices=(), gpus={}, note="this node lends nothing", driver_version="")
    if report is None:
        nothing = GpuReport(gpus=(), driver_version="", notes=())
        report = nothing if provider.gpus == () else ask_once()
    machine = read_machine() if machine is None else machine
    lent = _chosen_gpus(provider, report)
    slots = slot_count(provider, machine)
    left_milli = max(0, machine.cores_milli - slots * provider.cpu_cores_milli_per_slot)
    gpus = {keccak256(account + gpu.uuid.encode()): gpu for gpu in lent}
    ram_bytes = max(0, machine.memory_bytes - slots * provider.memory_bytes_per_slot)
    devices = [
        Device(
            facts=_with_part(
                gpu_facts(gpu, lent, report, ram_bytes, machine.disk_bytes),
                provider.share if provider.share is not None and provider.share.covers(gpu) else None,
            ),
            id=device_id,
            kind=KIND_GPU,
            model=_line(gpu.model),
            memory_bytes=gpu.memory_bytes,
            # The cores that are not sold by themselves are shared out among the GPUs.
            cores_milli=left_milli // len(lent),
        )
        for device_id, gpu in gpus.items()
    ]
    devices += [
        Device(
            facts=_with_part(
                slot_facts(machine.disk_bytes),
                provider.share if provider.share is not None and provider.share.covers_slots() else None,
            ),
            id=keccak256(account + f"{machine.serial}:cpu:{slot}".encode()),
            kind=KIND_CPU,
            model=_line(machine.model),
            memory_bytes=provider.memory_bytes_per_slot,
            cores_milli=provider.cpu_cores_milli_per_slot,
        )
        for slot in range(slots)
    ]
    note = _note(report, lent, slots)
    return Inventory(devices=tuple(devices), gpus=gpus, note=note, driver_version=report.driver_version)


def _with_part(facts: tuple[Fact, ...], share: ShareConfig | None) -> tuple[Fact, ...]:
    """A device's facts with the smallest part of it that is lent, if it is lent in parts."""
    if share is None:
        return facts
    return tuple(sorted((*facts, Fact(name=SHARE, value=share.fact)), key=lambda fact: fact.name))


def _chosen_gpus(provider: ProviderConfig, report: GpuReport) -> tuple[Gpu, ...]:
    if provider.gpus is None:
        return report.gpus
    chosen: list[Gpu] = []
    for wanted in provider.gpus:
        # A card that is cut into slices is named by itself, and means all of them.
        found = [gpu for gpu in report.gpus if wanted in (gpu.uuid, gpu.card, gpu.place)]
        if not found:
            why = "; ".join(report.notes) or f"this machine has {', '.join(gpu.uuid for gpu in report.gpus)}"
            raise ConfigError(f"provider.gpus names {wanted}, which cannot be lent: {why}", "see nvidia-smi -L")
        chosen += [gpu for gpu in found if gpu not in chosen]
    return tuple(chosen)


def slot_count(provider: ProviderConfig, machine: Machine) -> int:
    """How many CPU slots are sold.

    Raises:
        ConfigError: more than the machine has cores or memory for.
    """
    cores_milli, memory_bytes = provider.cpu_cores_milli_per_slot, provider.memory_bytes_per_slot
    if provider.cpu_slots is None:
        by_cores = (machine.cores_milli - CORES_KEPT_MILLI) // cores_milli
        return max(0, min(by_cores, machine.memory_bytes * 3 // 4 // memory_bytes))
    if provider.cpu_slots * cores_milli > machine.cores_milli:
        raise ConfigError(
            f"provider.cpu_slots sells {provider.cpu_slots * cores_milli / 1000:g} cores, "
            f"and this machine has {machine.cores_milli / 1000:g}",
            "lower provider.cpu_slots or provider.cpu_cores_per_slot",
        )
    if provider.cpu_slots * memory_bytes > machine.memory_bytes:
        raise ConfigError(
            f"provider.cpu_slots sells {format_size(provider.cpu_slots * memory_bytes)} of memory, "
            f"and this machine has {format_size(machine.memory_bytes)}",
            "lower provider.cpu_slots or provider.memory_per_slot",
        )
    return provider.cpu_slots


def _note(report: GpuReport, lent: tuple[Gpu, ...], slots: int) -> str:
    cards, slices = (len([gpu for gpu in lent if bool(gpu.profile) == cut]) for cut in (False, True))
    lends = [f"{cards} GPU{'s' * (cards != 1)}"] if cards else []
    lends += [f"{slices} MIG slice{'s' * (slices != 1)}"] if slices else []
    lends += [f"{slots} CPU slot{'s' * (slots != 1)}, sold as what it is"] if slots else []
    notes = [*report.notes, "lends " + " and ".join(lends) if lends else NOTHING_LENT]
    return "; ".join(notes)


def read_machine(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Machine:
    """Ask the kernel. Limits of a container count: what this process may not use cannot be sold."""
    return Machine(
        model=_processor(proc / "cpuinfo"),
        cores_milli=len(os.sched_getaffinity(0)) * 1000,
        memory_bytes=_memory_bytes(proc / "meminfo", cgroup),
        serial=_read_text(Path("/etc/machine-id")).strip(),
        disk_bytes=_disk_bytes(scratch_directory()),
    )


def _disk_bytes(directory: Path) -> int:
    """Free room in whole GiB. Asked once: what runs write there comes and goes."""
    try:
        return shutil.disk_usage(directory).free >> 30 << 30
    except OSError:
        return 0


def _processor(cpuinfo: Path) -> str:
    fields: dict[str, str] = {}
    for line in _read_text(cpuinfo).splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    # x86 says "model name"; ARM boards say "Model" or nothing, and then the architecture is all there is to say.
    return fields.get("model name") or fields.get("Model") or platform.machine() or "unknown processor"


def _memory_bytes(meminfo: Path, cgroup: Path) -> int:
    total_bytes = 0
    for line in _read_text(meminfo).splitlines():
        if line.startswith("MemTotal:"):
            total_bytes = int(line.split()[1]) * 1024
    for limit in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        text = _read_text(limit).strip()
        if text.isdigit():
            total_bytes = min(total_bytes, int(text))
    return total_bytes


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _line(text: str) -> str:
    """A name as short as a wire field wants it."""
    return text.encode()[:MODEL_BYTES].decode("utf-8", "ignore")
