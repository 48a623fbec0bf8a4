"""A chain in a process of its own: Foundry's anvil, no transaction signed, a block for each.

anvil comes from npm into ``build/anvil`` when it is nowhere yet; where there is no npm either, tests skip and say so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit.chain_in_process import CHAIN_ID, DEPLOYER, Outcome
from kit.contract_calls import Reverted, revert_reason
from kit.npm_packages import fetch
from kit.one_at_a_time import one_at_a_time

from hansa.node.chain.chain_dev import ANVIL_VERSION, anvil_package, find_anvil, free_port, running_anvil
from hansa.node.faults import OperatorError

ROOM = Path(__file__).resolve().parents[2] / "build" / "anvil"
PLENTY = 10**30


def anvil_program() -> Path:
    """Where anvil is; it is fetched when it is nowhere. Skips the test when it cannot be had."""
    with one_at_a_time(ROOM):
        return _fetched_anvil()


def _fetched_anvil() -> Path:
    try:
        return find_anvil(ROOM)
    except OperatorError as absent:
        said = fetch(ROOM, "install", "--no-save", f"{anvil_package()}@{ANVIL_VERSION}")
        try:
            return find_anvil(ROOM)
        except OperatorError:
            pytest.skip(f"{absent}, and npm did not bring it: {said[-300:]}")


class ChainOnAnvil:
    """What ``ChainInProcess`` does, over JSON-RPC. ``gas`` of an outcome is what the transaction's receipt says."""

    def __init__(self, url: str) -> None:
        self.chain_id = CHAIN_ID
        self._client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self._numbers = count(1)
        self._rich: set[bytes] = set()
        self.now_s = int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def rpc(self, method: str, *params: Any) -> Any:
        """One call.

        Raises:
            Reverted: it ran into a contract's refusal.
        """
        body = {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": params}
        answer = self._client.post("/", json=body).json()
        if "error" in answer:
            data = answer["error"].get("data")
            assert isinstance(data, str) or answer["error"].get("code") == 3, answer
            raise Reverted(revert_reason(bytes.fromhex(data[2:])) if data else "")
        return answer["result"]

    def pass_time(self, seconds: int) -> None:
        """Turn the clock on."""
        self.now_s += seconds

    def _transact(self, caller: bytes, to: bytes | None, data: bytes) -> dict[str, Any]:
        if caller not in self._rich:
            self.rpc("anvil_setBalance", "0x" + caller.hex(), hex(PLENTY))
            self._rich.add(caller)
        order = {"from": "0x" + caller.hex(), "data": "0x" + data.hex()}
        if to is not None:
            order["to"] = "0x" + to.hex()
        self.now_s += 1
        self.rpc("evm_setNextBlockTimestamp", self.now_s)
        order["gas"] = hex(15_000_000)
        sent = self.rpc("eth_sendTransaction", order)
        self.rpc("evm_mine")
        receipt: dict[str, Any] = self.rpc("eth_getTransactionReceipt", sent)
        if int(receipt["status"], 16) != 1:
            self.rpc("eth_call", order, receipt["blockNumber"])  # raises, with the contract's words
            raise AssertionError("what failed in its block does not fail after it")
        return receipt

    def deploy(self, code: bytes) -> bytes:
        """Deploy a contract; its address."""
        return bytes.fromhex(self._transact(DEPLOYER, None, code)["contractAddress"][2:])

    def code(self, address: bytes) -> bytes:
        """The code at an address."""
        return bytes.fromhex(self.rpc("eth_getCode", "0x" + address.hex(), "latest")[2:])

    def send(self, caller: bytes, to: bytes, data: bytes) -> Outcome:
        """Do a transaction.

        Raises:
            Reverted: the contract refused. Nothing has changed.
        """
        receipt = self._transact(caller, to, data)
        logs = tuple(
            (
                bytes.fromhex(log["address"][2:]),
                [bytes.fromhex(topic[2:]) for topic in log["topics"]],
                bytes.fromhex(log["data"][2:]),
            )
            for log in receipt["logs"]
        )
        return Outcome(returned=b"", gas=int(receipt["gasUsed"], 16), logs=logs)

    def ask(self, to: bytes, data: bytes) -> bytes:
        """Call without a transaction."""
        return bytes.fromhex(self.rpc("eth_call", {"to": "0x" + to.hex(), "data": "0x" + data.hex()}, "latest")[2:])


@contextmanager
def anvil_chain() -> Iterator[ChainOnAnvil]:
    """A fresh chain on anvil, until the block ends."""
    flags = [
        "--no-mining",
        "--auto-impersonate",
        "--chain-id",
        str(CHAIN_ID),
        "--gas-price",
        "0",
        "--block-base-fee-per-gas",
        "0",
    ]
    with running_anvil(anvil_program(), port=free_port(), more=[*flags, "--quiet"]) as url:
        chain = ChainOnAnvil(url)
        try:
            yield chain
        finally:
            chain.close()
