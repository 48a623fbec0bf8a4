"""The provider's machine for one bid: held devices, a lease, a run that is metered, and its money.

Exposure is bounded: with more run up than ``max_unpaid``, or with a receipt out for longer than the voucher timeout,
the run is paused; a pause longer than the owner's grace stops it. Device time counts only up to the newest evidence of
progress, so what is charged is what was delivered.

An owner may take devices back. A bid on them lapses; a lease that has not started lapses too, and its buyer is told; a
run leaves at its next checkpoint, and at the latest when the notice is over. Whether the notice was as long as the bid
promised goes into the kind of the run's end, since only a promise that was kept leaves no mark on the provider.
"""

from dataclasses import replace
from typing import Any

from hansa.market.effects import Send, clipped, unsigned
from hansa.market.firm_leases import RELEASE_MS, is_forfeited
from hansa.market.ledger import Post, written_back, written_off
from hansa.market.machine import SAME, Step, Table, ignore, rows
from hansa.market.receipts import LeaseTerms
from hansa.market.refusals import kind_of_end, kind_of_objection
from hansa.market.sale_award import objection_to
from hansa.market.sale_events import (
    RECLAIMED,
    RECLAIMED_EARLY,
    AwardArrived,
    BidLost,
    DeliveryTaken,
    DevicesFreed,
    FundsShared,
    LeaseCalledOff,
    LeaseMade,
    LeaveWanted,
    LineDisputed,
    LineRefused,
    LineVouched,
    PauseWanted,
    PenaltyLifted,
    ProgressMade,
    ReclaimOrdered,
    RunBegan,
    RunInterrupted,
    RunOver,
    RunUnwanted,
    StartOrdered,
    StopOrdered,
    TimePassed,
    UseSampled,
)
from hansa.market.sale_funding import (
    STARVING_MS,
    UNFUNDED,
    lacks_money,
    resume,
    start,
    starve,
    starves_at_ms,
    take_order,
    take_share,
)
from hansa.market.sale_metering import meter, pause, take_progress
from hansa.market.sale_state import ENDED, Sale
from hansa.market.shares import share_given
from hansa.proto.market_documents import Award
from hansa.proto.messages import BidSent, LeaseConfirmed, LeaseReclaimed, LeaseRefused, RunEnded
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest

DELIVERY_MS = 10 * 60_000
"""How long outputs are kept for a buyer that does not say it has them."""
LEAVE_PATIENCE_MS = 2_000
"""A run that should have left by itself is stopped this much later."""

TABLE: Table[Sale] = Table(
    name="market.sale",
    start="bid",
    terminal=frozenset(ENDED),
    allowed=rows(
        ("bid", BidLost, "declined"),
        ("bid", AwardArrived, ("bid", "leased")),
        ("bid", (TimePassed, ReclaimOrdered), "lapsed"),
        (("leased", "funding", "running", "delivering", "settling", *ENDED), AwardArrived, SAME),
        # A word to stop may overtake the order to start.
        (("leased", "funding"), (LeaseCalledOff, StopOrdered, TimePassed, ReclaimOrdered), "lapsed"),
        # The order to start may have been on its way when the devices were taken back.
        ("lapsed", StartOrdered, SAME),
        ("leased", StartOrdered, ("funding", "running")),
        ("funding", (FundsShared, LineVouched), ("funding", "running")),
        (("leased", "running"), FundsShared, SAME),
        ("leased", LineVouched, SAME),
        ("running", (LineVouched, LineRefused, ProgressMade, TimePassed), "running"),
        ("running", (RunBegan, RunInterrupted, StopOrdered, LeaseCalledOff, UseSampled, ReclaimOrdered), "running"),
        ("running", RunOver, "delivering"),
        ("delivering", (LineVouched, LineRefused), "delivering"),
        (("running", "delivering"), PenaltyLifted, SAME),
        # A receipt that was refused is in the way of one that charges what was withheld.
        ("settling", PenaltyLifted, ("settling", "settled", "stopped", "unpaid")),
        ("delivering", (DeliveryTaken, TimePassed, StopOrdered), ("settling", "settled", "stopped", "unpaid")),
        (("running", "delivering"), LineDisputed, SAME),
        ("settling", LineDisputed, ("settling", "settled", "stopped")),
        ("settling", LineVouched, ("settling", "settled", "stopped")),
        ("settling", (LineRefused, TimePassed), ("settling", "settled", "stopped", "unpaid")),
        # A buyer that comes back after it was written off may still pay.
        ("unpaid", LineVouched, ("unpaid", "settled", "stopped")),
    ),
)


