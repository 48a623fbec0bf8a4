"""The escrow seen through nodes that may lie, on a chain that may take back what it said."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import trio
from kit.rpc_house import RpcHouse, fresh_house
from kit.rpc_stand_in import Answer, StandIn, lying, rpc_stand_in
from kit.settlement_scene import DEPOSIT, PAYEE, PAYER, STRANGER, Scene

from hansa.market.settlement import OPEN, UNSET, ChannelState, Happening, Refused
from hansa.node.chain.chain_dev import DevChain
from hansa.node.chain.chain_nodes import NodesDisagree
from hansa.node.chain.escrow_artefact import ESCROW, TEST_TOKEN, artefact, escrow_code
from hansa.node.chain.evm_backend import EvmBackend
from hansa.node.chain.evm_currency import WrongChain
from hansa.node.chain.evm_escrow import _CALLS, _EVENTS, CLAIM_SKIPPED, call
from hansa.node.chain.evm_store import FINAL, SENT
from hansa.node.chain.json_rpc import RpcAway, RpcFault, RpcMalformed, RpcNode
from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.keccak import keccak256

pytestmark = pytest.mark.trio


@pytest.fixture
async def house() -> AsyncIterator[RpcHouse]:
    async with fresh_house() as opened:
        yield opened


@pytest.fixture
def stand_ins() -> Iterator[Any]:
    with ExitStack() as stack:

        def start(answer: Answer) -> StandIn:
            return stack.enter_context(rpc_stand_in(answer))

        yield start


def signature_of(entry: dict[str, Any]) -> str:
    def type_of(part: dict[str, Any]) -> str:
        if not part["type"].startswith("tuple"):
            return str(part["type"])
        return f"({','.join(type_of(each) for each in part['components'])}){part['type'][5:]}"

    return f"{entry['name']}({','.join(type_of(each) for each in entry['inputs'])})"


async def test_every_call_and_log_is_one_of_the_compiled_contracts() -> None:
    abi = (*artefact(ESCROW).abi, *artefact(TEST_TOKEN).abi)
    functions = {signature_of(entry) for entry in abi if entry["type"] == "function"}
    events = {keccak256(signature_of(entry).encode()) for entry in abi if entry["type"] == "event"}
    assert {f"{name}({','.join(types)})" for name, types in _CALLS.items()} <= functions
    assert {*_EVENTS, CLAIM_SKIPPED} <= events


async def test_what_is_configured_is_found_sound_once_it_is_final(house: RpcHouse) -> None:
    backend = house.evm(PAYER)
    with pytest.raises(WrongChain):
        await backend.check()
    house.chain.mine(3)
    await backend.check()
    assert backend.symbol == "TEST"


def of(house: RpcHouse, **other: bytes | int) -> EvmBackend:
    """A backend for another currency than the house's."""
    parts = {"chain_id": 31337, "escrow": house.currency.escrow, "token": house.currency.token, **other}
    backend = house.evm(PAYER)
    backend.currency = currency_of(escrow_currency(**parts))  # type: ignore[arg-type]
    return backend


async def test_domain_spoofed_by_a_peer_a_fake_escrow_is_not_taken_for_ours(house: RpcHouse) -> None:
    """It answers like ours and has our code, all but one byte, which could be where it keeps the money for itself."""
    code = escrow_code(31337, fake := b"\xfa" * 20)
    for wrong in (bytes([code[0] ^ 1]) + code[1:], code[:-1], code + b"\0", escrow_code(1, fake), b""):
        house.chain.ask("anvil_setCode", "0x" + fake.hex(), "0x" + wrong.hex())
        house.chain.mine(3)
        with pytest.raises(WrongChain, match="not the escrow"):
            await of(house, escrow=fake).check()
    house.chain.ask("anvil_setCode", "0x" + fake.hex(), "0x" + code.hex())
    house.chain.mine(3)
    await of(house, escrow=fake).check()


async def test_another_chain_is_not_taken_for_the_configured_one(house: RpcHouse) -> None:
    house.chain.mine(3)
    with pytest.raises(WrongChain, match="chain 31337"):
        await of(house, chain_id=1).check()


