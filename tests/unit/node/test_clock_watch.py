"""What a node says of its clock: in its log as it notices, and to the doctor."""

import logging
from pathlib import Path

import pytest
import trio
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub

from hansa.node.api.desk import NodeDesk
from hansa.node.api.http_api import build_api
from hansa.node.api.http_server import serve_api
from hansa.node.api.net_desk import NetDesk, net_routes
from hansa.node.commands import doctor
from hansa.node.daemon import chores
from hansa.node.daemon.daemon import Daemon
from hansa.node.engine.steady_clock import CLOCK_ADVICE, JUMP_MS, wall_clock_ms

pytestmark = pytest.mark.trio
HOUR_MS = 3_600_000


async def warned(daemon: Daemon, caplog: pytest.LogCaptureFixture, words: str) -> int:
    """How often it says so in the time in which it looks at its clock more than twice."""
    with caplog.at_level(logging.INFO):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chores.watch_clock, daemon)
            await trio.sleep(2.5 * chores.WATCH_CLOCK_EVERY_S)
            nursery.cancel_scope.cancel()
    return sum(words in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("ahead_ms", "times"), [(HOUR_MS, 1), (JUMP_MS - 1_000, 0)])
async def test_a_journal_from_the_future_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ahead_ms: int, times: int
) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        daemon.last_life_ms = daemon.started_ms + ahead_ms
        assert await warned(daemon, caplog, "in the future") == times


async def test_a_node_that_buys_keeps_its_own_time_as_one_that_lends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        daemon.state.purchases.live[b"purchase"] = None  # type: ignore[assignment]  # only that there is one is looked at
        daemon.clock.wall_ms = lambda: wall_clock_ms() - HOUR_MS
        assert await warned(daemon, caplog, "was set back by 3600 s") == 1
        assert daemon.clock.ahead_ms() > HOUR_MS - 60_000
        del daemon.state.purchases.live[b"purchase"]
        assert await warned(daemon, caplog, "nothing runs, so the node takes the clock's time") == 1
        assert daemon.clock.ahead_ms() < 60_000


async def test_peers_that_have_another_time_are_said_once_and_again_when_they_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        assert await warned(daemon, caplog, CLOCK_ADVICE) == 0
        daemon.directory._other_times.update(dict.fromkeys(("one", "two", "three")))
        assert await warned(daemon, caplog, CLOCK_ADVICE) == 1


async def test_strangers_who_have_another_time_and_ours_by_turns_fill_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chores, "WATCH_CLOCK_EVERY_S", 0.05)
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon, trio.open_nursery() as nursery:
        with caplog.at_level(logging.INFO):
            nursery.start_soon(chores.watch_clock, daemon)
            for number in range(20):
                daemon.directory._other_times.clear()
                if number % 2 == 0:
                    daemon.directory._other_times["one"] = None
                await trio.sleep(0.2)
        nursery.cancel_scope.cancel()
    assert sum(CLOCK_ADVICE in record.getMessage() for record in caplog.records) == 1


async def test_the_doctor_tells_of_a_clock_that_is_wrong(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon, trio.open_nursery() as nursery:
        api = build_api(NodeDesk(daemon), more=net_routes(NetDesk(daemon)))
        await nursery.start(serve_api, api, daemon.config.api_socket)
        for last_life_ms, well in ((0, True), (daemon.now_ms() + HOUR_MS, False)):
            daemon.last_life_ms = last_life_ms
            found = await trio.to_thread.run_sync(doctor._network, daemon.config.data_dir)
            assert {name: is_well for name, is_well, _ in found}["clock"] is well
        nursery.cancel_scope.cancel()
