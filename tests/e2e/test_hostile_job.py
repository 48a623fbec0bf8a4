"""A job that lies to its provider's daemon in its runner's name: real daemons and money, an honest job beside it."""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from integration.attack_scene import ATTACKS
from integration.sandbox_harness import need_sandbox
from kit.market import asked, await_job, await_that, books, job_of, providers_known, submit

from hansa.node.commands.demo_nodes import DemoNodes

pytestmark = pytest.mark.slow
JOB = """
name = "{name}"
entry = "{entry}"
shards = 1

[parameters]
{parameters}

[resources]
kind = "cpu"
cores = 0.5
memory = "800 MiB"
disk = "64 MiB"

[limits]
wall = "4 min"
stall = "30 s"
silence = "20 s"
retries = 0
outputs = "16 MiB"
state = "16 MiB"

[budget]
total = "1.00"

[tender]
bids = "1 s"
meter = "1 s"
"""
HONEST = """
import time


def main(ctx):
    for step in range(1, ctx.parameters["steps"]):
        time.sleep(0.1)
        ctx.report(step=step, loss=1 / step)
    (ctx.outputs / "steps.txt").write_text(str(step))
"""
FORGERIES = {
    "words": ("failed", "ended with an error"),
    "path_outside": ("failed", "said what it must not"),
    "thousand_and_one_files": ("failed", "said what it must not"),
    "floods": ("succeeded", ""),
    "finished_and_more": ("succeeded", ""),
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[DemoNodes]:
    need_sandbox()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with DemoNodes(prices=("0.30",)) as found:
            found.make()
            # One provider with room for two, so that both jobs are run by the same daemon.
            config = Path(found.providers[0].made.config.data_dir, "config.toml")
            text = config.read_text()
            assert "cpu_slots = 1" in text
            config.write_text(text.replace("cpu_slots = 1", "cpu_slots = 2"))
            found.start()
            await_that(lambda: [len(one["devices"]) for one in providers_known(found)] == [2], 90, "it lends two")
            yield found
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def a_job(nodes: DemoNodes, directory: Path, name: str, entry: str, **parameters: object) -> str:
    directory.mkdir()
    given = "\n".join(f"{key} = {json.dumps(value)}" for key, value in parameters.items())
    (directory / "job.toml").write_text(JOB.format(name=name, entry=entry, parameters=given))
    for path in ATTACKS.glob("*.py"):
        shutil.copy(path, directory / path.name)
    (directory / "honest.py").write_text(HONEST)
    return submit(nodes, directory)


def test_lies_of_every_kind_cost_nobody_but_the_liar(nodes: DemoNodes, tmp_path: Path) -> None:
    began_s = time.monotonic()
    honest = a_job(nodes, tmp_path / "honest", "honest", "honest.py:main", steps=100_000)
    await_that(lambda: step_of(nodes, honest) >= 5, 60, "the honest job is at work")
    lease = job_of(nodes, honest)["shards"][0]["lease"]
    for name, (phase, words) in FORGERIES.items():
        job = a_job(nodes, tmp_path / name, name, "forger.py:main", forgery=name)
        view = await_job(nodes, job, 60)
        assert view["phase"] == phase, (name, view["reason"])
        assert words in view["reason"], (name, view["reason"])
        assert all(character.isprintable() or character == "\n" for character in view["reason"])
        paid = sum(Decimal(entry["vouched"]) for entry in view["spend"]["by_provider"])
        assert paid <= Decimal("0.30") * Decimal(time.monotonic() - began_s) / 3600, "no step buys time"
        nodes.check_alive()
    before = step_of(nodes, honest)
    await_that(lambda: step_of(nodes, honest) > before + 5, 30, "the honest job goes on")
    assert job_of(nodes, honest)["shards"][0]["attempts"] == 1
    assert job_of(nodes, honest)["shards"][0]["lease"] == lease
    nodes.buyer.daemon.post(f"/v1/jobs/{honest}/cancel")
    await_job(nodes, honest, 40)
    await_that(lambda: channels_closed(nodes), 40, "every channel is closed by both signatures")
    elapsed_s = time.monotonic() - began_s
    spent, earned = Decimal(books(nodes.buyer)["spent"]), Decimal(books(nodes.providers[0])["earned"])
    assert spent == earned > 0
    assert spent <= 2 * Decimal("0.30") * Decimal(elapsed_s) / 3600
    assert all(Decimal(books(node)["sum"]) == 0 for node in nodes.nodes)


def step_of(nodes: DemoNodes, job: str) -> int:
    shards = job_of(nodes, job).get("shards") or [{"step": 0}]
    found: int = shards[0]["step"]
    return found


def channels_closed(nodes: DemoNodes) -> bool:
    balance = asked(nodes.buyer, "/v1/balance", {"channels": []})
    return bool(balance["channels"]) and all(channel["phase"] == "closed" for channel in balance["channels"])
