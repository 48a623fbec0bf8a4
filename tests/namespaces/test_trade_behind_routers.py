"""Real daemons, each behind a router of its own: a job is found, run and paid through a relay."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kit.namespaces import Internet, Site, internet

from hansa.node.cli_client import Daemon, DaemonAway
from hansa.node.cli_jobs import submit_job

__all__ = ["internet"]
pytestmark = pytest.mark.long
HANSA = [sys.executable, "-m", "hansa"]
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


def until(holds: Callable[[], Any], patience_s: float, what: str) -> Any:
    deadline = time.monotonic() + patience_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"after {patience_s:.0f} s it does not hold that {what}"
        time.sleep(0.2)
    return found


class Node:
    """A daemon in a namespace."""

    def __init__(self, stack: ExitStack, site: Site, place: Path, *options: str, relay: bool = False) -> None:
        self.place = place
        subprocess.run(
            [*HANSA, "init", "--data", place, "--listen", "/ip4/0.0.0.0/tcp/4077", "--metrics-port", "0", *options],
            check=True,
            capture_output=True,
        )
        with (place.parent / f"{place.name}.log").open("wb") as log:
            command = ["ip", "netns", "exec", site.name, *HANSA, "node", "run", "--data", place]
            self.process = subprocess.Popen([*command, "--relay"] if relay else command, stdout=log, stderr=log)
        stack.callback(self.stop)
        self.daemon = Daemon(place)
        stack.callback(self.daemon.close)
        until(lambda: self.asked("/v1/net"), 60, "the daemon answers")

    def asked(self, path: str) -> Any:
        try:
            return self.daemon.get(path)
        except DaemonAway:
            return None

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_job_is_traded_between_two_homes(internet: Internet, tmp_path: Path, symmetric: bool) -> None:
    with ExitStack() as stack:
        relay = Node(stack, internet.public_host(), tmp_path / "relay", relay=True)
        start = next(addr for addr in relay.asked("/v1/net")["addresses"] if "45.33." in addr)
        lends = ("--provider", "--cpu-slots", "1", "--bootstrap", start)
        provider = Node(stack, internet.home(symmetric=symmetric), tmp_path / "provider", *lends)
        buyer = Node(stack, internet.home(symmetric=symmetric), tmp_path / "buyer", "--bootstrap", start)
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
