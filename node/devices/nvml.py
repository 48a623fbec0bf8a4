"""The GPUs of this machine as NVIDIA's management library sees them. Nothing else in Hansa knows that library.

Every call but the first few is optional: virtual machines, slices and older drivers answer many of them with "not
supported", and a provider whose GPU has no fan must not for that reason have no GPU. What cannot be optional is a
limit on time, and a library may hang or crash in any call; so a daemon never comes here by itself, but through
``hansa.node.devices.driver_process``.
"""

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml

from hansa.node.devices.gpus import Gpu, GpuProcess, GpuReport, GpuSample, Link
from hansa.node.devices.mig import CAPABILITIES, read_capability_minors, slice_nodes, slice_profile

PROC = Path("/proc/driver")
DEV = Path("/dev")
LOOK_AGAIN_S = 10.0
"""How long what a GPU is, rather than how it does, is not asked for again."""
REOPEN_S = 30.0
"""The list of GPUs is made when the library is opened; one that fell off the bus comes back only in a new one."""
MOST_EVENTS = 256
NO_INSTANCE = 0xFFFFFFFF
DOUBLE_BIT_XID = 48
_DISTANCES = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_RECOVERIES = {1: "reset", 2: "reboot", 3: "drain", 4: "drain", 5: "reset", 6: "reset", 7: "reboot"}
_THROTTLES = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "heat",
    0x40: "heat, by hardware",
    0x80: "power brake",
}
_UNSAID = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
)
_GONE = (
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_RESET_REQUIRED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A GPU or slice with what it takes to ask about it."""

    gpu: Gpu
    handle: Any
    card: Any


class NvidiaDriver:
    """The library, opened when it is first asked and anew after a fault; use it in one thread."""

    def __init__(self, proc: Path = PROC, dev: Path = DEV, clock: Callable[[], float] = time.monotonic) -> None:
        """Look for what the kernel module tells below ``proc``, and for device nodes in ``dev``."""
        self._proc = proc
        self._dev = dev
        self._clock = clock
        self._open = False
        self._opened_s = 0.0
        self._looked_s = 0.0
        self._on_bus: frozenset[str] = frozenset()
        self._seen: tuple[_Seen, ...] = ()
        self._notes: tuple[str, ...] = ()
        self._events: Any = None
        self._gone = False
        self._limits: dict[str, tuple[int, int]] = {}
        self._limit_notes: dict[str, str] = {}

    def read(self, power_limits_mw: Mapping[str, int] | None = None) -> GpuReport:
        """What there is and how it does. Without a driver, or with a broken one, it says why; nothing is raised.

        Args:
            power_limits_mw: by a card's uuid, the limit that its owner wants while this driver is open.
        """
        try:
            self._refresh()
            self._limit_power(power_limits_mw or {})
            samples = self._samples()
        except pynvml.NVMLError_LibraryNotFound:
            return replace(_nothing("no NVIDIA driver on this machine"), absent=True)
        except pynvml.NVMLError as fault:
            words = "does not answer" if not self._open else "failed"
            self._shut()
            return _nothing(f"the NVIDIA driver {words}: {_words(fault)}")
        return GpuReport(
            gpus=tuple(seen.gpu for seen in self._seen),
            driver_version=_text(_optional(pynvml.nvmlSystemGetDriverVersion)),
            cuda_version=_cuda_version(),
            notes=(*self._notes, *self._limit_notes.values()),
            samples=samples,
        )

    def close(self) -> None:
        """Give the cards their own power limits back, and shut the library."""
        for uuid, (found_mw, set_mw) in list(self._limits.items()):
            handle = _optional(pynvml.nvmlDeviceGetHandleByUUID, uuid)
            if handle is not None and _optional(pynvml.nvmlDeviceGetPowerManagementLimit, handle) == set_mw:
                _optional(pynvml.nvmlDeviceSetPowerManagementLimit, handle, found_mw)
        self._limits.clear()
        self._shut()

    def _shut(self) -> None:
        if self._events is not None:
            _optional(pynvml.nvmlEventSetFree, self._events)
        if self._open:
            _optional(pynvml.nvmlShutdown)
        self._events, self._open, self._seen = None, False, ()

    # What there is.

    def _refresh(self) -> None:
        """Open the library where it is not, and again where its list of GPUs may be out of date."""
        now_s = self._clock()
        on_bus = self._gpus_on_bus()
        if self._open and (on_bus != self._on_bus or (self._gone and now_s - self._opened_s >= REOPEN_S)):
            self._shut()
        if not self._open:
            pynvml.nvmlInit()
            self._open, self._opened_s, self._on_bus, self._gone = True, now_s, on_bus, False
            self._look(now_s)
            self._listen()
        elif now_s - self._looked_s >= LOOK_AGAIN_S:
            self._look(now_s)

    def _gpus_on_bus(self) -> frozenset[str]:
        try:
            return frozenset(entry.name for entry in (self._proc / "nvidia" / "gpus").iterdir())
        except OSError:
            return frozenset()

    def _look(self, now_s: float) -> None:
        seen: list[_Seen] = []
        notes: list[str] = []
        capability_minors = read_capability_minors(self._proc / CAPABILITIES)
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                found = _read_card(index, capability_minors)
                _check_cuda_can_start(found[0], self._dev)
                notes += _notes_of_fabric(found[0])
                seen += found
            except pynvml.NVMLError as fault:
                self._note_gone(fault)
                notes.append(f"GPU {index} is not lent: {_words(fault)}")
            except LookupError as reason:
                notes.append(f"GPU {index} is not lent: {reason.args[0]}")
        if not seen and not notes:
            notes.append("the NVIDIA driver knows no GPU")
        cards = {one.gpu.bus: one.card for one in seen if one.gpu.bus}
        linked = [replace(one, gpu=replace(one.gpu, links=_links(one, cards))) for one in seen]
        self._seen, self._notes, self._looked_s = tuple(linked), tuple(notes), now_s

    def _note_gone(self, fault: Exception) -> None:
        self._gone = self._gone or getattr(fault, "value", None) in _GONE

    # How it does.

    def _samples(self) -> tuple[GpuSample, ...]:
        xids = self._errors()
        samples = []
        for seen in self._seen:
            try:
                sample = _sample(seen)
            except pynvml.NVMLError as fault:
                self._note_gone(fault)
                sample = GpuSample(uuid=seen.gpu.uuid, fault=_words(fault))
            samples.append(replace(sample, xids=tuple(xids.get(seen.gpu.uuid, ()))))
        return tuple(samples)

    def _listen(self) -> None:
        """Be told of the driver's error events from now on; those that were before are over."""
        self._events = _optional(pynvml.nvmlEventSetCreate)
        if self._events is None:
            return
        wanted = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError
        for card in {_address(seen.card): seen.card for seen in self._seen}.values():
            offered = _optional(pynvml.nvmlDeviceGetSupportedEventTypes, card)
            if kinds := wanted & (offered or 0):
                _optional(pynvml.nvmlDeviceRegisterEvents, card, kinds, self._events)

    def _errors(self) -> dict[str, list[int]]:
        """Error events since the last look, by the uuid of whom they concern."""
        found: dict[str, list[int]] = {}
        for _ in range(MOST_EVENTS if self._events is not None else 0):
            event = _optional(pynvml.nvmlEventSetWait_v2, self._events, 0)
            if event is None:
                break
            is_xid = event.eventType & pynvml.nvmlEventTypeXidCriticalError
            for seen in self._seen:
                ids = seen.gpu.slice_ids
                elsewhere = ids is not None and event.gpuInstanceId not in (ids[0], NO_INSTANCE)
                if _address(seen.card) == _address(event.device) and not elsewhere:
                    found.setdefault(seen.gpu.uuid, []).append(int(event.eventData) if is_xid else DOUBLE_BIT_XID)
        return found

    def _limit_power(self, wanted: Mapping[str, int]) -> None:
        for seen in self._seen:
            uuid, limit_mw = seen.gpu.card, wanted.get(seen.gpu.card)
            if limit_mw is None or uuid in self._limits or uuid in self._limit_notes:
                continue
            try:
                found_mw = pynvml.nvmlDeviceGetPowerManagementLimit(seen.card)
                if found_mw == limit_mw:
                    # Perhaps of one of us that was killed. The card's own limit is what it shall have afterwards.
                    found_mw = pynvml.nvmlDeviceGetPowerManagementDefaultLimit(seen.card)
                else:
                    pynvml.nvmlDeviceSetPowerManagementLimit(seen.card, limit_mw)
                self._limits[uuid] = (found_mw, limit_mw)
            except pynvml.NVMLError as fault:
                what = f"GPU {seen.gpu.index} cannot be held to {limit_mw // 1000} W: {_words(fault)}"
                span = _optional(pynvml.nvmlDeviceGetPowerManagementLimitConstraints, seen.card)
                self._limit_notes[uuid] = what + (
                    f" (it takes {span[0] // 1000} to {span[1] // 1000} W)" if span else ""
                )


def read_gpus(proc: Path = PROC) -> GpuReport:
    """Ask the driver once. Without one, or with a broken one, the report has no GPUs and says why."""
    driver = NvidiaDriver(proc)
    try:
        return driver.read()
    finally:
        driver.close()


def _read_card(index: int, capability_minors: Mapping[str, int]) -> list[_Seen]:
    """A whole GPU, or its slices if it is cut. A ``LookupError`` says why it cannot be lent."""
    card = pynvml.nvmlDeviceGetHandleByIndex(index)
    uuid = _text(pynvml.nvmlDeviceGetUUID(card))
    minor = _optional(pynvml.nvmlDeviceGetMinorNumber, card)
    if minor is None:
        # The device node is the only real boundary between two jobs on one machine.
        raise LookupError("the driver does not say which device node it is, so a job could not be confined to it")
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, card)
    capability = _optional(pynvml.nvmlDeviceGetCudaComputeCapability, card)
    address = _optional(pynvml.nvmlDeviceGetPciInfo_v3, card)
    bus = _text(address.busId).lower()[-12:] if address is not None else ""
    gpu = Gpu(
        index=index,
        uuid=uuid,
        model=_text(_optional(pynvml.nvmlDeviceGetName, card)) or "NVIDIA GPU",
        memory_bytes=int(memory.total) if memory is not None else 0,
        minor=int(minor),
        card=uuid,
        capability=f"{capability[0]}.{capability[1]}" if capability else "",
        bus=bus,
        numa_node=_numa_node(card, bus),
        pcie_generation_most=_optional(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, card),
        pcie_width_most=_optional(pynvml.nvmlDeviceGetMaxPcieLinkWidth, card),
    )
    mode = _optional(pynvml.nvmlDeviceGetMigMode, card)
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return [_Seen(gpu=gpu, handle=card, card=card)]
    slices = _read_slices(gpu, card, capability_minors)
    if not slices:
        raise LookupError("it is in MIG mode and has no slice that could be lent (nvidia-smi mig -lgi)")
    return slices


