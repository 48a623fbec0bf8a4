"""How a node stands in the network, from its net to the command line and the doctor."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.memory_party import party

from hansa.node.api.desk import NodeDesk
from hansa.node.api.http_api import build_api
from hansa.node.api.http_server import serve_api
from hansa.node.api.net_desk import NetDesk, net_routes
from hansa.node.commands import doctor
from hansa.node.commands.cli import cli
from hansa.node.daemon.daemon import Daemon
from hansa.node.network.net import Reach, RelayStat
from hansa.node.network.reachability import Opinion

pytestmark = pytest.mark.trio
OBSERVER = "16Uiu2HAm4v86W3bmT1BiH6oSPzcsSr31iDQpSN5Qa882BCjjwgrD"


@asynccontextmanager
async def serving(directory: Path, hub: MemoryHub) -> AsyncIterator[Daemon]:
    async with a_daemon(directory, hub, 2) as daemon, trio.open_nursery() as nursery:
        api = build_api(NodeDesk(daemon), more=net_routes(NetDesk(daemon)))
        await nursery.start(serve_api, api, daemon.config.api_socket)
        yield daemon
        nursery.cancel_scope.cancel()


async def hansa(daemon: Daemon, *arguments: str) -> Result:
    def invoke() -> Result:
        return CliRunner(env={"COLUMNS": "200"}).invoke(cli, [*arguments, "--data", str(daemon.config.data_dir)])

    return await trio.to_thread.run_sync(invoke)


async def test_an_owner_reads_how_others_reach_the_node_and_by_whose_word(tmp_path: Path, monkeypatch) -> None:
    async with serving(tmp_path, MemoryHub()) as daemon:
        said = Opinion(observer=OBSERVER, network="45.33.1.0/24", seen_at=("45.33.2.2", 4077), reached_at="", at_s=0.0)
        reach = Reach(
            verdict="private",
            addrs=daemon.net.addrs(),
            opinions=(said,),
            relays=(RelayStat(peer_id=OBSERVER, left_s=3_000),),
            upnp="no router that speaks UPnP was found",
        )
        monkeypatch.setattr(daemon.net, "reach", lambda: reach)
        told = await hansa(daemon, "net", "status")
        assert told.exit_code == 0
        assert "reached    by relay" in told.stdout
        assert "45.33.2.2 port 4077, could not reach us" in told.stdout
        assert "a place for 50 more minutes" in told.stdout
        assert "no router that speaks UPnP" in told.stdout
        assert "forwarding the port" in told.stdout
        view = json.loads((await hansa(daemon, "net", "status", "--json")).stdout)
        assert view["reached"] == "by relay"
        assert view["opinions"][0]["peer_id"] == OBSERVER
        findings = {
            name: (well, words)
            for name, well, words in await trio.to_thread.run_sync(doctor._network, daemon.config.data_dir)
        }
        assert findings["network"][0]
        assert findings["network"][1].startswith("reached by relay")
        assert findings["autonat"][1].startswith("private: 0 of 1 that tried got through")


async def test_an_owner_reads_what_the_node_thinks_of_each_peer(tmp_path: Path) -> None:
    hub = MemoryHub()
    async with serving(tmp_path, hub) as daemon, party(hub, 5) as other:
        await daemon.net.connect(other.net.addrs()[0])
        daemon.net.strike(other.net.peer_id, "sent what is no tender")
        told = await hansa(daemon, "net", "peers")
        assert told.exit_code == 0, told.output
        assert f"{other.net.peer_id}  live direct" in told.stdout
        assert "strikes were for: sent what is no tender" in told.stdout
        for seconds in range(5):
            daemon.net.strike(other.net.peer_id, f"wrong {seconds}")
        (view,) = json.loads((await hansa(daemon, "net", "peers", "--json")).stdout)["peers"]
        assert view["phase"] == "barred"
        assert view["barred_for_ms"] > 0
        assert len(view["whys"]) == 5


async def test_without_a_daemon_the_doctor_says_nothing_of_the_network(tmp_path: Path) -> None:
    assert await trio.to_thread.run_sync(doctor._network, tmp_path) == []
