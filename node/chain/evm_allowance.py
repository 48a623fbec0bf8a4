"""What lets the escrow take a deposit: a permit, which is a signature (EIP-2612), or an approval, a transaction."""

from typing import Final

from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.evm_escrow import Permit, call, read_number, read_text
from hansa.node.chain.evm_signing import PermitSigner
from hansa.node.chain.evm_store import FINAL
from hansa.node.chain.evm_transactions import Transactions
from hansa.node.chain.json_rpc import RpcError, RpcMalformed
from hansa.proto.currency import Currency
from hansa.proto.typed_data import Domain

PERMIT_LIFE_S: Final = 3_600


class Allowance:
    """One account's word to one token that the escrow may take from it."""

    def __init__(
        self, currency: Currency, nodes: ChainNodes, transactions: Transactions, permits: PermitSigner | None
    ) -> None:
        """Nothing is asked yet. Without somebody who signs them there are no permits."""
        self._currency = currency
        self._nodes = nodes
        self._transactions = transactions
        self._permits = permits

    async def permit(self, amount: int) -> tuple[int, int, bytes, bytes] | None:
        """A signature by which the escrow may take the deposit; none where key or token cannot give one."""
        if self._permits is None or self._permits.address != self._transactions.address:
            return None
        token, ask = self._currency.token, self._nodes.newest_call
        try:
            separator = await ask(bytes, token, call("DOMAIN_SEPARATOR"))
            name = await ask(read_text, token, call("name"))
            nonce = await ask(read_number, token, call("nonces", self._transactions.address))
        except (RpcError, RpcMalformed):
            return None
        domains = [
            Domain(name=name, version=version, chain_id=self._currency.chain_id, verifying_contract=token)
            for version in ("1", "2")
        ]
        domain = next((each for each in domains if each.separator == separator), None)
        if domain is None:
            return None
        deadline = (await self._nodes.newest_block()).at_s + PERMIT_LIFE_S
        escrow = self._currency.escrow
        permit = Permit(owner=self._transactions.address, spender=escrow, value=amount, nonce=nonce, deadline=deadline)
        signature = await self._permits.sign_permit(domain, permit)
        return deadline, signature[64], signature[:32], signature[32:64]

    async def approve(self, amount: int, why: str) -> None:
        """Let the escrow take exactly what the next deposit needs."""
        token, escrow = self._currency.token, self._currency.escrow
        allowed = await self._nodes.newest_call(
            read_number, token, call("allowance", self._transactions.address, escrow)
        )
        if allowed >= amount:
            return
        if allowed:
            # Some tokens only change an allowance from or to nothing.
            await self._transactions.carry(f"approve 0 {why} after {allowed}", token, call("approve", escrow, 0))
        purpose = f"approve {amount} {why}"
        known = self._transactions.store.newest(purpose)
        if known is not None and known.phase == FINAL:
            # Spent, or taken back: it is wanted once more.
            purpose = f"{purpose} after {known.number}"
        await self._transactions.carry(purpose, token, call("approve", escrow, amount))
