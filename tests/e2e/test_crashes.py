"""A daemon dies in the middle of a job, whichever it is: the job is done all the same, and the books balance."""

import textwrap
import time
from decimal import Decimal
from pathlib import Path

import pytest
from kit.market import asked, await_job, await_that, books, job_of, kill, running_market, submit
from kit.traces import Traces

from hansa.node.commands.demo_nodes import DemoNodes

JOB = """
name = "counting"
entry = "count.py:count"
shards = {shards}
workers = 1

[parameters]
rounds = {rounds}

[resources]
kind = "cpu"
cores = 0.5
memory = "600 MiB"
disk = "64 MiB"

[limits]
wall = "5 min"
stall = "60 s"
silence = "{silence}"
round = "20 s"
retries = 4

[budget]
total = "1.00"

[tender]
bids = "2 s"
meter = "1 s"
"""
CODE = """
import json
import time

import numpy as np


def count(ctx):
    state = ctx.restore()
    state = {"sum": np.zeros(4)} if state is None else state
    while ctx.round < ctx.parameters["rounds"]:
        time.sleep(0.15)
        state = {"sum": state["sum"] + 1}
        state = ctx.sync(state)
        ctx.report(step=ctx.round, loss=1.0 / ctx.round)
        if ctx.round % 4 == 0:
            ctx.checkpoint(state)
    (ctx.outputs / "sum.json").write_text(json.dumps(state["sum"].tolist()))
"""


@pytest.fixture
def job_directory(tmp_path: Path) -> Path:
    (tmp_path / "count.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "job.toml").write_text(JOB.format(shards=2, rounds=24, silence="25 s"))
    return tmp_path


def test_a_killed_buyer_comes_back_and_the_job_is_done_and_paid(job_directory: Path) -> None:
    with running_market("0.30", "0.45") as nodes:
        job = submit(nodes, job_directory)
        await_that(lambda: job_of(nodes, job).get("round", 0) >= 5, 60, "five rounds are done")
        kill(nodes.buyer)
        time.sleep(1.0)
        nodes.start_one(nodes.buyer)
        view = await_job(nodes, job, 90)
        assert view["phase"] == "succeeded", view["reason"]
        assert [shard["attempts"] for shard in view["shards"]] == [1, 1], "the runs lived on without their buyer"
        check_books(nodes, job)


def test_a_killed_provider_comes_back_and_the_job_is_done_and_paid(job_directory: Path, tmp_path: Path) -> None:
    traces = Traces(temporary=tmp_path, scratch=tmp_path)
    with running_market("0.30", "0.45") as nodes:
        job = submit(nodes, job_directory)
        await_that(lambda: job_of(nodes, job).get("round", 0) >= 9, 60, "nine rounds are done")
        traces.look(nodes.providers[0])
        assert "bwrap" in traces.survivors().values()
        kill(nodes.providers[0])
        await_that(lambda: not traces.survivors(), 5, "nothing of the killed provider's sandboxes is left")
        nodes.start_one(nodes.providers[0])
        view = await_job(nodes, job, 90)
        assert view["phase"] == "succeeded", view["reason"]
        check_books(nodes, job)


def test_a_provider_that_never_comes_back_is_replaced_and_paid_for_what_it_delivered(job_directory: Path) -> None:
    (job_directory / "job.toml").write_text(JOB.format(shards=2, rounds=24, silence="6 s"))
    with running_market("0.30", "0.45", "0.60") as nodes:
        job = submit(nodes, job_directory)
        await_that(lambda: checkpoint_round(nodes, job, 0) >= 8, 60, "shard 0 has a checkpoint of round 8")
        lost = nodes.providers[0]
        before = Decimal(books(lost)["earned"])
        kill(lost)
        view = await_job(nodes, job, 90)
        assert view["phase"] == "succeeded", view["reason"]
        shard = view["shards"][0]
        assert shard["attempts"] == 2
        assert shard["provider"] == nodes.providers[2].account
        paid = {entry["provider"]: Decimal(entry["vouched"]) for entry in view["spend"]["by_provider"]}
        assert paid[lost.account] >= before > 0, "what it delivered with evidence stays paid"
        assert Decimal(books(nodes.buyer)["sum"]) == 0
        nodes.start_one(lost)
        await_that(lambda: channels_closed(nodes), 30, "the one that came back late agrees to the same sum")
        # What it had delivered and not yet been paid for is paid now, and nothing for the time in which it was gone:
        # it worked some seconds at 0.30 an hour.
        by_provider = job_of(nodes, job)["spend"]["by_provider"]
        in_the_end = sum(Decimal(entry["vouched"]) for entry in by_provider if entry["provider"] == lost.account)
        assert Decimal(books(lost)["earned"]) == in_the_end
        assert paid[lost.account] <= in_the_end < Decimal("0.30") * 15 / 3600
        check_books(nodes, job)


def checkpoint_round(nodes: DemoNodes, job: str, shard: int) -> int:
    shards = job_of(nodes, job).get("shards", [])
    return (shards[shard]["checkpoint"] or {"round": 0})["round"] if shards else 0


def channels_closed(nodes: DemoNodes) -> bool:
    balance = asked(nodes.buyer, "/v1/balance", {"channels": []})
    return bool(balance["channels"]) and all(channel["phase"] == "closed" for channel in balance["channels"])


def check_books(nodes: DemoNodes, job: str) -> None:
    await_that(lambda: channels_closed(nodes), 30, "every channel is closed by both signatures")
    spent = Decimal(books(nodes.buyer)["spent"])
    paid = {entry["provider"]: Decimal(0) for entry in job_of(nodes, job)["spend"]["by_provider"]}
    for entry in job_of(nodes, job)["spend"]["by_provider"]:
        paid[entry["provider"]] += Decimal(entry["vouched"])
    earned = {node.account: Decimal(books(node)["earned"]) for node in nodes.providers}
    assert {account: amount for account, amount in earned.items() if amount} == paid
    assert sum(earned.values()) == spent > 0
    for node in nodes.nodes:
        assert Decimal(books(node)["sum"]) == 0
    for node in nodes.providers:
        for channel in books(node)["channels"]:
            assert channel["vouched"] == channel["metered"]
