"""The GPUs of this machine as NVIDIA's management library sees them. Nothing else in Hansa knows that library.

Every call but the first few is optional: virtual machines, slices and older drivers answer many of them with "not
supported", and a provider whose GPU has no fan must not for that reason have no GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU that can be lent whole.

    Attributes:
        index: its place in the driver's list, as ``nvidia-smi`` counts.
        uuid: ``"GPU-..."``, the same for the card's whole life.
        model: e.g. ``"NVIDIA H200"``.
        memory_bytes: its own memory; 0 where the driver does not say.
        minor: the N of ``/dev/nvidiaN``, the node that a sandbox must be given.
    """

    index: int
    uuid: str
    model: str
    memory_bytes: int
    minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """What was found.

    Attributes:
        gpus: those that can be lent.
        driver_version: empty without a driver.
        notes: in words, why a GPU, or all of them, cannot be lent.
    """

    gpus: tuple[Gpu, ...]
    driver_version: str
    notes: tuple[str, ...]


def read_gpus() -> GpuReport:
    """Ask the driver. Without one, or with a broken one, the report has no GPUs and says why; nothing is raised."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return GpuReport(gpus=(), driver_version="", notes=("no NVIDIA driver on this machine",))
    except pynvml.NVMLError as fault:
        return GpuReport(gpus=(), driver_version="", notes=(f"the NVIDIA driver does not answer: {_words(fault)}",))
    try:
        return _read_all()
    except pynvml.NVMLError as fault:
        return GpuReport(gpus=(), driver_version="", notes=(f"the NVIDIA driver failed: {_words(fault)}",))
    finally:
        _optional(pynvml.nvmlShutdown)


def _read_all() -> GpuReport:
    gpus: list[Gpu] = []
    notes: list[str] = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        found = _read_gpu(index)
        if isinstance(found, Gpu):
            gpus.append(found)
        else:
            notes.append(f"GPU {index} is not lent: {found}")
    if not gpus and not notes:
        notes.append("the NVIDIA driver knows no GPU")
    version = _text(_optional(pynvml.nvmlSystemGetDriverVersion))
    return GpuReport(gpus=tuple(gpus), driver_version=version, notes=tuple(notes))


def _read_gpu(index: int) -> Gpu | str:
    """One GPU, or the reason why it cannot be lent."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
    except pynvml.NVMLError as fault:
        return _words(fault)
    mig_mode = _optional(pynvml.nvmlDeviceGetMigMode, handle)
    if mig_mode is not None and mig_mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
        return "it is cut into MIG slices, and only whole GPUs are lent"
    minor = _optional(pynvml.nvmlDeviceGetMinorNumber, handle)
    if minor is None:
        # The device node is the only real boundary between two jobs on one machine.
        return "the driver does not say which device node it is, so a job could not be confined to it"
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return Gpu(
        index=index,
        uuid=uuid,
        model=_text(_optional(pynvml.nvmlDeviceGetName, handle)) or "NVIDIA GPU",
        memory_bytes=int(memory.total) if memory is not None else 0,
        minor=int(minor),
    )


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
