"""Settlement in the escrow contract: ``hansa.market.settlement.Backend`` over a chain's nodes.

It deals with one escrow and one token, those of the configured currency, whatever a peer may name: the escrow's code
must be the one that comes with Hansa, to the byte, and the token must have six decimals, as all amounts here have.

What is asked is asked of a block that cannot be dropped, and of all nodes that are configured. What is ordered goes
through ``hansa.node.chain.evm_transactions``, so it is done once in effect. The contract is experimental and unaudited.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import trio

from hansa.market.settlement import (
    ChannelState,
    Claim,
    ClaimResult,
    Happening,
    Refused,
)
from hansa.node.chain.chain_answers import Log
from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.evm_allowance import Allowance
from hansa.node.chain.evm_currency import check_currency
from hansa.node.chain.evm_escrow import (
    CLAIM_FAULTS,
    MOST_CLAIMS,
    amount_paid_in,
    call,
    claim_words,
    config_words,
    paid_by,
    read_amount,
    read_channel,
    read_faults,
    read_number,
    split_words,
    withdrawn_by,
)
from hansa.node.chain.evm_events import look
from hansa.node.chain.evm_signing import PermitSigner
from hansa.node.chain.evm_store import FINAL, MINED, Intention
from hansa.node.chain.evm_transactions import Transactions
from hansa.node.chain.json_rpc import RpcError, RpcMalformed
from hansa.proto.currency import Currency
from hansa.proto.documents import ChannelConfig, Voucher, channel_id
from hansa.proto.errors import Malformed
from hansa.proto.keccak import keccak256
from hansa.proto.signing import Signed
from hansa.proto.splits import Split
from hansa.proto.typed_data import Domain

T = TypeVar("T")

STATE_ATTEMPTS: Final = 3


class EvmBackend:
    """One account's way to settle in one escrow, in one token.

    Attributes:
        currency: which chain, escrow and token.
        symbol: the token's short name, for people; none of its own until ``check`` has seen it.
    """

    def __init__(
        self, currency: Currency, nodes: ChainNodes, transactions: Transactions, *, permits: PermitSigner | None = None
    ) -> None:
        """Nothing is asked yet.

        Args:
            currency: which chain, escrow and token.
            nodes: through which the chain is seen.
            transactions: the account's.
            permits: who signs permits for the account: a deposit then takes one transaction and not two.
        """
        assert currency.is_on_chain
        self.currency = currency
        self.symbol = "tokens"
        self._nodes = nodes
        self._transactions = transactions
        self._allowance = Allowance(currency, nodes, transactions, permits)
        self._paying_in = trio.Lock()
        self._looking = trio.Lock()

    @property
    def account(self) -> bytes:
        """See ``Backend``."""
        return self._transactions.address

    @property
    def domain(self) -> Domain:
        """See ``Backend``."""
        return self.currency.domain

    async def check(self) -> None:
        """Hold the chain against the configuration, as ``check_currency`` does."""
        self.symbol = await check_currency(self.currency, self._nodes)

    # What is so.

    async def state(self, channel_id: bytes, *, final: bool = True) -> ChannelState:
        """See ``Backend``."""
        question = call("channel", channel_id)
        if not final:
            return await self._nodes.newest_call(read_channel, self.currency.escrow, question)
        return await self._at_final(question)

    async def credit(self, account: bytes) -> int:
        """See ``Backend``. As of the newest block: it is what could be withdrawn now."""
        question = call("credit", self.currency.token, account)
        return await self._nodes.newest_call(read_amount, self.currency.escrow, question)

    async def tokens(self, account: bytes) -> int:
        """What an account has outside the escrow."""
        return await self._nodes.newest_call(read_number, self.currency.token, call("balanceOf", account))

    async def _at_final(self, question: bytes) -> ChannelState:
        """What the escrow answers at a final block. Where a block that counted as final is gone, at the next one."""
        for _ in range(STATE_ATTEMPTS - 1):
            block = await self._nodes.final_block()
            try:
                return await self._nodes.call(read_channel, self.currency.escrow, question, block)
            except RpcError:
                continue
        block = await self._nodes.final_block()
        return await self._nodes.call(read_channel, self.currency.escrow, question, block)

    async def events(self, cursor: int) -> AsyncIterator[Happening]:
        """See ``Backend``. What is not final is told again when it is, or taken back."""
        async with self._looking:
            await look(self._nodes, self._transactions.store, self.currency.escrow)
        for happening in self._transactions.store.seen(cursor):
            yield happening

    async def tend(self) -> None:
        """Look after what was sent and is not final.

        Raises:
            RpcFault: no node could be asked.
        """
        await self._transactions.tend()

    # What is wanted.

    async def _do(self, purpose: str, content: bytes) -> Intention:
        """Have the escrow do something that it does once: what is done already is refused like any impossible thing."""
        known = self._transactions.store.newest(purpose)
        if known is not None and known.ok and known.phase in (MINED, FINAL):
            await self._transactions.check(self.currency.escrow, content)
        return await self._transactions.carry(purpose, self.currency.escrow, content)

    async def _said(self, done: Intention, read: Callable[[Sequence[Log], bytes], T]) -> T:
        """What the escrow's own logs say of something that was done. Others' logs in the same transaction say nothing.

        Raises:
            RpcMalformed: a node's answer has logs that the escrow cannot have written.
        """
        try:
            return read(await self._transactions.logs(done), self.currency.escrow)
        except Malformed as fault:
            raise RpcMalformed("the chain's node", f"answered with a log that cannot be: {fault}") from None

    def _check_config(self, config: ChannelConfig) -> bytes:
        if config.token != self.currency.token:
            raise Refused("the channel is in another token than this node's currency")
        return channel_id(self.domain, config)

    async def open(self, config: ChannelConfig, splits: Sequence[Split], amount: int) -> bytes:
        """See ``Backend``."""
        await self.pay_in_first(config, splits, amount)
        return self._check_config(config)

    async def pay_in_first(self, config: ChannelConfig, splits: Sequence[Split], amount: int) -> int:
        """Open a channel. Returns what was paid in: what was begun before, with another sum, is done as it was begun.

        Raises:
            Refused: see ``Backend.open``.
        """
        key = self._check_config(config)
        if config.payer != self.account:
            raise Refused("not the payer")
        purpose = f"open {key.hex()}"
        async with self._paying_in:
            known = self._transactions.store.newest(purpose)
            if known is not None and known.phase not in (MINED, FINAL):
                # It is on its way, with the content that it was written down with.
                done = await self._transactions.carry(purpose, self.currency.escrow, known.content)
            else:
                permit = await self._allowance.permit(amount)
                if permit is None:
                    await self._allowance.approve(amount, f"for open {key.hex()}")
                    content = call("open", config_words(config), split_words(splits), amount)
                else:
                    content = call("openWithPermit", config_words(config), split_words(splits), amount, *permit)
                done = await self._do(purpose, content)
            paid = amount_paid_in(done.content)
            self._keep_deposit(key, paid)
        return paid

    async def deposit(self, channel_id: bytes) -> int:
        """What is in a channel for all that is known: neither a node that lags nor a dropped block makes it less.

        Raises:
            RpcFault: the chain cannot be asked.
        """
        final = (await self.state(channel_id)).deposit
        newest = (await self.state(channel_id, final=False)).deposit
        done = int(self._transactions.store.word(f"deposited {channel_id.hex()}") or "0")
        return max(final, newest, done)

    def _keep_deposit(self, channel_id: bytes, total: int) -> None:
        store, word = self._transactions.store, f"deposited {channel_id.hex()}"
        store.keep_word(word, str(max(total, int(store.word(word) or "0"))))

    async def top_up(self, config: ChannelConfig, amount: int) -> None:
        """See ``Backend``."""
        await self.pay_in_more(config, amount)

    async def pay_in_more(self, config: ChannelConfig, amount: int, *, before: int | None = None) -> int:
        """Add to a channel. Returns what was added: what was begun before, with another sum, is done as it was begun.

        Args:
            config: the channel's.
            amount: what is added.
            before: the deposit that ``amount`` was reckoned from: said twice from one, it is added once.

        Raises:
            Refused: see ``Backend.top_up``.
        """
        key = self._check_config(config)
        async with self._paying_in:
            # Named for the deposit that it starts from: said again after a crash it is the same intention.
            if before is None:
                before = await self.deposit(key)
            purpose = f"top-up {key.hex()} from {before}"
            known = self._transactions.store.newest(purpose)
            if known is not None and (known.ok or known.phase != FINAL):
                # It is on its way or done, with the content that it was written down with, and allowed for already.
                done = await self._transactions.carry(purpose, self.currency.escrow, known.content)
            else:
                await self._allowance.approve(amount, f"for {purpose}")
                done = await self._do(purpose, call("topUp", config_words(config), amount))
            paid = amount_paid_in(done.content)
            self._keep_deposit(key, before + paid)
        return paid

    async def claim(self, claims: Sequence[Claim]) -> tuple[ClaimResult, ...]:
        """See ``Backend``. What would be skipped is not sent, so it costs nothing."""
        results: list[ClaimResult] = []
        for start in range(0, len(claims), MOST_CLAIMS):
            results += await self._claim_batch(claims[start : start + MOST_CLAIMS])
        return tuple(results)

    async def _claim_batch(self, claims: Sequence[Claim]) -> list[ClaimResult]:
        escrow = self.currency.escrow
        question = call("claimBatch", [claim_words(claim) for claim in claims])
        read = partial(read_faults, count=len(claims))
        faults = await self._nodes.newest_call(read, escrow, question, sender=self.account)
        ids = [channel_id(self.domain, claim.config) for claim in claims]
        alone = {at: await self._contract_signs(claims[at]) for at, fault in enumerate(faults) if fault == 3}
        batch = [claim for claim, fault in zip(claims, faults, strict=True) if not fault]
        paid: dict[tuple[bytes, int], int] = {}
        if batch:
            content = call("claimBatch", [claim_words(claim) for claim in batch])
            if len(batch) == 1:
                content = _single_claim(batch[0])
            done = await self._transactions.carry(f"claim {keccak256(content).hex()}", escrow, content)
            paid |= await self._said(done, paid_by)
        for at, signs in alone.items():
            if signs:
                content = _single_claim(claims[at])
                done = await self._transactions.carry(f"claim {keccak256(content).hex()}", escrow, content)
                paid |= await self._said(done, paid_by)
        return [
            ClaimResult(
                channel_id=key,
                paid=paid.get((key, claim.voucher.document.cumulative), 0),
                fault="" if (key, claim.voucher.document.cumulative) in paid else CLAIM_FAULTS[fault] or "overtaken",
            )
            for key, claim, fault in zip(ids, claims, faults, strict=True)
        ]

    async def _contract_signs(self, claim: Claim) -> bool:
        """Whether the payer's signer is a contract that accepts the signature (ERC-1271): such claims go alone."""
        try:
            await self._transactions.check(self.currency.escrow, _single_claim(claim))
        except Refused:
            return False
        return True

    async def settle(self, config: ChannelConfig, splits: Sequence[Split]) -> None:
        """See ``Backend``."""
        key = self._check_config(config)
        claimed = (await self.state(key, final=False)).claimed
        await self._do(f"settle {key.hex()} at {claimed}", call("settle", config_words(config), split_words(splits)))

    async def request_close(self, config: ChannelConfig) -> None:
        """See ``Backend``."""
        key = self._check_config(config)
        await self._do(f"request-close {key.hex()}", call("requestClose", config_words(config)))

    async def finalize(self, config: ChannelConfig, splits: Sequence[Split]) -> None:
        """See ``Backend``."""
        key = self._check_config(config)
        await self._do(f"finalize {key.hex()}", call("finalize", config_words(config), split_words(splits)))

    async def payee_close(
        self, config: ChannelConfig, splits: Sequence[Split], voucher: Signed[Voucher] | None
    ) -> None:
        """See ``Backend``."""
        key = self._check_config(config)
        last: tuple[int, bytes, bytes] = (0, bytes(32), b"")
        if voucher is not None:
            last = (voucher.document.cumulative, voucher.document.statement, voucher.signature)
        content = call("payeeClose", config_words(config), split_words(splits), *last)
        await self._do(f"payee-close {key.hex()}", content)

    async def cooperative_close(
        self,
        config: ChannelConfig,
        splits: Sequence[Split],
        cumulative: int,
        payer_signature: bytes,
        payee_signature: bytes,
    ) -> None:
        """See ``Backend``."""
        key = self._check_config(config)
        signatures = (payer_signature, payee_signature)
        content = call("cooperativeClose", config_words(config), split_words(splits), cumulative, *signatures)
        await self._do(f"cooperative-close {key.hex()}", content)

    async def withdraw(self, account: bytes) -> int:
        """See ``Backend``."""
        store, token = self._transactions.store, self.currency.token
        word = f"withdrawals of {account.hex()}"
        number = int(store.word(word) or "0")
        known = store.newest(f"withdraw {account.hex()} {number}")
        if known is not None and known.ok and known.phase in (MINED, FINAL):
            # It was done, and the process that began it ended before it heard: what is there now is another one's.
            number += 1
        content = call("withdraw", token, account)
        done = await self._transactions.carry(f"withdraw {account.hex()} {number}", self.currency.escrow, content)
        store.keep_word(word, str(number + 1))
        return await self._said(done, withdrawn_by)


def _single_claim(claim: Claim) -> bytes:
    voucher = claim.voucher.document
    return call("claim", config_words(claim.config), voucher.cumulative, voucher.statement, claim.voucher.signature)
