"""Real daemons, each behind a router of its own: a job is found, run and paid through a relay."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from kit.daemons_in_namespaces import PlacedDaemon, until
from kit.namespaces import Internet, internet

from hansa.node.commands.cli_jobs import submit_job

__all__ = ["internet"]
pytestmark = pytest.mark.long
JOB = """\
name = "far"
entry = "main.py:run"

[resources]
kind = "cpu"
memory = "600 MiB"
shared_memory = "128 MiB"

[limits]
wall = "3 min"

[tender]
bids = "3 s"
meter = "1 s"
"""


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_job_is_traded_between_two_homes(internet: Internet, tmp_path: Path, symmetric: bool) -> None:
    with ExitStack() as stack:
        relay = PlacedDaemon(stack, internet.public_host(), tmp_path / "relay", relay=True)
        start = relay.outside()
        lends = ("--provider", "--cpu-slots", "1", "--bootstrap", start)
        provider = PlacedDaemon(stack, internet.home(symmetric=symmetric), tmp_path / "provider", *lends)
        buyer = PlacedDaemon(stack, internet.home(symmetric=symmetric), tmp_path / "buyer", "--bootstrap", start)
        until(lambda: provider.asked("/v1/net")["reached"] == "by relay", 30, "the provider has a place at the relay")
        until(lambda: buyer.asked("/v1/providers")["providers"], 60, "the buyer knows the provider")
        job = tmp_path / "job"
        job.mkdir()
        (job / "job.toml").write_text(JOB)
        (job / "main.py").write_text("def run(ctx):\n    print('far away')\n")
        name = submit_job(buyer.daemon, job)
        ended = ("succeeded", "failed", "cancelled")
        view = until(
            lambda: (view := buyer.asked(f"/v1/jobs/{name}")) and view["phase"] in ended and view, 150, "the job ended"
        )
        assert view["phase"] == "succeeded", view
        path = next(
            peer["path"]
            for peer in buyer.asked("/v1/net/peers")["peers"]
            if peer["peer_id"] == provider.asked("/v1/net")["peer_id"]
        )
        assert path == ("relayed" if symmetric else "direct")
