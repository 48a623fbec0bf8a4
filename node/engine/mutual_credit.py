"""The room of debts on the ledger: credit lines given and taken, payments acknowledged, debts that cancel out.

It says to channels what they can pay: what they paid already, and as much more as the credit line leaves when all
that is still owed is taken off. What was ever vouched does not count, only what is outstanding: a payment makes room.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from hansa.market import mutual
from hansa.market.effects import Send, unsigned
from hansa.market.funding import FundsKnown
from hansa.market.ledger import Post, netted, owed_by, owed_to, paid_by_buyer, paid_to_provider
from hansa.market.ledger_records import File, FiledCredit, FiledNetting, FiledPayment
from hansa.market.mutual import Mutual
from hansa.market.purchase_awards import CONFIRM_MS
from hansa.market.purchase_state import Placement
from hansa.market.sale_funding import UNFUNDED, enough_to_start
from hansa.market.shares import WHOLE_MILLI, cost
from hansa.node.engine import buying_turns, selling_turns
from hansa.node.engine.events import (
    CreditDecided,
    EquivocationProven,
    MessageArrived,
    NettingDue,
    PaymentReceived,
    Started,
)
from hansa.node.engine.gate import partners
from hansa.node.engine.state import NodeState
from hansa.proto import messages
from hansa.proto.currency import currency_of, unit_of
from hansa.proto.documents import CreditLine, Netting
from hansa.proto.market_documents import Bid
from hansa.proto.signing import Signed
from hansa.proto.units import format_amount
from hansa.scheduler import job_events
from hansa.scheduler.job_state import Job, Shard

Effects = list[Any]

MOST_PROVEN, MOST_LOOKED_AT = 16_384, 64
"""So many accounts are known for a lie, and so many are looked at for one that gives way."""
KEEP_MS = 30 * 24 * 3_600_000
"""Words about debts are worth bringing for a month."""
REPEAT_MS = 7 * 24 * 3_600_000
"""For so long they are said again at every start: the outbox does not outlive the daemon."""
EARLY = ("bid", "leased", "funding", "running")
"""Phases in which a sale has still to run something up; later it waits for what it ran up."""
CREDIT_RISES = (
    messages.CreditGranted,
    messages.PaymentAcknowledged,
    messages.NettingProposed,
    messages.NettingAccepted,
)
MOVES_MONEY = (
    messages.AwardSent,
    messages.ReceiptSent,
    messages.VoucherSent,
    messages.CloseProposed,
    messages.CloseAccepted,
    messages.CreditGranted,
    messages.PaymentAcknowledged,
    messages.NettingProposed,
    messages.NettingAccepted,
    messages.RunEnded,
)


def with_peer(state: NodeState, peer: bytes) -> Mutual:
    """What is known of one account."""
    return state.mutual.get(peer, Mutual())


def limit_for(state: NodeState, peer: bytes) -> int:
    """What an account may owe this node."""
    own = with_peer(state, peer).limit
    return own if own is not None else state.terms.credit_limit if state.terms else 0


def beyond_credit(state: NodeState, buyer: bytes, bid: Bid) -> tuple[str, str] | None:
    """Why a bid could never start on the ledger, and what would change that; None where it could.

    What leases and bids that live need of the buyer's credit is theirs. A bid beyond that would hold devices in vain.
    """
    if not _is_ledger(state):
        return None
    held = 0
    for sold in state.sales.live.values():
        if sold.buyer == buyer:
            held += max(0, (enough_to_start(sold.bid) if sold.phase in EARLY else sold.accrued) - sold.vouched)
    left = max(0, limit_for(state, buyer) - owed_by(state.ledger, buyer) - held)
    enough = enough_to_start(bid)
    if enough <= left:
        return None
    reason = f"you may owe this provider {format_amount(left)} more, and a start takes {format_amount(enough)}"
    return reason, "settle what you owe, or ask for a larger credit line"


def _is_ledger(state: NodeState) -> bool:
    return bool(state.currency) and not currency_of(state.currency).is_on_chain


def _channels_from(state: NodeState, peer: bytes) -> list[bytes]:
    return [
        key
        for key, channel in state.earning.live.items()
        if channel.config.payer == peer and not currency_of(channel.currency).is_on_chain
    ]


def _channels_to(state: NodeState, peer: bytes) -> list[bytes]:
    return [
        key
        for key, channel in state.paying.live.items()
        if channel.config.payee == peer and not currency_of(channel.currency).is_on_chain
    ]


# Whatever happened, what channels can pay follows from it.


def follow(state: NodeState, event: Any) -> Effects:
    """After an event that may have moved money: sign a credit line if one is due, tell channels what they can pay."""
    lender: bytes | None = None
    match event:
        case MessageArrived(sender=sender, message=message) if isinstance(message, MOVES_MONEY):
            peers = {sender}
            # A lease that is over leaves what it might still have run up to the next one, unless it starved itself.
            ended = isinstance(message, messages.RunEnded) and message.kind != UNFUNDED
            lender = sender if ended or isinstance(message, CREDIT_RISES) else None
        case PaymentReceived(debtor=debtor) | CreditDecided(debtor=debtor):
            peers = {debtor}
        case Started():
            earning = (channel.config.payer for channel in state.earning.live.values())
            paying = (channel.config.payee for channel in state.paying.live.values())
            peers = {*earning, *paying}
        case _:
            return []
    if not _is_ledger(state):
        return []
    effects: Effects = []
    for peer in sorted(peers):
        effects += _lend(state, peer, event.at_ms, decided=isinstance(event, CreditDecided))
        effects += _borrow(state, peer, event.at_ms)
    return effects + (_try_again(state, lender, event.at_ms) if lender is not None else [])


def _try_again(state: NodeState, lender: bytes, at_ms: int) -> Effects:
    """A provider may lend more now: jobs whose leases ended for want of credit look for providers again.

    Not before it lends what a start takes, for it would decline. What anybody else lends is no reason either: nothing
    is owed there, and shards wait for the credit of the provider that they had.
    """
    effects: Effects = []
    line = with_peer(state, lender).taken
    left = mutual.room(line, owed=owed_to(state.ledger, lender), at_ms=at_ms) if line is not None else mutual.LARGEST
    for key, of in list(state.jobs.live.items()):
        starved = [shard for shard in of.shards if shard.short and not shard.lacks_budget and shard.provider == lender]
        if any(left >= _start_of(state, of, shard) for shard in starved):
            effects += buying_turns.advance_job(state, key, job_events.BudgetRaised(amount=0, at_ms=at_ms))
    return effects


def _start_of(state: NodeState, of: Job, shard: Shard) -> int:
    """What a shard's last lease took to start; the most that any could take where that is forgotten."""
    bought = state.purchase_on(shard.lease)
    placement = buying_turns.placement_of(bought, shard.lease)
    if bought is not None and placement is not None:
        return enough_to_start(bought.bids[placement.bid])
    needs = of.spec.requirements
    return cost(needs.wall_ms, needs.devices * WHOLE_MILLI, of.spec.price_ceiling_e18_per_device_ms) + 1


