"""A node's money on a real chain: what the engine hears of it, and what is done about closes, reorgs and outages."""

import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from kit.rpc_house import RpcHouse, fresh_house
from kit.rpc_stand_in import StandIn, lying, rpc_stand_in
from kit.settlement_scene import DEPOSIT, PAYEE, PAYER, PAYER_SIGNER, STRANGER, Scene
from kit.settling_party import Party, serving, until, wanted

from hansa.market.funding import ChannelSettled, FundingFailed, SettlementWanted
from hansa.market.receipts import Statement
from hansa.market.settlement import CLOSED
from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.evm_backend import EvmBackend
from hansa.node.chain.json_rpc import RpcNode
from hansa.node.chain.voucher_file import HeldVoucher, read_vouchers, voucher_view, write_vouchers
from hansa.node.chain.watchtower import Watch, Watchtower, held_in, run_watchtower
from hansa.node.faults import ConfigError, OperatorError
from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.documents import ChannelConfig, CooperativeClose, Receipt, Voucher, channel_id
from hansa.proto.signing import Signed, sign

pytestmark = pytest.mark.trio


@pytest.fixture
async def house() -> AsyncIterator[RpcHouse]:
    async with fresh_house() as opened:
        opened.chain.mine(3)
        yield opened


async def test_a_channel_is_opened_once_and_topped_up_to_what_is_wanted(house: RpcHouse) -> None:
    scene, payer = Scene(house), Party(house, PAYER)
    config = scene.config()
    await house.fund(PAYER, 500)
    payer.pays_on(scene, config)
    async with serving(payer):
        for _ in range(3):
            payer.settler.want(wanted(scene, config, 300))
        await until(lambda: 300 in payer.funds(), "300 are final")
        payer.settler.want(wanted(scene, config, 300))
        payer.settler.want(wanted(scene, config, 450))
        await until(lambda: 450 in payer.funds() or payer.settler.want(wanted(scene, config, 450)), "450 are final")
        assert await house.purse(PAYER.address) == 50
        payer.settler.want(wanted(scene, config, 501))
        await until(lambda: payer.told(FundingFailed), "it was said that there is too little")
    assert "send some to 0x" in payer.told(FundingFailed)[0].reason
    assert payer.funds() == sorted(payer.funds())


async def test_an_order_in_another_currency_is_not_obeyed(house: RpcHouse) -> None:
    """Such as a peer's own fake escrow: the node deals in the configured one."""
    scene, payer = Scene(house), Party(house, PAYER)
    await house.fund(PAYER, 500)
    name = escrow_currency(31337, b"\xfa" * 20, house.token)
    fake = replace(wanted(scene, scene.config(), 300), currency=name)
    async with serving(payer):
        payer.settler.want(fake)
        await trio.sleep(0.3)
    assert await house.purse(PAYER.address) == 500
    assert payer.settler.counters["orders in another currency than the configured one"] == 1


async def test_work_on_an_unconfirmed_or_reorged_deposit_is_never_told_to_be_paid_for(house: RpcHouse) -> None:
    scene, payee = Scene(house), Party(house, PAYEE)
    config = await scene.opened()
    payee.earns_on(scene, config, 0, live=frozenset({b"\x09" * 32}))
    async with serving(payee, mines=False):
        await until(payee.funds, "something was said")
        await trio.sleep(0.3)
        assert payee.funds() == [0]
        house.chain.mine(2)
        await until(lambda: payee.funds()[-1] == DEPOSIT, "the deposit is final")
        house.chain.ask("evm_setAutomine", False)
        house.chain.reorg(3)
        house.chain.ask("anvil_dropAllTransactions")
        await until(lambda: payee.funds()[-1] == 0, "the deposit is gone")


async def claimed(house: RpcHouse, scene: Scene, config: ChannelConfig) -> int:
    return (await house.evm(STRANGER).state(scene.id(config), final=False)).claimed


async def test_a_close_in_the_middle_is_answered_inside_the_window_and_stops_the_work(house: RpcHouse) -> None:
    scene, payee = Scene(house), Party(house, PAYEE)
    config = await scene.opened()
    payee.earns_on(scene, config, 700, live=frozenset({b"\x09" * 32}))
    async with serving(payee):
        await until(lambda: DEPOSIT in payee.funds(), "the deposit is final")
        assert await claimed(house, scene, config) == 0
        await house.evm(PAYER).request_close(config)
        await until(lambda: payee.funds()[-1] == 700, "no more is to be worked than is vouched for")
        await until(lambda: payee.settler.counters["chain: vouchers claimed"], "it was claimed")
    assert await claimed(house, scene, config) == 700


