"""What the account that pays does itself: deposits into the channels of a node without its key, and getting them back.

It is the same backend that a node settles with, over a file of its own: each deposit is an intention that is written
down with its nonce before it is sent, so however often a command is killed and given again, it is made once. What
differs is who signs: a signer outside, or a keystore that is opened for this one command.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio

from hansa.market.settlement import CLOSED, CLOSING, OPEN, UNSET, Refused
from hansa.node.chain.chain_funding import PaidIn, pay_in
from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.cold_deposits import WantedDeposit
from hansa.node.chain.evm_backend import EvmBackend
from hansa.node.chain.evm_signing import PermitSigner, TransactionSigner
from hansa.node.chain.evm_store import EvmStore
from hansa.node.chain.evm_transactions import Transactions
from hansa.node.chain.json_rpc import RpcFault, RpcNode
from hansa.node.faults import OperatorError
from hansa.node.plain_text import plain
from hansa.node.settings.chain_config import ChainConfig, format_coins
from hansa.proto.currency import currency_of
from hansa.proto.signing import checksum_address
from hansa.proto.typed_json import from_json, to_json
from hansa.proto.units import format_amount

KEPT: Final = "channel "
MOST_GAS_OF_A_DEPOSIT: Final = 300_000
"""Above what an approval and an opening take together, so that nothing is begun that its fees stop half-way."""
REPORT_S: Final = 3.0


class Signer(TransactionSigner, PermitSigner, Protocol):
    """Signs all that a deposit takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One deposit that is still to be made.

    Attributes:
        wanted: what the daemon asks for.
        jobs: what for, in its words.
        missing: what is to be added.
        is_new: whether it opens the channel.
    """

    wanted: WantedDeposit
    jobs: tuple[str, ...]
    missing: int
    is_new: bool


def store_path(data_dir: Path, payer: bytes) -> Path:
    """The file of what a payer was ever asked to send."""
    return data_dir / f"payer-{payer.hex()}.sqlite"


class ColdWallet:
    """The paying account, for as long as a command lasts."""

    def __init__(self, config: ChainConfig, path: Path, signer: Signer, *, say: Callable[[str], None]) -> None:
        """Nothing is asked yet. ``say`` gets one line of what happens at a time.

        Raises:
            OperatorError: the file cannot be opened: another such command is at it, or it is another account's.
        """
        self.payer = signer.address
        self._say = say
        self._nodes = ChainNodes([RpcNode(url) for url in config.rpc], confirmations=config.confirmations)
        self._store = EvmStore(path, account=signer.address, chain_id=config.currency.chain_id)
        self._transactions = Transactions(
            self._nodes,
            self._store,
            signer,
            chain_id=config.currency.chain_id,
            limits=config.limits,
            now_ms=lambda: time.time_ns() // 1_000_000,
        )
        self.backend = EvmBackend(config.currency, self._nodes, self._transactions, permits=signer)

    async def close(self) -> None:
        """Give the file back, and hang up."""
        self._store.close()
        await self._nodes.close()

    async def check(self) -> None:
        """Hold the chain against the configuration, and look after what was sent before.

        Raises:
            OperatorError: the chain cannot be asked, or is not what the configuration says.
        """
        try:
            await self.backend.check()
            await self.backend.tend()
        except RpcFault as fault:
            raise _unreachable(fault) from None

    async def tend(self) -> None:
        """Look after what is not final yet, for as long as somebody waits here anyway."""
        with suppress(RpcFault):
            await self.backend.tend()

    async def has(self) -> str:
        """What the account has, in words."""
        tokens, coins = await self.backend.tokens(self.payer), await self._nodes.coins(self.payer)
        return f"{format_amount(tokens)} {self.backend.symbol}, and {format_coins(coins)} coins for fees"

    async def plans(self, wanted: Iterable[tuple[WantedDeposit, tuple[str, ...]]]) -> list[Plan]:
        """What of all that is wanted is still missing on the chain.

        Raises:
            OperatorError: the chain cannot be asked.
        """
        found = []
        try:
            for deposit, jobs in wanted:
                key = deposit.channel_id
                phase = (await self.backend.state(key, final=False)).phase
                missing = deposit.amount - await self.backend.deposit(key)
                if missing > 0 and phase in (UNSET, OPEN):
                    found.append(Plan(wanted=deposit, jobs=jobs, missing=missing, is_new=phase == UNSET))
        except RpcFault as fault:
            raise _unreachable(fault) from None
        return found

    async def pay(self, plan: Plan) -> PaidIn:
        """Make one deposit, and what was begun for it before. Returns when it is in a block.

        Raises:
            OperatorError: it was not made: the escrow, the owner's limits or the signer are against it.
        """
        key = plan.wanted.channel_id
        # Without the config nobody gets a deposit back but the node: it is kept before there is anything to get back.
        self._store.keep_word(f"{KEPT}{key.hex()}", to_json(plan.wanted))
        try:
            await self._check_coins()
            return await self._told(partial(pay_in, self.backend, plan.wanted.order))
        except Refused as fault:
            raise OperatorError(f"a deposit was not made: {fault}", "mend that, and give the command again") from None
        except RpcFault as fault:
            raise _unreachable(fault) from None

    async def _told(self, work: Callable[[], Awaitable[PaidIn]]) -> PaidIn:
        """Do something, and say meanwhile what keeps it back."""
        done, failed = PaidIn(amount=0, words=""), None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report)
            try:
                done = await work()
            except (Refused, RpcFault, OperatorError) as fault:
                failed = fault  # raised outside: a nursery would wrap it
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return done

    async def _check_coins(self) -> None:
        needed = MOST_GAS_OF_A_DEPOSIT * await self._transactions.most_fee()
        coins = await self._nodes.coins(self.payer)
        if coins < needed:
            has = f"the account has {format_coins(coins)} coins, and fees may take {format_coins(needed)}"
            raise Refused(f"{has}: send some to {checksum_address(self.payer)}")

    async def _report(self) -> None:
        """Say what keeps something back, once each."""
        said: set[str] = set()
        while True:
            await trio.sleep(REPORT_S)
            for trouble in self._transactions.trouble.values():
                if trouble not in said:
                    said.add(trouble)
                    self._say(plain(trouble, 300))

    def kept(self) -> list[WantedDeposit]:
        """All channels that this account was ever asked to pay into from here."""
        return [from_json(WantedDeposit, text) for text in self._store.words(KEPT)]

    async def take_back(self, deposits: Sequence[WantedDeposit]) -> list[str]:
        """Do the next thing that brings deposits back without the node: ask for an end, end it, take it out.

        Returns:
            What was done or is waited for, in words.

        Raises:
            OperatorError: something could not be done.
        """
        try:
            said = [words for deposit in deposits if (words := await self._end(deposit))]
            if await self.backend.credit(self.payer):
                amount = await self.backend.withdraw(self.payer)
                said.append(f"took {format_amount(amount)} {self.backend.symbol} out of the escrow")
        except Refused as fault:
            raise OperatorError(f"it could not be done: {fault}", "look at the channel's state and try again") from None
        except RpcFault as fault:
            raise _unreachable(fault) from None
        return said

    async def _end(self, deposit: WantedDeposit) -> str:
        name = f"channel {deposit.channel_id.hex()[:12]}"
        if deposit.currency != self.backend.currency.name:
            # Asked of the escrow that is configured now, it would look as if it had never been paid into.
            paid_into = currency_of(deposit.currency)
            escrow, token = checksum_address(paid_into.escrow), checksum_address(paid_into.token)
            where = f"it was paid into the escrow {escrow} with the token {token}, and config.toml names others"
            return f"{name}: left out: {where}. Set chain.escrow and chain.token to these and give this command again"
        state = await self.backend.state(deposit.channel_id, final=False)
        if state.phase == OPEN:
            await self.backend.request_close(deposit.config)
            return f"{name}: asked for its end; its provider has {deposit.config.challenge_period} s to claim"
        if state.phase == CLOSING:
            chain_s = (await self._nodes.newest_block()).at_s
            if chain_s < state.closable_at_s:
                return f"{name}: it can be ended in {state.closable_at_s - chain_s} s"
            await self.backend.finalize(deposit.config, deposit.splits)
            return f"{name}: ended"
        assert state.phase in (UNSET, CLOSED)
        return ""


def _unreachable(fault: RpcFault) -> OperatorError:
    return OperatorError(f"the chain cannot be asked: {plain(fault, 300)}", "look at chain.rpc, and try again")