def _lend(state: NodeState, peer: bytes, at_ms: int, *, decided: bool) -> Effects:
    """To one that pays on a channel here: a line, and what follows from it.

    Who had a line before hears what the owner decided, channel or not: a job may be waiting for it.
    """
    channels = _channels_from(state, peer)
    known = with_peer(state, peer)
    if not channels and not (decided and known.given is not None):
        return []
    effects: Effects = []
    line = mutual.next_line(
        known,
        creditor=state.account,
        debtor=peer,
        unit=unit_of(state.currency),
        limit=limit_for(state, peer),
        at_ms=at_ms,
    )
    if line is not None:
        state.mutual[peer] = replace(known, given=line)
        effects += [File(filed=FiledCredit(line=unsigned(line))), _grant(line, at_ms)]
    left = mutual.room(with_peer(state, peer).given, owed=owed_by(state.ledger, peer), at_ms=at_ms)
    for key in channels:
        channel = state.earning.live.get(key)
        if channel is not None:
            # What is paid ahead of receipts is no debt yet: it is within the line, and makes no room of its own.
            for news in _funds(key, channel.funds, channel.earned + left, at_ms):
                effects += selling_turns.advance_channel(state, key, news)
    return effects


def _borrow(state: NodeState, peer: bytes, at_ms: int) -> Effects:
    """From one that is paid on a channel here: what its line leaves. Without its line nothing is known to limit it."""
    effects: Effects = []
    for key in _channels_to(state, peer):
        channel = state.paying.live.get(key)
        most = buying_turns.credit_for(state, channel, at_ms) if channel is not None else None
        if channel is not None and most is not None:
            for news in _funds(key, channel.funds, most, at_ms):
                effects += buying_turns.advance_channel(state, key, news)
    return effects


def _funds(key: bytes, known: int | None, most: int, at_ms: int) -> tuple[FundsKnown, ...]:
    """What a channel should hear of what it can pay; nothing where it knows."""
    # A line may be as long as an amount can be, and what was paid comes on top.
    most = min(mutual.LARGEST, most)
    return () if known == most else (FundsKnown(channel_id=key, most=most, at_ms=at_ms),)


def _grant(line: Any, at_ms: int) -> Send:
    message = messages.CreditGranted(line=unsigned(line))
    return Send(to=line.debtor, message=message, keep_until_ms=at_ms + KEEP_MS, replaces="credit line")


