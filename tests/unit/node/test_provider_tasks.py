"""A provider's orders to the world, and what may come between."""
# ruff: noqa: ASYNC110 - a task that ends tells no event

import errno
import io
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from kit.descriptors import none_left
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.trading import BUYER, LEASE, award, bid, spec, tender

from hansa.market.sale_state import Sale
from hansa.node.commands.first_setup import Wishes, config_text
from hansa.node.daemon import provider_tasks, staging
from hansa.node.daemon.daemon import Daemon
from hansa.node.daemon.laying_out import Unstageable
from hansa.node.engine.answering import PriceWanted
from hansa.node.engine.events import TenderPriced
from hansa.node.engine.selling import DeliverRound
from hansa.node.pricing import price_turns
from hansa.node.pricing.price_program import PriceProgram
from hansa.node.runs.executor import Executor
from hansa.node.settings.config import parse_config
from hansa.node.settings.pricing_config import PricingConfig
from hansa.node.storage.blob_shelf import NoRoom
from hansa.node.storage.packages import pack
from hansa.proto.blob import BlobRef, blob_ref
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest
from hansa.scheduler.run import STAGING, STOPPING, Run, StartRun

pytestmark = pytest.mark.trio
ORDER = StartRun(run=LEASE, checkpoint=None, round=0)


@pytest.fixture
def packed(tmp_path: Path) -> bytes:
    code = tmp_path / "code"
    code.mkdir()
    (code / "a.py").write_text("def main(ctx): ...\n")
    archive = io.BytesIO()
    pack(code, archive)
    return archive.getvalue()


def with_run(daemon: Daemon, package: BlobRef) -> None:
    """A lease whose run is being staged. The sale asks for no time of its own, so that only the run moves."""
    called = tender()
    made = bid(called).document
    key = digest(DOMAIN, made)
    daemon.state.sales[key] = Sale(
        phase="settled",
        tender=called,
        bid=made,
        bid_digest=key,
        grace_ms=1,
        award=award(made),
        lease=LEASE,
        workload=spec().workload(called.job, package, None),
    )
    daemon.state.sale_of[LEASE] = key
    daemon.state.runs[LEASE] = Run(run=LEASE, phase=STAGING)


async def test_a_run_that_was_told_to_stop_while_its_code_came_is_never_started(tmp_path: Path, packed: bytes) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 2, lends=True) as daemon, trio.open_nursery() as nursery:
        with_run(daemon, blob_ref(packed))
        nursery.start_soon(staging.start_run, daemon, ORDER)
        await trio.sleep(0.05)
        daemon.state.runs[LEASE] = replace(daemon.state.runs.live[LEASE], phase=STOPPING)
        daemon.exchange.remember_shown(BUYER, daemon.store.put_bytes(packed))
        with trio.fail_after(5):
            while nursery.child_tasks:
                await trio.sleep(0.05)
        assert not daemon.executor.running, "its devices may be somebody else's by now"
        assert not (daemon.runs_dir / LEASE.hex()).exists()


async def test_a_package_that_is_none_fails_the_run_and_not_the_daemon(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 2, lends=True) as daemon:
        junk = daemon.store.put_bytes(b"no archive")
        daemon.exchange.remember_shown(BUYER, junk)
        with_run(daemon, junk)
        await staging.start_run(daemon, ORDER)
        with trio.fail_after(5):
            while LEASE in daemon.state.runs.live:
                await daemon.changed.wait()
        ended = daemon.state.runs.get(LEASE)
        assert ended is not None
        assert ended.end_kind == "bad-entry"
        assert "cannot be unpacked" in ended.end_reason


async def test_no_room_for_a_round_waits_for_room_and_the_daemon_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_tasks, "RETRY_S", 0.01)
    tried = 0

    async def full(*_: object) -> None:
        nonlocal tried
        await trio.lowlevel.checkpoint()
        tried += 1
        raise Unstageable(str(NoRoom(2, 1)))

    async with a_daemon(tmp_path, MemoryHub(), 2, lends=True) as daemon, trio.open_nursery() as nursery:
        daemon.executor._runs[LEASE] = None  # type: ignore[assignment]  # only its name is looked at
        monkeypatch.setattr(provider_tasks, "bring", full)
        order = DeliverRound(lease=LEASE, buyer=BUYER, round=1, state=blob_ref(b"state"))
        nursery.start_soon(provider_tasks.deliver_round, daemon, order)
        await trio.sleep(0.1)
        assert tried > 1
        daemon.executor._runs.clear()
        with trio.fail_after(2):
            while nursery.child_tasks:
                await trio.sleep(0.02)


def a_round(number: int, state: BlobRef) -> DeliverRound:
    return DeliverRound(lease=LEASE, buyer=BUYER, round=number, state=state)


async def at_once(*_: object) -> None:
    await trio.lowlevel.checkpoint()


