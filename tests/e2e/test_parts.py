"""Two buyers' jobs at once on halves of one device: real daemons, real sandboxes, and each pays for its half."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.market import asked, await_that, providers_known

from hansa.node.commands.cli_jobs import submit_job
from hansa.node.commands.demo_nodes import DemoNode, DemoNodes
from hansa.node.settings.config import FILE_NAME
from hansa.proto.units import amount_for, format_amount, price_per_hour_to_e18

pytestmark = pytest.mark.slow
PRICE = "36.00"
JOB = """\
name = "{name}"
entry = "work.py:work"

[resources]
kind = "cpu"
cores = 0.5
memory = "600 MiB"
shared_memory = "128 MiB"
{share}

[limits]
wall = "6 min"

[budget]
total = "10.00"
price_ceiling_per_hour = "40.00"

[tender]
bids = "2 s"
meter = "1 s"
queue_timeout = "4 min"
"""
CODE = """
import time


def work(ctx):
    for step in range(%d):
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            sum(range(1000))
        ctx.report(step=step)
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[DemoNodes]:
    """A provider with one slot that it lends in parts, and two buyers."""
    with DemoNodes(prices=(PRICE, PRICE)) as made:
        made.make()
        lines = (
            ("share = {}", 'share = { least = "25 %", tenants = 4 }'),
            ('memory_per_slot = "1 GiB"', 'memory_per_slot = "2 GiB"'),
        )
        change(made.providers[0], *lines)
        change(made.providers[1], ("[provider]\n", "[provider]\n"), ("enabled = true", "enabled = false"))
        made.start()
        await_that(lambda: len(providers_known(made)) == 1, 90, "the buyer knows the provider")
        await_that(
            lambda: len(asked(made.providers[1], "/v1/providers", {"providers": []})["providers"]) == 1,
            90,
            "so do both",
        )
        yield made


def change(node: DemoNode, *lines: tuple[str, str]) -> None:
    file = node.made.config.data_dir / FILE_NAME
    text = file.read_text()
    for before, after in lines:
        assert before in text, before
        text = text.replace(before, after, 1)
    file.write_text(text)


def submit(node: DemoNode, directory: Path, share: str, steps: int) -> str:
    directory.mkdir()
    (directory / "job.toml").write_text(JOB.format(name=directory.name, share=share))
    (directory / "work.py").write_text(CODE % steps)
    return submit_job(node.daemon, directory, say=lambda _line: None)


def running(provider: DemoNode) -> list[dict]:
    return [one for one in asked(provider, "/v1/node", {}).get("leases", []) if one["phase"] == "running"]


def quotas() -> list[float]:
    """Of each run's control group, in cores, where this machine lets them be seen."""
    found = []
    for name in ("cpu.max", "cpu.cfs_quota_us"):
        for file in Path("/sys/fs/cgroup").glob(f"**/hansa-*/{name}"):
            with contextlib.suppress(OSError, ValueError):
                found.append(int(file.read_text().split()[0]) / 100_000)
    return found


def job(node: DemoNode, key: str) -> dict:
    return asked(node, f"/v1/jobs/{key}", {})


def ended(node: DemoNode, key: str) -> bool:
    return job(node, key).get("phase") in ("succeeded", "failed", "cancelled")


def test_two_buyers_have_halves_of_one_device_at_once_and_pay_for_them_and_then_it_is_whole(
    nodes: DemoNodes, tmp_path: Path
) -> None:
    provider, others = nodes.providers[0], (nodes.buyer, nodes.providers[1])
    jobs = [submit(node, tmp_path / f"half-{n}", 'share = "50 %"', 40) for n, node in enumerate(others)]
    await_that(lambda: len(running(provider)) == 2, 240, "both halves run at once")
    assert [lease["share"] for lease in running(provider)] == ["0.5", "0.5"]
    (device,) = asked(provider, "/v1/node")["devices"]
    assert [part["share"] for part in device["parts"]] == ["0.5", "0.5"]
    assert len({lease["buyer"] for lease in running(provider)}) == 2
    if quotas():
        await_that(lambda: quotas().count(0.5) >= 2, 30, "each has half of the slot's core")
        print("each has half of the slot's core", file=sys.stderr)
    else:
        print("no control group of a run can be seen here", os.getuid(), file=sys.stderr)
    for node, key in zip(others, jobs, strict=True):
        await_that(lambda node=node, key=key: ended(node, key), 300, "the half ends")
        assert job(node, key)["phase"] == "succeeded", job(node, key)
    check_paid(provider, dict(zip(jobs, others, strict=True)))

    whole = submit(nodes.buyer, tmp_path / "whole", "", 3)
    await_that(lambda: ended(nodes.buyer, whole), 300, "the whole device is free again")
    assert job(nodes.buyer, whole)["phase"] == "succeeded", job(nodes.buyer, whole)


def check_paid(provider: DemoNode, jobs: dict[str, DemoNode]) -> None:
    """Each paid for half of the time that its run took at the most, at the price of a whole device, to the unit."""
    price, paid = price_per_hour_to_e18(PRICE), 0
    for key, node in jobs.items():
        await_that(lambda node=node, key=key: job(node, key)["spend"]["by_provider"][0]["is_over"], 60, "it is settled")
        spend = job(node, key)["spend"]
        (lease,) = spend["by_provider"]
        assert spend["vouched"] == format_amount(amount_for(lease["device_ms"], price))
        assert lease["device_ms"] >= 40 * 300 // 2 * 9 // 10, "half of the time that its steps took"
        paid += amount_for(lease["device_ms"], price)
    await_that(
        lambda: asked(provider, "/v1/balance", {}).get("earned") == format_amount(paid), 60, "the provider earned that"
    )
