"""The watch on this machine's devices: what they are, how they do, who uses them, whether their owner lends them now.

Every second it looks, in a worker thread: at the drivers, at who is logged in, at the battery. What may not be lent any
more is told to the engine as withdrawn, with the reason in words; what may be lent again, as returned; and how much the
devices of each lease computed. What the owner and a scraper are shown of devices comes from here, too.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from hansa.market.effects import clipped
from hansa.market.shares import WHOLE_MILLI, share_given
from hansa.node.devices.device_use import Leased, UseMeter, read_cpu_ms
from hansa.node.devices.driver_process import WAKING_S, DriverProcess, DriverSilent
from hansa.node.devices.gpu_parts import Tenant, over_their_parts
from hansa.node.devices.gpu_users import Foreigners, Told, own_processes, strangers, told_cpu_ms
from hansa.node.devices.gpus import Gpu, GpuReport, GpuSample
from hansa.node.devices.inventory import Inventory, Machine, read_machine, take_inventory
from hansa.node.devices.owner_presence import OwnerPresence, on_battery
from hansa.node.engine.events import DevicesReturned, DevicesUsed, DevicesWithdrawn, InventoryChanged, NodeEvent
from hansa.node.engine.logs import LOGGER
from hansa.node.isolation.process_tree import descendants
from hansa.node.settings.provider_config import ProviderConfig
from hansa.node.settings.rules_config import RulesConfig
from hansa.proto.market_documents import KIND_GPU
from hansa.proto.units import Address
from hansa.scheduler.capacity import Capacity
from hansa.scheduler.device_health import Health, Reason, Vitals, judge
from hansa.scheduler.owner_rules import OwnerFacts, objections
from hansa.scheduler.run import RUNNING

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

LOOK_EVERY_S = 1.0
LOOK_AT_OWNER_S = 5.0
TELL_USE_EVERY_S = 5.0
NO_DRIVER_S = 300.0
"""Where there was no driver at all, one may have been installed."""
DRIVER_PATIENCE_S = 10.0
"""For a driver that has answered; twice as long after each silence: eight cards that sleep take longer to wake."""
SILENCES = 2
"""A driver that says nothing so often in a row has lost its GPUs; once may be a card that was just being reset."""
LONGEST_WHY_BYTES = 500
NOTHING = GpuReport(gpus=(), driver_version="", notes=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What one look saw.

    Attributes:
        at_s: when, on a clock that is never set.
        report: what the drivers said; ``None`` if they said nothing.
        silence: why they did not, in words.
        users: who uses a GPU that is none of ours, by its uuid.
        cpu_ms: processor time of each run until now, by its outermost process.
        facts: how things are for the owner's rules.
    """

    at_s: float
    report: GpuReport | None
    silence: str = ""
    users: Mapping[str, str] = field(default_factory=dict)
    cpu_ms: Mapping[int, int] = field(default_factory=dict)
    facts: OwnerFacts