def open_sale(state: Sale) -> Step[Sale]:
    """Send the bid."""
    return Step(state=state, effects=outstanding(state))


def advance(state: Sale, event: Any) -> Step[Sale]:
    """One event of a sale."""
    return TABLE.advance(state, event, _react)


def deadline_ms(state: Sale) -> int | None:
    """When time alone will change something."""
    match state.phase:
        case "bid":
            return state.bid.expires_ms
        case "leased":
            assert state.award is not None
            return state.award.start_by_ms
        case "funding":
            return state.funded_by_ms
        case "running":
            return _running_deadline_ms(state)
        case "delivering":
            return state.over_ms + DELIVERY_MS
        case "settling":
            waits = state.bid.penalty and not _has_forfeited(state)
            return state.over_ms + DELIVERY_MS + state.grace_ms + (RELEASE_MS if waits else 0)
        case _:
            return None


def _running_deadline_ms(state: Sale) -> int | None:
    assert state.terms is not None
    if state.stopping:
        return None
    times = [state.terms.ends_ms]
    if state.reclaim_by_ms:
        times.append(state.reclaim_by_ms + LEAVE_PATIENCE_MS)
    if state.paused_ms:
        times.append(state.paused_ms + _patience_ms(state))
    elif state.unvouched_since_ms:
        times.append(state.unvouched_since_ms + state.bid.voucher_timeout_ms)
    if state.exposed_at_ms is not None:
        times.append(state.exposed_at_ms)
    if (starves_ms := starves_at_ms(state)) is not None:
        times.append(starves_ms)
    if state.steps > state.lined_steps:
        times.append(state.lined_ms + state.bid.meter_interval_ms)
    return min(times)


def _patience_ms(state: Sale) -> int:
    """How long a pause may last: for a voucher, or for a deposit."""
    return max(state.grace_ms, STARVING_MS) if state.starved else state.grace_ms


def _react(state: Sale, event: Any) -> Step[Sale]:
    match event:
        case BidLost(reason=reason):
            return _free(replace(state, phase="declined", reason=reason or "another bid won"))
        case AwardArrived() if state.phase == "bid":
            return _lease(state, event)
        case AwardArrived(award=award):
            return _repeat_confirmation(state, award)
        case LeaseCalledOff(reason=reason) | StopOrdered(reason=reason) if state.phase in (
            "leased",
            "funding",
        ):
            return _free(replace(state, phase="lapsed", reason=reason))
        case ReclaimOrdered():
            return _reclaim(state, event)
        case StartOrdered() if state.phase == "lapsed":
            told = outstanding(state)
            return Step(state=state, effects=told) if told else ignore(state, "a start that comes too late")
        case StartOrdered():
            return take_order(state, event)
        case FundsShared():
            return take_share(state, event)
        case RunBegan() if state.paused_ms:
            # It was not there yet when it was to be paused: a sandbox that is made anew after a restart takes its time.
            return Step(state=state, effects=(PauseWanted(lease=state.lease),))
        case RunBegan(at_ms=at_ms):
            return Step(state=replace(state, unproved_since_ms=at_ms))
        case RunInterrupted(at_ms=at_ms):
            lost = replace(state, unproved=state.unproved_at(at_ms), unproved_since_ms=0, redoing=True)
            return Step(state=lost)
        case ProgressMade():
            return take_progress(state, event)
        case UseSampled(busy_ms=busy_ms):
            return Step(state=replace(state, busy_ms=max(state.busy_ms, busy_ms)))
        case StopOrdered(reason=reason) | LeaseCalledOff(reason=reason) if state.phase == "running":
            stop = RunUnwanted(lease=state.lease, reason=clipped(reason, 256))
            return Step(state=replace(state, stopping=True), effects=(stop,))
        case RunOver():
            return _finish_run(state, event)
        case LineVouched():
            return _take_voucher(state, event)
        case LineRefused(reason=reason, at_ms=at_ms):
            return _hear_refusal(state, reason, at_ms)
        case LineDisputed():
            return _give_way(state, event)
        case PenaltyLifted():
            return _lift_penalty(state, event)
        case DeliveryTaken(at_ms=at_ms) | StopOrdered(at_ms=at_ms):
            return _settle(replace(state, phase="settling"), at_ms)
        case TimePassed(at_ms=at_ms):
            return _pass_time(state, at_ms)
        case _:
            raise AssertionError(f"the table knows {type(event).__name__}, this function does not")


def _free(state: Sale) -> Step[Sale]:
    return Step(state=state, effects=(DevicesFreed(bid=state.bid_digest),))


