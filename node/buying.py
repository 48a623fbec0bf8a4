"""The buyer's rooms: jobs, their tenders, their rounds, and the channels that pay."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from hansa.market import paying_channel, purchase
from hansa.market.effects import Send
from hansa.market.paying_channel import PayingChannel
from hansa.market.purchase import Placement, Purchase
from hansa.market.receipts import LeaseTerms, Statement
from hansa.market.selection import Record
from hansa.node.events import (
    BlobFetched,
    JobCancelled,
    JobSubmitted,
    MessageArrived,
    RoundNotReduced,
    RoundReduced,
    TenderPrepared,
)
from hansa.node.state import NodeState
from hansa.proto import messages
from hansa.proto.documents import channel_id
from hansa.proto.network import DOMAIN, currency_id
from hansa.proto.typed_data import digest
from hansa.scheduler import job, job_events, rounds
from hansa.scheduler.job import Job
from hansa.scheduler.job_events import Granted
from hansa.scheduler.rounds import Rounds

Effects = list[Any]

GATHERS = ("tendering", "awarding")
"""Phases in which a purchase may still promise money."""
MOST_LEASES = 256
"""A channel that had so many leases gets no more: its receipts carry a line for each."""
STOP_KEEP_MS = 60_000


def submit(state: NodeState, event: JobSubmitted) -> Effects:
    """A new job: its machine, its rounds, its first tender."""
    if state.jobs.get(event.job) is not None:
        state.ignore("job", "a job that is known")
        return []
    step = job.plan(job=event.job, spec=event.spec, package=event.package, files=event.files, at_ms=event.at_ms)
    state.begin("job", state.jobs, event.job, step.state)
    state.rounds[event.job] = Rounds(job=event.job, shards=event.spec.shards, timeout_ms=event.spec.round_timeout_ms)
    return _follow(state, event.job, step.effects)


def cancel(state: NodeState, event: JobCancelled) -> Effects:
    """The user wants a job to end."""
    return _advance_job(state, event.job, job_events.CancelWanted(reason=event.reason, at_ms=event.at_ms))


def funds_left(state: NodeState, of: Job, *, besides: bytes = b"") -> int:
    """What is left of a job's budget: what is spent is gone, and a lease that may still cost something costs its most.

    Args:
        state: the node's.
        of: the job.
        besides: the tender whose own awards are not counted, since it is the one that asks.
    """
    left = of.spec.budget - state.ledger.balance(f"spend:{of.job.hex()}")
    for channel in state.paying.live.values():
        for lease, terms in channel.terms.items():
            if terms.job == of.job:
                left -= terms.most - channel.vouched(lease)
    for tender, bought in state.purchases.live.items():
        if bought.tender.job == of.job and tender != besides and bought.phase in GATHERS:
            left -= sum(bought.bids[placement.bid].max_total for placement in bought.live)
    return max(0, left)


def open_tender(state: NodeState, event: TenderPrepared) -> Effects:
    """A tender was written for a job that waits for it."""
    of = state.jobs.live.get(event.tender.job)
    tender_digest = digest(DOMAIN, event.tender)
    if of is None or state.purchases.get(tender_digest) is not None:
        state.ignore("purchase", "a tender for no job that waits")
        return []
    channels = {
        channel.config.payee: channel.config
        for channel in state.paying.live.values()
        if channel.phase == "open"
        and not channel.refused
        and len(channel.terms) < MOST_LEASES
        and channel.config.token == currency_id(event.tender.currency)
    }
    begun = Purchase(
        tender=event.tender,
        tender_digest=tender_digest,
        workload=of.spec.workload(of.job, of.package, of.files),
        funds=funds_left(state, of),
        invited=event.invited,
        channels=channels,
        records={account: state.records[account] for account in event.invited if account in state.records},
    )
    step = purchase.open_purchase(begun, event.at_ms)
    state.begin("purchase", state.purchases, tender_digest, step.state)
    return _follow_purchase(state, tender_digest, step.effects)


def take_blob(state: NodeState, event: BlobFetched) -> Effects:
    """A checkpoint or an output is here."""
    news = job_events.BlobArrived(lease=event.lease, blob=event.blob, at_ms=event.at_ms)
    return _advance_job(state, event.job, news)


def take_reduction(state: NodeState, event: RoundReduced | RoundNotReduced) -> Effects:
    """A round's states were averaged, or could not be."""
    news: Any
    if isinstance(event, RoundReduced):
        news = rounds.Reduced(
            round=event.round,
            state=event.state,
            accepted=event.accepted,
            rejected=event.rejected,
            at_ms=event.at_ms,
        )
        return _advance_rounds(state, event.job, news)
    current = state.rounds.live.get(event.job)
    news = rounds.ReductionFailed(round=event.round, rejected=event.rejected, at_ms=event.at_ms)
    effects = _advance_rounds(state, event.job, news)
    if event.unsound and current is not None and current.phase == "reducing" and event.round == current.published + 1:
        reasons = sorted({entry.reason for entry in event.rejected})
        unsound = job_events.RoundUnsound(round=event.round, reason="; ".join(reasons)[:1_000], at_ms=event.at_ms)
        effects += _advance_job(state, event.job, unsound)
    return effects


