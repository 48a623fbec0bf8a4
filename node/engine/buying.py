"""The buyer's rooms: what it is told by its user and by providers, and what it does when time passes.

How its machines turn is in ``hansa.node.engine.buying_turns``.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hansa.market import paying_channel, purchase, purchase_events
from hansa.market.effects import Send
from hansa.market.ledger import vouched_to
from hansa.market.mutual import Mutual
from hansa.market.pricing import ITSELF
from hansa.market.purchase_state import Placement, Purchase
from hansa.market.receipts import Statement
from hansa.market.sale_funding import STARVING_MS, UNFUNDED, enough_to_start
from hansa.market.want_of_credit import contradiction
from hansa.node.engine import mutual_credit
from hansa.node.engine.buying_turns import (
    MOST_AT_ONCE,
    advance_channel,
    advance_job,
    advance_purchase,
    advance_rounds,
    credit_for,
    end_metering,
    follow,
    follow_purchase,
    funds_left,
    placement_of,
)
from hansa.node.engine.events import (
    BlobFetched,
    BlobNotFetched,
    JobCancelled,
    JobSubmitted,
    JobToppedUp,
    MessageArrived,
    RoundNotReduced,
    RoundReduced,
    TenderPrepared,
    TenderUndelivered,
)
from hansa.node.engine.lines import company_of, lines_to, pace_of
from hansa.node.engine.speeds import trials_of
from hansa.node.engine.standings import records_for
from hansa.node.engine.state import NodeState
from hansa.proto import messages
from hansa.proto.currency import currency_of
from hansa.proto.network import DOMAIN
from hansa.proto.sealed import weight_bytes
from hansa.proto.typed_data import digest
from hansa.scheduler import job, job_events, rounds
from hansa.scheduler.job_mirrors import MirrorAnswered
from hansa.scheduler.job_state import Job
from hansa.scheduler.rounds import Rounds

Effects = list[Any]

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
    return follow(state, event.job, step.effects)


def cancel(state: NodeState, event: JobCancelled) -> Effects:
    """The user wants a job to end."""
    return advance_job(state, event.job, job_events.CancelWanted(reason=event.reason, at_ms=event.at_ms))


def top_up(state: NodeState, event: JobToppedUp) -> Effects:
    """The user lets a job cost more, or has filled the wallet."""
    return advance_job(state, event.job, job_events.BudgetRaised(amount=event.amount, at_ms=event.at_ms))


def open_tender(state: NodeState, event: TenderPrepared) -> Effects:
    """A tender was written for a job that waits for it."""
    of = state.jobs.live.get(event.tender.job)
    tender_digest = digest(DOMAIN, event.tender)
    if of is None or state.purchases.get(tender_digest) is not None:
        state.ignore("purchase", "a tender for no job that waits")
        return []
    # On the ledger a node can only run up debts of its own.
    payer = state.payer if currency_of(event.tender.currency).is_on_chain else ITSELF
    channels = {
        channel.config.payee_signer: channel.config
        for channel in state.paying.live.values()
        if channel.phase == "open"
        and not channel.refused
        and len(channel.terms) < MOST_LEASES
        and channel.currency == event.tender.currency
        and channel.config.payer == (state.account if payer == ITSELF else payer)
    }
    workload = of.spec.workload(of.job, of.package, of.files)
    pace = pace_of(state, workload, of.spec)
    begun = Purchase(
        tender=event.tender,
        tender_digest=tender_digest,
        workload=workload,
        funds=funds_left(state, of),
        max_prepay_ms=of.spec.max_prepay_ms,
        invited=event.invited,
        payer=payer,
        channels=channels,
        records=records_for(state, event.invited, currency=event.tender.currency, at_ms=event.at_ms),
        trials=trials_of(state, workload),
        lines=lines_to(state, event.invited),
        pace=pace,
        company=company_of(state, of, event.tender.shards, pace, event.at_ms),
        most_each=of.spec.most_each,
        only_bids=of.spec.only_bids,
        elsewhere=_had_elsewhere(of, event.tender.shards),
    )
    step = purchase.open_purchase(begun, event.at_ms)
    state.begin("purchase", state.purchases, tender_digest, step.state)
    return follow_purchase(state, tender_digest, step.effects)


def note_undelivered(state: NodeState, event: TenderUndelivered) -> Effects:
    """Somebody who was invited never got the tender: that is another thing than to be silent."""
    bought = state.purchases.get(event.tender)
    if bought is None or event.provider not in bought.silent:
        state.ignore("purchase", "a tender that was not delivered to nobody who is waited for")
        return []
    state.purchases[event.tender] = replace(bought, undelivered={**bought.undelivered, event.provider: event.why})
    return []


def _had_elsewhere(of: Job, shards: Sequence[int]) -> dict[bytes, int]:
    """How many of a job's other shards each provider has, where a job limits that."""
    if not of.spec.most_each:
        return {}
    alive = (shard.provider for shard in of.shards if of.on(shard.lease) is shard and shard.shard not in shards)
    return dict(Counter(alive))


