"""A node's money on a chain: it funds channels, tells the engine what is really there, claims, closes and takes out.

Every few seconds it looks at each channel that is not settled: in the last final block, which all nodes must agree on,
and in the newest, which can only make this side more careful. What it finds goes to the engine as events, like
everything that happens to a node; what it does is said again by what it finds, so an interrupted step is taken up anew.

Nothing here stops the daemon: while the chain cannot be reached nothing new is funded and claimed, and it is said.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from hansa.market.earning_channel import EarningChannel
from hansa.market.funding import ChannelSettled, FundingFailed, FundingWanted, FundsKnown, SettlementWanted
from hansa.market.ledger import payees_part
from hansa.market.paying_channel import PayingChannel
from hansa.market.settlement import CLOSED, CLOSING, OPEN
from hansa.node.chain.chain_answers import Block
from hansa.node.chain.chain_claims import Claimer, Claims
from hansa.node.chain.chain_errands import Errands, FirstSeen
from hansa.node.chain.chain_funding import Funder
from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.claim_policy import (
    PATIENCE_MS,
    SECOND_HAND_MS,
    ChannelStanding,
    best_voucher,
    can_finalize,
    ends_alone,
    funds_of,
    is_untouched,
    last_voucher,
    unclaimed,
    uncredited,
    wants_refund,
)
from hansa.node.chain.cold_deposits import is_paid_by_another, remedy, wanted_deposits
from hansa.node.chain.evm_backend import EvmBackend
from hansa.node.chain.evm_currency import WrongChain
from hansa.node.chain.evm_escrow import call, read_channel
from hansa.node.chain.evm_signing import AccountSigner
from hansa.node.chain.evm_store import FINAL, EvmStore
from hansa.node.chain.evm_transactions import POLL_S, Transactions
from hansa.node.chain.json_rpc import RpcFault, RpcNode
from hansa.node.engine.state import NodeState
from hansa.node.plain_text import plain
from hansa.node.settings.chain_config import ChainConfig, format_coins
from hansa.proto.documents import CooperativeClose, Voucher
from hansa.proto.signing import Signed, SigningKey, checksum_address, sign
from hansa.proto.units import format_amount

PAID_IN: Final = "paid in "
PAID_OUT: Final = "paid out "
AT_ONCE: Final = 16
"""So many channels that are being closed are claimed on before the others are looked at."""
REST_MS: Final = PATIENCE_MS
"""How often a channel is looked at that nobody ever funded, while no lease is on it."""
UNAUDITED: Final = "the escrow contract is experimental and unaudited"


class ChainSettler:
    """Settles for one node.

    Attributes:
        backend: the node's way to settle.
        claimer: brings vouchers to the chain.
        counters: what it did, and what went wrong, and how often.
    """

    def __init__(
        self,
        config: ChainConfig,
        *,
        backend: EvmBackend,
        nodes: ChainNodes,
        transactions: Transactions,
        key: SigningKey,
        state: Callable[[], NodeState],
        tell: Callable[[Any], None],
        log: Callable[[str], None],
        now_ms: Callable[[], int],
        payer: bytes | None = None,
    ) -> None:
        """Nothing is asked yet. ``payer`` is whose money pays, where it is another account's."""
        self.backend = backend
        self._errands = Errands(backend.check, log)
        self.counters = self._errands.counters
        self._config = config
        self._nodes = nodes
        self._transactions = transactions
        self._store: EvmStore = transactions.store
        self._key = key
        self._state = state
        self._tell = tell
        self._log = log
        self._now_ms = now_ms
        self._first_seen = FirstSeen(transactions.store, now_ms)
        self._funder = Funder(backend, self._errands, state=state, log=log)
        self.claimer = Claimer(
            config, backend=backend, errands=self._errands, first_seen=self._first_seen, log=log, now_ms=now_ms
        )
        self._told: dict[bytes, int] = {}
        self._settled: set[bytes] = set()
        self._unsure_since: dict[bytes, int] = {}
        self._rest_until_ms: dict[bytes, int] = {}
        self._final_number = 0
        self._coins = 0
        self._tokens = 0
        self._credit = 0
        self._payer = backend.account if payer is None else payer
        self._payer_tokens = 0
        self._payer_credit = 0

    # What the engine wants.

    def want(self, effect: FundingWanted | SettlementWanted) -> None:
        """Begin to do what the engine wants. It wants it again as long as it has not happened."""
        if effect.currency != self.backend.currency.name:
            # A peer's document cannot bring this about: tenders are in the node's own currency. An old journal can.
            self.counters["orders in another currency than the configured one"] += 1
            return
        if isinstance(effect, FundingWanted) and is_paid_by_another(effect.config, self.backend.account):
            self._ask_payer(effect)
        elif isinstance(effect, FundingWanted):
            failed = partial(self._funding_failed, effect.channel_id)
            self._errands.begin(f"fund {effect.channel_id.hex()}", self._funder.fund, effect, failed=failed)
        elif effect.channel_id not in self._settled and not self._rests(effect.channel_id, None):
            self._errands.begin(f"close {effect.channel_id.hex()}", self._close, effect)

    def _ask_payer(self, wanted: FundingWanted) -> None:
        """Only another account can make this deposit: say so where the job's developer looks, and in the log."""
        known = self._state().paying.get(wanted.channel_id)
        missing = wanted.amount - (known.funds or 0 if known is not None else 0)
        if missing > 0:
            words = remedy(wanted.config.payer, missing, self.symbol)
            self._tell(FundingFailed(channel_id=wanted.channel_id, reason=words, at_ms=self._now_ms()))
            if known is None or known.trouble != words:
                self._log(f"chain: a deposit is wanted: {words}")

    def _funding_failed(self, channel: bytes, fault: Exception) -> None:
        self._tell(FundingFailed(channel_id=channel, reason=plain(fault, 500), at_ms=self._now_ms()))

    async def _close(self, wanted: SettlementWanted) -> None:
        """End a channel at the sum that both have signed."""
        key = wanted.channel_id
        state = await self.backend.state(key, final=False)
        if state.phase not in (OPEN, CLOSING):
            return
        pays = wanted.config.payer_signer == self._key.address
        since_ms = self._first_seen.since_ms(f"close {key.hex()}")
        if pays and wanted.config.payee_signer != self._key.address and self._now_ms() - since_ms < SECOND_HAND_MS:
            return
        close = CooperativeClose(channel_id=key, cumulative=wanted.cumulative)
        own = sign(self.backend.domain, close, self._key).signature
        signatures = (own, wanted.other_signature) if pays else (wanted.other_signature, own)
        if wanted.config.payer_signer == wanted.config.payee_signer:
            signatures = (own, own)
        await self.backend.cooperative_close(wanted.config, wanted.splits, wanted.cumulative, *signatures)
        self.counters["chain: channels closed together"] += 1
        self._log(f"chain: closed a channel at {format_amount(wanted.cumulative)} {self.symbol}")

    # What is so.

    async def serve(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Look, tell and act, for as long as the daemon lives."""
        async with trio.open_nursery() as nursery:
            self._errands.open(nursery)
            task_status.started()
            while True:
                try:
                    await self._errands.make_sure()
                    await self._look()
                    self._errands.trouble.pop("look", None)
                except (RpcFault, WrongChain) as fault:
                    self._errands.say("look", plain(fault, 300))
                await trio.sleep(self._config.poll_ms / 1000)

    @property
    def symbol(self) -> str:
        """What people call the token."""
        return self.backend.symbol

    async def _look(self) -> None:
        faults: list[RpcFault] = []
        newest = await self._nodes.newest_block()
        final = await self._final_block(faults)
        await self._look_at_channels(final, newest.at_s, faults)
        account = self.backend.account
        self._coins = await self._nodes.coins(account)
        self._tokens = await self.backend.tokens(account)
        self._credit = await self.backend.credit(account)
        if self._credit > self._config.withdraw_above:
            self._errands.begin("withdraw", self._withdraw, account)
        if self._payer != account:
            self._payer_tokens = await self.backend.tokens(self._payer)
            self._payer_credit = await self.backend.credit(self._payer)
            if self._payer_credit > self._config.withdraw_above:
                # Whoever orders it, it can only go to the account that it is credited to.
                self._errands.begin("withdraw for the payer", self._withdraw, self._payer)
        if faults:
            raise faults[0]

    async def _final_block(self, faults: list[RpcFault]) -> Block | None:
        """The newest final block; none where the nodes do not agree, or too few answer: claims go on without it."""
        try:
            await self._transactions.tend()
            final = await self._nodes.final_block()
        except RpcFault as fault:
            faults.append(fault)
            return None
        self._final_number = final.number
        return final

    async def _look_at_channels(self, final: Block | None, chain_s: int, faults: list[RpcFault]) -> None:
        claims = Claims()
        try:
            await self._look_as_payee(final, chain_s, claims, faults)
        finally:
            # What was found is claimed, whatever became of the rest of the look.
            self.claimer.begin(claims.take())
        for key, paying in list(self._state().paying.all()):
            if self._is_ours(paying) and key not in self._settled and not self._rests(key, paying):
                standing, is_sure = await self._see(key, final, faults)
                if is_sure:
                    self._tell_of(key, standing, paying.cumulative)
                    self._act_as_payer(key, paying, standing, chain_s)

    async def _look_as_payee(self, final: Block | None, chain_s: int, claims: Claims, faults: list[RpcFault]) -> None:
        for key, earning in list(self._state().earning.all()):
            if self._is_ours(earning) and key not in self._settled and not self._rests(key, earning):
                standing, is_sure = await self._see(key, final, faults)
                if is_sure:
                    best = best_voucher(earning, standing)
                    self._tell_of(key, standing, best.document.cumulative if best else 0)
                    self._rest(key, standing)
                if not (is_sure and self._ends_as_payee(key, earning, standing, chain_s)):
                    now_ms = self._now_ms()
                    self.claimer.find(key, earning, standing, claims, now_ms - self._unsure_since.get(key, now_ms))
                if len(claims.urgent) >= AT_ONCE or self._now_ms() - claims.urgent_ms >= self._config.poll_ms:
                    self.claimer.begin(claims.take_urgent())

    def _rests(self, key: bytes, channel: EarningChannel | PayingChannel | None) -> bool:
        """Whether a channel that nobody ever funded need not be looked at yet: strangers can make many of them."""
        is_used = channel.phase != "closed" if isinstance(channel, PayingChannel) else bool(channel and channel.live)
        return not is_used and self._now_ms() < self._rest_until_ms.get(key, 0)

    def _rest(self, key: bytes, standing: ChannelStanding) -> None:
        if is_untouched(standing):
            self._rest_until_ms[key] = self._now_ms() + REST_MS
        else:
            self._rest_until_ms.pop(key, None)

    def _is_ours(self, channel: PayingChannel | EarningChannel) -> bool:
        return channel.currency == self.backend.currency.name and not channel.settled_ms

    async def _see(self, key: bytes, final: Block | None, faults: list[RpcFault]) -> tuple[ChannelStanding, bool]:
        """Look at a channel. Answers with ``False`` where what is final is not known: both are the newest then."""
        newest = await self.backend.state(key, final=False)
        if final is not None:
            try:
                question = call("channel", key)
                agreed = await self._nodes.call(read_channel, self.backend.currency.escrow, question, final)
            except RpcFault as fault:
                faults.append(fault)
            else:
                self._unsure_since.pop(key, None)
                return ChannelStanding(final=agreed, newest=newest), True
        self._unsure_since.setdefault(key, self._now_ms())
        return ChannelStanding(final=newest, newest=newest), False

    def _tell_of(self, key: bytes, standing: ChannelStanding, vouched: int) -> None:
        """Tell the engine what is new."""
        at_ms, most = self._now_ms(), funds_of(standing, vouched)
        if self._told.get(key) != most:
            self._told[key] = most
            self._tell(FundsKnown(channel_id=key, most=most, at_ms=at_ms))
        if standing.final.phase == CLOSED:
            self._keep_paid(key, standing.final.settled)
            self._settled.add(key)
            self._tell(ChannelSettled(channel_id=key, paid=standing.final.settled, at_ms=at_ms))

    def _keep_paid(self, key: bytes, settled: int) -> None:
        """What a channel that has ended paid: the books of the two sides do not know that it came through the chain.

        Of both sides before the engine hears of the end: a node that bought from itself is either, and whichever is
        told of first, nobody looks at the channel again.
        """
        state = self._state()
        paying, earning = state.paying.get(key), state.earning.get(key)
        if paying is not None:
            self._store.keep_word(PAID_OUT + key.hex(), str(min(settled, paying.cumulative)))
        if earning is not None:
            own = payees_part(min(settled, earning.earned), earning.splits)
            self._store.keep_word(PAID_IN + key.hex(), str(own))

    def paid_on_chain(self) -> tuple[int, int]:
        """What channels that ended on the chain paid to this node, and what its own paid to others."""
        return self._store.amounts(PAID_IN), self._store.amounts(PAID_OUT)

    def _act_as_payer(self, key: bytes, channel: PayingChannel, standing: ChannelStanding, chain_s: int) -> None:
        if is_untouched(standing):
            if channel.phase == "closed" and is_paid_by_another(channel.config, self.backend.account):
                # Its payer may have signed the deposit, which then comes at any time: it is asked back when it does.
                self._rest_until_ms[key] = self._now_ms() + REST_MS
            elif channel.phase == "closed" and not self._is_paying_in(key):
                # It never came to the chain, and nobody brings it there any more.
                self._settled.add(key)
            return
        since_ms = self._first_seen.since_ms(f"{channel.phase} {key.hex()}")
        if wants_refund(channel, standing, since_ms=since_ms, at_ms=self._now_ms()):
            self._errands.begin(f"request-close {key.hex()}", self.backend.request_close, channel.config)
        elif can_finalize(standing, chain_s=chain_s):
            self._errands.begin(f"finalize {key.hex()}", self.backend.finalize, channel.config, channel.splits)

    def _is_paying_in(self, key: bytes) -> bool:
        """Whether a deposit may still come to the chain: it is being made, or was sent in an earlier life."""
        if self._errands.is_busy(f"fund {key.hex()}"):
            return True
        sent = self._store.newest(f"open {key.hex()}")
        return sent is not None and (sent.phase != FINAL or sent.ok)

    def _ends_as_payee(self, key: bytes, channel: EarningChannel, standing: ChannelStanding, chain_s: int) -> bool:
        """End a channel by itself where this side should; whether that is so."""
        owed, at_ms = uncredited(channel, standing), self._now_ms()
        if not unclaimed(channel, standing) and owed < self._config.claim_at_least:
            return False  # what is left to be credited is not worth a fee
        if not channel.live:
            since_ms = self._first_seen.since_ms(f"idle since {key.hex()} {len(channel.terms)} {channel.cumulative}")
            if ends_alone(channel, standing, since_ms=since_ms, at_ms=at_ms):
                self._errands.begin(
                    f"payee-close {key.hex()}", self._end_alone, channel, last_voucher(channel, standing)
                )
                return True
        if can_finalize(standing, chain_s=chain_s) and not unclaimed(channel, standing):
            self._errands.begin(f"finalize {key.hex()}", self.backend.finalize, channel.config, channel.splits)
            return True
        return False

    async def _end_alone(self, channel: EarningChannel, voucher: Signed[Voucher] | None) -> None:
        await self.backend.payee_close(channel.config, channel.splits, voucher)
        self.counters["chain: channels closed by their payee"] += 1
        self._log("chain: ended a channel with its last voucher, as its buyer is silent or ends it")

    async def _withdraw(self, account: bytes) -> None:
        amount = await self.backend.withdraw(account)
        self.counters["chain: withdrawals"] += 1
        self._log(f"chain: took {format_amount(amount)} {self.symbol} out of the escrow")

    def close(self) -> None:
        """Give the file back, and hang up."""
        self._store.close()
        for node in self._nodes.nodes:
            node.hang_up()

    # For people.

    def troubles(self) -> list[str]:
        """What keeps money from moving, in words."""
        nodes = [f"{name}: {why}" for name, why in sorted(self._nodes.faults.items())]
        own = [f"{name[:30]}: {why}" for name, why in sorted(self._errands.trouble.items())]
        sent = [f"{name[:30]}: {why}" for name, why in sorted(self._transactions.trouble.items())]
        return [*nodes, *own, *sent]

    def counts(self) -> dict[str, int]:
        """Everything that was done or went wrong, by name."""
        nodes = {f"rpc: requests to node {at}": node.asked for at, node in enumerate(self._nodes.nodes, start=1)}
        failed = {f"rpc: failed at node {at}": node.failed for at, node in enumerate(self._nodes.nodes, start=1)}
        return {**self.counters, **self._transactions.counters, **nodes, **failed}

    def _payer_view(self) -> dict[str, Any]:
        """What is known of the account whose money pays."""
        return {
            "account": checksum_address(self._payer),
            "tokens": format_amount(min(self._payer_tokens, (1 << 128) - 1)),
            "credit": format_amount(self._payer_credit),
            "deposits_wanted": len(wanted_deposits(self._state())),
        }

    def view(self) -> dict[str, Any]:
        """What the local API says of it."""
        currency = self.backend.currency
        return {
            "chain_id": currency.chain_id,
            "escrow": checksum_address(currency.escrow),
            "token": checksum_address(currency.token),
            "symbol": self.symbol,
            "sound": self._errands.is_sound,
            "warning": UNAUDITED,
            "nodes": [
                {"name": node.name, "fault": self._nodes.faults.get(node.name, "")} for node in self._nodes.nodes
            ],
            "final_block": self._final_number,
            "coins": format_coins(self._coins),
            "tokens": format_amount(min(self._tokens, (1 << 128) - 1)),
            "credit": format_amount(self._credit),
            "payer": self._payer_view() if self._payer != self.backend.account else None,
            "waiting": [intention.purpose for intention in self._store.unsettled() if intention.phase == "sent"],
            "troubles": self.troubles(),
        }


def settler_for(
    config: ChainConfig,
    path: Path,
    key: SigningKey,
    *,
    state: Callable[[], NodeState],
    tell: Callable[[Any], None],
    log: Callable[[str], None],
    now_ms: Callable[[], int],
    payer: bytes | None = None,
) -> ChainSettler:
    """A settler with all that it needs.

    Args:
        config: the owner's settings.
        path: the file of what is sent.
        key: the account's key.
        state: the node's state as it is.
        tell: hands the engine an event.
        log: one line for the owner.
        now_ms: the clock.
        payer: whose money pays, where it is another account's.

    Raises:
        OperatorError: the file cannot be opened.
    """
    nodes = ChainNodes([RpcNode(url) for url in config.rpc], confirmations=config.confirmations)
    chain_id = config.currency.chain_id
    store = EvmStore(path, account=key.address, chain_id=chain_id)
    signer = AccountSigner(key)
    transactions = Transactions(
        nodes,
        store,
        signer,
        chain_id=chain_id,
        limits=config.limits,
        now_ms=now_ms,
        poll_s=min(POLL_S, config.poll_ms / 1000),
    )
    backend = EvmBackend(config.currency, nodes, transactions, permits=signer)
    return ChainSettler(
        config,
        backend=backend,
        nodes=nodes,
        transactions=transactions,
        key=key,
        state=state,
        tell=tell,
        log=log,
        now_ms=now_ms,
        payer=payer,
    )
