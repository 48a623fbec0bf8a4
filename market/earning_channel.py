"""The provider's side of a channel: it turns metered lines into receipts and keeps the best voucher.

One receipt is out at a time. While it waits for its voucher, newer lines gather and go into the next one, so the chain
of receipts is the same on both sides after any loss or crash.

A voucher above what lies in a channel on a chain pays nothing there, so it never takes the place of one that does: it
waits until the deposit covers it, and what it pays for counts as unpaid until then.

Where a bid asked for it, vouchers run ahead of receipts, and the newest names a receipt that is paid already (or none).
What is paid ahead is the leases' that live, each its own part; the channel closes at what receipts came to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hansa.market.effects import Send, unsigned
from hansa.market.funding import ChannelSettled, FundsKnown, SettlementWanted, deposit_of, limit_of
from hansa.market.ledger import (
    Post,
    closed_to_provider,
    kept,
    payees_part,
    unreceived_by_provider,
    vouched_to_provider,
)
from hansa.market.ledger_records import ended_by_chain
from hansa.market.machine import Step, Table, ignore, rows
from hansa.market.receipt_disputes import disputed_lines, instead
from hansa.market.receipts import (
    NOTHING,
    LeaseTerms,
    Statement,
    next_statement,
    receipt_digest,
)
from hansa.proto.currency import currency_of
from hansa.proto.documents import ChannelConfig, ChannelEnd, CooperativeClose, MeterLine, Voucher
from hansa.proto.market_documents import Evidence
from hansa.proto.messages import CloseAccepted, ReceiptSent
from hansa.proto.signing import Signed
from hansa.proto.splits import Split
from hansa.proto.units import Amount, Bytes32, Line, Uint64, UnixMs

KEEP_MS = 7 * 24 * 3_600_000
"""A receipt is worth bringing for a week: the buyer may have been away."""


UNASKED_MS = 60_000
"""So long a buyer is told of the end of a channel on which nothing moved. It is no loss if it never hears of it."""
SPARE_ADVANCES = 8
"""So many vouchers, and two for each lease, may pay ahead or wait until one pays for a receipt: all are filed."""
SPARE_DISPUTES = 8
"""So many receipts, and one for each lease, are written instead of others until one has a voucher."""
REPEAT_MS = 24 * 3_600_000
"""For so long after a channel's end the buyer is told of it again at every start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseJoined:
    """A lease was confirmed on this channel, or its terms were completed."""

    terms: LeaseTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLeft:
    """A lease on this channel is over for good: it meters nothing more, and nothing is waited for on its account."""

    lease: Bytes32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LineMetered:
    """A lease's running total, with the evidence for it."""

    line: MeterLine
    evidence: Evidence
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class VoucherArrived:
    """A voucher with the buyer's own signature on it."""

    voucher: Signed[Voucher]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalArrived:
    """The buyer will not pay for a receipt; for another one with these lines it would, if there are any."""

    seq: Uint64
    reason: str
    payable: tuple[MeterLine, ...] = ()
    at_ms: UnixMs = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseProposalArrived:
    """The buyer's signature over a final sum."""

    close: Signed[CooperativeClose]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesVouched:
    """Effect to the sales: what each lease on the channel was vouched for, in total, and what is paid ahead for it."""

    amounts: Mapping[bytes, Amount]
    ahead: Mapping[bytes, Amount] = field(default_factory=dict)
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesRefused:
    """Effect to the sales: the buyer refused a receipt that holds these leases."""

    leases: tuple[Bytes32, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesDisputed:
    """Effect to the sales: of these leases the buyer pays no more time than in these lines."""

    lines: tuple[MeterLine, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EarningChannel:
    """The state.

    Attributes:
        phase: open or closed. There is no closing on this side: it agrees to the end or it does not.
        config: what the channel is.
        channel_id: its digest.
        currency: what it pays in, which says on which books.
        splits: who gets a part of what it pays, beside the payee.
        funds: what it can pay in all, as its backend says; None as long as it said nothing.
        terms: what was agreed, by lease.
        live: leases that may still meter something, or wait for their last voucher.
        lines: the newest metered line of each lease.
        evidence: what goes with it.
        out: the statement that waits for its voucher.
        vouched: the last statement that has one.
        voucher: that voucher, with the buyer's signature: the provider's money.
        waiting: a voucher above the deposit, which counts once that covers it.
        safe: the best voucher for no more than was earned. Claimed, it leaves the end open that both agree on.
        rising: the oldest voucher above that; it becomes the safe one when as much was earned.
        refused: why the buyer refused the statement that is out; empty when it did not.
        passed_over: the number of the newest receipt that the buyer never pays, and asked for another one instead.
        disputed: what was not paid for of leases whose time the buyer disputed, which it may once for each.
        proposed: the buyer's highest word on the final sum, which may come before the voucher for it.
        closed_ms: when the channel ended between the two; 0 before.
        settled_ms: when it ended on its backend's books; 0 before.
        paid: what it paid there in all.
    """

    phase: str = "open"
    config: ChannelConfig
    channel_id: Bytes32
    currency: Line
    splits: tuple[Split, ...] = ()
    funds: Amount | None = None
    terms: Mapping[bytes, LeaseTerms] = field(default_factory=dict)
    live: frozenset[Bytes32] = frozenset()
    lines: Mapping[bytes, MeterLine] = field(default_factory=dict)
    evidence: Mapping[bytes, Evidence] = field(default_factory=dict)
    out: Statement | None = None
    vouched: Statement | None = None
    voucher: Signed[Voucher] | None = None
    waiting: Signed[Voucher] | None = None
    safe: Signed[Voucher] | None = None
    rising: Signed[Voucher] | None = None
    advances: int = 0
    refused: str = ""
    passed_over: Uint64 = 0
    disputed: Mapping[bytes, Amount] = field(default_factory=dict)
    proposed: Signed[CooperativeClose] | None = None
    closed_ms: UnixMs = 0
    settled_ms: UnixMs = 0
    paid: Amount = 0

    @property
    def limit(self) -> int | None:
        """What it can pay in all; None where nothing limits it but this provider's own rules."""
        return limit_of(self.currency, self.funds)

    @property
    def deposit(self) -> int | None:
        """What no voucher may pass; None where there is no deposit, as on the ledger."""
        return deposit_of(self.currency, self.funds)

    @property
    def cumulative(self) -> int:
        """What is vouched for, in total, with what is paid ahead."""
        return self.voucher.document.cumulative if self.voucher else 0

    @property
    def earned(self) -> int:
        """What the receipts came to that were vouched for: the sum at which it closes."""
        return self.vouched.receipt.amount_total if self.vouched else 0

    @property
    def ahead(self) -> dict[bytes, int]:
        """What is paid ahead of receipts, for each lease that lives and asked for it. Beyond the funds it is no pay."""
        promised = self.cumulative if self.limit is None else min(self.cumulative, self.limit)
        left, found = max(0, promised - self.earned), dict[bytes, int]()
        for lease in sorted(self.live):
            part = min(left, self.terms[lease].prepay)
            if part:
                found[lease], left = part, left - part
        return found

    @property
    def metered(self) -> int:
        """What was metered with evidence, vouched for or not."""
        return sum(line.amount for line in self.lines.values())


TABLE: Table[EarningChannel] = Table(
    name="market.earning_channel",
    start="open",
    terminal=frozenset({"closed"}),
    allowed=rows(
        ("open", LeaseJoined, "open"),
        ("open", FundsKnown, ("open", "closed")),
        ("open", LineMetered, "open"),
        ("open", LeaseLeft, ("open", "closed")),
        ("open", VoucherArrived, ("open", "closed")),
        ("open", RefusalArrived, ("open", "closed")),
        ("open", CloseProposalArrived, ("open", "closed")),
        ("closed", CloseProposalArrived, "closed"),
        (("open", "closed"), ChannelSettled, "closed"),
    ),
)


def advance(state: EarningChannel, event: Any) -> Step[EarningChannel]:
    """One event on the provider's side of a channel."""
    return TABLE.advance(state, event, _react)


def _react(state: EarningChannel, event: Any) -> Step[EarningChannel]:
    match event:
        case LeaseJoined(terms=terms):
            joined = replace(state, terms={**state.terms, terms.lease: terms}, live=state.live | {terms.lease})
            return Step(state=joined)
        case FundsKnown():
            return _hear_of_funds(state, event)
        case ChannelSettled():
            return _settle(state, event)
        case LeaseLeft(lease=lease, at_ms=at_ms):
            return _leave(replace(state, live=state.live - {lease}), at_ms)
        case LineMetered():
            return _meter(state, event)
        case VoucherArrived():
            return _take_voucher(state, event)
        case RefusalArrived():
            return _hear_refusal(state, event)
        case CloseProposalArrived(close=close, at_ms=at_ms):
            if state.phase == "closed":
                if state.proposed is None and not state.settled_ms and close.document.cumulative == state.earned:
                    # It ended here by itself, and what is agreed now is what was so.
                    agreed = replace(state, proposed=close)
                    return Step(state=agreed, effects=(_acceptance(agreed, at_ms), *_settlement(agreed)))
                return _close(state, at_ms)
            # Both words and vouchers may overtake each other; the sum only rises, so the highest word is the last.
            known = state.proposed.document.cumulative if state.proposed else -1
            return _close(replace(state, proposed=close) if close.document.cumulative > known else state, at_ms)
        case _:
            raise AssertionError(f"the table knows {type(event).__name__}, this function does not")


def _hear_of_funds(state: EarningChannel, event: FundsKnown) -> Step[EarningChannel]:
    """What can be paid changed; a voucher that waited for it is heard again."""
    funded = replace(state, funds=event.most, waiting=None)
    told = () if funded.ahead == state.ahead else (_tell(funded, event.at_ms),)
    if state.waiting is None:
        return Step(state=funded, effects=told)
    taken = _take_voucher(funded, VoucherArrived(voucher=state.waiting, at_ms=event.at_ms))
    return Step(state=taken.state, effects=(*told, *taken.effects))


def _settle(state: EarningChannel, event: ChannelSettled) -> Step[EarningChannel]:
    """Its backend ended it. If both had not agreed before, it ends here too, at what was earned of what it paid.

    If they had, and it paid less than they agreed on, what is lacking is due again.
    """
    if state.settled_ms:
        return ignore(state, "an end that is known")
    settled = replace(
        state, phase="closed", paid=event.paid, settled_ms=event.at_ms, closed_ms=state.closed_ms or event.at_ms
    )
    end = ChannelEnd(channel_id=state.channel_id, paid=event.paid, settled_ms=event.at_ms)
    effects: list[Any] = [*ended_by_chain(state.currency, state.config, state.splits, end, due=state.earned)]
    earned = min(event.paid, state.earned)
    if state.phase == "closed" and earned < state.earned:
        short = unreceived_by_provider(
            channel_id=state.channel_id,
            buyer=state.config.payer,
            closed=state.earned,
            paid=earned,
            at_ms=event.at_ms,
            splits=state.splits,
        )
        effects.append(Post(entry=short))
    if state.phase != "closed" and earned:
        closed = closed_to_provider(
            channel_id=state.channel_id,
            buyer=state.config.payer,
            cumulative=earned,
            at_ms=event.at_ms,
            splits=state.splits,
        )
        effects.append(Post(entry=closed))
    beyond = payees_part(event.paid, state.splits) - payees_part(earned, state.splits)
    if beyond:
        entry = kept(channel_id=state.channel_id, buyer=state.config.payer, amount=beyond, at_ms=event.at_ms)
        effects.append(Post(entry=entry))
    return Step(state=settled, effects=tuple(effects))


def _meter(state: EarningChannel, event: LineMetered) -> Step[EarningChannel]:
    line = event.line
    before = state.lines.get(line.lease)
    assert before is None or (line.device_ms >= before.device_ms and line.amount >= before.amount), "a meter ran back"
    metered = replace(
        state,
        lines={**state.lines, line.lease: line},
        evidence={**state.evidence, line.lease: event.evidence},
    )
    return _send_next(metered, event.at_ms)


def _send_next(state: EarningChannel, at_ms: int) -> Step[EarningChannel]:
    """Write the next receipt if none is out and there is something new to be paid for."""
    if state.out is not None or state.metered <= state.earned:
        return Step(state=state)
    statement = next_statement(
        channel_id=state.channel_id,
        last=state.vouched.receipt if state.vouched else None,
        lines=state.lines,
        evidence=state.evidence,
        passed_over=state.passed_over,
    )
    sent = replace(state, out=statement, refused="")
    return Step(state=sent, effects=outstanding(sent, at_ms))


def _take_voucher(state: EarningChannel, event: VoucherArrived) -> Step[EarningChannel]:
    voucher = event.voucher.document
    last = receipt_digest(state.vouched.receipt) if state.vouched else NOTHING
    if voucher.statement == last:
        return _take_advance(state, event)
    if state.out is None or voucher.statement != receipt_digest(state.out.receipt):
        return ignore(state, "a voucher for no receipt that is out")
    if not state.out.receipt.amount_total <= voucher.cumulative <= _most(state, state.out.receipt.amount_total):
        return ignore(state, "a voucher for another sum than its receipt")
    if voucher.cumulative < state.cumulative:
        return ignore(state, "a voucher that takes money back")
    if state.deposit is not None and voucher.cumulative > state.deposit:
        return _wait(state, event)
    shares: dict[bytes, int] = {}
    before = {line.lease: line.amount for line in state.vouched.lines} if state.vouched else {}
    for line in state.out.lines:
        job = state.terms[line.lease].job
        shares[job] = shares.get(job, 0) + line.amount - before.get(line.lease, 0)
    entry = vouched_to_provider(
        channel_id=state.channel_id,
        seq=state.out.receipt.seq,
        buyer=state.config.payer,
        shares=shares,
        at_ms=event.at_ms,
        before=state.earned,
        splits=state.splits,
    )
    amounts = {line.lease: line.amount for line in state.out.lines}
    paid = _with_voucher(replace(state, out=None, vouched=state.out, refused="", advances=0), event.voucher)
    further = _send_next(paid, event.at_ms)
    ended = _close(further.state, event.at_ms)
    told = (Post(entry=entry), LinesVouched(amounts=amounts, ahead=paid.ahead, at_ms=event.at_ms))
    return Step(state=ended.state, effects=(*told, *further.effects, *ended.effects))


def _most(state: EarningChannel, total: int) -> int:
    """The most that a voucher for receipts of this total may be worth: what may be paid ahead, or was before."""
    return max(state.cumulative, total + sum(terms.prepay for terms in state.terms.values()))


def _take_advance(state: EarningChannel, event: VoucherArrived) -> Step[EarningChannel]:
    """A voucher that pays ahead, and for no receipt that was not paid for before."""
    cumulative = event.voucher.document.cumulative
    if not state.cumulative < cumulative <= _most(state, state.earned):
        return ignore(state, "a voucher for no receipt that is out")
    if state.deposit is not None and cumulative > state.deposit:
        return _wait(state, event)
    due = state.earned + sum(state.terms[lease].prepay for lease in state.live)
    if _are_many(state) and not state.cumulative < due <= cumulative:
        return ignore(state, "one more voucher that pays ahead by a little")
    paid = _with_voucher(replace(state, advances=state.advances + 1), event.voucher)
    return Step(state=paid, effects=(_tell(paid, event.at_ms),))


def _wait(state: EarningChannel, event: VoucherArrived) -> Step[EarningChannel]:
    """Keep a voucher that the deposit does not cover, beside the one that it covers. It pays for nothing yet."""
    if state.waiting is not None and event.voucher.document.cumulative < state.waiting.document.cumulative:
        return ignore(state, "a voucher that takes money back")
    if _are_many(state):
        return ignore(state, "one more voucher that the deposit does not cover")
    return Step(state=replace(state, waiting=event.voucher, advances=state.advances + 1))


def _are_many(state: EarningChannel) -> bool:
    """Whether no more vouchers are taken that pay for no receipt. Each is in the ledger for good, and costs nothing."""
    return state.advances >= SPARE_ADVANCES + 2 * len(state.terms)


def _with_voucher(state: EarningChannel, voucher: Signed[Voucher]) -> EarningChannel:
    """The state with a new best voucher, and with what can be claimed of it before the channel's end.

    Two are kept below it, not all of them: the safe one lags behind what was earned by what is paid ahead, at most.
    """
    safe, rising = state.safe, state.rising
    if rising is not None and rising.document.cumulative <= state.earned:
        safe, rising = rising, None
    if voucher.document.cumulative <= state.earned:
        safe, rising = voucher, None
    elif rising is None:
        rising = voucher
    waiting = state.waiting
    if waiting is not None and waiting.document.cumulative <= voucher.document.cumulative:
        waiting = None
    return replace(state, voucher=voucher, safe=safe, rising=rising, waiting=waiting)


def _tell(state: EarningChannel, at_ms: int) -> LinesVouched:
    amounts = {line.lease: line.amount for line in state.vouched.lines} if state.vouched else {}
    return LinesVouched(amounts=amounts, ahead=state.ahead, at_ms=at_ms)


def _hear_refusal(state: EarningChannel, event: RefusalArrived) -> Step[EarningChannel]:
    if state.out is None or state.out.receipt.seq != event.seq:
        return ignore(state, "a refusal of no receipt that is out")
    vouched = state.vouched.lines if state.vouched else ()
    disputed = disputed_lines(state.out.lines, event.payable, vouched, state.terms)
    once = event.payable and disputed is not None and not any(line.lease in state.disputed for line in disputed)
    if not once or disputed is None or not _may_pass_over(state, state.out):
        leases = tuple(line.lease for line in state.out.lines)
        refused = LinesRefused(leases=leases, reason=event.reason)
        ended = _close(replace(state, refused=event.reason), event.at_ms)
        return Step(state=ended.state, effects=(refused, *ended.effects))
    lines, evidence = instead(state.lines, state.evidence, disputed, vouched=vouched)
    lost = {line.lease: state.lines[line.lease].amount - line.amount for line in disputed}
    cut = replace(
        state, lines=lines, evidence=evidence, out=None, passed_over=event.seq, disputed={**state.disputed, **lost}
    )
    further = _send_next(cut, event.at_ms)
    ended = _close(further.state, event.at_ms)
    told = (LinesDisputed(lines=disputed, reason=event.reason),) if disputed else ()
    return Step(state=ended.state, effects=(*told, *further.effects, *ended.effects))


def _may_pass_over(state: EarningChannel, out: Statement) -> bool:
    """Whether another receipt may be written instead of this one, for which there is no voucher, nor one that waits.

    Each is in the ledger for good, so without a voucher in between they are so many and no more.
    """
    if state.waiting is not None and state.waiting.document.statement == receipt_digest(out.receipt):
        return False
    paid = state.vouched.receipt.seq if state.vouched else 0
    return out.receipt.seq - paid <= SPARE_DISPUTES + len(state.terms)


def _leave(state: EarningChannel, at_ms: int) -> Step[EarningChannel]:
    """A lease is gone. A channel on which nothing ever moved goes with its last one: else each award left one behind.

    Its buyer is told, so that it names another next time; who was not reached hears it when it names this one.
    """
    funded = state.funds and currency_of(state.currency).is_on_chain
    moved = state.lines or state.out or state.voucher or state.proposed or funded
    if state.live or moved:
        return _close(state, at_ms)
    ended = replace(state, phase="closed", closed_ms=at_ms)
    told = replace(_acceptance(ended, at_ms), keep_until_ms=at_ms + UNASKED_MS)
    return Step(state=ended, effects=(told,))


def _close(state: EarningChannel, at_ms: int) -> Step[EarningChannel]:
    """Agree to the end of the channel if the buyer proposed it at exactly the sum of what it vouched for.

    That is the sum of receipts: what was paid ahead and never used goes back.

    As long as a lease lives there is more to come, and as long as a receipt is out that the buyer has not refused there
    may be a voucher to wait for: the word is kept until then. The two may have crossed, and a buyer that pays for a
    receipt after its word would owe more than was earned here.
    """
    if state.proposed is None or state.proposed.document.cumulative != state.earned:
        return Step(state=state)
    if state.phase == "closed":
        return Step(state=state, effects=(_acceptance(state, at_ms),))
    if state.live or (state.out is not None and not state.refused):
        return Step(state=state)
    closed = replace(state, phase="closed", closed_ms=at_ms)
    if state.vouched is None:
        # Nothing moved, so there is nothing to book.
        return Step(state=closed, effects=outstanding(closed, at_ms))
    entry = closed_to_provider(
        channel_id=state.channel_id,
        buyer=state.config.payer,
        cumulative=state.earned,
        at_ms=at_ms,
        splits=state.splits,
    )
    return Step(state=closed, effects=(Post(entry=entry), *outstanding(closed, at_ms)))


def _settlement(state: EarningChannel) -> tuple[SettlementWanted, ...]:
    """Have the backend end it too. On a ledger nothing stands behind a channel on which nothing moved."""
    if state.proposed is None or state.settled_ms or (state.vouched is None and state.limit is None):
        return ()
    wanted = SettlementWanted(
        channel_id=state.channel_id,
        currency=state.currency,
        config=state.config,
        splits=state.splits,
        cumulative=state.proposed.document.cumulative,
        other_signature=state.proposed.signature,
    )
    return (wanted,)


def _acceptance(state: EarningChannel, at_ms: int) -> Send:
    close = CooperativeClose(channel_id=state.channel_id, cumulative=state.earned)
    message = CloseAccepted(currency=state.currency, close=unsigned(close))
    replaces = f"closed {state.channel_id.hex()}"
    return Send(to=state.config.payer_signer, message=message, keep_until_ms=at_ms + KEEP_MS, replaces=replaces)


def outstanding(state: EarningChannel, at_ms: int) -> tuple[Any, ...]:
    """What the buyer may not have, said again after a restart: the receipt that is out, our word that it is over."""
    if state.phase == "closed":
        told = (_acceptance(state, at_ms),) if state.proposed and at_ms < state.closed_ms + REPEAT_MS else ()
        return (*told, *_settlement(state))
    if state.out is None or state.phase != "open":
        return ()
    message = ReceiptSent(receipt=unsigned(state.out.receipt), lines=state.out.lines, evidence=state.out.evidence)
    replaces = f"receipt {state.channel_id.hex()}"
    return (Send(to=state.config.payer_signer, message=message, keep_until_ms=at_ms + KEEP_MS, replaces=replaces),)