def take_blob(state: NodeState, event: BlobFetched | BlobNotFetched) -> Effects:
    """A checkpoint or an output is here, or could not be had."""
    news: Any = job_events.BlobArrived(lease=event.lease, blob=event.blob, at_ms=event.at_ms)
    if isinstance(event, BlobNotFetched):
        news = job_events.BlobMissed(lease=event.lease, blob=event.blob, refusal=event.refusal, at_ms=event.at_ms)
    return advance_job(state, event.job, news)


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
        return advance_rounds(state, event.job, news)
    current = state.rounds.live.get(event.job)
    news = rounds.ReductionFailed(round=event.round, rejected=event.rejected, at_ms=event.at_ms)
    effects = advance_rounds(state, event.job, news)
    if event.unsound and current is not None and current.phase == "reducing" and event.round == current.published + 1:
        reasons = sorted({entry.reason for entry in event.rejected})
        unsound = job_events.RoundUnsound(round=event.round, reason="; ".join(reasons)[:1_000], at_ms=event.at_ms)
        effects += advance_job(state, event.job, unsound)
    return effects


# What providers say. The sender is proven; whether it may say this is asked here.


def _hear_bid(state: NodeState, event: MessageArrived) -> Effects:
    message: messages.BidSent = event.message  # type: ignore[assignment]
    bid = message.bid.document
    if bid.signer != event.sender:
        state.ignore("purchase", "a bid that is not its sender's")
        return []
    return advance_purchase(state, bid.tender, purchase_events.BidArrived(bid=message.bid, at_ms=event.at_ms))


def _hear_decline(state: NodeState, event: MessageArrived) -> Effects:
    message: messages.DeclineSent = event.message  # type: ignore[assignment]
    decline = message.decline.document
    if decline.signer != event.sender:
        state.ignore("purchase", "a decline that is not its sender's")
        return []
    news = purchase_events.DeclineArrived(decline=message.decline, at_ms=event.at_ms)
    return advance_purchase(state, decline.tender, news)


def _of_provider(
    machine: str, react: Callable[[NodeState, MessageArrived, Purchase, Placement], Effects]
) -> Callable[[NodeState, MessageArrived], Effects]:
    """Only the provider of a lease is heard about it."""

    def hear(state: NodeState, event: MessageArrived) -> Effects:
        bought = state.purchase_on(event.message.lease)  # type: ignore[union-attr]
        placement = placement_of(bought, event.message.lease)  # type: ignore[union-attr]
        if bought is None or placement is None or placement.provider != event.sender:
            state.ignore(machine, "news of a lease that is not the sender's")
            return []
        return react(state, event, bought, placement)

    return hear


