"""One directory, one daemon: who comes second fails on the journal, and has touched nothing of the first's."""

import contextlib
import sqlite3
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.memory_party import key
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, CHANNEL_ID, JOB, NOW_MS, PROVIDER, PROVIDER_KEY, spec
from kit.waiting import until

from hansa.market.ledger import vouched_by_buyer
from hansa.node.commands.cli_status import clock_fault
from hansa.node.commands.first_setup import Wishes, config_text
from hansa.node.daemon import chores
from hansa.node.daemon import daemon as daemon_module
from hansa.node.daemon.daemon import Daemon
from hansa.node.engine import engine as engine_module
from hansa.node.engine.events import MessageArrived, NodeEvent
from hansa.node.engine.journal import SqliteJournal
from hansa.node.engine.steady_clock import SteadyClock, wall_clock_ms
from hansa.node.faults import OperatorError
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.node.settings.config import FILE_NAME, parse_config
from hansa.proto.messages import DeliveryAccepted, PenaltyReleased
from hansa.proto.signing import checksum_address
from hansa.scheduler.run import RunProgressed, RunStarted

DAY_MS = 24 * 3_600_000


def set_clock(daemon: Daemon, by_ms: int) -> None:
    """Set the machine's clock: this far from the right time."""
    daemon.clock.wall_ms = lambda: wall_clock_ms() + by_ms


def test_a_second_daemon_on_a_directory_fails_before_it_touches_the_first_ones_runs(tmp_path: Path) -> None:
    config = parse_config(config_text(Wishes(metrics_port=0)), tmp_path / FILE_NAME)
    first = Daemon(config, key(1), key(1001), None)
    try:
        (first.runs_dir / "a run").mkdir()
        with pytest.raises(OperatorError):
            Daemon(config, key(1), key(1001), None)
        assert (first.runs_dir / "a run").is_dir()
    finally:
        first.close()


def test_a_daemon_that_ends_leaves_nothing_that_was_laid_out_for_runs(tmp_path: Path) -> None:
    """Of a sealed job that would be its open files, on a disk of the provider's, until the next start."""
    config = parse_config(config_text(Wishes(metrics_port=0)), tmp_path / FILE_NAME)
    daemon = Daemon(config, key(1), key(1001), None)
    laid_out = daemon.runs_dir / "run" / "inputs"
    laid_out.mkdir(parents=True)
    (laid_out / "open").write_bytes(b"what was sealed")
    daemon.close()
    assert not laid_out.parent.exists()
    Daemon(config, key(1), key(1001), None).close()


