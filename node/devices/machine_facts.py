"""What this node finds out itself of its devices and their machine, as the market's facts.

Only what a driver or the kernel says stands here, in the vocabulary's form; what they do not say is left out, and a job
that asks for it goes elsewhere. What is only the owner's word (``[provider.facts]``, the region) is marked as that.
"""

import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from hansa.market.clauses import written
from hansa.market.value_forms import size_text
from hansa.market.vocabulary import OWNERS_WORDS, VOCABULARY
from hansa.node.devices.gpus import AMD, NVIDIA, Gpu, GpuReport
from hansa.node.toml_reader import TomlTable
from hansa.proto.market_documents import Device, Fact

_VERSION = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)
_GIB: Final = 1 << 30


def gpu_facts(gpu: Gpu, lent: Sequence[Gpu], report: GpuReport, ram_bytes: int, disk_bytes: int) -> tuple[Fact, ...]:
    """Facts of one GPU.

    Args:
        gpu: which.
        lent: all that are lent of this machine, with itself.
        report: what the drivers said.
        ram_bytes: main memory that is not sold by itself; 0 where nobody knows.
        disk_bytes: room for runs' files; 0 where nobody knows.
    """
    facts = {
        "vendor": gpu.vendor,
        "driver": _driver(report.driver_version, gpu.vendor),
        "interconnect": _interconnect(gpu, lent),
        "arch": platform.machine(),
        "ram": size_text(ram_bytes) if ram_bytes else "",
        "disk": size_text(disk_bytes) if disk_bytes else "",
    }
    if gpu.vendor == NVIDIA:
        facts |= {"cuda": report.cuda_version, "compute": gpu.capability}
    return written(facts)


def slot_facts(disk_bytes: int) -> tuple[Fact, ...]:
    """Facts of a CPU slot, whose memory is its own."""
    return written({"arch": platform.machine(), "disk": size_text(disk_bytes) if disk_bytes else ""})


def _driver(versions: str, vendor: str) -> str:
    """One make's version out of what several drivers said: ``"580.65.06 and amdgpu 6.8.5"``."""
    for version in versions.split(" and "):
        name, _, number = version.rpartition(" ")
        if bool(name) == (vendor == AMD) and _VERSION.fullmatch(number):
            return number
    return ""


def _interconnect(gpu: Gpu, lent: Sequence[Gpu]) -> str:
    """``nvlink`` where all whole GPUs of its make are reached so: whichever of them a run gets, they are linked."""
    if gpu.vendor != NVIDIA:
        return ""
    others = {other.bus for other in lent if other.uuid != gpu.uuid and other.vendor == NVIDIA and not other.profile}
    linked = {link.to for link in gpu.links if link.kind.startswith("NV")}
    return "nvlink" if others and others <= linked and not gpu.profile else "pcie"


def read_owners_facts(table: TomlTable) -> tuple[Fact, ...]:
    """``[provider.facts]``: what the owner says of the machine, and nobody measured.

    Raises:
        ConfigError: a value is not of its word's kind.
    """
    told: dict[str, str] = {}
    for name in OWNERS_WORDS:
        if not table.has(name):
            continue
        value = table.values[name]
        text = ",".join(table.texts(name, (), most=64)) if isinstance(value, list) else str(value)
        try:
            told[name] = VOCABULARY[name].read(text)
        except ValueError as fault:
            raise table.fault(name, str(fault), f"for example {VOCABULARY[name].example}") from None
    table.finish()
    return written(told)


def owners_facts(facts: Sequence[Fact], region: str) -> tuple[Fact, ...]:
    """The owner's word with the region, and with the mark that it is just that."""
    told = {fact.name: fact.value for fact in facts} | ({"region": region} if region else {})
    return written(told | ({"stated": ",".join(sorted(told))} if told else {}))


def hoisted(devices: Sequence[Device]) -> tuple[tuple[Fact, ...], tuple[Device, ...]]:
    """What all devices have in common said once, and the devices with the rest."""
    if len(devices) < 2:
        return (), tuple(devices)
    common = set(devices[0].facts).intersection(*(device.facts for device in devices))
    left = tuple(
        replace(device, facts=tuple(fact for fact in device.facts if fact not in common)) for device in devices
    )
    return tuple(sorted(common, key=lambda fact: fact.name)), left