# How machines hear events, and where their effects go.


def _advance_job(state: NodeState, key: bytes, event: Any) -> Effects:
    return _follow(state, key, state.turn("job", state.jobs, key, job.advance, event))


def _advance_rounds(state: NodeState, key: bytes, event: Any) -> Effects:
    return list(state.turn("rounds", state.rounds, key, rounds.advance, event))


def _advance_purchase(state: NodeState, key: bytes, event: Any) -> Effects:
    bought = state.purchases.get(key)
    if bought is None:
        state.ignore("purchase", "news of no tender of ours")
        return []
    of = state.jobs.get(bought.tender.job)
    if of is not None and bought.phase in GATHERS:
        # What was left when the tender went out may since have gone to another shard of the same job.
        bought = replace(bought, funds=funds_left(state, of, besides=key))
        state.purchases[key] = bought
    effects = state.turn("purchase", state.purchases, key, purchase.advance, event)
    return _follow_purchase(state, key, effects)


def _advance_channel(state: NodeState, key: bytes, event: Any) -> Effects:
    effects = state.turn("paying_channel", state.paying, key, paying_channel.advance, event)
    return [effect for effect in effects if not isinstance(effect, paying_channel.Vouched)]


def _follow(state: NodeState, key: bytes, effects: tuple[Any, ...]) -> Effects:
    """A job's effects: some are news for its other machines, the rest are orders to the world."""
    outward: Effects = []
    for effect in effects:
        match effect:
            case rounds.MemberJoined() | rounds.MemberLeft():
                outward += _advance_rounds(state, key, effect)
            case job_events.JobOver():
                outward += _advance_rounds(state, key, rounds.JobEnded())
            case job_events.LeaseOver():
                outward += _end_lease(state, effect)
            case job_events.TendersUnwanted(reason=reason, at_ms=at_ms):
                for tender, bought in list(state.purchases.live.items()):
                    if bought.tender.job == key:
                        outward += _advance_purchase(state, tender, purchase.Withdrawn(reason=reason, at_ms=at_ms))
            case _:
                outward.append(effect)
    return outward


def _follow_purchase(state: NodeState, key: bytes, effects: tuple[Any, ...]) -> Effects:
    bought = state.purchases.get(key)
    assert bought is not None, "a purchase gave these orders"
    for placement in bought.placements:
        state.placed[placement.lease] = bought.tender_digest
    outward: Effects = []
    for effect in effects:
        match effect:
            case purchase.Gathered(placements=placements, at_ms=at_ms):
                for placement in placements:
                    outward += _open_channel(state, bought, placement, at_ms)
                granted = tuple(
                    Granted(shard=entry.shard, lease=entry.lease, provider=entry.provider, ends_ms=entry.award.ends_ms)
                    for entry in placements
                )
                outward += _advance_job(state, bought.tender.job, job_events.GangCame(granted=granted, at_ms=at_ms))
            case purchase.Unfilled(reason=reason, deserted=deserted, at_ms=at_ms):
                news = job_events.TenderFailed(
                    shards=bought.tender.shards, reason=reason, deserted=deserted, at_ms=at_ms
                )
                outward += _advance_job(state, bought.tender.job, news)
            case _:
                outward.append(effect)
    if bought.phase in ("unfilled", "cancelled"):
        outward += _close_idle_channels(state, state.at_ms)
    return outward