async def test_what_was_claimed_is_credited_though_the_buyer_has_vanished(house: RpcHouse) -> None:
    scene, payee = Scene(house), Party(house, PAYEE)
    silent, closing, working = await scene.opened(), await scene.opened(), await scene.opened()
    for config in (silent, closing, working):
        await house.evm(STRANGER).claim([scene.claim(config, 700)])
    await house.evm(PAYER).request_close(closing)
    for config in (silent, closing):
        payee.earns_on(scene, config, 700)
    payee.earns_on(scene, working, 700, live=frozenset({b"\x09" * 32}))
    async with serving(payee):
        await until(lambda: len(payee.told(ChannelSettled)) == 1, "what is being closed has ended")
        await trio.sleep(0.3)
        assert [event.channel_id for event in payee.told(ChannelSettled)] == [scene.id(closing)]
        payee.ahead_ms = silent.challenge_period * 1000
        await until(lambda: len(payee.told(ChannelSettled)) == 2, "what is silent has ended")
        assert await house.evm(STRANGER).credit(PAYEE.address) == 1_400
        payee.state.earning[scene.id(working)] = replace(payee.state.earning.live[scene.id(working)], live=frozenset())
        await house.evm(PAYER).request_close(working)
        await until(lambda: len(payee.told(ChannelSettled)) == 3, "the last has ended")
    assert await house.evm(STRANGER).credit(PAYEE.address) == 2_100


async def test_a_close_is_answered_though_the_nodes_do_not_agree(house: RpcHouse) -> None:
    scene = Scene(house)
    config = await scene.opened()

    def lie(method: str, _: Any, answer: Any) -> Any:
        return {**answer, "hash": "0x" + "ab" * 32} if method == "eth_getBlockByNumber" and answer else answer

    with rpc_stand_in(lying(house.chain.url, lie)) as liar:
        payee = Party(house, PAYEE)
        payee.earns_on(scene, config, 700, live=frozenset({b"\x09" * 32}))
        async with serving(payee):
            await until(lambda: DEPOSIT in payee.funds(), "the deposit is final")
            honest = payee.settler._nodes.nodes
            payee.settler._nodes.nodes = (*honest, liar_node := RpcNode(liar.url))
            await until(payee.settler.troubles, "it is said that they disagree")
            await house.evm(PAYER).request_close(config)
            begun = payee.settler.claimer.under_way
            await until(lambda: begun, "a claim has begun")
            payee.settler._nodes.nodes = honest
            await liar_node.close()
            await until(lambda: payee.settler.counters["chain: vouchers claimed"], "it was claimed")
    assert await claimed(house, scene, config) == 700


async def test_a_channel_that_nobody_funds_is_looked_at_rarely_unless_a_lease_is_on_it(house: RpcHouse) -> None:
    scene, payee = Scene(house), Party(house, PAYEE)
    config = scene.config()
    payee.earns_on(scene, config, 0)
    node = payee.settler._nodes.nodes[0]
    async with serving(payee):
        await until(payee.funds, "it was looked at")
        key = scene.id(config)
        until_ms = payee.settler._rest_until_ms[key]
        asked = node.asked
        await until(lambda: node.asked > asked + 30, "it looks on")
        assert payee.settler._rest_until_ms[key] == until_ms
        payee.state.earning[key] = replace(payee.state.earning.live[key], live=frozenset({b"\x09" * 32}))
        await until(lambda: payee.settler._rest_until_ms[key] > until_ms, "it is looked at again")


async def test_a_deposit_that_is_under_way_when_its_channel_ends_is_not_forgotten(house: RpcHouse) -> None:
    scene, payer = Scene(house), Party(house, PAYER)
    first, second = scene.config(), scene.config()
    await house.fund(PAYER, 900)
    for config in (first, second):
        payer.pays_on(scene, config)
    house.chain.ask("evm_setAutomine", False)
    async with serving(payer, mines=False):
        store = payer.settler._store
        payer.settler.want(wanted(scene, first, 300))
        await until(lambda: store.newest(f"open {scene.id(first).hex()}"), "the first deposit is under way")
        payer.settler.want(wanted(scene, second, 300))
        for config in (first, second):
            payer.pays_on(scene, config, "closed")
        await trio.sleep(0.5)
        assert scene.id(first) not in payer.settler._settled
        house.chain.ask("evm_setAutomine", True)
        house.chain.mine(3)
        purpose = f"request-close {scene.id(first).hex()}"
        await until(lambda: store.newest(purpose) or house.chain.mine(), "the first is asked back")
        await until(lambda: scene.id(second) in payer.settler._settled, "the second is done with")
    assert payer.settler.counters["chain: deposits that were not wanted any more"] == 1
    assert await house.purse(PAYER.address) == 600