def keys_in_memory() -> int:
    """Files without a name that hold a bulk channel's key."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    return sum("hansa-bulk" in link for link in links)


@pytest.mark.trio
async def test_a_daemon_that_ends_gives_back_the_file_of_its_bulk_key(tmp_path: Path) -> None:
    before = keys_in_memory()
    async with a_daemon(tmp_path, MemoryHub(), 1):
        assert keys_in_memory() == before + 1
    assert keys_in_memory() == before


def test_a_ledger_without_its_journal_is_no_node_that_owes_nothing(tmp_path: Path) -> None:
    config = parse_config(config_text(Wishes(metrics_port=0)), tmp_path / FILE_NAME)
    Daemon(config, key(1), key(1001), None).close()
    Daemon(config, key(1), key(1001), None).close()  # neither has anything yet
    ledger = LedgerStore(tmp_path / "ledger.sqlite")
    posted = vouched_by_buyer(channel_id=CHANNEL_ID, seq=1, provider=PROVIDER, shares={JOB: 5}, at_ms=NOW_MS)
    ledger.post([posted])
    ledger.close()
    with pytest.raises(OperatorError, match="the journal beside it is empty") as found:
        Daemon(config, key(1), key(1001), None)
    assert "a new account" in found.value.hint, "the same one would sign a second history"


@pytest.mark.trio
async def test_after_31_days_two_daemons_still_know_each_other(tmp_path: Path) -> None:
    hub = MemoryHub()
    async with a_daemon(tmp_path, hub, 1) as one, a_daemon(tmp_path, hub, 2) as two, trio.open_nursery() as nursery:
        for daemon, other in ((one, two), (two, one)):
            daemon.net.learn(other.net.peer_id, other.net.addrs())
            nursery.start_soon(chores.renew_binding, daemon)
        assert await one.directory.meet(two.net.peer_id) == two.account.address
        for days in (16, 31):
            epochs = [daemon.own_binding.hello.binding.epoch for daemon in (one, two)]
            for daemon in (one, two):
                set_clock(daemon, days * DAY_MS)
            for daemon, epoch in zip((one, two), epochs, strict=True):
                await until(lambda of=daemon, before=epoch: of.own_binding.hello.binding.epoch > before)
            assert await one.directory.meet(two.net.peer_id) == two.account.address
            assert await two.directory.meet(one.net.peer_id) == one.account.address
        assert all(peer.strikes == 0 for daemon in (one, two) for peer in daemon.net.peers())
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_clock_that_is_set_back_stops_no_deadline(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        due_ms = daemon.now_ms() + 500
        daemon.engine.deadline_ms = lambda: due_ms if daemon.state.at_ms < due_ms else None  # type: ignore[method-assign]
        set_clock(daemon, -DAY_MS)
        await until(lambda: daemon.state.at_ms >= due_ms)


@pytest.mark.trio
async def test_where_nothing_runs_a_node_follows_its_clock_back_and_dates_its_binding_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon, trio.open_nursery() as nursery:
        nursery.start_soon(chores.watch_clock, daemon)
        nursery.start_soon(chores.renew_binding, daemon)
        await trio.lowlevel.checkpoint()
        set_clock(daemon, -DAY_MS)
        await until(lambda: daemon.own_binding.hello.binding.not_before < wall_clock_ms() - DAY_MS + 60_000)
        assert daemon.clock.ahead_ms() < 1_000
        set_clock(daemon, 0)
        await until(lambda: "set forward" in caplog.text)
        assert "set back by 86" in caplog.text
        assert abs(daemon.now_ms() - wall_clock_ms()) < 60_000
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_while_something_runs_a_node_goes_on_with_its_own_time(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon, trio.open_nursery() as nursery:
        daemon.state.sales.live[b"sale"] = None  # type: ignore[assignment]  # only that there is one is looked at
        nursery.start_soon(chores.watch_clock, daemon)
        set_clock(daemon, -DAY_MS)
        await trio.sleep(1.5)
        assert daemon.clock.ahead_ms() > DAY_MS - 60_000
        assert "set back" in clock_fault({"clock": {"ahead_ms": daemon.clock.ahead_ms()}})
        del daemon.state.sales.live[b"sale"]
        await until(lambda: daemon.clock.ahead_ms() < 1_000)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("runs", [True, False])
def test_a_clock_that_was_set_back_before_the_start_stops_no_deadline_of_what_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    """What stands in the journal is due by the time that the node had when it wrote it."""
    market = SmallMarket()
    market.add(BUYER_KEY)
    market.add(PROVIDER_KEY, devices=1)
    if runs:
        market.submit(BUYER, of=spec(shards=1))
        market.tender(BUYER, (PROVIDER,))
    engine = market.engines[PROVIDER]
    assert bool(engine.state.sales.live) is runs
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    journal.append(list(engine._journal.read()[1]))
    journal.close()
    wall_ms = engine.state.at_ms - DAY_MS
    monkeypatch.setattr(daemon_module, "SteadyClock", partial(SteadyClock, lambda: wall_ms))
    config = parse_config(config_text(Wishes(metrics_port=0)), tmp_path / FILE_NAME)
    daemon = Daemon(config, PROVIDER_KEY, key(1001), None)
    try:
        assert DAY_MS - 60_000 < daemon.last_life_ms - daemon.started_ms <= DAY_MS
        assert (daemon.now_ms() >= daemon.last_life_ms) is runs
        assert (daemon.clock.ahead_ms() >= DAY_MS) is runs
    finally:
        daemon.close()


def a_provider_that_meters(tmp_path: Path) -> Daemon:
    """A daemon, not running, whose journal says that a run of a stranger's job goes on."""
    market = SmallMarket()
    market.add(BUYER_KEY)
    market.add(PROVIDER_KEY, devices=1)
    market.submit(BUYER, of=spec(shards=1))
    market.tender(BUYER, (PROVIDER,))
    (sold,) = market.engines[PROVIDER].state.sales.live.values()
    market.take(PROVIDER, RunStarted(run=sold.lease, at_ms=market.now_ms))
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    journal.append(list(market.journals[PROVIDER].read()[1]))
    journal.close()
    return again(tmp_path)


