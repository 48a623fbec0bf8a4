"""The ledger as a backend of settlement: the interface of the escrow, with a promise where the escrow has a deposit.

A channel is opened with a part of the credit line that its payee signed for its payer; that part is set aside, and no
money moves. A claim records a debt, the end of a channel fixes it, and what is "withdrawn" was paid outside and is
acknowledged by whom it is paid to. So the limits of all channels together never pass the line, less what is still owed.

Every operation is one record of a Merkle log (``hansa.node.ledger.ledger_store``) with the entry that it makes in the
books: one transaction; the state is what the records come to, so a restart finds it. The daemon's own channels are kept
by the machines of ``hansa.market``; this holds the same rules to the suite that all backends pass
(``tests/conformance``).
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hansa.market.ledger import Entry, Ledger, Leg
from hansa.market.settlement import (
    CLOSED,
    CLOSING,
    LONGEST_CHALLENGE_S,
    OPEN,
    SHORTEST_CHALLENGE_S,
    UNSET,
    ChannelState,
    Claim,
    ClaimResult,
    Happening,
    Refused,
)
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.proto.documents import ChannelConfig, CooperativeClose, CreditLine, Voucher, channel_id
from hansa.proto.errors import ProtocolError
from hansa.proto.keccak import keccak256
from hansa.proto.network import DOMAIN
from hansa.proto.signing import ZERO_ADDRESS, Signed, check
from hansa.proto.splits import Split, check_splits, shares_of, splits_hash
from hansa.proto.typed_data import Domain
from hansa.proto.units import Address, Amount, Bytes32, Signature, Uint64

NO_CHANNEL = bytes(32)
NOBODY = ZERO_ADDRESS
LARGEST_AMOUNT = (1 << 128) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One record: what happened, and what it made in the books.

    Attributes:
        happening: what happened.
        closable_at_s: from when the channel may be finalized, where its end was asked for.
        entry: the movement; none where nothing moved.
    """

    happening: Happening
    closable_at_s: Uint64
    entry: Entry | None

    @property
    def id(self) -> bytes:
        """Every operation has a place of its own."""
        return keccak256(b"ledger operation" + self.happening.cursor.to_bytes(8, "big"))


class LedgerChannels:
    """The channels of one ledger, as every party to them keeps them."""

    def __init__(self, path: Path, *, line_of: Callable[[Address, Address], CreditLine | None]) -> None:
        """Read what is there. ``line_of`` answers the credit line that a creditor (first) signed for a debtor."""
        self._store = LedgerStore(path, kinds=Operation)
        self._line_of = line_of
        self.books = Ledger()
        self.history: list[Happening] = []
        self._states: dict[bytes, ChannelState] = {}
        operations: Any = self._store.records()
        for operation in operations:
            self._apply(operation)

    def state(self, id_: bytes) -> ChannelState:
        """A channel by its id."""
        return self._states.get(id_, ChannelState())

    def owed(self, account: bytes) -> int:
        """What is owed to an account on channels that were settled, and not yet acknowledged as paid."""
        return sum(self.debts_to(account).values())

    def debts_to(self, account: bytes) -> dict[str, int]:
        """What is owed to an account by each debtor, under the name that it has in the books."""
        prefix = f"owed:{account.hex()}"
        return {name: amount for name, amount in self.books.balances.items() if name.startswith(prefix) and amount}

    def room(self, payee: bytes, payer: bytes, now_s: int) -> int:
        """What of a credit line is neither set aside for a channel nor owed."""
        line = self._line_of(payee, payer)
        if line is None or now_s * 1000 > line.not_after:
            return 0
        aside, owed = (self.books.balance(f"{name}:{payee.hex()}{payer.hex()}") for name in ("aside", "owed"))
        return max(0, line.limit - aside - owed)

    def record(
        self,
        kind: str,
        id_: bytes,
        *,
        amount: int,
        now_s: int,
        account: bytes = NOBODY,
        legs: Sequence[tuple[str, int]] = (),
        closable_at_s: int = 0,
    ) -> None:
        """Make an operation durable, then let it be so."""
        cursor = len(self.history) + 1
        happening = Happening(cursor=cursor, kind=kind, channel_id=id_, account=account, amount=amount, at_s=now_s)
        moved = tuple(Leg(account=name, amount=by) for name, by in legs if by)
        entry = None
        if moved:
            entry_id = keccak256(b"ledger entry" + cursor.to_bytes(8, "big"))
            entry = Entry(id=entry_id, at_ms=now_s * 1000, memo=f"{kind} {id_.hex()[:8]}", legs=moved)
        operation: Any = Operation(happening=happening, closable_at_s=closable_at_s, entry=entry)
        self._store.post([operation])
        self._apply(operation)

    def _apply(self, operation: Operation) -> None:
        happening = operation.happening
        self.history.append(happening)
        if operation.entry is not None:
            self.books = self.books.post(operation.entry)
        if happening.channel_id == NO_CHANNEL:
            return
        state = self.state(happening.channel_id)
        amount = happening.amount
        match happening.kind:
            case "opened":
                state = ChannelState(phase=OPEN, deposit=amount)
            case "topped-up":
                state = replace(state, deposit=amount)
            case "claimed":
                state = replace(state, claimed=amount)
            case "settled":
                state = replace(state, settled=amount)
            case "close-requested":
                state = replace(state, phase=CLOSING, closable_at_s=operation.closable_at_s)
            case "closed":
                state = ChannelState(phase=CLOSED, deposit=amount, claimed=amount, settled=amount)
        self._states[happening.channel_id] = state

    def close(self) -> None:
        """Give the file back."""
        self._store.close()


