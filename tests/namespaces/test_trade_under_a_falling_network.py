"""A job between real daemons while the network falls: cut for a while or for long, thin, or without its relay.

Whatever falls, the job ends as it should or says why it does not; and within a minute after the network is whole again
both sides' books say the same, and nothing is charged twice.
"""

import time
from contextlib import ExitStack, closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from kit.daemons_in_namespaces import PlacedDaemon, until
from kit.namespaces import Internet, Site, internet

from hansa.node.commands.cli_jobs import submit_job

__all__ = ["internet"]
PRICE_PER_HOUR = Decimal("0.90")
AGREE_S = 60
IMPATIENT = {"meter_interval": '"1 s"', "voucher_timeout": '"4 s"', "grace": '"6 s"'}
"""A provider that pauses four seconds after a receipt nobody vouched for, and stops six seconds later."""
ENDED = ("succeeded", "failed", "cancelled")
JOB = """\
name = "counting"
entry = "count.py:count"

[parameters]
steps = {steps}

[resources]
kind = "cpu"
memory = "600 MiB"
shared_memory = "128 MiB"

[limits]
wall = "5 min"
stall = "60 s"
silence = "{silence} s"
retries = {retries}

[tender]
bids = "2 s"
meter = "1 s"
"""
CODE = """\
import time

import numpy as np


def count(ctx):
    state = ctx.restore()
    done = 0 if state is None else int(state["done"][0])
    print("from", done, flush=True)
    while done < ctx.parameters["steps"]:
        time.sleep(0.2)
        done += 1
        ctx.report(step=done, loss=1.0 / done)
        if done % 10 == 0:
            ctx.checkpoint({"done": np.array([done]), "ballast": np.full(300_000, done % 256, np.uint8)})
"""


