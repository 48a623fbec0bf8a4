"""Whether a provider that ends a lease for want of money contradicts what it signed itself. Rules, no machine.

Both sides count the same documents, and each has some of them before the other. So a provider says by which words it
went: its newest credit line, what it had taken off the debt, which voucher it held. Its buyer works out what a channel
can pay by just these. Where that is too little, the provider told the truth, even if the buyer knows of more by now;
nobody is marked then, and the job waits for money. Older words than it had signed by then are no excuse.

Neither is a credit line that it lowered after a lease was awarded: the buyer gave it the shard in view of the larger
one. Such an end is held against the line that lent the most since the award. Nor is a line that ran out meanwhile:
while a lease lives, its provider signs it anew in time. And no line is that does not even lend what a start takes: who
bids has looked whether it does.

That a line is shorter than all that its leases may ever cost is none either. What is left of it is shared equally: as
long as each of its leases could still start with it, and work on what the others ran up besides, none had to end. What
was worked for and is withheld until a firm lease ends well counts as used up, as far as the buyer's clock allows.
"""

from collections.abc import Sequence

from hansa.market import mutual
from hansa.market.mutual import LINE_LIFE_MS, Mutual
from hansa.market.paying_channel import PayingChannel
from hansa.market.shares import device_ms
from hansa.proto.currency import currency_of, unit_of
from hansa.proto.messages import RunEnded

FRESH_MS = 60_000
"""A deposit is final for one side before the other, and the word that a lease ended is on its way for a while."""


def contradiction(
    end: RunEnded,
    channel: PayingChannel,
    known: Mutual,
    *,
    vouched: int,
    paid_ahead: bool,
    awarded_ms: int,
    start: int,
    starts: Sequence[int],
    by_ms: int,
    at_ms: int,
) -> str:
    """Why it cannot be that a lease ended for want of money, in words; empty where it may be so.

    Args:
        end: what its provider says.
        channel: what the lease is paid on.
        known: what the buyer has of the provider's credit lines and payments.
        vouched: all that the buyer ever vouched for to this provider.
        paid_ahead: whether the lease is to be paid ahead.
        awarded_ms: when the lease was awarded.
        start: what the lease takes to start.
        starts: what each lease with the provider that lives takes to start.
        by_ms: the provider waited for money until then at least, so what it signed before that it knows.
        at_ms: when its word came.
    """
    enough = _enough(channel, max(start, *starts), len(starts), at_ms)
    if currency_of(channel.currency).is_on_chain:
        return _contradiction_on_chain(end, channel, enough=enough, paid_ahead=paid_ahead, by_ms=by_ms)
    said, line, payment = end.line.document if end.line else None, known.taken, known.paid_out
    if said is None:
        return "it names no credit line"
    config = channel.config
    if (said.creditor, said.debtor, said.unit) != (config.payee_signer, config.payer, unit_of(channel.currency)):
        return "its credit line is of somebody else"
    if line is not None and said.nonce < line.nonce and line.not_after - LINE_LIFE_MS < by_ms:
        return "it goes by an older credit line than it had signed"
    if payment is not None and end.paid < payment.total and payment.paid_ms < by_ms:
        return "it leaves out a payment that it had acknowledged"
    if paid_ahead and end.vouched < channel.cumulative:
        return ""  # What is paid ahead is on its way.
    owed = max(0, vouched - end.paid)
    left = max(0, said.limit - owed)
    wanted = sum(
        terms.max_total if terms.ends_ms > at_ms - FRESH_MS else terms.most for terms in channel.terms.values()
    )
    if channel.metered + left >= wanted:
        return "by its own words the channel could pay for all its leases"
    lent = max(said.limit, mutual.relied_on(known, said, since_ms=awarded_ms))
    if line is not None and said.nonce > line.nonce:
        # It could not be taken for what it says, so it takes the place of nothing either.
        lent = max(lent, line.limit)
    if lent < start:
        return "it lends less than what the lease takes to start, for which it bid"
    left = max(0, lent - owed)
    if channel.metered + left < wanted and left < enough:
        return ""
    if lent > said.limit:
        return "it has lowered its credit line since the award"
    return "by its own words enough was left for every lease to go on"


def _contradiction_on_chain(end: RunEnded, channel: PayingChannel, *, enough: int, paid_ahead: bool, by_ms: int) -> str:
    """The same where a deposit is behind the channel. Of that one side knows a while after the other."""
    if channel.able_ms and channel.able_ms + FRESH_MS < by_ms:
        return "the channel could pay for all its leases"
    if paid_ahead and end.vouched < channel.cumulative:
        return ""
    left = (channel.limit or 0) - channel.metered
    # Another lease that has joined the channel wants more than is there, and there may be enough for both to go on.
    was_known = channel.funds_ms > 0 and channel.funds_ms + FRESH_MS < by_ms
    return "its deposit had enough left for every lease to go on" if left >= enough and was_known else ""


def _enough(channel: PayingChannel, start: int, leases: int, at_ms: int) -> int:
    """With so much left beyond what was vouched for, no honest provider had to end a lease, or let one lapse.

    What is left is shared equally. Of it each lease but the one that is to start may have run up as much as may be
    unpaid, which is no more than what it takes to start.
    """
    living = sum(terms.ends_ms > at_ms - FRESH_MS for terms in channel.terms.values())
    return (2 * max(living, leases, 1) - 1) * start + _withheld(channel, at_ms)


def _withheld(channel: PayingChannel, at_ms: int) -> int:
    """The most that its firm leases may have earned and not charged: of time that has passed, at most the penalty."""
    withheld = 0
    for lease, terms in channel.terms.items():
        worked_ms = max(0, min(at_ms, terms.ends_ms + FRESH_MS) - terms.begins_ms)
        worked = terms.amount(device_ms(worked_ms, terms.width_milli))
        withheld += min(terms.penalty, max(0, worked - channel.vouched(lease)))
    return withheld
