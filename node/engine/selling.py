"""The provider's rooms: what it hears of buyers, and what it does when time passes.

How it answers a tender is in ``hansa.node.engine.answering``, how its machines turn in
``hansa.node.engine.selling_turns``, and what it hears of its own runs in ``hansa.node.engine.selling_runs``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hansa.market import earning_channel, sale, sale_events
from hansa.market.earning_channel import EarningChannel
from hansa.market.effects import MOST_CHANNELS, Send, channel_salt
from hansa.market.purchase_awards import CONFIRM_MS
from hansa.market.sale_state import Sale
from hansa.node.engine import mirroring
from hansa.node.engine.answering import answer_tender
from hansa.node.engine.events import MessageArrived
from hansa.node.engine.selling_runs import tell_checkpoint
from hansa.node.engine.selling_turns import advance_channel, advance_run, advance_sale
from hansa.node.engine.state import NodeState
from hansa.proto import messages
from hansa.proto.blob import BlobRef
from hansa.proto.documents import ChannelConfig
from hansa.proto.network import DOMAIN
from hansa.proto.sealed import weight_bytes
from hansa.proto.typed_data import digest
from hansa.proto.units import Address, Bytes32, Uint64
from hansa.scheduler import run

Effects = list[Any]

OVERDUE_MS = 20_000
"""A receipt that is out for longer is sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverRound:
    """Effect: fetch a round's result from the buyer and hand it to the run that waits for it."""

    lease: Bytes32
    buyer: Address
    round: Uint64
    state: BlobRef


# What buyers say. The sender is proven; whether it may say this is asked here.


def _of_buyer(
    react: Callable[[NodeState, MessageArrived, Sale], Effects],
) -> Callable[[NodeState, MessageArrived], Effects]:
    """Only the buyer of a lease is heard about it."""

    def hear(state: NodeState, event: MessageArrived) -> Effects:
        entry = state.sale_on(event.message.lease)  # type: ignore[union-attr]
        if entry is None or entry.buyer != event.sender:
            state.ignore("sale", "news of a lease that is not the sender's")
            return []
        return react(state, event, entry)

    return hear


def _hear_of_lease(state: NodeState, event: MessageArrived, entry: Sale) -> Effects:
    at_ms = event.at_ms
    news: Any = None
    match event.message:
        case messages.LeaseCancelled(reason=reason):
            news = sale_events.LeaseCalledOff(reason=reason, at_ms=at_ms)
        case messages.RunOrdered(round=number, checkpoint=checkpoint):
            assert entry.workload is not None
            needs = entry.tender.requirements
            if checkpoint is not None and weight_bytes(checkpoint, needs) > entry.workload.state_bytes:
                state.ignore("sale", "a checkpoint over the workload's limit")
                return []
            mirroring.name_sources(state, event.message, entry, at_ms)
            news = sale_events.StartOrdered(round=number, checkpoint=checkpoint, at_ms=at_ms)
        case messages.RunStopOrdered(reason=reason):
            news = sale_events.StopOrdered(reason=reason, at_ms=at_ms)
        case messages.PenaltyReleased():
            news = sale_events.PenaltyLifted(at_ms=at_ms)
        case messages.DeliveryAccepted():
            news = sale_events.DeliveryTaken(at_ms=at_ms)
    return advance_sale(state, entry.bid_digest, news)


def _hear_round(state: NodeState, event: MessageArrived, entry: Sale) -> Effects:
    message: messages.RoundPublished = event.message  # type: ignore[assignment]
    assert entry.workload is not None
    weight = weight_bytes(message.state, entry.tender.requirements)
    if entry.phase != "running" or weight > entry.workload.state_bytes:
        state.ignore("sale", "a round's state over the workload's limit, or for no run that lives")
        return []
    return [DeliverRound(lease=message.lease, buyer=entry.buyer, round=message.round, state=message.state)]


def _hear_award(state: NodeState, event: MessageArrived) -> Effects:
    message: messages.AwardSent = event.message  # type: ignore[assignment]
    award = message.award.document
    entry = state.sales.get(award.bid)
    if award.signer != event.sender:
        state.ignore("sale", "an award that is not its sender's")
        return []
    if entry is None:
        state.ignore("sale", "an award of no bid that is known")
        # Its buyer holds others back for it: it need not wait until the time to confirm is over.
        refusal = messages.LeaseRefused(
            lease=digest(DOMAIN, award), kind="unknown-bid", reason="no bid of that name is known here"
        )
        return [Send(to=event.sender, message=refusal, keep_until_ms=event.at_ms + CONFIRM_MS)]
    channel = state.earning.get(award.channel_id)
    news = sale_events.AwardArrived(
        award=award,
        channel=message.channel,
        workload=message.workload,
        channel_closed=_is_spent(channel) if channel is not None else not _is_new(entry, message.channel),
        at_ms=event.at_ms,
    )
    return advance_sale(state, award.bid, news)


def _is_spent(channel: EarningChannel) -> bool:
    """Whether a channel is over for good. None opens again: its receipts would be numbered anew."""
    return channel.phase == "closed"


def _is_new(entry: Sale, config: ChannelConfig) -> bool:
    """Whether a channel that is not known here can never have been: its salt follows from the tender at hand.

    Channels that ended are forgotten some day. One that came back would write entries whose ids the ledger has.
    """
    salts = (channel_salt(entry.bid.tender, entry.bid.signer, failed) for failed in range(MOST_CHANNELS))
    return config.salt in salts


