"""What the daemon hands in is what Prometheus reads, and only from this machine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from hansa.node.api.http_server import serve_loopback
from hansa.node.api.metrics import JOB_PHASES, PEER_PHASES, Metrics, Readings, build_metrics_app
from hansa.node.faults import PortInUse
from hansa.node.network import peers
from hansa.scheduler import job

pytestmark = pytest.mark.trio

READINGS = Readings(
    devices={"free": 1, "leased": 2},
    leases={"provider": 2},
    bids_total={"won": 3, "lost": 4},
    runs_total={"succeeded": 2},
    jobs={"running": 1},
    jobs_that_wait=1,
    vouched_in_total=1_250_000,
    vouched_out_total=1,
    engine_events_total=77,
    egress_bytes_total=4096,
    engine_lag_ms=12.5,
    peers={"live": 3},
    drops_total={'odd "reason"\n': 5},
)


@asynccontextmanager
async def served(metrics: Metrics, reason: list[str | None]) -> AsyncIterator[httpx.AsyncClient]:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_loopback, build_metrics_app(metrics, lambda: reason[0]), 0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
        nursery.cancel_scope.cancel()


async def test_readings_are_exposed_and_the_next_replace_them() -> None:
    metrics = Metrics()
    metrics.update(READINGS)
    async with served(metrics, [None]) as client:
        text = (await client.get("/metrics")).text
        for line in (
            'hansa_devices{state="leased"} 2.0',
            'hansa_devices{state="held"} 0.0',
            'hansa_leases{role="provider"} 2.0',
            'hansa_bids_total{outcome="won"} 3.0',
            'hansa_runs_total{outcome="succeeded"} 2.0',
            "hansa_jobs_waiting_for_money 1.0",
            'hansa_vouched_total{currency="USD",direction="in"} 1.25',
            'hansa_vouched_total{currency="USD",direction="out"} 1e-06',
            "hansa_engine_events_total 77.0",
            "hansa_egress_bytes_total 4096.0",
            "hansa_engine_lag_seconds 0.0125",
            'hansa_peers{phase="live"} 3.0',
            'hansa_drops_total{reason="odd \\"reason\\"\\n"} 5.0',
        ):
            assert line in text.splitlines(), text
        metrics.update(Readings())
        text = (await client.get("/metrics")).text
        for line in (
            'hansa_devices{state="free"} 0.0',
            'hansa_devices{state="withdrawn"} 0.0',
            'hansa_peers{phase="live"} 0.0',
            'hansa_jobs{phase="failed"} 0.0',
        ):
            assert line in text.splitlines(), "what vanishes at 0 sets no alarm off"


async def test_every_phase_has_a_figure() -> None:
    for phases, table in ((JOB_PHASES, job.TABLE), (PEER_PHASES, peers.TABLE)):
        known = {phase for phase, _ in table.allowed} | {after for each in table.allowed.values() for after in each}
        assert set(phases) == known - {"gone"}, "who is gone is known no more"


async def test_health_follows_the_engine() -> None:
    reason: list[str | None] = [None]
    async with served(Metrics(), reason) as client:
        assert (await client.get("/healthz")).status_code == 200
        reason[0] = "no event was taken for 30 s"
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.text) == (503, "no event was taken for 30 s\n")


async def test_a_page_that_points_its_name_at_this_machine_reads_nothing() -> None:
    async with served(Metrics(), [None]) as client:
        assert (await client.get("/metrics", headers={"host": "evil.example"})).status_code == 400


async def test_a_port_that_is_taken_is_said_with_a_way_out() -> None:
    async with served(Metrics(), [None]) as client:
        with pytest.raises(PortInUse) as caught:
            await serve_loopback(build_metrics_app(Metrics(), lambda: None), client.base_url.port or 0)
        assert "metrics.port" in caught.value.hint
