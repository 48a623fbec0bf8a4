"""The provider's machines turn: how each hears an event, and where what it orders goes: to another of them, or outward.

A sale's line is its channel's news, a voucher on the channel is the sale's, and the end of a run is both of theirs.
"""

from dataclasses import replace
from typing import Any

from hansa.market import earning_channel, sale, sale_events
from hansa.market.device_time import not_before_ms, with_charge
from hansa.market.earning_channel import EarningChannel
from hansa.market.funding import FundsKnown, shares_of_funds
from hansa.market.ledger import taken_off
from hansa.market.receipts import NOTHING
from hansa.market.sale_state import ENDED
from hansa.node.engine.held_time import paid_times, with_hold
from hansa.node.engine.state import NodeState
from hansa.scheduler import capacity, run
from hansa.scheduler.run import Run

Effects = list[Any]

STOP_GRACE_MS = 3_000
"""How long a run that is told to stop may take to save what is worth saving."""
EARNING = ("leased", "funding", "running")
"""Phases in which a sale may still run something up."""
UNUSED = ("bid", "leased", "funding")
"""Phases in which devices are held and nothing is worked on them."""
LAST_ROUND = (1 << 32) - 1
"""What a sandbox counts higher is none that the market could ever reach."""


def advance_sale(state: NodeState, key: bytes, event: Any) -> Effects:
    """A sale hears an event, and every machine that this is news to hears of it. Answers what goes outward."""
    _note_words(state, key, event)
    before = state.sales.get(key)
    if isinstance(event, sale_events.ProgressMade) and before is not None and before.terms is not None:
        terms = before.terms
        event = replace(event, not_before_ms=not_before_ms(state.charged, terms.devices, terms.share_milli))
    allotment = state.capacity.allotments.get(key)
    effects = state.turn("sale", state.sales, key, sale.advance, event)
    after = state.sales.get(key)
    if before is None or after is None:
        return []
    outward: Effects = []
    # What the owner takes back was held for the owner in the end.
    ends_in_vain = before.phase in UNUSED and after.phase in ("declined", "lapsed")
    if ends_in_vain and allotment is not None and not isinstance(event, sale_events.ReclaimOrdered):
        state.holdings = with_hold(state, state.holdings, before, allotment.since_ms, paid_times(state))
    for effect in effects:
        match effect:
            case sale_events.LeaseMade(bid=bid, channel=channel, terms=terms):
                _advance_capacity(state, bid, capacity.HoldAccepted())
                state.sale_of[terms.lease] = bid
                channel_key = after.channel_id
                if state.earning.get(channel_key) is None:
                    state.earning[channel_key] = EarningChannel(
                        config=channel,
                        channel_id=channel_key,
                        currency=after.tender.currency,
                        splits=after.tender.splits,
                    )
                outward += advance_channel(state, channel_key, earning_channel.LeaseJoined(terms=terms))
            case sale_events.DevicesFreed(bid=bid):
                _advance_capacity(state, bid, capacity.Freed())
            case sale_events.RunWanted(lease=lease, round=number, checkpoint=checkpoint):
                planned = run.plan_run(lease, checkpoint=checkpoint, round_number=number)
                state.begin("run", state.runs, lease, planned.state)
                outward += planned.effects
            case sale_events.RunUnwanted(lease=lease, reason=reason):
                wanted = run.RunStopWanted(run=lease, grace_ms=STOP_GRACE_MS, why=reason, at_ms=state.at_ms)
                outward += advance_run(state, wanted)
            case sale_events.LeaveWanted(lease=lease, by_ms=by_ms, why=why):
                outward += advance_run(state, run.RunLeaveWanted(run=lease, by_ms=by_ms, why=why, at_ms=state.at_ms))
            case earning_channel.LineMetered(line=line):
                assert after.terms is not None, "only a lease is metered"
                devices, share_milli = after.terms.devices, after.terms.share_milli
                state.charged = with_charge(state.charged, devices, share_milli, line.end_ms)
                outward += advance_channel(state, after.channel_id, effect)
            case _:
                outward.append(effect)
    if after.terms is not None and before.phase != after.phase:
        outward += share_funds(state, after.channel_id)
    if after.terms is not None and before.phase not in ENDED and after.phase in ENDED:
        left = earning_channel.LeaseLeft(lease=after.lease, at_ms=state.at_ms)
        outward += advance_channel(state, after.channel_id, left)
    return outward


def _note_words(state: NodeState, key: bytes, event: Any) -> None:
    """Where a lease on the ledger may end now for want of money: by which words its provider goes then."""
    entry = state.sales.get(key)
    ends = isinstance(event, sale_events.TimePassed | sale_events.RunOver)
    if entry is None or not ends or entry.ceiling is None or entry.phase not in EARNING:
        return
    channel = state.earning.get(entry.channel_id)
    state.sales[key] = replace(
        entry,
        lent=state.mutual[entry.buyer].given if entry.buyer in state.mutual else None,
        paid=taken_off(state.ledger, entry.buyer),
        held=channel.cumulative if channel is not None else 0,
    )


