"""When the money behind a sale lets its run start, pause and go on. Rules, no machine.

A run starts only when its channel can pay for it and what is to be paid ahead has been paid. What may be charged never
passes the sale's share of what its channel can pay: the run pauses before that and goes on when there is more, or ends
after a while. Work beyond the share is never charged, however late a pause took hold.
"""

from dataclasses import replace

from hansa.market.machine import Step, ignore
from hansa.market.sale_events import FundsShared, PauseWanted, ResumeWanted, RunWanted, StartOrdered
from hansa.market.sale_state import Sale
from hansa.market.shares import WHOLE_MILLI, cost, width_milli
from hansa.proto.market_documents import Bid

UNFUNDED = "unfunded"
"""The kind of end of a lease whose channel could not pay for it."""
START_INTERVALS = 6
"""A run starts when what may be unpaid and so many intervals more can be paid, or the whole lease if that is less."""
STARVING_MS = 10 * 60_000
"""A run that is paused because its channel can pay no more is stopped after this. A deposit takes its time."""
LATE_ORDER_MS = 10_000
"""An order to start that came at the last moment still leaves this much time for the money."""


def enough_to_start(bid: Bid) -> int:
    """What the lease's channel must be able to pay for it before the run starts."""
    interval = cost(bid.meter_interval_ms, width_milli(bid), bid.price_e18_per_device_ms)
    return min(bid.max_total, bid.max_unpaid + START_INTERVALS * interval)


def lacks_money(state: Sale) -> str:
    """Why its run cannot start yet, in words; empty where it can."""
    if state.ceiling is not None and state.ceiling < enough_to_start(state.bid):
        return "its channel was not funded in time"
    return "what is paid ahead did not come in time" if state.ahead < state.bid.prepay else ""


def start(state: Sale, at_ms: int) -> Step[Sale]:
    """Start the run, or wait for its money."""
    if lacks_money(state):
        return Step(state=replace(state, phase="funding"))
    order = RunWanted(lease=state.lease, round=state.start_round, checkpoint=state.start_checkpoint)
    return Step(state=replace(state, phase="running", lined_ms=at_ms), effects=(order,))


def take_order(state: Sale, event: StartOrdered) -> Step[Sale]:
    """The buyer wants the run to start."""
    assert state.award is not None
    by_ms = max(state.award.start_by_ms, event.at_ms + LATE_ORDER_MS)
    ordered = replace(state, start_round=event.round, start_checkpoint=event.checkpoint, funded_by_ms=by_ms)
    return start(ordered, event.at_ms)


def take_share(state: Sale, event: FundsShared) -> Step[Sale]:
    """The channel can pay so much for this lease, all in all."""
    if event.ceiling == state.ceiling:
        return ignore(state, "a share that is known")
    shared = replace(state, ceiling=event.ceiling)
    if state.phase == "funding":
        return start(shared, event.at_ms)
    if not state.starved or not _is_worth_going_on(shared):
        return Step(state=shared)
    fed = replace(shared, starved=False)
    if fed.unpaid > fed.bid.max_unpaid:
        # What it waits for now is a voucher.
        return Step(state=replace(fed, paused_ms=event.at_ms))
    return resume(fed, event.at_ms)


def _is_worth_going_on(state: Sale) -> bool:
    """Whether there is enough for another interval, or for the rest of the lease: not for a start and a stop."""
    if state.ceiling is None:
        return True
    interval = cost(state.bid.meter_interval_ms, state.width_milli, state.bid.price_e18_per_device_ms)
    return state.ceiling >= min(state.bid.max_total, state.accrued + state.unproved + interval)


def resume(state: Sale, at_ms: int) -> Step[Sale]:
    """Let a paused run go on."""
    resumed = replace(state, paused_ms=0, unproved_since_ms=at_ms)
    return Step(state=resumed, effects=(ResumeWanted(lease=state.lease),))


def starve(state: Sale, at_ms: int) -> Step[Sale]:
    """Pause until the channel can pay more."""
    unproved = state.unproved_at(at_ms)
    starved = replace(state, starved=True, paused_ms=at_ms, unproved=unproved, unproved_since_ms=0)
    return Step(state=starved, effects=(PauseWanted(lease=state.lease),))


def chargeable_ms(state: Sale, device_ms: int) -> int:
    """As much of this device time, a running total, as the sale's share pays for."""
    price = state.bid.price_e18_per_device_ms
    if state.ceiling is None or state.ceiling >= state.bid.max_total or not price:
        return device_ms
    return max(state.device_ms, min(device_ms, ((state.ceiling + 1) * 10**18 - 1) // price))


def starves_at_ms(state: Sale) -> int | None:
    """When what ran up reaches the sale's share, if it goes on like this; None where it never does."""
    rate_e21 = state.bid.price_e18_per_device_ms * state.width_milli
    if state.ceiling is None or state.ceiling >= state.bid.max_total or not state.unproved_since_ms or not rate_e21:
        return None
    left = max(0, state.ceiling - state.accrued - state.unproved)
    return state.unproved_since_ms + left * 10**18 * WHOLE_MILLI // rate_e21