def _check_cuda_can_start(seen: _Seen, dev: Path) -> None:
    """Raise a ``LookupError`` that says why nothing could be computed on a card that the driver itself knows well.

    The management library needs less than CUDA does, and nobody in a sandbox may make a device node or load a module.
    """
    if (dev / f"nvidia{seen.gpu.minor}").exists() and not (dev / "nvidia-uvm").exists():
        raise LookupError("CUDA needs /dev/nvidia-uvm, which is not there; as root: nvidia-modprobe -u -c 0")
    if _optional(pynvml.nvmlDeviceGetComputeMode, seen.card) == pynvml.NVML_COMPUTEMODE_PROHIBITED:
        raise LookupError("its compute mode lets nobody compute; as root: nvidia-smi -c 0")


def _notes_of_fabric(seen: _Seen) -> list[str]:
    """Where GPUs hang on NVSwitches, CUDA may wait for their fabric. Slices do without, and some machines, too."""
    fabric = pynvml.c_nvmlGpuFabricInfo_t()
    if seen.gpu.profile or _optional(pynvml.nvmlDeviceGetGpuFabricInfo, seen.card, ctypes.byref(fabric)) is None:
        return []
    state = fabric.state & 0xFF  # the library writes one byte
    if state not in (pynvml.NVML_GPU_FABRIC_STATE_NOT_STARTED, pynvml.NVML_GPU_FABRIC_STATE_IN_PROGRESS):
        return []
    hint = "where CUDA needs it, runs fail until nvidia-fabricmanager has started it"
    return [f"GPU {seen.gpu.index} has joined no NVLink fabric: {hint}"]


