"""The buyer's side of a channel: it checks every receipt and signs the vouchers. The guard over the buyer's money.

A voucher is signed for a receipt that follows the last one exactly, or not at all; the same receipt again gets the same
voucher again. The signed total only rises, and no lease on the channel ever costs more than its bid said.

Where bids ask for it, vouchers run ahead of receipts: when one is signed, by at most what the leases that live then are
paid ahead (``LeaseTerms.prepay``), and never beyond what those leases can cost. That is all that a provider can gain by
taking it and leaving. The channel closes at what receipts came to: what was paid ahead and not used comes back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hansa.market.effects import Send, unsigned
from hansa.market.funding import (
    ChannelSettled,
    FundingFailed,
    FundingWanted,
    FundsKnown,
    SettlementWanted,
    deposit_of,
    limit_of,
)
from hansa.market.ledger import Post, closed_by_buyer, forfeited, unpaid_by_buyer, vouched_by_buyer
from hansa.market.ledger_records import ended_by_chain
from hansa.market.machine import SAME, Step, Table, ignore, rows
from hansa.market.receipt_disputes import OF_CLOCKS, payable_lines
from hansa.market.receipts import (
    AHEAD_OF_TIME,
    NOTHING,
    LeaseTerms,
    Statement,
    fault_in,
    is_early,
    receipt_digest,
)
from hansa.proto.documents import ChannelConfig, ChannelEnd, CooperativeClose, Voucher
from hansa.proto.messages import CloseProposed, PenaltyReleased, ReceiptDisputed, ReceiptRefused, VoucherSent
from hansa.proto.signing import Signed
from hansa.proto.splits import Split
from hansa.proto.units import Amount, Bytes32, Line, Uint64, UnixMs

KEEP_MS = 7 * 24 * 3_600_000
"""A voucher, or the word that a channel ends, is worth bringing for a week."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOpened:
    """A lease came on the channel, or its terms were completed (its start was ordered)."""

    terms: LeaseTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfirmed:
    """The provider confirmed a lease that names the channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptArrived:
    """A receipt with the provider's own signature on it."""

    statement: Statement
    signature: bytes
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseWanted:
    """No lease on the channel will cost any more."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseAcceptanceArrived:
    """The provider's signature over the final sum."""

    close: Signed[CooperativeClose]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouched:
    """Effect to the purchases: what each lease on the channel was vouched for, in total."""

    channel_id: Bytes32
    amounts: Mapping[bytes, Amount]


@dataclass(frozen=True, slots=True, kw_only=True)
class PayingChannel:
    """The state.

    Attributes:
        phase: opening, open, closing or closed.
        config: what the channel is.
        channel_id: its digest.
        currency: what it pays in, which says on which books.
        splits: who gets a part of what it pays, beside the payee.
        funds: what it can pay in all, as its backend says; None as long as it said nothing.
        funds_ms: when that last rose; 0 where it never did.
        able_ms: since when it can pay the most that all of its leases may come to; 0 while it cannot.
        trouble: why the backend could not fund it; empty when it could.
        terms: what was agreed, by lease.
        accepted: the last statement that a voucher was signed for.
        receipt_signature: the provider's signature on it: proof that the debt is the provider's own figure.
        cumulative: the signed total, with what is paid ahead of receipts.
        refused: why the newest receipt was refused; empty when it was not.
        passed_over: the number of the newest receipt that is never paid, since another one was asked for instead.
        close_signature: the provider's signature over the final sum, once there.
        settled_ms: when it ended on its backend's books; 0 before.
        paid: what it paid there in all.
    """

    phase: str = "opening"
    config: ChannelConfig
    channel_id: Bytes32
    currency: Line
    splits: tuple[Split, ...] = ()
    funds: Amount | None = None
    funds_ms: UnixMs = 0
    able_ms: UnixMs = 0
    trouble: str = ""
    terms: Mapping[bytes, LeaseTerms] = field(default_factory=dict)
    accepted: Statement | None = None
    receipt_signature: bytes = b""
    cumulative: Amount = 0
    refused: str = ""
    passed_over: Uint64 = 0
    close_signature: bytes = b""
    settled_ms: UnixMs = 0
    paid: Amount = 0

    @property
    def limit(self) -> int | None:
        """What it can pay in all; None where nothing limits it but the provider's own rules."""
        return limit_of(self.currency, self.funds)

    @property
    def wanted(self) -> int:
        """What it should be able to pay: the most that all of its leases may come to."""
        return sum(terms.most for terms in self.terms.values())

    @property
    def metered(self) -> int:
        """What the receipts came to that were vouched for: the sum at which it closes."""
        return self.accepted.receipt.amount_total if self.accepted else 0

    @property
    def ahead(self) -> int:
        """How far vouchers may run ahead of receipts now."""
        return sum(min(terms.prepay, max(0, terms.most - self.vouched(lease))) for lease, terms in self.terms.items())

    def vouched(self, lease: bytes) -> int:
        """What was vouched for on a lease, in total."""
        lines = self.accepted.lines if self.accepted else ()
        return next((line.amount for line in lines if line.lease == lease), 0)


