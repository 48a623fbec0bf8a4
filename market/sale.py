"""The provider's machine for one bid: held devices, a lease, a run that is metered, and its money.

Exposure is bounded: with more run up than ``max_unpaid``, or with a receipt out for longer than the voucher timeout,
the run is paused; a pause longer than the owner's grace stops it. Device time counts only up to the newest evidence of
progress, so what is charged is what was delivered.
"""

from dataclasses import dataclass, replace
from typing import Any

from hansa.market.earning_channel import LineMetered
from hansa.market.effects import Send, clipped, unsigned
from hansa.market.machine import SAME, Step, Table, ignore, rows
from hansa.market.receipts import CLOCK_SKEW_MS, NOTHING, LeaseTerms
from hansa.market.sale_events import (
    AwardArrived,
    BidLost,
    DeliveryTaken,
    DevicesFreed,
    LeaseCalledOff,
    LeaseMade,
    LineRefused,
    LineVouched,
    PauseWanted,
    ProgressMade,
    ResumeWanted,
    RunBegan,
    RunInterrupted,
    RunOver,
    RunUnwanted,
    RunWanted,
    StartOrdered,
    StopOrdered,
    TimePassed,
    UseSampled,
)
from hansa.proto.documents import MeterLine, channel_id
from hansa.proto.market_documents import Award, Bid, Evidence, Tender
from hansa.proto.messages import BidSent, LeaseConfirmed, LeaseRefused, RunEnded
from hansa.proto.network import DOMAIN, currency_id
from hansa.proto.typed_data import digest
from hansa.proto.units import Amount, Bytes32, DeviceMs, DurationMs, Line, Uint32, Uint64, UnixMs
from hansa.proto.workload import Workload

