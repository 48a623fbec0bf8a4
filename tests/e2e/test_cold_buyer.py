"""A buyer whose money lies on an account of another process: real daemons, blocks, and the command that deposits."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from e2e.test_demo_on_chain import GIVEN, MarketOnChain, hansa, market_on_chain, put_to_work
from kit.anvil import RICH, local_chain
from kit.market import asked, await_job, await_that, kill
from kit.rpc_stand_in import result, rpc_stand_in

from hansa.market.settlement import CLOSED
from hansa.node.chain.chain_dev import DevChain
from hansa.node.chain.json_rpc import RpcNode
from hansa.proto.signing import checksum_address
from hansa.proto.units import parse_amount

pytestmark = pytest.mark.long

COLD = checksum_address(RICH.address)
"""The account that pays: anvil holds its key, in a process that knows nothing of the chain's money."""


def deposits(market: MarketOnChain) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = asked(market.buyer, "/v1/deposits", {"deposits": []})["deposits"]
    return found


def given_to_cold(market: MarketOnChain) -> None:
    async def give() -> None:
        rpc = RpcNode(market.chain.url)
        await DevChain(rpc).give(RICH.address, market.deployed.token, tokens=GIVEN, coins=10**20)
        await rpc.close()

    trio.run(give)


def assert_conserved(market: MarketOnChain) -> None:
    accounts = (market.account(market.provider), market.account(market.buyer), RICH.address)
    held = market.tokens(market.deployed.escrow)
    assert held + sum(market.tokens(account) for account in accounts) == 3 * GIVEN
    assert sum(market.credit(account) for account in accounts) <= held


def killed_while_the_signer_thinks(data_dir: str) -> None:
    """Give the command, and kill it without mercy when its signer was asked and has not answered."""
    was_asked, go_on = threading.Event(), threading.Event()

    def answer(_method: str, _params: Any, number: int) -> bytes:
        was_asked.set()
        go_on.wait(60)
        return result(None, number)

    with rpc_stand_in(answer) as slow:
        order = [sys.executable, "-m", "hansa", "wallet", "deposit", "--data", data_dir, "--signer", slow.url]
        child = subprocess.Popen([*order, "--up-to", "100.00", "--yes"], stderr=subprocess.DEVNULL)
        try:
            assert was_asked.wait(60), "the signer was asked"
        finally:
            child.kill()
            child.wait()
            go_on.set()


def test_a_job_is_paid_from_an_account_whose_key_no_daemon_has(tmp_path: Path) -> None:
    """The cold account goes down by just what was paid, the node's own not at all, through deaths of all of them."""
    with market_on_chain(payer=f'"{COLD}"') as market, local_chain() as signer:
        given_to_cold(market)
        data_dir = str(market.buyer.made.config.data_dir)
        job = put_to_work(market, tmp_path / "job", 60)
        await_that(lambda: bool(deposits(market)), 60, "a deposit is wanted")

        def is_said() -> bool:
            warning = str(asked(market.buyer, f"/v1/jobs/{job}", {"warning": ""})["warning"])
            return COLD in warning and "hansa wallet deposit" in warning

        await_that(is_said, 30, "the job says whose deposit it waits for")
        killed_while_the_signer_thinks(data_dir)
        assert market.tokens(RICH.address) == GIVEN
        order = ["wallet", "deposit", "--data", data_dir, "--signer", signer.url, "--yes", "--json", "--up-to"]
        assert hansa(*order, "0.01") == "", "nothing above the sum that was said"
        assert market.tokens(RICH.address) == GIVEN
        done = json.loads(hansa(*order, "100.00"))
        deposited = parse_amount(done["deposited"])
        assert market.tokens(RICH.address) == GIVEN - deposited
        assert hansa(*order, "100.00") == "", "what was deposited is not deposited again"
        assert_conserved(market)
        await_that(lambda: bool(market.vouchers()), 120, "the job is paid for")
        held = market.vouchers()[0]
        assert (held.config.payer, held.config.payer_signer) == (RICH.address, market.account(market.buyer))
        for node in (market.provider, market.buyer):
            kill(node)
            market.nodes.start_one(node)
        view = await_job(market.nodes, job, 180)
        assert view["phase"] == "succeeded", view["reason"]
        paid = parse_amount(view["spend"]["vouched"])
        assert 0 < paid < deposited
        await_that(lambda: market.tokens(market.deployed.escrow) == 0, 90, "the escrow is empty")
        assert market.state(held).phase == CLOSED
        assert market.tokens(RICH.address) == GIVEN - paid
        assert market.tokens(market.account(market.buyer)) == GIVEN, "the node's own account paid nothing"
        assert market.tokens(market.account(market.provider)) == GIVEN + paid
        assert_conserved(market)
        # Both sides' books say the same of it, and hold.
        await_that(lambda: spent(data_dir) == paid, 60, "the buyer's statement says what was paid")
        sold = json.loads(hansa("earnings", "--by", "peer", "--json", "--data", provider_dir(market)))
        assert [row["peer"] for row in sold["rows"]] == [COLD]
        for directory in (data_dir, provider_dir(market)):
            assert "holds" in hansa("ledger", "verify", "--data", directory)


def spent(data_dir: str) -> int:
    rows = json.loads(hansa("spend", "--json", "--data", data_dir))["rows"]
    return sum(parse_amount(row["paid"]) for row in rows)


def provider_dir(market: MarketOnChain) -> str:
    return str(market.provider.made.config.data_dir)


def test_deposits_are_taken_back_when_the_node_is_gone(tmp_path: Path) -> None:
    with market_on_chain(payer=f'"{COLD}"') as market, local_chain() as signer:
        given_to_cold(market)
        data_dir = str(market.buyer.made.config.data_dir)
        put_to_work(market, tmp_path / "job", 400)
        await_that(lambda: bool(deposits(market)), 60, "a deposit is wanted")
        hansa("wallet", "deposit", "--data", data_dir, "--signer", signer.url, "--yes", "--up-to", "100.00")
        kill(market.buyer)
        order = ["wallet", "take-back", "--data", data_dir, "--signer", signer.url, "--yes"]
        assert "asked for its end" in hansa(*order)
        time.sleep(2)
        market.chain.ask("evm_increaseTime", hex(24 * 3600 + 60))
        market.chain.mine()
        await_that(lambda: "nothing is left" in hansa(*order), 60, "everything is back")
        left = market.tokens(market.deployed.escrow)
        await_that(lambda: market.tokens(market.deployed.escrow) == 0, 60, "the provider has its part")
        assert market.tokens(RICH.address) == 2 * GIVEN - market.tokens(market.account(market.provider)), left
        assert_conserved(market)
