"""What a daemon does now and then, beside its engine: advertise, greet, show life, keep blobs, count for Prometheus."""

import contextlib
import errno
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import trio

from hansa.market.acceptance import provider_facts
from hansa.market.clauses import written
from hansa.market.shares import SPARE, least_milli
from hansa.market.value_forms import number_text
from hansa.node.api.device_views import seen_devices
from hansa.node.api.metrics import Metrics, Readings
from hansa.node.api.money_reminders import MoneyReminders, jobs_that_wait
from hansa.node.daemon import mirror_tasks
from hansa.node.daemon.keeping import checkpoint_blobs, wanted_blobs
from hansa.node.daemon.performing import perform
from hansa.node.devices.machine_facts import hoisted
from hansa.node.engine import buying, selling, selling_runs
from hansa.node.engine.events import NettingDue
from hansa.node.engine.logs import log_line, warn
from hansa.node.engine.mutual_credit import could_net
from hansa.node.engine.steady_clock import CLOCK_ADVICE, JUMP_MS, KEEP_TIME
from hansa.node.engine.unsettled import settlements_wanted
from hansa.node.isolation.attestation import attest
from hansa.node.messaging.book import in_one_advert
from hansa.node.messaging.directory import Stranger
from hansa.proto.market_documents import Advert, Device
from hansa.proto.network import DOMAIN
from hansa.proto.signing import sign
from hansa.proto.typed_data import digest
from hansa.scheduler.advert_classes import capability_names, class_of_device
from hansa.scheduler.advert_pace import every_ms, life_ms, pause_ms, was_hardly_heard

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

LOOK_AROUND_S = 1.0
MOST_ADDRESSES = 16
LIFE_SIGN_EVERY_S = 2.0
RENEW_EVERY_S = 1.0
WATCH_CLOCK_EVERY_S = 1.0
DOUBT_EVERY_S = 3_600.0
REMIND_EVERY_S = 30.0
REMIND_OF_MONEY_EVERY_S = 5.0
KEEP_EVERY_S = 20.0
METRICS_EVERY_S = 1.0
BLOBS_OF_THE_STATE = "state"
CHECKPOINTS = "checkpoints"
REST_S = 60.0
"""A checkpoint that was replaced is kept for so long after somebody last read it: a slow line may still copy it."""


async def advertise(daemon: "Daemon") -> None:
    """Say what is lent, now and then, and at once when it changes."""
    while True:
        free, neighbours = _free_and_spare(daemon), _neighbours(daemon)
        await _publish_advert(daemon, free)
        peers = _of_the_same_class(daemon)
        await trio.sleep(pause_ms(peers) / 1000)
        with trio.move_on_after(every_ms(peers) / 1000):
            while _free_and_spare(daemon) == free and not was_hardly_heard(neighbours, _neighbours(daemon)):
                with trio.move_on_after(LOOK_AROUND_S):
                    await daemon.changed.wait()


def _neighbours(daemon: "Daemon") -> int:
    return sum(phase == "live" for phase in daemon.net.phases().values())


def _of_the_same_class(daemon: "Daemon") -> int:
    """How many providers this one shares its topic with: the more of them, the seldomer each of them speaks."""
    return daemon.book.adverts.count({class_of_device(device) for device in daemon.state.capacity.lent})


def _free_and_spare(daemon: "Daemon") -> tuple[tuple[Device, ...], int | None]:
    """What is wholly free, and how much there is to be had in parts; ``None`` where devices are lent whole."""
    capacity, terms = daemon.state.capacity, daemon.state.terms
    lends_parts = any(least_milli(device.facts) is not None for device in capacity.lent)
    return capacity.free, sum(capacity.spare(terms.tenants).values()) if terms is not None and lends_parts else None