class LedgerBackend:
    """One account's way to settle on the ledger. See ``hansa.market.settlement.Backend``."""

    def __init__(self, channels: LedgerChannels, account: Address, now_s: Callable[[], int]) -> None:
        """Operate on these channels as this account."""
        self._channels, self._account, self._now_s = channels, account, now_s

    @property
    def account(self) -> Address:
        """See ``Backend``."""
        return self._account

    @property
    def domain(self) -> Domain:
        """See ``Backend``."""
        return DOMAIN

    async def open(self, config: ChannelConfig, splits: Sequence[Split], amount: Amount) -> bytes:
        """Set a part of the payee's credit line aside for a channel."""
        _require(self._account == config.payer, "not the payer")
        _require(ZERO_ADDRESS not in (config.payer_signer, config.payee, config.payee_signer), "somebody is nobody")
        in_range = SHORTEST_CHALLENGE_S <= config.challenge_period <= LONGEST_CHALLENGE_S
        _require(in_range, "the challenge period is too short or too long")
        _check_splits(config, splits)
        id_ = channel_id(DOMAIN, config)
        _require(self._channels.state(id_).phase == UNSET, "the channel was opened before")
        self._set_aside("opened", id_, config, amount, total=amount)
        return id_

    async def top_up(self, config: ChannelConfig, amount: Amount) -> None:
        """Set more of it aside. Anybody may ask; the credit is the payee's to give, and its line says how much."""
        id_ = channel_id(DOMAIN, config)
        state = self._channels.state(id_)
        _require(state.phase == OPEN, "the channel is not open")
        self._set_aside("topped-up", id_, config, amount, total=state.deposit + amount)

    def _set_aside(self, kind: str, id_: bytes, config: ChannelConfig, amount: int, *, total: int) -> None:
        _require(amount > 0, "nothing is set aside")
        _require(total <= LARGEST_AMOUNT, "more than there is of any currency")
        now_s = self._now_s()
        room = self._channels.room(config.payee, config.payer, now_s)
        _require(amount <= room, f"the credit line leaves {room}")
        legs = _aside(config, id_, amount)
        self._channels.record(kind, id_, account=self._account, amount=total, now_s=now_s, legs=legs)

    async def state(self, channel_id: Bytes32, *, final: bool = True) -> ChannelState:  # noqa: ARG002 (the protocol's)
        """See ``Backend``. What is recorded here is never taken back."""
        return self._channels.state(channel_id)

    async def claim(self, claims: Sequence[Claim]) -> tuple[ClaimResult, ...]:
        """Record debts."""
        return tuple(self._claim(each) for each in claims)

    def _claim(self, claim: Claim) -> ClaimResult:
        id_ = channel_id(DOMAIN, claim.config)
        state, total = self._channels.state(id_), claim.voucher.document.cumulative
        fault = ""
        if state.phase not in (OPEN, CLOSING):
            fault = "no open channel"
        elif total > state.deposit:
            fault = "above what was set aside"
        elif total <= state.claimed:
            fault = "not above what was claimed"
        elif not _is_voucher(claim.config, id_, claim.voucher):
            fault = "not signed by the payer's signer"
        if fault:
            return ClaimResult(channel_id=id_, paid=0, fault=fault)
        self._channels.record("claimed", id_, amount=total, now_s=self._now_s())
        return ClaimResult(channel_id=id_, paid=total - state.claimed, fault="")

    async def settle(self, config: ChannelConfig, splits: Sequence[Split]) -> None:
        """Write what was claimed to those to whom it is owed."""
        id_, state = self._live(config)
        _require(state.claimed > state.settled, "nothing is to be settled")
        _check_splits(config, splits)
        legs = self._owing(id_, config, splits, state.claimed, last=False)
        self._channels.record("settled", id_, amount=state.claimed, now_s=self._now_s(), legs=legs)

    async def request_close(self, config: ChannelConfig) -> None:
        """See ``Backend``."""
        _require(self._account in (config.payer, config.payer_signer), "not the payer or its signer")
        id_ = channel_id(DOMAIN, config)
        _require(self._channels.state(id_).phase == OPEN, "the channel is not open")
        now_s = self._now_s()
        closable_at_s = now_s + config.challenge_period
        self._channels.record("close-requested", id_, amount=0, now_s=now_s, closable_at_s=closable_at_s)

    async def finalize(self, config: ChannelConfig, splits: Sequence[Split]) -> None:
        """See ``Backend``."""
        id_ = channel_id(DOMAIN, config)
        state = self._channels.state(id_)
        _require(state.phase == CLOSING, "the channel is not closing")
        _require(self._now_s() >= state.closable_at_s, "the challenge period is not over")
        _check_splits(config, splits)
        self._end(id_, config, splits, state.claimed)

    async def payee_close(
        self, config: ChannelConfig, splits: Sequence[Split], voucher: Signed[Voucher] | None
    ) -> None:
        """See ``Backend``."""
        _require(self._account in (config.payee, config.payee_signer), "not the payee or its signer")
        id_, state = self._live(config)
        _check_splits(config, splits)
        total = state.claimed
        if voucher is not None and voucher.document.cumulative > total:
            total = voucher.document.cumulative
            _require(total <= state.deposit, "above what was set aside")
            _require(_is_voucher(config, id_, voucher), "not signed by the payer's signer")
            self._channels.record("claimed", id_, amount=total, now_s=self._now_s())
        self._end(id_, config, splits, total)

    async def cooperative_close(
        self,
        config: ChannelConfig,
        splits: Sequence[Split],
        cumulative: Amount,
        payer_signature: Signature,
        payee_signature: Signature,
    ) -> None:
        """See ``Backend``."""
        id_, state = self._live(config)
        _require(state.settled <= cumulative <= state.deposit, "below what was settled, or above what was set aside")
        close = CooperativeClose(channel_id=id_, cumulative=cumulative)
        for signature, signer in ((payer_signature, config.payer_signer), (payee_signature, config.payee_signer)):
            _require(_is_signed(Signed(document=close, signature=signature), signer), "not signed by both")
        _check_splits(config, splits)
        self._end(id_, config, splits, cumulative)

    async def credit(self, account: Address) -> Amount:
        """What is owed to an account, and not acknowledged as paid."""
        return self._channels.owed(account)

    async def withdraw(self, account: Address) -> Amount:
        """Acknowledge that what is owed to this account was paid outside: only it can say that."""
        _require(account == self._account, "only whoever is owed can say that it was paid")
        debts = self._channels.debts_to(account)
        amount = sum(debts.values())
        _require(amount > 0, "nothing is owed")
        legs = [*((name, -owed) for name, owed in debts.items()), (f"paid:{account.hex()}", amount)]
        self._channels.record("withdrawn", NO_CHANNEL, account=account, amount=amount, now_s=self._now_s(), legs=legs)
        return amount

    async def events(self, cursor: Uint64) -> AsyncIterator[Happening]:
        """See ``Backend``."""
        for happening in self._channels.history[cursor:]:
            yield happening

    def _live(self, config: ChannelConfig) -> tuple[bytes, ChannelState]:
        id_ = channel_id(DOMAIN, config)
        state = self._channels.state(id_)
        _require(state.phase in (OPEN, CLOSING), "the channel is neither open nor closing")
        return id_, state

    def _owing(
        self, id_: bytes, config: ChannelConfig, splits: Sequence[Split], total: int, *, last: bool
    ) -> list[tuple[str, int]]:
        """The debts that a new settled total makes, and the same off what was set aside."""
        parts, payee_part = shares_of(total, self._channels.state(id_).settled, splits, last=last)
        payer = config.payer.hex()
        owed = [(f"owed:{split.account.hex()}{payer}", part) for split, part in zip(splits, parts, strict=True)]
        owed.append((f"owed:{config.payee.hex()}{payer}", payee_part))
        return [*owed, (f"debt:{payer}", -sum(parts) - payee_part)]

    def _end(self, id_: bytes, config: ChannelConfig, splits: Sequence[Split], total: int) -> None:
        """Fix the debt and give back what was set aside: from here on it is the debt that uses the line."""
        legs = self._owing(id_, config, splits, total, last=True)
        legs += _aside(config, id_, self._channels.books.balance(f"limit:{id_.hex()}"))
        self._channels.record("closed", id_, account=self._account, amount=total, now_s=self._now_s(), legs=legs)


def _aside(config: ChannelConfig, id_: bytes, amount: int) -> list[tuple[str, int]]:
    """What is set aside for a channel, out of the line between its two parties; given back where it is negative."""
    return [(f"aside:{config.payee.hex()}{config.payer.hex()}", amount), (f"limit:{id_.hex()}", -amount)]


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Refused(otherwise)


def _check_splits(config: ChannelConfig, splits: Sequence[Split]) -> None:
    try:
        check_splits(splits)
    except ProtocolError as fault:
        raise Refused(str(fault)) from fault
    _require(splits_hash(splits) == config.splits_hash, "not the channel's splits")


def _is_voucher(config: ChannelConfig, id_: bytes, voucher: Signed[Voucher]) -> bool:
    return voucher.document.channel_id == id_ and _is_signed(voucher, config.payer_signer)


def _is_signed(signed: Signed[Any], signer: bytes) -> bool:
    try:
        check(DOMAIN, signed, signer)
    except ProtocolError:
        return False
    return True