# What peers say. Every signature is its sender's; whether it may say this is asked here.


def _hear_line(state: NodeState, event: MessageArrived) -> Effects:
    message: messages.CreditGranted = event.message  # type: ignore[assignment]
    return take_line(state, message.line, event.sender, event.at_ms)


def take_line(state: NodeState, signed: Signed[CreditLine], sender: bytes, at_ms: int) -> Effects:
    """A credit line, by itself or with the word that a lease ended for want of credit."""
    line, known = signed.document, with_peer(state, sender)
    if (line.creditor, line.debtor, line.unit) != (sender, state.account, unit_of(state.currency)):
        state.ignore("credit", "a credit line between others, or in another unit")
        return []
    if mutual.is_dated_ahead(line, at_ms=at_ms):
        state.ignore("credit", "a credit line that is dated ahead")
        return []
    if not mutual.is_newer_line(known, line):
        state.ignore("credit", "a credit line that is known")
        return []
    awarded = [awarded_ms(placement) for placement in _leases_with(state, sender)]
    state.mutual[sender] = mutual.with_line(known, line, since_ms=min(awarded, default=None), at_ms=at_ms)
    return [File(filed=FiledCredit(line=signed))]


def _leases_with(state: NodeState, provider: bytes) -> list[Placement]:
    """Awards to a provider that are, or may become, leases."""
    gathering = state.purchases.live.values()
    return [entry for bought in gathering for entry in bought.live if entry.provider == provider]


def awarded_ms(placement: Placement) -> int:
    """When an award was made."""
    return placement.award.confirm_by_ms - CONFIRM_MS


def starts_with(state: NodeState, provider: bytes) -> tuple[int, ...]:
    """What each lease with a provider that lives takes to start."""
    return tuple(
        enough_to_start(bought.bids[entry.bid])
        for bought in state.purchases.live.values()
        for entry in bought.live
        if entry.provider == provider
    )


def _hear_payment(state: NodeState, event: MessageArrived) -> Effects:
    signed: Signed[Any] = event.message.payment  # type: ignore[union-attr]
    payment, known = signed.document, with_peer(state, event.sender)
    if (payment.creditor, payment.debtor, payment.unit) != (event.sender, state.account, unit_of(state.currency)):
        state.ignore("credit", "a payment between others, or in another unit")
        return []
    amount = mutual.newly_paid(known.paid_out, payment)
    if not amount:
        state.ignore("credit", "a payment that is known")
        return []
    state.mutual[event.sender] = replace(known, paid_out=payment)
    entry = paid_by_buyer(
        creditor=event.sender,
        unit=payment.unit,
        nonce=payment.nonce,
        amount=amount,
        how=payment.how,
        at_ms=event.at_ms,
    )
    return [File(filed=FiledPayment(payment=signed)), Post(entry=entry)]


def _hear_proposal(state: NodeState, event: MessageArrived) -> Effects:
    signed: Signed[Netting] = event.message.netting  # type: ignore[union-attr]
    netting, known = signed.document, with_peer(state, event.sender)
    if (netting.lower, netting.higher, netting.unit) != (event.sender, state.account, unit_of(state.currency)):
        state.ignore("credit", "a netting between others, or in another unit")
        return []
    if netting == known.netting:
        return [_acceptance(netting, event.at_ms)]
    owes, owed = owed_to(state.ledger, event.sender), owed_by(state.ledger, event.sender)
    if not state.netting or not mutual.accepts(known, netting, owes=owes, owed=owed):
        # It is proposed again; by then what is on its way may have arrived.
        state.ignore("credit", "a netting of more than both owe each other here")
        return []
    filed = FiledNetting(by_lower=signed, by_higher=unsigned(netting))
    return [*_net(state, event.sender, filed, event.at_ms), _acceptance(netting, event.at_ms)]


def _acceptance(netting: Netting, at_ms: int) -> Send:
    message = messages.NettingAccepted(netting=unsigned(netting))
    return Send(to=netting.lower, message=message, keep_until_ms=at_ms + KEEP_MS, replaces="netting accepted")


def _hear_acceptance(state: NodeState, event: MessageArrived) -> Effects:
    signed: Signed[Netting] = event.message.netting  # type: ignore[union-attr]
    # Only the very words that this node signed and that wait here: with them it agreed to this sum.
    if signed.document != with_peer(state, event.sender).proposed:
        state.ignore("credit", "an acceptance of no netting that waits")
        return []
    filed = FiledNetting(by_lower=unsigned(signed.document), by_higher=signed)
    return _net(state, event.sender, filed, event.at_ms)


