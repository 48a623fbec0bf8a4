"""A cold account pays for a node's channels: deposits are signed in another process, once each, and come back to it."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio
from kit.rpc_house import LIMITS, RpcHouse, fresh_house
from kit.settlement_scene import PAYEE, PAYEE_SIGNER, PAYER, PAYER_SIGNER, STRANGER, Scene
from kit.settling_party import Party, serving, until, wanted
from kit.signer_process import outside_signer

from hansa.market.funding import FundingFailed, SettlementWanted
from hansa.market.settlement import CLOSED, CLOSING, OPEN, Refused
from hansa.node.chain.chain_funding import pay_in
from hansa.node.chain.cold_deposits import WantedDeposit
from hansa.node.chain.cold_wallet import ColdWallet
from hansa.node.chain.escrow_artefact import escrow_code
from hansa.node.chain.evm_signing import AccountSigner
from hansa.node.chain.evm_store import SENT
from hansa.node.chain.external_signer import ExternalSigner
from hansa.node.chain.outside_account import OutsideAccount
from hansa.node.faults import OperatorError
from hansa.node.settings.chain_config import ChainConfig
from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.documents import ChannelConfig
from hansa.proto.signing import checksum_address

pytestmark = pytest.mark.trio

HAS = 1_000


@pytest.fixture(scope="module")
def signer() -> Iterator[str]:
    """A process that has the cold account's key, which this one settles without."""
    with outside_signer(PAYER.secret()) as url:
        yield url


@pytest.fixture
async def house() -> AsyncIterator[RpcHouse]:
    async with fresh_house() as opened:
        await opened.fund(PAYER, HAS)
        opened.chain.mine(3)
        yield opened


def settings(house: RpcHouse) -> ChainConfig:
    return ChainConfig(
        rpc=(house.chain.url,),
        currency=house.currency,
        confirmations=0,
        limits=LIMITS,
        claim_at_least=10,
        claim_above=1_000_000,
        withdraw_above=0,
        poll_ms=30,
    )


@asynccontextmanager
async def cold_wallet(house: RpcHouse, path: Path, signer: str) -> AsyncIterator[ColdWallet]:
    outside = OutsideAccount(ExternalSigner(signer, PAYER.address), PAYER.address, say=lambda _words: None)
    made = ColdWallet(settings(house), path, outside, say=lambda _words: None)
    made._transactions.poll_s = 0.01
    try:
        yield made
    finally:
        await made.close()
        await outside.close()


def deposit(house: RpcHouse, config: ChannelConfig, amount: int) -> WantedDeposit:
    return WantedDeposit(currency=house.currency.name, config=config, splits=(), amount=amount)


async def paid(cold: ColdWallet, *deposits: WantedDeposit) -> list[str]:
    return [(await cold.pay(plan)).words for plan in await cold.plans((each, ()) for each in deposits)]


async def test_a_node_without_the_payers_key_asks_and_the_rest_comes_back_to_the_payer(
    house: RpcHouse, signer: str, tmp_path: Path
) -> None:
    """Opened, topped up, closed by both, taken out: all by two accounts of which the node has one."""
    scene = Scene(house)
    node = Party(house, PAYER_SIGNER, payer=PAYER.address, withdraw_above=0)
    config = scene.config()
    node.pays_on(scene, config)
    async with serving(node), cold_wallet(house, tmp_path / "cold.sqlite", signer) as cold:
        node.settler.want(wanted(scene, config, 300))
        await until(lambda: node.told(FundingFailed), "the node says that it cannot")
        reason = node.told(FundingFailed)[0].reason
        assert "0.000300" in reason
        assert checksum_address(PAYER.address) in reason
        assert "hansa wallet deposit" in reason
        assert await house.purse(PAYER.address) == HAS
        await cold.check()
        assert await paid(cold, deposit(house, config, 300)) == ["opened a channel with 0.000300 TEST"]
        assert await paid(cold, deposit(house, config, 300)) == []
        await until(lambda: 300 in node.funds(), "300 are final")
        assert await paid(cold, deposit(house, config, 450)) == ["added 0.000150 TEST to a channel"]
        await until(lambda: 450 in node.funds(), "450 are final")
        assert await house.purse(PAYER.address) == HAS - 450
        close = SettlementWanted(
            channel_id=scene.id(config),
            currency=house.currency.name,
            config=config,
            splits=(),
            cumulative=120,
            other_signature=scene.close_signature(config, 120, PAYEE_SIGNER),
        )
        node.pays_on(scene, config, phase="closed", close_signature=close.other_signature)
        back = HAS - 120
        for _ in range(600):
            # The payee is given time to bring it to the chain first.
            node.settler.want(close)
            node.ahead_ms += 10_000
            # The purse is read at the newest block; what became of the channel is final a few blocks later.
            state = await node.settler.backend.state(scene.id(config))
            if state.phase == CLOSED and await house.purse(PAYER.address) == back:
                break
            await trio.sleep(0.1)
        assert await house.purse(PAYER.address) == back
        assert (await node.settler.backend.state(scene.id(config))).phase == CLOSED
        assert await house.purse(PAYER_SIGNER.address) == 0, "the node's own account never had any of it"
        assert await node.settler.backend.credit(PAYEE.address) == 120 == await house.held()
        view = node.settler.view()["payer"]
        assert view["account"] == checksum_address(PAYER.address)


