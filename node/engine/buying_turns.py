"""The buyer's machines turn: how each hears an event, and where what it orders goes: to another of them, or outward.

A purchase's gang is the job's news and opens channels; the end of a lease is the purchase's and closes them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hansa.market import mutual, paying_channel, purchase, purchase_events
from hansa.market.firm_leases import is_believed
from hansa.market.funding import FundsKnown, start_ms
from hansa.market.ledger import owed_to
from hansa.market.paying_channel import PayingChannel
from hansa.market.purchase_state import ONLY_BIDS, Placement, Purchase
from hansa.market.receipts import LeaseTerms
from hansa.market.sale_funding import UNFUNDED
from hansa.market.shares import share_given
from hansa.market.track_record import Record
from hansa.node.engine.lines import note_round
from hansa.node.engine.speeds import note_speeds
from hansa.node.engine.state import NodeState
from hansa.proto.currency import currency_of
from hansa.proto.documents import channel_id
from hansa.scheduler import job, job_events, rounds
from hansa.scheduler.job_events import Granted
from hansa.scheduler.job_state import Job

Effects = list[Any]

MOST_AT_ONCE = 8
"""A shard that had more leases than this waits for word of money before it looks for another."""
GATHERS = ("tendering", "awarding")
"""Phases in which a purchase may still promise money."""


def funds_left(state: NodeState, of: Job, *, besides: bytes = b"") -> int:
    """What is left of a job's budget: what is spent is gone, and a lease that may still cost something costs its most.

    Args:
        state: the node's.
        of: the job.
        besides: the tender whose own awards are not counted, since it is the one that asks.
    """
    left = of.spec.budget - state.ledger.balance(f"spend:{of.job.hex()}")
    for channel in state.paying.live.values():
        ours = [(lease, terms) for lease, terms in channel.terms.items() if terms.job == of.job]
        left -= sum(_most(state, of, terms) - channel.vouched(lease) for lease, terms in ours)
        if ours:
            # What was paid ahead for leases that ended early comes back only when the channel closes, if ever.
            left -= max(0, channel.cumulative - channel.wanted)
    for channel in state.paying.ended.values():
        if channel.paid > channel.metered and any(terms.job == of.job for terms in channel.terms.values()):
            left -= channel.paid - channel.metered  # The provider kept what was paid ahead.
    for tender, bought in state.purchases.live.items():
        if bought.tender.job == of.job and tender != besides and bought.phase in GATHERS:
            left -= sum(bought.bids[placement.bid].max_total for placement in bought.live)
    return max(0, left)


def _most(state: NodeState, of: Job, terms: LeaseTerms) -> int:
    """The most that a lease may come to. Of a firm one that ended without the word its penalty never falls due.

    Unless its provider's word of how it ended may still be borne out by another's: then it does, however late.
    """
    may_be_borne_out = any(end.lease == terms.lease and end.counts for end in of.own_ends)
    if terms.released or may_be_borne_out or _is_live(state, terms.lease):
        return terms.most
    return max(0, terms.most - terms.penalty)


def advance_job(state: NodeState, key: bytes, event: Any) -> Effects:
    """A job hears an event. Answers what goes outward."""
    return follow(state, key, state.turn("job", state.jobs, key, job.advance, event))


def advance_rounds(state: NodeState, key: bytes, event: Any) -> Effects:
    """A job's rounds hear an event."""
    before = state.rounds.get(key)
    effects = state.turn("rounds", state.rounds, key, rounds.advance, event)
    note_round(state, before, state.rounds.get(key))
    return list(effects)


def advance_purchase(state: NodeState, key: bytes, event: Any) -> Effects:
    """A purchase hears an event, with what is left of its job's budget."""
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
    after = state.purchases.get(key)
    for provider in sorted(after.deserters - bought.deserters if after is not None else ()):
        # A bid costs its provider nothing; to win with it and not to come has to.
        record = state.records.get(provider, Record())
        state.records[provider] = replace(record, bad=record.bad + 1)
    return follow_purchase(state, key, effects)


def advance_channel(state: NodeState, key: bytes, event: Any) -> Effects:
    """A channel that pays hears an event."""
    before = state.paying.get(key)
    waiting = _left_to_those_that_wait(state, key)
    effects = state.turn("paying_channel", state.paying, key, paying_channel.advance, event)
    after = state.paying.get(key)
    if before is not None and after is not None and before.accepted != after.accepted:
        note_speeds(state, before.accepted, after.accepted)
    outward: Effects = [effect for effect in effects if not isinstance(effect, paying_channel.Vouched)]
    if isinstance(event, FundsKnown):
        for bought in list(state.purchases.live.values()):
            confirmed = tuple(entry for entry in bought.placements if entry.phase == "confirmed")
            waits = bought.phase == "running" and any(entry.award.channel_id == key for entry in confirmed)
            if waits and _is_funded(state, confirmed):
                leases = tuple(entry.lease for entry in confirmed)
                news = job_events.GangFunded(leases=leases, at_ms=event.at_ms)
                outward += advance_job(state, bought.tender.job, news)
    if key not in state.paying.live:
        for job_id, left in waiting.items():
            of = state.jobs.live.get(job_id)
            if of is not None and funds_left(state, of) > left:
                outward += advance_job(state, job_id, job_events.BudgetRaised(amount=0, at_ms=state.at_ms))
    return outward


