"""The escrow through this node's own backend, with every transaction and permit signed in another process."""

import atexit
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import cache
from pathlib import Path

from kit.rpc_house import RpcHouse, furnished, shared_chain
from kit.settlement_scene import PAYEE, PAYEE_SIGNER, PAYER, PAYER_SIGNER, STRANGER
from kit.signer_process import outside_signer

from hansa.node.chain.cold_wallet import Signer
from hansa.node.chain.external_signer import ExternalSigner
from hansa.node.chain.outside_account import OutsideAccount
from hansa.proto.signing import SigningKey

HELD = (PAYER, PAYER_SIGNER, PAYEE, PAYEE_SIGNER, STRANGER)


@cache
def _signer() -> str:
    """One process for all houses: it holds the keys of every scene's parties."""
    kept = ExitStack()
    atexit.register(kept.close)
    return kept.enter_context(outside_signer(*(key.secret() for key in HELD)))


class OutsideHouse(RpcHouse):
    """No party's key is in the process that settles for it."""

    def signer_of(self, key: SigningKey) -> Signer:
        if key not in HELD:
            return super().signer_of(key)
        outside = OutsideAccount(ExternalSigner(_signer(), key.address), key.address, say=lambda _words: None)
        self._open.push_async_callback(outside.close)
        return outside


@asynccontextmanager
async def open_house() -> AsyncIterator[RpcHouse]:
    """A house with an escrow and a token of its own on a chain that others use too, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        house = await furnished(shared_chain(), Path(folder), OutsideHouse, permits=True)
        try:
            yield house
        finally:
            await house.close()
