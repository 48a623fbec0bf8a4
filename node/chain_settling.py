"""A node's money on a chain: it funds channels, tells the engine what is really there, claims, closes and takes out.

Every few seconds it looks at each channel that is not settled: in the last final block, which all nodes must agree on,
and in the newest, which can only make this side more careful. What it finds goes to the engine as events, like
everything that happens to a node; what it does is said again by what it finds, so an interrupted step is taken up anew.

Nothing here stops the daemon: while the chain cannot be reached nothing new is funded and claimed, and it is said.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

from hansa.market.earning_channel import EarningChannel
from hansa.market.funding import ChannelSettled, FundingFailed, FundingWanted, FundsKnown, SettlementWanted
from hansa.market.ledger import payees_part
from hansa.market.paying_channel import PayingChannel
from hansa.market.settlement import CLOSED, CLOSING, OPEN, UNSET, Claim, Refused
from hansa.node.chain_config import ChainConfig, format_coins
from hansa.node.chain_nodes import ChainNodes
from hansa.node.claim_policy import (
    SECOND_HAND_MS,
    Standing,
    can_finalize,
    claim_is_due,
    ends_alone,
    funds_of,
    is_untouched,
    is_worth_claiming,
    unclaimed,
    wants_refund,
)
from hansa.node.evm_backend import EvmBackend, WrongChain, check_currency
from hansa.node.evm_signing import AccountSigner
from hansa.node.evm_store import EvmStore
from hansa.node.evm_transactions import POLL_S, Transactions
from hansa.node.faults import OperatorError
from hansa.node.json_rpc import RpcFault, RpcNode
from hansa.node.plain_text import plain
from hansa.node.state import NodeState
from hansa.proto.documents import CooperativeClose
from hansa.proto.signing import SigningKey, checksum_address, sign
from hansa.proto.units import format_amount

PAID_IN: Final = "paid in "
PAID_OUT: Final = "paid out "
UNAUDITED: Final = "the escrow contract is experimental and unaudited"


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
        self._lags = False
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
        else:
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
        """Make a channel good for a total: open it, or add what is missing."""
        state = await self.backend.state(wanted.channel_id, final=False)
        if state.phase in (CLOSING, CLOSED):
            raise Refused("the channel is being closed")
        missing = wanted.amount - state.deposit
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
            await self.backend.top_up(wanted.config, missing)
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
        await self._transactions.tend()
        final = await self._nodes.final_block()
        self._final_number = final.number
        account = self.backend.account
        self._coins = await self._nodes.coins(account)
        self._tokens = await self.backend.tokens(account)
        newest = await self._nodes.newest_block()
        # A node that lags behind what is final has nothing newer to say.
        self._lags = newest.number < final.number
        claims: list[tuple[EarningChannel, bool]] = []
        state = self._state()
        for key, paying in list(state.paying.all()):
            if self._is_ours(paying) and key not in self._settled:
                standing = await self._see(key, paying.cumulative)
                self._keep_paid(PAID_OUT, key, standing, min(standing.final.settled, paying.cumulative))
                self._act_as_payer(key, paying, standing, newest.at_s)
        for key, earning in list(state.earning.all()):
            if self._is_ours(earning) and key not in self._settled:
                standing = await self._see(key, earning.cumulative)
                own = payees_part(min(standing.final.settled, earning.earned), earning.splits)
                self._keep_paid(PAID_IN, key, standing, own)
                self._act_as_payee(key, earning, standing, claims)
        if any(due for _, due in claims):
            self._begin("claim", self._claim, [channel for channel, _ in claims])
        self._credit = await self.backend.credit(account)
        if self._credit > self._config.withdraw_above:
            self._begin("withdraw", self._withdraw, account)

    def _is_ours(self, channel: PayingChannel | EarningChannel) -> bool:
        return channel.currency == self.backend.currency.name and not channel.settled_ms

    async def _see(self, key: bytes, vouched: int) -> Standing:
        """Look at a channel, and tell the engine what is new."""
        standing = Standing(final=await self.backend.state(key), newest=await self.backend.state(key, final=False))
        at_ms, most = self._now_ms(), funds_of(standing, vouched)
        if self._told.get(key) != most:
            self._told[key] = most
            self._tell(FundsKnown(channel_id=key, most=most, at_ms=at_ms))
        if standing.final.phase == CLOSED:
            self._settled.add(key)
            self._tell(ChannelSettled(channel_id=key, paid=standing.final.settled, at_ms=at_ms))
        return standing

    def _keep_paid(self, word: str, key: bytes, standing: Standing, amount: int) -> None:
        """What a channel that has ended paid: the books of the two sides do not know that it came through the chain."""
        if standing.final.phase == CLOSED:
            self._store.keep_word(word + key.hex(), str(amount))

    def paid_on_chain(self) -> tuple[int, int]:
        """What channels that ended on the chain paid to this node, and what its own paid to others."""
        return self._store.amounts(PAID_IN), self._store.amounts(PAID_OUT)

    def _act_as_payer(self, key: bytes, channel: PayingChannel, standing: Standing, chain_s: int) -> None:
        if is_untouched(standing):
            if channel.phase == "closed":
                # It never came to the chain, and nobody brings it there any more.
                self._settled.add(key)
            return
        since_ms = self._first_seen(f"{channel.phase} {key.hex()}")
        if wants_refund(channel, standing, since_ms=since_ms, at_ms=self._now_ms()):
            self._begin(f"request-close {key.hex()}", self.backend.request_close, channel.config)
        elif can_finalize(standing, chain_s=chain_s):
            self._begin(f"finalize {key.hex()}", self.backend.finalize, channel.config, channel.splits)

    def _act_as_payee(
        self, key: bytes, channel: EarningChannel, standing: Standing, claims: list[tuple[EarningChannel, bool]]
    ) -> None:
        at_ms = self._now_ms()
        word = f"unclaimed since {key.hex()} {standing.newest.claimed}"
        if not unclaimed(channel, standing):
            return
        since_ms = self._first_seen(word)
        if channel.phase == "closed" and channel.proposed is not None and standing.newest.phase == OPEN:
            return  # both have signed its end: the close pays all of it, and is under way
        if ends_alone(channel, standing, since_ms=since_ms, at_ms=at_ms):
            self._begin(f"payee-close {key.hex()}", self._end_alone, channel)
        elif is_worth_claiming(channel, standing, self._config):
            due = claim_is_due(channel, standing, self._config, since_ms=since_ms, at_ms=at_ms)
            claims.append((channel, due))

    def _first_seen(self, word: str) -> int:
        """When something was first seen so, in this life of the daemon or an earlier one."""
        if word not in self._since:
            kept = self._store.word(word)
            if kept is None:
                kept = str(self._now_ms())
                self._store.keep_word(word, kept)
            self._since[word] = int(kept)
        return self._since[word]

    async def _claim(self, channels: list[EarningChannel]) -> None:
        claims = [
            Claim(config=channel.config, voucher=channel.voucher) for channel in channels if channel.voucher is not None
        ]
        results = await self.backend.claim(claims)
        paid = sum(result.paid for result in results)
        self.counters["chain: vouchers claimed"] += sum(not result.fault for result in results)
        self._log(f"chain: claimed {format_amount(paid)} {self.symbol} on {len(claims)} channels")
        faults = [result.fault for result in results if result.fault]
        if faults:
            raise Refused(f"{len(faults)} of {len(results)} vouchers were not counted: {faults[0]}")

    async def _end_alone(self, channel: EarningChannel) -> None:
        await self.backend.payee_close(channel.config, channel.splits, channel.voucher)
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