def _net(state: NodeState, peer: bytes, filed: FiledNetting, at_ms: int) -> Effects:
    known, netting = with_peer(state, peer), filed.by_lower.document
    amount = netting.total - known.netted()
    assert amount > 0, "a netting is of something"
    state.mutual[peer] = replace(known, netting=netting, proposed=None)
    entry = netted(peer=peer, unit=netting.unit, nonce=netting.nonce, amount=amount, at_ms=at_ms)
    return [File(filed=filed), Post(entry=entry)]


HEARD: dict[type, Callable[[NodeState, MessageArrived], Effects]] = {
    messages.CreditGranted: _hear_line,
    messages.PaymentAcknowledged: _hear_payment,
    messages.NettingProposed: _hear_proposal,
    messages.NettingAccepted: _hear_acceptance,
}
"""What is heard here, and who listens."""


# What the owner says.


def take_payment(state: NodeState, event: PaymentReceived) -> Effects:
    """The owner was paid outside: say so, for good."""
    known = with_peer(state, event.debtor)
    payment = mutual.next_payment(
        known,
        creditor=state.account,
        debtor=event.debtor,
        unit=unit_of(state.currency),
        amount=event.amount,
        how=event.how,
        at_ms=event.at_ms,
    )
    state.mutual[event.debtor] = replace(known, paid_in=payment)
    entry = paid_to_provider(
        debtor=event.debtor,
        unit=payment.unit,
        nonce=payment.nonce,
        amount=event.amount,
        how=event.how,
        at_ms=event.at_ms,
    )
    return [
        File(filed=FiledPayment(payment=unsigned(payment))),
        Post(entry=entry),
        _acknowledgement(payment, event.at_ms),
    ]


def _acknowledgement(payment: Any, at_ms: int) -> Send:
    message = messages.PaymentAcknowledged(payment=unsigned(payment))
    return Send(to=payment.debtor, message=message, keep_until_ms=at_ms + KEEP_MS, replaces="payment")


def decide_credit(state: NodeState, event: CreditDecided) -> Effects:
    """The owner trusts one account more, or less, than everybody."""
    state.mutual[event.debtor] = replace(with_peer(state, event.debtor), limit=event.limit)
    return []


def prove(state: NodeState, event: EquivocationProven) -> Effects:
    """Somebody signed two things that contradict each other: there is no dealing with it any more."""
    state.proven[event.account] = event.words
    state.blocked.setdefault(event.account, event.words)
    if len(state.proven) > MOST_PROVEN:
        _forget_a_liar(state)
    return []


def _forget_a_liar(state: NodeState) -> None:
    """Let the oldest go with whom no money ever moved: anybody can make accounts of their own lie."""
    dealt = partners(state)
    for liar in tuple(islice(state.proven, MOST_LOOKED_AT)):
        words = state.proven.pop(liar)
        if liar not in dealt:
            if state.blocked.get(liar) == words:
                del state.blocked[liar]
            return
        state.proven[liar] = words  # behind all others, so that the next search begins with others


# Time, and what is done again after a restart.


def could_net(state: NodeState) -> Iterator[bytes]:
    """Accounts with which a netting could be proposed now, or waits for its answer."""
    if not state.netting or not _is_ledger(state):
        return
    peers = {bytes.fromhex(name[4:]) for name in state.ledger.balances if name.startswith("due:")}
    peers |= {bytes.fromhex(name[8:]) for name in state.ledger.balances if name.startswith("settled:")}
    for peer in sorted(peers):
        if state.account < peer and min(owed_by(state.ledger, peer), owed_to(state.ledger, peer)) > 0:
            yield peer


def propose_nettings(state: NodeState, event: NettingDue) -> Effects:
    """Propose that debts cancel out to everybody who owes and is owed; say again what waits for an answer."""
    effects: Effects = []
    for peer in could_net(state):
        known = with_peer(state, peer)
        proposed = mutual.next_netting(
            known,
            own=state.account,
            peer=peer,
            unit=unit_of(state.currency),
            owes=owed_to(state.ledger, peer),
            owed=owed_by(state.ledger, peer),
        )
        if proposed is not None:
            state.mutual[peer] = known = proposed
        if known.proposed is not None:
            message = messages.NettingProposed(netting=unsigned(known.proposed))
            keep_until_ms = event.at_ms + KEEP_MS
            effects.append(Send(to=peer, message=message, keep_until_ms=keep_until_ms, replaces="netting"))
    return effects


def restart(state: NodeState, at_ms: int) -> Effects:
    """Lines and payments of the last week are said again: the other side may not have them."""
    effects: Effects = []
    for _, known in sorted(state.mutual.items()):
        if known.given is not None and at_ms < known.given.not_after - mutual.LINE_LIFE_MS + REPEAT_MS:
            effects.append(_grant(known.given, at_ms))
        if known.paid_in is not None and at_ms < known.paid_in.paid_ms + REPEAT_MS:
            effects.append(_acknowledgement(known.paid_in, at_ms))
    return effects
