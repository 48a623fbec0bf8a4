"""Shards that found no place: how long they look on, how often they are tendered again, and when that is pointless.

A tender has the devices of everybody who bids held until it is over, and pays nobody for that. So a job that finds too
few providers asks seldom: three seconds after the first time, then after twice as long each time, up to some minutes.
It asks earlier when somebody appears who could make the difference (``RoomSeen``), and then no sooner than a share of
that pause: whoever sends adverts to and fro wakes nobody without end.

The first gang looks for as long as the job's queue allows (not at all by default), a shard that lost its place for as
long as a run may stall if that is longer. One whose last lease was not paid for does not end its job even then: it
looked too early, most likely, and waits for money again. Nothing is tendered that could not end by the job's deadline.
"""

from collections.abc import Sequence
from dataclasses import replace

from hansa.market.effects import clipped
from hansa.market.machine import Step, ignore
from hansa.market.sale_funding import UNFUNDED
from hansa.proto.units import UnixMs
from hansa.scheduler.job_events import RoomSeen, TenderWanted
from hansa.scheduler.job_losses import end, tender_for
from hansa.scheduler.job_state import Job, Shard, with_shards

RETRY_MS = 3_000
"""A shard that found no place is tendered again after this, the first time."""
LONGEST_PAUSE_MS = 5 * 60_000
LEAST_PAUSE_MS = 10_000
"""No sooner after a tender that came to nothing is the next one sent, whatever is heard of the market."""
EARLY_SHARE = 8
LONGEST_REASON_BYTES = 1_000
WAITED_FOR_MONEY = "unfilled: it waited for money until it could not end by its deadline any more"
"""Why a job failed that only more money could have had go on."""


def pause_ms(tries: int) -> int:
    """How long is waited after so many tenders that came to nothing."""
    return min(LONGEST_PAUSE_MS, RETRY_MS << min(max(tries - 1, 0), 16))


def looks_until_ms(state: Job, shard: Shard) -> UnixMs:
    """How long a shard without a place is tendered again."""
    gathers = state.phase == "gathering"
    patience_ms = state.spec.queue_ms if gathers else max(state.spec.stall_ms, state.spec.queue_ms)
    until_ms = (shard.waiting_ms or state.submitted_ms) + patience_ms
    return min(until_ms, latest_start_ms(state)) if state.spec.deadline_after_ms else until_ms


def due_ms(state: Job) -> UnixMs:
    """After this the job is worth nothing; 0 where there is no such time."""
    return state.submitted_ms + state.spec.deadline_after_ms if state.spec.deadline_after_ms else 0


def latest_start_ms(state: Job) -> UnixMs:
    """After this no shard is tendered, if the job has a deadline: a run that begins may take all of its ``wall``.

    A shard that moves may have most of its work behind it, so it is tendered up to the deadline itself.
    """
    return due_ms(state) - (state.spec.requirements.wall_ms if state.phase == "gathering" else 0)


def is_too_late(state: Job, at_ms: int) -> bool:
    """Whether what begins now could end after the deadline."""
    return state.spec.deadline_after_ms > 0 and at_ms > latest_start_ms(state)


def gives_up_on_money_ms(state: Job) -> UnixMs | None:
    """When a job that waits for money could not end in time any more, however much came. ``None``: it does not wait."""
    return latest_start_ms(state) + 1 if state.spec.deadline_after_ms and state.waits_for_money else None


def give_up_on_money(state: Job, at_ms: int) -> Step[Job]:
    """It came too late, or not at all."""
    return end(state, "failed", WAITED_FOR_MONEY, at_ms)


def wait_in_queue(state: Job, shards: Sequence[Shard], reason: str, at_ms: int) -> Step[Job]:
    """A tender for these shards came to nothing: they wait for the next, or have waited for long enough."""
    over = [shard for shard in shards if at_ms >= looks_until_ms(state, shard)]
    hopeless = next((shard for shard in over if shard.kind != UNFUNDED or is_too_late(state, at_ms + 1)), None)
    if hopeless is not None:
        return end(state, "failed", _why_over(state, hopeless, reason, at_ms), at_ms)
    later, why = [], clipped(reason, LONGEST_REASON_BYTES)
    for shard in shards:
        tries = shard.tries + 1
        asked = replace(shard, tried_ms=at_ms, tries=tries, unfilled=why)
        if shard in over:
            later.append(replace(asked, short=True, retry_ms=0))
        else:
            later.append(replace(asked, retry_ms=min(at_ms + pause_ms(tries), looks_until_ms(state, shard))))
    return Step(state=with_shards(state, *later))


def _why_over(state: Job, shard: Shard, reason: str, at_ms: int) -> str:
    late = bool(state.spec.deadline_after_ms) and at_ms >= latest_start_ms(state)
    if state.phase != "gathering":
        late_words = ", and the job's deadline has passed" if late else ""
        return f"shard {shard.shard} found no other provider{late_words}: {reason} (it had been {shard.reason})"
    if late:
        return f"unfilled: it could not end by its deadline any more: {reason}"
    asked = f" (it waited in the queue for as long as it may, and asked {shard.tries + 1} times)" if shard.tries else ""
    return f"unfilled: {reason}{asked}"


def hear_of_room(state: Job, event: RoomSeen) -> Step[Job]:
    """Somebody appeared who could take a shard: what waits for that is tendered sooner."""
    waiting = [shard for shard in state.shards if shard.phase == "waiting" and shard.retry_ms]
    sooner = [
        replace(shard, retry_ms=early_ms)
        for shard in waiting
        if (early_ms := max(event.at_ms, _earliest_ms(shard))) < shard.retry_ms
    ]
    return Step(state=with_shards(state, *sooner)) if sooner else ignore(state, "room for no shard that waits for some")


def _earliest_ms(shard: Shard) -> int:
    return shard.tried_ms + max(LEAST_PAUSE_MS, pause_ms(shard.tries) // EARLY_SHARE)


def tender_again(state: Job, at_ms: int) -> Step[Job]:
    """Tender what has waited for its pause: the first gang together, every other shard alone."""
    due = [shard for shard in state.shards if shard.phase == "waiting" and 0 < shard.retry_ms <= at_ms]
    state = with_shards(state, *(replace(shard, retry_ms=0) for shard in due))
    if not due:
        return Step(state=state)
    if state.phase != "gathering":
        return Step(state=state, effects=tuple(tender_for(state, shard, at_ms) for shard in due))
    numbers = tuple(shard.shard for shard in due)
    attempt = state.desertions + due[0].tries
    return Step(state=state, effects=(TenderWanted(job=state.job, shards=numbers, attempt=attempt, at_ms=at_ms),))