def _open_channel(state: NodeState, bought: Purchase, placement: Placement, at_ms: int) -> Effects:
    key, bid = placement.award.channel_id, bought.bids[placement.bid]
    if state.paying.get(key) is None:
        state.paying[key] = PayingChannel(config=placement.channel, channel_id=key)
    terms = LeaseTerms(
        lease=placement.lease,
        job=bought.tender.job,
        shard=placement.shard,
        devices=bid.devices,
        price_e18_per_device_ms=bid.price_e18_per_device_ms,
        max_total=bid.max_total,
        begins_ms=at_ms,
        ends_ms=placement.award.ends_ms,
    )
    return [
        *_advance_channel(state, key, paying_channel.ChannelConfirmed()),
        *_advance_channel(state, key, paying_channel.LeaseOpened(terms=terms)),
    ]


def _end_lease(state: NodeState, over: job_events.LeaseOver) -> Effects:
    """Nothing more runs under a lease: remember how it went, pay for nothing later, and close a channel left idle."""
    bought = state.purchase_on(over.lease)
    placement = _placement(bought, over.lease)
    if bought is None or placement is None or placement.phase != "confirmed":
        return []
    record = state.records.get(placement.provider, Record())
    state.records[placement.provider] = (
        replace(record, good=record.good + 1) if over.well else replace(record, bad=record.bad + 1)
    )
    ended = purchase.LeaseEnded(lease=over.lease, well=over.well, at_ms=over.at_ms)
    effects = _advance_purchase(state, bought.tender_digest, ended)
    key = placement.award.channel_id
    channel = state.paying.live.get(key)
    assert channel is not None, "a channel ended before its leases"
    terms = channel.terms[over.lease]
    shorter = replace(terms, ends_ms=min(terms.ends_ms, over.at_ms))
    effects += _advance_channel(state, key, paying_channel.LeaseOpened(terms=shorter))
    return effects + _close_idle_channels(state, over.at_ms)


def _close_idle_channels(state: NodeState, at_ms: int) -> Effects:
    """Close every channel on which no lease lives, and on which no purchase that still gathers could put one."""
    wanted = {
        channel_id(DOMAIN, config)
        for bought in state.purchases.live.values()
        if bought.phase in GATHERS
        for config in bought.channels.values()
    }
    effects: Effects = []
    for key, channel in list(state.paying.live.items()):
        idle = channel.phase == "open" and key not in wanted
        if idle and not any(_is_live(state, lease) for lease in channel.terms):
            effects += _advance_channel(state, key, paying_channel.CloseWanted(at_ms=at_ms))
    return effects


def _placement(bought: Purchase | None, lease: bytes) -> Placement | None:
    placements = bought.placements if bought else ()
    return next((entry for entry in placements if entry.lease == lease), None)


def _is_live(state: NodeState, lease: bytes) -> bool:
    placement = _placement(state.purchase_on(lease), lease)
    return placement is not None and placement.phase == "confirmed"


# What providers say. The sender is proven; whether it may say this is asked here.


def _hear_bid(state: NodeState, event: MessageArrived) -> Effects:
    message: messages.BidSent = event.message  # type: ignore[assignment]
    bid = message.bid.document
    if bid.signer != event.sender:
        state.ignore("purchase", "a bid that is not its sender's")
        return []
    return _advance_purchase(state, bid.tender, purchase.BidArrived(bid=message.bid, at_ms=event.at_ms))


def _hear_decline(state: NodeState, event: MessageArrived) -> Effects:
    message: messages.DeclineSent = event.message  # type: ignore[assignment]
    decline = message.decline.document
    if decline.signer != event.sender:
        state.ignore("purchase", "a decline that is not its sender's")
        return []
    news = purchase.DeclineArrived(decline=message.decline, at_ms=event.at_ms)
    return _advance_purchase(state, decline.tender, news)


def _of_provider(
    machine: str, react: Callable[[NodeState, MessageArrived, Purchase, Placement], Effects]
) -> Callable[[NodeState, MessageArrived], Effects]:
    """Only the provider of a lease is heard about it."""

    def hear(state: NodeState, event: MessageArrived) -> Effects:
        bought = state.purchase_on(event.message.lease)  # type: ignore[union-attr]
        placement = _placement(bought, event.message.lease)  # type: ignore[union-attr]
        if bought is None or placement is None or placement.provider != event.sender:
            state.ignore(machine, "news of a lease that is not the sender's")
            return []
        return react(state, event, bought, placement)

    return hear


