"""A whole market that settles in the escrow on a local chain: real daemons, real blocks, every unit accounted for."""

import json
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from integration.sandbox_harness import need_sandbox
from kit.anvil import Chain
from kit.chain_on_anvil import anvil_program
from kit.market import asked, await_job, await_that, kill, providers_known, submit

from hansa.market.settlement import CLOSED, CLOSING, OPEN, ChannelState
from hansa.node.chain.chain_dev import Deployed, DevChain, free_port, running_anvil
from hansa.node.chain.chain_setup import chain_values, put_on_chain
from hansa.node.chain.evm_escrow import call, config_words, read_channel
from hansa.node.chain.json_rpc import RpcNode
from hansa.node.chain.voucher_file import HeldVoucher
from hansa.node.commands.demo_nodes import DemoNode, DemoNodes
from hansa.node.settings.config import FILE_NAME
from hansa.proto.signing import parse_address
from hansa.proto.typed_json import from_json
from hansa.proto.units import parse_amount

pytestmark = pytest.mark.long

GIVEN = 1_000_000_000
"""Units of the token for everybody: 1,000.00."""
JOB = """
name = "counting"
entry = "count.py:count"

[resources]
kind = "cpu"
cores = 0.5
memory = "600 MiB"
disk = "64 MiB"

[limits]
wall = "2 min"
stall = "60 s"
silence = "25 s"

[budget]
total = "50.00"
price_ceiling_per_hour = "400.00"

[tender]
bids = "2 s"
meter = "1 s"
"""
CODE = """
import time


def count(ctx):
    state = ctx.restore()
    step = 0 if state is None else int(state["step"])
    while step < STEPS:
        time.sleep(0.2)
        step += 1
        ctx.report(step=step)
        if step % 5 == 0:
            ctx.checkpoint({"step": step})
    (ctx.outputs / "end.txt").write_text(str(step))
"""


class MarketOnChain:
    """One provider and one buyer with money on a chain of their own."""

    def __init__(self, nodes: DemoNodes, chain: Chain, deployed: Deployed) -> None:
        self.nodes, self.chain, self.deployed = nodes, chain, deployed

    @property
    def provider(self) -> DemoNode:
        return self.nodes.providers[0]

    @property
    def buyer(self) -> DemoNode:
        return self.nodes.buyer

    def ask(self, to: bytes, content: bytes) -> bytes:
        order = {"to": "0x" + to.hex(), "data": "0x" + content.hex()}
        return bytes.fromhex(self.chain.ask("eth_call", order, "latest")[2:])

    def tokens(self, account: bytes) -> int:
        return int.from_bytes(self.ask(self.deployed.token, call("balanceOf", account)), "big")

    def credit(self, account: bytes) -> int:
        return int.from_bytes(self.ask(self.deployed.escrow, call("credit", self.deployed.token, account)), "big")

    def account(self, node: DemoNode) -> bytes:
        return parse_address(node.account)

    def state(self, held: HeldVoucher) -> ChannelState:
        return read_channel(self.ask(self.deployed.escrow, call("channel", held.voucher.channel_id)))

    def vouchers(self) -> list[HeldVoucher]:
        found = asked(self.provider, "/v1/vouchers", {"vouchers": []})["vouchers"]
        return [from_json(HeldVoucher, each) for each in found]

    def log(self, node: DemoNode) -> str:
        return node.log.read_text()

    def assert_conserved(self) -> None:
        """Nothing was made or lost: all tokens are somebody's, and the escrow's credits are covered."""
        both = [self.account(self.provider), self.account(self.buyer)]
        held = self.tokens(self.deployed.escrow)
        assert held + sum(self.tokens(account) for account in both) == 2 * GIVEN
        assert sum(self.credit(account) for account in both) <= held

    def ask_for_close(self, held: HeldVoucher) -> None:
        """The buyer's own account asks for the end of a channel behind its daemon's back."""
        payer = "0x" + held.config.payer.hex()
        self.chain.ask("anvil_impersonateAccount", payer)
        data = "0x" + call("requestClose", config_words(held.config)).hex()
        self.chain.ask("eth_sendTransaction", {"from": payer, "to": "0x" + self.deployed.escrow.hex(), "data": data})
        await_that(lambda: self.state(held).phase == CLOSING, 15, "the channel is closing")