class Trade:
    """A provider and a buyer, and the one job between them."""

    def __init__(self, provider: PlacedDaemon, buyer: PlacedDaemon, place: Path) -> None:
        self.provider, self.buyer, self.place = provider, buyer, place
        self.job = ""

    def begin(self, *, steps: int, silence_s: int, retries: int = 3) -> None:
        """Submit the job, and wait until it has a checkpoint at its buyer."""
        until(lambda: self.buyer.asked("/v1/providers")["providers"], 60, "the buyer knows the provider")
        self.place.mkdir()
        (self.place / "job.toml").write_text(JOB.format(steps=steps, silence=silence_s, retries=retries))
        (self.place / "count.py").write_text(CODE)
        self.job = submit_job(self.buyer.daemon, self.place)
        until(lambda: self.steps() >= 12 or self.view()["phase"] in ENDED, 120, "the job has made twelve steps")
        assert self.view()["phase"] == "running", self.view()

    def view(self) -> Any:
        return self.buyer.asked(f"/v1/jobs/{self.job}")

    def steps(self) -> int:
        return max((point["round"] for point in self.view()["history"]), default=0)

    def said(self) -> list[str]:
        """What the job printed, whoever ran it."""
        with closing(self.buyer.daemon.lines(f"/v1/jobs/{self.job}/logs", follow="0")) as lines:
            return [line["text"].strip() for line in lines if "text" in line]

    def runs(self) -> list[str]:
        """The leases that the provider works on."""
        leases = self.provider.asked("/v1/node")["leases"]
        return [lease["lease"] for lease in leases if lease["phase"] in ("leased", "running")]

    def end(self, patience_s: float) -> Any:
        """The job as it ended."""
        return until(lambda: (view := self.view())["phase"] in ENDED and view, patience_s, "the job ended")

    def agree(self) -> float:
        """Wait until both books say the same of this trade, and say it of themselves; gives how long it took."""
        began = time.monotonic()
        until(lambda: self._sides()[0] == self._sides()[1], AGREE_S, "both books say the same")
        took_s = time.monotonic() - began
        spent = Decimal(self.buyer.asked("/v1/balance")["spent"])
        view = self.view()
        most = PRICE_PER_HOUR * (view["ended_ms"] - view["submitted_ms"]) / 3_600_000
        # One device for as long as all of it took: two runs that were paid for the same time would come to more.
        assert 0 < spent <= most, (spent, most)
        print(f"the books agreed {took_s:.1f} s later on {spent}, of at most {most:.6f}")
        return took_s

    def _sides(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What each has in its books: the buyer's, and the provider's with the sides changed."""
        bought, sold = (node.asked("/v1/balance") for node in (self.buyer, self.provider))
        accounts = [node.asked("/v1/node")["account"] for node in (self.buyer, self.provider)]
        debts = [
            next((debt for debt in node.asked("/v1/debts")["debts"] if debt["account"] == other), {})
            for node, other in ((self.buyer, accounts[1]), (self.provider, accounts[0]))
        ]
        assert Decimal(bought["sum"]) == Decimal(sold["sum"]) == 0

        def vouched(balance: Any, role: str) -> list[str]:
            return sorted(channel["vouched"] for channel in balance["channels"] if channel["role"] == role)

        return (
            {"moved": bought["spent"], "vouched": vouched(bought, "payer"), "owed": debts[0].get("we_owe")},
            {"moved": sold["earned"], "vouched": vouched(sold, "payee"), "owed": debts[1].get("owes_us")},
        )


def between_public_hosts(stack: ExitStack, internet: Internet, tmp_path: Path) -> tuple[Trade, Site, Site]:
    """A buyer and an impatient provider, on lines with delay and loss where this machine can make such."""
    try:
        sites = [internet.public_host(delay_s=0.02, loss=0.005) for _ in range(2)]
    except OSError as fault:
        pytest.skip(f"no tap devices here: {fault}")
    buyer = PlacedDaemon(stack, sites[0], tmp_path / "buyer")
    lends = ("--provider", "--cpu-slots", "1", "--price", str(PRICE_PER_HOUR), "--bootstrap", buyer.outside())
    provider = PlacedDaemon(stack, sites[1], tmp_path / "provider", *lends, settings=IMPATIENT)
    return Trade(provider, buyer, tmp_path / "job"), sites[0], sites[1]


@pytest.mark.parametrize("cut_s", [3, pytest.param(20, marks=pytest.mark.long)])
def test_a_job_outlives_a_cut_between_its_buyer_and_its_provider(internet: Internet, tmp_path: Path, cut_s: int):
    with ExitStack() as stack:
        trade, here, there = between_public_hosts(stack, internet, tmp_path)
        trade.begin(steps=60, silence_s=60)
        internet.cut([here], [there])
        time.sleep(cut_s)
        internet.heal()
        healed = time.monotonic()
        view = trade.end(120)
        assert view["phase"] == "succeeded", view
        assert trade.steps() == 60
        trade.agree()
        print(f"the job ended {time.monotonic() - healed:.1f} s after the cut was healed")


@pytest.mark.long
def test_a_cut_longer_than_anybodys_patience_costs_no_step_before_the_checkpoint(internet: Internet, tmp_path: Path):
    with ExitStack() as stack:
        trade, here, there = between_public_hosts(stack, internet, tmp_path)
        trade.begin(steps=120, silence_s=15)
        internet.cut([here], [there])
        lost = until(lambda: (view := trade.view())["shards"][0]["phase"] == "waiting" and view, 60, "it is lost")
        assert lost["phase"] not in ENDED
        until(lambda: not trade.runs(), 60, "the provider has stopped what nobody pays")
        internet.heal()
        view = trade.end(180)
        assert view["phase"] == "succeeded", view
        assert view["shards"][0]["attempts"] >= 2
        began_at = [int(words[5:]) for words in trade.said() if words.startswith("from ")]
        assert began_at[0] == 0
        assert all(step >= 10 for step in began_at[1:]), began_at
        trade.agree()


@pytest.mark.long
def test_a_job_that_may_not_be_tried_again_fails_and_says_why_and_the_books_agree(internet: Internet, tmp_path: Path):
    with ExitStack() as stack:
        trade, here, there = between_public_hosts(stack, internet, tmp_path)
        trade.begin(steps=200, silence_s=15, retries=0)
        internet.cut([here], [there])
        view = trade.end(60)
        assert view["phase"] == "failed"
        assert "silent" in view["reason"] + view["shards"][0]["reason"]
        internet.heal()
        assert trade.agree() < AGREE_S
        until(lambda: trade.view()["settled"], 60, "the job is settled")


@pytest.mark.long
def test_a_job_outlives_a_line_that_becomes_very_thin(internet: Internet, tmp_path: Path):
    with ExitStack() as stack:
        trade, _, there = between_public_hosts(stack, internet, tmp_path)
        trade.begin(steps=150, silence_s=60)
        there.slow_down("256kbit")
        time.sleep(10)
        there.slow_down("64kbit")
        time.sleep(15)
        there.let_go()
        view = trade.end(180)
        assert view["phase"] == "succeeded", view
        assert trade.steps() == 150
        trade.agree()


@pytest.mark.long
def test_a_job_between_two_homes_outlives_its_relay(internet: Internet, tmp_path: Path):
    with ExitStack() as stack:
        relays = [PlacedDaemon(stack, internet.public_host(), tmp_path / "relay", relay=True)]
        start = ("--bootstrap", relays[0].outside())
        relays.append(PlacedDaemon(stack, internet.public_host(), tmp_path / "other-relay", *start, relay=True))
        for relay in relays[1:]:
            start += ("--bootstrap", relay.outside())
        homes = [internet.home(symmetric=True) for _ in range(2)]
        lends = ("--provider", "--cpu-slots", "1", "--price", str(PRICE_PER_HOUR), *start)
        provider = PlacedDaemon(stack, homes[0], tmp_path / "provider", *lends, settings=IMPATIENT)
        buyer = PlacedDaemon(stack, homes[1], tmp_path / "buyer", *start)
        until(lambda: len(provider.asked("/v1/net")["relays"]) == 2, 60, "the provider has a place at both relays")
        trade = Trade(provider, buyer, tmp_path / "job")
        trade.begin(steps=150, silence_s=60)
        assert path_between(buyer, provider) == "relayed"
        relays[0].kill()
        view = trade.end(240)
        assert view["phase"] == "succeeded", view
        trade.agree()
        assert path_between(buyer, provider) == "relayed"


def path_between(one: PlacedDaemon, other: PlacedDaemon) -> str:
    """How one is connected with the other."""
    name = other.asked("/v1/net")["peer_id"]
    return next((peer["path"] for peer in one.asked("/v1/net/peers")["peers"] if peer["peer_id"] == name), "")
