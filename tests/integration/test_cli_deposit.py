"""``hansa wallet deposit`` as a person gives it: what it shows, what it asks, and what it never does unasked."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner
from kit.anvil import RICH, Chain, local_chain
from kit.memory_desk import MemoryDesk, job_view
from kit.served_desk import just, served

from hansa.market.settlement import CHALLENGE_PERIOD_S
from hansa.node.api.http_api import build_api
from hansa.node.chain.chain_dev import Deployed, DevChain
from hansa.node.chain.chain_setup import chain_values, put_on_chain
from hansa.node.chain.cold_deposits import WantedDeposit
from hansa.node.chain.evm_escrow import call
from hansa.node.chain.json_rpc import RpcNode
from hansa.node.chain.keystore import account_address, create_account
from hansa.node.commands.cli import cli
from hansa.node.commands.cli_deposit import _wake
from hansa.node.commands.first_setup import Wishes, set_up
from hansa.node.settings.config import load_config
from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.documents import ChannelConfig
from hansa.proto.signing import checksum_address
from hansa.proto.splits import Split, splits_hash
from hansa.proto.typed_json import to_plain

HAS = 1_000_000
PROVIDER = b"\x0b" * 20
THIEF = b"\x0c" * 20
COLD = checksum_address(RICH.address)


class Wanting(MemoryDesk):
    """A daemon that wants deposits."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[WantedDeposit] = []
        self.comes: list[WantedDeposit] = []
        self.topped_up: list[tuple[bytes, int]] = []

    def deposits(self) -> list[dict[str, Any]]:
        return [{"deposit": to_plain(each), "jobs": ["count\x1b[2Jing"]} for each in self.wanted]

    async def top_up(self, job: bytes, amount: int) -> dict[str, Any]:
        """Some seconds later the job has found its providers again, and wants their deposits."""
        self.topped_up.append((job, amount))
        threading.Timer(2, self.wanted.extend, (self.comes,)).start()
        return await super().top_up(job, amount)


class Place:
    """A node with a cold payer, on a chain; RICH's key is anvil's, which signs for whoever asks."""

    def __init__(self, chain: Chain, deployed: Deployed, desk: Wanting, data_dir: Path, signer: str) -> None:
        self.chain, self.desk, self.data_dir, self.signer = chain, desk, data_dir, signer
        self.currency = currency_of(escrow_currency(deployed.chain_id, deployed.escrow, deployed.token))

    def wants(
        self,
        amount: int,
        salt: int = 1,
        payee: bytes = PROVIDER,
        splits: tuple[Split, ...] = (),
        challenge_s: int = CHALLENGE_PERIOD_S,
    ) -> None:
        config = ChannelConfig(
            payer=RICH.address,
            payer_signer=account_address(self.data_dir / "account.json"),
            payee=payee,
            payee_signer=PROVIDER,
            token=self.currency.token,
            challenge_period=challenge_s,
            splits_hash=splits_hash(splits),
            salt=salt.to_bytes(32, "big"),
        )
        wanted = WantedDeposit(currency=self.currency.name, config=config, splits=splits, amount=amount)
        self.desk.wanted.append(wanted)

    def spent(self) -> int:
        order = {"to": "0x" + self.currency.token.hex(), "data": "0x" + call("balanceOf", RICH.address).hex()}
        return HAS - int(self.chain.ask("eth_call", order, "latest"), 16)

    def run(self, *more: str, answer: str = "") -> Any:
        return CliRunner().invoke(cli, ["wallet", "deposit", "--data", str(self.data_dir), *more], input=answer)