def _lease(state: Sale, event: AwardArrived) -> Step[Sale]:
    lease = digest(DOMAIN, event.award)
    objection = objection_to(state, event)
    if objection:
        refusal = LeaseRefused(lease=lease, kind=kind_of_objection(state, event), reason=objection)
        return Step(
            state=state, effects=(Send(to=state.buyer, message=refusal, keep_until_ms=state.tender.expires_ms),)
        )
    terms = LeaseTerms(
        lease=lease,
        job=state.tender.job,
        shard=event.award.shard,
        devices=state.bid.devices,
        share_milli=share_given(state.bid),
        tier=state.bid.tier,
        price_e18_per_device_ms=state.bid.price_e18_per_device_ms,
        max_total=state.bid.max_total,
        prepay=state.bid.prepay,
        penalty=state.bid.penalty,
        begins_ms=event.at_ms,
        ends_ms=event.award.ends_ms,
    )
    leased = replace(
        state,
        phase="leased",
        award=event.award,
        lease=lease,
        channel_id=event.award.channel_id,
        workload=event.workload,
        terms=terms,
    )
    made = LeaseMade(bid=state.bid_digest, channel=event.channel, terms=terms)
    return Step(state=leased, effects=(made, *outstanding(leased)))


def _repeat_confirmation(state: Sale, award: Award) -> Step[Sale]:
    lease = digest(DOMAIN, award)
    if lease == state.lease and state.phase in ("leased", "funding"):
        return Step(state=state, effects=outstanding(state))
    if lease == state.lease:
        return ignore(state, "an award that is known")
    why = f": {state.reason}" if state.reason else ""
    words = clipped(f"the bid is {state.phase}{why}", 2_000)
    refusal = LeaseRefused(lease=lease, kind=kind_of_end(state), reason=words)
    return Step(state=state, effects=(Send(to=state.buyer, message=refusal, keep_until_ms=award.confirm_by_ms),))


def _stop(state: Sale, reason: str) -> Step[Sale]:
    stopping = replace(state, stopping=True, reason=reason)
    return Step(state=stopping, effects=(RunUnwanted(lease=state.lease, reason=reason),))


def _reclaim(state: Sale, event: ReclaimOrdered) -> Step[Sale]:
    """The owner wants the devices back. A second word may only bring the moment nearer."""
    if state.reclaim_by_ms and event.by_ms >= state.reclaim_by_ms:
        return ignore(state, "taken back already")
    early = state.reclaim_early or event.by_ms - event.at_ms < state.bid.reclaim_notice_ms
    told = replace(state, reclaim_by_ms=event.by_ms, reclaim_why=event.reason, reclaim_early=early)
    if state.phase == "running":
        leave = LeaveWanted(lease=state.lease, by_ms=event.by_ms, why=event.reason)
        return Step(state=told, effects=(_reclaimed(told), leave))
    lapsed = replace(told, phase="lapsed", reason=clipped(f"the devices were taken back: {event.reason}", 2_000))
    if state.phase == "bid":
        return _free(lapsed)
    lapsed = replace(lapsed, outcome="failed", kind=RECLAIMED_EARLY if early else RECLAIMED, over_ms=event.at_ms)
    freed = _free(lapsed)
    return Step(state=freed.state, effects=(*freed.effects, *outstanding(lapsed)))


def _reclaimed(state: Sale) -> Send:
    message = LeaseReclaimed(lease=state.lease, by_ms=state.reclaim_by_ms, reason=state.reclaim_why)
    keep_until_ms = state.reclaim_by_ms + DELIVERY_MS
    return Send(to=state.buyer, message=message, keep_until_ms=keep_until_ms, replaces=f"back {state.lease.hex()}")


def _take_voucher(state: Sale, event: LineVouched) -> Step[Sale]:
    if event.amount < state.vouched or (event.amount, event.ahead) == (state.vouched, state.ahead):
        return ignore(state, "a voucher that is known")
    assert event.amount <= state.lined_amount, "vouched for more than was metered"
    paid = replace(state, vouched=event.amount, ahead=event.ahead)
    if state.phase in ("leased", "funding"):
        return start(paid, event.at_ms) if state.phase == "funding" else Step(state=paid)
    if event.amount > state.vouched:
        waiting = event.at_ms if event.amount < state.lined_amount else 0
        paid = replace(paid, unvouched_since_ms=waiting, refused="")
    if state.phase == "running" and state.paused_ms and not state.starved and paid.unpaid <= paid.bid.max_unpaid:
        return resume(paid, event.at_ms)
    if state.phase == "unpaid":
        return _write_back(paid, state, event.at_ms)
    return _settle(paid, event.at_ms) if state.phase == "settling" else Step(state=paid)


