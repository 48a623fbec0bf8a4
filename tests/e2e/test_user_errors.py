"""What a user can get wrong, or changes their mind about: a clear word every time, and nothing is lost."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from kit.market import asked, await_that, books, job_of, running_market

from hansa.node.commands.demo_nodes import DemoNodes
from hansa.node.commands.first_setup import Wishes, set_up
from hansa.node.isolation.process_tree import descendants

pytestmark = pytest.mark.slow
JOB = """\
name = "counting"
entry = "count.py:count"
{extra}
[resources]
kind = "{kind}"
cores = 0.5
memory = "600 MiB"
disk = "64 MiB"

[limits]
wall = "3 min"
stall = "60 s"

[budget]
total = "{total}"
price_ceiling_per_hour = "{ceiling}"

[tender]
bids = "2 s"
meter = "1 s"
"""
CODE = """
import time

import numpy as np


def count(ctx):
    state = {"sum": np.zeros(2)}
    while ctx.round < 1_000:
        time.sleep(0.1)
        state = ctx.sync({"sum": state["sum"] + 1})
        print(f"round {ctx.round}\\nsum {state['sum'][0]:g}")
        ctx.report(step=ctx.round, loss=1.0 / ctx.round)
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[DemoNodes]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with running_market("0.30") as made:
            yield made
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write(tmp_path)


def write(directory: Path, *, kind: str = "cpu", total: str = "1.00", ceiling: str = "1.00", extra: str = "") -> Path:
    (directory / "count.py").write_text(CODE)
    text = JOB.format(kind=kind, total=total, ceiling=ceiling, extra=extra)
    (directory / "job.toml").write_text(text)
    return directory


