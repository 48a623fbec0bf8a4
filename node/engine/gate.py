"""What is let in to be journaled: only what a peer may say, about something that is there, and not too often.

The machines would ignore the rest all the same, but by then it would stand in the journal: a stranger could fill the
disk with messages about leases that never were.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from hansa.node.engine.state import NodeState
from hansa.proto import messages

TENDERS_AT_ONCE = 20
TENDER_EVERY_MS = 3_000
"""One buyer's tenders, in the long run. A job needs one, and one more for each shard that is lost."""
MOST_BUYERS = 10_000
SIGNATURES_AT_ONCE = 400
SIGNATURE_EVERY_MS = 10
"""One peer's signed messages that are looked into: to recover a hundred signers a second takes a few hundredths of a
core, and an honest peer has one receipt or voucher for each metering interval."""
DEBTS_AT_ONCE = 20
DEBT_EVERY_MS = 60_000
"""One peer's credit lines and acknowledged payments. The ledger keeps each for good, and a line lives for a month."""
HELLOS_AT_ONCE = 20
HELLO_EVERY_MS = 1_000
"""One peer's hellos that are looked into. It has one to say when it starts, and the same again for a month."""


def concerns(state: NodeState, sender: bytes, message: Any) -> bool:
    """Whether a message is about something that this node has with its sender."""
    match message:
        case messages.TenderSent():
            return state.terms is not None
        case messages.BidSent(bid=signed):
            return _is_invited(state, sender, signed.document.tender)
        case messages.DeclineSent(decline=signed):
            return _is_invited(state, sender, signed.document.tender)
        case messages.AwardSent(award=signed):
            return _made_bid_to(state, sender, signed.document.bid)
        case messages.BidReleased(bid=bid):
            return _made_bid_to(state, sender, bid)
        case messages.ReceiptSent(receipt=signed):
            return _is_paid_on(state, sender, signed.document.channel_id)
        case messages.CloseAccepted(close=signed):
            return _is_paid_on(state, sender, signed.document.channel_id, message.currency)
        case messages.VoucherSent(voucher=signed):
            return _pays_on(state, sender, signed.document.channel_id, message.currency)
        case messages.CloseProposed(close=signed):
            return _pays_on(state, sender, signed.document.channel_id, message.currency)
        case messages.ReceiptRefused(channel_id=channel_id) | messages.ReceiptDisputed(channel_id=channel_id):
            return _pays_on(state, sender, channel_id)
        case messages.CreditGranted() | messages.PaymentAcknowledged():
            return deals_with(state, sender)
        case messages.NettingProposed() | messages.NettingAccepted():
            return deals_with(state, sender)
        case messages.TreeHeadsSent() | messages.ConsistencyWanted() | messages.ConsistencySent():
            return deals_with(state, sender)
        case messages.ProofSent():
            # It proves itself, whoever brings it.
            return sender not in state.proven and sender not in state.blocked
        case _:
            return _shares_lease(state, sender, message.lease)


def deals_with(state: NodeState, peer: bytes) -> bool:
    """Whether money moves, or ever moved, between this node and an account that did not prove itself a liar."""
    if peer in state.proven:
        return False
    if peer in state.mutual or any(f"{account}:{peer.hex()}" in state.ledger.balances for account in ("due", "owed")):
        return True
    if any(signer == peer for signer in _signers(state)):
        return True
    # Its lease may be confirmed, and its credit line on the way, before the rest of the gang has come.
    gathering = state.purchases.live.values()
    return any(placement.provider == peer for bought in gathering for placement in bought.live)


def _signers(state: NodeState) -> Iterator[bytes]:
    """Who signs on the other side of this node's channels: of all that live, and of those that ended with money moved.

    Once a channel has ended, the books know the accounts that paid and were paid only. Of a colder one no node speaks.
    """
    for key, paying in state.paying.all():
        if paying.cumulative or key in state.paying.live:
            yield paying.config.payee_signer
    for key, earning in state.earning.all():
        if earning.cumulative or key in state.earning.live:
            yield earning.config.payer_signer


def partners(state: NodeState) -> set[bytes]:
    """All accounts with which money moves, or ever moved."""
    found = set(state.mutual)
    found |= set(_signers(state))
    found |= {placement.provider for bought in state.purchases.live.values() for placement in bought.live}
    for name in state.ledger.balances:
        kind, _, peer = name.partition(":")
        if kind in ("due", "owed"):
            found.add(bytes.fromhex(peer))
    return found


def _is_invited(state: NodeState, sender: bytes, tender: bytes) -> bool:
    bought = state.purchases.get(tender)
    return bought is not None and sender in bought.invited


def _made_bid_to(state: NodeState, sender: bytes, bid: bytes) -> bool:
    sale = state.sales.get(bid)
    return sale is not None and sale.buyer == sender


def _is_paid_on(state: NodeState, sender: bytes, channel_id: bytes, currency: str | None = None) -> bool:
    channel = state.paying.get(channel_id)
    if channel is None or channel.config.payee_signer != sender:
        return False
    # The signature was checked for the currency that the message names: it must be the channel's own.
    return currency is None or currency == channel.currency


def _pays_on(state: NodeState, sender: bytes, channel_id: bytes, currency: str | None = None) -> bool:
    channel = state.earning.get(channel_id)
    if channel is None or channel.config.payer_signer != sender:
        return False
    return currency is None or currency == channel.currency


def _shares_lease(state: NodeState, sender: bytes, lease: bytes) -> bool:
    sale, bought = state.sale_on(lease), state.purchase_on(lease)
    if sale is not None and sale.buyer == sender:
        return True
    placements = bought.placements if bought else ()
    return any(placement.lease == lease and placement.provider == sender for placement in placements)


class PeerRate:
    """A bucket for each account or peer: so many at once, and one more in every so many milliseconds."""

    def __init__(self, at_once: int, every_ms: int) -> None:
        """Begin with full buckets."""
        self._at_once = at_once
        self._every_ms = every_ms
        self._buckets: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    def admits(self, peer: bytes, now_ms: int) -> bool:
        """Whether one more of this peer's may come in now; it is counted if so."""
        left, since_ms = self._buckets.get(peer, (self._at_once, now_ms))
        gained = max(0, now_ms - since_ms) // self._every_ms
        left, since_ms = min(self._at_once, left + gained), since_ms + gained * self._every_ms
        admitted = left > 0
        self._buckets[peer] = (left - admitted, since_ms)
        self._buckets.move_to_end(peer)
        while len(self._buckets) > MOST_BUYERS:
            self._buckets.popitem(last=False)
        return admitted


class TenderRate(PeerRate):
    """So that one buyer cannot hold every device by tendering without end."""

    def __init__(self) -> None:
        """Begin with full buckets."""
        super().__init__(TENDERS_AT_ONCE, TENDER_EVERY_MS)
