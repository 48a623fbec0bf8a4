"""What ``hansa node price`` says of the owner's rule, factor by factor, over a running daemon."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub

from hansa.node.api.desk import NodeDesk
from hansa.node.api.http_api import build_api
from hansa.node.api.http_server import serve_api
from hansa.node.api.price_desk import PriceDesk, price_routes
from hansa.node.commands.cli import cli
from hansa.node.commands.cli_price import price_lines
from hansa.node.daemon.chores import _posted_price
from hansa.node.daemon.daemon import Daemon
from hansa.proto.units import e18_to_price_per_hour

pytestmark = pytest.mark.trio


def settings(text: str) -> str:
    """An owner with a rule of its own."""
    return (
        text.replace('leases = ["spot"]', 'leases = ["spot", "firm"]')
        .replace('firm = "1"', 'firm = "1.5"')
        .replace('floor = "0"', 'floor = "0.25"')
        .replace('# "22:00-06:00" = "0.8"', '"10:00-12:00" = "0.5"')
        .replace('# "0 %" = "0.8"', '"0 %" = "1.25"')
        .replace('time_zone = ""', 'time_zone = "Europe/Berlin"')
    )


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Daemon]:
    async with (
        a_daemon(directory, MemoryHub(), 2, lends=True, settings=settings) as daemon,
        trio.open_nursery() as tasks,
    ):
        api = build_api(NodeDesk(daemon), more=price_routes(PriceDesk(daemon)))
        await tasks.start(serve_api, api, daemon.config.api_socket)
        yield daemon
        tasks.cancel_scope.cancel()


async def price(daemon: Daemon, *arguments: str) -> Result:
    def invoke() -> Result:
        return CliRunner().invoke(cli, ["node", "price", *arguments, "--data", str(daemon.config.data_dir)])

    return await trio.to_thread.run_sync(invoke)


async def test_every_factor_is_told_and_what_they_come_to(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        said = await price(daemon, "--lease", "firm", "--at", "2026-11-23 11:00", "--json")
        view = json.loads(said.output)
        assert (view["price_per_hour"], view["currency"], view["at_floor"]) == ("0.375000", "USD", False)
        assert [rate["rate_per_hour"] for rate in view["rates"]] == ["0.400000"]
        assert (view["hours_ppm"], view["utilisation_ppm"], view["lease_ppm"]) == (500_000, 1_250_000, 1_500_000)
        assert (view["minute_of_week"], view["leased_ppm"], view["program"]) == (660, 0, None)
        spot = await price(daemon, "--at", "2026-11-23 11:00")
        assert spot.output.splitlines()[0] == "0.250000 USD for one device and one hour"
        assert "hour         x 0.5  at Mon 11:00 of your clock" in spot.output
        evening = await price(daemon, "--at", "2026-11-23 19:00")
        assert evening.output.startswith("0.500000 USD")


async def test_what_is_posted_is_what_the_cheapest_device_costs_now(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        view = json.loads((await price(daemon, "--json")).output)
        posted = _posted_price(daemon, daemon.state.capacity.lent)
        assert e18_to_price_per_hour(posted) == view["price_per_hour"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--devices", "2"), "this node has 1 devices"),
        (("--devices", "0"), "this node has 1 devices"),
        (("--model", "H100"), "this node has 0 devices of model H100"),
        (("--at", "noon"), "that is no time"),
        (("--at", "99999-01-01"), "that is no time"),
    ],
)
async def test_what_cannot_be_asked_is_told_in_words(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    async with serving(tmp_path) as daemon:
        said = await price(daemon, *arguments)
        assert words in str(said.exception or said.output) + said.output


async def test_what_the_program_says_stands_below_the_rule() -> None:
    view = {
        "price_per_hour": "0.40",
        "currency": "USD",
        "rates": [{"rate_per_hour": "0.4", "model": "a"}, {"rate_per_hour": "0.4", "model": "b"}],
        "minute_of_week": 0,
        "hours_ppm": 1_000_000,
        "utilisation_ppm": 1_000_000,
        "leased_ppm": 500_000,
        "lease_ppm": 900_000,
        "lease": "spot",
        "at_floor": True,
        "floor_per_hour": "0.40",
    }
    counted = {"price program: answered": 3}
    for program, words in (
        ({"price_per_hour": "0.55", "decline": "", "fault": ""}, "0.55, which is what would be bid"),
        ({"price_per_hour": None, "decline": "no\x1b[2J", "fault": ""}, "declines: no"),
        ({"price_per_hour": None, "decline": "", "fault": "it took too long"}, "failed: it took too long"),
    ):
        text = "\n".join(price_lines({**view, "program": {**program, "counted": counted}}))
        assert words in text
        assert "\x1b" not in text
        assert "3 x price program: answered" in text
