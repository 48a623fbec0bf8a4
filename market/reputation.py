"""Reputation: a figure that anybody works out again, to the last bit, from documents that both sides signed.

There is no global list and no server. A figure is one viewer's, and follows from three things only, which
``hansa reputation PEER --explain`` prints: the dealings that the viewer has seen, the viewer's own account, and the
time. The rules, in integers:

* A **dealing** is one channel: what the buyer vouched for, for the receipt that its voucher names, both signed. A
  receipt after it that was not vouched for within a day is **unpaid**, and speaks against the buyer. It is the
  provider's word alone.
* Values **fade**: they are halved for every 90 days since the end of the receipt's period.
* What the viewer itself had with the subject counts in full. What a **teller** had with the subject counts by half, and
  no more of it than the viewer itself had with that teller. A stranger's word counts nothing, so a thousand accounts
  of one owner are worth nothing, and to be believed for a sum costs having dealt for that sum.
* The figure is ``good / (good + bad + 1.00)`` in millionths. Whoever signed two documents that contradict each other
  has zero, for good, and what it tells of others counts nothing.

Only dealings in the viewer's own currency count, since nothing here knows what one currency is worth in another.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hansa.market.receipts import CLOCK_SKEW_MS, NOTHING, receipt_digest
from hansa.proto.currency import currency_of
from hansa.proto.documents import channel_id
from hansa.proto.errors import Malformed
from hansa.proto.history import Dealing
from hansa.proto.network import DOMAIN
from hansa.proto.signing import check
from hansa.proto.units import Address, Amount, Bytes32, Line, Uint32, UnixMs

WHOLE_PPM = 1_000_000
HALF_LIFE_MS = 90 * 86_400_000
PRIOR = 1_000_000
"""So much, in smallest units, makes half of a full reputation: 1.00 of the currency."""
OVERDUE_MS = 86_400_000
"""A receipt that was not vouched for in this time counts against its buyer."""
PROVIDER, BUYER = "provider", "buyer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """What follows from one dealing, checked.

    Attributes:
        channel_id: the channel.
        currency: what it pays in.
        buyer: the account that signs for the payer.
        provider: the account that signs for the payee.
        value: what was vouched for with a receipt, in all.
        at_ms: until when the work was done that was vouched for.
        unpaid: what the receipt after it adds.
        unpaid_ms: until when the work was done that was not vouched for; 0 without any.
    """

    channel_id: Bytes32
    currency: Line
    buyer: Address
    provider: Address
    value: Amount
    at_ms: UnixMs
    unpaid: Amount = 0
    unpaid_ms: UnixMs = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A dealing that somebody showed: the signed documents, and what follows from them."""

    dealing: Dealing
    dealt: Dealt


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one teller's dealings with the subject add to a figure.

    Attributes:
        teller: the other side of these dealings; the viewer itself, or somebody whom it knows.
        known: what the viewer itself had with the teller, faded; the most that the teller is believed for.
        told_good: what the dealings came to, faded.
        told_bad: what of them is unpaid, faded.
        good: what of the first counts.
        bad: what of the second counts.
        dealings: what it is the sum of.
    """

    teller: Address
    known: Amount
    told_good: Amount
    told_bad: Amount
    good: Amount
    bad: Amount
    dealings: tuple[Dealt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A figure with everything that it follows from.

    Attributes:
        subject: whose it is.
        role: as provider or as buyer.
        ppm: the figure, in millionths.
        good: the sum of the terms' good parts, in smallest units.
        bad: the sum of their bad parts.
        proven_false: the subject signed two documents that contradict each other.
        terms: whose word it is, the weightiest first.
    """

    subject: Address
    role: Line
    ppm: Uint32
    good: Amount
    bad: Amount
    proven_false: bool
    terms: tuple[Contribution, ...]


def read_dealing(dealing: Dealing) -> Dealt:
    """Check every signature in a dealing, and that its parts belong together.

    Raises:
        Malformed: a document is not one, or two of them do not belong together.
        BadSignature: a document is not signed by the one who should have.
    """
    config, domain = dealing.config, currency_of(dealing.currency).domain
    key = channel_id(domain, config)
    value, at_ms, vouched, prev, seq = 0, 0, 0, NOTHING, 0
    if dealing.receipt is not None and dealing.voucher is not None:
        receipt, voucher = dealing.receipt.document, dealing.voucher.document
        prev, seq = receipt_digest(receipt), receipt.seq
        if receipt.channel_id != key or voucher.channel_id != key:
            raise Malformed("dealing", "has documents of another channel")
        if voucher.statement != prev:
            raise Malformed("dealing.voucher", "is for another receipt")
        check(DOMAIN, dealing.receipt, config.payee_signer)
        check(domain, dealing.voucher, config.payer_signer)
        # A voucher may run ahead of the work where a provider is paid in advance: only what was delivered counts.
        value, at_ms, vouched = min(voucher.cumulative, receipt.amount_total), receipt.period_end_ms, voucher.cumulative
    elif dealing.receipt is not None or dealing.voucher is not None or dealing.unpaid is None:
        raise Malformed("dealing", "lacks a document")
    unpaid, unpaid_ms = 0, 0
    if dealing.unpaid is not None:
        later = dealing.unpaid.document
        if later.channel_id != key or later.prev != prev or later.seq <= seq:
            raise Malformed("dealing.unpaid", "does not follow the receipt")
        check(DOMAIN, dealing.unpaid, config.payee_signer)
        unpaid, unpaid_ms = max(0, later.amount_total - vouched), later.period_end_ms
    return Dealt(
        channel_id=key,
        currency=dealing.currency,
        buyer=config.payer_signer,
        provider=config.payee_signer,
        value=value,
        at_ms=at_ms,
        unpaid=unpaid,
        unpaid_ms=unpaid_ms,
    )


