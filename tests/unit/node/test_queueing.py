"""Jobs that wait for a provider: told of who appears, asked nobody in vain, and found again after a crash."""
# ruff: noqa: ASYNC110 - what is waited for is seen through the desk, which tells no event

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.memory_party import DEVICE, advert_of, party
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, JOB, NOW_MS, PRICE, PROVIDER, PROVIDER_KEY, needs, spec

from hansa.node.api.desk import NodeDesk
from hansa.node.daemon import buyer_tasks
from hansa.node.engine import queueing
from hansa.node.engine.events import JobCancelled, NobodyFits, RoomAppeared
from hansa.proto.messages import TenderSent
from hansa.scheduler import job_queue
from hansa.scheduler.job_events import TenderWanted
from hansa.scheduler.job_spec import JobSpec

HOUR_MS = 3_600_000


def market(**changes: Any) -> SmallMarket:
    """A buyer with a job that waits for an hour, and nobody else yet."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.submit(BUYER, of=spec(shards=1, queue_ms=HOUR_MS, **changes))
    made.tender(BUYER, ())
    return made


def job_in(made: SmallMarket) -> Any:
    return made.engines[BUYER].state.jobs.get(JOB)


def wanted(made: SmallMarket) -> list[TenderWanted]:
    return [effect for _, effect in made.effects if isinstance(effect, TenderWanted)]


def test_a_job_that_waits_says_so_and_asks_again_when_its_time_comes() -> None:
    made = market()
    assert job_in(made).phase == "gathering"
    view = queueing.queue_view(job_in(made))
    assert view is not None
    assert view == {
        "shards": [0],
        "tries": 1,
        "reason": "no provider is known that could be invited",
        "next_ms": NOW_MS + 3_000,
        "until_ms": NOW_MS + HOUR_MS,
    }
    made.pass_time(3_000, BUYER)
    assert len(wanted(made)) == 2
    again = queueing.queue_view(job_in(made))
    assert again is not None
    assert again["next_ms"] is None, "a tender is out"
    made.take(BUYER, NobodyFits(job=JOB, shards=(0,), reason="nobody fits", at_ms=made.now_ms))
    assert job_in(made).shards[0].unfilled == "nobody fits"
    assert job_in(made).shards[0].retry_ms == made.now_ms + 6_000


def test_a_restart_forgets_neither_the_pause_nor_a_tender_that_was_wanted() -> None:
    made = market()
    made.restart(BUYER)
    assert len(wanted(made)) == 1, "the pause goes on"
    assert job_in(made).shards[0].retry_ms == NOW_MS + 3_000
    made.pass_time(3_000, BUYER)
    made.restart(BUYER)
    assert len(wanted(made)) == 3, "what was wanted and not opened is wanted again"


def test_a_provider_that_joins_gets_the_job_that_waited() -> None:
    made = market()
    made.add(PROVIDER_KEY, devices=1)
    made.pass_time(3_000, BUYER)
    assert len(wanted(made)) == 2
    made.tender(BUYER, (PROVIDER,), nonce=b"2" * 32)
    assert made.heard(TenderSent)
    assert job_in(made).phase == "running"
    assert queueing.queue_view(job_in(made)) is None


def test_a_job_that_is_cancelled_or_over_hears_nothing_of_the_market() -> None:
    made = market()
    made.take(BUYER, JobCancelled(job=JOB, reason="enough", at_ms=made.now_ms))
    assert job_in(made).phase == "cancelled"
    made.take(BUYER, RoomAppeared(job=JOB, at_ms=made.now_ms))
    made.take(BUYER, NobodyFits(job=JOB, shards=(0,), reason="nobody", at_ms=made.now_ms))
    assert job_in(made).phase == "cancelled"
    assert len(wanted(made)) == 1


@asynccontextmanager
async def waiting_job(
    tmp_path: Path, hub: MemoryHub, monkeypatch: pytest.MonkeyPatch, of: JobSpec, knows: Any = None
) -> AsyncIterator[tuple[Any, NodeDesk, bytes]]:
    """A buyer's daemon whose job has found nobody, and that will not ask again by itself for long."""
    monkeypatch.setattr(buyer_tasks, "NOBODY_PATIENCE_S", 0.2 if knows is None else 3.0)
    monkeypatch.setattr(queueing, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(job_queue, "RETRY_MS", 100_000)
    monkeypatch.setattr(job_queue, "LEAST_PAUSE_MS", 500)
    monkeypatch.setattr(job_queue, "EARLY_SHARE", 1_000)
    async with a_daemon(tmp_path, hub, 1) as daemon, trio.open_nursery() as nursery:
        desk = NodeDesk(daemon)
        nursery.start_soon(queueing.watch_book, daemon)
        if knows is not None:
            daemon.net.learn(knows.net.peer_id, knows.net.addrs())
            await daemon.net.connect(knows.net.peer_id)

        async def package() -> AsyncIterator[bytes]:
            await trio.lowlevel.checkpoint()
            yield b"package"

        job = await desk.submit(of, await desk.put_blob(package()))
        with trio.fail_after(20):
            while desk.job_view(job)["queue"] is None:
                await trio.sleep(0.05)
        yield daemon, desk, job
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_who_fits_and_joins_is_asked_soon_and_who_bids_in_vain_wakes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = MemoryHub()
    two = replace(spec(shards=2, queue_ms=HOUR_MS, requirements=needs(tier="none")), bid_window_ms=1_000)
    async with waiting_job(tmp_path, hub, monkeypatch, two) as (daemon, desk, job):
        assert desk.job_view(job)["queue"]["reason"] == "no provider is known that could be invited"
        async with a_daemon(tmp_path, hub, 2, lends=True) as lender:
            daemon.net.learn(lender.net.peer_id, lender.net.addrs())
            await daemon.net.connect(lender.net.peer_id)
            with trio.fail_after(20):
                while desk.job_view(job)["queue"]["tries"] < 2:
                    await trio.sleep(0.05)
            assert desk.job_view(job)["queue"]["reason"] == "those that fit have devices for 1 of the 2 shards"
            # That is no news any more: it would have to be held for nothing.
            await trio.sleep(2)
            view = desk.job_view(job)
            assert view["queue"]["tries"] == 2
            assert view["phase"] == "gathering"
            assert [tender["bids"] for tender in view["tenders"]] == [[]], "no device was held for nothing"
        assert await desk.cancel(job) == {"job": job.hex(), "phase": "cancelled"}


@pytest.mark.trio
async def test_who_bid_in_vain_wakes_nobody_when_it_has_its_device_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = MemoryHub()
    two = replace(spec(shards=2, queue_ms=HOUR_MS, requirements=needs(tier="none")), bid_window_ms=1_000)
    async with (
        a_daemon(tmp_path, hub, 2, lends=True) as lender,
        waiting_job(tmp_path, hub, monkeypatch, two, knows=lender) as (_, desk, job),
    ):
        await trio.sleep(4)
        view = desk.job_view(job)
        assert view["queue"]["tries"] == 1
        assert view["queue"]["reason"] == "it takes 2 bids at once, and 1 could win"
        assert [len(tender["bids"]) for tender in view["tenders"]] == [1]


@pytest.mark.trio
async def test_once_it_was_told_what_is_lacking_a_job_sends_no_tender_to_whom_it_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = MemoryHub()
    gpu = replace(spec(shards=1, queue_ms=HOUR_MS, requirements=needs(kind="gpu", tier="none")), bid_window_ms=1_000)
    async with (
        a_daemon(tmp_path, hub, 2, lends=True) as lender,
        waiting_job(tmp_path, hub, monkeypatch, gpu) as (daemon, desk, job),
    ):
        daemon.net.learn(lender.net.peer_id, lender.net.addrs())
        await daemon.net.connect(lender.net.peer_id)
        with trio.fail_after(10):
            while not desk.providers():
                await trio.sleep(0.05)
        await trio.sleep(1)
        assert desk.job_view(job)["queue"]["tries"] == 1, "its advert does not fit, so nobody new is there"
        await buyer_tasks.prepare_tender(daemon, TenderWanted(job=job, shards=(0,), attempt=1, at_ms=daemon.now_ms()))
        with trio.fail_after(10):
            while desk.job_view(job)["queue"]["tries"] < 2:
                await trio.sleep(0.05)
        view = desk.job_view(job)
        assert view["queue"]["reason"] == buyer_tasks.NOBODY
        assert len(view["tenders"]) == 1


@pytest.mark.trio
async def test_no_device_is_held_for_a_tender_while_those_that_it_takes_are_not_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = MemoryHub()
    two = spec(shards=2, queue_ms=HOUR_MS)
    async with waiting_job(tmp_path, hub, monkeypatch, two) as (daemon, desk, job), party(hub, 7) as provider:
        devices = (DEVICE, replace(DEVICE, id=b"e" * 32))
        for number, (owned, free, words) in enumerate(
            (
                ((), 0, buyer_tasks.NOBODY),
                (devices[:1], 1, "those that fit have devices for 1 of the 2 shards"),
                (devices, 1, "those that fit have free devices for 1 of the 2 shards now"),
            )
        ):
            at_ms = daemon.now_ms()
            told = {"devices": owned, "free": free, "sequence": number + 1, "expires_ms": at_ms + 60_000}
            daemon.book.take(advert_of(provider, price_e18_per_device_ms=PRICE, **told))
            wanted_again = TenderWanted(job=job, shards=(0, 1), attempt=number, at_ms=at_ms)
            await buyer_tasks.prepare_tender(daemon, wanted_again)
            with trio.fail_after(10):
                while desk.job_view(job)["queue"]["reason"] != words:
                    await trio.sleep(0.05)
        assert len(desk.job_view(job)["tenders"]) == 1


@pytest.mark.trio
async def test_what_could_not_end_by_its_deadline_is_not_tendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall_ms = needs().wall_ms
    of = spec(shards=1, queue_ms=HOUR_MS, deadline_after_ms=wall_ms + 60_000)
    async with waiting_job(tmp_path, MemoryHub(), monkeypatch, of) as (daemon, desk, job):
        assert desk.job_view(job)["deadline_ms"] == desk.job_view(job)["submitted_ms"] + wall_ms + 60_000
        late_ms = daemon.now_ms() + 61_000
        monkeypatch.setattr(daemon, "now_ms", lambda: late_ms)
        await buyer_tasks.prepare_tender(daemon, TenderWanted(job=job, shards=(0,), attempt=1, at_ms=late_ms))
        with trio.fail_after(10):
            while desk.job_view(job)["phase"] == "gathering":
                await trio.sleep(0.05)
        view = desk.job_view(job)
        assert view["reason"] == f"unfilled: it could not end by its deadline any more: {buyer_tasks.TOO_LATE}"
        assert len(view["tenders"]) == 1
