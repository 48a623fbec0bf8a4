"""A job that nobody can serve, as its developer meets it: explained, queued, and begun when somebody fitting joins."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.market import asked, await_that, job_of, kill, providers_known

from hansa.node.commands.demo_nodes import DemoNode, DemoNodes
from hansa.node.settings.config import FILE_NAME

pytestmark = pytest.mark.slow
JOB = """\
name = "greeting"
entry = "greet.py:greet"
{extra}
[resources]
kind = "{kind}"
cores = 0.5
memory = "600 MiB"
disk = "64 MiB"

[limits]
wall = "3 min"

[budget]
total = "5.00"
price_ceiling_per_hour = "{ceiling}"

[tender]
bids = "2 s"
meter = "1 s"
queue_timeout = "{queue}"
"""
CODE = """
def greet(ctx):
    print("hello from a market")
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[DemoNodes]:
    """A buyer and the dearer provider; the cheaper one joins later."""
    with DemoNodes(prices=("2.00", "0.10")) as made:
        made.make()
        # Everybody starts from the first provider. Its sandbox is not needed until somebody can afford it.
        made.start_one(made.providers[0])
        made.start_one(made.buyer)
        await_that(lambda: len(providers_known(made)) == 1, 90, "the buyer knows the first provider")
        yield made


def hansa(node: DemoNode, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "hansa", *arguments, "--data", str(node.made.config.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def job_in(directory: Path, **changes: str) -> Path:
    directory.mkdir()
    fields = {"extra": "", "kind": "cpu", "ceiling": "0.50", "queue": "0 s", **changes}
    (directory / "job.toml").write_text(JOB.format(**fields))
    (directory / "greet.py").write_text(CODE)
    return directory


def submitted(nodes: DemoNodes, directory: Path) -> str:
    told = hansa(nodes.buyer, "submit", str(directory), "--json")
    assert told.returncode == 0, told.stderr
    return str(json.loads(told.stdout)["job"])


def view(nodes: DemoNodes, job: str) -> dict[str, Any]:
    return job_of(nodes, job)


def test_before_it_is_sent_a_job_is_told_what_it_would_find(nodes: DemoNodes, tmp_path: Path) -> None:
    told = hansa(nodes.buyer, "submit", str(job_in(tmp_path / "job")), "--dry-run")
    assert told.returncode == 1
    assert "nothing was sent" in told.stdout
    assert "1 more provider at +1.50 per device-hour   (would be enough)" in told.stdout
    assert asked(nodes.buyer, "/v1/jobs")["jobs"] == []
    affordable = job_in(tmp_path / "affordable", ceiling="2.00")
    told = hansa(nodes.buyer, "submit", str(affordable), "--dry-run", "--json")
    assert told.returncode == 0
    found = json.loads(told.stdout)
    assert [row["price_per_hour"] for row in found["invited"]] == ["2.000000"]
    assert found["enough"]
    assert asked(nodes.providers[0], "/v1/tenders")["tenders"] == [], "nobody was asked"


def test_a_job_that_nobody_can_serve_ends_with_what_would_help(nodes: DemoNodes, tmp_path: Path) -> None:
    job = submitted(nodes, job_in(tmp_path / "job"))
    await_that(lambda: view(nodes, job).get("phase") == "failed", 60, "the job has failed")
    assert view(nodes, job)["reason"].startswith("unfilled: ")
    told = hansa(nodes.buyer, "why", job[:12])
    assert told.returncode == 0, told.stderr
    assert "1 provider was asked: 1 declined." in told.stdout
    assert "1 more provider at +1.50 per device-hour   (would be enough)" in told.stdout
    shown = hansa(nodes.providers[0], "node", "tenders")
    assert "declined" in shown.stdout
    assert "price" in shown.stdout


def test_to_a_job_for_gpus_no_processors_are_offered(nodes: DemoNodes, tmp_path: Path) -> None:
    job = submitted(nodes, job_in(tmp_path / "job", kind="gpu"))
    await_that(lambda: view(nodes, job).get("phase") == "failed", 60, "the job has failed")
    told = hansa(nodes.buyer, "why", job[:12])
    assert "no change is known that would have 1 more provider bid" in told.stdout
    assert "kind = gpu" in told.stdout, "what is lacking is said all the same"


def test_a_job_in_the_queue_survives_a_crash_and_begins_when_a_fitting_provider_joins(
    nodes: DemoNodes, tmp_path: Path
) -> None:
    job = submitted(nodes, job_in(tmp_path / "job", queue="1 h"))
    await_that(lambda: bool(view(nodes, job).get("queue")), 60, "the job waits in the queue")
    listed = hansa(nodes.buyer, "jobs").stdout
    assert "queued" in listed
    told = hansa(nodes.buyer, "why", job[:12]).stdout
    assert "It waits for a provider: asked" in told
    assert "1 more provider at +1.50 per device-hour   (would be enough)" in told
    kill(nodes.buyer)
    nodes.start_one(nodes.buyer)
    await_that(lambda: bool(view(nodes, job).get("queue")), 60, "the job waits on after a crash")
    assert (nodes.providers[1].made.config.data_dir / FILE_NAME).exists()
    nodes.start_one(nodes.providers[1])
    await_that(lambda: view(nodes, job).get("phase") == "succeeded", 180, "the job that waited has succeeded")
    shown = hansa(nodes.buyer, "bids", job[:12])
    assert "shard 0" in shown.stdout
    assert "0.10" in shown.stdout
    won = hansa(nodes.providers[1], "node", "tenders", "--json")
    assert json.loads(won.stdout)["tenders"][0]["bids"][0]["outcome"] == "won"


def test_a_job_in_the_queue_can_be_cancelled(nodes: DemoNodes, tmp_path: Path) -> None:
    job = submitted(nodes, job_in(tmp_path / "job", kind="gpu", queue="1 h"))
    await_that(lambda: bool(view(nodes, job).get("queue")), 60, "the job waits in the queue")
    assert hansa(nodes.buyer, "cancel", job[:12]).returncode == 0
    assert view(nodes, job)["phase"] == "cancelled"
    assert view(nodes, job)["queue"] is None


def test_a_deadline_that_no_run_could_keep_is_refused_before_anything_is_sent(nodes: DemoNodes, tmp_path: Path) -> None:
    told = hansa(nodes.buyer, "submit", str(job_in(tmp_path / "job")), "--deadline", "1min")
    assert told.returncode == 2
    assert "is 1 min after the job is submitted, sooner than a run of 3 min could end" in told.stderr
