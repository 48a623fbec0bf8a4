"""What a driver says of its GPUs: what they are, and how they do at this moment. Plain data, whoever's driver it was.

They are made in a process of their own (`hansa.node.devices.driver_process`), so they are written as JSON and read
again. Every figure but a GPU's identity is optional: ``None`` means that this driver, or this card, does not say.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

NVIDIA = "nvidia"
AMD = "amd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A way from one GPU to another of the same machine.

    Attributes:
        to: the other's bus address, e.g. ``"0000:1b:00.0"``.
        kind: ``"NV4"`` for four NVLinks, else how far apart they are on PCIe as ``nvidia-smi topo -m`` has it: ``PIX``,
            ``PXB``, ``PHB``, ``NODE``, ``SYS``.
    """

    to: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG slice of a GPU, that can be lent whole.

    Attributes:
        index: its place in the driver's list, as ``nvidia-smi`` counts; a slice has its card's.
        uuid: ``"GPU-..."`` or ``"MIG-..."``, the same for the card's (the slice's) whole life.
        model: as the driver names it, e.g. ``"NVIDIA H200"``, a slice with its profile.
        memory_bytes: its own memory; 0 where the driver does not say.
        minor: the N of ``/dev/nvidiaN``; ``None`` for other makes.
        vendor: ``"nvidia"`` or ``"amd"``.
        nodes: further device nodes that a sandbox must be given for it, e.g. a slice's capabilities.
        card: uuid of the card that it is a slice of; of a whole card its own.
        profile: of a slice, e.g. ``"1g.10gb"``; else empty.
        slice_ids: of a slice, its GPU instance and its compute instance as the driver numbers them.
        capability: compute capability, e.g. ``"9.0"``.
        bus: its PCI address.
        numa_node: the memory node of the processor that it is attached to.
        pcie_generation_most, pcie_width_most: the fastest that card and slot can do together.
        links: ways to the other GPUs.
    """

    index: int
    uuid: str
    model: str
    memory_bytes: int
    minor: int | None
    vendor: str = NVIDIA
    nodes: tuple[str, ...] = ()
    card: str = ""
    profile: str = ""
    slice_ids: tuple[int, int] | None = None
    capability: str = ""
    bus: str = ""
    numa_node: int | None = None
    pcie_generation_most: int | None = None
    pcie_width_most: int | None = None
    links: tuple[Link, ...] = ()

    @property
    def place(self) -> str:
        """Its place in its driver's list, as an owner may name it: ``"0"``, or ``"amd0"`` for AMD's."""
        return str(self.index) if self.vendor == NVIDIA else f"{self.vendor}{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """Somebody who has memory on a GPU.

    Attributes:
        pid: as the machine's first process counts, which a container's processes do not see.
        memory_bytes: what it has there.
        computes: whether it computes, rather than draws.
    """

    pid: int
    memory_bytes: int
    computes: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """A GPU at one moment. A slice has no temperature of its own and the like; its card's stand here.

    Attributes:
        uuid: whose.
        fault: why the driver cannot say anything, in its words; empty while it can.
        busy_percent: share of the last moments in which something was computed.
        xids: the driver's error events since the last sample, by their numbers.
        double_bit_errors: uncorrectable memory errors since the driver was loaded.
        remap_pending: memory rows are to be replaced at the next reset.
        remap_failed: a row was to be replaced and no spare was left.
        recovery: what the driver says must be done for the GPU to be whole again: ``""``, ``"reset"``, ``"reboot"``,
            ``"drain"``.
        throttled: why its clocks are lower than they could be, in words.
    """

    uuid: str
    fault: str = ""
    busy_percent: int | None = None
    memory_busy_percent: int | None = None
    encoder_percent: int | None = None
    decoder_percent: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    temperature_c: int | None = None
    memory_temperature_c: int | None = None
    power_mw: int | None = None
    power_limit_mw: int | None = None
    energy_mj: int | None = None
    clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttled: tuple[str, ...] = ()
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_replays: int | None = None
    single_bit_errors: int | None = None
    double_bit_errors: int | None = None
    single_bit_errors_ever: int | None = None
    double_bit_errors_ever: int | None = None
    remapped_correctable: int | None = None
    remapped_uncorrectable: int | None = None
    remap_pending: bool = False
    remap_failed: bool = False
    retired_pending: bool = False
    recovery: str = ""
    xids: tuple[int, ...] = ()
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """What was found.

    Attributes:
        gpus: those that can be lent.
        driver_version: empty without a driver.
        notes: in words, why a GPU, or all of them, cannot be lent.
        samples: how each GPU does, where that was asked for.
        cuda_version: the newest CUDA that the driver can serve, e.g. ``"13.0"``; empty without a driver.
        absent: there is no such driver here, so nothing is wrong with it either.
    """

    gpus: tuple[Gpu, ...]
    driver_version: str
    notes: tuple[str, ...]
    samples: tuple[GpuSample, ...] = ()
    cuda_version: str = ""
    absent: bool = False


def joined(reports: tuple[GpuReport, ...]) -> GpuReport:
    """What several drivers found, as one. A make whose driver is absent is worth a word only where all are."""
    there = tuple(report for report in reports if not report.absent)
    notes = tuple(note for report in (there or reports[:1]) for note in report.notes)
    return GpuReport(
        gpus=tuple(gpu for report in there for gpu in report.gpus),
        driver_version=" and ".join(report.driver_version for report in there if report.driver_version),
        notes=notes,
        samples=tuple(sample for report in there for sample in report.samples),
        cuda_version="".join(report.cuda_version for report in there),
        absent=not there,
    )


def report_to_json(report: GpuReport) -> dict[str, Any]:
    """A report as JSON knows it; what is not said is left out, since most of a sample is."""
    return {
        **asdict(report),
        "gpus": [_said(gpu) for gpu in report.gpus],
        "samples": [_said(sample) for sample in report.samples],
    }


def _said(value: Gpu | GpuSample) -> dict[str, Any]:
    return {
        entry.name: item
        for entry in fields(value)
        if (item := asdict(value)[entry.name]) != entry.default or entry.default is MISSING
    }


def report_from_json(value: Mapping[str, Any]) -> GpuReport:
    """The report again.

    Raises:
        TypeError, KeyError, ValueError: it is none.
    """
    gpus = tuple(
        Gpu(**{**_tuples(gpu), "links": tuple(Link(**link) for link in gpu.get("links", ()))}) for gpu in value["gpus"]
    )
    samples = tuple(
        GpuSample(**{**_tuples(sample), "processes": tuple(GpuProcess(**one) for one in sample.get("processes", ()))})
        for sample in value["samples"]
    )
    return GpuReport(**{**_tuples(value), "gpus": gpus, "samples": samples})


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