@contextmanager
def market_on_chain(**settings: str) -> Iterator[MarketOnChain]:
    """``settings`` are keys of ``config.toml`` and what stands there, for both."""
    need_sandbox()
    more = ("--slots-in-an-epoch", "1", "--block-time", "1")
    with running_anvil(anvil_program(), port=free_port(), more=more) as url, DemoNodes(prices=("360.00",)) as nodes:
        nodes.make()
        chain = Chain(url)

        async def set_up() -> Deployed:
            rpc = RpcNode(url)
            deployed = await DevChain(rpc).deploy()
            for node in nodes.nodes:
                await DevChain(rpc).give(parse_address(node.account), deployed.token, tokens=GIVEN, coins=10**20)
            await rpc.close()
            return deployed

        deployed = trio.run(set_up)
        for node in nodes.nodes:
            data_dir = node.made.config.data_dir
            put_on_chain(data_dir, chain_values(url, deployed))
            file = data_dir / FILE_NAME
            text = file.read_text()
            wanted = {"max_unpaid": '"20.00"', "voucher_timeout": '"30 s"', "poll": '"300 ms"'}
            wanted |= {"claim_above": '"0.20"', "claim_at_least": '"0.01"', "withdraw_above": '"0.01"', **settings}
            for key, value in wanted.items():
                text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
            file.write_text(text)
        nodes.start()
        await_that(lambda: len(providers_known(nodes)) == 1, 90, "the buyer knows the provider")
        yield MarketOnChain(nodes, chain, deployed)


def put_to_work(market: MarketOnChain, directory: Path, steps: int) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "count.py").write_text(textwrap.dedent(CODE).replace("STEPS", str(steps)))
    (directory / "job.toml").write_text(JOB)
    return submit(market.nodes, directory)


def await_claim(market: MarketOnChain) -> HeldVoucher:
    """Wait until there is a channel on which something was claimed on the chain; its newest voucher."""

    def claimed() -> list[HeldVoucher]:
        return [held for held in market.vouchers() if market.state(held).phase == OPEN and market.state(held).claimed]

    await_that(lambda: bool(claimed()), 120, "a voucher was claimed")
    return claimed()[0]


def await_log(market: MarketOnChain, node: DemoNode, words: str, patience_s: float = 60) -> None:
    await_that(lambda: words in market.log(node), patience_s, f"{node.name} says {words!r}")


def test_a_job_is_paid_from_a_deposit_to_the_last_unit_through_deaths_of_both_daemons(tmp_path: Path) -> None:
    """Open with permit, vouchers, claims, both killed without mercy in the middle, a close by both, withdrawals."""
    with market_on_chain() as market:
        job = put_to_work(market, tmp_path / "job", 150)
        held = await_claim(market)
        market.assert_conserved()
        for node in (market.provider, market.buyer):
            kill(node)
        market.assert_conserved()
        for node in (market.provider, market.buyer):
            market.nodes.start_one(node)
        view = await_job(market.nodes, job, 180)
        assert view["phase"] == "succeeded", view["reason"]
        paid = parse_amount(view["spend"]["vouched"])
        assert paid > 0
        await_that(lambda: market.tokens(market.deployed.escrow) == 0, 90, "the escrow is empty")
        assert market.state(held).phase == CLOSED
        assert market.tokens(market.account(market.provider)) == GIVEN + paid
        assert market.tokens(market.account(market.buyer)) == GIVEN - paid
        market.assert_conserved()
        # With a permit a deposit is one transaction of the buyer's, and taking the rest out another one.
        channels = market.log(market.buyer).count("chain: opened a channel")
        sent = int(market.chain.ask("eth_getTransactionCount", market.buyer.account, "latest"), 16)
        assert sent <= 2 * channels + 1
        assert "TROUBLE" not in market.log(market.provider)


