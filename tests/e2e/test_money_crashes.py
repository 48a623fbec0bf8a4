"""Daemons that owe each other are killed again and again while they pay: no word is lost, and nothing is paid twice."""

import json
import random
import textwrap
import threading
import time
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kit.market import asked, await_that, books, kill

from hansa.node.api.cli_client import DaemonClient
from hansa.node.commands.cli import cli
from hansa.node.commands.cli_jobs import submit_job
from hansa.node.commands.demo_nodes import DemoNode, DemoNodes
from hansa.node.faults import OperatorError
from hansa.node.settings.config import FILE_NAME

pytestmark = [
    pytest.mark.long,
    # httpcore leaves a unix socket to the garbage where a daemon is killed in the very moment in which it is dialled.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <socket.socket fd:pytest.PytestUnraisableExceptionWarning"
    ),
]

KILLS = 24
PAY_EVERY_S = 6.0
AGREE_S = 150
IN_THE_MIDDLE = 0.6
"""So many of the deaths come right after somebody said that it was paid, and so many of these to whoever said it."""
AMOUNT = Decimal("0.000010")
JOB = """
name = "counting"
entry = "count.py:count"
shards = 1
workers = 1

[parameters]
steps = 400

[resources]
kind = "cpu"
cores = 0.5
memory = "600 MiB"
disk = "64 MiB"

[limits]
wall = "10 min"
stall = "60 s"
silence = "40 s"
retries = 100

[budget]
total = "5.00"

[tender]
bids = "2 s"
meter = "1 s"
"""
CODE = """
import time

import numpy as np


def count(ctx):
    state = ctx.restore()
    done = 0 if state is None else int(state["done"][0])
    while done < ctx.parameters["steps"]:
        time.sleep(0.15)
        done += 1
        ctx.report(step=done, loss=1.0 / done)
        if done % 10 == 0:
            ctx.checkpoint({"done": np.array([done])})
"""


class Trade:
    """Two nodes that buy from each other, and their owners who pay each other a little all the time."""

    def __init__(self, nodes: DemoNodes, directory: Path, chance: random.Random) -> None:
        self.nodes, self.directory, self.chance = nodes, directory, chance
        self.counting = threading.Lock()
        self.attempts: dict[str, int] = {node.account: 0 for node in nodes.providers}
        self.signed: dict[str, Decimal] = {node.account: Decimal(0) for node in nodes.providers}
        self.answers: dict[str, int] = {node.account: 0 for node in nodes.providers}
        self.over = threading.Event()

    def of(self, node: DemoNode) -> DemoNode:
        """The other one."""
        one, two = self.nodes.providers
        return two if node is one else one

    def keep_buying(self) -> None:
        """Whoever has no job that lives submits one."""
        for node in self.nodes.providers:
            jobs = asked(node, "/v1/jobs", None)
            if jobs is not None and all(job["ended_ms"] for job in jobs["jobs"]):
                try:
                    submit_job(node.daemon, self.directory)
                except OperatorError:
                    continue

    def earned(self) -> Decimal:
        """What both have earned by their own books, as far as they answer."""
        found = (asked(node, "/v1/balance", {"earned": "0"}) for node in self.nodes.providers)
        return sum((Decimal(balance["earned"]) for balance in found), Decimal(0))

    def await_movement(self, before: Decimal, patience_s: float) -> None:
        """Return when more was earned than before, or when that takes too long."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and self.earned() <= before:
            self.keep_buying()
            time.sleep(0.1)

    def pay(self) -> None:
        """Payments without end, each of the same small sum."""
        while not self.over.wait(PAY_EVERY_S):
            for node in self.nodes.providers:
                self.pay_once(node)

    def pay_once(self, node: DemoNode) -> None:
        """A node's owner says that it was paid. Nobody knows whether one that was cut off counts."""
        with self.counting:
            self.attempts[node.account] += 1
            number = sum(self.attempts.values())
        body = {"account": self.of(node).account, "amount": str(AMOUNT), "how": f"cash {number}", "ahead": True}
        try:
            # A client of its own: two payments may be on their way at once.
            with closing(DaemonClient(node.made.config.data_dir)) as daemon:
                answer = daemon.post("/v1/debts/paid", body)
        except OperatorError:
            return
        with self.counting:
            self.answers[node.account] += 1
            self.signed[node.account] = max(self.signed[node.account], Decimal(answer["paid_to_us"]))

    def kill_while_one_pays(self, victim: DemoNode, after_s: float) -> None:
        """SIGKILL a moment after a payment was said to it, or to the other, whose word then finds nobody."""
        creditor = victim if self.chance.random() < IN_THE_MIDDLE else self.of(victim)
        payment = threading.Thread(target=self.pay_once, args=(creditor,))
        payment.start()
        time.sleep(after_s)
        kill(victim)
        payment.join()


