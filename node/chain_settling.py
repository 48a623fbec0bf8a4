"""A node's money on a chain: it funds channels, tells the engine what is really there, claims, closes and takes out.

Every few seconds it looks at each channel that is not settled: in the last final block, which all nodes must agree on,
and in the newest, which can only make this side more careful. What it finds goes to the engine as events, like
everything that happens to a node; what it does is said again by what it finds, so an interrupted step is taken up anew.

Nothing here stops the daemon: while the chain cannot be reached nothing new is funded and claimed, and it is said.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from hansa.market.earning_channel import EarningChannel
from hansa.market.funding import ChannelSettled, FundingFailed, FundingWanted, FundsKnown, SettlementWanted
from hansa.market.ledger import payees_part
from hansa.market.paying_channel import PayingChannel
from hansa.market.settlement import CLOSED, CLOSING, OPEN, UNSET, Claim, Refused
from hansa.node.chain_answers import Block
from hansa.node.chain_config import ChainConfig, format_coins
from hansa.node.chain_nodes import ChainNodes
from hansa.node.claim_policy import (
    PATIENCE_MS,
    SECOND_HAND_MS,
    Standing,
    best_voucher,
    can_finalize,
    claim_is_due,
    ends_alone,
    funds_of,
    is_agreed,
    is_closing,
    is_untouched,
    is_worth_claiming,
    last_voucher,
    unclaimed,
    uncredited,
    voucher_to_claim,
    wants_refund,
)
from hansa.node.evm_backend import EvmBackend
from hansa.node.evm_currency import WrongChain, check_currency
from hansa.node.evm_escrow import call, read_channel
from hansa.node.evm_signing import AccountSigner
from hansa.node.evm_store import FINAL, EvmStore
from hansa.node.evm_transactions import POLL_S, Transactions
from hansa.node.faults import OperatorError
from hansa.node.json_rpc import RpcFault, RpcNode
from hansa.node.plain_text import plain
from hansa.node.state import NodeState
from hansa.proto.documents import CooperativeClose, Voucher
from hansa.proto.signing import Signed, SigningKey, checksum_address, sign
from hansa.proto.units import format_amount

PAID_IN: Final = "paid in "
PAID_OUT: Final = "paid out "
AT_ONCE: Final = 16
"""So many channels that are being closed are claimed on before the others are looked at."""
NEVER_MS: Final = 1 << 62
REST_MS: Final = PATIENCE_MS
"""How often a channel is looked at that nobody ever funded, while no lease is on it."""
UNAUDITED: Final = "the escrow contract is experimental and unaudited"


@dataclass(slots=True)
class Claims:
    """What one look finds worth a claim.

    Attributes:
        urgent: on channels that are being closed.
        urgent_ms: since when there is one; the end of time where there is none.
        others: on channels that are open.
        is_due: whether one of those should be claimed now; the others then go along.
    """

    urgent: list[tuple[bytes, Claim]] = field(default_factory=list)
    urgent_ms: int = NEVER_MS
    others: list[tuple[bytes, Claim]] = field(default_factory=list)
    is_due: bool = False

    def take_urgent(self) -> list[tuple[bytes, Claim]]:
        """What must not wait for the rest of the look. It is not found again."""
        taken, self.urgent, self.urgent_ms = self.urgent, [], NEVER_MS
        return taken

    def take(self) -> list[tuple[bytes, Claim]]:
        """Everything that should be claimed at the end of a look."""
        urgent = self.take_urgent()
        return [*urgent, *self.others] if urgent or self.is_due else []


class ChainSettler:
    """Settles for one node.

    Attributes:
        backend: the node's way to settle.
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
    ) -> None:
        """Nothing is asked yet."""
        self.backend = backend
        self.counters: Counter[str] = Counter()
        self._config = config
        self._nodes = nodes
        self._transactions = transactions
        self._store: EvmStore = transactions.store
        self._key = key
        self._state = state
        self._tell = tell
        self._log = log
        self._now_ms = now_ms
        self._nursery: trio.Nursery | None = None
        self._busy: set[str] = set()
        self._told: dict[bytes, int] = {}
        self._settled: set[bytes] = set()
        self._since: dict[str, int] = {}
        self._trouble: dict[str, str] = {}
        self._sound = False
        self._funding = trio.Lock()
        self._claiming: dict[bytes, int] = {}
        self._unsure_since: dict[bytes, int] = {}
        self._rest_until_ms: dict[bytes, int] = {}
        self._final_number = 0
        self._coins = 0
        self._tokens = 0
        self._credit = 0

    # What the engine wants.

    def want(self, effect: FundingWanted | SettlementWanted) -> None:
        """Begin to do what the engine wants. It wants it again as long as it has not happened."""
        if effect.currency != self.backend.currency.name:
            # A peer's document cannot bring this about: tenders are in the node's own currency. An old journal can.
            self.counters["orders in another currency than the configured one"] += 1
            return
        if isinstance(effect, FundingWanted):
            self._begin(f"fund {effect.channel_id.hex()}", self._fund, effect)
        elif effect.channel_id not in self._settled and not self._rests(effect.channel_id, None):
            self._begin(f"close {effect.channel_id.hex()}", self._close, effect)

    def _begin(self, name: str, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        if self._nursery is None or name in self._busy:
            return
        self._busy.add(name)
        self._nursery.start_soon(self._work, name, work, arguments)

    async def _work(self, name: str, work: Callable[..., Awaitable[None]], arguments: tuple[Any, ...]) -> None:
        try:
            if not self._sound:
                await self._check()
            await work(*arguments)
            self._trouble.pop(name, None)
        except (Refused, RpcFault, WrongChain) as fault:
            self._say(name, plain(fault, 300))
            if work == self._fund:
                wanted: FundingWanted = arguments[0]
                reason = plain(fault, 500)
                self._tell(FundingFailed(channel_id=wanted.channel_id, reason=reason, at_ms=self._now_ms()))
        finally:
            self._busy.discard(name)

    def _say(self, name: str, words: str) -> None:
        """Keep what is wrong for whoever asks; it goes to the log when it is new."""
        self.counters[f"chain: {name.split(maxsplit=1)[0]} did not work"] += 1
        if self._trouble.get(name) != words:
            self._log(f"chain: {name[:40]}: {words}")
        self._trouble[name] = words

    async def _fund(self, wanted: FundingWanted) -> None:
        """Make a channel good for a total: open it, or add what is missing. One after the other."""
        async with self._funding:
            channel = self._state().paying.get(wanted.channel_id)
            if channel is None or channel.phase not in ("opening", "open"):
                # It ended while others were paid into: a deposit would lie there for nothing.
                self.counters["chain: deposits that were not wanted any more"] += 1
                return
            await self._pay_in(wanted)

    async def _pay_in(self, wanted: FundingWanted) -> None:
        state = await self.backend.state(wanted.channel_id, final=False)
        if state.phase in (CLOSING, CLOSED):
            raise Refused("the channel is being closed")
        # One reading decides how much and from where: a node that lags cannot have it paid in twice.
        before = await self.backend.deposit(wanted.channel_id)
        missing = wanted.amount - before
        if missing <= 0:
            return
        has = await self.backend.tokens(self.backend.account)
        if has < missing:
            words = f"a deposit needs {format_amount(missing)} {self.symbol}, and there are {format_amount(has)}"
            raise Refused(f"{words}: send some to {checksum_address(self.backend.account)}")
        if state.phase == UNSET:
            await self.backend.open(wanted.config, wanted.splits, wanted.amount)
            self._log(f"chain: opened a channel with {format_amount(wanted.amount)} {self.symbol}")
        else:
            await self.backend.top_up(wanted.config, missing, before=before)
            self._log(f"chain: added {format_amount(missing)} {self.symbol} to a channel")
        self.counters["chain: deposits"] += 1

    async def _close(self, wanted: SettlementWanted) -> None:
        """End a channel at the sum that both have signed."""
        key = wanted.channel_id
        state = await self.backend.state(key, final=False)
        if state.phase not in (OPEN, CLOSING):
            return
        pays = wanted.config.payer_signer == self._key.address
        since_ms = self._first_seen(f"close {key.hex()}")
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
            self._nursery = nursery
            task_status.started()
            while True:
                try:
                    if not self._sound:
                        await self._check()
                    await self._look()
                    self._trouble.pop("look", None)
                except (RpcFault, WrongChain) as fault:
                    self._say("look", plain(fault, 300))
                await trio.sleep(self._config.poll_ms / 1000)

    async def _check(self) -> None:
        await self.backend.check()
        self._sound = True
        self._trouble.pop("check", None)

    @property
    def symbol(self) -> str:
        """What people call the token."""
        return self.backend.symbol or "tokens"

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
            self._begin("withdraw", self._withdraw, account)
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
            self._begin_claims(claims.take())
        for key, paying in list(self._state().paying.all()):
            if self._is_ours(paying) and key not in self._settled:
                standing, is_sure = await self._see(key, final, faults)
                if is_sure:
                    self._tell_of(key, standing, paying.cumulative)
                    self._keep_paid(PAID_OUT, key, standing, min(standing.final.settled, paying.cumulative))
                    self._act_as_payer(key, paying, standing, chain_s)

    async def _look_as_payee(self, final: Block | None, chain_s: int, claims: Claims, faults: list[RpcFault]) -> None:
        for key, earning in list(self._state().earning.all()):
            if self._is_ours(earning) and key not in self._settled and not self._rests(key, earning):
                standing, is_sure = await self._see(key, final, faults)
                if is_sure:
                    best = best_voucher(earning, standing)
                    self._tell_of(key, standing, best.document.cumulative if best else 0)
                    own = payees_part(min(standing.final.settled, earning.earned), earning.splits)
                    self._keep_paid(PAID_IN, key, standing, own)
                    self._rest(key, standing)
                if not (is_sure and self._ends_as_payee(key, earning, standing, chain_s)):
                    self._find_claim(key, earning, standing, claims)
                if len(claims.urgent) >= AT_ONCE or self._now_ms() - claims.urgent_ms >= self._config.poll_ms:
                    self._begin_claims(claims.take_urgent())

    def _rests(self, key: bytes, channel: EarningChannel | None) -> bool:
        """Whether a channel that nobody ever funded need not be looked at yet: strangers can make many of them."""
        return not (channel is not None and channel.live) and self._now_ms() < self._rest_until_ms.get(key, 0)

    def _rest(self, key: bytes, standing: Standing) -> None:
        if is_untouched(standing):
            self._rest_until_ms[key] = self._now_ms() + REST_MS
        else:
            self._rest_until_ms.pop(key, None)

    def _is_ours(self, channel: PayingChannel | EarningChannel) -> bool:
        return channel.currency == self.backend.currency.name and not channel.settled_ms

    async def _see(self, key: bytes, final: Block | None, faults: list[RpcFault]) -> tuple[Standing, bool]:
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
                return Standing(final=agreed, newest=newest), True
        self._unsure_since.setdefault(key, self._now_ms())
        return Standing(final=newest, newest=newest), False

    def _tell_of(self, key: bytes, standing: Standing, vouched: int) -> None:
        """Tell the engine what is new."""
        at_ms, most = self._now_ms(), funds_of(standing, vouched)
        if self._told.get(key) != most:
            self._told[key] = most
            self._tell(FundsKnown(channel_id=key, most=most, at_ms=at_ms))
        if standing.final.phase == CLOSED:
            self._settled.add(key)
            self._tell(ChannelSettled(channel_id=key, paid=standing.final.settled, at_ms=at_ms))

    def _keep_paid(self, word: str, key: bytes, standing: Standing, amount: int) -> None:
        """What a channel that has ended paid: the books of the two sides do not know that it came through the chain."""
        if standing.final.phase == CLOSED:
            self._store.keep_word(word + key.hex(), str(amount))

    def paid_on_chain(self) -> tuple[int, int]:
        """What channels that ended on the chain paid to this node, and what its own paid to others."""
        return self._store.amounts(PAID_IN), self._store.amounts(PAID_OUT)

    def _act_as_payer(self, key: bytes, channel: PayingChannel, standing: Standing, chain_s: int) -> None:
        if is_untouched(standing):
            if channel.phase == "closed" and not self._is_paying_in(key):
                # It never came to the chain, and nobody brings it there any more.
                self._settled.add(key)
            return
        since_ms = self._first_seen(f"{channel.phase} {key.hex()}")
        if wants_refund(channel, standing, since_ms=since_ms, at_ms=self._now_ms()):
            self._begin(f"request-close {key.hex()}", self.backend.request_close, channel.config)
        elif can_finalize(standing, chain_s=chain_s):
            self._begin(f"finalize {key.hex()}", self.backend.finalize, channel.config, channel.splits)

    def _is_paying_in(self, key: bytes) -> bool:
        """Whether a deposit may still come to the chain: it is being made, or was sent in an earlier life."""
        if f"fund {key.hex()}" in self._busy:
            return True
        sent = self._store.newest(f"open {key.hex()}")
        return sent is not None and (sent.phase != FINAL or sent.ok)

    def _ends_as_payee(self, key: bytes, channel: EarningChannel, standing: Standing, chain_s: int) -> bool:
        """End a channel by itself where this side should; whether that is so."""
        owed, at_ms = uncredited(channel, standing), self._now_ms()
        if not unclaimed(channel, standing) and owed < self._config.claim_at_least:
            return False  # what is left to be credited is not worth a fee
        if not channel.live:
            since_ms = self._first_seen(f"idle since {key.hex()} {len(channel.terms)} {channel.cumulative}")
            if ends_alone(channel, standing, since_ms=since_ms, at_ms=at_ms):
                self._begin(f"payee-close {key.hex()}", self._end_alone, channel, last_voucher(channel, standing))
                return True
        if can_finalize(standing, chain_s=chain_s) and not unclaimed(channel, standing):
            self._begin(f"finalize {key.hex()}", self.backend.finalize, channel.config, channel.splits)
            return True
        return False

    def _find_claim(self, key: bytes, channel: EarningChannel, standing: Standing, claims: Claims) -> None:
        voucher, at_ms = voucher_to_claim(channel, standing), self._now_ms()
        if voucher is None or not unclaimed(channel, standing):
            return
        since_ms = self._first_seen(f"unclaimed since {key.hex()} {standing.newest.claimed}")
        if is_agreed(channel) and standing.newest.phase == OPEN:
            return  # both have signed its end: the close pays all of it, and is under way
        if not is_worth_claiming(channel, standing, self._config):
            return
        unsure_ms = at_ms - self._unsure_since.get(key, at_ms)
        claim = Claim(config=channel.config, voucher=voucher)
        if is_closing(standing):
            claims.urgent_ms = min(claims.urgent_ms, at_ms)
            claims.urgent.append((key, claim))
            return
        claims.others.append((key, claim))
        claims.is_due |= claim_is_due(
            channel, standing, self._config, since_ms=since_ms, at_ms=at_ms, unsure_ms=unsure_ms
        )

    def _begin_claims(self, found: Sequence[tuple[bytes, Claim]]) -> None:
        """Claim what is not being claimed already. One that does not come back for long keeps no later one back."""
        at_ms = self._now_ms()
        fresh = {
            key: claim for key, claim in found if at_ms - self._claiming.get(key, at_ms - PATIENCE_MS) >= PATIENCE_MS
        }
        if fresh and self._nursery is not None:
            self._claiming.update(dict.fromkeys(fresh, at_ms))
            self._nursery.start_soon(self._work, "claim", self._claim, (fresh, at_ms))

    def _first_seen(self, word: str) -> int:
        """When something was first seen so, in this life of the daemon or an earlier one."""
        if word not in self._since:
            kept = self._store.word(word)
            if kept is None:
                kept = str(self._now_ms())
                self._store.keep_word(word, kept)
            self._since[word] = int(kept)
        return self._since[word]

    async def _claim(self, claims: dict[bytes, Claim], begun_ms: int) -> None:
        try:
            results = await self.backend.claim(list(claims.values()))
        finally:
            for key in claims:
                if self._claiming.get(key) == begun_ms:
                    del self._claiming[key]
        paid = sum(result.paid for result in results)
        self.counters["chain: vouchers claimed"] += sum(not result.fault for result in results)
        self._log(f"chain: claimed {format_amount(paid)} {self.symbol} on {len(claims)} channels")
        faults = [result.fault for result in results if result.fault]
        if faults:
            raise Refused(f"{len(faults)} of {len(results)} vouchers were not counted: {faults[0]}")

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
        own = [f"{name[:30]}: {why}" for name, why in sorted(self._trouble.items())]
        sent = [f"{name[:30]}: {why}" for name, why in sorted(self._transactions.trouble.items())]
        return [*nodes, *own, *sent]

    def counts(self) -> dict[str, int]:
        """Everything that was done or went wrong, by name."""
        nodes = {f"rpc: requests to node {at}": node.asked for at, node in enumerate(self._nodes.nodes, start=1)}
        failed = {f"rpc: failed at node {at}": node.failed for at, node in enumerate(self._nodes.nodes, start=1)}
        return {**self.counters, **self._transactions.counters, **nodes, **failed}

    def view(self) -> dict[str, Any]:
        """What the local API says of it."""
        currency = self.backend.currency
        return {
            "chain_id": currency.chain_id,
            "escrow": checksum_address(currency.escrow),
            "token": checksum_address(currency.token),
            "symbol": self.symbol,
            "sound": self._sound,
            "warning": UNAUDITED,
            "nodes": [
                {"name": node.name, "fault": self._nodes.faults.get(node.name, "")} for node in self._nodes.nodes
            ],
            "final_block": self._final_number,
            "coins": format_coins(self._coins),
            "tokens": format_amount(min(self._tokens, (1 << 128) - 1)),
            "credit": format_amount(self._credit),
            "waiting": [intention.purpose for intention in self._store.unsettled() if intention.phase == "sent"],
            "troubles": self.troubles(),
        }


def look_at_chain(config: ChainConfig) -> str:
    """Hold the chain against the configuration once, and answer what the token is called. Sends nothing.

    Raises:
        OperatorError: it cannot be asked, or something is not as it must be.
    """

    async def look() -> str:
        nodes = ChainNodes([RpcNode(url) for url in config.rpc], confirmations=config.confirmations)
        try:
            return await check_currency(config.currency, nodes)
        except RpcFault as fault:
            raise OperatorError(f"the chain cannot be asked: {plain(fault, 300)}", "look at chain.rpc") from None
        finally:
            await nodes.close()

    return trio.run(look)


def settler_for(
    config: ChainConfig,
    path: Path,
    key: SigningKey,
    *,
    state: Callable[[], NodeState],
    tell: Callable[[Any], None],
    log: Callable[[str], None],
    now_ms: Callable[[], int],
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

    Raises:
        OperatorError: the file cannot be opened.
    """
    nodes = ChainNodes([RpcNode(url) for url in config.rpc], confirmations=config.confirmations)
    chain_id = config.currency.chain_id
    store = EvmStore(path, account=key.address, chain_id=chain_id)
    transactions = Transactions(
        nodes,
        store,
        AccountSigner(key),
        chain_id=chain_id,
        limits=config.limits,
        now_ms=now_ms,
        poll_s=min(POLL_S, config.poll_ms / 1000),
    )
    backend = EvmBackend(config.currency, nodes, transactions, permit_key=key)
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
    )
