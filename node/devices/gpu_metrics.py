"""Each GPU's figures for Prometheus, under the names and labels of NVIDIA's own exporter (dcgm-exporter).

So the dashboards that its users have show a Hansa provider as they show any other machine. What a driver does not say
is not exposed. The figures that only its profiling library has (``DCGM_FI_PROF_*``) are not here.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hansa.node.devices.gpus import AMD, Gpu, GpuSample

MIB = 1 << 20
Read = Callable[[GpuSample], float | None]
LABELS = ("gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname", "GPU_I_PROFILE", "GPU_I_ID")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenDevice:
    """One device of this node as the watch saw it last.

    Attributes:
        device: its id in adverts, in hexadecimal.
        state: ``"free"``, ``"held"``, ``"leased"`` or ``"withdrawn"``.
        reasons: why it is not lent, in words.
        gpu: what its driver calls it; ``None`` for a slot of CPU cores.
        sample: how it does; ``None`` where nobody knows.
        xid: its last error event; 0 before the first.
    """

    device: str
    state: str
    reasons: tuple[str, ...] = ()
    gpu: Gpu | None = None
    sample: GpuSample | None = None
    xid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of all GPUs.

    Attributes:
        name: as the exporter calls it.
        words: what it is.
        counts: whether it only ever rises.
        labels: the names of its labels.
        values: with the labels' values.
    """

    name: str
    words: str
    counts: bool = False
    labels: tuple[str, ...]
    values: tuple[tuple[tuple[str, ...], float], ...]


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value / by


FIGURES: Sequence[tuple[str, bool, str, Read]] = (
    ("SM_CLOCK", False, "SM clock frequency (in MHz).", lambda one: one.clock_mhz),
    ("MEM_CLOCK", False, "Memory clock frequency (in MHz).", lambda one: one.memory_clock_mhz),
    ("GPU_TEMP", False, "GPU temperature (in C).", lambda one: one.temperature_c),
    ("MEMORY_TEMP", False, "Memory temperature (in C).", lambda one: one.memory_temperature_c),
    ("POWER_USAGE", False, "Power draw (in W).", lambda one: _scaled(one.power_mw, 1000)),
    ("POWER_MGMT_LIMIT", False, "Power limit (in W).", lambda one: _scaled(one.power_limit_mw, 1000)),
    ("TOTAL_ENERGY_CONSUMPTION", True, "Energy since boot (in mJ).", lambda one: one.energy_mj),
    ("PCIE_REPLAY_COUNTER", True, "Total number of PCIe retries.", lambda one: one.pcie_replays),
    ("PCIE_LINK_GEN", False, "PCIe generation at present.", lambda one: one.pcie_generation),
    ("PCIE_LINK_WIDTH", False, "PCIe width at present.", lambda one: one.pcie_width),
    ("GPU_UTIL", False, "GPU utilization (in %).", lambda one: one.busy_percent),
    ("MEM_COPY_UTIL", False, "Memory utilization (in %).", lambda one: one.memory_busy_percent),
    ("ENC_UTIL", False, "Encoder utilization (in %).", lambda one: one.encoder_percent),
    ("DEC_UTIL", False, "Decoder utilization (in %).", lambda one: one.decoder_percent),
    ("FB_FREE", False, "Framebuffer memory free (in MiB).", lambda one: _scaled(one.memory_free_bytes, MIB)),
    ("FB_USED", False, "Framebuffer memory used (in MiB).", lambda one: _scaled(one.memory_used_bytes, MIB)),
    (
        "FB_RESERVED",
        False,
        "Framebuffer memory reserved (in MiB).",
        lambda one: _scaled(one.memory_reserved_bytes, MIB),
    ),
    ("ECC_SBE_VOL_TOTAL", True, "Single-bit errors since the last reset.", lambda one: one.single_bit_errors),
    ("ECC_DBE_VOL_TOTAL", True, "Double-bit errors since the last reset.", lambda one: one.double_bit_errors),
    ("ECC_SBE_AGG_TOTAL", True, "Single-bit errors ever.", lambda one: one.single_bit_errors_ever),
    ("ECC_DBE_AGG_TOTAL", True, "Double-bit errors ever.", lambda one: one.double_bit_errors_ever),
    ("CORRECTABLE_REMAPPED_ROWS", True, "Rows replaced for correctable errors.", lambda one: one.remapped_correctable),
    (
        "UNCORRECTABLE_REMAPPED_ROWS",
        True,
        "Rows replaced for uncorrectable errors.",
        lambda one: one.remapped_uncorrectable,
    ),
    (
        "ROW_REMAP_FAILURE",
        False,
        "Whether replacing rows has failed.",
        lambda one: None if one.remapped_correctable is None else int(one.remap_failed),
    ),
)


def gpu_figures(devices: Sequence[SeenDevice], host: str = platform.node()) -> Iterator[Figure]:
    """Everything that is known of these devices."""
    seen = [(one, one.gpu, one.sample) for one in devices if one.gpu is not None and one.sample is not None]
    for name, counts, words, read in FIGURES:
        values = [(_labels(gpu, host), value) for _, gpu, one in seen if (value := read(one)) is not None]
        if values:
            yield Figure(name=f"DCGM_FI_DEV_{name}", words=words, counts=counts, labels=LABELS, values=tuple(values))
    errors = tuple((_labels(gpu, host), float(device.xid)) for device, gpu, _ in seen)
    if errors:
        words = "Value of the last XID error encountered."
        yield Figure(name="DCGM_FI_DEV_XID_ERRORS", words=words, labels=LABELS, values=errors)
    withheld = tuple(
        ((one.device[:16], one.gpu.uuid if one.gpu else "", reason), 1.0) for one in devices for reason in one.reasons
    )
    words = "Devices that are not lent, and why."
    yield Figure(name="hansa_device_withheld", words=words, labels=("device", "UUID", "reason"), values=withheld)


def _labels(gpu: Gpu, host: str) -> tuple[str, ...]:
    node = f"nvidia{gpu.minor}" if gpu.vendor != AMD else gpu.nodes[-1].rpartition("/")[2]
    instance = str(gpu.slice_ids[0]) if gpu.slice_ids is not None else ""
    return (str(gpu.index), gpu.uuid, gpu.bus, node, gpu.model, host, gpu.profile, instance)
