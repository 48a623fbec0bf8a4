"""On a real local chain: what is intended happens once, whatever becomes of the process, the fees or the blocks."""

import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from kit.anvil import Chain, local_chain
from kit.rpc_stand_in import lying, rpc_stand_in

from hansa.market.settlement import Refused
from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.evm_signing import AccountSigner
from hansa.node.chain.evm_store import FINAL, MINED, SENT, EvmStore
from hansa.node.chain.evm_transactions import FOREIGN, MOST_GAS, FeesTooHigh, Transactions
from hansa.node.chain.json_rpc import RpcFault, RpcNode
from hansa.node.faults import OperatorError
from hansa.node.settings.evm_limits import FeeLimits
from hansa.proto.signing import SigningKey

GWEI = 10**9
LIMITS = FeeLimits(most_per_gas=200 * GWEI, most_per_day=10**18)
COUNTER = bytes.fromhex("60005460010160005500")
"""PUSH0-free code that adds one to its first slot: what was done twice would be seen there."""
PLACE = bytes.fromhex("00000000000000000000000000000000000c0de1")


@pytest.fixture
def chain() -> Iterator[Chain]:
    with local_chain() as running:
        running.ask("anvil_setCode", "0x" + PLACE.hex(), "0x" + COUNTER.hex())
        yield running


def count(chain: Chain) -> int:
    return int(chain.ask("eth_getStorageAt", "0x" + PLACE.hex(), "0x0", "latest"), 16)


def funded(chain: Chain, seed: int) -> SigningKey:
    key = SigningKey(seed.to_bytes(32, "big"))
    chain.give_coins(key.address)
    return key


class Clock:
    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms


@asynccontextmanager
async def sending(
    url: str, key: SigningKey, path: Path, limits: FeeLimits = LIMITS, clock: Clock | None = None
) -> AsyncIterator[Transactions]:
    nodes = ChainNodes([RpcNode(url)], confirmations=0)
    store = EvmStore(path, account=key.address, chain_id=31337)
    signer = AccountSigner(key)
    now_ms = (clock or Clock()).now_ms
    try:
        yield Transactions(nodes, store, signer, chain_id=31337, limits=limits, now_ms=now_ms, poll_s=0.02)
    finally:
        store.close()
        await nodes.close()


async def until_final(sender: Transactions, chain: Chain, purpose: str) -> None:
    for _ in range(200):
        await sender.tend()
        current = sender.store.newest(purpose)
        if current is not None and current.phase == FINAL:
            return
        chain.mine()
        await trio.sleep(0.02)
    story = (sender.trouble, dict(sender.counters), sender.store.unsettled(), chain.height())
    raise AssertionError(f"{purpose} never became final: {story}")


@pytest.mark.trio
async def test_what_is_carried_twice_happens_once(chain: Chain, tmp_path: Path) -> None:
    async with sending(chain.url, funded(chain, 7), tmp_path / "evm.sqlite") as sender:
        first = await sender.carry("count one", PLACE, b"")
        again = await sender.carry("count one", PLACE, b"")
        assert (first.number, first.phase, first.ok) == (again.number, MINED, True)
        await sender.carry("count two", PLACE, b"")
        assert count(chain) == 2
        await until_final(sender, chain, "count one")
        assert (await sender.carry("count one", PLACE, b"")).phase == FINAL
        assert count(chain) == 2
        assert sender.store.fees_since(0) > 0


@pytest.mark.trio
async def test_after_a_crash_between_writing_down_and_sending_it_is_sent(chain: Chain, tmp_path: Path) -> None:
    key, path = funded(chain, 7), tmp_path / "evm.sqlite"

    class Crash(BaseException):
        pass

    async def crash(raw: bytes) -> None:
        raise Crash

    async with sending(chain.url, key, path) as sender:
        sender._nodes.send = crash  # type: ignore[method-assign]
        with pytest.raises(Crash):
            await sender.carry("count one", PLACE, b"")
    assert count(chain) == 0
    async with sending(chain.url, key, path) as sender:
        assert [intention.phase for intention in sender.store.unsettled()] == [SENT]
        await until_final(sender, chain, "count one")
        assert count(chain) == 1


@pytest.mark.trio
async def test_after_a_crash_between_sending_and_hearing_of_it_it_is_not_done_again(
    chain: Chain, tmp_path: Path
) -> None:
    key, path = funded(chain, 7), tmp_path / "evm.sqlite"
    chain.ask("evm_setAutomine", False)
    async with sending(chain.url, key, path) as sender:
        with trio.move_on_after(0.5):
            await sender.carry("count one", PLACE, b"")
    chain.mine()
    async with sending(chain.url, key, path) as sender:
        assert (await sender.carry("count one", PLACE, b"")).ok
    assert count(chain) == 1