async def test_many_channels_are_claimed_in_one_transaction(house: RpcHouse) -> None:
    scene, payee = Scene(house), Party(house, PAYEE, claim_above=500)
    configs = [await scene.opened() for _ in range(4)]
    for number, config in enumerate(configs):
        payee.earns_on(scene, config, (600, 20, 5, 30)[number])
    async with serving(payee):
        await until(lambda: payee.settler.counters["chain: vouchers claimed"] == 3, "three were claimed")
    assert [await claimed(house, scene, config) for config in configs] == [600, 20, 0, 30]
    assert house.chain.ask("eth_getTransactionCount", "0x" + PAYEE.address.hex(), "latest") == "0x1"


def agreed_on(house: RpcHouse, config: ChannelConfig, proposed: Signed[CooperativeClose]) -> SettlementWanted:
    """The end that the other side has proposed, wanted on the chain."""
    return SettlementWanted(
        channel_id=proposed.document.channel_id,
        currency=house.currency.name,
        config=config,
        splits=(),
        cumulative=proposed.document.cumulative,
        other_signature=proposed.signature,
    )


async def test_what_both_signed_is_brought_to_the_chain_and_taken_out(house: RpcHouse) -> None:
    scene, payee, payer = Scene(house), Party(house, PAYEE, withdraw_above=1), Party(house, PAYER, withdraw_above=1)
    config = await scene.opened(payer_signer=PAYER.address, payee_signer=PAYEE.address)
    close = CooperativeClose(channel_id=scene.id(config), cumulative=123)
    proposed = sign(house.domain, close, PAYER)
    payee.earns_on(scene, config, 0, proposed=proposed, phase="closed")
    payer.pays_on(scene, config, "closed", close_signature=bytes(65), cumulative=123)
    ends = agreed_on(house, config, proposed)
    async with serving(payee, payer):
        payee.settler.want(ends)
        await until(lambda: payee.told(ChannelSettled) and payer.told(ChannelSettled), "both heard of the end")
        await until(lambda: payer.settler.counters["chain: withdrawals"], "the rest was taken back")
        await until(lambda: payee.settler.counters["chain: withdrawals"], "the pay was taken out")
        assert payer.settler.paid_on_chain() == (0, 123)
    assert payee.told(ChannelSettled)[0].paid == 123
    assert payer.told(ChannelSettled)[0].paid == 123
    assert await house.purse(PAYEE.address) == 123
    assert await house.purse(PAYER.address) == DEPOSIT - 123
    assert await house.held() == 0


async def test_what_a_node_paid_itself_counts_as_paid_on_both_sides(house: RpcHouse) -> None:
    scene, both = Scene(house), Party(house, PAYER)
    config = await scene.opened(payer_signer=PAYER.address, payee=PAYER.address, payee_signer=PAYER.address)
    close = CooperativeClose(channel_id=scene.id(config), cumulative=123)
    proposed = sign(house.domain, close, PAYER)
    receipt = Receipt(
        channel_id=close.channel_id,
        seq=1,
        prev=bytes(32),
        period_start_ms=1,
        period_end_ms=2,
        amount_total=123,
        lines=0,
        lines_root=bytes(32),
        evidence=bytes(32),
    )
    both.earns_on(scene, config, 123, proposed=proposed, phase="closed")
    earning = both.state.earning.get(close.channel_id)
    assert earning is not None
    vouched = Statement(receipt=receipt, lines=(), evidence=())
    both.state.earning[close.channel_id] = replace(earning, vouched=vouched)
    both.pays_on(scene, config, "closed", close_signature=bytes(65), cumulative=123)
    ends = agreed_on(house, config, proposed)
    async with serving(both):
        both.settler.want(ends)
        await until(lambda: both.told(ChannelSettled), "it heard of the end")
        final = both.settler._final_number
        await until(lambda: both.settler._final_number > final + 2, "it looked again")
        assert both.settler.paid_on_chain() == (123, 123)