@pytest.mark.parametrize("decimals", [0, 5, 7, 18, 255])
async def test_decimals_confusion_a_token_with_others_than_six_is_refused(house: RpcHouse, decimals: int) -> None:
    rpc = RpcNode(house.chain.url)
    token = await DevChain(rpc)._deploy(artefact(TEST_TOKEN).creation_code + decimals.to_bytes(32, "big"))
    await rpc.close()
    house.chain.mine(3)
    with pytest.raises(WrongChain, match=f"{decimals} decimals"):
        await of(house, token=token).check()


async def test_what_is_no_token_is_refused(house: RpcHouse) -> None:
    house.chain.mine(3)
    for token in (b"\x01" * 20, house.currency.escrow):
        with pytest.raises(WrongChain, match="no token"):
            await of(house, token=token).check()


async def test_a_channel_in_another_token_is_never_dealt_with(house: RpcHouse) -> None:
    scene = Scene(house)
    with pytest.raises(Refused, match="another token"):
        await house.evm(PAYER).open(scene.config(token=b"\x01" * 20), (), 5)


async def test_a_deposit_takes_one_transaction_where_the_token_knows_permits(house: RpcHouse) -> None:
    await Scene(house).opened()
    assert house.chain.ask("eth_getTransactionCount", "0x" + PAYER.address.hex(), "latest") == "0x1"


async def test_a_deposit_goes_without_permits_too() -> None:
    async with fresh_house(permits=False) as house:
        scene = Scene(house)
        config = await scene.opened()
        await scene.house.fund(PAYER, 7)
        await house.evm(PAYER).top_up(config, 7)
        state = await house.evm(PAYER).state(scene.id(config), final=False)
        assert state == ChannelState(phase=OPEN, deposit=DEPOSIT + 7)


async def test_work_on_an_unconfirmed_deposit_is_seen_for_what_it_is(house: RpcHouse) -> None:
    scene = Scene(house)
    house.chain.mine(3)
    config = await scene.opened()
    backend = house.evm(PAYEE)
    assert (await backend.state(scene.id(config), final=False)).deposit == DEPOSIT
    assert await backend.state(scene.id(config)) == ChannelState(phase=UNSET)
    house.chain.mine(2)
    assert (await backend.state(scene.id(config))).deposit == DEPOSIT


async def credited(house: RpcHouse, amount: int) -> None:
    """Have a channel end that pays so much to the payee."""
    scene = Scene(house)
    config = await scene.opened()
    await house.evm(PAYER).cooperative_close(config, (), amount, *scene.both_signatures(config, amount))


@pytest.mark.parametrize("is_final", [True, False])
async def test_a_withdrawal_whose_end_nobody_heard_is_not_told_as_the_next_one(house: RpcHouse, is_final: bool) -> None:
    await credited(house, 10)
    backend, store = house.evm(PAYEE), house.evm(PAYEE)._transactions.store
    content = call("withdraw", house.token, PAYEE.address)
    await backend._transactions.carry(f"withdraw {PAYEE.address.hex()} 0", house.currency.escrow, content)
    # Here the process was killed: it is in a block, and its number was not raised.
    if is_final:
        house.chain.mine(3)
        await backend.tend()
    await credited(house, 7)
    known = store.newest(f"withdraw {PAYEE.address.hex()} 0")
    assert known is not None
    assert (known.phase == FINAL) == is_final
    assert await backend.withdraw(PAYEE.address) == 7
    assert await house.purse(PAYEE.address) == 17
    assert await backend.credit(PAYEE.address) == 0


async def test_a_withdrawal_that_is_on_its_way_is_taken_up_again_and_not_sent_twice(house: RpcHouse) -> None:
    await credited(house, 10)
    backend, store = house.evm(PAYEE), house.evm(PAYEE)._transactions.store
    house.chain.ask("evm_setAutomine", False)
    with trio.move_on_after(1):
        await backend.withdraw(PAYEE.address)
    (sent,) = store.unsettled()
    assert sent.phase == SENT
    house.chain.ask("evm_setAutomine", True)
    house.chain.mine()
    assert await backend.withdraw(PAYEE.address) == 10
    assert [each.number for each in store.unsettled()] in ([sent.number], [])
    assert await house.purse(PAYEE.address) == 10
    with pytest.raises(Refused):
        await backend.withdraw(PAYEE.address)


async def told(backend: EvmBackend, cursor: int = 0) -> list[Happening]:
    return [happening async for happening in backend.events(cursor)]