async def _publish_advert(daemon: "Daemon", free_now: tuple[tuple[Device, ...], int | None]) -> None:
    config, devices = daemon.config, daemon.state.capacity.lent
    if not daemon.lends or not daemon.state.capacity.devices:
        return
    terms = daemon.state.terms
    shared, lent = hoisted(devices)
    told = {fact.name: fact.value for fact in shared} | (provider_facts(terms) if terms is not None else {})
    free, spare = free_now
    carried = in_one_advert(lent)
    told |= {SPARE: number_text(spare)} if spare is not None else {}
    advert = Advert(
        # What has a field of its own in an advert stands there.
        facts=written({name: value for name, value in told.items() if name not in ("features", "region", "tier")}),
        signer=daemon.account.address,
        peer_id=daemon.net.peer_id,
        addresses=tuple(daemon.net.addrs()[:MOST_ADDRESSES]),
        devices=carried,
        free=min(len(free), len(carried)),
        tier=config.provider.tier,
        features=terms.features if terms is not None else (),
        region=config.region,
        currency=config.currency,
        price_e18_per_device_ms=_posted_price(daemon, devices),
        sequence=daemon.now_ms(),
        expires_ms=daemon.now_ms() + life_ms(_of_the_same_class(daemon)),
    )
    daemon.net.advertise(capability_names(advert))
    await daemon.book.publish(sign(DOMAIN, advert, daemon.account))


def _posted_price(daemon: "Daemon", devices: Sequence[Device]) -> int:
    """What the cheapest of the devices costs now by the owner's rule: no buyer who could have one is to pass it by."""
    terms, capacity = daemon.state.terms, daemon.state.capacity
    if terms is None or not devices:
        return daemon.config.provider.price_e18_per_device_ms
    return min(
        terms.price([device], lease=lease, share_ppm=capacity.leased_ppm, at_ms=daemon.now_ms()).price_e18
        for device in devices
        for lease in terms.leases
    )


async def greet_arrivals(daemon: "Daemon") -> None:
    """Who connects is asked who it is and what its book holds; what waits for it is brought at once."""
    arrivals = daemon.net.arrivals()
    async with trio.open_nursery() as nursery:
        for peer_id, phase in daemon.net.phases().items():
            if phase == "live":
                nursery.start_soon(_greet, daemon, peer_id)
        async for peer_id in arrivals:
            nursery.start_soon(_greet, daemon, peer_id)


async def _greet(daemon: "Daemon", peer_id: str) -> None:
    with contextlib.suppress(Stranger):
        daemon.outbox.kick(await daemon.directory.welcome(peer_id))
        await daemon.discovery.sync.greet(peer_id)


async def renew_binding(daemon: "Daemon") -> None:
    """Sign anew who this node is before the last time runs out, and tell those who know it."""
    while True:
        await trio.sleep(RENEW_EVERY_S)
        if daemon.own_binding.renew_if_due():
            hello = daemon.own_binding.hello
            log_line("the binding of this node is signed anew")
            await daemon.directory.introduce(hello, [peer for peer, at in daemon.net.phases().items() if at == "live"])
            daemon.attestation = await trio.to_thread.run_sync(attest, digest(DOMAIN, hello.binding))


async def watch_clock(daemon: "Daemon") -> None:
    """Say when the clock was set, follow it back as soon as nothing runs, and say when peers have another time."""
    clock, doubt_again_s = daemon.clock, -math.inf
    # What is newest in the journal is of an earlier life: it can only lie in the future if the clock was set back.
    if daemon.last_life_ms > daemon.started_ms + JUMP_MS:
        late_s = (daemon.last_life_ms - daemon.started_ms) // 1000
        warn(f"the newest record of this node lies {late_s} s in the future: is the clock right? {KEEP_TIME}")
    while True:
        jumped_s = round(clock.jumped_ms() / 1000)
        if jumped_s:
            way = "forward (or the machine slept)" if jumped_s > 0 else "back"
            warn(f"the clock of this machine was set {way} by {abs(jumped_s)} s. {KEEP_TIME}")
        if clock.ahead_ms() > JUMP_MS and not (daemon.state.sales.live or daemon.state.purchases.live):
            clock.go_back()
            log_line("nothing runs, so the node takes the clock's time, which was set back")
        # Strangers can have another time and ours by turns, and are to fill no log.
        if daemon.directory.clocks_differ and trio.current_time() >= doubt_again_s:
            doubt_again_s = trio.current_time() + DOUBT_EVERY_S
            warn(f"{CLOCK_ADVICE} {KEEP_TIME}")
        await trio.sleep(WATCH_CLOCK_EVERY_S)


async def show_life(daemon: "Daemon") -> None:
    """Tell the buyers of our runs, every few seconds, that they live."""
    while True:
        await trio.sleep(LIFE_SIGN_EVERY_S)
        for send in selling_runs.life_signs(daemon.state, daemon.now_ms()):
            perform(daemon, send)