class DeviceWatch:
    """Looks (in a worker thread, one look at a time) and judges (in the daemon's own)."""

    def __init__(
        self,
        *,
        account: Address,
        provider: ProviderConfig,
        rules: RulesConfig,
        now_ms: Callable[[], int],
        driver: DriverProcess | None = None,
        presence: OwnerPresence | None = None,
        battery: Callable[[], bool] = on_battery,
        machine: Machine | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look once, and take the inventory. The last four stand in for this machine's own.

        Raises:
            ConfigError: the settings name a GPU that is not there, or more CPU capacity than there is.
        """
        self._account = account
        self._provider = provider
        self._rules = rules
        self._now_ms = now_ms
        self._battery = battery
        self._clock = clock
        self._driver = driver or DriverProcess()
        self._presence = presence or OwnerPresence(now_ms=now_ms)
        self._wants_gpus = provider.enabled and provider.gpus != ()
        self._driver_back_s = 0.0
        self._owner_seen_s = -LOOK_AT_OWNER_S
        self._owner: tuple[int | None, bool] = (None, False)
        self._health: dict[str, Health] = {}
        self._silences = 0
        self._has_answered = False
        self._told: dict[bytes, tuple[str, bool]] | None = None
        self._limits_mw: Mapping[str, int] = {}
        self._meter = UseMeter()
        self._foreigners = Foreigners()
        self._measured_s: float | None = None
        self._told_use_s: float | None = None
        self.machine = read_machine() if machine is None else machine
        self.report = NOTHING
        self.reasons: Mapping[bytes, tuple[str, ...]] = {}
        self.xids: dict[str, int] = {}
        self.inventory = Inventory(devices=(), gpus={}, note="", driver_version="")
        self._first: Sight | None = self._look(frozenset(), {}, {}) if provider.enabled else None
        first = self._first.report if self._first is not None else None
        silence = self._first.silence if self._first is not None else ""
        self._take_inventory(first or replace(NOTHING, notes=(silence,) if silence else ()))
        self._provider = _with_pinned_gpus(provider, self.report)

    # Looking: blocks, and changes nothing that anybody else reads.

    def look(
        self,
        leased: Collection[bytes] = (),
        runs: Mapping[bytes, int] | None = None,
        told: Mapping[bytes, Told] | None = None,
    ) -> Sight:
        """Look at everything once.

        Args:
            leased: ids of devices that a run of ours has.
            runs: the outermost process of each run of ours.
            told: what the launcher told of each.
        """
        first, self._first = self._first, None
        return first or self._look(leased, runs or {}, told or {})

    def _look(self, leased: Collection[bytes], runs: Mapping[bytes, int], told: Mapping[bytes, Told]) -> Sight:
        report, silence = self._ask_driver()
        users: dict[str, str] = {}
        if report is not None and report.samples:
            ours = own_processes(frozenset(runs.values()))
            uuids = {self.inventory.gpus[device].uuid for device in leased if device in self.inventory.gpus}
            on_leased = [sample.processes for sample in report.samples if sample.uuid in uuids]
            foreign = self._foreigners.look(on_leased, [told.get(run) for run in runs], time.monotonic())
            users = {
                sample.uuid: strangers(sample.processes, ours, leased=sample.uuid in uuids, foreign=foreign)
                for sample in report.samples
            }
        idle_ms, battery = self._look_at_owner()
        at_ms = self._now_ms()
        return Sight(
            at_s=self._clock(),
            report=report,
            silence=silence,
            users=users,
            cpu_ms=self._cpu_ms(runs, told) if runs else {},
            facts=OwnerFacts(
                at_ms=at_ms,
                utc_offset_s=self._rules.utc_offset_s(at_ms),
                idle_ms=idle_ms,
                on_battery=battery,
            ),
        )

    @staticmethod
    def _cpu_ms(runs: Mapping[bytes, int], told: Mapping[bytes, Told]) -> dict[int, int]:
        """What this daemon may not see for itself the launcher tells."""
        return {**told_cpu_ms({pid: told.get(run) for run, pid in runs.items()}), **read_cpu_ms(runs.values())}

    def _ask_driver(self) -> tuple[GpuReport | None, str]:
        if not self._wants_gpus:
            return NOTHING, ""
        if self._clock() < self._driver_back_s:
            return self.report, ""
        try:
            report = self._driver.ask(self._limits_mw, timeout_s=self._patience_s())
        except DriverSilent as silence:
            return None, str(silence)
        self._has_answered = True
        if report.absent:
            self._driver.close()
            self._driver_back_s = self._clock() + NO_DRIVER_S
        return report, ""

    def _patience_s(self) -> float:
        """Given up too early, a driver is killed while it wakes its cards, and the next one begins anew."""
        return min(WAKING_S, DRIVER_PATIENCE_S * 2**self._silences) if self._has_answered else WAKING_S

    def _look_at_owner(self) -> tuple[int | None, bool]:
        if self._clock() - self._owner_seen_s >= LOOK_AT_OWNER_S:
            idle_ms = self._presence.idle_ms() if self._rules.owner.not_while_used else None
            self._owner = (idle_ms, self._battery())
            self._owner_seen_s = self._clock()
        return self._owner

    # Judging: quick, and the daemon's own.

    def judge(self, sight: Sight, capacity: Capacity) -> list[NodeEvent]:
        """What the engine has to be told after a look, given what it holds of devices."""
        at_ms = sight.facts.at_ms
        events: list[NodeEvent] = []
        if self._learn(sight):
            events.append(InventoryChanged(devices=self.inventory.devices, at_ms=at_ms))
        wanted = self._reasons(sight)
        self.reasons = {device: tuple(one.words for one in reasons) for device, reasons in wanted.items() if reasons}
        if self._told is None:
            # What a daemon before us withdrew is withdrawn still, whether or not there is still a reason.
            self._told = {device: ("", False) for device in capacity.withdrawn if device in wanted}
        withheld = {device: _told_as(reasons) for device, reasons in wanted.items() if reasons}
        for why, at_once in sorted(set(withheld.values())):
            told = [device for device, said in withheld.items() if said == (why, at_once) != self._told.get(device)]
            if told:
                notice_ms = 0 if at_once else self._provider.reclaim_notice_ms
                withdrawn = DevicesWithdrawn(devices=tuple(told), notice_ms=notice_ms, why=why, at_ms=at_ms)
                events.append(withdrawn)
        returned = tuple(device for device in self._told if device not in withheld)
        if returned:
            events.append(DevicesReturned(devices=returned, at_ms=at_ms))
        self._told = withheld
        return events

    def _learn(self, sight: Sight) -> bool:
        """Take in what the drivers said; answers whether there is something else to lend now."""
        self._silences = 0 if sight.report is not None else self._silences + 1
        if sight.report is None:
            return False
        before, known = self.inventory, {gpu.uuid for gpu in sight.report.gpus}
        # Who is gone is still known: a lease may stand on it, and it may come back.
        gone = tuple(gpu for gpu in before.gpus.values() if gpu.uuid not in known)
        self._take_inventory(replace(sight.report, gpus=(*sight.report.gpus, *gone)))
        self.report = sight.report
        self.xids |= {sample.uuid: sample.xids[-1] for sample in sight.report.samples if sample.xids}
        return self.inventory.devices != before.devices

    def _take_inventory(self, report: GpuReport) -> None:
        self.report = report
        self.inventory = take_inventory(self._account, self._provider, report=report, machine=self.machine)
        limit_w = self._rules.power_limit_w
        cards = {gpu.card for gpu in self.inventory.gpus.values() if gpu.card} if limit_w else set()
        self._limits_mw = dict.fromkeys(sorted(cards), (limit_w or 0) * 1000)

    def _reasons(self, sight: Sight) -> dict[bytes, tuple[Reason, ...]]:
        """Why each device is not lent; nothing for one that is."""
        notice_ms = self._provider.reclaim_notice_ms
        rules = tuple(
            Reason(words=words, at_once=False) for words in objections(self._rules.owner, sight.facts, notice_ms)
        )
        found = {}
        for device in self.inventory.devices:
            gpu = self.inventory.gpus.get(device.id)
            found[device.id] = (*rules, *(self._ail(gpu, sight) if gpu is not None else ()))
        return found

    def _ail(self, gpu: Gpu, sight: Sight) -> tuple[Reason, ...]:
        health = self._health.get(gpu.uuid, Health())
        if sight.report is not None or self._silences >= SILENCES:
            health = judge(health, _vitals(gpu, sight), self._rules.health, sight.facts.at_ms)
            self._health[gpu.uuid] = health
        return health.reasons

    def measure(self, sight: Sight, leases: Sequence[Leased]) -> list[NodeEvent]:
        """What the engine has to be told of how much the devices of these leases computed."""
        step_ms = round((sight.at_s - self._measured_s) * 1000) if self._measured_s is not None else 0
        self._measured_s = sight.at_s
        self._meter.add(leases, self.samples() if sight.report is not None else {}, sight.cpu_ms, step_ms)
        if self._told_use_s is not None and sight.at_s - self._told_use_s < TELL_USE_EVERY_S:
            return []
        self._told_use_s = sight.at_s
        at_ms = sight.facts.at_ms
        return [DevicesUsed(lease=lease, busy_ms=busy_ms, at_ms=at_ms) for lease, busy_ms in self._meter.news()]

    def samples(self) -> dict[bytes, GpuSample]:
        """How each GPU that is lent did at the last look, by its device's id."""
        by_uuid = {sample.uuid: sample for sample in self.report.samples}
        return {device: by_uuid[gpu.uuid] for device, gpu in self.inventory.gpus.items() if gpu.uuid in by_uuid}

    def close(self) -> None:
        """Give the cards their own power limits back, and end the drivers' process."""
        self._driver.close()
        self._presence.close()


def _with_pinned_gpus(provider: ProviderConfig, report: GpuReport) -> ProviderConfig:
    """The same GPUs by names that stay theirs: an index is another GPU's once one before it is gone."""
    if provider.gpus is None:
        return provider
    pinned = []
    for wanted in provider.gpus:
        named = any(wanted in (gpu.uuid, gpu.card) for gpu in report.gpus)
        pinned += [wanted] if named else [gpu.card or gpu.uuid for gpu in report.gpus if gpu.place == wanted]
    return replace(provider, gpus=tuple(dict.fromkeys(pinned)))


def _vitals(gpu: Gpu, sight: Sight) -> Vitals:
    if sight.report is None:
        return Vitals(missing=sight.silence)
    sample = next((one for one in sight.report.samples if one.uuid == gpu.uuid), None)
    if sample is None:
        missing = "its driver does not list it any more" if sight.report.gpus else "; ".join(sight.report.notes)
        return Vitals(missing=missing or "no driver knows it any more")
    return Vitals(
        missing=f"its driver cannot reach it: {sample.fault}" if sample.fault else "",
        xids=sample.xids,
        double_bit_errors=sample.double_bit_errors or 0,
        remap_failed=sample.remap_failed,
        reset_pending=sample.remap_pending or sample.retired_pending,
        recovery=sample.recovery,
        temperature_c=sample.temperature_c,
        used_by=sight.users.get(gpu.uuid, ""),
    )


def _told_as(reasons: Iterable[Reason]) -> tuple[str, bool]:
    reasons = tuple(reasons)
    return clipped("; ".join(one.words for one in reasons), LONGEST_WHY_BYTES), any(one.at_once for one in reasons)


async def watch_devices(daemon: "Daemon") -> None:
    """Look every second; tell the engine what it must know, and the owner's log what was withdrawn and returned."""
    watch = daemon.watch
    while True:
        await trio.sleep(LOOK_EVERY_S)
        leases = _leases(daemon)
        runs = {entry.lease: entry.pid for entry in leases if entry.pid is not None}
        leased = {device.id for entry in leases for device in entry.devices}
        told = daemon.executor.told
        # A daemon that is told to stop waits for no driver that hangs: ``close`` ends its process, and so the look.
        sight = await trio.to_thread.run_sync(
            partial(watch.look, leased, runs, told),
            abandon_on_cancel=True,  # type: ignore[call-arg]  # the stubs are older than trio
        )
        computing = [entry for entry in leases if _computes(daemon, entry.lease)]
        for event in (*watch.judge(sight, daemon.state.capacity), *watch.measure(sight, computing)):
            daemon.tell(event)
            _log(event)
        await _end_those_over_their_parts(daemon, sight, leases)


def _computes(daemon: "Daemon", lease: bytes) -> bool:
    """Whether a run's time is being metered: what its devices do before that is not its doing."""
    current = daemon.state.runs.live.get(lease)
    return current is not None and current.phase == RUNNING


def _log(event: NodeEvent) -> None:
    match event:
        case DevicesWithdrawn(devices=devices, why=why):
            LOGGER.warning("withdrawn: %s", why, extra={"facts": {"devices": [device.hex() for device in devices]}})
        case DevicesReturned(devices=devices):
            LOGGER.info("lent again: devices", extra={"facts": {"devices": [device.hex() for device in devices]}})


def _leases(daemon: "Daemon") -> list[Leased]:
    """Runs that compute on devices of this very machine."""
    own = {device.id: device for device in daemon.watch.inventory.devices}
    pids = daemon.executor.pids
    found = []
    for lease in daemon.state.runs.live:
        entry = daemon.state.sale_on(lease)
        if entry is not None and all(device in own for device in entry.bid.devices):
            devices = tuple(own[device] for device in entry.bid.devices)
            share = share_given(entry.bid)
            pid, busy_ms = pids.get(lease), entry.busy_ms
            found.append(Leased(lease=lease, devices=devices, pid=pid, busy_ms=busy_ms, share_milli=share))
    return found


async def _end_those_over_their_parts(daemon: "Daemon", sight: Sight, leases: Sequence[Leased]) -> None:
    """A run that has more of a GPU's memory than its part is over: its neighbours were promised theirs."""
    sharing = [entry for entry in leases if entry.share_milli < WHOLE_MILLI and entry.devices[0].kind == KIND_GPU]
    if not sharing or sight.report is None:
        return
    tenants = [
        Tenant(
            lease=entry.lease,
            device=entry.devices[0].id,
            memory_bytes=entry.devices[0].memory_bytes,
            share_milli=entry.share_milli,
            pids=_processes_of(daemon, entry),
        )
        for entry in sharing
    ]
    seen = {device: sample.processes for device, sample in daemon.watch.samples().items()}
    for lease, why in over_their_parts(tenants, seen).items():
        await daemon.executor.fail(lease, "out-of-memory", why)


def _processes_of(daemon: "Daemon", entry: Leased) -> frozenset[int]:
    """A run's processes: those seen below its sandbox's outermost one, and those that the launcher tells of."""
    told = daemon.executor.told.get(entry.lease)
    seen = [] if entry.pid is None else [entry.pid, *descendants(entry.pid)]
    return frozenset((*seen, *(told.pids if told is not None else ())))