def _left_to_those_that_wait(state: NodeState, key: bytes) -> dict[bytes, int]:
    """What is left to each job of a channel that waits for more of its budget: when it closes, that may be enough.

    One that had many leases for which no money came is left out, for it would go round without end.
    """
    channel = state.paying.live.get(key)
    left: dict[bytes, int] = {}
    for job_id in dict.fromkeys(terms.job for terms in channel.terms.values()) if channel is not None else ():
        of = state.jobs.live.get(job_id)
        if of is None or not of.missing:
            continue
        if not any(shard.short and shard.kind == UNFUNDED and shard.attempts > MOST_AT_ONCE for shard in of.shards):
            left[job_id] = funds_left(state, of)
    return left


def _is_funded(state: NodeState, placements: Sequence[Placement]) -> bool:
    """Whether the channels of all of these leases can pay what they may cost, as far as anybody limits them."""
    channels = [state.paying.get(entry.award.channel_id) for entry in placements]
    return all(channel is None or channel.limit is None or channel.limit >= channel.wanted for channel in channels)


def follow(state: NodeState, key: bytes, effects: tuple[Any, ...]) -> Effects:
    """A job's effects: some are news for its other machines, the rest are orders to the world."""
    outward: Effects = []
    for effect in effects:
        match effect:
            case rounds.MemberJoined() | rounds.MemberLeft():
                outward += advance_rounds(state, key, effect)
            case job_events.JobOver():
                outward += advance_rounds(state, key, rounds.JobEnded())
            case job_events.LeaseOver():
                outward += _end_lease(state, effect)
            case job_events.WordBorneOut():
                outward += _release_late(state, effect)
            case job_events.TendersUnwanted(reason=reason, at_ms=at_ms):
                for tender, bought in list(state.purchases.live.items()):
                    if bought.tender.job == key:
                        unwanted = purchase_events.Withdrawn(reason=reason, at_ms=at_ms)
                        outward += advance_purchase(state, tender, unwanted)
            case _:
                outward.append(effect)
    return outward


def follow_purchase(state: NodeState, key: bytes, effects: tuple[Any, ...]) -> Effects:
    """What a purchase ordered: its gang is news for the job, and opens channels."""
    bought = state.purchases.get(key)
    assert bought is not None, "a purchase gave these orders"
    for placement in bought.placements:
        state.placed[placement.lease] = bought.tender_digest
    outward: Effects = []
    for effect in effects:
        match effect:
            case purchase_events.Gathered(placements=placements, at_ms=at_ms):
                for placement in placements:
                    outward += _open_channel(state, bought, placement, at_ms)
                granted = tuple(
                    Granted(
                        shard=entry.shard,
                        lease=entry.lease,
                        provider=entry.provider,
                        ends_ms=entry.award.ends_ms,
                        reclaim_notice_ms=bought.bids[entry.bid].reclaim_notice_ms,
                    )
                    for entry in placements
                )
                currency = bought.tender.currency
                # A deposit comes within the wait. Credit grows when somebody pays, which nobody waits for here.
                comes = currency_of(currency).is_on_chain and not _is_funded(state, placements)
                hold_ms = start_ms(currency) // 2 if comes else 0
                came = job_events.GangCame(granted=granted, hold_ms=hold_ms, at_ms=at_ms)
                outward += advance_job(state, bought.tender.job, came)
            case purchase_events.BidsShown(at_ms=at_ms):
                shown = job_events.CancelWanted(reason=ONLY_BIDS, at_ms=at_ms)
                outward += advance_job(state, bought.tender.job, shown)
            case purchase_events.Unfilled(reason=reason, deserted=deserted, missing=missing, at_ms=at_ms):
                news = job_events.TenderFailed(
                    shards=bought.tender.shards, reason=reason, deserted=deserted, missing=missing, at_ms=at_ms
                )
                outward += advance_job(state, bought.tender.job, news)
            case _:
                outward.append(effect)
    if bought.phase in ("unfilled", "cancelled"):
        outward += _close_idle_channels(state, state.at_ms)
    return outward


def credit_for(state: NodeState, channel: PayingChannel, at_ms: int) -> int | None:
    """What a channel on the ledger can pay in all by its provider's credit line; None where no line is known."""
    known = state.mutual.get(channel.config.payee)
    if known is None or known.taken is None or currency_of(channel.currency).is_on_chain:
        return None
    # A line may be as long as an amount can be, and what was paid comes on top.
    left = mutual.room(known.taken, owed=owed_to(state.ledger, channel.config.payee), at_ms=at_ms)
    return min(mutual.LARGEST, channel.metered + left)