def test_work_on_a_reorged_deposit_pauses_and_goes_on_when_the_deposit_is_back(tmp_path: Path) -> None:
    with market_on_chain(confirmations="3") as market:
        job = put_to_work(market, tmp_path / "job", 80)
        held = await_claim(market)
        # The blocks since before the deposit are gone, and nobody makes new ones.
        market.chain.ask("evm_setIntervalMining", 0)
        wanted = {"address": "0x" + market.deployed.escrow.hex(), "fromBlock": "0x0"}
        opened = int(market.chain.ask("eth_getLogs", wanted)[0]["blockNumber"], 16)
        market.chain.reorg(market.chain.height() - opened + 1)
        market.chain.ask("anvil_dropAllTransactions")
        assert market.state(held).deposit == 0

        def steps() -> list[int]:
            return [lease["step"] for lease in asked(market.provider, "/v1/node", {"leases": []})["leases"]]

        def stands_still() -> bool:
            before = steps()
            time.sleep(4)
            return bool(before) and steps() == before

        await_that(stands_still, 60, "the run is paused")
        market.chain.ask("evm_setIntervalMining", 1)
        view = await_job(market.nodes, job, 240)
        assert view["phase"] == "succeeded", view["reason"]
        await_that(lambda: market.tokens(market.deployed.escrow) == 0, 90, "the escrow is empty")
        market.assert_conserved()


def test_close_while_the_provider_is_offline_a_watchtower_claims_what_it_was_given(tmp_path: Path) -> None:
    """And a dispute inside the window: what the buyer hoped to keep is the provider's."""
    # The provider itself claims nothing before its channel ends.
    with market_on_chain(claim_above='"100.00"') as market:
        put_to_work(market, tmp_path / "job", 400)
        await_that(lambda: any(held.voucher.cumulative > 300_000 for held in market.vouchers()), 120, "vouchers came")
        file = tmp_path / "mine.vouchers"
        hansa("chain", "export-vouchers", str(file), "--data", str(market.provider.made.config.data_dir))
        kill(market.provider)
        held = from_json(HeldVoucher, file.read_text().splitlines()[0])
        assert market.state(held).claimed == 0
        market.ask_for_close(held)
        wallet = tmp_path / "tower"
        hansa("init", "--data", str(wallet))
        market.chain.ask("anvil_setBalance", json.loads((wallet / "account.json").read_text())["address"], hex(10**18))
        look = ["watchtower", str(file), "--rpc", market.chain.url, "--once"]
        tried = hansa(*look, "--dry-run")
        assert tried.startswith("watching 1 channels, with 1 vouchers\n")
        assert "can be claimed until" in tried
        assert market.state(held).claimed == 0
        keys = ["--account", str(wallet / "account.json"), "--password-file", str(wallet / "account.password")]
        assert "claimed" in hansa(*look, *keys)
        assert market.state(held).claimed == held.voucher.cumulative
        market.chain.ask("evm_increaseTime", hex(held.config.challenge_period + 60))
        await_log(market, market.buyer, "chain: took")
        assert market.state(held).phase == CLOSED
        assert market.credit(held.config.payee) == held.voucher.cumulative
        market.assert_conserved()


def test_a_dispute_inside_the_window_is_won_by_the_provider_itself(tmp_path: Path) -> None:
    with market_on_chain(claim_above='"100.00"') as market:
        put_to_work(market, tmp_path / "job", 400)
        await_that(lambda: any(held.voucher.cumulative > 300_000 for held in market.vouchers()), 120, "vouchers came")
        held = market.vouchers()[0]
        assert market.state(held).claimed == 0
        market.ask_for_close(held)
        await_that(lambda: market.state(held).claimed >= held.voucher.cumulative, 60, "the provider claimed")
        market.assert_conserved()


def hansa(*arguments: str) -> str:
    """What a command says; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "hansa", *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