async def remind(daemon: "Daemon") -> None:
    """Say again, now and then, what somebody should long have answered: a message can be given up on the way."""
    while True:
        await trio.sleep(REMIND_EVERY_S)
        at_ms = daemon.now_ms()
        for effect in (*buying.reminders(daemon.state, at_ms), *selling.reminders(daemon.state, at_ms)):
            perform(daemon, effect)
        for settlement in settlements_wanted(daemon.state, at_ms):
            perform(daemon, settlement)
        if any(could_net(daemon.state)):
            daemon.tell(NettingDue(at_ms=at_ms))


async def remind_of_money(daemon: "Daemon") -> None:
    """Say in the log which jobs wait for money, so that nobody forgets them."""
    reminders = MoneyReminders()
    while True:
        for line in reminders.due(daemon.state, daemon.now_ms()):
            log_line(line)
        await trio.sleep(REMIND_OF_MONEY_EVERY_S)


async def keep_blobs(daemon: "Daemon") -> None:
    """Pin what the state needs, unpin what it no longer needs."""
    while True:
        with _tried_again("keeping blobs"):
            wanted = wanted_blobs(daemon.state, daemon.file_lists)
            daemon.file_lists.keep_only(job.files for job in daemon.state.jobs.live.values() if job.files is not None)
            await trio.to_thread.run_sync(daemon.job_keys.keep_only, [job for job, _ in daemon.state.jobs.all()])
            newest = checkpoint_blobs(daemon.state)
            await trio.to_thread.run_sync(daemon.store.pin_exactly, wanted, BLOBS_OF_THE_STATE)
            await trio.to_thread.run_sync(daemon.store.retain, newest, CHECKPOINTS, REST_S)
        await trio.sleep(KEEP_EVERY_S)


@contextlib.contextmanager
def _tried_again(chore: str) -> Iterator[None]:
    """A file that cannot be opened now, as where descriptors have run out, ends no daemon. A full disk does."""
    try:
        yield
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        log_line(f"{chore} failed and is tried again: {fault}")


async def keep_checkpoints(daemon: "Daemon") -> None:
    """Fetch back what this node's jobs need and its store has lost, from whoever holds it for us."""
    under_way: set[bytes] = set()

    async def bring(job: bytes) -> None:
        with _tried_again("fetching checkpoints back"):
            await mirror_tasks.bring_back_for(daemon, job)
        under_way.discard(job)

    async with trio.open_nursery() as nursery:
        while True:
            # A job whose sources are slow holds up no other one's.
            for job in daemon.state.jobs.live.keys() - under_way:
                under_way.add(job)
                nursery.start_soon(bring, job)
            await trio.sleep(KEEP_EVERY_S)


async def keep_metrics(daemon: "Daemon", metrics: Metrics) -> None:
    """Hand Prometheus fresh readings."""
    while True:
        metrics.update(_readings(daemon))
        await trio.sleep(METRICS_EVERY_S)


def _readings(daemon: "Daemon") -> Readings:
    state = daemon.state
    sales, program = list(state.sales.live.values()), daemon.price_program
    return Readings(
        devices=Counter(state.capacity.phase_of(device.id) for device in state.capacity.devices),
        leases={
            "provider": sum(sale.phase in ("leased", "funding", "running") for sale in sales),
            "buyer": sum(len(bought.live) for bought in state.purchases.live.values()),
        },
        # Not from the shelves: what ended is remembered for a while only, and a counter must not fall.
        bids_total=dict(daemon.figures.bids),
        bids_standing=sum(sale.phase == "bid" for sale in sales),
        adverts=len(daemon.book.adverts),
        price_program_total=dict(program.outcomes) if program is not None else {},
        runs_total=dict(daemon.figures.runs),
        jobs=Counter(job.phase for _, job in state.jobs.all()),
        jobs_that_wait=len(jobs_that_wait(state)),
        vouched_in_total=-state.ledger.total("earned:"),
        vouched_out_total=state.ledger.total("spend:"),
        currency=daemon.config.currency if daemon.settler is None else daemon.settler.symbol,
        engine_events_total=daemon.engine.events,
        egress_bytes_total=daemon.egress.passed_bytes,
        engine_lag_ms=daemon.lag_ms,
        peers=Counter(daemon.net.phases().values()),
        drops_total=daemon.counters(),
        seen=seen_devices(daemon),
    )