def _confirmed(state: NodeState, event: MessageArrived, bought: Purchase, placement: Placement) -> Effects:
    news = purchase_events.ConfirmationArrived(lease=placement.lease, at_ms=event.at_ms)
    return advance_purchase(state, bought.tender_digest, news)


def _refused(state: NodeState, event: MessageArrived, bought: Purchase, placement: Placement) -> Effects:
    said: messages.LeaseRefused = event.message  # type: ignore[assignment]
    news = purchase_events.RefusalOfLeaseArrived(
        lease=placement.lease, kind=said.kind, reason=said.reason, at_ms=event.at_ms
    )
    return advance_purchase(state, bought.tender_digest, news)


def _hear_of_run(state: NodeState, event: MessageArrived, bought: Purchase, placement: Placement) -> Effects:
    at_ms = event.at_ms
    if placement.phase in ("failed", "ended"):
        state.ignore("job", "news of a lease that is over")
        return _say_it_is_over(event)
    effects: Effects = []
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
        case messages.RunKept() as kept:
            news = job_events.KeepingArrived(
                lease=kept.lease, kind=kept.kind, reason=kept.reason, until_ms=kept.until_ms, at_ms=at_ms
            )
        case messages.LeaseReclaimed(lease=lease, by_ms=by_ms, reason=reason):
            news = job_events.ReclaimArrived(lease=lease, by_ms=by_ms, reason=reason, at_ms=at_ms)
        case messages.RunEnded() as end:
            if end.line is not None:
                effects += mutual_credit.take_line(state, end.line, event.sender, at_ms)
            news = job_events.RunEndArrived(
                lease=end.lease,
                outcome=end.outcome,
                kind=_kind_of_end(state, event, bought, placement),
                reason=end.reason,
                outputs=end.outputs,
                at_ms=at_ms,
            )
    if isinstance(event.message, messages.RunKept | messages.RunEnded) and placement.phase == "confirmed":
        # By its provider's own word. The lease lives on until the run is looked at, or what it made is here.
        channel = state.paying.live.get(placement.award.channel_id)
        if channel is not None and placement.lease in channel.terms:
            effects += end_metering(state, placement, at_ms)
    effects += advance_job(state, bought.tender.job, news)
    return effects + (
        _try_again(state, bought, placement, at_ms) if isinstance(event.message, messages.RunEnded) else []
    )


def _kind_of_end(state: NodeState, event: MessageArrived, bought: Purchase, placement: Placement) -> str:
    """A provider that says it had no money, against its own signed words, did not do what it had promised."""
    end: messages.RunEnded = event.message  # type: ignore[assignment]
    channel = state.paying.get(placement.award.channel_id)
    if end.kind != UNFUNDED or channel is None:
        return end.kind
    why = contradiction(
        end,
        channel,
        state.mutual.get(placement.provider, Mutual()),
        vouched=vouched_to(state.ledger, channel.config.payee),
        paid_ahead=bought.bids[placement.bid].prepay > 0,
        awarded_ms=mutual_credit.awarded_ms(placement),
        start=enough_to_start(bought.bids[placement.bid]),
        starts=mutual_credit.starts_with(state, placement.provider),
        by_ms=_waited_until_ms(state, bought, placement, event.at_ms),
        at_ms=event.at_ms,
    )
    return "refused" if why else end.kind


def _waited_until_ms(state: NodeState, bought: Purchase, placement: Placement, at_ms: int) -> int:
    """Until when a provider waited for money at least: for the start, or before it ended a run that lived not long ago.

    The word of the end may be long on its way, so it is the last sign of life that counts, and not when the word came.
    """
    of = state.jobs.live.get(bought.tender.job)
    shard = of.on(placement.lease) if of is not None else None
    if shard is None or shard.phase not in ("running", "kept"):
        return placement.award.start_by_ms
    return max(placement.award.start_by_ms, min(at_ms, shard.heard_ms) - STARVING_MS)