async def test_a_deposit_for_an_award_that_came_to_nothing_is_got_back(house: RpcHouse) -> None:
    scene, payer = Scene(house), Party(house, PAYER)
    config = await scene.opened()
    payer.pays_on(scene, config, "closed")
    async with serving(payer):
        store, purpose = payer.settler._store, f"request-close {scene.id(config).hex()}"
        await until(lambda: (sent := store.newest(purpose)) is not None and sent.ok, "it is being closed")
        await house.pass_time(config.challenge_period + 1)
        await until(lambda: payer.told(ChannelSettled), "it is closed")
    assert (await house.evm(STRANGER).state(scene.id(config))).phase == CLOSED
    assert await house.evm(STRANGER).credit(PAYER.address) == DEPOSIT


async def test_an_outage_of_the_rpc_is_survived_and_said(house: RpcHouse) -> None:
    scene = Scene(house)
    config = await scene.opened()
    with rpc_stand_in(lying(house.chain.url, lambda *said: said[2])) as there:
        payee = Party(house, PAYEE, there.url)
        payee.earns_on(scene, config, 0)
        there.down = True
        async with serving(payee):
            await until(payee.settler.troubles, "it is said")
            assert not payee.settler.view()["sound"]
            assert payee.funds() == []
            there.down = False
            await until(lambda: DEPOSIT in payee.funds(), "it works again")
            await until(lambda: not payee.settler.troubles(), "nothing is wrong any more")
            await outage_in_the_middle(payee, there)
            assert "a-secret-key" not in repr(payee.settler.view()) + "".join(payee.lines)


async def outage_in_the_middle(payee: Party, there: StandIn) -> None:
    before = list(payee.funds())
    there.down = True
    await until(payee.settler.troubles, "it is said again")
    assert payee.funds() == before
    there.down = False
    await until(lambda: not payee.settler.troubles(), "it is over")


# The watchtower.


def held_by(scene: Scene, config: ChannelConfig, total: int) -> HeldVoucher:
    voucher = scene.voucher(config, total)
    name = scene.house.currency.name  # type: ignore[attr-defined]
    return HeldVoucher(currency=name, config=config, voucher=voucher.document, signature=voucher.signature)


def write(file: Path, *vouchers: HeldVoucher) -> Path:
    write_vouchers(file, [voucher_view(each.currency, each.config, each.claim.voucher) for each in vouchers])
    return file


def tower_of(house: RpcHouse, said: list[dict[str, Any]]) -> tuple[Watchtower, EvmBackend]:
    backend = house.evm(STRANGER)
    tower = Watchtower(backend._nodes, backend._transactions.store, STRANGER, say=said.append)
    tower._backends[house.currency.name] = backend
    return tower, backend


async def test_close_while_the_provider_is_offline_the_watchtower_claims_without_its_keys(
    house: RpcHouse, tmp_path: Path
) -> None:
    scene = Scene(house)
    closing, still_open = await scene.opened(), await scene.opened()
    file = write(tmp_path / "a.vouchers", held_by(scene, closing, 70), held_by(scene, still_open, 80))
    write(tmp_path / "b.vouchers", held_by(scene, closing, 90))
    held = held_in([tmp_path])
    assert sorted(each.voucher.cumulative for each in held) == [70, 80, 90]
    said: list[dict[str, Any]] = []
    tower, _ = tower_of(house, said)
    await tower.look(held, dry_run=False)
    assert said == []
    for _ in range(2):
        tower.tell_of(held)
    tower.tell_of(held[:1])
    assert [each["words"] for each in said] == [
        "watching 2 channels, with 3 vouchers",
        "watching 1 channels, with 1 vouchers",
    ], "it is said when it changes"
    said.clear()
    await house.evm(PAYER).request_close(closing)
    await tower.look(held, dry_run=True)
    assert await claimed(house, scene, closing) == 0
    await tower.look(held, dry_run=False)
    await tower.look(held, dry_run=False)
    assert [each["what"] for each in said] == ["closing", "claimed"]
    assert await claimed(house, scene, closing) == 90
    assert await claimed(house, scene, still_open) == 0
    for key in (PAYEE, PAYER):
        assert key.secret().hex() not in file.read_text()