def _confirmed(state: NodeState, event: MessageArrived, bought: Purchase, placement: Placement) -> Effects:
    news = purchase.ConfirmationArrived(lease=placement.lease, at_ms=event.at_ms)
    return _advance_purchase(state, bought.tender_digest, news)


def _refused(state: NodeState, event: MessageArrived, bought: Purchase, placement: Placement) -> Effects:
    reason: str = event.message.reason  # type: ignore[union-attr]
    news = purchase.RefusalOfLeaseArrived(lease=placement.lease, reason=reason, at_ms=event.at_ms)
    return _advance_purchase(state, bought.tender_digest, news)


def _hear_of_run(state: NodeState, event: MessageArrived, bought: Purchase, placement: Placement) -> Effects:
    at_ms = event.at_ms
    if placement.phase in ("failed", "ended"):
        state.ignore("job", "news of a lease that is over")
        return _say_it_is_over(event)
    news: Any = None
    match event.message:
        case messages.RunReported(lease=lease, step=step, metrics=metrics, started=started):
            news = job_events.ReportArrived(lease=lease, step=step, metrics=metrics, started=started, at_ms=at_ms)
        case messages.CheckpointStored(round=number) if number > _published(state, bought.tender.job):
            state.ignore("job", "a checkpoint of a round that was not published")
            return []
        case messages.CheckpointStored(lease=lease, round=number, step=step, checkpoint=checkpoint):
            news = job_events.CheckpointAnnounced(
                lease=lease, round=number, step=step, checkpoint=checkpoint, at_ms=at_ms
            )
        case messages.OutputStored(lease=lease, path=path, blob=blob):
            news = job_events.OutputAnnounced(lease=lease, path=path, blob=blob, at_ms=at_ms)
        case messages.RunEnded() as end:
            news = job_events.RunEndArrived(
                lease=end.lease,
                outcome=end.outcome,
                kind=end.kind,
                reason=end.reason,
                outputs=end.outputs,
                at_ms=at_ms,
            )
    return _advance_job(state, bought.tender.job, news)


def _published(state: NodeState, key: bytes) -> int:
    current = state.rounds.get(key)
    return current.published if current else 0


def _say_it_is_over(event: MessageArrived) -> Effects:
    """A provider that still works, or waits, for a lease that is over did not get the word: it may have been lost."""
    message = event.message
    if not isinstance(message, messages.RunReported | messages.RunEnded):
        return []
    stop = messages.RunStopOrdered(lease=message.lease, reason="the lease is over")
    keep_until_ms = event.at_ms + STOP_KEEP_MS
    return [Send(to=event.sender, message=stop, keep_until_ms=keep_until_ms, replaces=f"stop {message.lease.hex()}")]


def _hear_contribution(state: NodeState, event: MessageArrived, bought: Purchase, _: Placement) -> Effects:
    message: messages.RoundContributed = event.message  # type: ignore[assignment]
    of = state.jobs.live.get(bought.tender.job)
    if of is None or message.state.size_bytes > of.spec.state_bytes:
        state.ignore("rounds", "a state over the job's limit, or of a job that is over")
        return []
    news = rounds.ContributionArrived(
        lease=message.lease,
        round=message.round,
        weight_milli=message.weight_milli,
        state=message.state,
        at_ms=event.at_ms,
    )
    return _advance_rounds(state, of.job, news)


def _hear_receipt(state: NodeState, event: MessageArrived) -> Effects:
    message: messages.ReceiptSent = event.message  # type: ignore[assignment]
    key = message.receipt.document.channel_id
    channel = state.paying.get(key)
    if channel is None or channel.config.payee != event.sender:
        state.ignore("paying_channel", "a receipt of a channel that is not the sender's")
        return []
    statement = Statement(receipt=message.receipt.document, lines=message.lines, evidence=message.evidence)
    news = paying_channel.ReceiptArrived(statement=statement, signature=message.receipt.signature, at_ms=event.at_ms)
    return _advance_channel(state, key, news)


def _hear_close(state: NodeState, event: MessageArrived) -> Effects:
    message: messages.CloseAccepted = event.message  # type: ignore[assignment]
    key = message.close.document.channel_id
    channel = state.paying.get(key)
    if channel is None or channel.config.payee != event.sender:
        state.ignore("paying_channel", "a close of a channel that is not the sender's")
        return []
    news = paying_channel.CloseAcceptanceArrived(close=message.close, at_ms=event.at_ms)
    return _advance_channel(state, key, news)