async def test_a_node_never_pays_another_accounts_channel_from_its_own(house: RpcHouse) -> None:
    """Anybody may top up a channel, and what comes back of it would be its payer's."""
    scene = Scene(house)
    await house.fund(PAYER_SIGNER, HAS)
    node = Party(house, PAYER_SIGNER, payer=PAYER.address)
    config = await scene.opened(deposit=100)
    node.pays_on(scene, config)
    async with serving(node):
        await until(lambda: 100 in node.funds(), "100 are final")
        node.settler.want(wanted(scene, config, 300))
        await until(lambda: node.told(FundingFailed), "the node says that it cannot")
        with pytest.raises(Refused, match="another account's"):
            await pay_in(node.settler.backend, wanted(scene, config, 300))
        assert await house.purse(PAYER_SIGNER.address) == HAS
        assert (await node.settler.backend.state(scene.id(config), final=False)).deposit == 100


async def test_a_deposit_that_comes_after_its_job_is_over_is_asked_back(house: RpcHouse) -> None:
    scene = Scene(house)
    node = Party(house, PAYER_SIGNER, payer=PAYER.address)
    config = scene.config()
    node.pays_on(scene, config, phase="closed")
    async with serving(node):
        await until(lambda: scene.id(config) in node.settler._rest_until_ms, "it was looked at")
        rests_until_ms = node.settler._rest_until_ms[scene.id(config)]
        await trio.sleep(0.5)
        assert node.settler._rest_until_ms[scene.id(config)] == rests_until_ms, "it is not looked at again and again"
        await house.evm(PAYER).open(config, (), 100)
        node.ahead_ms = 11 * 60_000
        for _ in range(600):
            if (await node.settler.backend.state(scene.id(config), final=False)).phase == CLOSING:
                break
            await trio.sleep(0.1)
        assert (await node.settler.backend.state(scene.id(config), final=False)).phase == CLOSING


@pytest.mark.parametrize("later", [700, 400])
async def test_what_was_interrupted_is_taken_up_for_what_it_was_and_only_the_rest_is_added(
    later: int, house: RpcHouse, signer: str, tmp_path: Path
) -> None:
    """A top-up to 450 was killed in the pool. Meanwhile 700 are wanted, or no more than 400."""
    config = Scene(house).config()
    path, key = tmp_path / "cold.sqlite", deposit(house, config, 300).channel_id
    async with cold_wallet(house, path, signer) as cold:
        await cold.check()
        await paid(cold, deposit(house, config, 300))
        house.chain.ask("evm_setAutomine", False)
        async with trio.open_nursery() as life:
            life.start_soon(paid, cold, deposit(house, config, 450))
            await begun(house, cold, "top-up")
            life.cancel_scope.cancel()
    async with cold_wallet(house, path, signer) as cold:
        (plan,) = await cold.plans([(deposit(house, config, later), ())])
        done = []
        async with trio.open_nursery() as mining:
            mining.start_soon(_mine, house, cold, mining.cancel_scope, _looked(cold))
            done.append(await cold.pay(plan))
            mining.cancel_scope.cancel()
        real = (await cold.backend.state(key, final=False)).deposit
        assert real == max(later, 450) == await cold.backend.deposit(key)
        assert done[0].amount == real - 300, "so much is taken from what --up-to allows"
        assert await house.purse(PAYER.address) == HAS - real
        assert await cold.plans([(deposit(house, config, real), ())]) == []
        (more,) = await cold.plans([(deposit(house, config, real + 9), ())])
        assert more.missing == 9