@pytest.mark.parametrize("wrong", ["signature", "channel", "ledger", "token", "junk", "empty"])
async def test_a_file_of_vouchers_is_what_it_says_or_is_not_taken(house: RpcHouse, tmp_path: Path, wrong: str) -> None:
    scene = Scene(house)
    good = held_by(scene, scene.config(), 70)
    file = write(tmp_path / "a.vouchers", good)
    assert read_vouchers(file) == [good]
    text = file.read_text()
    changes = {
        "signature": text.replace(good.signature.hex(), bytes(65).hex()),
        "channel": text.replace(good.config.salt.hex(), bytes(32).hex()),
        "ledger": text.replace(good.currency, "USD"),
        "token": text.replace(f"erc20:0x{house.token.hex()}", f"erc20:0x{bytes(20).hex()}"),
        "junk": text + "{}\n",
        "empty": "",
    }
    assert changes[wrong] != text
    file.write_text(changes[wrong])
    with pytest.raises(ConfigError):
        held_in([file])


async def test_a_file_or_a_contract_that_is_not_what_it_should_be_keeps_no_other_from_being_watched(
    house: RpcHouse, tmp_path: Path
) -> None:
    scene = Scene(house)
    closing = await scene.opened()
    write(tmp_path / "a.vouchers", held_by(scene, closing, 90))
    (tmp_path / "b.vouchers").write_text("junk\n")
    nowhere = currency_of(escrow_currency(house.currency.chain_id, b"\x11" * 20, house.token))
    said: list[dict[str, Any]] = []
    tower, _ = tower_of(house, said)
    held = held_in([tmp_path], skip=tower.trouble)
    assert [each.voucher.cumulative for each in held] == [90]
    await tower.check_all([nowhere, house.currency])
    assert [each["what"] for each in said] == ["trouble", "trouble"]
    assert nowhere.name in said[1]["words"]
    with pytest.raises(OperatorError):
        await tower.check_all([nowhere])
    await house.evm(PAYER).request_close(closing)
    unknown = replace(held[0], currency=nowhere.name)
    faults = await tower.look([unknown, *held], dry_run=False)
    assert len(faults) == 1
    assert await claimed(house, scene, closing) == 90


async def test_a_watchtower_that_cannot_ask_the_chain_at_its_start_asks_again(house: RpcHouse) -> None:
    scene = Scene(house)
    closing = await scene.opened()
    await house.evm(PAYER).request_close(closing)
    said: list[dict[str, Any]] = []
    with rpc_stand_in(lying(house.chain.url, lambda _method, _params, real: real)) as there:
        there.down = True
        nodes = ChainNodes([RpcNode(there.url)], confirmations=0)
        tower = Watchtower(nodes, house.evm(STRANGER)._transactions.store, STRANGER, say=said.append)
        await tower.check_all([house.currency])
        assert [each["what"] for each in said] == ["trouble"]
        held = [held_by(scene, closing, 90)]
        assert await tower.look(held, dry_run=False)
        there.down = False
        assert not await tower.look(held, dry_run=False)
        await nodes.close()
    assert await claimed(house, scene, closing) == 90


@pytest.mark.parametrize("wrong", ["chain", "escrow"])
async def test_a_watchtower_that_looks_once_says_what_is_wrong_in_one_line(
    house: RpcHouse, tmp_path: Path, wrong: str
) -> None:
    held = held_by(Scene(house), Scene(house).config(), 70)
    url, words = "http://127.0.0.1:1", "cannot be reached"
    if wrong == "escrow":
        nowhere = currency_of(escrow_currency(house.currency.chain_id, b"\x11" * 20, house.token))
        voucher = Voucher(channel_id=channel_id(nowhere.domain, held.config), cumulative=70, statement=bytes(32))
        signature = sign(nowhere.domain, voucher, PAYER_SIGNER).signature
        held = replace(held, currency=nowhere.name, voucher=voucher, signature=signature)
        url, words = house.chain.url, "escrow"
    look = ["watchtower", str(write(tmp_path / "a.vouchers", held)), "--rpc", url, "--dry-run", "--once"]
    program = [sys.executable, "-m", "hansa", *look]
    done = await trio.run_process(program, check=False, capture_stdout=True, capture_stderr=True)
    said = done.stderr.decode().splitlines()
    assert (done.returncode, len(said)) == (2, 2), "no traceback"
    assert words in said[0]
    assert said[1].startswith("hint: ")


async def test_somebody_has_to_pay_the_fees_of_a_claim(house: RpcHouse, tmp_path: Path) -> None:
    scene = Scene(house)
    file = write(tmp_path / "a.vouchers", held_by(scene, scene.config(), 70))
    watch = Watch(
        files=(file,),
        urls=(house.chain.url,),
        keystore=None,
        password_file=None,
        room=None,
        dry_run=False,
        once=True,
        poll_s=1.0,
    )
    with pytest.raises(ConfigError, match="pay the fees"):
        run_watchtower(watch, say=lambda _: None)