def _read_slices(gpu: Gpu, card: Any, capability_minors: Mapping[str, int]) -> list[_Seen]:
    found = []
    for place in range(_optional(pynvml.nvmlDeviceGetMaxMigDeviceCount, card) or 0):
        handle = _optional(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, card, place)
        if handle is None:
            continue  # places of slices that were not made
        try:
            uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
            ids = (pynvml.nvmlDeviceGetGpuInstanceId(handle), pynvml.nvmlDeviceGetComputeInstanceId(handle))
            shape = pynvml.nvmlDeviceGetAttributes_v2(handle)
            nodes = slice_nodes(gpu.minor or 0, ids, capability_minors)
        except (pynvml.NVMLError, LookupError):
            continue  # without its own capabilities a slice is no boundary
        name = _text(_optional(pynvml.nvmlDeviceGetName, handle))
        profile = slice_profile(name, shape.gpuInstanceSliceCount, shape.computeInstanceSliceCount)
        memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
        whole = replace(
            gpu,
            uuid=uuid,
            model=name if "MIG " in name else f"{gpu.model} MIG {profile}",
            memory_bytes=int(memory.total) if memory is not None else int(shape.memorySizeMB) << 20,
            nodes=nodes,
            profile=profile,
            slice_ids=ids,
        )
        found.append(_Seen(gpu=whole, handle=handle, card=card))
    return found


