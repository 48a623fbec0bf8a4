"""A device that is ill, gone, in another's use or held back by its owner is withdrawn, in words, and comes back."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.scripted_gpus import ScriptedGpus

from hansa.node.daemon.device_watch import NO_DRIVER_S, DeviceWatch, watch_devices
from hansa.node.devices.device_use import Leased
from hansa.node.devices.driver_process import WAKING_S, DriverProcess, DriverSilent
from hansa.node.devices.gpus import GpuReport
from hansa.node.devices.inventory import Machine
from hansa.node.engine.events import DevicesReturned, DevicesWithdrawn, InventoryChanged, NodeEvent
from hansa.node.settings.config import parse_config
from hansa.node.settings.provider_config import ProviderConfig
from hansa.node.settings.rules_config import RulesConfig
from hansa.proto.keccak import keccak256
from hansa.scheduler import capacity
from hansa.scheduler.device_health import ERROR_MS, WELL_MS, HealthRules
from hansa.scheduler.owner_rules import OwnerRules, parse_window

ACCOUNT = bytes(range(20))
CONFIG = parse_config("[provider]\nenabled = true\n", Path("/x/config.toml"))
MACHINE = Machine(model="Some CPU", cores_milli=8_000, memory_bytes=32 << 30, serial="m1")
NOON_MS = 1_800_014_400_000
FIRST, SECOND = (keccak256(ACCOUNT + f"GPU-stand-in-{index}".encode()) for index in (0, 1))


class Presence:
    """An owner who last touched the machine a while ago."""

    def __init__(self) -> None:
        self.idle: int | None = None

    def idle_ms(self) -> int | None:
        return self.idle

    def close(self) -> None:
        pass


class World:
    """A scripted machine, its watch, and what the engine holds of its devices."""

    def __init__(
        self,
        machine: ScriptedGpus,
        provider: ProviderConfig = CONFIG.provider,
        rules: RulesConfig = CONFIG.rules,
        driver: DriverProcess | None = None,
    ) -> None:
        self.machine = machine
        self.now_ms = NOON_MS
        self.presence = Presence()
        self.battery = False
        self.watch = DeviceWatch(
            account=ACCOUNT,
            provider=provider,
            rules=rules,
            now_ms=lambda: self.now_ms,
            driver=driver or DriverProcess(proc=machine.proc, environment=machine.environment),
            presence=self.presence,  # type: ignore[arg-type]
            battery=lambda: self.battery,
            machine=MACHINE,
            clock=lambda: self.now_ms / 1000,
        )
        self.capacity = capacity.with_inventory(capacity.Capacity(), self.watch.inventory.devices)
        self.step(0)

    def step(self, later_ms: int = 1000, leased: tuple[bytes, ...] = ()) -> list[NodeEvent]:
        """Look, and let the engine hear of it."""
        self.now_ms += later_ms
        events = self.watch.judge(self.watch.look(leased), self.capacity)
        for event in events:
            match event:
                case InventoryChanged(devices=devices):
                    self.capacity = capacity.with_inventory(self.capacity, devices)
                case DevicesWithdrawn(devices=ids, notice_ms=notice_ms, why=why, at_ms=at_ms):
                    self.capacity = capacity.withdraw(self.capacity, ids, by_ms=at_ms + notice_ms, why=why, at_ms=at_ms)
                case DevicesReturned(devices=ids):
                    self.capacity = capacity.give_back(self.capacity, ids)
        return events

    @property
    def lent(self) -> set[bytes]:
        return {device.id for device in self.capacity.lent}

    def why(self, device: bytes) -> str:
        return self.capacity.withdrawn[device].why if device in self.capacity.withdrawn else ""


@pytest.fixture
def machine(tmp_path: Path) -> ScriptedGpus:
    return ScriptedGpus(tmp_path)


@pytest.fixture
def world(machine: ScriptedGpus) -> Iterator[World]:
    made = World(machine)
    yield made
    made.watch.close()


def rules(**changes: object) -> RulesConfig:
    return replace(CONFIG.rules, **changes)  # type: ignore[arg-type]


def withdrawn(events: list[NodeEvent]) -> list[tuple[tuple[bytes, ...], int, str]]:
    return [(one.devices, one.notice_ms, one.why) for one in events if isinstance(one, DevicesWithdrawn)]


def test_gpus_that_are_well_are_lent_and_nothing_is_told(world: World) -> None:
    assert world.lent == {FIRST, SECOND}
    assert world.step() == []


def test_a_gpu_that_falls_off_the_bus_is_withdrawn_at_once_and_returns_when_it_has_been_back_for_a_while(
    world: World,
) -> None:
    world.machine.set({"gpu0.all": "!15"})
    assert withdrawn(world.step()) == [((FIRST,), 0, "its driver cannot reach it: GPU is lost")]
    assert world.lent == {SECOND}
    assert withdrawn(world.step()) == []
    world.machine.set({"gpu0.all": None})
    assert world.step() == []
    assert world.step(WELL_MS - 1001) == []
    assert world.step(2) == [DevicesReturned(devices=(FIRST,), at_ms=world.now_ms)]
    assert world.lent == {FIRST, SECOND}


def test_an_error_of_the_hardware_counts_for_long_and_a_programs_own_does_not(world: World) -> None:
    world.machine.set({"gpu0.xid": "1:31", "gpu1.xid": "1:79"})
    assert withdrawn(world.step()) == [((SECOND,), 0, "it fell off the bus (Xid 79)")]
    assert world.watch.xids == {"GPU-stand-in-0": 31, "GPU-stand-in-1": 79}
    world.step(ERROR_MS - 1)
    assert world.lent == {FIRST}
    world.step(1)
    world.step(WELL_MS)
    assert world.lent == {FIRST, SECOND}


@pytest.mark.parametrize(
    ("line", "value", "why"),
    [
        ("ecc_double", 1, "its memory had errors that could not be corrected, and it was not reset since"),
        ("remapped", "0,1,0,1", "its memory has no spare rows left"),
        ("remapped", "0,1,1,0", "rows of its memory are to be replaced, and it was not reset since"),
        ("retired_pending", 1, "rows of its memory are to be replaced, and it was not reset since"),
        ("field230", 2, "its driver asks for a reboot"),
    ],
)
def test_memory_and_recovery_are_heard_of(world: World, line: str, value: object, why: str) -> None:
    world.machine.set({f"gpu1.{line}": value})
    world.step()
    assert (world.why(SECOND), world.lent) == (why, {FIRST})


def test_a_gpu_that_is_unplugged_is_still_known_and_a_new_one_is_lent(world: World) -> None:
    world.machine.put_on_bus("one")
    world.machine.set(gpus=1)
    assert withdrawn(world.step()) == [((SECOND,), 0, "its driver does not list it any more")]
    assert [device.id for device in world.capacity.devices] == [FIRST, SECOND]
    world.machine.put_on_bus("one", "two", "three")
    world.machine.set(gpus=3)
    events = world.step()
    assert [type(event) for event in events] == [InventoryChanged]
    third = keccak256(ACCOUNT + b"GPU-stand-in-2")
    assert world.lent == {FIRST, third}


def test_a_gpu_that_comes_ill_is_never_lent(world: World) -> None:
    world.machine.set({"gpu2.remapped": "0,0,0,1"}, gpus=3)
    world.machine.put_on_bus("three")
    world.step()
    assert world.lent == {FIRST, SECOND}


def test_gpus_named_by_their_place_stay_the_same_when_one_before_them_goes(machine: ScriptedGpus) -> None:
    world = World(machine, replace(CONFIG.provider, gpus=("1",)))
    try:
        assert world.lent == {SECOND}
        machine.set({"gpu0.uuid": "GPU-stand-in-1"}, gpus=1)
        machine.put_on_bus("one")
        assert world.step() == []
        assert world.lent == {SECOND}
    finally:
        world.watch.close()


def test_a_driver_that_hangs_once_is_forgiven_and_twice_is_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hansa.node.daemon.device_watch.DRIVER_PATIENCE_S", 0.4)
    world.machine.set(hang=1)
    assert world.step() == []
    assert withdrawn(world.step()) == [((FIRST, SECOND), 0, "the driver does not answer: a call into it hangs")]
    world.machine.set(hang=None)
    world.step()
    world.step(WELL_MS)
    assert world.lent == {FIRST, SECOND}


class Impatient(DriverProcess):
    """A driver that says nothing when it is told to, and how long it was waited for each time."""

    def __init__(self, machine: ScriptedGpus) -> None:
        """Well at first."""
        super().__init__(proc=machine.proc, environment=machine.environment)
        self.waited_s: list[float] = []
        self.is_silent = False

    def ask(self, power_limits_mw: Mapping[str, int] | None = None, *, timeout_s: float = WAKING_S) -> GpuReport:
        """See ``DriverProcess``."""
        self.waited_s.append(timeout_s)
        if self.is_silent:
            raise DriverSilent("the driver does not answer: a call into it hangs")
        return super().ask(power_limits_mw, timeout_s=timeout_s)


def test_a_driver_is_given_time_to_wake_its_cards_at_first_and_more_each_time_it_is_silent(
    machine: ScriptedGpus,
) -> None:
    """One that is killed while it wakes eight cards begins anew, and would never come to its end."""
    driver = Impatient(machine)
    world = World(machine, driver=driver)
    try:
        assert driver.waited_s == [WAKING_S]
        world.step()
        driver.is_silent = True
        for _ in range(5):
            world.step()
        driver.is_silent = False
        world.step()
        world.step()
        assert driver.waited_s[1:] == [10, 10, 20, 40, 60, 60, 60, 10]
    finally:
        world.watch.close()


def test_where_there_is_no_driver_none_is_asked_again_for_a_while(tmp_path: Path, machine: ScriptedGpus) -> None:
    library = machine.environment["LD_LIBRARY_PATH"]
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver of its own")
    world = World(machine)
    driver = DriverProcess(environment={"LD_LIBRARY_PATH": str(tmp_path)})
    world.watch.close()
    world.watch._driver = driver
    world.step()
    assert driver._process is None
    assert world.why(FIRST) == "no NVIDIA driver on this machine"
    driver._environment |= {**machine.environment, "LD_LIBRARY_PATH": library}
    world.step()
    assert not world.watch.report.gpus
    world.step(round(NO_DRIVER_S * 1000))
    assert len(world.watch.report.gpus) == 2
    world.watch.close()


def test_somebody_elses_process_is_use_and_a_runs_own_is_not(world: World) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        # Ours is what descends from this process, so a stranger must not.
        world.machine.set({"gpu0.compute": f"{stranger.pid}:100"})
        assert world.step() == []
        world.machine.set({"gpu0.compute": "1:100"})
        ((devices, notice_ms, why),) = withdrawn(world.step())
        assert (devices, notice_ms) == ((FIRST,), 60_000)
        assert why.endswith("uses it")
        world.machine.set({"gpu0.compute": None})
        world.step()
        world.step(WELL_MS)
        assert world.lent == {FIRST, SECOND}
    finally:
        stranger.communicate(b"\n")


def test_a_process_that_cannot_be_seen_is_the_runs_that_has_the_gpu(world: World) -> None:
    world.machine.set({"gpu0.compute": "999999999:100"})
    assert world.step(leased=(FIRST,)) == []
    ((_, _, why),) = withdrawn(world.step())
    assert why == "a process that cannot be seen from here uses it"


def test_a_desktop_is_not_use_and_a_game_is(world: World) -> None:
    world.machine.set({"gpu0.graphics": "1:400,999999999:300"})
    assert world.step() == []
    world.machine.set({"gpu0.graphics": "1:400,999999999:3000"})
    world.step()
    assert world.why(FIRST) == "a program that draws uses it"


def test_heat_is_the_owners_rule_and_gives_notice(machine: ScriptedGpus) -> None:
    world = World(machine, rules=rules(health=HealthRules(max_temperature_c=80)))
    machine.set({"gpu1.temperature": 90})
    assert withdrawn(world.step()) == [((SECOND,), 60_000, "it is hotter than 80 °C")]
    machine.set({"gpu1.temperature": 91})
    assert world.step() == []
    world.watch.close()


def test_the_owners_hours_hold_for_every_device(machine: ScriptedGpus) -> None:
    hours = OwnerRules(windows=(parse_window("22:00-07:00"),))
    provider = replace(CONFIG.provider, cpu_slots=1, reclaim_notice_ms=120_000)
    world = World(machine, provider, rules(owner=hours, time_zone="UTC"))
    assert world.lent == set()
    assert {entry.why for entry in world.capacity.withdrawn.values()} == {"the owner lends at other hours"}
    world.step(14 * 3_600_000)  # 22:00
    assert len(world.lent) == 3
    assert world.watch.reasons == {}
    ((devices, notice_ms, _),) = withdrawn(world.step(9 * 3_600_000 - 120_000))
    assert (len(devices), notice_ms) == (3, 120_000)
    world.watch.close()


def test_an_owner_who_comes_back_gets_the_machine_back(machine: ScriptedGpus) -> None:
    world = World(machine, rules=rules(owner=OwnerRules(not_while_used=True, used_within_ms=60_000)))
    assert world.lent == {FIRST, SECOND}
    world.presence.idle = 1
    assert withdrawn(world.step(5000))[0][2] == "the owner is using the machine"
    world.presence.idle = 60_000
    world.step(5000)
    assert world.lent == {FIRST, SECOND}
    world.battery = True
    world.step(5000)
    assert world.why(FIRST) == "the machine runs on its battery"
    world.watch.close()


def test_presence_is_not_looked_at_unless_a_rule_asks(world: World) -> None:
    world.presence.idle = 0
    world.step(10_000)
    assert world.lent == {FIRST, SECOND}


def test_what_a_daemon_before_us_withdrew_is_returned_once_nothing_speaks_against_it(world: World) -> None:
    old = capacity.withdraw(world.capacity, [FIRST], by_ms=1, why="it fell off the bus (Xid 79)", at_ms=1)
    elsewhere = capacity.Withdrawal(by_ms=1, why="another machine's", since_ms=1)
    world.capacity = replace(old, withdrawn={**old.withdrawn, b"other" * 6 + b"xx": elsewhere})
    world.watch._told = None
    assert world.step() == [DevicesReturned(devices=(FIRST,), at_ms=world.now_ms)]
    assert list(world.capacity.withdrawn) == [b"other" * 6 + b"xx"]


def test_two_reasons_are_both_said_and_the_graver_decides_the_notice(machine: ScriptedGpus) -> None:
    world = World(machine, rules=rules(health=HealthRules(max_temperature_c=80)))
    machine.set({"gpu0.temperature": 95})
    assert withdrawn(world.step()) == [((FIRST,), 60_000, "it is hotter than 80 °C")]
    machine.set({"gpu0.ecc_double": 1})
    ((devices, notice_ms, why),) = withdrawn(world.step())
    assert (devices, notice_ms) == ((FIRST,), 0)
    assert "not be corrected" in why
    assert "hotter" in why
    world.watch.close()


def test_the_power_limit_holds_while_the_daemon_runs(machine: ScriptedGpus) -> None:
    world = World(machine, rules=rules(power_limit_w=300))
    world.step()
    assert {sample.power_limit_mw for sample in world.watch.samples().values()} == {300_000}
    world.watch.close()
    assert [line for line in machine.was_told() if line.startswith("power")] == [
        "power 0 300000",
        "power 1 300000",
        "power 0 700000",
        "power 1 700000",
    ]


def test_a_power_limit_that_is_refused_is_told_the_owner(machine: ScriptedGpus) -> None:
    machine.set(may_set=0)
    world = World(machine, rules=rules(power_limit_w=300))
    world.step()
    assert "cannot be held to 300 W: Insufficient Permissions" in world.watch.inventory.note
    world.watch.close()


def test_what_a_leases_gpus_computed_is_told_every_few_seconds_and_goes_on_from_before(world: World) -> None:
    first = next(device for device in world.capacity.devices if device.id == FIRST)
    lease = Leased(lease=b"l" * 32, devices=(first,), pid=None, busy_ms=7_000)
    world.machine.set({"gpu0.busy": 75})
    told = []
    for _ in range(12):
        world.now_ms += 1000
        sight = world.watch.look((FIRST,))
        world.watch.judge(sight, world.capacity)
        told += world.watch.measure(sight, [lease])
    assert [(event.lease, event.busy_ms) for event in told] == [
        (b"l" * 32, 7_000 + 750 * 5),
        (b"l" * 32, 7_000 + 7_500),
    ]
    world.now_ms += 60_000  # nobody looked
    world.watch.measure(world.watch.look((FIRST,)), [lease])
    world.now_ms += 5_000
    (late,) = world.watch.measure(world.watch.look((FIRST,)), [lease])
    assert late.busy_ms <= 7_000 + 7_500 + 750 + 1_500 + 1_500


def test_a_node_that_lends_no_gpu_asks_no_driver(machine: ScriptedGpus) -> None:
    world = World(machine, replace(CONFIG.provider, gpus=(), cpu_slots=1))
    assert world.watch._driver._process is None
    assert len(world.lent) == 1
    world.watch.close()


def test_the_process_that_asks_the_driver_is_no_child_left_behind(world: World) -> None:
    process = world.watch._driver._process
    assert process is not None
    world.watch.close()
    assert not Path(f"/proc/{process.pid}").exists()


@pytest.mark.trio
async def test_a_daemon_that_is_told_to_stop_does_not_wait_for_a_driver_that_hangs(
    machine: ScriptedGpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hansa.node.daemon.device_watch.LOOK_EVERY_S", 0.05)
    async with a_daemon(tmp_path, MemoryHub(), 1, lends=True) as daemon:
        daemon.watch.close()
        driver = DriverProcess(proc=machine.proc, environment=machine.environment)
        daemon.watch = DeviceWatch(
            account=daemon.account.address,
            provider=CONFIG.provider,
            rules=CONFIG.rules,
            now_ms=daemon.now_ms,
            driver=driver,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_devices, daemon)
            await trio.sleep(0.3)
            machine.set(hang=1)
            await trio.sleep(1.0)
            began_s = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began_s < 5
        hangs = driver._process
        daemon.watch.close()
        assert hangs is not None
        assert hangs.returncode is not None
