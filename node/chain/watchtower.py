"""``hansa watchtower``: claims other people's vouchers when somebody ends their channel while they are away.

It needs no key of those it watches for: the escrow pays a claim to the channel's payee, whoever brings it. Its own
account, if it has one, pays fees and nothing else. Keep little on it.
"""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from hansa.market.settlement import CLOSING, Refused
from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.evm_backend import EvmBackend
from hansa.node.chain.evm_signing import AccountSigner
from hansa.node.chain.evm_store import EvmStore
from hansa.node.chain.evm_transactions import Transactions
from hansa.node.chain.json_rpc import RpcFault, RpcNode
from hansa.node.chain.keys import read_password
from hansa.node.chain.keystore import load_account
from hansa.node.chain.secrecy import keep_memory_private
from hansa.node.chain.voucher_file import SUFFIX, HeldVoucher, read_vouchers
from hansa.node.faults import ConfigError, OperatorError
from hansa.node.plain_text import plain
from hansa.node.settings.evm_limits import FeeLimits
from hansa.proto.currency import Currency, currency_of
from hansa.proto.errors import Malformed
from hansa.proto.signing import SigningKey
from hansa.proto.units import format_amount

LIMITS: Final = FeeLimits(most_per_gas=500 * 10**9, most_per_day=10**17)
NOBODY: Final = SigningKey((1).to_bytes(32, "big"))
"""Stands for the account in a dry run, in which nothing is ever signed. Everybody knows this key."""
MOST_TROUBLES: Final = 1_000
Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What the operator wants watched.

    Attributes:
        files: files of vouchers, or directories of them.
        urls: nodes of the chain.
        keystore: whose account pays the fees; ``None`` only in a dry run.
        password_file: what opens it.
        room: where what is sent is written down; beside the first file if ``None``.
        dry_run: claim nothing.
        once: look once.
        poll_s: how often to look.
    """

    files: tuple[Path, ...]
    urls: tuple[str, ...]
    keystore: Path | None
    password_file: Path | None
    room: Path | None
    dry_run: bool
    once: bool
    poll_s: float


def run_watchtower(watch: Watch, *, say: Say) -> None:
    """Watch until a signal comes.

    Raises:
        OperatorError: files, keystore or chain are not what they should be.
    """
    keep_memory_private()
    held = held_in(watch.files, skip=lambda words: say({"what": "trouble", "words": words}))
    if not held:
        raise ConfigError("there are no vouchers in these files", "write some: hansa chain export-vouchers FILE")
    if not watch.dry_run and watch.keystore is None:
        hint = "give --account KEYSTORE of an account with a few coins, or --dry-run"
        raise ConfigError("somebody has to pay the fees of a claim", hint)
    key = NOBODY
    if watch.keystore is not None and not watch.dry_run:
        key = load_account(watch.keystore, read_password(watch.password_file))
    currencies = sorted({each.currency for each in held})
    if len({currency_of(name).chain_id for name in currencies}) > 1:
        raise ConfigError("the vouchers are of several chains", "run a watchtower for each")
    trio.run(_watch, watch, key, [currency_of(name) for name in currencies], say)


def held_in(files: Sequence[Path], *, skip: Callable[[str], None] | None = None) -> list[HeldVoucher]:
    """Every voucher in all of these files, once. With ``skip``, what is none is said to it: others are not to suffer.

    A channel can have several: the highest may be above what was paid in, and then a lower one counts.
    """
    found: dict[tuple[bytes, int], HeldVoucher] = {}
    for file in files:
        for each in sorted(file.glob(f"*{SUFFIX}")) if file.is_dir() else [file]:
            for held in read_vouchers(each, skip=skip):
                found[held.voucher.channel_id, held.voucher.cumulative] = held
    if not found and skip is None:
        raise ConfigError("there are no vouchers in these files", "write some: hansa chain export-vouchers FILE")
    return list(found.values())


async def _watch(watch: Watch, key: SigningKey, currencies: Sequence[Currency], say: Say) -> None:
    nodes = ChainNodes([RpcNode(url) for url in watch.urls], confirmations=0)
    room = watch.room or (watch.files[0] if watch.files[0].is_dir() else watch.files[0].parent)
    store = (
        None
        if watch.dry_run
        else EvmStore(room / "watchtower.sqlite", account=key.address, chain_id=currencies[0].chain_id)
    )
    tower = Watchtower(nodes, store, key, say=say)
    fault: OperatorError | None = None
    try:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_on_signal, scope)
                try:
                    await _look_often(tower, watch, currencies)
                except OperatorError as found:
                    fault = found  # raised by itself, and not in the nursery's group
                scope.cancel()
    finally:
        if store is not None:
            store.close()
        await nodes.close()
    if fault is not None:
        raise fault


async def _end_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
            return


async def _look_often(tower: "Watchtower", watch: Watch, currencies: Sequence[Currency]) -> None:
    await tower.check_all(currencies)
    while True:
        # Read anew: whoever is watched for brings newer vouchers as they come.
        held = held_in(watch.files, skip=tower.trouble)
        tower.tell_of(held)
        faults = await tower.look(held, dry_run=watch.dry_run)
        if watch.once:
            for fault in faults:
                what = fault if isinstance(fault, OperatorError) else None
                raise what or OperatorError(plain(fault, 300), "try again later, or give another --rpc") from None
            return
        await trio.sleep(watch.poll_s)


class Watchtower:
    """Looks at channels, and claims where one is being ended."""

    def __init__(self, nodes: ChainNodes, store: EvmStore | None, key: SigningKey, *, say: Say) -> None:
        """Nothing is asked yet. Without a store nothing can be claimed."""
        self._nodes = nodes
        self._store = store
        self._key = key
        self._say = say
        self._backends: dict[str, EvmBackend] = {}
        self._told: set[tuple[bytes, str]] = set()
        self._checked: set[str] = set()
        self._troubles: set[str] = set()
        self._chain_id: int | None = None
        self._watching = ""

    def backend(self, currency: Currency) -> EvmBackend:
        """The way to settle in a currency."""
        if currency.name not in self._backends:
            transactions = Transactions(
                self._nodes,
                self._store,  # type: ignore[arg-type]  # in a dry run nothing is sent, so nothing is written down
                AccountSigner(self._key),
                chain_id=currency.chain_id,
                limits=LIMITS,
                now_ms=lambda: time.time_ns() // 1_000_000,
            )
            self._backends[currency.name] = EvmBackend(currency, self._nodes, transactions)
        return self._backends[currency.name]

    def tell(self, what: str, words: str, **facts: Any) -> None:
        """One line for the operator."""
        self._say({"what": what, "words": words, **facts})

    def trouble(self, words: str) -> None:
        """Say what is wrong, once."""
        if words not in self._troubles and len(self._troubles) < MOST_TROUBLES:
            self._troubles.add(words)
            self.tell("trouble", words)

    def tell_of(self, held: Sequence[HeldVoucher]) -> None:
        """Say how much is watched, whenever that has changed: one that never says anything may as well be off."""
        channels = len({each.voucher.channel_id for each in held})
        words = f"watching {channels} channels, with {len(held)} vouchers"
        if words != self._watching:
            self._watching = words
            self.tell("watching", words, channels=channels, vouchers=len(held))

    async def check(self, currency: Currency) -> None:
        """Hold a contract that a file names against what an escrow must be, before anything is sent to it.

        Raises:
            OperatorError: it is on another chain than the tower's, or no escrow that this version knows.
            RpcFault: the chain cannot be asked.
        """
        if currency.name in self._checked:
            return
        if self._chain_id is not None and currency.chain_id != self._chain_id:
            words = f"a voucher is of chain {currency.chain_id}, and this watchtower is on chain {self._chain_id}"
            raise ConfigError(words, "run a watchtower for each chain")
        await self.backend(currency).check()
        self._chain_id = currency.chain_id
        self._checked.add(currency.name)

    async def check_all(self, currencies: Sequence[Currency]) -> None:
        """Hold every contract against what it must be, and say which is none. ``look`` asks again each time.

        Raises:
            OperatorError: not one of them is an escrow: then there is nothing to watch.
        """
        wrong: list[OperatorError] = []
        for currency in currencies:
            try:
                await self.check(currency)
            except OperatorError as fault:
                self.trouble(f"channels of {currency.name} are not watched: {plain(fault, 300)}")
                wrong.append(fault)
            except RpcFault as fault:
                self.trouble(f"cannot ask the chain about {currency.name} now: {plain(fault, 300)}")
        if wrong and len(wrong) == len(currencies):
            raise wrong[0]

    async def look(self, held: Sequence[HeldVoucher], *, dry_run: bool) -> list[Exception]:
        """Look at every channel once, and claim what has to be claimed. What is wrong with one currency stops no other.

        Returns:
            What was wrong; it has been said, too.
        """
        faults: list[Exception] = []
        by_currency: dict[str, list[HeldVoucher]] = {}
        for each in held:
            by_currency.setdefault(each.currency, []).append(each)
        for name, vouchers in by_currency.items():
            try:
                await self._look_at(currency_of(name), vouchers, dry_run=dry_run)
            except (RpcFault, Refused, OperatorError, Malformed) as fault:
                self.tell("trouble", f"cannot look or claim now: {plain(fault, 300)}")
                faults.append(fault)
        return faults

    async def _look_at(self, currency: Currency, held: Sequence[HeldVoucher], *, dry_run: bool) -> None:
        await self.check(currency)
        backend = self.backend(currency)
        by_channel: dict[bytes, list[HeldVoucher]] = {}
        for each in held:
            by_channel.setdefault(each.voucher.channel_id, []).append(each)
        due: list[HeldVoucher] = []
        for channel, vouchers in by_channel.items():
            state = await backend.state(channel, final=False)
            good = [each for each in vouchers if state.claimed < each.voucher.cumulative <= state.deposit]
            if state.phase == CLOSING and good:
                best = max(good, key=lambda each: each.voucher.cumulative)
                due.append(best)
                self._tell_once(best, state.closable_at_s)
        if self._store is not None:
            await backend.tend()
        if dry_run or not due:
            return
        for result in await backend.claim([each.claim for each in due]):
            words = f"claimed {format_amount(result.paid)}" if not result.fault else f"not claimed: {result.fault}"
            channel_name = result.channel_id.hex()
            self.tell("claimed", f"channel {channel_name[:12]}: {words}", channel=channel_name, paid=result.paid)

    def _tell_once(self, held: HeldVoucher, closable_at_s: int) -> None:
        mark = (held.voucher.channel_id, "closing")
        if mark not in self._told:
            self._told.add(mark)
            until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(closable_at_s, 1 << 40)))
            channel, worth = held.voucher.channel_id.hex(), format_amount(held.voucher.cumulative)
            words = f"channel {channel[:12]} is being ended; its voucher of {worth} can be claimed until {until}"
            self.tell("closing", words, channel=channel)
