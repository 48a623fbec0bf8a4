"""A transaction's nonce and fee, by a clock that moves as a daemon's does, through nodes that are lent no trust."""

from pathlib import Path
from typing import Any

import pytest
import trio
from kit.rpc_stand_in import result, rpc_stand_in

from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.evm_signing import AccountSigner
from hansa.node.chain.evm_store import MINED, EvmStore
from hansa.node.chain.evm_transactions import Transactions
from hansa.node.chain.json_rpc import RpcFault, RpcNode
from hansa.node.settings.evm_limits import FeeLimits
from hansa.proto.signing import SigningKey

GWEI = 10**9
KEY = SigningKey((7).to_bytes(32, "big"))
BLOCK = {
    "number": "0xa",
    "hash": "0x" + "aa" * 32,
    "parentHash": "0x" + "bb" * 32,
    "timestamp": "0x1",
    "baseFeePerGas": hex(GWEI),
}


class Quiet:
    """A node of a chain on which nothing ever gets into a block."""

    def __init__(self, pending: int = 0) -> None:
        self.pending = pending
        self.taken = 0

    def __call__(self, method: str, params: list[Any], number: Any) -> Any:
        if method == "eth_sendRawTransaction":
            self.taken += 1
        nonce = self.pending if params and params[-1] == "pending" else 0
        said = {
            "eth_getBlockByNumber": BLOCK,
            "eth_estimateGas": hex(50_000),
            "eth_maxPriorityFeePerGas": hex(GWEI),
            "eth_getTransactionCount": hex(nonce),
            "eth_getTransactionReceipt": None,
            "eth_sendRawTransaction": "0x" + "cc" * 32,
        }
        return result(said[method], number)


class Mining(Quiet):
    """A node of a chain on which whatever is sent is in the newest block at once. What is final it says by itself."""

    def __init__(self, final_hash: str) -> None:
        super().__init__()
        self.final_hash, self.mined = final_hash, False

    def __call__(self, method: str, params: list[Any], number: Any) -> Any:
        if method == "eth_getBlockByNumber" and params[0] != "latest":
            return result({**BLOCK, "number": "0x5", "hash": self.final_hash}, number)
        if method == "eth_getTransactionReceipt" and self.mined:
            fields = {"status": "0x1", "blockNumber": "0xa", "blockHash": BLOCK["hash"], "gasUsed": "0x1"}
            return result({**fields, "logs": []}, number)
        return super().__call__(method, params, number)


class Clock:
    now_ms = 1_700_000_000_000


def transactions(nodes: ChainNodes, path: Path, clock: Clock) -> Transactions:
    store = EvmStore(path / "chain.sqlite", account=KEY.address, chain_id=1)
    limits = FeeLimits(most_per_gas=500 * GWEI, most_per_day=10**18)
    return Transactions(
        nodes, store, AccountSigner(KEY), chain_id=1, limits=limits, now_ms=lambda: clock.now_ms, poll_s=0
    )


@pytest.mark.trio
async def test_a_stuck_transaction_is_outbid_however_often_it_is_sent_again(tmp_path: Path) -> None:
    node, clock = Quiet(), Clock()
    with rpc_stand_in(node) as there:
        nodes = ChainNodes([RpcNode(there.url)], confirmations=0)
        sender = transactions(nodes, tmp_path, clock)
        begun = await sender._begin("claim x", bytes(20), b"")
        for _ in range(20):
            clock.now_ms += 4_000
            await sender.tend()
        assert len(sender.store.attempts(begun.number)) == 2
        assert 3 <= node.taken <= 7, "sent again every 20 s, and not at every look"
        sender.store.close()
        await nodes.close()


@pytest.mark.trio
async def test_what_is_in_a_block_is_seen_and_what_is_lost_sent_again_while_nodes_dispute_what_is_final(
    tmp_path: Path,
) -> None:
    one, two, clock = Mining("0x" + "01" * 32), Mining("0x" + "02" * 32), Clock()
    with rpc_stand_in(one) as there, rpc_stand_in(two) as elsewhere:
        nodes = ChainNodes([RpcNode(there.url), RpcNode(elsewhere.url)], confirmations=0)
        sender = transactions(nodes, tmp_path, clock)
        two.final_hash = one.final_hash
        await sender._begin("claim x", bytes(20), b"")
        two.final_hash = "0x" + "02" * 32
        for _ in range(2):
            clock.now_ms += 21_000
            with pytest.raises(RpcFault):
                await sender.tend()
        assert (one.taken, two.taken) == (3, 3)
        one.mined = two.mined = True
        with trio.fail_after(30):
            carried = await sender.carry("claim x", bytes(20), b"")
        assert (carried.phase, carried.ok) == (MINED, True)
        one.mined = two.mined = False
        with pytest.raises(RpcFault):
            await sender.tend()
        assert sender.store.newest("claim x").phase == MINED, "that it is gone again is not believed in a dispute"
        sender.store.close()
        await nodes.close()


@pytest.mark.trio
async def test_one_node_of_three_cannot_name_the_next_nonce(tmp_path: Path) -> None:
    with rpc_stand_in(Quiet(1000)) as lies, rpc_stand_in(Quiet()) as one, rpc_stand_in(Quiet()) as two:
        nodes = ChainNodes([RpcNode(there.url) for there in (lies, one, two)], confirmations=0)
        sender = transactions(nodes, tmp_path, Clock())
        assert (await sender._begin("claim x", bytes(20), b"")).nonce == 0
        assert (await sender._begin("claim y", bytes(20), b"")).nonce == 1
        sender.store.close()
        await nodes.close()


@pytest.mark.trio
@pytest.mark.parametrize("pending", [1, 1000, 2**63 - 1])
async def test_a_nonce_above_a_gap_is_not_taken_and_blocks_nothing(tmp_path: Path, pending: int) -> None:
    node = Quiet(pending)
    with rpc_stand_in(node) as there:
        nodes = ChainNodes([RpcNode(there.url)], confirmations=0)
        sender = transactions(nodes, tmp_path, Clock())
        with pytest.raises(RpcFault):
            await sender._begin("claim x", bytes(20), b"")
        assert not sender.store.unsettled()
        node.pending = 0
        assert (await sender._begin("claim x", bytes(20), b"")).nonce == 0
        sender.store.close()
        await nodes.close()
