"""A sealed job on real daemons: everywhere but in a run's own folder lies nothing that anybody could read."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
from kit.market import asked, await_job, await_that, job_of, kill, running_market, submit

from hansa.node.commands.cli_jobs import _fetch
from hansa.node.commands.demo_nodes import DemoNode, DemoNodes

INTERVAL = 10
JOB = """
name = "quiet"
entry = "step.py:work"
shards = {shards}

[parameters]
last = {last}
interval = {interval}

[inputs]
"data/all.txt" = "../all.txt"
"data/own.txt" = "../own-{{shard}}.txt"

[data]
sealed = true

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

[budget]
total = "1.00"

[tender]
bids = "2 s"
meter = "1 s"
"""
CODE = """
import time

import numpy as np

IN_THE_CODE = "words-in-the-code"


def words(text):
    return np.frombuffer(f"{text} " .encode() * 50, dtype=np.uint8)


def work(ctx):
    state = ctx.restore() or {"step": 0, "x": np.zeros(10)}
    begun, x = int(state["step"]), np.array(state["x"])
    mine = (ctx.inputs / "data/own.txt").read_text()
    assert mine.split()[-1] == str(ctx.shard), mine
    for step in range(begun + 1, ctx.parameters["last"] + 1):
        time.sleep(0.1)
        ctx.report(step=step, begun=begun)
        if step % ctx.parameters["interval"] == 0:
            said = ctx.sync({"x": x + 1, "words": words("words-of-a-round").astype(np.float32)})
            x = np.array(said["x"])
            ctx.checkpoint({"step": step, "x": x, "words": words("words-of-a-checkpoint")})
    (ctx.outputs / "deep").mkdir()
    all_of_it = (ctx.inputs / "data/all.txt").read_text()
    (ctx.outputs / "deep" / "said.txt").write_text("words-of-an-output " + mine + all_of_it)
"""
SECRETS = (
    b"words-in-the-code",
    b"words-of-all-shards",
    b"words-of-one-shard",
    b"words-of-a-checkpoint",
    b"words-of-an-output",
)


def write_job(directory: Path, *, shards: int, last: int, mirror: bool) -> Path:
    job = directory / "job"
    job.mkdir()
    (job / "step.py").write_text(textwrap.dedent(CODE))
    text = JOB.format(shards=shards, last=last, interval=INTERVAL, mirror=str(mirror).lower())
    (job / "job.toml").write_text(text)
    (directory / "all.txt").write_text("words-of-all-shards " * 20_000)
    for shard in range(shards):
        (directory / f"own-{shard}.txt").write_text(f"words-of-one-shard {shard}")
    return job


def readable_in(node: DemoNode) -> set[tuple[str, bytes]]:
    """Which files of a node hold which of the words, by the folder of its data directory that they are in."""
    data = node.made.config.data_dir
    found = set()
    for path in data.rglob("*"):
        try:
            content = path.read_bytes() if path.is_file() else b""
        except OSError:
            continue  # it went meanwhile
        found |= {(path.relative_to(data).parts[0], word) for word in SECRETS if word in content}
    return found


def fetched(nodes: DemoNodes, view: dict[str, Any], target: Path) -> list[Path]:
    """Where ``hansa results`` puts a job's outputs."""
    return [_fetch(nodes.buyer.daemon, view, output, target) for output in view["outputs"]]


def test_a_sealed_job_ends_well_and_its_words_are_nowhere_but_in_its_runs_and_its_results(tmp_path: Path) -> None:
    job_folder = write_job(tmp_path, shards=2, last=40, mirror=True)
    with running_market("0.30", "0.31") as nodes:
        everybody = [*nodes.providers, nodes.buyer]
        job = submit(nodes, job_folder)
        known = {node.account: node for node in nodes.providers}

        def is_mirrored() -> bool:
            view = job_of(nodes, job)
            checkpoint = (view.get("shards") or [{}])[0].get("checkpoint") or {}
            return checkpoint.get("mirror") in known

        await_that(is_mirrored, 90, "a provider holds the other shard's checkpoint")
        for node in nodes.providers:
            held = readable_in(node)
            assert {folder for folder, _ in held} == {"runs"}
            # What is in the code says all words but those of the inputs, so these two tell that inputs were laid out.
            assert {b"words-of-all-shards", b"words-of-one-shard"} <= {word for _, word in held}
        assert readable_in(nodes.buyer) == set()
        view = await_job(nodes, job, 120)
        assert view["phase"] == "succeeded", view["reason"]
        assert view["sealed"] is True
        await_that(lambda: not any(map(readable_in, everybody)), 20, "nobody holds a word of it any more")
        assert view["round"] >= 4
        written = fetched(nodes, view, tmp_path / "results")
        assert [path.relative_to(tmp_path / "results").as_posix() for path in written] == [
            "shard-0/deep/said.txt",
            "shard-1/deep/said.txt",
        ]
        for shard, path in enumerate(written):
            text = path.read_text()
            assert text.startswith(f"words-of-an-output words-of-one-shard {shard}words-of-all-shards ")
            assert len(text) > 20_000 * 20
        assert not any(map(readable_in, everybody)), "reading them left nothing behind"


@pytest.mark.long
def test_a_sealed_shard_goes_on_elsewhere_when_its_provider_dies_and_its_buyer_is_restarted(tmp_path: Path) -> None:
    job_folder = write_job(tmp_path, shards=1, last=120, mirror=False)
    with running_market("0.30", "0.45") as nodes:
        job = submit(nodes, job_folder)

        def saved() -> int:
            shard = (job_of(nodes, job).get("shards") or [{}])[0]
            return int((shard.get("checkpoint") or {"step": 0})["step"])

        await_that(lambda: saved() >= 2 * INTERVAL, 90, "two checkpoints are here")
        kill(nodes.buyer)
        nodes.start_one(nodes.buyer)
        await_that(lambda: asked(nodes.buyer, "/v1/balance") is not None, 60, "the buyer is back")
        kill(nodes.providers[0])
        view = await_job(nodes, job, 150)
        assert view["phase"] == "succeeded", view["reason"]
        (shard,) = view["shards"]
        assert shard["attempts"] == 2
        assert int(shard["metrics"]["begun"]) >= 2 * INTERVAL
        (written,) = fetched(nodes, view, tmp_path / "results")
        assert written.read_text().startswith("words-of-an-output")
        for node in (nodes.providers[1], nodes.buyer):
            await_that(lambda node=node: not readable_in(node), 20, "nothing is left to read")  # type: ignore[misc]
        # Killed in the middle, it could clear nothing away. It does so as it starts again.
        assert {folder for folder, _ in readable_in(nodes.providers[0])} <= {"runs"}
        nodes.start_one(nodes.providers[0])
        await_that(lambda: not readable_in(nodes.providers[0]), 60, "what lay open where it died is gone")
