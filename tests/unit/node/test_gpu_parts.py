"""Runs on one GPU keep to their parts of its memory, or are over."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.scripted_gpus import ScriptedGpus

from hansa.node.daemon.device_watch import DeviceWatch, _end_those_over_their_parts
from hansa.node.devices.device_use import Leased, UseMeter
from hansa.node.devices.driver_process import DriverProcess
from hansa.node.devices.gpu_parts import Tenant, over_their_parts
from hansa.node.devices.gpu_users import Told
from hansa.node.devices.gpus import GpuProcess, GpuSample
from hansa.node.settings.config import parse_config
from hansa.proto.market_documents import KIND_GPU, Device
from hansa.scheduler.capacity import Capacity

GIB = 1 << 30
GPU = b"g" * 32
SHARES = '[provider]\nenabled = true\nshare = {{ least = 0.25, of = ["{}"] }}\n'


def tenant(name, share_milli, *pids, device=GPU):
    return Tenant(lease=name, device=device, memory_bytes=80 * GIB, share_milli=share_milli, pids=pids)


def has(**gib_by_pid):
    return {GPU: [GpuProcess(pid=int(pid[1:]), memory_bytes=gib * GIB) for pid, gib in gib_by_pid.items()]}


HALF, QUARTER = tenant(b"half", 500, 1, 2), tenant(b"quarter", 250, 3)


def test_who_keeps_to_its_part_goes_on_to_the_last_byte():
    assert over_their_parts([HALF, QUARTER], has(p1=30, p2=10, p3=20)) == {}


def test_who_has_more_than_its_part_is_over_and_its_neighbour_is_not():
    told = over_their_parts([HALF, QUARTER], has(p1=30, p2=11, p3=20))
    assert told == {b"half": "it had 41 GiB of its GPU's memory, and its part of 50 % is 40 GiB"}
    assert list(over_their_parts([HALF, QUARTER], has(p1=41, p3=21))) == [b"half", b"quarter"]


def test_what_is_nobodys_is_the_one_runs_that_is_alone():
    assert list(over_their_parts([QUARTER], has(p99=21))) == [b"quarter"]
    assert over_their_parts([QUARTER], has(p99=20)) == {}


def test_where_nobody_can_tell_whose_it_is_who_began_last_is_over():
    told = over_their_parts([HALF, QUARTER], has(p98=40, p99=21))
    assert list(told) == [b"quarter"]
    assert "nobody here can tell whose it is" in told[b"quarter"]
    assert over_their_parts([HALF, QUARTER], has(p98=60)) == {}
    assert list(over_their_parts([HALF, QUARTER], has(p1=41, p99=50))) == [b"half"], "of one it is known"


def test_another_gpus_memory_is_nobodys_matter():
    assert over_their_parts([tenant(b"x", 250, 1, device=b"o" * 32)], has(p1=80)) == {}
    assert over_their_parts([], has(p1=80)) == {}


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 40)), min_size=1, max_size=8))
def test_whoever_keeps_to_its_part_is_never_over_as_long_as_all_are_known(drawn):
    tenants = [tenant(bytes([number]), share, number) for number, (share, _) in enumerate(drawn)]
    seen = {GPU: [GpuProcess(pid=number, memory_bytes=gib * GIB) for number, (_, gib) in enumerate(drawn)]}
    over = over_their_parts(tenants, seen)
    for number, (share, gib) in enumerate(drawn):
        keeps = gib * GIB <= 80 * GIB * share // 1000
        assert (bytes([number]) in over) == (not keeps)


@pytest.fixture
def machine(tmp_path: Path) -> ScriptedGpus:
    return ScriptedGpus(tmp_path)


def watching(machine: ScriptedGpus, of: str) -> DeviceWatch:
    config = parse_config(SHARES.format(of), Path("/x/config.toml"))
    driver = DriverProcess(proc=machine.proc, environment=machine.environment)
    return DeviceWatch(account=b"a" * 20, provider=config.provider, rules=config.rules, now_ms=lambda: 1, driver=driver)


def test_what_the_driver_says_of_each_process_is_held_against_the_parts(machine):
    machine.set({"gpu0.compute": "11:30720,12:20480"})
    watch = watching(machine, "gpu")
    try:
        watch.judge(watch.look(), Capacity())
        device = watch.inventory.devices[0]
        assert [fact.value for fact in device.facts if fact.name == "share"] == ["0.25"]
        seen = {key: sample.processes for key, sample in watch.samples().items()}
        tenants = [
            Tenant(lease=b"one", device=device.id, memory_bytes=device.memory_bytes, share_milli=500, pids=(11,)),
            Tenant(lease=b"two", device=device.id, memory_bytes=device.memory_bytes, share_milli=250, pids=(12,)),
        ]
        assert over_their_parts(tenants, seen) == {}
        machine.set({"gpu0.compute": "11:30720,12:20481"})
        watch.judge(watch.look(), Capacity())
        seen = {key: sample.processes for key, sample in watch.samples().items()}
        assert list(over_their_parts(tenants, seen)) == [b"two"]
    finally:
        watch.close()


@pytest.mark.trio
async def test_the_watch_ends_the_run_that_took_too_much_and_no_other(machine, tmp_path, monkeypatch):
    ended = []

    async def fail(lease, kind, reason):
        ended.append((lease, kind, reason))

    machine.set({"gpu0.compute": "11:30720,12:20481"}, gpus=1)
    async with a_daemon(tmp_path, MemoryHub(), 1, lends=True) as daemon:
        daemon.watch.close()
        daemon.watch = watching(machine, "gpu")
        sight = daemon.watch.look()
        daemon.watch.judge(sight, Capacity())
        monkeypatch.setattr(daemon.executor, "fail", fail)
        told = {name: Told(at_s=0, pids=frozenset({pid}), cpu_ms=0) for name, pid in ((b"one", 11), (b"two", 12))}
        monkeypatch.setattr(daemon.executor, "_told", told)
        devices = daemon.watch.inventory.devices[:1]
        leases = [
            Leased(lease=name, devices=devices, pid=None, busy_ms=0, share_milli=part)
            for name, part in ((b"one", 500), (b"two", 250))
        ]
        await _end_those_over_their_parts(daemon, sight, leases)
        assert ended == [
            (b"two", "out-of-memory", "it had 20 GiB of its GPU's memory, and its part of 25 % is 20 GiB"),
        ]
        whole = [replace(lease, share_milli=1_000) for lease in leases]
        await _end_those_over_their_parts(daemon, sight, whole)
        assert len(ended) == 1, "who has all of a GPU is not looked at"


@pytest.mark.parametrize(("of", "shared"), [("cpu", False), ("gpu", True), ("H100", True), ("A100", False)])
def test_a_gpu_is_lent_in_parts_only_if_its_owner_names_it(machine, of, shared):
    machine.set({"gpu0.name": "NVIDIA H100 80GB HBM3"}, gpus=1)
    watch = watching(machine, of)
    try:
        (device,) = watch.inventory.devices
        assert ("share" in {fact.name for fact in device.facts}) == shared
    finally:
        watch.close()


def test_of_a_gpu_that_takes_turns_nobody_says_for_whom_it_computed():
    device = Device(id=GPU, kind=KIND_GPU, model="H100", memory_bytes=80 * GIB, cores_milli=1_000, facts=())
    for share_milli, told in ((1_000, 1_000), (500, 0)):
        meter = UseMeter()
        lease = Leased(lease=b"l", devices=(device,), pid=None, busy_ms=0, share_milli=share_milli)
        meter.add([lease], {GPU: GpuSample(uuid="u", busy_percent=100)}, {}, 1_000)
        assert dict(meter.news()).get(b"l", 0) == told