@contextmanager
def place(tmp_path: Path) -> Iterator[Place]:
    with local_chain() as chain, local_chain() as signer:

        async def made() -> Deployed:
            rpc = RpcNode(chain.url)
            deployed = await DevChain(rpc).deploy()
            await DevChain(rpc).give(RICH.address, deployed.token, tokens=HAS, coins=10**20)
            await rpc.close()
            return deployed

        deployed = trio.run(made)
        chain.mine(3)
        desk = Wanting()
        with served(tmp_path / "node", just(build_api(desk, max_job_budget=10**9))) as data_dir:
            set_up(data_dir, Wishes(listen=("/ip4/127.0.0.1/tcp/0",)))
            put_on_chain(data_dir, chain_values(chain.url, deployed) | {"buyer": {"payer": COLD}})
            yield Place(chain, deployed, desk, data_dir, signer.url)


def test_what_is_wanted_is_shown_and_deposited_once_a_person_says_yes(tmp_path: Path) -> None:
    with place(tmp_path) as at:
        outside = ("--signer", at.signer)
        assert "no deposit is wanted now" in at.run(*outside).stderr
        at.wants(300_000)
        refused = at.run(*outside, answer="n\n")
        assert refused.exit_code == 0, refused.stderr
        for words in (COLD, "1.000000 TEST", "0.300000 TEST", checksum_address(PROVIDER), "count", "nobody else"):
            assert words in refused.stderr, words
        assert "\x1b" not in refused.stderr
        assert at.spent() == 0
        assert at.run(*outside, answer="").exit_code != 0, "nobody is there to say yes"
        assert at.spent() == 0
        done = at.run(*outside, answer="y\n")
        assert done.exit_code == 0, done.stderr
        assert "opened a channel with 0.300000 TEST" in done.stdout
        assert at.spent() == 300_000
        at.wants(800_000, salt=2)
        short = at.run(*outside, "--yes", "--up-to", "5.00")
        assert short.exit_code == 2
        assert f"send some to {COLD}" in short.stderr
        assert at.spent() == 300_000


def test_who_gets_the_money_is_shown_and_not_only_whose_node_it_is(tmp_path: Path) -> None:
    """A thief of the daemon names a provider that is known for honest, and accounts of the thief's own."""
    with place(tmp_path) as at:
        outside, honest, thief = ("--signer", at.signer), checksum_address(PROVIDER), checksum_address(THIEF)
        at.wants(100_000)
        assert "pays to" not in at.run(*outside, answer="n\n").stderr, "it is the provider's own"
        at.desk.wanted.clear()
        at.wants(100_000, payee=THIEF)
        shown = at.run(*outside, answer="n\n").stderr
        assert re.search(f"provider {honest}.*\n.*pays to {thief}", shown), shown
        at.desk.wanted.clear()
        at.wants(100_000, splits=(Split(account=THIEF, bps=9_999), Split(account=b"\x0d" * 20, bps=1)))
        shown = at.run(*outside, answer="n\n").stderr
        assert f"99.99 % of it to {thief}" in shown, shown
        assert f"0.01 % of it to {checksum_address(bytes([13]) * 20)}" in shown, shown
        at.desk.wanted.clear()
        at.wants(100_000, challenge_s=30 * 86_400)
        late = at.run(*outside, "--yes", "--up-to", "5.00")
        assert late.exit_code == 2
        assert "challenge period" in late.stderr
        assert at.spent() == 0


def test_a_job_whose_deposit_nobody_made_in_time_goes_on_once_its_payer_is_here(tmp_path: Path) -> None:
    with place(tmp_path) as at:
        # One waits for a deposit, one for a larger budget, one for nothing.
        for number, missing in ((b"1", "0.000000"), (b"2", "0.500000"), (b"3", None)):
            at.desk.views[number * 32] = [job_view((number * 32).hex(), missing=missing)]
        at.wants(300_000)
        at.desk.comes, at.desk.wanted = at.desk.wanted, []
        done = at.run("--signer", at.signer, answer="y\n")
        assert done.exit_code == 0, done.stderr
        assert at.desk.topped_up == [(b"1" * 32, 0)]
        assert f"job {(b'1' * 32).hex()[:12]} looks for providers again" in done.stderr
        assert "opened a channel with 0.300000 TEST" in done.stdout
        assert at.spent() == 300_000