def _try_again(state: NodeState, bought: Purchase, placement: Placement, at_ms: int) -> Effects:
    """A lease ended for want of money that is here by now: its shard looks for a provider at once, some times."""
    channel, of = state.paying.get(placement.award.channel_id), state.jobs.live.get(bought.tender.job)
    shard = of.shards[placement.shard] if of is not None else None
    if channel is None or shard is None or not shard.short or shard.attempts > MOST_AT_ONCE:
        return []
    if currency_of(channel.currency).is_on_chain:
        enough = channel.able_ms > 0
    else:
        credit = credit_for(state, channel, at_ms)
        enough = credit is not None and credit - channel.metered >= enough_to_start(bought.bids[placement.bid])
    if not enough:
        return []
    return advance_job(state, bought.tender.job, job_events.BudgetRaised(amount=0, at_ms=at_ms))


def _hear_mirror(state: NodeState, event: MessageArrived, bought: Purchase, placement: Placement) -> Effects:
    message: messages.MirrorHeld | messages.MirrorRefused = event.message  # type: ignore[assignment]
    news = MirrorAnswered(
        lease=placement.lease,
        shard=message.shard,
        checkpoint=message.checkpoint,
        refusal=(message.reason or "it does not say why") if isinstance(message, messages.MirrorRefused) else "",
        at_ms=event.at_ms,
    )
    return advance_job(state, bought.tender.job, news)


def _published(state: NodeState, key: bytes) -> int:
    current = state.rounds.get(key)
    return current.published if current else 0


def _say_it_is_over(event: MessageArrived) -> Effects:
    """A provider that still works, or waits, for a lease that is over did not get the word: it may have been lost."""
    message = event.message
    if not isinstance(message, messages.RunReported | messages.RunKept | messages.LeaseReclaimed | messages.RunEnded):
        return []
    stop = messages.RunStopOrdered(lease=message.lease, reason="the lease is over")
    keep_until_ms = event.at_ms + STOP_KEEP_MS
    return [Send(to=event.sender, message=stop, keep_until_ms=keep_until_ms, replaces=f"stop {message.lease.hex()}")]


def _hear_contribution(state: NodeState, event: MessageArrived, bought: Purchase, _: Placement) -> Effects:
    message: messages.RoundContributed = event.message  # type: ignore[assignment]
    of = state.jobs.live.get(bought.tender.job)
    if of is None or weight_bytes(message.state, of.spec.requirements) > of.spec.state_bytes:
        state.ignore("rounds", "a state over the job's limit, or of a job that is over")
        return []
    news = rounds.ContributionArrived(
        lease=message.lease,
        round=message.round,
        weight_milli=message.weight_milli,
        state=message.state,
        at_ms=event.at_ms,
    )
    return advance_rounds(state, of.job, news)


def _hear_receipt(state: NodeState, event: MessageArrived) -> Effects:
    message: messages.ReceiptSent = event.message  # type: ignore[assignment]
    key = message.receipt.document.channel_id
    channel = state.paying.get(key)
    if channel is None or channel.config.payee_signer != event.sender:
        state.ignore("paying_channel", "a receipt of a channel that is not the sender's")
        return []
    statement = Statement(receipt=message.receipt.document, lines=message.lines, evidence=message.evidence)
    news = paying_channel.ReceiptArrived(statement=statement, signature=message.receipt.signature, at_ms=event.at_ms)
    return advance_channel(state, key, news)


def _hear_close(state: NodeState, event: MessageArrived) -> Effects:
    message: messages.CloseAccepted = event.message  # type: ignore[assignment]
    key = message.close.document.channel_id
    channel = state.paying.get(key)
    if channel is None or channel.config.payee_signer != event.sender:
        state.ignore("paying_channel", "a close of a channel that is not the sender's")
        return []
    news = paying_channel.CloseAcceptanceArrived(close=message.close, at_ms=event.at_ms)
    effects = advance_channel(state, key, news)
    if key not in state.paying.live:
        for tender, bought in state.purchases.live.items():
            if channel.config in bought.channels.values():
                # It never opens again: who gathers on it takes another.
                left = {account: config for account, config in bought.channels.items() if config != channel.config}
                state.purchases.live[tender] = replace(bought, channels=left)
    return effects