HEARD: dict[type, Callable[[NodeState, MessageArrived], Effects]] = {
    messages.BidSent: _hear_bid,
    messages.DeclineSent: _hear_decline,
    messages.LeaseConfirmed: _of_provider("purchase", _confirmed),
    messages.LeaseRefused: _of_provider("purchase", _refused),
    messages.RunReported: _of_provider("job", _hear_of_run),
    messages.CheckpointStored: _of_provider("job", _hear_of_run),
    messages.OutputStored: _of_provider("job", _hear_of_run),
    messages.RunEnded: _of_provider("job", _hear_of_run),
    messages.RoundContributed: _of_provider("rounds", _hear_contribution),
    messages.ReceiptSent: _hear_receipt,
    messages.CloseAccepted: _hear_close,
}
"""What a buyer hears, and who listens."""


# Time, and what is done again after a restart.


def deadlines_ms(state: NodeState) -> Iterator[int]:
    """When each of the buyer's machines next wants to be woken."""
    for machine in state.jobs.live.values():
        if (at_ms := job.deadline_ms(machine)) is not None:
            yield at_ms
    for bought in state.purchases.live.values():
        if (at_ms := purchase.deadline_ms(bought)) is not None:
            yield at_ms
    for current in state.rounds.live.values():
        if (at_ms := rounds.deadline_ms(current)) is not None:
            yield at_ms


def pass_time(state: NodeState, at_ms: int) -> Effects:
    """Wake every machine whose deadline has come."""
    effects: Effects = []
    for key, machine in list(state.jobs.live.items()):
        if (due_ms := job.deadline_ms(machine)) is not None and due_ms <= at_ms:
            effects += _advance_job(state, key, job_events.TimePassed(at_ms=at_ms))
    for key, bought in list(state.purchases.live.items()):
        if (due_ms := purchase.deadline_ms(bought)) is not None and due_ms <= at_ms:
            effects += _advance_purchase(state, key, purchase.TimePassed(at_ms=at_ms))
    for key, current in list(state.rounds.live.items()):
        if (due_ms := rounds.deadline_ms(current)) is not None and due_ms <= at_ms:
            effects += _advance_rounds(state, key, rounds.TimePassed(at_ms=at_ms))
    return effects


def reminders(state: NodeState, at_ms: int) -> Effects:
    """Ends of channels that the provider has not agreed to yet: it may have been away, or never heard."""
    return [
        effect
        for channel in state.paying.live.values()
        if channel.phase == "closing"
        for effect in paying_channel.outstanding(channel, at_ms)
    ]


def restart(state: NodeState, at_ms: int) -> Effects:
    """Everything that waits for somebody else is said again, and silence until now was our own."""
    effects: Effects = []
    for key, machine in list(state.jobs.all()):
        if machine.phase == "running":
            effects += _advance_job(state, key, job_events.Restarted(at_ms=at_ms))
        current = state.jobs.get(key)
        assert current is not None
        effects += job.outstanding(current, at_ms)
        effects += _missing_tenders(state, current, at_ms)
    for _, bought in state.purchases.all():
        effects += purchase.outstanding(bought, at_ms)
    for _, current_round in state.rounds.all():
        effects += rounds.outstanding(current_round, at_ms)
    for _, channel in state.paying.all():
        effects += paying_channel.outstanding(channel, at_ms)
    return effects


def _missing_tenders(state: NodeState, of: Job, at_ms: int) -> Effects:
    """Tenders that were wanted and never opened: the daemon ended between the two."""
    if of.phase not in ("gathering", "running"):
        return []
    tendered = {
        shard
        for bought in state.purchases.live.values()
        if bought.tender.job == of.job and bought.phase in ("tendering", "awarding")
        for shard in bought.tender.shards
    }
    waiting = [shard for shard in of.shards if shard.phase == "waiting" and not shard.retry_ms]
    missing = [shard for shard in waiting if shard.shard not in tendered]
    if of.phase == "gathering":
        numbers = tuple(shard.shard for shard in missing)
        return [job_events.TenderWanted(job=of.job, shards=numbers, attempt=0, at_ms=at_ms)] if numbers else []
    return [
        job_events.TenderWanted(job=of.job, shards=(shard.shard,), attempt=shard.attempts, at_ms=at_ms)
        for shard in missing
    ]
