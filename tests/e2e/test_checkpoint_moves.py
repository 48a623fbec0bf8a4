"""What an abrupt loss costs, in steps; and a shard that goes on although its buyer lost its disk."""

import shutil
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from kit.market import asked, await_job, await_that, job_of, kill, running_market, submit

INTERVAL = 20
JOB = """
name = "stepping"
entry = "step.py:work"
shards = {shards}

[parameters]
last = {last}
interval = {interval}

[resources]
kind = "cpu"
cores = 0.5
memory = "600 MiB"
disk = "64 MiB"

[limits]
wall = "5 min"
stall = "60 s"
silence = "6 s"

[checkpoints]
mirror = {mirror}

[data]
sealed = {sealed}

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


def work(ctx):
    state = ctx.restore() or {"step": 0, "weights": np.zeros(500_000)}
    begun, weights = state["step"], np.array(state["weights"])
    for step in range(begun + 1, ctx.parameters["last"] + 1):
        time.sleep(0.1)
        weights[step] = step
        ctx.report(step=step, begun=begun)
        if step % ctx.parameters["interval"] == 0:
            ctx.checkpoint({"step": step, "weights": weights})
    (ctx.outputs / "sum.json").write_text(json.dumps(float(weights.sum())))
"""


def write_job(directory: Path, *, shards: int, last: int, mirror: bool, sealed: bool = False) -> None:
    (directory / "step.py").write_text(textwrap.dedent(CODE))
    said = {"mirror": str(mirror).lower(), "sealed": str(sealed).lower()}
    text = JOB.format(shards=shards, last=last, interval=INTERVAL, **said)
    (directory / "job.toml").write_text(text)


def shard_of(nodes: Any, job: str, number: int = 0) -> dict[str, Any]:
    """A shard's view, or an empty one."""
    shards = job_of(nodes, job).get("shards", [])
    return shards[number] if shards else {}


def saved_step(shard: dict[str, Any]) -> int:
    return (shard.get("checkpoint") or {"step": 0})["step"]


def begun_at(shard: dict[str, Any]) -> int:
    """The step from which a shard's newest run went on."""
    return int(shard["metrics"]["begun"])


def test_an_abrupt_loss_costs_an_interval_and_what_was_on_its_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(tmp_path, shards=1, last=100, mirror=False)
    with running_market("0.30", "0.45") as nodes:
        job = submit(nodes, tmp_path)
        await_that(lambda: saved_step(shard_of(nodes, job)) >= 2 * INTERVAL, 90, "two checkpoints are here")

        def is_worst() -> bool:
            """Most of an interval was worked since the newest checkpoint."""
            shard = shard_of(nodes, job)
            return int(shard.get("step", 0)) >= saved_step(shard) + INTERVAL * 3 // 4

        await_that(is_worst, 30, "an interval is nearly over")
        kill(nodes.providers[0])
        time.sleep(1.0)  # what it had sent is heard
        left = shard_of(nodes, job)
        reached, saved = int(left["step"]), saved_step(left)
        view = await_job(nodes, job, 90)
        assert view["phase"] == "succeeded", view["reason"]
        shard = view["shards"][0]
        assert shard["attempts"] == 2
        lost = reached - begun_at(shard)
        with capsys.disabled():
            print(f"\nsteps lost at kill -9: {lost}, with a checkpoint every {INTERVAL} steps")
        assert begun_at(shard) == saved >= 2 * INTERVAL
        # One interval, and at the most the next checkpoint too, where the kill met it on its way to the buyer.
        assert 0 < lost <= 2 * INTERVAL


@pytest.mark.long
@pytest.mark.parametrize("sealed", [False, True], ids=["open", "sealed"])
def test_a_shard_goes_on_from_its_mirror_though_its_buyer_lost_all_blobs_and_its_provider_died(
    tmp_path: Path, *, sealed: bool
) -> None:
    write_job(tmp_path, shards=2, last=500, mirror=True, sealed=sealed)
    with running_market("0.30", "0.31", "0.60") as nodes:
        job = submit(nodes, tmp_path)
        of_account = {node.account: node for node in nodes.providers}

        def is_mirrored() -> bool:
            shard = shard_of(nodes, job)
            checkpoint = shard.get("checkpoint") or {}
            return saved_step(shard) >= INTERVAL and checkpoint.get("mirror") in set(of_account) - {shard["provider"]}

        await_that(is_mirrored, 90, "the other provider holds the newest checkpoint of shard 0")
        lost = of_account[shard_of(nodes, job)["provider"]]
        kill(nodes.buyer)
        kill(lost)
        shutil.rmtree(nodes.buyer.made.config.data_dir / "blobs")
        nodes.start_one(nodes.buyer)
        await_that(lambda: asked(nodes.buyer, "/v1/balance") is not None, 60, "the buyer is back")

        def goes_on() -> bool:
            shard = shard_of(nodes, job)
            return shard.get("attempts") == 2 and "begun" in shard["metrics"] and begun_at(shard) >= INTERVAL

        await_that(goes_on, 120, "shard 0 goes on elsewhere from its checkpoint")
        view = await_job(nodes, job, 150)
        assert view["phase"] == "succeeded", view["reason"]
        assert [shard["attempts"] for shard in view["shards"]] == [2, 1]