TABLE: Table[PayingChannel] = Table(
    name="market.paying_channel",
    start="opening",
    terminal=frozenset({"closed"}),
    allowed=rows(
        (("opening", "open"), ChannelConfirmed, "open"),
        ("opening", LeaseOpened, "opening"),
        ("open", LeaseOpened, "open"),
        # That a firm lease ended well may turn out when nothing is left to be run on the channel.
        ("closing", LeaseOpened, "closing"),
        (("opening", "open", "closing"), (FundsKnown, FundingFailed), SAME),
        (("opening", "open", "closing", "closed"), ChannelSettled, "closed"),
        ("opening", CloseWanted, "closed"),
        ("open", ReceiptArrived, "open"),
        ("open", CloseWanted, "closing"),
        # Its provider ended it by itself, since nothing ever moved on it.
        ("open", CloseAcceptanceArrived, ("open", "closed")),
        ("closing", ReceiptArrived, "closing"),
        ("closing", CloseAcceptanceArrived, "closed"),
    ),
)


def advance(state: PayingChannel, event: Any) -> Step[PayingChannel]:
    """One event on the buyer's side of a channel."""
    return TABLE.advance(state, event, _react)


def _react(state: PayingChannel, event: Any) -> Step[PayingChannel]:
    match event:
        case LeaseOpened():
            return _open_lease(state, event)
        case FundsKnown():
            return _hear_of_funds(state, event)
        case FundingFailed(reason=reason):
            return Step(state=replace(state, trouble=reason))
        case ChannelSettled():
            return _settle(state, event)
        case ChannelConfirmed():
            return Step(state=replace(state, phase="open"))
        case ReceiptArrived():
            return _answer_receipt(state, event)
        case CloseWanted(at_ms=at_ms):
            if state.phase == "opening":
                # No lease was ever confirmed on it, so nobody but us knows the channel.
                return Step(state=replace(state, phase="closed"))
            closing = replace(state, phase="closing")
            return Step(state=closing, effects=outstanding(closing, at_ms))
        case CloseAcceptanceArrived() if state.phase == "open" and (state.accepted is not None or state.cumulative):
            return ignore(state, "an end that nobody asked for")
        case CloseAcceptanceArrived():
            return _finish(state, event)
        case _:
            raise AssertionError(f"the table knows {type(event).__name__}, this function does not")


def _open_lease(state: PayingChannel, event: LeaseOpened) -> Step[PayingChannel]:
    """A new lease: its channel should be good for it, and what it is paid ahead is vouched for at once."""
    terms = event.terms
    known = state.terms.get(terms.lease)
    if state.phase == "closing" and known is None:
        return ignore(state, "a lease on a channel that is closing")
    opened = replace(state, terms={**state.terms, terms.lease: terms})
    opened = _rated(opened, terms.ends_ms if known else terms.begins_ms)
    if known is not None:
        told = (_release(opened, terms),) if terms.released and not known.released else ()
        return Step(state=opened, effects=told)
    total = _next_total(opened)
    if state.phase != "open" or total == state.cumulative:
        return Step(state=opened, effects=(_funding(opened),))
    paid = replace(opened, cumulative=total)
    return Step(state=paid, effects=(_funding(opened), _voucher(paid, terms.begins_ms)))


def _release(state: PayingChannel, terms: LeaseTerms) -> Send:
    """A firm lease has ended well: from now on a receipt may charge all of it."""
    message = PenaltyReleased(lease=terms.lease)
    return Send(to=state.config.payee_signer, message=message, keep_until_ms=terms.ends_ms + KEEP_MS)