@pytest.mark.trio
async def test_what_a_reorganisation_takes_out_is_sent_again(chain: Chain, tmp_path: Path) -> None:
    async with sending(chain.url, funded(chain, 7), tmp_path / "evm.sqlite") as sender:
        await sender.carry("count one", PLACE, b"")
        assert count(chain) == 1
        chain.ask("evm_setAutomine", False)
        chain.reorg(1)
        chain.ask("anvil_dropAllTransactions")
        assert count(chain) == 0
        for _ in range(100):
            await sender.tend()
            if sender.counters["transactions that a reorganisation took out"]:
                break
            await trio.sleep(0.02)
        chain.ask("evm_setAutomine", True)
        await until_final(sender, chain, "count one")
        assert count(chain) == 1
        assert sender.counters["transactions that a reorganisation took out"] == 1


@pytest.mark.trio
async def test_what_a_reorganisation_takes_out_though_it_counted_as_final_is_sent_again(
    chain: Chain, tmp_path: Path
) -> None:
    async with sending(chain.url, funded(chain, 7), tmp_path / "evm.sqlite") as sender:
        await sender.carry("count one", PLACE, b"")
        await sender.carry("count two", PLACE, b"")
        await until_final(sender, chain, "count two")
        await trio.sleep(0.03)
        await sender.tend()
        chain.ask("evm_setAutomine", False)
        chain.reorg(chain.height())
        chain.ask("anvil_dropAllTransactions")
        assert count(chain) == 0
        chain.ask("evm_setAutomine", True)
        chain.mine(3)
        for _ in range(200):
            await trio.sleep(0.02)
            await sender.tend()
            if count(chain) == 2:
                break
        await until_final(sender, chain, "count one")
        await until_final(sender, chain, "count two")
        assert count(chain) == 2
        assert sender.counters["blocks that counted as final and were dropped"] == 1


@pytest.mark.trio
async def test_stuck_gas_is_outbid_with_the_same_nonce(chain: Chain, tmp_path: Path) -> None:
    clock = Clock()
    async with sending(chain.url, funded(chain, 7), tmp_path / "evm.sqlite", clock=clock) as sender:
        chain.ask("evm_setAutomine", False)
        with trio.move_on_after(0.5):
            await sender.carry("count one", PLACE, b"")
        waiting = sender.store.unsettled()[0]
        first = sender.store.attempts(waiting.number)[0]
        # The base fee rises above what was signed for: nobody mines it any more.
        chain.ask("anvil_setNextBlockBaseFeePerGas", hex(first.most_fee * 3))
        chain.mine()
        assert count(chain) == 0
        for _ in range(3):
            clock.ahead_ms += 61_000
            await trio.sleep(0.03)
            await sender.tend()
        attempts = sender.store.attempts(waiting.number)
        assert len(attempts) == 4
        assert all(b.most_fee * 8 >= a.most_fee * 9 and b.tip * 8 >= a.tip * 9 for a, b in itertools.pairwise(attempts))
        assert sender.counters["stuck transactions replaced at a higher fee"] == 3
        chain.ask("evm_setAutomine", True)
        await until_final(sender, chain, "count one")
        assert count(chain) == 1
        assert chain.ask("eth_getTransactionCount", "0x" + sender.address.hex(), "latest") == "0x1"


@pytest.mark.trio
async def test_stuck_gas_is_not_outbid_above_the_owners_limit(chain: Chain, tmp_path: Path) -> None:
    clock = Clock()
    async with sending(chain.url, funded(chain, 7), tmp_path / "evm.sqlite", clock=clock) as sender:
        chain.ask("evm_setAutomine", False)
        with trio.move_on_after(0.5):
            await sender.carry("count one", PLACE, b"")
        waiting = sender.store.unsettled()[0]
        sender._limits = replace(LIMITS, most_per_gas=sender.store.attempts(waiting.number)[0].most_fee)
        clock.ahead_ms += 61_000
        await trio.sleep(0.03)  # nothing is looked at twice within half a pace
        await sender.tend()
        assert len(sender.store.attempts(waiting.number)) == 1
        assert "max_fee_per_gas" in sender.trouble["count one"]


@pytest.mark.trio
async def test_nothing_is_sent_above_what_a_day_may_cost(chain: Chain, tmp_path: Path) -> None:
    limits = replace(LIMITS, most_per_day=4 * 10**14)
    async with sending(chain.url, funded(chain, 7), tmp_path / "evm.sqlite", limits) as sender:

        async def work() -> None:
            for number in range(50):
                await sender.carry(f"count {number}", PLACE, b"")

        with pytest.raises(FeesTooHigh, match="max_fee_per_day"):
            await work()
        paid = 10**20 - int(chain.ask("eth_getBalance", "0x" + sender.address.hex(), "latest"), 16)
        assert 0 < paid <= limits.most_per_day
        assert count(chain) < 50