HEARD: dict[type, Callable[[NodeState, MessageArrived], Effects]] = {
    messages.BidSent: _hear_bid,
    messages.DeclineSent: _hear_decline,
    messages.LeaseConfirmed: _of_provider("purchase", _confirmed),
    messages.LeaseRefused: _of_provider("purchase", _refused),
    messages.RunReported: _of_provider("job", _hear_of_run),
    messages.CheckpointStored: _of_provider("job", _hear_of_run),
    messages.MirrorHeld: _of_provider("job", _hear_mirror),
    messages.MirrorRefused: _of_provider("job", _hear_mirror),
    messages.OutputStored: _of_provider("job", _hear_of_run),
    messages.RunKept: _of_provider("job", _hear_of_run),
    messages.LeaseReclaimed: _of_provider("job", _hear_of_run),
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
    passed = purchase_events.TimePassed(at_ms=at_ms, last_heard_ms=state.last_heard_ms)
    for key, machine in list(state.jobs.live.items()):
        if (due_ms := job.deadline_ms(machine)) is not None and due_ms <= at_ms:
            effects += advance_job(state, key, job_events.TimePassed(at_ms=at_ms))
    for key, bought in list(state.purchases.live.items()):
        if (due_ms := purchase.deadline_ms(bought)) is not None and due_ms <= at_ms:
            effects += advance_purchase(state, key, passed)
    for key, current in list(state.rounds.live.items()):
        if (due_ms := rounds.deadline_ms(current)) is not None and due_ms <= at_ms:
            effects += advance_rounds(state, key, rounds.TimePassed(at_ms=at_ms))
    return effects


def reminders(state: NodeState, at_ms: int) -> Effects:
    """Ends of channels that the provider has not agreed to yet, and funds that are still lacking."""
    return [
        effect
        for channel in state.paying.live.values()
        if channel.phase == "closing" or (channel.limit is not None and channel.limit < channel.wanted)
        for effect in paying_channel.outstanding(channel, at_ms)
    ]


def restart(state: NodeState, at_ms: int) -> Effects:
    """Everything that waits for somebody else is said again, and silence until now was our own."""
    effects: Effects = []
    for key, machine in list(state.jobs.all()):
        if machine.phase == "running":
            effects += advance_job(state, key, job_events.Restarted(at_ms=at_ms))
        current = state.jobs.get(key)
        assert current is not None
        effects += job.outstanding(current, at_ms)
        effects += _missing_tenders(state, current, at_ms)
    for tender, bought in list(state.purchases.live.items()):
        if bought.phase == "awarding":
            effects += advance_purchase(state, tender, purchase_events.Restarted(at_ms=at_ms))
    for _, bought in state.purchases.all():
        effects += purchase.outstanding(bought, at_ms)
    for _, current_round in state.rounds.all():
        effects += rounds.outstanding(current_round, at_ms)
    for _, channel in state.paying.all():
        effects += [*paying_channel.outstanding(channel, at_ms), *paying_channel.releases(channel)]
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
    waiting = [shard for shard in of.shards if shard.phase == "waiting" and not shard.retry_ms and not shard.short]
    missing = [shard for shard in waiting if shard.shard not in tendered]
    if of.phase == "gathering":
        numbers = tuple(shard.shard for shard in missing)
        return [job_events.TenderWanted(job=of.job, shards=numbers, attempt=0, at_ms=at_ms)] if numbers else []
    return [
        job_events.TenderWanted(job=of.job, shards=(shard.shard,), attempt=shard.attempts, at_ms=at_ms)
        for shard in missing
    ]