def releases(state: PayingChannel) -> tuple[Send, ...]:
    """What was said of the ends of firm leases on it, to be said again after a restart."""
    if state.phase not in ("open", "closing"):
        return ()
    return tuple(_release(state, terms) for terms in state.terms.values() if terms.released)


def _hear_of_funds(state: PayingChannel, event: FundsKnown) -> Step[PayingChannel]:
    """What can be paid changed; what is paid ahead and had to wait for that is vouched for."""
    known = replace(state, funds=event.most, trouble="" if event.most >= state.wanted else state.trouble)
    if event.most > (state.funds or 0):
        known = replace(known, funds_ms=event.at_ms)
    known = _rated(known, event.at_ms)
    total = _next_total(known)
    if state.phase != "open" or total == state.cumulative or deposit_of(state.currency, event.most) is None:
        return Step(state=known)
    paid = replace(known, cumulative=total)
    return Step(state=paid, effects=(_voucher(paid, event.at_ms),))


def _rated(state: PayingChannel, at_ms: int) -> PayingChannel:
    """The state that knows since when it can pay for all its leases."""
    able = state.limit is not None and state.limit >= state.wanted
    return replace(state, able_ms=(state.able_ms or at_ms) if able else 0)


def _next_total(state: PayingChannel) -> int:
    """The total of the next voucher: all receipts and what is paid ahead of them. It never falls.

    Nothing is paid ahead beyond a deposit: such a voucher would be good for nothing, and the one before it is spent.
    """
    ahead, deposit = state.metered + state.ahead, deposit_of(state.currency, state.funds)
    total = max(state.cumulative, state.metered, ahead if deposit is None else min(ahead, deposit))
    assert total <= sum(terms.max_total for terms in state.terms.values()), "a voucher would pass what was agreed"
    return total


def _settle(state: PayingChannel, event: ChannelSettled) -> Step[PayingChannel]:
    """Its backend ended it. If no word of the provider came before, it ends here too, at what it really paid.

    If one came, and it paid less than both agreed on, what is lacking is owed again.
    """
    settled = replace(state, phase="closed", paid=event.paid, settled_ms=event.at_ms)
    if state.settled_ms:
        return ignore(state, "an end that is known")
    end = ChannelEnd(channel_id=state.channel_id, paid=event.paid, settled_ms=event.at_ms)
    entries: list[Any] = [*ended_by_chain(state.currency, state.config, state.splits, end, due=state.metered)]
    received = min(event.paid, state.metered)
    if state.phase == "closed" and received < state.metered:
        short = unpaid_by_buyer(
            channel_id=state.channel_id,
            provider=state.config.payee,
            closed=state.metered,
            paid=received,
            at_ms=event.at_ms,
            splits=state.splits,
        )
        entries.append(Post(entry=short))
    if state.phase != "closed" and received:
        closed = closed_by_buyer(
            channel_id=state.channel_id,
            provider=state.config.payee,
            cumulative=received,
            at_ms=event.at_ms,
            splits=state.splits,
        )
        entries.append(Post(entry=closed))
    if event.paid > state.metered:
        lost = forfeited(
            channel_id=state.channel_id,
            provider=state.config.payee,
            amount=event.paid - state.metered,
            at_ms=event.at_ms,
        )
        entries.append(Post(entry=lost))
    return Step(state=settled, effects=tuple(entries))


def _answer_receipt(state: PayingChannel, event: ReceiptArrived) -> Step[PayingChannel]:
    if state.accepted and event.statement.receipt == state.accepted.receipt:
        return Step(state=state, effects=(_voucher(state, event.at_ms),))
    passed_over = state.passed_over
    fault = fault_in(
        event.statement, last=state.accepted, terms=state.terms, now_ms=event.at_ms, passed_over=passed_over
    )
    if fault == AHEAD_OF_TIME and is_early(event.statement, state.terms):
        # Its provider says it again, and it is paid as it stands once so much has passed.
        return ignore(state, "a receipt ahead of time")
    if fault is not None:
        return _refuse(state, event, fault)
    total = event.statement.receipt.amount_total
    assert total >= state.metered, "a voucher would take money back"
    after = replace(state, accepted=event.statement, receipt_signature=event.signature, refused="")
    after = replace(after, cumulative=_next_total(after))
    amounts = {line.lease: line.amount for line in event.statement.lines}
    vouched = Vouched(channel_id=state.channel_id, amounts=amounts)
    shares: dict[bytes, int] = {}
    for lease, amount in amounts.items():
        job = state.terms[lease].job
        shares[job] = shares.get(job, 0) + amount - state.vouched(lease)
    entry = vouched_by_buyer(
        channel_id=state.channel_id,
        seq=event.statement.receipt.seq,
        provider=state.config.payee,
        shares=shares,
        at_ms=event.at_ms,
        before=state.metered,
        splits=state.splits,
    )
    # A provider whose last receipt crossed our word that the channel ends is paid, and hears the new final sum.
    return Step(state=after, effects=(*outstanding(after, event.at_ms), Post(entry=entry), vouched))