def _numa_node(card: Any, bus: str) -> int | None:
    node = _optional(pynvml.nvmlDeviceGetNumaNodeId, card)  # machines whose GPU memory is a node of its own
    if node is not None and node >= 0:
        return int(node)
    try:
        number = int(Path(f"/sys/bus/pci/devices/{bus}/numa_node").read_text())
    except (OSError, ValueError):
        return None
    return number if number >= 0 else None


def _links(seen: _Seen, cards: Mapping[str, Any]) -> tuple[Link, ...]:
    """Ways to the other cards of this driver. Slices are kept from each other's links, so they have none."""
    if seen.gpu.slice_ids is not None:
        return ()
    direct: dict[str, int] = {}
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if not _optional(pynvml.nvmlDeviceGetNvLinkState, seen.card, link):
            continue
        other = _optional(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, seen.card, link)
        to = _text(other.busId).lower()[-12:] if other is not None else ""
        if to and to not in cards:
            to = "switch"  # all GPUs that hang on the same switches reach each other through them
        direct[to] = direct.get(to, 0) + 1
    links = []
    for bus, card in cards.items():
        if bus == seen.gpu.bus:
            continue
        nvlinks = direct.get(bus) or direct.get("switch", 0)
        distance = _optional(pynvml.nvmlDeviceGetTopologyCommonAncestor, seen.card, card)
        kind = f"NV{nvlinks}" if nvlinks else _DISTANCES.get(distance, "") if distance is not None else ""
        if kind:
            links.append(Link(to=bus, kind=kind))
    return tuple(links)


