"""GPUs come from the driver through the real bindings, CPU capacity from the kernel, and nothing is pretended."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hansa.node.config import ProviderConfig, parse_config
from hansa.node.faults import ConfigError
from hansa.node.inventory import Machine, read_machine, take_inventory
from hansa.node.nvml import Gpu, GpuReport, read_gpus
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


# ---- the real bindings on a stand-in driver --------------------------------------------------------------------------

DRIVER = r"""
#include <stdlib.h>
#include <string.h>
static int number(const char *name, int otherwise) { char *v = getenv(name); return v ? atoi(v) : otherwise; }
int nvmlInitWithFlags(unsigned flags) { return number("INIT", 0); }
int nvmlShutdown(void) { char *path = getenv("CLOSED"); if (path) fclose_marker(path); return 0; }
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : "An Error"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { strncpy(out, "580.00", size); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = number("GPUS", 2); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  if ((int)index == number("LOST", -1)) return 15;
  *device = (void *)(long)(index + 1); return 0; }
int nvmlDeviceGetUUID(void *device, char *out, unsigned size) {
  memset(out, 0, size); strcpy(out, "GPU-stand-in-"); out[13] = '0' + (long)device - 1; return 0; }
int nvmlDeviceGetName(void *device, char *out, unsigned size) { strncpy(out, "NVIDIA Stand-in", size); return 0; }
struct memory { unsigned long long total, free, used; };
int nvmlDeviceGetMemoryInfo(void *device, struct memory *out) {
  if (getenv("NO_MEMORY")) return 3;
  out->total = 80ull << 30; out->free = out->total; out->used = 0; return 0; }
int nvmlDeviceGetMinorNumber(void *device, unsigned *minor) {
  if (getenv("NO_MINOR")) return 3;
  *minor = (long)device + 6; return 0; }
#ifdef WITH_MIG
int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *later) {
  *now = *later = (long)device == 1; return 0; }
#endif
"""
MARKER = r"""
#include <stdio.h>
static void fclose_marker(const char *path) { FILE *f = fopen(path, "w"); if (f) fclose(f); }
"""
PROGRAM = """
import json, dataclasses
from hansa.node.nvml import read_gpus
print(json.dumps(dataclasses.asdict(read_gpus())))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in for the NVIDIA driver's library")
    directory = tmp_path_factory.mktemp("driver")
    (directory / "nvml.c").write_text(MARKER + DRIVER)
    for name, flags in (("plain", []), ("mig", ["-DWITH_MIG"])):
        (directory / name).mkdir()
        out = directory / name / "libnvidia-ml.so.1"
        soname = "-Wl,-soname,libnvidia-ml.so.1"
        command = [compiler, "-shared", "-fPIC", soname, *flags, "-o", str(out), str(directory / "nvml.c")]
        subprocess.run(command, check=True, capture_output=True)
    return directory


def asked(libraries: Path, **environment: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    report: dict[str, object] = json.loads(done.stdout)
    return report


def test_the_driver_names_its_gpus_and_is_closed_again(driver: Path, tmp_path: Path) -> None:
    report = asked(driver / "plain", CLOSED=str(tmp_path / "closed"))
    assert report == {
        "gpus": [
            {
                "index": index,
                "uuid": f"GPU-stand-in-{index}",
                "model": "NVIDIA Stand-in",
                "memory_bytes": 80 << 30,
                "minor": 7 + index,
            }
            for index in (0, 1)
        ],
        "driver_version": "580.00",
        "notes": [],
    }
    assert (tmp_path / "closed").exists()


def test_a_gpu_that_fell_off_the_bus_does_not_take_the_others_along(driver: Path) -> None:
    report = asked(driver / "plain", LOST="0")
    assert [found["index"] for found in report["gpus"]] == [1]  # type: ignore[attr-defined]
    assert report["notes"] == ["GPU 0 is not lent: GPU is lost"]


def test_memory_is_optional_but_a_device_node_is_not(driver: Path) -> None:
    assert [found["memory_bytes"] for found in asked(driver / "plain", NO_MEMORY="1")["gpus"]] == [0, 0]  # type: ignore[attr-defined]
    report = asked(driver / "plain", NO_MINOR="1")
    assert report["gpus"] == []
    assert "device node" in str(report["notes"])


def test_a_gpu_in_slices_is_not_lent_whole(driver: Path) -> None:
    report = asked(driver / "mig")
    assert [found["index"] for found in report["gpus"]] == [1]  # type: ignore[attr-defined]
    assert "MIG" in str(report["notes"])


def test_a_driver_that_does_not_start_is_told_in_its_own_words(driver: Path) -> None:
    assert asked(driver / "plain", INIT="9")["notes"] == ["the NVIDIA driver does not answer: Driver Not Loaded"]


def test_a_driver_without_gpus_is_said(driver: Path) -> None:
    assert asked(driver / "plain", GPUS="0")["notes"] == ["the NVIDIA driver knows no GPU"]


@pytest.mark.gpu
def test_a_real_gpu_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    report = read_gpus()
    if not report.gpus:
        pytest.skip("; ".join(report.notes))
    found = take_inventory(ACCOUNT, PROVIDER, report=report)
    with capsys.disabled():
        print(f"\ndriver {report.driver_version}: {report.gpus}\n{found.note}")
    for device, seen in zip(found.devices, report.gpus, strict=False):
        assert device.kind == "gpu"
        assert device.memory_bytes > 1 << 30
        assert Path(f"/dev/nvidia{seen.minor}").exists()