def faded_ppm(age_ms: int) -> int:
    """What is left of a weight after some time: halved every half-life, in a straight line between the halves."""
    halvings, rest_ms = divmod(max(0, age_ms), HALF_LIFE_MS)
    return (WHOLE_PPM >> min(halvings, 64)) * (2 * HALF_LIFE_MS - rest_ms) // (2 * HALF_LIFE_MS)


def share_ppm(good: int, bad: int = 0) -> int:
    """``good / (good + bad + 1.00)`` in millionths."""
    return WHOLE_PPM * good // (good + bad + PRIOR)


def newest(dealings: Iterable[Dealt]) -> dict[bytes, Dealt]:
    """One dealing for each channel: the one with the highest total, since totals only rise."""
    best: dict[bytes, Dealt] = {}
    for dealt in dealings:
        known = best.get(dealt.channel_id)
        if known is None or (dealt.value, dealt.unpaid) > (known.value, known.unpaid):
            best[dealt.channel_id] = dealt
    return best


def standing(
    viewer: Address,
    subject: Address,
    role: str,
    dealings: Mapping[bytes, Dealt],
    *,
    currency: str,
    proven_false: frozenset[bytes] = frozenset(),
    at_ms: int,
) -> Standing:
    """A subject's figure in the eyes of a viewer.

    Args:
        viewer: who wants to know.
        subject: about whom.
        role: ``PROVIDER`` or ``BUYER``.
        dealings: what the viewer has seen, its own dealings among them, by channel (``newest``).
        currency: the viewer's; dealings in another do not count.
        proven_false: accounts of whom two contradicting documents are known.
        at_ms: the time for which it is worked out; work dated after it is passed by.
    """
    counted = [
        dealt
        for dealt in dealings.values()
        if dealt.currency == currency
        and dealt.buyer != dealt.provider
        and max(dealt.at_ms, dealt.unpaid_ms) <= at_ms + CLOCK_SKEW_MS
        and not proven_false & {dealt.buyer, dealt.provider}
    ]
    with_viewer: dict[bytes, int] = {}
    told: dict[bytes, list[Dealt]] = {}
    for dealt in counted:
        if viewer in (dealt.buyer, dealt.provider):
            other = dealt.provider if dealt.buyer == viewer else dealt.buyer
            with_viewer[other] = with_viewer.get(other, 0) + _faded(dealt.value, dealt.at_ms, at_ms)
        me, teller = (dealt.provider, dealt.buyer) if role == PROVIDER else (dealt.buyer, dealt.provider)
        if me == subject:
            told.setdefault(teller, []).append(dealt)
    terms = [
        _term(teller, theirs, None if teller == viewer else with_viewer.get(teller, 0), role=role, at_ms=at_ms)
        for teller, theirs in told.items()
        if teller == viewer or with_viewer.get(teller, 0)
    ]
    terms.sort(key=lambda term: (-term.good - term.bad, term.teller))
    good, bad = sum(term.good for term in terms), sum(term.bad for term in terms)
    return Standing(
        subject=subject,
        role=role,
        ppm=share_ppm(good, bad),
        good=good,
        bad=bad,
        proven_false=subject in proven_false,
        terms=tuple(terms),
    )


def _faded(amount: int, then_ms: int, now_ms: int) -> int:
    return amount * faded_ppm(now_ms - then_ms) // WHOLE_PPM


def _term(teller: Address, dealings: list[Dealt], known: int | None, *, role: str, at_ms: int) -> Contribution:
    """What one teller adds. ``known`` is what the viewer had with it; None where the viewer tells itself."""
    told_good = sum(_faded(dealt.value, dealt.at_ms, at_ms) for dealt in dealings)
    told_bad = sum(
        _faded(dealt.unpaid, dealt.unpaid_ms, at_ms)
        for dealt in dealings
        if role == BUYER and dealt.unpaid and at_ms >= dealt.unpaid_ms + OVERDUE_MS
    )
    return Contribution(
        teller=teller,
        known=told_good if known is None else known,
        told_good=told_good,
        told_bad=told_bad,
        good=told_good if known is None else min(told_good, known) // 2,
        bad=told_bad if known is None else min(told_bad, known) // 2,
        dealings=tuple(sorted(dealings, key=lambda dealt: dealt.channel_id)),
    )
