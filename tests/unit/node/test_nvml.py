"""What the driver says, through the real bindings, from a stand-in for its library that plays a scripted machine."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.scripted_gpus import ScriptedGpus

from hansa.node.devices.driver_process import DriverProcess, DriverSilent, ask_once
from hansa.node.devices.gpus import Gpu, GpuReport, GpuSample, Link, report_from_json, report_to_json
from hansa.node.devices.mig import slice_nodes, slice_profile
from hansa.node.devices.nvml import read_gpus

SLICED = {"gpu0.mig": 1, "gpu0.slices": 2}
CAPABILITIES = (
    "config 1\nmonitor 2\ngpu7/gi7/access 12\ngpu7/gi7/ci0/access 13\ngpu7/gi8/access 21\ngpu7/gi8/ci0/access 22\n"
)


@pytest.fixture
def machine(tmp_path: Path) -> ScriptedGpus:
    return ScriptedGpus(tmp_path)


@pytest.fixture
def driver(machine: ScriptedGpus) -> Iterator[DriverProcess]:
    process = DriverProcess(proc=machine.proc, dev=machine.dev, environment=machine.environment)
    yield process
    process.close()


def sample(report: GpuReport, uuid: str = "GPU-stand-in-0") -> GpuSample:
    (found,) = [one for one in report.samples if one.uuid == uuid]
    return found


def test_the_driver_names_its_gpus_and_is_closed_again(driver: DriverProcess, machine: ScriptedGpus) -> None:
    report = driver.ask()
    assert report.gpus == tuple(
        Gpu(
            index=index,
            uuid=f"GPU-stand-in-{index}",
            model="NVIDIA Stand-in",
            memory_bytes=80 << 30,
            minor=7 + index,
            card=f"GPU-stand-in-{index}",
            capability="9.0",
            bus=f"0000:0{index + 1}:00.0",
            pcie_generation_most=5,
            pcie_width_most=16,
        )
        for index in (0, 1)
    )
    assert (report.driver_version, report.cuda_version, report.notes) == ("580.00", "13.0", ())
    driver.close()
    assert machine.was_told() == ["shutdown 0 0"]


def test_sixteen_gpus_are_sixteen(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set(gpus=16)
    assert len({gpu.uuid for gpu in driver.ask().gpus}) == 16


def test_a_gpu_that_fell_off_the_bus_does_not_take_the_others_along(
    driver: DriverProcess, machine: ScriptedGpus
) -> None:
    machine.set({"gpu0.all": "!15"})
    report = driver.ask()
    assert [found.index for found in report.gpus] == [1]
    assert report.notes == ("GPU 0 is not lent: GPU is lost",)


def test_memory_is_optional_but_a_device_node_is_not(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set({"gpu.memory_mb": "!3"})
    assert [found.memory_bytes for found in driver.ask().gpus] == [0, 0]
    machine.set({"gpu.minor": "!3"})
    driver.end()
    report = driver.ask()
    assert report.gpus == ()
    assert "device node" in str(report.notes)


def test_a_gpu_is_not_lent_while_the_node_that_cuda_needs_beside_its_own_is_missing(
    driver: DriverProcess, machine: ScriptedGpus
) -> None:
    """The management library answers without it, so after a boot every run would fail at its first call of CUDA."""
    for minor in (7, 8):
        (machine.dev / f"nvidia{minor}").touch()
    report = driver.ask()
    assert report.gpus == ()
    why = "CUDA needs /dev/nvidia-uvm, which is not there; as root: nvidia-modprobe -u -c 0"
    assert report.notes == (f"GPU 0 is not lent: {why}", f"GPU 1 is not lent: {why}")
    (machine.dev / "nvidia-uvm").touch()
    driver.end()
    assert [gpu.index for gpu in driver.ask().gpus] == [0, 1]


def test_a_gpu_on_which_nobody_may_compute_is_not_lent(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set({"gpu0.compute_mode": 2, "gpu1.compute_mode": 3})
    report = driver.ask()
    assert [gpu.index for gpu in report.gpus] == [1]
    assert report.notes == ("GPU 0 is not lent: its compute mode lets nobody compute; as root: nvidia-smi -c 0",)


@pytest.mark.parametrize(("state", "is_told"), [(0, False), (1, True), (2, True), (3, False)])
def test_a_gpu_that_has_joined_no_fabric_is_lent_and_its_owner_told(
    driver: DriverProcess, machine: ScriptedGpus, state: int, is_told: bool
) -> None:
    machine.set({"gpu1.fabric": state})
    report = driver.ask()
    assert len(report.gpus) == 2
    told = "where CUDA needs it, runs fail until nvidia-fabricmanager has started it"
    assert report.notes == ((f"GPU 1 has joined no NVLink fabric: {told}",) if is_told else ())


def test_slices_need_no_fabric(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.list_capabilities(CAPABILITIES)
    machine.set({**SLICED, "gpu0.fabric": 1})
    report = driver.ask()
    assert (len(report.gpus), report.notes) == (3, ())


def test_a_driver_that_does_not_start_is_told_in_its_own_words(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set(init="!9")
    assert driver.ask().notes == ("the NVIDIA driver does not answer: Driver Not Loaded",)
    machine.set(init=None)
    assert len(driver.ask().gpus) == 2


def test_a_driver_without_gpus_is_said(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set(gpus=0)
    assert driver.ask().notes == ("the NVIDIA driver knows no GPU",)


def test_no_driver_at_all_is_said(tmp_path: Path) -> None:
    process = DriverProcess(environment={"LD_LIBRARY_PATH": str(tmp_path)})
    if not list(Path("/proc/driver").glob("nvidia")):
        assert process.ask().notes == ("no NVIDIA driver on this machine",)
    process.close()


def test_everything_that_can_be_measured_is(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set(
        {
            "gpu0.busy": 83, "gpu0.memory_busy": 40, "gpu0.used_mb": 1024, "gpu0.temperature": 71,
            "gpu0.power_mw": 400_000,
            "gpu0.energy_mj": 1 << 40, "gpu0.clock": 1980, "gpu0.memory_clock": 2619, "gpu0.throttled": "0x44",
            "gpu0.pcie_generation": 1, "gpu0.pcie_width": 8, "gpu0.pcie_replays": 3, "gpu0.ecc_single": 5,
            "gpu0.ecc_double": 1, "gpu0.ecc_single_ever": 6, "gpu0.ecc_double_ever": 2, "gpu0.remapped": "4,2,1,1",
            "gpu0.retired_pending": 1, "gpu0.field82": 77, "gpu0.field230": 1, "gpu0.encoder": 7, "gpu0.decoder": 8,
        }
    )  # fmt: skip
    assert sample(driver.ask()) == GpuSample(
        uuid="GPU-stand-in-0", busy_percent=83, memory_busy_percent=40, memory_used_bytes=1 << 30,
        memory_free_bytes=79 << 30, temperature_c=71, memory_temperature_c=77, power_mw=400_000, power_limit_mw=700_000,
        energy_mj=1 << 40, clock_mhz=1980, memory_clock_mhz=2619, throttled=("power limit", "heat, by hardware"),
        pcie_generation=1, pcie_width=8, pcie_replays=3, single_bit_errors=5, double_bit_errors=1,
        single_bit_errors_ever=6, double_bit_errors_ever=2, remapped_correctable=4, remapped_uncorrectable=2,
        remap_pending=True, remap_failed=True, retired_pending=True, recovery="reset", encoder_percent=7,
        decoder_percent=8,
    )  # fmt: skip


def test_a_driver_that_supports_nothing_still_has_gpus(driver: DriverProcess, machine: ScriptedGpus) -> None:
    silent = (
        "memory_mb used_mb capability bus pcie_generation_most pcie_width_most pcie_generation pcie_width busy state"
        " temperature power_mw clock memory_clock throttled compute graphics power_limit_mw event_types name"
    )
    machine.set({f"gpu.{name}": "!3" for name in silent.split()}, events="!3", cuda="!3", driver="!3")
    report = driver.ask()
    assert [(gpu.model, gpu.memory_bytes, gpu.capability) for gpu in report.gpus] == [("NVIDIA GPU", 0, "")] * 2
    assert sample(report) == GpuSample(uuid="GPU-stand-in-0")


def test_what_computes_is_told_from_what_draws(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set({"gpu0.compute": "10:512,11:64", "gpu0.graphics": "9:100,10:1"})
    found = [(one.pid, one.memory_bytes >> 20, one.computes) for one in sample(driver.ask()).processes]
    assert found == [(9, 100, False), (10, 512, True), (11, 64, True)]


def test_an_error_event_is_told_once(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set({"gpu0.xid": "1:79"})
    assert sample(driver.ask()).xids == ()  # before anybody listened
    machine.set({"gpu0.xid": "2:79"})
    report = driver.ask()
    assert (sample(report).xids, sample(report, "GPU-stand-in-1").xids) == ((79,), ())
    assert sample(driver.ask()).xids == ()
    machine.set({"gpu0.xid": "3:48"})
    assert sample(driver.ask()).xids == (48,)


def test_a_gpu_that_is_lost_while_we_look_says_so_in_its_sample(driver: DriverProcess, machine: ScriptedGpus) -> None:
    driver.ask()
    machine.set({"gpu1.all": "!15"})
    report = driver.ask()
    assert sample(report, "GPU-stand-in-1") == GpuSample(uuid="GPU-stand-in-1", fault="GPU is lost")
    assert sample(report).fault == ""


def test_a_card_that_comes_is_seen_at_the_next_look(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.put_on_bus("0000:01:00.0", "0000:02:00.0")
    assert len(driver.ask().gpus) == 2
    machine.set(gpus=3)
    assert len(driver.ask().gpus) == 2
    machine.put_on_bus("0000:01:00.0", "0000:02:00.0", "0000:03:00.0")
    assert len(driver.ask().gpus) == 3


def test_links_are_counted_and_the_rest_is_far_apart_on_pcie(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set(
        {
            "gpu0.nvlink0": 1, "gpu0.nvlink3": 1, "gpu1.nvlink1": 0, "gpu1.nvlink2": 0,
            "gpu.distance0": 20, "gpu.distance1": 20, "gpu.distance2": 50, "gpu0.numa": 1,
        },
        gpus=3,
    )  # fmt: skip
    first, second, third = driver.ask().gpus
    assert first.links == (Link(to=second.bus, kind="NV2"), Link(to=third.bus, kind="SYS"))
    assert third.links == (Link(to=first.bus, kind="PXB"), Link(to=second.bus, kind="PXB"))
    assert (first.numa_node, second.numa_node) == (1, None)


def test_through_a_switch_every_gpu_is_as_near_as_its_links(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set({f"gpu.nvlink{link}": "switch" for link in range(18)})
    assert [[link.kind for link in gpu.links] for gpu in driver.ask().gpus] == [["NV18"], ["NV18"]]


def test_a_card_in_slices_is_lent_slice_by_slice(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.list_capabilities(CAPABILITIES)
    machine.set(SLICED, **{"slice0.1.name": "NVIDIA Stand-in MIG 1g.10gb", "slice.memory_mb": 9728})
    report = driver.ask()
    first, second, whole = report.gpus
    assert (first.model, first.profile, second.model, second.profile) == (
        "NVIDIA Stand-in MIG 1g",
        "1g",
        "NVIDIA Stand-in MIG 1g.10gb",
        "1g.10gb",
    )
    assert (first.uuid, first.card, first.memory_bytes) == ("MIG-stand-in-0-0", "GPU-stand-in-0", 9728 << 20)
    assert (first.minor, first.nodes) == (7, ("/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13"))
    assert second.nodes == ("/dev/nvidia-caps/nvidia-cap21", "/dev/nvidia-caps/nvidia-cap22")
    assert (whole.uuid, whole.nodes) == ("GPU-stand-in-1", ())
    # What only the card has is told of each slice; how busy one is, this driver does not say.
    assert (sample(report, first.uuid).temperature_c, sample(report, first.uuid).busy_percent) == (40, None)


def test_an_error_of_one_slice_is_not_its_neighbours(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.list_capabilities(CAPABILITIES)
    machine.set(SLICED)
    driver.ask()
    machine.set({"gpu0.xid": "1:94:8"})
    report = driver.ask()
    assert [sample(report, f"MIG-stand-in-0-{place}").xids for place in (0, 1)] == [(), (94,)]
    machine.set({"gpu0.xid": "2:79"})
    report = driver.ask()
    assert [sample(report, f"MIG-stand-in-0-{place}").xids for place in (0, 1)] == [(79,), (79,)]


def test_a_slice_whose_nodes_are_not_known_is_not_lent(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set(SLICED)
    report = driver.ask()
    assert [gpu.uuid for gpu in report.gpus] == ["GPU-stand-in-1"]
    assert "MIG mode" in str(report.notes)


def test_slices_have_the_names_that_the_driver_gives_them() -> None:
    assert slice_profile("NVIDIA H200 MIG 1g.18gb", 1, 1) == "1g.18gb"
    assert slice_profile("NVIDIA A100 MIG 1c.3g.20gb", 3, 1) == "1c.3g.20gb"
    assert slice_profile("NVIDIA A100-SXM4-40GB MIG 1g.5gb+me", 1, 1) == "1g.5gb+me"
    assert slice_profile("", 3, 1) == "1c.3g"
    with pytest.raises(LookupError):
        slice_nodes(0, (1, 0), {"gpu0/gi1/access": 3})


def test_a_power_limit_is_set_and_the_cards_own_restored_at_the_end(
    driver: DriverProcess, machine: ScriptedGpus
) -> None:
    for _ in range(2):
        assert sample(driver.ask({"GPU-stand-in-0": 300_000})).power_limit_mw == 300_000
    driver.close()
    assert machine.was_told() == ["power 0 300000", "power 0 700000", "shutdown 0 0"]


def test_a_limit_that_somebody_changed_meanwhile_is_left_alone(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set({"gpu0.power_limit_mw": 300_000})  # as one of us left it that was killed
    driver.ask({"GPU-stand-in-0": 300_000})
    machine.set({"gpu0.power_limit_mw": 250_000})
    driver.close()
    assert machine.was_told() == ["shutdown 0 0"]


def test_a_limit_of_one_that_was_killed_is_undone(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set({"gpu0.power_limit_mw": 300_000})
    driver.ask({"GPU-stand-in-0": 300_000})
    driver.close()
    assert machine.was_told() == ["power 0 700000", "shutdown 0 0"]


def test_a_limit_that_may_not_be_set_is_refused_in_words(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.set(may_set=0)
    (note,) = driver.ask({"GPU-stand-in-0": 300_000}).notes
    assert note == "GPU 0 cannot be held to 300 W: Insufficient Permissions (it takes 200 to 700 W)"


def test_a_driver_that_hangs_is_given_up_and_asked_again(driver: DriverProcess, machine: ScriptedGpus) -> None:
    driver.ask()
    machine.set(hang=1)
    begun_s = time.monotonic()
    with pytest.raises(DriverSilent, match="hangs"):
        driver.ask(timeout_s=0.5)
    assert time.monotonic() - begun_s < 10
    machine.set(hang=None)
    assert len(driver.ask().gpus) == 2


def test_a_library_that_crashes_takes_only_its_own_process_along(driver: DriverProcess, machine: ScriptedGpus) -> None:
    driver.ask()
    machine.set(crash=1)
    with pytest.raises(DriverSilent, match="crashed"):
        driver.ask()
    machine.set(crash=None)
    assert len(driver.ask().gpus) == 2


def test_asked_once_a_hanging_driver_has_no_gpus(machine: ScriptedGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    assert len(ask_once(proc=machine.proc).gpus) == 2
    machine.set(hang=1)
    report = ask_once(proc=machine.proc, timeout_s=0.5)
    assert (report.gpus, report.notes) == ((), ("the driver does not answer: a call into it hangs",))


def test_a_report_survives_being_written_down(driver: DriverProcess, machine: ScriptedGpus) -> None:
    machine.list_capabilities(CAPABILITIES)
    machine.set({"gpu0.compute": "1:2", "gpu1.all": "!15", "gpu0.busy": 0, **SLICED})
    report = driver.ask()
    assert report_from_json(report_to_json(report)) == report


@pytest.mark.gpu
def test_a_real_gpu_is_seen_and_sampled(capsys: pytest.CaptureFixture[str]) -> None:
    report = read_gpus()
    if not report.gpus:
        pytest.skip("; ".join(report.notes))
    with capsys.disabled():
        print(f"\ndriver {report.driver_version}, CUDA {report.cuda_version}, {report.notes}")
        for gpu in report.gpus:
            print(gpu)
        for one in report.samples:
            print(one)
    for gpu in report.gpus:
        assert gpu.memory_bytes > 1 << 30
        assert Path(f"/dev/nvidia{gpu.minor}").exists()
        assert all(Path(node).exists() for node in gpu.nodes)
        assert gpu.capability
        assert sample(report, gpu.uuid).fault == ""
        assert sample(report, gpu.uuid).temperature_c is not None