async def test_a_reorged_deposit_is_taken_back_and_told_again(house: RpcHouse) -> None:
    scene, backend = Scene(house), house.evm(PAYEE)
    house.chain.mine(3)
    assert await told(backend) == []
    config = await scene.opened()
    (opened,) = await told(backend)
    assert (opened.kind, opened.amount, opened.final, opened.retracted) == ("opened", DEPOSIT, False, False)
    house.chain.ask("evm_setAutomine", False)
    house.chain.reorg(1)
    (retracted,) = await told(backend, opened.cursor)
    assert retracted == replace(opened, cursor=retracted.cursor, retracted=True)
    assert await backend.state(scene.id(config), final=False) == ChannelState(phase=UNSET)
    # The payer's side sends it once more, by itself.
    house.chain.ask("evm_setAutomine", True)
    payer = house.evm(PAYER)
    for _ in range(200):
        await payer._transactions.tend()
        house.chain.mine()
        if (await backend.state(scene.id(config))).deposit:
            break
        await trio.sleep(0.02)
    news = await told(backend, retracted.cursor)
    assert [(each.kind, each.amount, each.retracted) for each in news if each.final] == [("opened", DEPOSIT, False)]


async def test_the_history_is_followed_over_many_blocks_and_after_a_restart(house: RpcHouse) -> None:
    scene, backend = Scene(house), house.evm(PAYEE)
    await told(backend)
    config = await scene.opened()
    house.chain.mine(1_200)
    await backend.claim([scene.claim(config, 5)])
    house.chain.mine(5)
    news = await told(backend)
    assert [(each.kind, each.amount, each.final) for each in news] == [("opened", DEPOSIT, True), ("claimed", 5, True)]
    assert [each.cursor for each in news] == [1, 2]
    assert news[0].at_s <= news[1].at_s
    assert await told(backend, 2) == []


# Nodes that lie.


def rich_lie(house: RpcHouse, scene_id: bytes) -> Any:
    """Every channel is open and has a million in it."""
    channel = b"".join(value.to_bytes(32, "big") for value in (1, 10**12, 0, 0, 0))

    def lie(method: str, params: list[Any], result: Any) -> Any:
        asks_for_it = method == "eth_call" and scene_id.hex() in params[0]["data"]
        return "0x" + channel.hex() if asks_for_it else result

    return lie


async def test_a_lying_rpc_node_is_found_out_by_one_that_does_not(house: RpcHouse, stand_ins: Any) -> None:
    scene = Scene(house)
    house.chain.mine(3)
    key = scene.id(scene.config())
    liar = stand_ins(lying(house.chain.url, rich_lie(house, key)))
    alone = house.made(STRANGER, house._folder / "alone", [liar.url])
    assert (await alone.state(key)).deposit == 10**12
    both = house.made(STRANGER, house._folder / "both", [liar.url, house.chain.url])
    with pytest.raises(NodesDisagree):
        await both.state(key)
    assert len(both._nodes.faults) == 2


@pytest.mark.parametrize(
    "lied", ["eth_chainId", "eth_getCode", "eth_getBlockByNumber", "eth_getLogs", "eth_getTransactionCount"]
)
async def test_nodes_must_agree_on_all_that_decides_about_money(house: RpcHouse, stand_ins: Any, lied: str) -> None:
    scene = Scene(house)
    await told(house.evm(PAYEE))
    await scene.opened()
    house.chain.mine(3)

    def lie(method: str, params: list[Any], result: Any) -> Any:
        if method != lied:
            return result
        if method == "eth_getBlockByNumber":
            return {**result, "hash": "0x" + "11" * 32}
        if method == "eth_getLogs":
            return []
        return result[:-1] + ("0" if result[-1] != "0" else "1")

    liar = stand_ins(lying(house.chain.url, lie))
    both = house.made(STRANGER, house._folder / "both", [house.chain.url, liar.url])
    final = await house.evm(PAYER)._nodes.final_block()
    questions: dict[str, Any] = {
        "eth_chainId": both._nodes.chain_id,
        "eth_getCode": lambda: both._nodes.code(house.currency.escrow, final),
        "eth_getBlockByNumber": both._nodes.final_block,
        "eth_getLogs": lambda: both._nodes.logs(house.currency.escrow, 0, final),
        "eth_getTransactionCount": lambda: both._nodes.nonce(PAYER.address, final),
    }
    with pytest.raises(NodesDisagree):
        await questions[lied]()