def test_a_job_that_went_on_and_waits_anew_is_woken_anew(tmp_path: Path) -> None:
    desk = Wanting()
    with served(tmp_path / "node", just(build_api(desk, max_job_budget=10**9))) as data_dir:
        set_up(data_dir, Wishes(listen=("/ip4/127.0.0.1/tcp/0",)))
        config, woken = load_config(data_dir), set[str]()
        for missing, is_new in (("0.000000", True), ("0.000000", False), (None, False), ("0.000000", True)):
            desk.views[b"1" * 32] = [job_view((b"1" * 32).hex(), missing=missing)]
            assert _wake(config, woken) is is_new
        assert desk.topped_up == [(b"1" * 32, 0)] * 2


def test_what_nobody_is_asked_about_has_a_bound(tmp_path: Path) -> None:
    with place(tmp_path) as at:
        at.wants(300_000)
        at.wants(200_000, salt=2)
        at.wants(100_000, salt=3)
        unbound = at.run("--signer", at.signer, "--yes")
        assert unbound.exit_code == 2
        assert "--up-to" in unbound.stderr
        bound = at.run("--signer", at.signer, "--yes", "--up-to", "0.45", "--json")
        assert bound.exit_code == 0, bound.stderr
        done = [json.loads(line)["deposited"] for line in bound.stdout.splitlines()]
        assert done == ["0.300000", "0.100000"]
        assert at.spent() == 400_000
        assert "left out" in bound.stderr


def test_a_keystore_of_the_payer_is_opened_for_the_command_and_no_other(tmp_path: Path) -> None:
    with place(tmp_path) as at:
        at.wants(250_000)
        password, keys = tmp_path / "password", tmp_path / "keys"
        keys.mkdir(mode=0o700)
        password.write_text("a long enough password")
        password.chmod(0o600)
        create_account(keys / "cold.json", "a long enough password", secret=RICH.secret())
        create_account(keys / "other.json", "a long enough password")
        how = ("--password-file", str(password), "--yes", "--up-to", "1.00")
        wrong = at.run("--keystore", str(keys / "other.json"), *how)
        assert wrong.exit_code == 2
        assert "another account" in wrong.stderr
        assert at.run().exit_code == 2
        assert at.spent() == 0
        done = at.run("--keystore", str(keys / "cold.json"), *how)
        assert done.exit_code == 0, done.stderr
        assert at.spent() == 250_000


@pytest.mark.long
def test_followed_it_deposits_what_comes_within_its_bound_and_a_second_one_is_kept_out(tmp_path: Path) -> None:
    with place(tmp_path) as at:
        order = [sys.executable, "-m", "hansa", "wallet", "deposit", "--data", str(at.data_dir), "--signer", at.signer]
        follow = [*order, "--follow", "--yes", "--up-to", "0.50"]
        with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            try:
                at.wants(300_000)
                awaited(at, 300_000)
                second = subprocess.run(order, check=False, capture_output=True, text=True, timeout=60)
                assert second.returncode == 2
                assert "another hansa running" in second.stderr
                at.desk.wanted.clear()
                at.wants(350_000)  # the same channel should be good for more
                awaited(at, 350_000)
                at.wants(400_000, salt=2)  # above what is left
                at.wants(150_000, salt=3)
                awaited(at, 500_000)
            finally:
                child.kill()
                child.wait()
            said = (child.stdout.read() if child.stdout else "") + (child.stderr.read() if child.stderr else "")
        assert re.search("added 0.050000 TEST", said)
        assert at.spent() == 500_000


def awaited(at: Place, spent: int) -> None:
    for _ in range(300):
        if at.spent() == spent:
            return
        threading.Event().wait(0.2)
    raise AssertionError(f"{at.spent()} were spent and not {spent} at {time.ctime()}")
