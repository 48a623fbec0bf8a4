"""An owner takes a device back from a run, over real daemons: the job goes on elsewhere, and everybody is paid."""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from integration.sandbox_harness import need_sandbox
from kit.market import asked, await_job, await_that, books, job_of, kill, running_market, submit

from hansa.node.commands.demo_nodes import DemoNode, DemoNodes

EVERY = 8
JOB = """
name = "counting"
entry = "count.py:count"

[resources]
kind = "cpu"
cores = 0.5
memory = "600 MiB"
disk = "64 MiB"

[limits]
wall = "5 min"
stall = "60 s"
silence = "25 s"

[retry]
most = 0

[budget]
total = "1.00"

[tender]
bids = "2 s"
meter = "1 s"
"""
CODE = """
import time


def count(ctx):
    state = ctx.restore()
    step = 0 if state is None else int(state["step"])
    print("begins after", step, flush=True)
    while step < 60:
        time.sleep(0.15)
        step += 1
        print("step", step, flush=True)
        ctx.report(step=step)
        if step % 8 == 0:
            ctx.checkpoint({"step": step})
    (ctx.outputs / "end.txt").write_text(str(step))
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[DemoNodes]:
    need_sandbox()
    with running_market("0.30", "0.45") as made:
        yield made


@pytest.fixture
def job(nodes: DemoNodes, tmp_path: Path) -> str:
    """A job in the middle of its first lease, with a checkpoint at its buyer's. No retry is left to it."""
    (tmp_path / "count.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "job.toml").write_text(JOB)
    await_that(lambda: all(state_of(node) == "free" for node in nodes.providers), 30, "every device is free")
    submitted = submit(nodes, tmp_path)

    def has_checkpoint() -> bool:
        shards = job_of(nodes, submitted).get("shards", [])
        return bool(shards) and shards[0]["checkpoint"] is not None

    await_that(has_checkpoint, 60, "the first checkpoint is at the buyer's")
    return submitted


def hansa(node: DemoNode, *arguments: str) -> Any:
    """What a command says, as JSON."""
    command = [sys.executable, "-m", "hansa", *arguments, "--data", str(node.daemon.data_dir), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def state_of(node: DemoNode) -> str:
    """How the one device of a provider stands; empty while its daemon is away."""
    devices = asked(node, "/v1/node", {"devices": []})["devices"]
    return str(devices[0]["state"]) if devices else ""


def provider_of(nodes: DemoNodes, job: str) -> DemoNode:
    account = job_of(nodes, job)["shards"][0]["provider"]
    return next(node for node in nodes.providers if node.account == account)


def check_the_move(nodes: DemoNodes, job: str, before: DemoNode, *, redone: int = EVERY, unheard: int = 0) -> None:
    """It went on elsewhere from a checkpoint near its end, at no retry, and both are paid what they delivered.

    ``redone`` steps at most were done twice, and of ``unheard`` steps the lines may be lost.
    """
    view = await_job(nodes, job, 90)
    assert view["phase"] == "succeeded", view["reason"]
    (shard,) = view["shards"]
    assert (shard["attempts"], shard["moves"], shard["losses"]) == (2, 1, 0)
    assert shard["provider"] != before.account
    log = list(nodes.buyer.daemon.lines(f"/v1/jobs/{job}/logs"))
    begun = [index for index, line in enumerate(log) if "begins after" in line["text"]]
    assert len(begun) == 2
    last = max(int(number) for line in log[: begun[1]] for number in re.findall(r"step (\d+)", line["text"]))
    goes_on = int(re.findall(r"begins after (\d+)", log[begun[1]]["text"])[0])
    assert -unheard <= last - goes_on <= redone, f"it went on after step {goes_on}, and had come to {last}"
    stood_ms = log[begun[1]]["at_ms"] - log[begun[1] - 1]["at_ms"]
    print(f"from step {last} to going on after step {goes_on} the shard stood still for {stood_ms} ms")
    await_that(lambda: job_of(nodes, job)["settled"], 30, "every channel is closed")
    paid = {entry["provider"]: Decimal(entry["vouched"]) for entry in job_of(nodes, job)["spend"]["by_provider"]}
    assert all(amount > 0 for amount in paid.values())
    assert len(paid) == 2
    for node in (*nodes.providers, nodes.buyer):
        assert Decimal(books(node)["sum"]) == 0


def test_a_run_leaves_at_its_next_checkpoint_and_the_shard_moves_without_a_retry(nodes: DemoNodes, job: str) -> None:
    before = provider_of(nodes, job)
    told = hansa(before, "node", "reclaim", "--all", "--why", "rendering tonight")
    assert [leaving["early"] for leaving in told["leaving"]] == [False]
    await_that(lambda: state_of(before) == "withdrawn", 10, "the run has left long before its minute is over")
    (device,) = hansa(before, "node", "status")["devices"]
    assert device["withheld"] == ["rendering tonight"]
    check_the_move(nodes, job, before)
    assert state_of(before) == "withdrawn", "until its owner says otherwise"
    hansa(before, "node", "return", "--all")
    assert state_of(before) == "free"


@pytest.mark.slow
def test_a_provider_that_is_killed_in_the_middle_of_the_notice_has_left_and_stays_withdrawn(
    nodes: DemoNodes, job: str
) -> None:
    before = provider_of(nodes, job)
    hansa(before, "node", "reclaim", "--all")
    kill(before)
    nodes.start_one(before)
    await_that(lambda: state_of(before) == "withdrawn", 60, "the device is withdrawn again")
    # A checkpoint that was just on its way out of the sandbox may be lost with it; or what was printed just before it.
    check_the_move(nodes, job, before, redone=EVERY + 2, unheard=EVERY)
    hansa(before, "node", "return", "--all")


@pytest.mark.slow
def test_a_device_taken_at_once_is_free_of_its_run_at_once(nodes: DemoNodes, job: str) -> None:
    before = provider_of(nodes, job)
    told = hansa(before, "node", "reclaim", "--all", "--notice", "0s")
    assert [leaving["early"] for leaving in told["leaving"]] == [True], "a minute was promised"
    await_that(lambda: state_of(before) == "withdrawn", 5, "the run is gone")
    check_the_move(nodes, job, before)
    assert job_of(nodes, job)["shards"][0]["kind"] == "reclaimed-early"
    hansa(before, "node", "return", "--all")