def again(tmp_path: Path) -> Daemon:
    """The daemon of that directory, at its next start."""
    config = parse_config(config_text(Wishes(metrics_port=0)), tmp_path / FILE_NAME)
    return Daemon(config, PROVIDER_KEY, key(1001), None)


async def turn(daemon: Daemon, event: NodeEvent) -> None:
    """The engine's loop, until something is wrong."""
    daemon.tell(event)
    with trio.fail_after(10):
        await daemon.serve_engine()


def test_what_is_in_the_journal_and_did_not_come_into_the_ledger_is_there_after_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that was written down between the two would have the books lack it for ever."""
    daemon = a_provider_that_meters(tmp_path)
    (sold,) = daemon.state.sales.live.values()
    written = daemon.ledger_keeper.store.size
    progress = RunProgressed(run=sold.lease, step=1, metrics=(), at_ms=daemon.state.at_ms + 2_000)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(daemon.ledger_keeper.store, "post", full)
    with pytest.raises(sqlite3.OperationalError):
        trio.run(turn, daemon, progress)
    assert daemon.state.sale_on(sold.lease).steps == 1
    daemon.close()
    after = again(tmp_path)
    assert after.state.sale_on(sold.lease).steps == 1
    assert after.ledger_keeper.store.size > written
    after.close()


def test_a_peer_by_whose_word_the_daemon_ended_is_not_heard_on_it_again_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says its word until it is heard: each start would end as the one before."""
    daemon = a_provider_that_meters(tmp_path)
    (sold,) = daemon.state.sales.live.values()
    word = DeliveryAccepted(lease=sold.lease)

    def faulty(*_: object) -> None:
        raise AssertionError("a fault of ours")

    assert daemon.doorkeeper.matters(BUYER, word)
    with monkeypatch.context() as broken:
        broken.setattr(engine_module, "advance", faulty)
        with pytest.raises(AssertionError, match="a fault of ours"):
            trio.run(turn, daemon, MessageArrived(sender=BUYER, message=word, at_ms=daemon.now_ms()))
    daemon.close()
    after = again(tmp_path)
    assert f"a DeliveryAccepted of {checksum_address(BUYER)} met a fault" in caplog.text
    assert not after.doorkeeper.matters(BUYER, word)
    assert after.doorkeeper.counters == {"gate: DeliveryAccepted of a peer that ended this daemon by one": 1}
    assert after.doorkeeper.matters(BUYER, PenaltyReleased(lease=sold.lease)), "only this sort of word"
    set_clock(after, DAY_MS + 1_000)
    assert after.doorkeeper.matters(BUYER, word), "a day is over"
    after.close()


def test_the_owner_is_told_in_words_what_is_wrong_with_the_clock() -> None:
    assert clock_fault({}) == clock_fault({"clock": {"ahead_ms": 0, "journal_in_future_ms": 0}}) == ""
    assert "in the future" in clock_fault({"clock": {"journal_in_future_ms": 3_600_000}})
    assert "most peers" in clock_fault({"clock": {"peers_differ": True}})