def _has_forfeited(state: Sale) -> bool:
    """Whether what was withheld of a firm lease is lost by what this side did, whatever the buyer may say."""
    return is_forfeited(outcome=state.outcome, kind=state.kind, taken_back=state.reclaim_by_ms > 0)


def _lift_penalty(state: Sale, event: PenaltyLifted) -> Step[Sale]:
    """What was withheld is charged with the next line, or at once if the run is over."""
    if state.released or not state.bid.penalty:
        return ignore(state, "a penalty that is not withheld")
    released = replace(state, released=True)
    if state.phase == "running":
        return Step(state=released)
    metered = meter(released, event.at_ms, final=True)
    settled = _settle(metered.state, event.at_ms) if state.phase == "settling" else Step(state=metered.state)
    return Step(state=settled.state, effects=(*metered.effects, *settled.effects))


def _hear_refusal(state: Sale, reason: str, at_ms: int) -> Step[Sale]:
    refused = replace(state, refused=reason)
    if state.phase == "running" and not state.stopping:
        stop = RunUnwanted(lease=state.lease, reason="the buyer refuses to pay")
        return Step(state=replace(refused, stopping=True), effects=(stop,))
    return _write_off(refused, at_ms) if state.phase == "settling" else Step(state=refused)


def _give_way(state: Sale, event: LineDisputed) -> Step[Sale]:
    """The buyer's clock and this one do not agree: what is paid is what passed on the buyer's, and the run ends."""
    line = event.line
    cut = replace(
        state,
        is_over=True,
        device_ms=line.device_ms,
        rest_milli=0,
        evident_ms=line.end_ms,
        lined_amount=line.amount,
        lined_steps=state.steps,
        unvouched_since_ms=event.at_ms if line.amount > state.vouched else 0,
    )
    # A penalty that was lifted since the line was written is charged with the run's last one, and is not lost here.
    left = max(line.amount, cut.chargeable) if state.phase == "running" else line.amount
    cut = replace(cut, disputed=state.disputed + max(0, state.chargeable - left))
    if state.phase == "running" and not state.stopping:
        return _stop(cut, "the buyer's clock and the provider's do not agree")
    return _settle(cut, event.at_ms) if state.phase == "settling" else Step(state=cut)


def _finish_run(state: Sale, event: RunOver) -> Step[Sale]:
    over = replace(
        state,
        phase="delivering",
        outcome=event.outcome,
        kind=_kind_of_end(state, event),
        reason=event.reason,
        outputs=event.outputs,
        over_ms=event.at_ms,
        paused_ms=0,
        starved=False,
    )
    metered = meter(over, event.at_ms, final=True)
    freed = DevicesFreed(bid=state.bid_digest)
    return Step(state=metered.state, effects=(*metered.effects, freed, *outstanding(metered.state)))


def _kind_of_end(state: Sale, event: RunOver) -> str:
    """What sort of end it is: whether devices were taken back fairly, and whether money was lacking, is known here."""
    if event.kind == RECLAIMED and state.reclaim_early:
        return RECLAIMED_EARLY
    return UNFUNDED if event.outcome == "stopped" and state.starved else event.kind


def _write_off(state: Sale, at_ms: int, reason: str = "") -> Step[Sale]:
    """Nobody will vouch for the rest: it is in the books as what it is. What was paid ahead covers it all the same."""
    assert state.terms is not None
    amount = state.lined_amount + state.disputed - state.vouched - state.ahead
    if amount <= 0:
        return Step(state=replace(state, phase="settled" if state.outcome == "succeeded" else "stopped"))
    unpaid = replace(state, phase="unpaid", reason=reason or state.reason, written_off=amount)
    return Step(state=unpaid, effects=(_written_off(state, amount, at_ms),))


def _written_off(state: Sale, amount: int, at_ms: int) -> Post:
    assert state.terms is not None
    entry = written_off(
        channel_id=state.channel_id,
        lease=state.lease,
        job=state.terms.job,
        buyer=state.buyer,
        amount=amount,
        at_ms=at_ms,
    )
    return Post(entry=entry)


def _write_back(state: Sale, before: Sale, at_ms: int) -> Step[Sale]:
    """A buyer that was written off has paid after all, or a part of it."""
    assert state.terms is not None
    amount = min(state.written_off, state.vouched - before.vouched)
    settled = _settle(replace(state, written_off=state.written_off - amount), at_ms)
    if not amount:
        return settled
    entry = written_back(
        channel_id=state.channel_id,
        lease=state.lease,
        job=state.terms.job,
        buyer=state.buyer,
        amount=amount,
        vouched=state.vouched,
        at_ms=at_ms,
    )
    return Step(state=settled.state, effects=(Post(entry=entry), *settled.effects))


