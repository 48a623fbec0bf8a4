"""A node says of its devices what drivers and the kernel say, and marks what is only its owner's word."""

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from hansa.node.devices.gpus import AMD, Gpu, GpuReport, Link
from hansa.node.devices.inventory import Machine, take_inventory
from hansa.node.devices.machine_facts import gpu_facts, hoisted, owners_facts
from hansa.node.faults import ConfigError
from hansa.node.settings.config import parse_config
from hansa.proto.market_documents import Clause, Fact

MACHINE = Machine(model="CPU", cores_milli=8_000, memory_bytes=32 << 30, serial="m", disk_bytes=100 << 30)
ACCOUNT = bytes(20)


def gpu(number, *linked, **changes):
    links = tuple(Link(to=f"bus{other}", kind="NV4") for other in linked)
    made = Gpu(index=number, uuid=f"GPU-{number}", model="NVIDIA H200", memory_bytes=141 << 30, minor=number)
    return replace(made, bus=f"bus{number}", links=links, capability="9.0", **changes)


def report(*gpus, driver="580.65.06", cuda="13.0"):
    return GpuReport(gpus=gpus, driver_version=driver, notes=(), cuda_version=cuda)


def told(one, *others, ram_bytes=0, disk_bytes=0, **said):
    lent = (one, *others)
    found = gpu_facts(one, lent, report(*lent, **said), ram_bytes, disk_bytes)
    return {fact.name: fact.value for fact in found}


def config(lines):
    return parse_config("[provider]\nenabled = true\n" + lines, Path("/x/config.toml")).provider


def test_a_gpus_facts_are_what_its_driver_says():
    assert told(gpu(0), ram_bytes=24 << 30, disk_bytes=90 << 30) == {
        "arch": platform.machine(),
        "compute": "9",
        "cuda": "13",
        "disk": "90 GiB",
        "driver": "580.65.6",
        "interconnect": "pcie",
        "ram": "24 GiB",
        "vendor": "nvidia",
    }


def test_what_a_driver_does_not_say_is_not_said():
    assert told(gpu(0), driver="", cuda="").keys() == {"arch", "compute", "interconnect", "vendor"}


def test_gpus_are_linked_only_where_every_pair_is():
    assert told(gpu(0, 1), gpu(1, 0))["interconnect"] == "nvlink"
    assert told(gpu(0, 1), gpu(1, 0), gpu(2))["interconnect"] == "pcie"
    far = replace(gpu(0), links=(Link(to="bus1", kind="SYS"),))
    assert told(far, gpu(1, 0))["interconnect"] == "pcie"
    assert told(gpu(0, 1, profile="1g.18gb"), gpu(1, 0))["interconnect"] == "pcie"


def test_each_make_has_its_own_drivers_version():
    other = gpu(1, vendor=AMD)
    both = {"driver": "580.65.06 and amdgpu 6.8.5"}
    assert told(gpu(0), other, **both)["driver"] == "580.65.6"
    found = told(other, gpu(0), **both)
    assert found["driver"] == "6.8.5"
    assert not found.keys() & {"cuda", "compute", "interconnect"}


def test_an_inventory_carries_the_facts_of_its_devices():
    provider = config('cpu_slots = 1\nmemory_per_slot = "4 GiB"\n')
    found = take_inventory(ACCOUNT, provider, report=report(gpu(0, 1), gpu(1, 0)), machine=MACHINE)
    first, _, slot = ({fact.name: fact.value for fact in device.facts} for device in found.devices)
    assert (first["interconnect"], first["ram"], first["disk"]) == ("nvlink", "28 GiB", "100 GiB")
    assert slot == {"arch": platform.machine(), "disk": "100 GiB"}


def test_what_all_devices_share_is_said_once():
    provider = config("cpu_slots = 1\n")
    devices = take_inventory(ACCOUNT, provider, report=report(gpu(0)), machine=MACHINE).devices
    common, left = hoisted(devices)
    assert [fact.name for fact in common] == ["arch", "disk"]
    assert [{*common, *device.facts} for device in left] == [set(device.facts) for device in devices]
    assert hoisted(devices[:1]) == ((), devices[:1])


def test_the_owners_word_is_marked_as_that():
    lines = '[provider.facts]\ndownload = "0.9 Gbit/s"\ndata_region = ["EU", "de"]\nbenchmark = 60.5\n'
    facts = config(lines).facts
    assert owners_facts(facts, "Frankfurt, DE") == (
        Fact(name="benchmark", value="60.5"),
        Fact(name="data_region", value="de,eu"),
        Fact(name="download", value="900 Mbit/s"),
        Fact(name="region", value="frankfurt, de"),
        Fact(name="stated", value="benchmark,data_region,download,region"),
    )
    assert owners_facts((), "") == ()


@pytest.mark.parametrize(
    ("lines", "words", "hint"),
    [
        ('[provider.facts]\ndownload = "fast"\n', "provider.facts.download: is no rate", "500 Mbit/s"),
        ('[provider.facts]\ncuda = "13"\n', "provider.facts.cuda: unknown key", "known here"),
        ('accepts = "wall <= 24"\n', "provider.accepts: '24' is no length of time", "wall <= 24 h"),
        ('accepts = "cuda >= 12"\n', "'cuda' says nothing of a job", "rules know"),
        ("accepts = 3\n", "provider.accepts: must be text", "wall <= 24 h"),
    ],
)
def test_a_slip_in_the_configuration_is_pointed_at(lines, words, hint):
    with pytest.raises(ConfigError) as caught:
        config(lines)
    assert words in str(caught.value)
    assert "config.toml:" in str(caught.value)
    assert hint in caught.value.hint


def test_rules_are_read_with_the_configuration():
    assert config('accepts = "network = none, wall <= 24 h"\n').accepts == (
        Clause(name="network", operator="=", values=("none",)),
        Clause(name="wall", operator="<=", values=("1 d",)),
    )
    assert config("").accepts == ()
