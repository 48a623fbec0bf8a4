"""AMD's GPUs, through the real Python package, from a stand-in for its library. No real one has been seen."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.scripted_gpus import ScriptedGpus

from hansa.node.devices.driver_process import DriverProcess
from hansa.node.devices.gpus import Gpu, GpuProcess, GpuSample
from hansa.node.devices.inventory import Machine, take_inventory
from hansa.node.settings.config import parse_config

PACKAGE = Path(sys.prefix) / "amd"
"""Apart from everything else, since Ray fails where this package is and AMD's library is not."""
SOURCE = Path(__file__).parents[2] / "kit" / "amd_stand_in.c"
PROVIDER = parse_config("[provider]\nenabled = true\n", Path("/x/config.toml")).provider
MACHINE = Machine(model="Some CPU", cores_milli=8_000, memory_bytes=32 << 30, serial="m1")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    source_of_names = PACKAGE / "amdsmi" / "amdsmi_wrapper.py"
    if compiler is None or not source_of_names.exists():
        pytest.skip(f"no C compiler, or no amdsmi package in {PACKAGE}, to play AMD's library with")
    wrapper = source_of_names.read_text(encoding="utf-8")
    wanted = set(re.findall(r"_libraries\['libamd_smi\.so'\]\.(\w+)", wrapper))
    source = SOURCE.read_text()
    played = set(re.findall(r"^int (amdsmi_\w+)\(", source, re.MULTILINE))
    rest = "".join(f"int {name}(void) {{ return 2; }}\n" for name in sorted(wanted - played))
    directory = tmp_path_factory.mktemp("amd")
    (directory / "amd.c").write_text(source + rest)
    out = directory / "libamd_smi.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(out), str(directory / "amd.c")], check=True)
    return directory


@pytest.fixture
def machine(tmp_path: Path) -> ScriptedGpus:
    made = ScriptedGpus(tmp_path)
    made.set(gpus=1)
    return made


@pytest.fixture
def driver(machine: ScriptedGpus, library: Path) -> Iterator[DriverProcess]:
    environment = {
        "LD_LIBRARY_PATH": str(library),
        "AMD_SCRIPT": str(machine.script),
        "ROCM_PATH": str(library),
        "PYTHONPATH": os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    process = DriverProcess(proc=machine.proc, environment=environment)
    yield process
    process.close()


def test_a_gpu_has_its_own_nodes_and_the_name_that_rocm_knows_it_by(driver: DriverProcess) -> None:
    report = driver.ask()
    assert report.gpus == (
        Gpu(
            index=0,
            uuid="GPU-000000000000abc0",
            model="AMD Instinct MI300X",
            memory_bytes=192 << 30,
            minor=None,
            vendor="amd",
            nodes=("/dev/dri/renderD128", "/dev/kfd"),
            card="GPU-000000000000abc0",
            capability="gfx942",
        ),
    )
    assert (report.driver_version, report.notes) == ("amdgpu 6.14", ())
    found = take_inventory(bytes(20), PROVIDER, report=report, machine=MACHINE)
    (device,) = found.devices
    assert (device.kind, device.model) == ("gpu", "AMD Instinct MI300X")
    assert found.gpu_minors((device.id,)) == ()
    assert found.device_nodes((device.id,)) == ("/dev/dri/renderD128", "/dev/kfd")
    assert (found.cuda_devices((device.id,)), found.rocm_devices((device.id,))) == ((), ("GPU-000000000000abc0",))


def test_it_is_sampled_and_what_is_not_said_is_left_out(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set(
        {"gpu.busy": 60, "gpu.used_mb": 1024, "gpu.temperature1": 66, "gpu.power_w": 500, "gpu.processes": "77:512"}
    )
    (sample,) = driver.ask().samples
    assert sample == GpuSample(
        uuid="GPU-000000000000abc0",
        busy_percent=60,
        memory_used_bytes=1 << 30,
        memory_free_bytes=191 << 30,
        temperature_c=66,
        power_mw=500_000,
        processes=(GpuProcess(pid=77, memory_bytes=512 << 20, computes=False),),
    )
    machine.set({"gpu.ecc_uncorrected": 2})
    assert driver.ask().samples[0].double_bit_errors == 2


def test_one_that_does_not_answer_says_so(driver: DriverProcess, machine: ScriptedGpus) -> None:
    driver.ask()
    machine.set({"gpu.memory_mb": "!30"})
    (sample,) = driver.ask().samples
    assert "BUSY" in sample.fault


def test_one_without_a_name_of_its_own_or_a_node_is_not_lent(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set({"gpu0.uuid": "GPU-XX", "gpu1.render": "!2"}, gpus=3)
    report = driver.ask()
    assert [gpu.index for gpu in report.gpus] == [2]
    assert [note.partition(" is not lent")[0] for note in report.notes] == ["AMD GPU 0", "AMD GPU 1"]


def test_a_driver_that_does_not_start_is_said_and_no_nvidia_driver_is_worth_no_word(
    driver: DriverProcess, machine: ScriptedGpus
) -> None:
    machine.set(init="!34")
    (note,) = driver.ask().notes
    assert note.startswith("the AMD driver does not answer: AMDSMI_STATUS")


def test_an_owner_names_one_by_its_make_and_place(driver: DriverProcess) -> None:
    report = driver.ask()
    provider = parse_config('[provider]\nenabled = true\ngpus = ["amd0"]\n', Path("/x/config.toml")).provider
    assert len(take_inventory(bytes(20), provider, report=report, machine=MACHINE).devices) == 1