def _sample(seen: _Seen) -> GpuSample:
    """How one does. What every GPU knows shows whether it answers at all; its name and the like are remembered."""
    card, handle = seen.card, seen.handle
    for probe in (pynvml.nvmlDeviceGetMemoryInfo, pynvml.nvmlDeviceGetPerformanceState):
        try:
            probe(card)
        except pynvml.NVMLError as fault:
            if getattr(fault, "value", None) not in _UNSAID:
                raise
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    memory = memory or _optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    busy = _optional(pynvml.nvmlDeviceGetUtilizationRates, handle)
    remapped = _optional(pynvml.nvmlDeviceGetRemappedRows, card) or (None, None, 0, 0)
    throttled = _optional(pynvml.nvmlDeviceGetCurrentClocksEventReasons, card) or 0
    encoder, decoder = (
        _optional(call, card)
        for call in (pynvml.nvmlDeviceGetEncoderUtilization, pynvml.nvmlDeviceGetDecoderUtilization)
    )
    return GpuSample(
        uuid=seen.gpu.uuid,
        busy_percent=int(busy.gpu) if busy is not None else None,
        memory_busy_percent=int(busy.memory) if busy is not None else None,
        encoder_percent=encoder[0] if encoder else None,
        decoder_percent=decoder[0] if decoder else None,
        memory_used_bytes=int(memory.used) if memory is not None else None,
        memory_free_bytes=int(memory.free) if memory is not None else None,
        memory_reserved_bytes=int(memory.reserved) if hasattr(memory, "reserved") else None,
        temperature_c=_optional(pynvml.nvmlDeviceGetTemperature, card, pynvml.NVML_TEMPERATURE_GPU),
        memory_temperature_c=_field(card, pynvml.NVML_FI_DEV_MEMORY_TEMP),
        power_mw=_optional(pynvml.nvmlDeviceGetPowerUsage, card),
        power_limit_mw=_optional(pynvml.nvmlDeviceGetPowerManagementLimit, card),
        energy_mj=_optional(pynvml.nvmlDeviceGetTotalEnergyConsumption, card),
        clock_mhz=_optional(pynvml.nvmlDeviceGetClockInfo, card, pynvml.NVML_CLOCK_SM),
        memory_clock_mhz=_optional(pynvml.nvmlDeviceGetClockInfo, card, pynvml.NVML_CLOCK_MEM),
        throttled=tuple(words for bit, words in _THROTTLES.items() if throttled & bit),
        pcie_generation=_optional(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, card),
        pcie_width=_optional(pynvml.nvmlDeviceGetCurrPcieLinkWidth, card),
        pcie_replays=_optional(pynvml.nvmlDeviceGetPcieReplayCounter, card),
        single_bit_errors=_ecc(card, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_VOLATILE_ECC),
        double_bit_errors=_ecc(card, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC),
        single_bit_errors_ever=_ecc(card, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_AGGREGATE_ECC),
        double_bit_errors_ever=_ecc(card, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_AGGREGATE_ECC),
        remapped_correctable=remapped[0],
        remapped_uncorrectable=remapped[1],
        remap_pending=bool(remapped[2]),
        remap_failed=bool(remapped[3]),
        retired_pending=bool(_optional(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, card)),
        recovery=_RECOVERIES.get(_field(card, pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION) or 0, ""),
        processes=_processes(seen),
    )


def _processes(seen: _Seen) -> tuple[GpuProcess, ...]:
    """Who has memory there. A card in slices is asked slice by slice."""
    found: dict[int, GpuProcess] = {}
    lists = ((pynvml.nvmlDeviceGetGraphicsRunningProcesses, False), (pynvml.nvmlDeviceGetComputeRunningProcesses, True))
    for call, computes in lists:
        for entry in _optional(call, seen.handle) or ():
            memory_bytes = int(entry.usedGpuMemory or 0)
            found[int(entry.pid)] = GpuProcess(pid=int(entry.pid), memory_bytes=memory_bytes, computes=computes)
    return tuple(found[pid] for pid in sorted(found))


def _ecc(card: Any, kind: int, counter: int) -> int | None:
    count = _optional(pynvml.nvmlDeviceGetTotalEccErrors, card, kind, counter)
    return None if count is None else int(count)


def _field(card: Any, number: int) -> int | None:
    """One of the figures that have a number in place of a function."""
    values = _optional(pynvml.nvmlDeviceGetFieldValues, card, [number])
    if values is None or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    return int(values[0].value.uiVal)


def _cuda_version() -> str:
    number = _optional(pynvml.nvmlSystemGetCudaDriverVersion)
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _nothing(why: str) -> GpuReport:
    return GpuReport(gpus=(), driver_version="", notes=(why,))


def _optional(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call answers, or nothing where the driver does not support it."""
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return None


def _text(value: Any) -> str:
    """Text of the driver. Older bindings give bytes."""
    if value is None:
        return ""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return "".join(character for character in text if character.isprintable())[:200]


def _words(fault: Exception) -> str:
    """The driver's own words for an error. They need the library to be loaded, so even they may be missing."""
    try:
        return _text(str(fault)) or type(fault).__name__
    except pynvml.NVMLError:
        return type(fault).__name__