async def test_a_node_that_lags_makes_the_others_wait_and_no_more(house: RpcHouse, stand_ins: Any) -> None:
    scene = Scene(house)
    house.chain.mine(3)
    first = house.chain.ask("eth_getBlockByNumber", "0x2", False)
    config = await scene.opened()
    house.chain.mine(3)
    lags = stand_ins(
        lying(
            house.chain.url,
            lambda method, params, result: first if (method, params[:1]) == (method, ["finalized"]) else result,
        )
    )
    both = house.made(STRANGER, house._folder / "both", [house.chain.url, lags.url])
    assert await both.state(scene.id(config)) == ChannelState(phase=UNSET)


async def test_more_than_half_of_the_nodes_must_answer(house: RpcHouse, stand_ins: Any) -> None:
    house.chain.mine(3)
    honest = [stand_ins(lying(house.chain.url, lambda *said: said[2])) for _ in range(3)]
    backend = house.made(STRANGER, house._folder / "three", [each.url for each in honest])
    await backend.check()
    honest[0].down = True
    await backend.check()
    assert len(backend._nodes.faults) == 1
    honest[1].down = True
    with pytest.raises(RpcAway):
        await backend.check()
    with pytest.raises(RpcAway):
        await backend._nodes.chain_id()
    honest[0].down = honest[1].down = False
    await backend.check()
    assert backend._nodes.faults == {}


MOST = 2**256 - 1


@pytest.mark.parametrize(
    "values",
    [
        (4, 0, 0, 0, 0),
        (MOST, 0, 0, 0, 0),
        (1, 2**128, 0, 0, 0),
        (1, MOST, MOST, MOST, 0),
        (1, 5, 6, 0, 0),
        (1, 5, 3, 4, 0),
        (2, 5, 3, 1, MOST),
        (1, 5, 3, 1),
        (1, 5, 3, 1, 0, 0),
        (),
    ],
)
async def test_zero_and_the_largest_values_from_a_node_are_no_channel(
    house: RpcHouse, stand_ins: Any, values: tuple[int, ...]
) -> None:
    answer = "0x" + b"".join(value.to_bytes(32, "big") for value in values).hex()
    house.chain.mine(3)
    liar = stand_ins(lying(house.chain.url, lambda *said: answer if said[0] == "eth_call" else said[2]))
    backend = house.made(STRANGER, house._folder / "liar", [liar.url])
    for final in (True, False):
        with pytest.raises(RpcMalformed):
            await backend.state(b"\x01" * 32, final=final)


async def test_logs_that_were_not_asked_for_are_refused(house: RpcHouse, stand_ins: Any) -> None:
    scene = Scene(house)
    await told(house.evm(PAYEE))
    await scene.opened()
    house.chain.mine(3)

    def stories(method: str, params: list[Any], result: Any) -> Any:
        return [changed(row) for row in result] if method == "eth_getLogs" else result

    liar = stand_ins(lying(house.chain.url, stories))
    backend = house.made(STRANGER, house._folder / "liar", [liar.url])
    backend._transactions.store.keep_word("looked to block", "1")
    for change in (
        {"address": "0x" + "01" * 20},
        {"blockNumber": "0xffffff"},
        {"removed": True},
        {"data": "0x"},
        {"topics": []},
        {"logIndex": "0x" + "f" * 64},
    ):

        def changed(row: dict[str, Any], change: dict[str, Any] = change) -> dict[str, Any]:
            return {**row, **change}

        if change == {"topics": []}:
            assert await told(backend) == []
            backend._transactions.store.keep_word("looked to block", "1")
            continue
        with pytest.raises(RpcFault):
            await told(backend)


async def test_secrets_in_logs_no_key_is_in_what_is_written_down(house: RpcHouse) -> None:
    await Scene(house).opened()
    backend = house.evm(PAYER)
    written = json.dumps([repr(each) for each in backend._transactions.store._intentions("")])
    attempts = backend._transactions.store.attempts(1)
    raw = b"".join(each.raw for each in attempts)
    assert attempts
    assert PAYER.secret() not in raw
    assert PAYER.secret().hex() not in written + repr(vars(backend)) + repr(vars(backend._transactions))