async def test_of_the_rounds_that_are_told_to_a_run_only_the_newest_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[BlobRef] = []
    handed: list[tuple[int, BlobRef]] = []
    here = trio.Event()

    async def slow(_daemon: Daemon, blob: BlobRef, *_: object) -> None:
        begun.append(blob)
        await here.wait()

    async def deliver(_executor: Executor, _run: bytes, number: int, state: BlobRef) -> None:
        await trio.lowlevel.checkpoint()
        handed.append((number, state))

    monkeypatch.setattr(provider_tasks, "bring", slow)
    monkeypatch.setattr(Executor, "deliver_round", deliver)
    states = [blob_ref(b"%d" % number) for number in range(52)]
    async with a_daemon(tmp_path, MemoryHub(), 2, lends=True) as daemon, trio.open_nursery() as nursery:
        daemon.executor._runs[LEASE] = None  # type: ignore[assignment]  # only its name is looked at
        for number in range(1, 51):
            nursery.start_soon(provider_tasks.deliver_round, daemon, a_round(number, states[number]))
            await trio.sleep(0.001)
        for number in (50, 50, 49, 0):  # the same again, and others that are no news
            nursery.start_soon(provider_tasks.deliver_round, daemon, a_round(number, states[51]))
        with trio.fail_after(10):
            while len(nursery.child_tasks) > 1:
                await trio.sleep(0.02)
            here.set()
            while nursery.child_tasks:
                await trio.sleep(0.02)
        await provider_tasks.deliver_round(daemon, a_round(50, states[50]))
        daemon.executor._runs.clear()
        await provider_tasks.deliver_round(daemon, a_round(51, states[51]))
    assert states[51] not in begun
    assert handed == [(49, states[50])]


async def test_a_disk_or_a_limit_that_fails_a_round_is_waited_for_and_costs_nobody_elses_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_tasks, "RETRY_S", 0.01)
    tried, handed = 0, trio.Event()

    async def deliver(*_: object) -> None:
        nonlocal tried
        await trio.lowlevel.checkpoint()
        tried += 1
        if tried < 3:
            raise OSError(errno.EMFILE, "Too many open files")
        handed.set()

    monkeypatch.setattr(provider_tasks, "bring", at_once)
    monkeypatch.setattr(Executor, "deliver_round", deliver)
    async with a_daemon(tmp_path, MemoryHub(), 2, lends=True) as daemon:
        daemon.executor._runs[LEASE] = None  # type: ignore[assignment]  # only its name is looked at
        with trio.fail_after(10):
            await provider_tasks.deliver_round(daemon, a_round(1, daemon.store.put_bytes(b"state")))
        daemon.executor._runs.clear()
    assert handed.is_set()


async def test_a_round_that_a_run_cannot_take_fails_that_run_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[tuple[str, str]] = []

    async def deliver(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("a state of 2 bytes, and this run's are smaller")

    async def fail(_executor: Executor, _run: bytes, kind: str, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        ended.append((kind, reason))

    monkeypatch.setattr(Executor, "deliver_round", deliver)
    monkeypatch.setattr(provider_tasks, "bring", at_once)
    monkeypatch.setattr(Executor, "fail", fail)
    async with a_daemon(tmp_path, MemoryHub(), 2, lends=True) as daemon:
        daemon.executor._runs[LEASE] = None  # type: ignore[assignment]  # only its name is looked at
        await provider_tasks.deliver_round(daemon, a_round(1, daemon.store.put_bytes(b"state")))
        daemon.executor._runs.clear()
    ((kind, reason),) = ended
    assert kind == "bad-state"
    assert "this run's are smaller" in reason


def asked(buyer: int, number: int) -> PriceWanted:
    """A tender whose price is to be asked for."""
    signer = buyer.to_bytes(20, "big")
    called = replace(tender(), signer=signer, nonce=number.to_bytes(32, "big"), bids_close_ms=1 << 50)
    return PriceWanted(tender=called, lease="spot", sets=((b"d" * 32,),), rule_e18=(1,), share_ppm=0, tries=1)


def a_program(tmp_path: Path, daemon: Daemon) -> PriceProgram:
    """One whose rooms are somebody else's to make, who is not there."""
    text = config_text(Wishes(provides=True, cpu_slots=1, cpu_cores_per_slot=1, gpus=(), metrics_port=0))
    rule = parse_config(text, tmp_path / "config.toml").provider.pricing.rule
    config = PricingConfig(
        rule=rule, program=("/bin/true",), program_files=(), program_timeout_ms=1000, on_program_fault="rule"
    )
    return PriceProgram(config, tmp_path, daemon.now_ms, builder=tmp_path / "nobody")


async def test_a_pipe_that_cannot_be_had_costs_one_price_and_no_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[TenderPriced] = []
    async with a_daemon(tmp_path, MemoryHub(), 2, lends=True) as daemon:
        daemon.price_program = a_program(tmp_path, daemon)
        monkeypatch.setattr(daemon, "tell", told.append)
        with none_left(), trio.fail_after(10):
            await provider_tasks.price_tender(daemon, asked(1, 1))
        monkeypatch.undo()
    (answer,) = told
    assert "Too many open files" in answer.fault


async def test_however_many_tenders_come_few_of_them_wait_for_a_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each order is a task, and all but those that have a place end at once, with a word for their buyer."""
    told: list[TenderPriced] = []

    async def never(*_: object) -> bytes:
        await trio.sleep_forever()
        raise AssertionError("for ever is over")

    async with a_daemon(tmp_path, MemoryHub(), 2, lends=True) as daemon:
        daemon.price_program = program = a_program(tmp_path, daemon)
        monkeypatch.setattr(program, "_run", never)
        monkeypatch.setattr(daemon, "tell", told.append)
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(provider_tasks.price_tender, daemon, asked(number % 400, number))
            with trio.fail_after(20):
                while len(told) + len(nursery.child_tasks) > 1000 or len(nursery.child_tasks) > 100:
                    await trio.sleep(0.01)
            waiting = len(nursery.child_tasks)
            nursery.cancel_scope.cancel()
        monkeypatch.undo()
    assert waiting <= 2 * price_turns.PLACES_IN_ALL + 2
    assert len(told) >= 1000 - waiting
    assert all(answer.fault for answer in told)
