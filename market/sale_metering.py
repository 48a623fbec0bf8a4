"""How a sale turns evidence into lines, and how it bounds what a buyer can take without paying. Rules, no machine."""

from dataclasses import replace
from typing import Any

from hansa.market.earning_channel import LineMetered
from hansa.market.machine import Step
from hansa.market.sale_events import PauseWanted, ProgressMade
from hansa.market.sale_funding import chargeable_ms
from hansa.market.sale_state import Sale
from hansa.market.shares import WHOLE_MILLI, device_ms
from hansa.proto.documents import MeterLine
from hansa.proto.market_documents import Evidence


def take_progress(state: Sale, event: ProgressMade) -> Step[Sale]:
    """Take the evidence in. Time is charged when it led to a new step: work that is done again is not paid again.

    An old step ends no stretch of time unless a lost sandbox is why it comes again: its job could report it between
    any two new ones, and everything before it would be free.

    The clock may be set back, before the run or during it. What is charged never begins before what its devices are
    charged for already, and never is more than passed by the line's own times: the difference is given away.
    """
    assert state.terms is not None
    if state.is_over:
        return Step(state=replace(state, checkpoint=event.checkpoint))
    after = replace(
        state,
        started_ms=state.started_ms or max(event.at_ms - event.running_ms, event.not_before_ms),
        rounds=max(state.rounds, event.rounds),
        checkpoint=event.checkpoint,
    )
    if event.steps is not None:
        is_new = event.steps > state.steps
        worked_ms = max(0, event.running_ms - state.seen_ms) if is_new else 0
        more_ms, rest_milli = divmod(state.rest_milli + worked_ms * state.width_milli, WHOLE_MILLI)
        evident_ms = max(state.evident_ms, event.at_ms) if worked_ms else state.evident_ms
        passed_ms = device_ms(max(0, evident_ms - after.started_ms), state.width_milli)
        after = replace(
            after,
            seen_ms=event.running_ms if is_new or state.redoing else state.seen_ms,
            redoing=state.redoing and not is_new,
            steps=max(state.steps, event.steps),
            evident_ms=evident_ms,
            unproved_since_ms=event.at_ms if worked_ms and state.unproved_since_ms else state.unproved_since_ms,
            unproved=0 if worked_ms else state.unproved,
            device_ms=chargeable_ms(state, max(state.device_ms, min(state.device_ms + more_ms, passed_ms))),
            rest_milli=rest_milli,
        )
    return meter(after, event.at_ms, final=False)


def meter(state: Sale, at_ms: int, *, final: bool) -> Step[Sale]:
    """Give the channel a line if there is new evidence and the interval is over; pause if too much is unpaid."""
    effects: list[Any] = []
    due = final or at_ms >= state.lined_ms + state.bid.meter_interval_ms
    amount = state.chargeable
    if due and at_ms < state.started_ms:
        # The clock was set back, and the line would lie in the future.
        return Step(state=replace(state, lined_ms=at_ms, lined_steps=state.steps))
    # What was withheld and is not any more is charged for evidence that was given before.
    if due and (state.steps > state.lined_steps or amount > state.lined_amount):
        assert state.terms is not None
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
    if not final and not state.paused_ms and not state.stopping and state.unpaid > state.bid.max_unpaid:
        paused = pause(state, at_ms)
        return Step(state=paused.state, effects=(*effects, *paused.effects))
    return Step(state=state, effects=tuple(effects))


def pause(state: Sale, at_ms: int) -> Step[Sale]:
    """Let nothing more run up until the buyer has paid."""
    paused = replace(state, paused_ms=at_ms, unproved=state.unproved_at(at_ms), unproved_since_ms=0)
    return Step(state=paused, effects=(PauseWanted(lease=state.lease),))