def _advance_capacity(state: NodeState, bid: bytes, event: capacity.HoldAccepted | capacity.Freed) -> None:
    state.capacity, ignored = capacity.advance(state.capacity, bid, event)
    state.ignore("capacity", ignored)


def advance_channel(state: NodeState, key: bytes, event: Any) -> Effects:
    """A channel hears an event; what was vouched for or refused is news to its sales."""
    outward: Effects = []
    for effect in state.turn("earning_channel", state.earning, key, earning_channel.advance, event):
        match effect:
            case earning_channel.LinesVouched(amounts=amounts, ahead=ahead, at_ms=at_ms):
                channel = state.earning.get(key)
                assert channel is not None, "it has just said this"
                # Those that live and have nothing ahead any more are told too: what was theirs was spent by another.
                for lease in sorted({*amounts, *ahead, *channel.live}):
                    vouched = sale_events.LineVouched(
                        amount=amounts.get(lease, 0), ahead=ahead.get(lease, 0), at_ms=at_ms
                    )
                    outward += advance_sale(state, state.sale_of.get(lease, b""), vouched)
            case earning_channel.LinesRefused(leases=leases, reason=reason):
                for lease in leases:
                    refused = sale_events.LineRefused(reason=reason, at_ms=state.at_ms)
                    outward += advance_sale(state, state.sale_of.get(lease, b""), refused)
            case earning_channel.LinesDisputed(lines=lines, reason=reason):
                for line in lines:
                    disputed = sale_events.LineDisputed(line=line, reason=reason, at_ms=state.at_ms)
                    outward += advance_sale(state, state.sale_of.get(line.lease, b""), disputed)
            case _:
                outward.append(effect)
    if isinstance(event, FundsKnown | earning_channel.VoucherArrived):
        outward += share_funds(state, key)
    return outward


def share_funds(state: NodeState, key: bytes) -> Effects:
    """What a channel can pay is shared out among its leases, so that together they never run up more than that."""
    channel = state.earning.get(key)
    if channel is None:
        return []
    used = {lease: line.amount for lease, line in channel.lines.items()}
    live: dict[bytes, int] = {}
    for lease in channel.live:
        entry = state.sale_on(lease)
        if entry is None:
            continue
        used[lease] = max(entry.accrued, used.get(lease, 0))
        if entry.phase in EARNING:
            live[lease] = entry.bid.max_total
    limit = channel.limit
    shares = shares_of_funds(limit, used, live) if limit is not None else dict.fromkeys(live)
    outward: Effects = []
    for lease, ceiling in shares.items():
        bid = state.sale_of[lease]
        known = state.sales.get(bid)
        if known is not None and known.ceiling != ceiling:
            outward += advance_sale(state, bid, sale_events.FundsShared(ceiling=ceiling, at_ms=state.at_ms))
    return outward


def advance_run(state: NodeState, event: Any) -> Effects:
    """A run hears an event; if that was its end, its sale learns of it."""
    was_live = event.run in state.runs.live
    outward: Effects = list(state.turn("run", state.runs, event.run, run.advance, event))
    if was_live and event.run in state.runs.ended:
        outward += _finish(state, state.runs.ended[event.run], event.at_ms)
    return outward


def _finish(state: NodeState, ended: Run, at_ms: int) -> Effects:
    """A run is over: the time up to its end counts if it succeeded, and the sale learns of it."""
    effects: Effects = []
    if ended.phase == run.SUCCEEDED:
        # To finish is a step too: without it a job that reports nothing would cost its provider and pay nothing.
        effects += advance_sale(state, state.sale_of[ended.run], progress_of(ended, at_ms, ended.step + 1))
    elif ended.end_kind == sale_events.RECLAIMED and ended.checkpoint_at_ms and ended.checkpoint_step >= ended.step:
        # It left at this checkpoint, and what was worked for it after the last step is delivered with it.
        saved = progress_of(ended, ended.checkpoint_at_ms, ended.step + 1)
        saved = replace(saved, running_ms=ended.checkpoint_ms)
        effects += advance_sale(state, state.sale_of[ended.run], saved)
    kind = "stopped" if ended.phase == run.STOPPED else ended.end_kind
    over = sale_events.RunOver(
        outcome=ended.phase,
        kind="" if ended.phase == run.SUCCEEDED else kind,
        reason=ended.end_reason,
        outputs=len(ended.outputs),
        at_ms=at_ms,
    )
    return effects + advance_sale(state, state.sale_of[ended.run], over)


def progress_of(current: Run, at_ms: int, step: int | None) -> sale_events.ProgressMade:
    """What a run has delivered up to a moment; ``step`` is None where that is not the report of a step."""
    return sale_events.ProgressMade(
        running_ms=run.device_ms(current, at_ms),
        steps=step,
        rounds=min(current.round, LAST_ROUND),
        checkpoint=current.checkpoint.root if current.checkpoint else NOTHING,
        at_ms=at_ms,
    )