async def test_an_opening_that_was_interrupted_is_taken_up_for_what_it_was(
    house: RpcHouse, signer: str, tmp_path: Path
) -> None:
    config = Scene(house).config()
    path, key = tmp_path / "cold.sqlite", deposit(house, config, 300).channel_id
    house.chain.ask("evm_setAutomine", False)
    async with cold_wallet(house, path, signer) as cold, trio.open_nursery() as life:
        life.start_soon(paid, cold, deposit(house, config, 300))
        await begun(house, cold, "open")
        life.cancel_scope.cancel()
    async with cold_wallet(house, path, signer) as cold:
        async with trio.open_nursery() as mining:
            mining.start_soon(_mine, house, cold, mining.cancel_scope, _looked(cold))
            cold.backend.symbol = "TEST"
            (words,) = await paid(cold, deposit(house, config, 700))
            mining.cancel_scope.cancel()
        assert words == "opened a channel with 0.000300 TEST and added 0.000400 TEST to a channel"
        assert (await cold.backend.state(key, final=False)).deposit == 700 == await cold.backend.deposit(key)


async def begun(house: RpcHouse, cold: ColdWallet, what: str) -> None:
    """Until a transaction of a kind waits in the pool; only what must be in a block before it gets into one."""
    for _ in range(600):
        waiting = {each.purpose.split()[0] for each in cold._store.unsettled() if each.phase == SENT}
        if what in waiting:
            return
        if "approve" in waiting:
            house.chain.mine()
        await trio.sleep(0.05)
    raise AssertionError(f"no {what} was ever begun")


async def test_the_payer_gets_everything_back_without_the_node(house: RpcHouse, signer: str, tmp_path: Path) -> None:
    scene = Scene(house)
    config = scene.config()
    async with cold_wallet(house, tmp_path / "cold.sqlite", signer) as cold:
        assert await paid(cold, deposit(house, config, 400))
    async with cold_wallet(house, tmp_path / "cold.sqlite", signer) as cold:
        kept = cold.kept()
        assert kept == [deposit(house, config, 400)]
        assert "asked for its end" in (await cold.take_back(kept))[0]
        assert "can be ended in" in (await cold.take_back(kept))[0]
        await house.pass_time(config.challenge_period + 1)
        assert "took 0.000400" in (await cold.take_back(kept))[1]
        assert await cold.take_back(kept) == []
        assert await house.purse(PAYER.address) == HAS
        assert await house.held() == 0


async def test_a_deposit_in_another_escrow_is_not_said_to_be_back(house: RpcHouse, signer: str, tmp_path: Path) -> None:
    """`chain` was set to another escrow of the same chain since: what lies in the old one is still there."""
    config, other = Scene(house).config(), b"\xee" * 20
    async with cold_wallet(house, tmp_path / "cold.sqlite", signer) as cold:
        await paid(cold, deposit(house, config, 400))
        kept = cold.kept()
        code = escrow_code(31_337, other)
        house.chain.ask("anvil_setCode", "0x" + other.hex(), "0x" + code.hex())
        cold.backend.currency = currency_of(escrow_currency(31_337, other, house.currency.token))
        for _ in range(2):
            (words,) = await cold.take_back(kept)
            assert "left out" in words
            assert checksum_address(house.currency.escrow) in words
            assert "chain.escrow" in words
        cold.backend.currency = house.currency
        assert "asked for its end" in (await cold.take_back(kept))[0]


async def test_nothing_is_begun_that_its_fees_would_stop_half_way(house: RpcHouse, signer: str, tmp_path: Path) -> None:
    house.chain.give_coins(PAYER.address, 10**9)
    async with cold_wallet(house, tmp_path / "cold.sqlite", signer) as cold:
        with pytest.raises(OperatorError, match="coins"):
            await paid(cold, deposit(house, Scene(house).config(), 400))
        assert cold._store.unsettled() == ()


# Killed at any instant, a deposit is made once.


class Killed(BaseException):
    """The process ends here, as with kill -9: nothing after this line happens."""