def _settle(state: Sale, at_ms: int) -> Step[Sale]:
    """Delivered: the end, if everything metered is vouched for and no word of the buyer could add to it."""
    if state.vouched < state.lined_amount:
        return _write_off(state, at_ms) if state.refused and state.phase == "settling" else Step(state=state)
    if state.withheld and not _has_forfeited(state):
        return Step(state=state)
    ended = replace(state, phase="settled" if state.outcome == "succeeded" else "stopped")
    lost = state.disputed - state.ahead
    if lost <= 0 or state.phase == "unpaid":
        return Step(state=ended)
    return Step(state=replace(ended, written_off=lost), effects=(_written_off(state, lost, at_ms),))


def _pass_time(state: Sale, at_ms: int) -> Step[Sale]:
    match state.phase:
        case "bid":
            return _free(replace(state, phase="lapsed", reason="the bid expired"))
        case "leased":
            return _free(replace(state, phase="lapsed", reason="the start was not ordered in time"))
        case "funding":
            return _lapse_unfunded(state, at_ms)
        case "running":
            return _pass_running_time(state, at_ms)
        case "delivering":
            return _settle(replace(state, phase="settling"), at_ms)
        case _:
            return _write_off(state, at_ms, "the buyer did not vouch for what was delivered")


def _lapse_unfunded(state: Sale, at_ms: int) -> Step[Sale]:
    """Its money did not come in time: the devices are free again, and the buyer is told why."""
    lapsed = replace(state, phase="lapsed", outcome="failed", kind=UNFUNDED, reason=lacks_money(state), over_ms=at_ms)
    freed = _free(lapsed)
    return Step(state=lapsed, effects=(*freed.effects, *outstanding(lapsed)))


def _pass_running_time(state: Sale, at_ms: int) -> Step[Sale]:
    assert state.terms is not None
    reason = ""
    if at_ms >= state.terms.ends_ms:
        reason = "the lease is over"
    elif state.paused_ms and at_ms >= state.paused_ms + _patience_ms(state):
        reason = "its channel can pay no more" if state.starved else "no voucher within the grace period"
    elif state.reclaim_by_ms and at_ms >= state.reclaim_by_ms + LEAVE_PATIENCE_MS:
        reason = "its devices were taken back and it did not leave"
    if reason and not state.stopping:
        return _stop(state, reason)
    if not state.paused_ms and not state.stopping:
        exposed = state.exposed_at_ms is not None and at_ms >= state.exposed_at_ms
        if exposed and state.chargeable <= state.vouched:
            # There is nothing that the buyer could vouch for, so a pause would last for ever.
            return _stop(state, "it ran up more than may be unpaid without reporting a step")
        late = state.unvouched_since_ms and at_ms >= state.unvouched_since_ms + state.bid.voucher_timeout_ms
        starves_ms = starves_at_ms(state)
        if starves_ms is not None and at_ms >= starves_ms:
            return starve(state, at_ms)
        if exposed or late:
            return pause(state, at_ms)
    return meter(state, at_ms, final=False)


def outstanding(state: Sale) -> tuple[Any, ...]:
    """What this sale waits for the buyer to take, said again: after a restart, and when it begins."""
    match state.phase:
        case "bid":
            message: Any = BidSent(bid=unsigned(state.bid))
            return (Send(to=state.buyer, message=message, keep_until_ms=state.bid.expires_ms),)
        case "leased" | "funding":
            assert state.award is not None
            message = LeaseConfirmed(lease=state.lease)
            return (Send(to=state.buyer, message=message, keep_until_ms=state.award.start_by_ms),)
        case "running" if state.reclaim_by_ms:
            return (_reclaimed(state),)
        case "delivering":
            return (_run_ended(state),)
        case "lapsed" if state.kind:
            # The lease never ran, and its buyer may be about to start it.
            return (_run_ended(state),)
        case _:
            return ()


def _run_ended(state: Sale) -> Send:
    message = RunEnded(
        lease=state.lease,
        outcome=state.outcome,
        kind=state.kind,
        reason=clipped(state.reason, 8_000),
        outputs=state.outputs,
        # By these words its buyer can see that there was no money, or that this is not true.
        line=unsigned(state.lent) if state.lent is not None and state.kind == UNFUNDED else None,
        paid=state.paid,
        vouched=state.held,
    )
    return Send(to=state.buyer, message=message, keep_until_ms=state.over_ms + DELIVERY_MS)
