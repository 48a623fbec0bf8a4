"""What a lease's devices computed is sampled from outside, adds up, and is never more than the time that passed."""

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hansa.node.devices.device_use import LONGEST_STEP_MS, Leased, UseMeter, read_cpu_ms
from hansa.node.devices.gpus import GpuSample
from hansa.proto.market_documents import Device

LEASE = b"l" * 32
GPUS = tuple(
    Device(id=bytes([n]) * 32, kind="gpu", model="G", memory_bytes=1 << 30, cores_milli=4_000, facts=()) for n in (1, 2)
)
SLOTS = tuple(
    Device(id=bytes([n]) * 32, kind="cpu", model="C", memory_bytes=1 << 30, cores_milli=2_000, facts=()) for n in (3, 4)
)


def leased(devices: tuple[Device, ...], pid: int | None = 7, busy_ms: int = 0) -> list[Leased]:
    return [Leased(lease=LEASE, devices=devices, pid=pid, busy_ms=busy_ms)]


def busy(*percents: int | None) -> dict[bytes, GpuSample]:
    return {gpu.id: GpuSample(uuid="", busy_percent=share) for gpu, share in zip(GPUS, percents, strict=True)}


def test_the_shares_of_all_gpus_add_up_in_device_time() -> None:
    meter = UseMeter()
    meter.add(leased(GPUS), busy(50, 100), {}, 1000)
    assert meter.news() == [(LEASE, 1500)]
    assert meter.news() == []
    meter.add(leased(GPUS), busy(None, 10), {}, 1000)
    assert meter.news() == [(LEASE, 1600)]


def test_it_goes_on_from_what_was_told_before() -> None:
    meter = UseMeter()
    meter.add(leased(GPUS, busy_ms=10_000), busy(0, 0), {}, 1000)
    assert meter.news() == []
    meter.add(leased(GPUS, busy_ms=10_000), busy(100, 0), {}, 1000)
    assert meter.news() == [(LEASE, 11_000)]


def test_two_slots_are_as_busy_as_their_four_cores() -> None:
    meter = UseMeter()
    meter.add(leased(SLOTS), {}, {7: 50_000}, 1000)
    assert meter.news() == []  # what was before we looked, nobody measured
    meter.add(leased(SLOTS), {}, {7: 52_000}, 1000)
    assert meter.news() == [(LEASE, 1000)]  # two of four cores for a second are one of two slots
    meter.add(leased(SLOTS), {}, {7: 62_000}, 1000)
    assert meter.news() == [(LEASE, 3000)]  # no more than both


def test_a_run_that_begins_anew_counts_from_its_own_beginning() -> None:
    meter = UseMeter()
    meter.add(leased(SLOTS, 7), {}, {7: 50_000}, 1000)
    meter.add(leased(SLOTS, 8), {}, {8: 100}, 1000)
    meter.add(leased(SLOTS, 8), {}, {8: 2_100}, 1000)
    assert meter.news() == [(LEASE, 1000)]


def test_a_lease_that_is_over_is_forgotten() -> None:
    meter = UseMeter()
    meter.add(leased(GPUS), busy(100, 100), {}, 1000)
    meter.add([], {}, {}, 1000)
    assert meter.news() == []


step = st.tuples(
    st.integers(-10, 20_000), st.none() | st.integers(-5, 300), st.integers(0, 1 << 40), st.sampled_from([None, 7, 8])
)


@given(st.lists(step, max_size=20), st.integers(0, 1 << 40))
def test_it_never_falls_and_never_exceeds_the_time_that_passed(
    story: list[tuple[int, int | None, int, int | None]], before_ms: int
) -> None:
    meter, told, passed = UseMeter(), before_ms, 0
    devices = (GPUS[0], *SLOTS)
    for step_ms, share, cpu_ms, pid in story:
        samples = {GPUS[0].id: GpuSample(uuid="", busy_percent=share)}
        meter.add(leased(devices, pid, before_ms), samples, {} if pid is None else {pid: cpu_ms}, step_ms)
        passed += max(0, min(step_ms, LONGEST_STEP_MS)) * len(devices)
        for _, busy_ms in meter.news():
            assert told < busy_ms <= before_ms + passed
            told = busy_ms


def test_the_time_of_a_whole_tree_of_processes_is_counted_even_of_those_that_ended() -> None:
    burn = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    program = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\nprint(flush=True)\ninput()"
    tree = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert tree.stdout is not None
        tree.stdout.readline()
        used_ms = read_cpu_ms([tree.pid])[tree.pid]
        assert 300 <= used_ms < 3000
        assert read_cpu_ms([1 << 30]) == {}
    finally:
        tree.communicate(b"\n")


def test_a_control_group_that_counts_is_believed(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "7").mkdir(parents=True)
    (proc / "7" / "cgroup").write_text("0::/hansa.slice/hansa-12-1\n")
    own = groups / "hansa.slice" / "hansa-12-1"
    own.mkdir(parents=True)
    (own / "cpu.stat").write_text("usage_usec 4200123\nuser_usec 1\n")
    (proc / "8").mkdir()
    (proc / "8" / "cgroup").write_text("4:memory:/hansa-12-2\n3:cpu,cpuacct:/hansa-12-2\n0::/\n")
    second = groups / "cpu,cpuacct" / "hansa-12-2"
    second.mkdir(parents=True)
    (second / "cpuacct.usage").write_text("5000000000\n")
    assert read_cpu_ms([7, 8], proc, groups) == {7: 4200, 8: 5000}


def test_a_group_that_is_not_the_runs_own_is_not() -> None:
    pid = os.getpid()
    assert read_cpu_ms([pid])[pid] >= 1