class Fate:
    """Kills at one step: before the k-th thing that leaves the process or reaches its disk, or right after it."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def passes(self) -> None:
        self.seen += 1
        if self.seen == self.step:
            raise Killed

    def over(self, work: Callable[..., Any]) -> Callable[..., Any]:
        async def counted(*values: Any, **named: Any) -> Any:
            self.passes()
            done = await work(*values, **named)
            self.passes()
            return done

        return counted

    def over_now(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*values: Any, **named: Any) -> Any:
            self.passes()
            done = work(*values, **named)
            self.passes()
            return done

        return counted


def watched(cold: ColdWallet, signer: Any, fate: Fate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signer, "sign_permit", fate.over(signer.sign_permit))
    monkeypatch.setattr(signer, "sign_transaction", fate.over(signer.sign_transaction))
    monkeypatch.setattr(cold._nodes, "send", fate.over(cold._nodes.send))
    for name in ("intend", "keep_word", "judge", "add_attempt"):
        monkeypatch.setattr(cold._store, name, fate.over_now(getattr(cold._store, name)))


async def lived(house: RpcHouse, path: Path, plans: list[WantedDeposit], fate: Fate, patch: Any) -> bool:
    """One life of the command; whether it came to its own end."""
    signer = AccountSigner(PAYER)
    cold = ColdWallet(settings(house), path, signer, say=lambda _words: None)
    cold._transactions.poll_s = 0.01
    watched(cold, signer, fate, patch)
    killed = False
    try:
        async with trio.open_nursery() as nursery:
            await cold.check()
            for each in plans:
                # Planned while what the life before has sent is in no block yet.
                planned = await cold.plans([(each, ())])
                with trio.CancelScope() as mining:
                    nursery.start_soon(_mine, house, cold, mining)
                    for plan in planned:
                        await cold.pay(plan)
                mining.cancel()
            nursery.cancel_scope.cancel()
    except* Killed:
        killed = True
    finally:
        await cold.close()
    return not killed


def _looked(cold: ColdWallet) -> trio.Event:
    """When the wallet has seen what the channel has. What is in a block by then is not there to be taken up."""
    looked = trio.Event()

    def over(pay: Callable[..., Any]) -> Callable[..., Any]:
        async def paying(*values: Any, **named: Any) -> Any:
            looked.set()
            return await pay(*values, **named)

        return paying

    for name in ("pay_in_first", "pay_in_more"):
        setattr(cold.backend, name, over(getattr(cold.backend, name)))
    return looked


async def _mine(
    house: RpcHouse, cold: ColdWallet, until_over: trio.CancelScope, after: trio.Event | None = None
) -> None:
    """Blocks come late, and only where something was sent that is written down."""
    if after is not None:
        await after.wait()
    while not until_over.cancel_called:
        await trio.sleep(0.06)
        if cold._store.unsettled():
            await trio.to_thread.run_sync(house.chain.mine)


@pytest.mark.parametrize("permits", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_killed_at_any_step_each_deposit_is_made_once(
    permits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between permit, intention, opening, approval and top-up; with a permit, and where the token gives none."""
    if not permits:

        async def none(_self: Any, _amount: int) -> None:
            return None

        monkeypatch.setattr("hansa.node.chain.evm_allowance.Allowance.permit", none)
    async with fresh_house() as house:
        house.chain.give_coins(PAYER.address, 10**24)
        await house.fund(PAYER, 10**9)
        house.chain.mine(3)
        house.chain.ask("evm_setAutomine", False)
        scene, left = Scene(house), 10**9
        # After one thing is before the next: every second step is every instant.
        for step in count(1, 2):
            path, config = tmp_path / f"{step}.sqlite", scene.config()
            plans = [deposit(house, config, 300), deposit(house, config, 450)]
            with monkeypatch.context() as patch:
                unharmed = await lived(house, path, plans, Fate(step), patch)
            if not unharmed:
                with monkeypatch.context() as patch:
                    assert await lived(house, path, plans, Fate(0), patch)
            state = await house.evm(STRANGER).state(scene.id(config), final=False)
            assert (state.phase, state.deposit) == (OPEN, 450), f"killed at step {step}"
            left -= 450
            assert await house.purse(PAYER.address) == left, f"killed at step {step}"
            if unharmed:
                break
        assert step > 20, "so many steps there are at least"
