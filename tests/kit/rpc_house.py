"""The escrow through this node's own backend: JSON-RPC to anvil, and each party's transactions in a file of its own."""

import atexit
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import cache
from pathlib import Path

from kit.anvil import Chain, local_chain

from hansa.market.settlement import Backend
from hansa.node.chain.chain_dev import DevChain
from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.cold_wallet import Signer
from hansa.node.chain.evm_backend import EvmBackend
from hansa.node.chain.evm_signing import AccountSigner
from hansa.node.chain.evm_store import EvmStore
from hansa.node.chain.evm_transactions import Transactions
from hansa.node.chain.json_rpc import RpcNode
from hansa.node.settings.evm_limits import FeeLimits
from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.signing import SigningKey

LIMITS = FeeLimits(most_per_gas=10**12, most_per_day=10**20)


class RpcHouse:
    """A chain of its own with an escrow and a token, and a backend for whoever wants one."""

    def __init__(self, chain: Chain, folder: Path, currency: str, *, permits: bool = True) -> None:
        self.chain = chain
        self.currency = currency_of(currency)
        self.domain = self.currency.domain
        self.token = self.currency.token
        self.holds_deposits = True
        self.urls = [chain.url]
        self.poll_s = 0.01
        self._folder = folder
        self._permits = permits
        self._ahead_ms = 0
        self._backends: dict[bytes, EvmBackend] = {}
        self._open = AsyncExitStack()

    async def backend(self, key: SigningKey) -> Backend:
        return self.evm(key)

    def evm(self, key: SigningKey) -> EvmBackend:
        """A party's backend, with all that is its own."""
        if key.address not in self._backends:
            self.chain.give_coins(key.address, 10**24)
            self._backends[key.address] = self.made(key, self._folder / f"{key.address.hex()}.sqlite")
        return self._backends[key.address]

    def made(self, key: SigningKey, path: Path, urls: list[str] | None = None) -> EvmBackend:
        """A backend over a file."""
        nodes = ChainNodes([RpcNode(url) for url in urls or self.urls], confirmations=0)
        self._open.push_async_callback(nodes.close)
        store = EvmStore(path, account=key.address, chain_id=31337)
        self._open.callback(store.close)
        signer = self.signer_of(key)
        transactions = Transactions(
            nodes,
            store,
            signer,
            chain_id=31337,
            limits=LIMITS,
            now_ms=lambda: time.time_ns() // 1_000_000 + self._ahead_ms,
            poll_s=self.poll_s,
        )
        return EvmBackend(self.currency, nodes, transactions, permits=signer if self._permits else None)

    def signer_of(self, key: SigningKey) -> Signer:
        """Who signs for a party: its key, in this process."""
        return AccountSigner(key)

    async def close(self) -> None:
        """Give files and connections back."""
        await self._open.aclose()

    async def fund(self, key: SigningKey, amount: int) -> None:
        dev = DevChain(rpc := RpcNode(self.chain.url))
        await dev.give(key.address, self.token, tokens=amount, coins=10**24)
        await rpc.close()

    def now_s(self) -> int:
        return int(self.chain.ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    async def pass_time(self, seconds: int) -> None:
        self.chain.ask("evm_increaseTime", hex(seconds))
        self.chain.mine()

    async def held(self) -> int:
        return await self.purse(self.currency.escrow)

    async def purse(self, account: bytes) -> int:
        return await self.evm(SigningKey(b"\x77" * 32)).tokens(account)


async def furnished(chain: Chain, folder: Path, make: type[RpcHouse] = RpcHouse, *, permits: bool) -> RpcHouse:
    """A house on a chain, with a token and an escrow of its own."""
    rpc = RpcNode(chain.url)
    deployed = await DevChain(rpc).deploy()
    await rpc.close()
    name = escrow_currency(deployed.chain_id, deployed.escrow, deployed.token)
    return make(chain, folder, name, permits=permits)


@asynccontextmanager
async def fresh_house(*more: str, permits: bool = True) -> AsyncIterator[RpcHouse]:
    """A house on a fresh chain, until the block ends."""
    with local_chain(*more) as chain, tempfile.TemporaryDirectory() as folder:
        house = await furnished(chain, Path(folder), permits=permits)
        try:
            yield house
        finally:
            await house.close()


@cache
def shared_chain() -> Chain:
    """One chain for all houses of this process that do not mind each other's blocks."""
    kept = ExitStack()
    atexit.register(kept.close)
    return kept.enter_context(local_chain())


@asynccontextmanager
async def open_house() -> AsyncIterator[RpcHouse]:
    """A house with an escrow and a token of its own on a chain that others use too, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        house = await furnished(shared_chain(), Path(folder), permits=True)
        try:
            yield house
        finally:
            await house.close()