@pytest.mark.trio
async def test_nonce_races_between_two_programs_are_noticed_and_survived(chain: Chain, tmp_path: Path) -> None:
    key = funded(chain, 7)
    async with sending(chain.url, key, tmp_path / "one") as one, sending(chain.url, key, tmp_path / "two") as two:

        async def work(sender: Transactions, name: str) -> None:
            for number in range(5):
                await sender.carry(f"{name} {number}", PLACE, f"{name} {number}".encode())

        async def mine() -> None:
            while True:
                await trio.sleep(0.1)
                chain.mine()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mine)
                async with trio.open_nursery() as both:
                    both.start_soon(work, one, "one")
                    both.start_soon(work, two, "two")
                nursery.cancel_scope.cancel()
        assert count(chain) == 10
        assert one.counters[FOREIGN] + two.counters[FOREIGN] > 0
        said = {**one.trouble, **two.trouble}
        assert "account of its own" in said["account"]


@pytest.mark.trio
async def test_two_processes_cannot_have_one_file(chain: Chain, tmp_path: Path) -> None:
    key = funded(chain, 7)
    async with sending(chain.url, key, tmp_path / "evm.sqlite"):
        with pytest.raises(OperatorError, match="cannot open"):
            EvmStore(tmp_path / "evm.sqlite", account=key.address, chain_id=31337)


@pytest.mark.trio
async def test_a_file_of_another_chain_is_not_taken(chain: Chain, tmp_path: Path) -> None:
    key = funded(chain, 7)
    async with sending(chain.url, key, tmp_path / "evm.sqlite"):
        pass
    with pytest.raises(OperatorError, match="another"):
        EvmStore(tmp_path / "evm.sqlite", account=key.address, chain_id=1)


@pytest.mark.trio
async def test_what_the_contract_would_not_do_is_not_sent(chain: Chain, tmp_path: Path) -> None:
    always_reverts = bytes.fromhex("60006000fd")
    chain.ask("anvil_setCode", "0x" + PLACE.hex(), "0x" + always_reverts.hex())
    async with sending(chain.url, funded(chain, 7), tmp_path / "evm.sqlite") as sender:
        with pytest.raises(Refused):
            await sender.carry("count one", PLACE, b"")
        assert sender.store.newest("count one") is None


@pytest.mark.trio
async def test_what_the_contract_did_not_do_after_all_is_refused_and_may_be_tried_again(
    chain: Chain, tmp_path: Path
) -> None:
    async with sending(chain.url, funded(chain, 7), tmp_path / "evm.sqlite") as sender:
        chain.ask("evm_setAutomine", False)
        with trio.move_on_after(0.3):
            await sender.carry("count one", PLACE, b"")
        chain.ask("anvil_setCode", "0x" + PLACE.hex(), "0x60006000fd")
        chain.mine()
        with pytest.raises(Refused, match="did not do it"):
            await sender.carry("count one", PLACE, b"")
        await until_final(sender, chain, "count one")
        chain.ask("evm_setAutomine", True)
        chain.ask("anvil_setCode", "0x" + PLACE.hex(), "0x" + COUNTER.hex())
        assert (await sender.carry("count one", PLACE, b"")).ok
        assert count(chain) == 1


@pytest.mark.trio
async def test_more_gas_than_anything_takes_is_a_lie(chain: Chain, tmp_path: Path) -> None:
    def lie(method: str, params: list[Any], result: Any) -> Any:
        return hex(MOST_GAS + 1) if method == "eth_estimateGas" else result

    with rpc_stand_in(lying(chain.url, lie)) as there:
        limits = FeeLimits(most_per_gas=10**15, most_per_day=10**25)
        async with sending(there.url, funded(chain, 7), tmp_path / "evm.sqlite", limits) as sender:
            with pytest.raises(RpcFault, match="cannot be"):
                await sender.carry("count one", PLACE, b"")
            assert sender.store.newest("count one") is None


@pytest.mark.trio
@pytest.mark.parametrize("value", [0, 1, 2**96 - 1, 2**256 - 1])
@pytest.mark.parametrize("where", ["baseFeePerGas", "tip", "gas", "nonce"])
async def test_zero_and_the_largest_number_from_a_lying_node_cost_nothing(
    chain: Chain, tmp_path: Path, value: int, where: str
) -> None:
    methods = {"tip": "eth_maxPriorityFeePerGas", "gas": "eth_estimateGas", "nonce": "eth_getTransactionCount"}

    def lie(method: str, params: list[Any], result: Any) -> Any:
        if where == "baseFeePerGas" and method == "eth_getBlockByNumber" and result:
            return {**result, where: hex(value)}
        return hex(value) if method == methods.get(where) else result

    limits = replace(LIMITS, most_per_day=10**16)
    with rpc_stand_in(lying(chain.url, lie)) as there:
        key = funded(chain, 7)
        async with sending(there.url, key, tmp_path / "evm.sqlite", limits) as sender:
            with trio.move_on_after(0.5):
                with contextlib.suppress(Refused, RpcFault):
                    await sender.carry("count one", PLACE, b"")
    paid = 10**20 - int(chain.ask("eth_getBalance", "0x" + key.address.hex(), "latest"), 16)
    assert paid <= limits.most_per_day
