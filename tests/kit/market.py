"""A real market for tests: daemons as processes of their own, asked over their sockets, and killed without mercy."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hansa.node.api.cli_client import DaemonAway
from hansa.node.commands.cli_jobs import submit_job
from hansa.node.commands.demo_nodes import DemoNode, DemoNodes
from hansa.node.settings.config import FILE_NAME

POLL_S = 0.1


@contextmanager
def running_market(*prices: str, settings: Mapping[str, str] | None = None) -> Iterator[DemoNodes]:
    """Providers at these prices and one buyer, all started, all knowing each other.

    ``settings`` are lines of the providers' ``config.toml`` and what stands there instead.
    """
    with DemoNodes(prices=prices) as nodes:
        nodes.make()
        for node in nodes.providers:
            file = node.made.config.data_dir / FILE_NAME
            text = file.read_text()
            for before, after in (settings or {}).items():
                assert before in text, f"{before} is no line of the config"
                text = text.replace(before, after)
            file.write_text(text)
        nodes.start()
        await_that(lambda: len(providers_known(nodes)) == len(prices), 90, "the buyer knows every provider")
        yield nodes


def providers_known(nodes: DemoNodes) -> list[dict[str, Any]]:
    """The buyer's book."""
    found: list[dict[str, Any]] = asked(nodes.buyer, "/v1/providers", {"providers": []})["providers"]
    return found


def asked(node: DemoNode, path: str, otherwise: Any = None) -> Any:
    """One answer of a node's local API, or ``otherwise`` while no daemon answers."""
    try:
        return node.daemon.get(path)
    except DaemonAway:
        return otherwise


def await_that(holds: Callable[[], bool], patience_s: float, what: str) -> None:
    """Wait until something holds, and fail with its name if it does not in time."""
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, f"after {patience_s:.0f} s it does not hold that {what}"
        time.sleep(POLL_S)


def submit(nodes: DemoNodes, directory: Path) -> str:
    """Put a job on the market through the buyer; answers its id."""
    return submit_job(nodes.buyer.daemon, directory)


def job_of(nodes: DemoNodes, job: str) -> dict[str, Any]:
    """The job's view, or an empty one while the buyer is away."""
    view: dict[str, Any] = asked(nodes.buyer, f"/v1/jobs/{job}", {})
    return view


def await_job(nodes: DemoNodes, job: str, patience_s: float) -> dict[str, Any]:
    """Wait until a job has ended; answers its last view."""
    ended = ("succeeded", "failed", "cancelled")
    await_that(lambda: job_of(nodes, job).get("phase") in ended, patience_s, f"job {job[:8]} has ended")
    return job_of(nodes, job)


def kill(node: DemoNode) -> None:
    """SIGKILL: no last words."""
    assert node.process is not None
    os.kill(node.process.pid, signal.SIGKILL)
    node.process.wait()


def books(node: DemoNode) -> dict[str, Any]:
    """A node's balance."""
    found: dict[str, Any] = node.daemon.get("/v1/balance")
    return found
