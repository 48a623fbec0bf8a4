"""The GPUs of this machine as AMD's management library sees them. Nothing else in Hansa knows that library.

Its Python package looks for ``libamd_smi.so`` while it is imported, prints where there is none, and fails where the
library is of another version than itself; so it is imported only here, only in the drivers' own process, and only when
it is asked.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hansa.node.devices.gpus import AMD, Gpu, GpuProcess, GpuReport, GpuSample
from hansa.node.devices.sandbox_devices import KFD, rocm_names

MIB = 1 << 20
REOPEN_S = 30.0
KFD_PROCESSES = Path("/sys/class/kfd/kfd/proc")
"""A directory for each process that computes, rather than draws."""


class AmdDriver:
    """The library, open. Use it in one thread."""

    def __init__(self, processes: Path = KFD_PROCESSES, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is opened yet; ``processes`` is where the kernel lists those that compute."""
        self._processes = processes
        self._clock = clock
        self._library: Any = None
        self._absent = False
        self._silence = ""
        self._again_s = 0.0
        self._seen: tuple[tuple[Gpu, Any], ...] = ()
        self._notes: tuple[str, ...] = ()

    def read(self) -> GpuReport:
        """What there is and how it does. Without a driver, or with a broken one, it says why; nothing is raised."""
        if self._library is None and not self._absent and self._clock() >= self._again_s:
            self._again_s = self._clock() + REOPEN_S
            self._open()
        if self._library is None:
            return GpuReport(gpus=(), driver_version="", notes=(self._silence,), absent=self._absent)
        return GpuReport(
            gpus=tuple(gpu for gpu, _ in self._seen),
            driver_version=self._version(),
            notes=self._notes,
            samples=tuple(self._sample(gpu, handle) for gpu, handle in self._seen),
        )

    def close(self) -> None:
        """Shut the library."""
        if self._library is not None:
            self._try(self._library.amdsmi_shut_down)
            self._library = None

    def _open(self) -> None:
        try:
            import amdsmi  # noqa: PLC0415  # see above
        except (ImportError, KeyError, AttributeError, OSError):
            self._absent, self._silence = True, "no AMD driver that the package amdsmi could use on this machine"
            return
        try:
            amdsmi.amdsmi_init()
            self._library = amdsmi
            handles = amdsmi.amdsmi_get_processor_handles()
        except amdsmi.AmdSmiException as fault:
            self._silence = f"the AMD driver does not answer: {_words(fault)}"
            self._library = None
            return
        seen, notes = [], []
        for index, handle in enumerate(handles):
            found = self._identify(index, handle)
            if isinstance(found, Gpu):
                seen.append((found, handle))
            else:
                notes.append(f"AMD GPU {index} is not lent: {found}")
        self._seen, self._notes = tuple(seen), tuple(notes)

    def _identify(self, index: int, handle: Any) -> Gpu | str:
        """One GPU, or why it cannot be lent."""
        smi = self._library
        names = self._try(smi.amdsmi_get_gpu_enumeration_info, handle) or {}
        uuid, render = _line(names.get("hip_uuid")), _number(names.get("drm_render"))
        if render is None:
            return "the driver does not say which device node it is, so a job could not be confined to it"
        if not rocm_names(uuid):
            return "it has no name of its own, so a job could not be told which GPU is its own"
        chip = self._try(smi.amdsmi_get_gpu_asic_info, handle) or {}
        memory = self._try(smi.amdsmi_get_gpu_vram_usage, handle) or {}
        node = self._try(smi.amdsmi_topo_get_numa_node_number, handle)
        return Gpu(
            index=index,
            uuid=uuid,
            model=_line(chip.get("market_name")) or "AMD GPU",
            memory_bytes=(_number(memory.get("vram_total")) or 0) * MIB,
            minor=None,
            vendor=AMD,
            nodes=(f"/dev/dri/renderD{render}", KFD),
            card=uuid,
            capability=_line(chip.get("target_graphics_version")),
            bus=_line(self._try(smi.amdsmi_get_gpu_device_bdf, handle)).lower(),
            numa_node=node if isinstance(node, int) and 0 <= node < 1 << 16 else None,
        )

    def _sample(self, gpu: Gpu, handle: Any) -> GpuSample:
        """How one does. Every GPU knows its memory; one that does not answer that is not well."""
        smi = self._library
        try:
            memory = smi.amdsmi_get_gpu_vram_usage(handle)
        except smi.AmdSmiException as fault:
            return GpuSample(uuid=gpu.uuid, fault=_words(fault))
        busy = self._try(smi.amdsmi_get_gpu_activity, handle) or {}
        power = self._try(smi.amdsmi_get_power_info, handle) or {}
        errors = self._try(smi.amdsmi_get_gpu_total_ecc_count, handle) or {}
        used, total = _number(memory.get("vram_used")), _number(memory.get("vram_total"))
        power_w = _number(power.get("socket_power"))
        return GpuSample(
            uuid=gpu.uuid,
            busy_percent=_number(busy.get("gfx_activity")),
            memory_busy_percent=_number(busy.get("umc_activity")),
            memory_used_bytes=None if used is None else used * MIB,
            memory_free_bytes=None if used is None or total is None else (total - used) * MIB,
            temperature_c=self._temperature(handle, "HOTSPOT") or self._temperature(handle, "EDGE"),
            memory_temperature_c=self._temperature(handle, "VRAM"),
            power_mw=None if power_w is None else power_w * 1000,
            single_bit_errors=_number(errors.get("correctable_count")),
            double_bit_errors=_number(errors.get("uncorrectable_count")),
            processes=self._users(handle),
        )

    def _temperature(self, handle: Any, sensor: str) -> int | None:
        smi = self._library
        kind, metric = smi.AmdSmiTemperatureType[sensor], smi.AmdSmiTemperatureMetric.CURRENT
        return _number(self._try(smi.amdsmi_get_temp_metric, handle, kind, metric))

    def _users(self, handle: Any) -> tuple[GpuProcess, ...]:
        found = self._try(self._library.amdsmi_get_gpu_process_list, handle) or ()
        return tuple(
            GpuProcess(pid=pid, memory_bytes=_number(one.get("mem")) or 0, computes=self._computes(pid))
            for one in found
            if (pid := _number(one.get("pid"))) is not None
        )

    def _computes(self, pid: int) -> bool:
        return (self._processes / str(pid)).exists()

    def _version(self) -> str:
        if not self._seen:
            return ""
        found = self._try(self._library.amdsmi_get_gpu_driver_info, self._seen[0][1]) or {}
        return " ".join(_line(found.get(name)) for name in ("driver_name", "driver_version")).strip() or "amdgpu"

    def _try(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call answers, or nothing where the driver does not support it."""
        try:
            return call(*arguments)
        except (self._library.AmdSmiException, ValueError):  # its package decodes text without a second thought
            return None


def _number(value: Any) -> int | None:
    """A figure; the library says ``"N/A"`` for those that it does not have."""
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _line(value: Any) -> str:
    text = value if isinstance(value, str) and value != "N/A" else ""
    return "".join(letter for letter in text if letter.isprintable()).strip()[:200]


def _words(fault: Exception) -> str:
    """An error's short name in the library's own words."""
    return _line(" ".join(str(getattr(fault, "err_info", "") or fault).split()))