def _refuse(state: PayingChannel, event: ReceiptArrived, fault: str) -> Step[PayingChannel]:
    """Say why there is no voucher; and what there would be one for, where only clocks may be at fault.

    A receipt for which another one was asked is never paid, though so much time may pass later: its provider goes on
    from the one before it, and two would be paid for one number. It may not have heard that, and is told again.
    """
    receipt = event.statement.receipt
    prev = receipt_digest(state.accepted.receipt) if state.accepted else NOTHING
    is_again = 0 < receipt.seq == state.passed_over and receipt.prev == prev
    payable = payable_lines(event.statement, last=state.accepted, terms=state.terms, now_ms=event.at_ms)
    reason, refused, message = fault, replace(state, refused=fault), None
    if payable and is_again:
        reason, refused = state.refused, state
    if payable and (is_again or fault in OF_CLOCKS):
        message = ReceiptDisputed(channel_id=state.channel_id, seq=receipt.seq, payable=payable, reason=reason)
        refused = replace(refused, passed_over=receipt.seq)
    send = Send(
        to=state.config.payee_signer,
        message=message or ReceiptRefused(channel_id=state.channel_id, seq=receipt.seq, reason=reason),
        keep_until_ms=event.at_ms + KEEP_MS,
        replaces=f"refusal {state.channel_id.hex()}",
    )
    return Step(state=refused, effects=(send,))


def _voucher(state: PayingChannel, at_ms: int) -> Send:
    voucher = Voucher(
        channel_id=state.channel_id,
        cumulative=state.cumulative,
        statement=receipt_digest(state.accepted.receipt) if state.accepted else NOTHING,
    )
    message = VoucherSent(currency=state.currency, voucher=unsigned(voucher))
    replaces = f"voucher {state.channel_id.hex()}"
    return Send(to=state.config.payee_signer, message=message, keep_until_ms=at_ms + KEEP_MS, replaces=replaces)


def _finish(state: PayingChannel, event: CloseAcceptanceArrived) -> Step[PayingChannel]:
    if event.close.document.cumulative != state.metered:
        return ignore(state, "the provider closed on another sum")
    entry = closed_by_buyer(
        channel_id=state.channel_id,
        provider=state.config.payee,
        cumulative=state.metered,
        at_ms=event.at_ms,
        splits=state.splits,
    )
    after = replace(state, phase="closed", close_signature=event.close.signature)
    return Step(state=after, effects=(Post(entry=entry), *outstanding(after, event.at_ms)))


def _funding(state: PayingChannel) -> FundingWanted:
    return FundingWanted(
        channel_id=state.channel_id,
        currency=state.currency,
        config=state.config,
        splits=state.splits,
        amount=state.wanted,
    )


def outstanding(state: PayingChannel, at_ms: int) -> tuple[Any, ...]:
    """What this channel still waits for somebody to take, said again: after a restart, and once when it changes."""
    effects: list[Any] = []
    if state.phase == "open" and state.limit is not None and state.limit < state.wanted:
        effects.append(_funding(state))
    if state.phase == "closed" and state.close_signature and not state.settled_ms:
        settlement = SettlementWanted(
            channel_id=state.channel_id,
            currency=state.currency,
            config=state.config,
            splits=state.splits,
            cumulative=state.metered,
            other_signature=state.close_signature,
        )
        effects.append(settlement)
    if (state.accepted is not None or state.cumulative) and state.phase in ("open", "closing"):
        effects.append(_voucher(state, at_ms))
    if state.phase == "closing":
        close = CooperativeClose(channel_id=state.channel_id, cumulative=state.metered)
        message = CloseProposed(currency=state.currency, close=unsigned(close))
        replaces = f"close {state.channel_id.hex()}"
        effects.append(
            Send(to=state.config.payee_signer, message=message, keep_until_ms=at_ms + KEEP_MS, replaces=replaces)
        )
    return tuple(effects)