def hansa(data_dir: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """The command as a user types it."""
    command = [sys.executable, "-m", "hansa", *map(str, arguments), "--data", str(data_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def complaint(done: "subprocess.CompletedProcess[str]") -> tuple[str, str]:
    """The one line and the hint of a mistake that was found."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    line, hint = done.stderr.splitlines()
    assert line.startswith("hansa: ")
    assert hint.startswith("hint: ")
    return line, hint


def jobs_of(data_dir: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(hansa(data_dir, "jobs", "--json").stdout)["jobs"]
    return found


def test_what_is_wrong_in_a_job_file_is_named_with_its_place_and_nothing_is_submitted(
    nodes: DemoNodes, job: Path, tmp_path: Path
) -> None:
    data = nodes.buyer.made.config.data_dir
    before = jobs_of(data)
    line, hint = complaint(hansa(data, "submit", tmp_path / "nowhere.toml"))
    assert "nowhere.toml" in line
    write(tmp_path, extra="sharts = 3\n")
    line, hint = complaint(hansa(data, "submit", job))
    assert "job.toml:3: " in line
    assert "sharts" in line
    assert "shards" in hint, "it knows what was meant"
    write(tmp_path, ceiling="-0.50")
    line, hint = complaint(hansa(data, "submit", job))
    number = (job / "job.toml").read_text().splitlines().index('price_ceiling_per_hour = "-0.50"') + 1
    assert f"job.toml:{number}: " in line
    assert "price_ceiling_per_hour" in line
    (job / "count.py").write_text("def count(ctx:\n")
    write_only_toml = JOB.format(kind="cpu", total="1.00", ceiling="1.00", extra="")
    (job / "job.toml").write_text(write_only_toml)
    line, hint = complaint(hansa(data, "submit", job))
    assert "count.py:1" in line
    assert jobs_of(data) == before


def test_a_job_over_the_owners_limit_is_refused_by_the_daemon(nodes: DemoNodes, tmp_path: Path) -> None:
    data = nodes.buyer.made.config.data_dir
    before = jobs_of(data)
    line, hint = complaint(hansa(data, "submit", write(tmp_path, total="100.01")))
    assert "100.0" in line
    assert "max_job_budget" in hint
    assert jobs_of(data) == before


def test_without_a_daemon_it_says_how_to_start_one(tmp_path: Path) -> None:
    line, hint = complaint(hansa(tmp_path / "nobody", "jobs"))
    assert "hansa init" in hint
    set_up(tmp_path / "asleep", Wishes(listen=("/ip4/127.0.0.1/tcp/0",), metrics_port=0))
    job = tmp_path / "job"  # beside the node, whose keys go nowhere
    job.mkdir()
    for command in (("jobs",), ("submit", write(job)), ("watch", "ab" * 32), ("balance", "--json")):
        line, hint = complaint(hansa(tmp_path / "asleep", *command))
        assert "no daemon is running" in line
        assert "hansa node run" in hint


def test_a_job_that_is_not_known_is_named(nodes: DemoNodes) -> None:
    data = nodes.buyer.made.config.data_dir
    for command in ("watch", "logs", "results", "cancel"):
        line, _ = complaint(hansa(data, command, "ab" * 32))
        assert "abab" in line
        complaint(hansa(data, command, "../v1/node"))


@pytest.mark.parametrize(
    ("wish", "reason", "relaxation"),
    [
        ({"kind": "gpu"}, "no device here meets kind", "kind = cpu"),
        ({"ceiling": "0.10"}, "above your ceiling", "price ceiling ≥ 0.300000"),
    ],
)
def test_a_job_that_nobody_can_serve_fails_and_every_provider_says_why(
    nodes: DemoNodes, tmp_path: Path, wish: dict[str, str], reason: str, relaxation: str
) -> None:
    data = nodes.buyer.made.config.data_dir
    done = hansa(data, "submit", "--watch", "--json", write(tmp_path, **wish))
    assert done.returncode == 1, done
    views = [json.loads(line) for line in done.stdout.splitlines()]
    last = views[-1]
    assert last["phase"] == "failed"
    assert last["reason"].startswith("unfilled: ")
    (decline,) = last["tenders"][0]["declines"]
    assert decline["provider"] == nodes.providers[0].account
    assert reason in decline["reason"]
    assert decline["relaxation"] == relaxation
    assert last["settled"]
    assert Decimal(last["spend"]["vouched"]) == 0
    shown = hansa(data, "watch", last["job"])
    assert shown.returncode == 1
    assert reason in " ".join(shown.stdout.split()), "a person sees it too"


def test_a_cancelled_job_stops_frees_the_devices_and_pays_for_what_was_delivered(nodes: DemoNodes, job: Path) -> None:
    buyer, provider = nodes.buyer, nodes.providers[0]
    data = buyer.made.config.data_dir
    before = {node.name: books(node) for node in (buyer, provider)}
    idle = below(provider)
    done = hansa(data, "submit", "--json", job)
    submitted: str = json.loads(done.stdout)["job"]

    def spent() -> Decimal:
        view = job_of(nodes, submitted)
        return Decimal(view["spend"]["vouched"]) if view else Decimal(0)

    await_that(lambda: spent() > 0, 40, "something was delivered and vouched for")
    assert devices(provider) == ["leased"]
    assert below(provider) > idle, "a sandbox works"
    began = time.monotonic()
    answer = json.loads(hansa(data, "cancel", submitted, "--json").stdout)
    assert answer == {"job": submitted, "phase": "cancelled"}
    await_that(lambda: devices(provider) == ["free"], 15, "the device is free again")
    await_that(lambda: below(provider) == idle, 10, "nothing of the run is left")
    await_that(lambda: job_of(nodes, submitted)["settled"], 15, "the channel is closed by both")
    took_s = time.monotonic() - began
    view = job_of(nodes, submitted)
    assert view["reason"] == "cancelled by its developer"
    (paid,) = view["spend"]["by_provider"]
    assert paid["channel_phase"] == "closed"
    after = {node.name: books(node) for node in (buyer, provider)}
    earned = Decimal(after[provider.name]["earned"]) - Decimal(before[provider.name]["earned"])
    gone = Decimal(after[buyer.name]["spent"]) - Decimal(before[buyer.name]["spent"])
    assert earned == gone == spent() == Decimal(paid["vouched"]) > 0
    ran_s = Decimal((view["ended_ms"] - view["submitted_ms"]) / 1000)
    assert earned <= Decimal("0.30") / 3600 * ran_s, "and for no more than the time it could have run"
    assert Decimal(after[buyer.name]["sum"]) == Decimal(after[provider.name]["sum"]) == 0
    assert took_s < 30
    line, _ = complaint(hansa(data, "cancel", submitted))
    assert "cancelled" in line
    said = hansa(data, "logs", submitted).stdout.splitlines()
    assert said[-1].startswith("[0] "), "every line is a line of its own"
    assert "[0] round 1" in said
    assert "[0] sum 1" in said
    assert "there are no outputs" in hansa(data, "results", submitted).stdout


def devices(node: Any) -> list[str]:
    return [device["state"] for device in asked(node, "/v1/node")["devices"]]


def below(node: Any) -> int:
    """How many processes descend from a node's daemon."""
    return len(descendants(node.process.pid))