def _hear_release(state: NodeState, event: MessageArrived) -> Effects:
    message: messages.BidReleased = event.message  # type: ignore[assignment]
    entry = state.sales.get(message.bid)
    if entry is None or entry.buyer != event.sender:
        state.ignore("sale", "a release of a bid that was not made to the sender")
        return []
    return advance_sale(state, message.bid, sale_events.BidLost(reason=message.reason, at_ms=event.at_ms))


def _hear_on_channel(state: NodeState, event: MessageArrived) -> Effects:
    message = event.message
    news: Any
    match message:
        case messages.VoucherSent(voucher=voucher):
            key, news = voucher.document.channel_id, earning_channel.VoucherArrived(voucher=voucher, at_ms=event.at_ms)
        case messages.CloseProposed(close=close):
            key, news = close.document.channel_id, earning_channel.CloseProposalArrived(close=close, at_ms=event.at_ms)
        case messages.ReceiptRefused(channel_id=key, seq=seq, reason=reason):
            news = earning_channel.RefusalArrived(seq=seq, reason=reason, at_ms=event.at_ms)
        case messages.ReceiptDisputed(channel_id=key, seq=seq, payable=payable, reason=reason):
            news = earning_channel.RefusalArrived(seq=seq, reason=reason, payable=payable, at_ms=event.at_ms)
        case _:
            raise AssertionError("only messages about channels come here")
    channel = state.earning.get(key)
    if channel is None or channel.config.payer_signer != event.sender:
        state.ignore("earning_channel", "news of a channel that is not the sender's")
        return []
    return advance_channel(state, key, news)


HEARD: dict[type, Callable[[NodeState, MessageArrived], Effects]] = {
    messages.TenderSent: answer_tender,
    messages.AwardSent: _hear_award,
    messages.BidReleased: _hear_release,
    messages.LeaseCancelled: _of_buyer(_hear_of_lease),
    messages.RunOrdered: _of_buyer(_hear_of_lease),
    messages.RunStopOrdered: _of_buyer(_hear_of_lease),
    messages.DeliveryAccepted: _of_buyer(_hear_of_lease),
    messages.PenaltyReleased: _of_buyer(_hear_of_lease),
    messages.RoundPublished: _of_buyer(_hear_round),
    messages.MirrorWanted: _of_buyer(mirroring.hear),
    messages.MirrorReleased: _of_buyer(mirroring.hear),
    messages.CheckpointGranted: _of_buyer(mirroring.hear),
    messages.VoucherSent: _hear_on_channel,
    messages.ReceiptRefused: _hear_on_channel,
    messages.ReceiptDisputed: _hear_on_channel,
    messages.CloseProposed: _hear_on_channel,
}
"""What a provider hears, and who listens."""


# Time, and what is done again after a restart.


def deadlines_ms(state: NodeState) -> Iterator[int]:
    """When each of the provider's machines next wants to be woken."""
    for entry in state.sales.live.values():
        if (at_ms := sale.deadline_ms(entry)) is not None:
            yield at_ms


def pass_time(state: NodeState, at_ms: int) -> Effects:
    """Wake every machine whose deadline has come."""
    effects: Effects = []
    for key, entry in list(state.sales.live.items()):
        if (due_ms := sale.deadline_ms(entry)) is not None and due_ms <= at_ms:
            effects += advance_sale(state, key, sale_events.TimePassed(at_ms=at_ms))
    return effects


def restart(state: NodeState, at_ms: int) -> Effects:
    """Every sandbox died with the daemon: its run starts again or ends. What waits for a buyer is said again."""
    effects: Effects = mirroring.restart(state, at_ms)
    for lease, current in list(state.runs.live.items()):
        # Before its end is told, if that comes of it now: the shard goes on from there.
        effects += tell_checkpoint(state, current, at_ms)
        effects += advance_run(state, run.RunLost(run=lease, at_ms=at_ms))
        effects += advance_sale(state, state.sale_of[lease], sale_events.RunInterrupted(at_ms=state.before_ms))
        entry = state.sale_on(lease)
        if entry is not None and entry.phase == "running" and entry.paused_ms:
            effects.append(sale_events.PauseWanted(lease=lease))
    for _, entry in list(state.sales.all()):
        effects += sale.outstanding(entry)
        ended = state.runs.get(entry.lease)
        if entry.phase == "delivering" and ended is not None:
            keep_until_ms = entry.over_ms + sale.DELIVERY_MS
            effects += [
                Send(
                    to=entry.buyer,
                    message=messages.OutputStored(lease=entry.lease, path=result.path, blob=result.blob),
                    keep_until_ms=keep_until_ms,
                )
                for result in ended.outputs
            ]
    for _, channel in state.earning.all():
        effects += earning_channel.outstanding(channel, at_ms)
    return effects


def reminders(state: NodeState, at_ms: int) -> Effects:
    """Receipts that have waited for their voucher for long: one of the two may have been given up on the way."""
    return [
        effect
        for channel in state.earning.live.values()
        if channel.out is not None and at_ms > channel.out.receipt.period_end_ms + OVERDUE_MS
        for effect in earning_channel.outstanding(channel, at_ms)
    ]