def _open_channel(state: NodeState, bought: Purchase, placement: Placement, at_ms: int) -> Effects:
    key, bid = placement.award.channel_id, bought.bids[placement.bid]
    if state.paying.get(key) is None:
        tender = bought.tender
        opened = PayingChannel(config=placement.channel, channel_id=key, currency=tender.currency, splits=tender.splits)
        state.paying[key] = replace(opened, funds=credit_for(state, opened, at_ms))
    terms = LeaseTerms(
        lease=placement.lease,
        job=bought.tender.job,
        shard=placement.shard,
        devices=bid.devices,
        share_milli=share_given(bid),
        tier=bid.tier,
        price_e18_per_device_ms=bid.price_e18_per_device_ms,
        max_total=bid.max_total,
        prepay=bid.prepay,
        penalty=bid.penalty,
        begins_ms=at_ms,
        ends_ms=placement.award.ends_ms,
    )
    return [
        *advance_channel(state, key, paying_channel.ChannelConfirmed()),
        *advance_channel(state, key, paying_channel.LeaseOpened(terms=terms)),
    ]


def _end_lease(state: NodeState, over: job_events.LeaseOver) -> Effects:
    """Nothing more runs under a lease: remember how it went, pay for nothing later, and close a channel left idle."""
    bought = state.purchase_on(over.lease)
    placement = placement_of(bought, over.lease)
    if bought is None or placement is None or placement.phase != "confirmed":
        return []
    record = state.records.get(placement.provider, Record())
    due = over.due and (not over.on_word or is_believed(record))
    if over.reclaimed:
        state.records[placement.provider] = replace(record, taken_back=record.taken_back + 1)
    elif over.own:
        # A mistake of the job's author marks nobody, as far as its provider is believed (``standings.records_for``).
        state.records[placement.provider] = replace(record, own=record.own + (not over.borne_out))
    elif not over.blameless:
        record = replace(record, good=record.good + 1) if over.well else replace(record, bad=record.bad + 1)
        state.records[placement.provider] = record
    ended = purchase_events.LeaseEnded(
        lease=over.lease, well=over.well, blameless=over.blameless, reclaimed=over.reclaimed, at_ms=over.at_ms
    )
    effects = advance_purchase(state, bought.tender_digest, ended)
    effects += end_metering(state, placement, over.at_ms, due=due)
    return effects + _close_idle_channels(state, over.at_ms)


def _release_late(state: NodeState, event: job_events.WordBorneOut) -> Effects:
    """A provider's word turned out true. It is paid as long as its channel is there to pay on."""
    placement = placement_of(state.purchase_on(event.lease), event.lease)
    record = state.records.get(placement.provider, Record()) if placement is not None else Record()
    if placement is not None and event.own and record.own:
        state.records[placement.provider] = replace(record, own=record.own - 1)
    channel = state.paying.live.get(placement.award.channel_id) if placement is not None else None
    if placement is None or channel is None or channel.phase not in ("open", "closing"):
        return []
    return end_metering(state, placement, event.at_ms, due=True)


def end_metering(state: NodeState, placement: Placement, at_ms: int, *, due: bool = False) -> Effects:
    """Nothing computes under a lease from now on: whatever else is waited for, later time is not paid.

    Args:
        state: the node's.
        placement: the award that became the lease.
        at_ms: from when on.
        due: it has ended well for its provider, who may charge what a firm lease withholds until then.
    """
    key = placement.award.channel_id
    channel = state.paying.live.get(key)
    if channel is None:
        return []  # Its provider ended it at its backend, as it may at any time.
    terms = channel.terms[placement.lease]
    released = terms.released or (due and terms.penalty > 0)
    shorter = replace(terms, ends_ms=min(terms.ends_ms, at_ms), prepay=0, released=released)
    return advance_channel(state, key, paying_channel.LeaseOpened(terms=shorter))


def _close_idle_channels(state: NodeState, at_ms: int) -> Effects:
    """Close every channel on which no lease lives, and on which no purchase that still gathers could put one."""
    wanted = {
        channel_id(currency_of(bought.tender.currency).domain, config)
        for bought in state.purchases.live.values()
        if bought.phase in GATHERS
        for config in bought.channels.values()
    }
    effects: Effects = []
    for key, channel in list(state.paying.live.items()):
        idle = channel.phase == "open" and key not in wanted
        if idle and not any(_is_live(state, lease) for lease in channel.terms):
            effects += advance_channel(state, key, paying_channel.CloseWanted(at_ms=at_ms))
    return effects


def placement_of(bought: Purchase | None, lease: bytes) -> Placement | None:
    """The award of a purchase that became this lease, or may yet."""
    placements = bought.placements if bought else ()
    return next((entry for entry in placements if entry.lease == lease), None)


def _is_live(state: NodeState, lease: bytes) -> bool:
    placement = placement_of(state.purchase_on(lease), lease)
    return placement is not None and placement.phase == "confirmed"