LARGEST_PACKAGE_BYTES = 1 << 30
LARGEST_STATE_BYTES = 2 << 30
LARGEST_OUTPUT_BYTES = 4 << 30
MOST_WORKERS = 256
DELIVERY_MS = 10 * 60_000
"""How long outputs are kept for a buyer that does not say it has them."""
LONGEST_WAIT_MS = 2 * 60_000
"""A lease holds its devices unpaid until the start is ordered; no award may have that take longer than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """The state.

    Attributes:
        phase: bid, leased, running, delivering, settling, settled, lapsed, declined, stopped or unpaid.
        tender: what was answered.
        bid: the promise.
        bid_digest: its digest.
        max_unpaid: see ``Bid``; kept beside it since the owner may change the rules for later bids only.
        grace_ms: a pause longer than this ends the run.
        award: the buyer's acceptance, once there.
        lease: its digest.
        workload: what is run.
        terms: what was agreed, as far as money needs it.
        started_ms: when metering began.
        device_ms: metered with evidence.
        seen_ms: the run's own time at the last report of a step.
        steps, rounds, checkpoint: the newest evidence.
        busy_ms: device time in which the devices computed, as their driver saw it; may run ahead of ``device_ms``.
        evident_ms: when the time that is charged was last worked; a line ends then, however late it is written.
        lined_ms: when the last line was given to the channel.
        lined_steps: the evidence it had.
        lined_amount: what it came to.
        vouched: what the buyer vouched for.
        unproved_since_ms: since when it computes without a new step; 0 while it does not compute.
        unvouched_since_ms: when the oldest line that waits for its voucher was written; 0 if none waits.
        paused_ms: since when the run is paused for want of vouchers; 0 if it is not.
        outcome, kind, reason, outputs: how the run ended.
        over_ms: when it ended.
    """

    phase: str = "bid"
    tender: Tender
    bid: Bid
    bid_digest: Bytes32
    grace_ms: DurationMs
    award: Award | None = None
    lease: Bytes32 = NOTHING
    channel_id: Bytes32 = NOTHING
    workload: Workload | None = None
    terms: LeaseTerms | None = None
    started_ms: UnixMs = 0
    device_ms: DeviceMs = 0
    seen_ms: DurationMs = 0
    steps: Uint64 = 0
    evident_ms: UnixMs = 0
    rounds: Uint32 = 0
    checkpoint: Bytes32 = NOTHING
    busy_ms: DeviceMs = 0
    lined_ms: UnixMs = 0
    lined_steps: Uint64 = 0
    lined_amount: Amount = 0
    vouched: Amount = 0
    unproved_since_ms: UnixMs = 0
    unvouched_since_ms: UnixMs = 0
    paused_ms: UnixMs = 0
    stopping: bool = False
    refused: str = ""
    outcome: Line = ""
    kind: Line = ""
    reason: str = ""
    outputs: Uint32 = 0
    over_ms: UnixMs = 0

    @property
    def accrued(self) -> int:
        """What the evidence until now is worth."""
        return self.terms.amount(self.device_ms) if self.terms else 0

    @property
    def exposed_at_ms(self) -> int | None:
        """When what ran up without a voucher passes ``max_unpaid``, if no step and no voucher comes before; or None."""
        rate_e18 = self.bid.price_e18_per_device_ms * len(self.bid.devices)
        if not self.unproved_since_ms or not rate_e18:
            return None
        left = max(0, self.bid.max_unpaid - (self.accrued - self.vouched))
        return self.unproved_since_ms + -(-(left + 1) * 10**18 // rate_e18)

    @property
    def buyer(self) -> bytes:
        """Whose job it is."""
        return self.tender.signer


ENDED = ("settled", "lapsed", "declined", "stopped", "unpaid")

TABLE: Table[Sale] = Table(
    name="market.sale",
    start="bid",
    terminal=frozenset(ENDED),
    allowed=rows(
        ("bid", BidLost, "declined"),
        ("bid", AwardArrived, ("bid", "leased")),
        ("bid", TimePassed, "lapsed"),
        (("leased", "running", "delivering", "settling", *ENDED), AwardArrived, SAME),
        # A word to stop may overtake the order to start.
        ("leased", (LeaseCalledOff, StopOrdered, TimePassed), "lapsed"),
        ("leased", StartOrdered, "running"),
        ("running", (LineVouched, LineRefused, ProgressMade, TimePassed), "running"),
        ("running", (RunBegan, RunInterrupted, StopOrdered, LeaseCalledOff, UseSampled), "running"),
        ("running", RunOver, "delivering"),
        ("delivering", (LineVouched, LineRefused), "delivering"),
        ("delivering", (DeliveryTaken, TimePassed, StopOrdered), ("settling", "settled", "stopped", "unpaid")),
        ("settling", LineVouched, ("settling", "settled", "stopped")),
        ("settling", (LineRefused, TimePassed), ("settling", "unpaid")),
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
        case "running":
            return _running_deadline_ms(state)
        case "delivering":
            return state.over_ms + DELIVERY_MS
        case "settling":
            return state.over_ms + DELIVERY_MS + state.grace_ms
        case _:
            return None


def _running_deadline_ms(state: Sale) -> int | None:
    assert state.terms is not None
    if state.stopping:
        return None
    times = [state.terms.ends_ms]
    if state.paused_ms:
        times.append(state.paused_ms + state.grace_ms)
    elif state.unvouched_since_ms:
        times.append(state.unvouched_since_ms + state.bid.voucher_timeout_ms)
    if state.exposed_at_ms is not None:
        times.append(state.exposed_at_ms)
    if state.steps > state.lined_steps:
        times.append(state.lined_ms + state.bid.meter_interval_ms)
    return min(times)


def _react(state: Sale, event: Any) -> Step[Sale]:
    match event:
        case BidLost():
            return _free(replace(state, phase="declined", reason="another bid won"))
        case AwardArrived() if state.phase == "bid":
            return _lease(state, event)
        case AwardArrived(award=award):
            return _repeat_confirmation(state, award)
        case LeaseCalledOff(reason=reason) | StopOrdered(reason=reason) if state.phase == "leased":
            return _free(replace(state, phase="lapsed", reason=reason))
        case StartOrdered():
            order = RunWanted(lease=state.lease, round=event.round, checkpoint=event.checkpoint)
            return Step(state=replace(state, phase="running", lined_ms=event.at_ms), effects=(order,))
        case RunBegan(at_ms=at_ms):
            return Step(state=replace(state, unproved_since_ms=at_ms))
        case RunInterrupted():
            return Step(state=replace(state, unproved_since_ms=0))
        case ProgressMade():
            return _progress(state, event)
        case UseSampled(busy_ms=busy_ms):
            return Step(state=replace(state, busy_ms=max(state.busy_ms, busy_ms)))
        case StopOrdered(reason=reason) | LeaseCalledOff(reason=reason) if state.phase == "running":
            stop = RunUnwanted(lease=state.lease, reason=clipped(reason, 256))
            return Step(state=replace(state, stopping=True), effects=(stop,))
        case RunOver():
            return _finish_run(state, event)
        case LineVouched():
            return _take_voucher(state, event)
        case LineRefused(reason=reason):
            return _hear_refusal(state, reason)
        case DeliveryTaken() | StopOrdered():
            return _settle(replace(state, phase="settling"))
        case TimePassed(at_ms=at_ms):
            return _pass_time(state, at_ms)
        case _:
            raise AssertionError(f"the table knows {type(event).__name__}, this function does not")


def _free(state: Sale) -> Step[Sale]:
    return Step(state=state, effects=(DevicesFreed(bid=state.bid_digest),))


def _objection(state: Sale, event: AwardArrived) -> str:
    award, channel = event.award, event.channel
    if award.signer != state.tender.signer:
        return "the award is not by the buyer who tendered"
    if event.at_ms > min(award.confirm_by_ms + CLOCK_SKEW_MS, state.bid.expires_ms):
        return "the bid or the award has expired"
    if award.start_by_ms > event.at_ms + LONGEST_WAIT_MS:
        return "the devices would wait too long for their start"
    if event.channel_closed:
        return "the channel is closed"
    if award.shard not in state.tender.shards:
        return "the award names a shard that was not tendered"
    if award.workload != digest(DOMAIN, event.workload):
        return "the workload is not the one that the award names"
    if event.workload.job != state.tender.job or event.workload.wall_ms > state.tender.requirements.wall_ms:
        return "the workload is not the one that was tendered"
    needs = state.tender.requirements
    if event.workload.memory_bytes > needs.memory_bytes or event.workload.scratch_bytes > needs.scratch_bytes:
        return "the workload asks for more than was tendered"
    if _is_too_large(event.workload):
        return "the workload is larger than providers take"
    if award.channel_id != channel_id(DOMAIN, channel):
        return "the channel is not the one that the award names"
    parties = (channel.payer, channel.payer_signer, channel.payee, channel.payee_signer)
    if parties != (award.signer, award.signer, state.bid.signer, state.bid.signer):
        return "the channel is not between this buyer and this provider"
    if channel.splits_hash != state.bid.splits_hash or channel.token != currency_id(state.tender.currency):
        return "the channel pays in another way than the bid says"
    if award.ends_ms > award.start_by_ms + needs.wall_ms:
        return "the lease is longer than was tendered"
    return ""


def _is_too_large(workload: Workload) -> bool:
    """Whether it would fill the provider's memory or disk outside the sandbox, where the job's limits do not hold."""
    return (
        workload.package_bytes > LARGEST_PACKAGE_BYTES
        or workload.state_bytes > LARGEST_STATE_BYTES
        or workload.output_bytes > LARGEST_OUTPUT_BYTES
        or workload.workers > MOST_WORKERS
    )


def _lease(state: Sale, event: AwardArrived) -> Step[Sale]:
    lease = digest(DOMAIN, event.award)
    objection = _objection(state, event)
    if objection:
        refusal = LeaseRefused(lease=lease, reason=objection)
        return Step(
            state=state, effects=(Send(to=state.buyer, message=refusal, keep_until_ms=state.tender.expires_ms),)
        )
    terms = LeaseTerms(
        lease=lease,
        job=state.tender.job,
        shard=event.award.shard,
        devices=state.bid.devices,
        price_e18_per_device_ms=state.bid.price_e18_per_device_ms,
        max_total=state.bid.max_total,
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
    if lease == state.lease and state.phase == "leased":
        return Step(state=state, effects=outstanding(state))
    if lease == state.lease:
        return ignore(state, "an award that is known")
    refusal = LeaseRefused(lease=lease, reason=f"the bid is {state.phase}")
    return Step(state=state, effects=(Send(to=state.buyer, message=refusal, keep_until_ms=award.confirm_by_ms),))


def _progress(state: Sale, event: ProgressMade) -> Step[Sale]:
    """Take the evidence in. Time is charged when it led to a new step: work that is done again is not paid again."""
    assert state.terms is not None
    after = replace(
        state,
        started_ms=state.started_ms or event.at_ms - event.running_ms,
        rounds=max(state.rounds, event.rounds),
        checkpoint=event.checkpoint,
    )
    if event.steps is not None:
        worked_ms = max(0, event.running_ms - state.seen_ms) if event.steps > state.steps else 0
        after = replace(
            after,
            seen_ms=event.running_ms,
            steps=max(state.steps, event.steps),
            evident_ms=max(state.evident_ms, event.at_ms) if worked_ms else state.evident_ms,
            unproved_since_ms=event.at_ms if worked_ms and state.unproved_since_ms else state.unproved_since_ms,
            device_ms=state.device_ms + worked_ms * len(state.bid.devices),
        )
    return _meter(after, event.at_ms, final=False)


def _meter(state: Sale, at_ms: int, *, final: bool) -> Step[Sale]:
    """Give the channel a line if there is new evidence and the interval is over; pause if too much is unpaid."""
    effects: list[Any] = []
    due = final or at_ms >= state.lined_ms + state.bid.meter_interval_ms
    if due and state.steps > state.lined_steps:
        assert state.terms is not None
        amount = state.accrued
        line = MeterLine(
            lease=state.lease,
            shard=state.terms.shard,
            device=state.terms.device,
            start_ms=state.started_ms,
            end_ms=max(state.started_ms, state.evident_ms),
            device_ms=state.device_ms,
            amount=amount,
        )
        evidence = Evidence(
            lease=state.lease,
            shard=state.terms.shard,
            steps=state.steps,
            rounds=state.rounds,
            checkpoint=state.checkpoint,
            tier=state.bid.tier,
            # Samples run ahead of the evidence: nobody is told of more use than of metered time.
            busy_ms=min(state.busy_ms, state.device_ms),
        )
        effects.append(LineMetered(line=line, evidence=evidence, at_ms=at_ms))
        waiting = state.unvouched_since_ms or (at_ms if amount > state.vouched else 0)
        state = replace(state, lined_ms=at_ms, lined_steps=state.steps, lined_amount=amount, unvouched_since_ms=waiting)
    if (
        not final
        and not state.paused_ms
        and not state.stopping
        and state.accrued - state.vouched > state.bid.max_unpaid
    ):
        paused = _pause(state, at_ms)
        return Step(state=paused.state, effects=(*effects, *paused.effects))
    return Step(state=state, effects=tuple(effects))


def _pause(state: Sale, at_ms: int) -> Step[Sale]:
    paused = replace(state, paused_ms=at_ms, unproved_since_ms=0)
    return Step(state=paused, effects=(PauseWanted(lease=state.lease),))


def _stop(state: Sale, reason: str) -> Step[Sale]:
    stopping = replace(state, stopping=True, reason=reason)
    return Step(state=stopping, effects=(RunUnwanted(lease=state.lease, reason=reason),))


def _take_voucher(state: Sale, event: LineVouched) -> Step[Sale]:
    if event.amount <= state.vouched:
        return ignore(state, "a voucher that is known")
    assert event.amount <= state.lined_amount, "vouched for more than was metered"
    waiting = event.at_ms if event.amount < state.lined_amount else 0
    paid = replace(state, vouched=event.amount, unvouched_since_ms=waiting, refused="")
    if state.phase == "running" and state.paused_ms and paid.accrued - paid.vouched <= paid.bid.max_unpaid:
        resumed = replace(paid, paused_ms=0, unproved_since_ms=event.at_ms)
        return Step(state=resumed, effects=(ResumeWanted(lease=state.lease),))
    return _settle(paid) if state.phase in ("settling", "unpaid") else Step(state=paid)


def _hear_refusal(state: Sale, reason: str) -> Step[Sale]:
    refused = replace(state, refused=reason)
    if state.phase == "running" and not state.stopping:
        stop = RunUnwanted(lease=state.lease, reason="the buyer refuses to pay")
        return Step(state=replace(refused, stopping=True), effects=(stop,))
    return Step(state=replace(refused, phase="unpaid") if state.phase == "settling" else refused)


def _finish_run(state: Sale, event: RunOver) -> Step[Sale]:
    over = replace(
        state,
        phase="delivering",
        outcome=event.outcome,
        kind=event.kind,
        reason=event.reason,
        outputs=event.outputs,
        over_ms=event.at_ms,
        paused_ms=0,
    )
    metered = _meter(over, event.at_ms, final=True)
    freed = DevicesFreed(bid=state.bid_digest)
    return Step(state=metered.state, effects=(*metered.effects, freed, *outstanding(metered.state)))


def _settle(state: Sale) -> Step[Sale]:
    """Delivered: the end, if everything metered is vouched for."""
    if state.vouched < state.lined_amount:
        return Step(state=replace(state, phase="unpaid") if state.refused else state)
    return Step(state=replace(state, phase="settled" if state.outcome == "succeeded" else "stopped"))


def _pass_time(state: Sale, at_ms: int) -> Step[Sale]:
    match state.phase:
        case "bid":
            return _free(replace(state, phase="lapsed", reason="the bid expired"))
        case "leased":
            return _free(replace(state, phase="lapsed", reason="the start was not ordered in time"))
        case "running":
            return _pass_running_time(state, at_ms)
        case "delivering":
            return _settle(replace(state, phase="settling"))
        case _:
            return Step(state=replace(state, phase="unpaid", reason="the buyer did not vouch for what was delivered"))


def _pass_running_time(state: Sale, at_ms: int) -> Step[Sale]:
    assert state.terms is not None
    reason = ""
    if at_ms >= state.terms.ends_ms:
        reason = "the lease is over"
    elif state.paused_ms and at_ms >= state.paused_ms + state.grace_ms:
        reason = "no voucher within the grace period"
    if reason and not state.stopping:
        return _stop(state, reason)
    if not state.paused_ms and not state.stopping:
        exposed = state.exposed_at_ms is not None and at_ms >= state.exposed_at_ms
        if exposed and state.accrued <= state.vouched:
            # There is nothing that the buyer could vouch for, so a pause would last for ever.
            return _stop(state, "it ran up more than may be unpaid without reporting a step")
        late = state.unvouched_since_ms and at_ms >= state.unvouched_since_ms + state.bid.voucher_timeout_ms
        if exposed or late:
            return _pause(state, at_ms)
    return _meter(state, at_ms, final=False)


def outstanding(state: Sale) -> tuple[Any, ...]:
    """What this sale waits for the buyer to take, said again: after a restart, and when it begins."""
    match state.phase:
        case "bid":
            message: Any = BidSent(bid=unsigned(state.bid))
            return (Send(to=state.buyer, message=message, keep_until_ms=state.bid.expires_ms),)
        case "leased":
            assert state.award is not None
            message = LeaseConfirmed(lease=state.lease)
            return (Send(to=state.buyer, message=message, keep_until_ms=state.award.start_by_ms),)
        case "delivering":
            message = RunEnded(
                lease=state.lease,
                outcome=state.outcome,
                kind=state.kind,
                reason=clipped(state.reason, 8_000),
                outputs=state.outputs,
            )
            return (Send(to=state.buyer, message=message, keep_until_ms=state.over_ms + DELIVERY_MS),)
        case _:
            return ()
