"""A local chain for tests: real blocks in a real EVM, and the tricks that only a local chain knows."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kit.chain_on_anvil import anvil_program

from hansa.node.chain.chain_dev import free_port, running_anvil
from hansa.proto.signing import SigningKey

RICH = SigningKey(bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"))
"""The first of the accounts that every anvil makes: everybody knows this key."""


class Chain:
    """A running anvil."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, method: str, *params: Any) -> Any:
        """Ask it, or order it, something."""
        question = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}).encode()
        request = urllib.request.Request(self.url, question, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            said = json.loads(answer.read())
        if "error" in said:
            raise RuntimeError(f"{method}: {said['error']}")
        return said["result"]

    def mine(self, blocks: int = 1) -> None:
        """Make blocks."""
        self.ask("anvil_mine", hex(blocks))

    def give_coins(self, account: bytes, amount: int = 10**20) -> None:
        """Let an account have coins to pay fees with."""
        self.ask("anvil_setBalance", "0x" + account.hex(), hex(amount))

    def reorg(self, depth: int) -> None:
        """Replace the newest blocks by as many empty ones."""
        self.ask("anvil_reorg", depth, [])

    def height(self) -> int:
        """The newest block's number."""
        return int(self.ask("eth_blockNumber"), 16)


@contextmanager
def local_chain(*more: str) -> Iterator[Chain]:
    """A chain on a free port; the test is skipped, and says why, where anvil is not to be had."""
    # Short epochs: what is two blocks deep is final.
    with running_anvil(anvil_program(), port=free_port(), more=("--slots-in-an-epoch", "1", *more)) as url:
        yield Chain(url)