def debt(node: DemoNode, other: DemoNode) -> dict[str, Any]:
    """What stands between two nodes by one's books; empty while nothing does."""
    debts = asked(node, "/v1/debts", {"debts": []})["debts"]
    return next((view for view in debts if view["account"] == other.account), {})


def agree(one: DemoNode, two: DemoNode) -> bool:
    """Whether both sides' books say the same, line by line."""
    mine, theirs = debt(one, two), debt(two, one)
    pairs = (("owes_us", "we_owe"), ("paid_to_us", "paid_by_us"), ("we_owe", "owes_us"), ("paid_by_us", "paid_to_us"))
    return bool(mine and theirs) and all(mine[a] == theirs[b] for a, b in pairs) and mine["netted"] == theirs["netted"]


def test_the_books_of_two_nodes_agree_though_both_are_killed_at_any_moment_while_they_pay(tmp_path: Path) -> None:
    (tmp_path / "count.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "job.toml").write_text(JOB)
    seed = time.time_ns()
    chance = random.Random(seed)
    print(f"seed {seed}")
    with DemoNodes(prices=("0.90", "0.60")) as nodes:
        nodes.make()
        trade = Trade(nodes, tmp_path, chance)
        for node in nodes.providers:
            file = node.made.config.data_dir / FILE_NAME
            text = file.read_text()
            assert 'accept_buyers = "any"' in text
            file.write_text(text.replace('accept_buyers = "any"', f'accept_buyers = ["{trade.of(node).account}"]'))
        nodes.start()
        one, two = nodes.providers
        for node in (one, two):
            await_that(lambda node=node: len(asked(node, "/v1/providers", {"providers": []})["providers"]) == 2, 90, "")
        moved = 0
        payer = threading.Thread(target=trade.pay)
        payer.start()
        try:
            for number in range(KILLS):
                # If something is vouched for in this time, the next death comes while money moves.
                trade.await_movement(before := trade.earned(), 8)
                moved += trade.earned() > before
                time.sleep(chance.uniform(0, 2.0))
                victim = chance.choice((one, two))
                if chance.random() < IN_THE_MIDDLE:
                    trade.kill_while_one_pays(victim, chance.uniform(0, 0.3))
                else:
                    kill(victim)
                if chance.random() < 0.5:
                    time.sleep(chance.uniform(0, 1.0))
                nodes.start_one(victim)
                await_that(lambda node=victim: asked(node, "/v1/balance") is not None, 90, f"{victim.name} is back")
                print(f"kill {number + 1} of {victim.name}")
        finally:
            trade.over.set()
            payer.join()
        for node in (one, two):
            for job in asked(node, "/v1/jobs", {"jobs": []})["jobs"]:
                if not job["ended_ms"]:
                    node.daemon.post(f"/v1/jobs/{job['job']}/cancel")
        since = time.monotonic()
        try:
            await_that(lambda: all_closed(one) and all_closed(two) and agree(one, two), AGREE_S, "the books agree")
        except AssertionError as fault:
            for node in (one, two):
                open_ones = [each for each in books(node)["channels"] if each["phase"] != "closed"]
                jobs = [(job["job"][:8], job["phase"], job["ended_ms"]) for job in asked(node, "/v1/jobs")["jobs"]]
                fault.add_note(f"{node.name} {node.account}: {open_ones} {jobs} {debt(node, trade.of(node))}")
                fault.add_note(f"{asked(node, '/v1/node')['counters']}")
            raise
        print(f"{moved} of {KILLS} deaths while money moved; all agreed after {time.monotonic() - since:.0f} s")
        for node in (one, two):
            check(node, trade)
        assert moved >= KILLS // 4, "many of these deaths came while money moved"


def all_closed(node: DemoNode) -> bool:
    channels = asked(node, "/v1/balance", {"channels": [{"phase": "away"}]})["channels"]
    return bool(channels) and all(channel["phase"] == "closed" for channel in channels)


def check(node: DemoNode, trade: Trade) -> None:
    """Its ledger holds from signatures alone, and no payment counts twice."""
    assert Decimal(books(node)["sum"]) == 0
    assert Decimal(books(node)["earned"]) > 0
    view = debt(node, trade.of(node))
    paid, attempts, answers = Decimal(view["paid_to_us"]), trade.attempts[node.account], trade.answers[node.account]
    print(f"{node.name}: {attempts} payments, {answers} answered, {paid} signed for; {view}")
    assert trade.signed[node.account] <= paid, "what was answered for is not forgotten"
    assert answers * AMOUNT <= paid <= attempts * AMOUNT, "each counts once"
    assert answers > 0
    result = CliRunner().invoke(cli, ["ledger", "verify", "--data", str(node.made.config.data_dir), "--json"])
    report = json.loads(result.stdout)
    assert (result.exit_code, report["holds"]) == (0, True), report
