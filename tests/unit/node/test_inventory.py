"""GPUs are lent as their driver names them, CPU capacity as the kernel does, and nothing is pretended."""

from dataclasses import replace
from pathlib import Path

import pytest

from hansa.node.devices.driver_process import ask_once
from hansa.node.devices.gpus import Gpu, GpuReport
from hansa.node.devices.inventory import NOTHING_LENT, Machine, read_machine, take_inventory
from hansa.node.faults import ConfigError
from hansa.node.settings.config import parse_config
from hansa.node.settings.provider_config import ProviderConfig
from hansa.proto.keccak import keccak256

ACCOUNT = bytes(range(20))
PROVIDER = parse_config("[provider]\nenabled = true\n", Path("/x/config.toml")).provider
MACHINE = Machine(model="Some CPU @ 3 GHz", cores_milli=8_000, memory_bytes=32 << 30, serial="m1")
NO_DRIVER = GpuReport(gpus=(), driver_version="", notes=("no NVIDIA driver on this machine",))


def gpu(index: int) -> Gpu:
    return Gpu(index=index, uuid=f"GPU-{index}", model="NVIDIA H200", memory_bytes=141 << 30, minor=index + 4)


TWO = GpuReport(gpus=(gpu(0), gpu(1)), driver_version="580.1", notes=())


def lend(**changes: object) -> ProviderConfig:
    return replace(PROVIDER, **changes)  # type: ignore[arg-type]


def test_without_a_driver_there_is_no_gpu_and_the_note_says_so() -> None:
    found = take_inventory(ACCOUNT, lend(cpu_slots=1), report=NO_DRIVER, machine=MACHINE)
    (slot,) = found.devices
    assert (slot.kind, slot.model, slot.cores_milli, slot.memory_bytes) == ("cpu", "Some CPU @ 3 GHz", 2_000, 4 << 30)
    assert found.note == "no NVIDIA driver on this machine; lends 1 CPU slot, sold as what it is"


def test_a_machine_that_lends_nothing_says_what_its_owner_can_do() -> None:
    found = take_inventory(ACCOUNT, lend(cpu_slots=0), report=NO_DRIVER, machine=MACHINE)
    assert (found.devices, found.note) == ((), f"no NVIDIA driver on this machine; {NOTHING_LENT}")


def test_gpus_get_ids_bound_to_the_account_and_share_the_cores_that_are_not_sold() -> None:
    found = take_inventory(ACCOUNT, lend(cpu_slots=2), report=TWO, machine=MACHINE)
    first, second, *slots = found.devices
    assert first.id == keccak256(ACCOUNT + b"GPU-0")
    assert {first.cores_milli, second.cores_milli} == {2_000}
    assert [slot.kind for slot in slots] == ["cpu", "cpu"]
    assert found.gpu_minors((second.id, first.id, slots[0].id)) == (4, 5)
    assert len({device.id for device in found.devices}) == 4


def test_another_account_has_other_ids() -> None:
    mine = take_inventory(ACCOUNT, lend(cpu_slots=1), report=TWO, machine=MACHINE)
    theirs = take_inventory(bytes(20), lend(cpu_slots=1), report=TWO, machine=MACHINE)
    assert not {device.id for device in mine.devices} & {device.id for device in theirs.devices}


def test_only_the_named_gpus_are_lent() -> None:
    by_index = take_inventory(ACCOUNT, lend(gpus=("1",)), report=TWO, machine=MACHINE)
    by_uuid = take_inventory(ACCOUNT, lend(gpus=("GPU-1", "1")), report=TWO, machine=MACHINE)
    assert [found.minor for found in by_index.gpus.values()] == [5]
    assert by_index.devices == by_uuid.devices
    assert take_inventory(ACCOUNT, lend(gpus=()), report=TWO, machine=MACHINE).devices == ()


def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match="GPU-9"):
        take_inventory(ACCOUNT, lend(gpus=("GPU-9",)), report=TWO, machine=MACHINE)


@pytest.mark.parametrize("changes", [{"cpu_slots": 5}, {"cpu_slots": 4, "memory_bytes_per_slot": 9 << 30}])
def test_more_than_the_machine_has_is_not_sold(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"provider\.cpu_slots sells"):
        take_inventory(ACCOUNT, lend(**changes), report=NO_DRIVER, machine=MACHINE)


@pytest.mark.parametrize(
    ("machine", "slots"),
    [(MACHINE, 3), (replace(MACHINE, memory_bytes=8 << 30), 1), (replace(MACHINE, cores_milli=2_000), 0)],
)
def test_auto_leaves_the_owner_some_room(machine: Machine, slots: int) -> None:
    found = take_inventory(ACCOUNT, lend(cpu_slots=None), report=NO_DRIVER, machine=machine)
    assert len(found.devices) == slots


def test_a_node_that_lends_nothing_does_not_look() -> None:
    found = take_inventory(ACCOUNT, lend(enabled=False))
    assert found.devices == ()


def test_the_real_machine_has_a_name_cores_and_memory() -> None:
    machine = read_machine()
    assert machine.model
    assert machine.cores_milli >= 1_000
    assert machine.memory_bytes > 64 << 20


def test_a_containers_memory_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       1048576 kB\n")
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Named: CPU\nmodel name : Other\n")
    (tmp_path / "memory.max").write_text("268435456\n")
    machine = read_machine(tmp_path, tmp_path)
    assert (machine.memory_bytes, machine.model) == (256 << 20, "Named: CPU")
    (tmp_path / "memory.max").write_text("max\n")
    assert read_machine(tmp_path, tmp_path).memory_bytes == 1 << 30


SLICES = tuple(
    replace(
        gpu(0), uuid=f"MIG-{place}", card="GPU-0", profile="1g.18gb", nodes=(f"/dev/nvidia-caps/nvidia-cap{place}",)
    )
    for place in (3, 4)
)


def test_slices_are_devices_of_their_own_with_their_cards_node_and_theirs() -> None:
    report = replace(TWO, gpus=(*SLICES, gpu(1)))
    found = take_inventory(ACCOUNT, PROVIDER, report=report, machine=MACHINE)
    first, second, whole = found.devices
    assert len({device.id for device in found.devices}) == 3
    assert found.note == "lends 1 GPU and 2 MIG slices"
    assert found.gpu_minors((first.id, second.id)) == (4,)
    assert found.device_nodes((second.id, first.id)) == ("/dev/nvidia-caps/nvidia-cap3", "/dev/nvidia-caps/nvidia-cap4")
    assert found.device_nodes((whole.id,)) == ()
    assert found.cuda_devices((whole.id, second.id, first.id)) == ("MIG-3", "MIG-4", "GPU-1")
    assert found.rocm_devices((whole.id,)) == ()


def test_a_card_that_is_named_stands_for_its_slices() -> None:
    report = replace(TWO, gpus=(*SLICES, gpu(1)))
    found = take_inventory(ACCOUNT, lend(gpus=("GPU-0",)), report=report, machine=MACHINE)
    assert [one.uuid for one in found.gpus.values()] == ["MIG-3", "MIG-4"]


@pytest.mark.gpu
def test_a_real_gpu_is_lent_by_what_its_driver_calls_it(capsys: pytest.CaptureFixture[str]) -> None:
    report = ask_once()
    if not report.gpus:
        pytest.skip("; ".join(report.notes))
    found = take_inventory(ACCOUNT, PROVIDER, report=report)
    with capsys.disabled():
        print(f"\n{found.note}: {[device.model for device in found.devices]}")
    assert [device.model for device in found.devices][: len(report.gpus)] == [one.model for one in report.gpus]
