"""The owner's word on devices, from the command line to the journal and back."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub

from hansa.node.api.desk import NodeDesk
from hansa.node.api.device_desk import OWN_WORDS, DeviceDesk, device_routes
from hansa.node.api.http_api import build_api
from hansa.node.api.http_server import serve_api
from hansa.node.commands.cli import cli
from hansa.node.daemon.daemon import Daemon
from hansa.node.engine.engine import Engine
from hansa.node.faults import OperatorError

pytestmark = pytest.mark.trio


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Daemon]:
    """A provider with one device, its local API on a real socket."""
    async with a_daemon(directory, MemoryHub(), 2, lends=True) as daemon, trio.open_nursery() as nursery:
        api = build_api(NodeDesk(daemon), more=device_routes(DeviceDesk(daemon)))
        await nursery.start(serve_api, api, daemon.config.api_socket)
        yield daemon
        nursery.cancel_scope.cancel()


async def hansa(daemon: Daemon, *arguments: str) -> Result:
    def invoke() -> Result:
        runner = CliRunner(env={"COLUMNS": "200"})
        return runner.invoke(cli, [*arguments, "--data", str(daemon.config.data_dir)])

    return await trio.to_thread.run_sync(invoke)


async def test_an_owner_takes_a_device_back_and_lends_it_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        (device,) = daemon.state.capacity.devices
        begin = device.id.hex()[:8]
        told = await hansa(daemon, "node", "reclaim", "--device", begin, "--why", "I render tonight")
        assert told.stdout == f"device {device.id.hex()[:12]} is withdrawn: I render tonight\n"
        assert daemon.state.capacity.free == ()
        shown = json.loads((await hansa(daemon, "node", "status", "--json")).stdout)
        assert [(one["state"], one["withheld"]) for one in shown["devices"]] == [("withdrawn", ["I render tonight"])]
        assert "I render tonight" in (await hansa(daemon, "node", "status")).stdout
        told = await hansa(daemon, "node", "return", "--all")
        assert told.stdout == f"device {device.id.hex()[:12]} is free\n"
        assert daemon.state.capacity.free == (device,)


async def test_the_owners_word_outlives_the_daemon(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        assert (await hansa(daemon, "node", "reclaim", "--all", "--json")).exit_code == 0
        (device,) = daemon.state.capacity.devices
        again = Engine(daemon.journal).state.capacity
        assert again.claimed[device.id].why == OWN_WORDS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("reclaim",), "name devices with --device ID, or say --all"),
        (("reclaim", "--all", "--device", "abcd"), "name devices with --device ID, or say --all"),
        (("reclaim", "--all", "--notice", "soon"), "--notice is no length of time: a number and a unit"),
        (("reclaim", "--device", "abc"), "no device here begins with abc"),
        (("return", "--device", "0000zz"), "no device here begins with 0000zz"),
    ],
)
async def test_a_mistake_is_one_line_with_a_hint(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    async with serving(tmp_path) as daemon:
        told = await hansa(daemon, "node", *arguments)
        assert (told.exit_code, told.stdout) == (2, "")
        assert words in told.stderr
        assert "hint: " in told.stderr
        assert daemon.state.capacity.withheld == {}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"devices": "all", "notice_ms": None, "why": ""},
        {"devices": [1], "notice_ms": None, "why": ""},
        {"devices": [], "notice_ms": -1, "why": ""},
        {"devices": [], "notice_ms": True, "why": ""},
        {"devices": [], "notice_ms": 30 * 24 * 3_600_000 + 1, "why": ""},
        {"devices": [], "notice_ms": None, "why": None},
    ],
)
async def test_a_request_that_is_none_is_refused(tmp_path: Path, body: dict[str, object]) -> None:
    from hansa.node.api.cli_client import DaemonClient

    async with serving(tmp_path) as daemon:
        with closing(DaemonClient(daemon.config.data_dir)) as client, pytest.raises(OperatorError):
            await trio.to_thread.run_sync(client.post, "/v1/devices/withdraw", body)
        assert daemon.state.capacity.withheld == {}


async def test_a_node_that_lends_nothing_says_so(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        with pytest.raises(OperatorError, match="lends no devices"):
            await DeviceDesk(daemon).withdraw([], None, "")
