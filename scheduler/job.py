"""The buyer's machine for one job: its shards, their checkpoints, their outputs, and what happens when one is lost.

The first gang is all or none. From then on every shard has its own fate: one that is lost, or fails in a way that is
worth another try, is tendered again alone and goes on from its last checkpoint, within the job's retries. What is worth
it, and what becomes of a shard whose devices are taken back, is in ``hansa.scheduler.job_losses``.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hansa.market.effects import Send
from hansa.market.machine import SAME, Step, Table, ignore, rows
from hansa.market.sale_events import RECLAIMED, RECLAIMED_EARLY
from hansa.proto.blob import BlobRef
from hansa.proto.messages import DeliveryAccepted, RunOrdered
from hansa.scheduler.job_events import (
    BlobArrived,
    BlobMissed,
    BudgetRaised,
    CancelWanted,
    CheckpointAnnounced,
    FetchWanted,
    GangCame,
    GangFunded,
    KeepingArrived,
    OutputAnnounced,
    ReclaimArrived,
    ReportArrived,
    Restarted,
    RoomSeen,
    RoundUnsound,
    RunEndArrived,
    TenderFailed,
    TenderWanted,
    TimePassed,
)
from hansa.scheduler.job_losses import KEEP_MS, end, lose, stop
from hansa.scheduler.job_mirrors import MirrorAnswered, grant_to, keep_mirrored, mirrors_of, take_answer
from hansa.scheduler.job_money import raise_budget, try_short_shards_again, wait_for_money
from hansa.scheduler.job_news import (
    announce_checkpoint,
    announce_output,
    miss_blob,
    take_blob,
    take_keeping,
    take_reclaim,
    take_report,
    take_run_end,
)
from hansa.scheduler.job_queue import (
    give_up_on_money,
    gives_up_on_money_ms,
    hear_of_room,
    tender_again,
    wait_in_queue,
)
from hansa.scheduler.job_spec import JobSpec
from hansa.scheduler.job_state import Job, Shard, with_shards
from hansa.scheduler.rounds import Member, MemberJoined

FETCH_PATIENCE = 3
"""Outputs of a run that ended, or its last checkpoint, are waited for this many times the silence limit."""
SLOWEST_BYTES_S = 256 << 10
"""And in all for no longer than the most that they may be takes at this rate."""
OVERDUE_MS = 60_000
"""For so long after the end of a lease, of a notice or of a keeping its provider may still tell how the run ended:
clocks and stopping are counted in."""

TABLE: Table[Job] = Table(
    name="scheduler.job",
    start="gathering",
    terminal=frozenset({"succeeded", "failed", "cancelled"}),
    allowed=rows(
        ("gathering", GangCame, "running"),
        ("gathering", TenderFailed, ("gathering", "failed")),
        ("gathering", RoomSeen, "gathering"),
        ("gathering", TimePassed, ("gathering", "failed")),
        ("running", RoomSeen, "running"),
        (("gathering", "running"), CancelWanted, "cancelled"),
        (("gathering", "running"), BudgetRaised, SAME),
        ("running", GangFunded, "running"),
        ("running", RoundUnsound, "failed"),
        ("running", Restarted, "running"),
        ("running", (GangCame, ReportArrived, CheckpointAnnounced, OutputAnnounced, MirrorAnswered), "running"),
        ("running", BlobMissed, "running"),
        ("running", (KeepingArrived, ReclaimArrived), "running"),
        ("running", (BlobArrived, RunEndArrived, TimePassed), ("running", "succeeded", "failed")),
        ("running", TenderFailed, ("running", "failed")),
        # A provider that was given up on, or lost the news, is told again that nobody waits for it.
        (
            ("succeeded", "failed", "cancelled"),
            (GangCame, ReportArrived, KeepingArrived, ReclaimArrived, RunEndArrived),
            SAME,
        ),
    ),
)


def plan(*, job: bytes, spec: JobSpec, package: BlobRef, files: BlobRef | None = None, at_ms: int) -> Step[Job]:
    """A new job, and the tender for all of its shards."""
    shards = tuple(Shard(shard=number) for number in range(spec.shards))
    planned = Job(job=job, spec=spec, package=package, files=files, shards=shards, submitted_ms=at_ms)
    numbers = tuple(range(spec.shards))
    tender = TenderWanted(job=job, shards=numbers, attempt=0, at_ms=at_ms)
    return Step(state=planned, effects=(tender,))


def advance(state: Job, event: Any) -> Step[Job]:
    """One event of a job."""
    step = TABLE.advance(state, event, _react)
    if step.ignored is not None:
        return step
    # Whatever happened, a checkpoint may have come or a mirror have gone with it.
    mirrored = keep_mirrored(step.state, event.at_ms)
    step = Step(state=mirrored.state, effects=(*step.effects, *mirrored.effects))
    return try_short_shards_again(state, step, event.at_ms)


def deadline_ms(state: Job) -> int | None:
    """When time alone will change something: a provider has been silent for too long."""
    if state.phase in TABLE.terminal:
        return None
    silent = [_silent_at_ms(state, shard) for shard in state.shards if state.on(shard.lease) is shard]
    retries = [shard.retry_ms for shard in state.shards if shard.phase == "waiting" and shard.retry_ms]
    retries += [shard.held_until_ms for shard in state.shards if _is_held(shard)]
    if (gives_up_ms := gives_up_on_money_ms(state)) is not None:
        retries.append(gives_up_ms)
    return min(silent + retries, default=None)


def _is_held(shard: Shard) -> bool:
    return shard.phase == "starting" and shard.held_until_ms > 0


def _silent_at_ms(state: Job, shard: Shard) -> int:
    """When this shard's provider is given up on: after a silence, or when a run has outlived its lease."""
    if shard.phase in ("ending", "leaving"):
        patience_ms = state.spec.silence_ms * FETCH_PATIENCE
        most_bytes = state.spec.output_bytes if shard.phase == "ending" else state.spec.state_bytes
        # Whoever announces ever other bytes, or sends them by the drop, is not waited for without end.
        return min(shard.heard_ms + patience_ms, shard.over_ms + patience_ms + most_bytes * 1000 // SLOWEST_BYTES_S)
    if shard.phase == "kept":
        return min(shard.kept_until_ms, shard.ends_ms) + OVERDUE_MS
    overdue_ms = min(shard.ends_ms, shard.reclaim_by_ms or shard.ends_ms) + OVERDUE_MS
    return min(shard.heard_ms + state.spec.silence_ms, overdue_ms)


def _react(state: Job, event: Any) -> Step[Job]:
    if state.phase in TABLE.terminal:
        return _dismiss(state, event)
    match event:
        case GangCame():
            return _start(state, event)
        case TenderFailed():
            return _hear_tender_failed(state, event)
        case GangFunded(leases=leases, at_ms=at_ms):
            return _order_starts(state, [shard for shard in state.shards if shard.lease in leases], at_ms)
        case BudgetRaised():
            return raise_budget(state, event)
        case RoomSeen():
            return hear_of_room(state, event)
        case CancelWanted(reason=reason, at_ms=at_ms):
            return end(state, "cancelled", reason, at_ms)
        case RoundUnsound(round=number, reason=reason, at_ms=at_ms):
            return end(state, "failed", f"round {number} could not be averaged: {reason}", at_ms)
        case TimePassed(at_ms=at_ms):
            return _pass_time(state, at_ms)
        case Restarted(at_ms=at_ms):
            return Step(state=with_shards(state, *(_heard_at(shard, at_ms) for shard in state.shards)))
    shard = state.on(event.lease)
    if shard is None:
        return ignore(state, f"{type(event).__name__} of no lease that lives")
    match event:
        case ReportArrived():
            return take_report(state, shard, event)
        case CheckpointAnnounced():
            return announce_checkpoint(state, shard, event)
        case OutputAnnounced():
            return announce_output(state, shard, event)
        case KeepingArrived():
            return take_keeping(state, shard, event)
        case ReclaimArrived():
            return take_reclaim(state, shard, event)
        case BlobArrived():
            return take_blob(state, shard, event)
        case BlobMissed():
            return miss_blob(state, shard, event)
        case MirrorAnswered():
            return take_answer(state, shard, event)
        case RunEndArrived():
            return take_run_end(state, shard, event)
        case _:
            raise AssertionError(f"the table knows {type(event).__name__}, this function does not")


def _heard_at(shard: Shard, at_ms: int) -> Shard:
    """What providers said while this node was away is still on its way."""
    return replace(
        shard,
        heard_ms=at_ms,
        over_ms=shard.over_ms and max(shard.over_ms, at_ms),
        reclaim_by_ms=shard.reclaim_by_ms and max(shard.reclaim_by_ms, at_ms),
        kept_until_ms=shard.kept_until_ms and max(shard.kept_until_ms, at_ms),
    )


def _start(state: Job, event: GangCame) -> Step[Job]:
    """Order every granted shard to start, from its checkpoint if there is one."""
    started: list[Shard] = []
    effects: list[Any] = []
    for granted in event.granted:
        shard = state.shards[granted.shard]
        if shard.phase != "waiting":
            effects += stop(granted.provider, granted.lease, "the shard has another provider", event.at_ms)
            continue
        started.append(
            replace(
                shard,
                phase="starting",
                lease=granted.lease,
                provider=granted.provider,
                attempts=shard.attempts + 1,
                copying=None,
                announced=None,
                outputs=(),
                expected=0,
                heard_ms=event.at_ms,
                ends_ms=granted.ends_ms,
                waiting_ms=0,
                retry_ms=0,
                tries=0,
                unfilled="",
                short=False,
                over_budget=False,
                held_until_ms=event.hold_ms and event.at_ms + event.hold_ms,
                reclaim_notice_ms=granted.reclaim_notice_ms,
                reclaim_by_ms=0,
                reclaim_why="",
                reclaim_early=False,
                reclaim_saved=False,
                over_ms=0,
                kept_until_ms=0,
            )
        )
        member = Member(shard=shard.shard, lease=granted.lease, provider=granted.provider)
        effects += [MemberJoined(member=member), *grant_to(state, started[-1], event.at_ms)]
        if not event.hold_ms:
            effects.append(_start_order(state, started[-1], event.at_ms))
    return Step(state=replace(with_shards(state, *started), phase="running"), effects=tuple(effects))


def _order_starts(state: Job, shards: Sequence[Shard], at_ms: int) -> Step[Job]:
    """Let those of them start whose start was held back."""
    held = [replace(shard, held_until_ms=0) for shard in shards if _is_held(shard)]
    orders = tuple(_start_order(state, shard, at_ms) for shard in held)
    return Step(state=with_shards(state, *held), effects=orders)


def _start_order(state: Job, shard: Shard, at_ms: int) -> Send:
    checkpoint = shard.checkpoint
    message = RunOrdered(
        lease=shard.lease,
        round=checkpoint.round if checkpoint else 0,
        checkpoint=checkpoint.blob if checkpoint else None,
        mirrors=mirrors_of(state, shard),
    )
    return Send(to=shard.provider, message=message, keep_until_ms=at_ms + KEEP_MS)


def _hear_tender_failed(state: Job, event: TenderFailed) -> Step[Job]:
    """The first gang is all or none. What finds no place waits in the queue, as far as that is allowed."""
    if event.missing:
        return wait_for_money(state, event)
    if state.phase == "gathering" and event.deserted and state.desertions < state.spec.retries:
        # Cheap bids that are never confirmed cost their makers nothing. They may not cost the job its life either.
        again = replace(state, desertions=state.desertions + 1)
        tender = TenderWanted(job=state.job, shards=event.shards, attempt=again.desertions, at_ms=event.at_ms)
        return Step(state=again, effects=(tender,))
    waiting = [state.shards[number] for number in event.shards if state.shards[number].phase == "waiting"]
    return wait_in_queue(state, waiting, event.reason, event.at_ms)


def _pass_time(state: Job, at_ms: int) -> Step[Job]:
    """Give up on providers that fell silent, and tender again what waits for it."""
    if (gives_up_ms := gives_up_on_money_ms(state)) is not None and gives_up_ms <= at_ms:
        return give_up_on_money(state, at_ms)
    released = _order_starts(state, [shard for shard in state.shards if shard.held_until_ms <= at_ms], at_ms)
    again = tender_again(released.state, at_ms)
    state = again.state
    effects: list[Any] = [*released.effects, *again.effects]
    alive = [shard for shard in state.shards if state.on(shard.lease) is shard]
    late = [shard for shard in alive if _silent_at_ms(state, shard) <= at_ms]
    lost = lose(state, [(shard, *_why_late(state, shard, at_ms)) for shard in late], at_ms)
    return Step(state=lost.state, effects=(*effects, *lost.effects))


def _why_late(state: Job, shard: Shard, at_ms: int) -> tuple[str, str]:
    """What sort of end it is when no word of an end came."""
    if shard.phase in ("kept", "leaving"):
        return shard.kind, shard.reason
    if shard.phase == "ending":
        return "lost", "its results did not come"
    if shard.reclaim_by_ms:
        # Its machine may be gone with the devices. It was to leave, so this is no loss that anybody could have spared;
        # but who falls silent while there is still time to leave did not give the notice that it announced.
        early = shard.reclaim_early or at_ms < shard.reclaim_by_ms
        return (RECLAIMED_EARLY if early else RECLAIMED), shard.reclaim_why
    return "lost", "it fell silent" if shard.heard_ms + state.spec.silence_ms <= at_ms else "its lease is over"


def _dismiss(state: Job, event: Any) -> Step[Job]:
    """The job is over: whoever still works for it is told so, and whoever ended may forget it."""
    if isinstance(event, GangCame):
        told: list[Any] = []
        for granted in event.granted:
            told += stop(granted.provider, granted.lease, f"the job is {state.phase}", event.at_ms)
        return Step(state=state, effects=tuple(told))
    return ignore(state, "news of a job that is over")


def outstanding(state: Job, at_ms: int) -> tuple[Any, ...]:
    """What waits to be taken or fetched, ordered again after a restart."""
    effects: list[Any] = []
    for shard in state.shards:
        if shard.phase == "starting" and not _is_held(shard):
            effects += [*grant_to(state, shard, at_ms), _start_order(state, shard, at_ms)]
        if state.on(shard.lease) is not shard:
            continue
        wanted = [output.blob for output in shard.outputs if not output.here]
        wanted += [shard.copying.blob] if shard.copying else []
        effects += [
            FetchWanted(job=state.job, lease=shard.lease, provider=shard.provider, blob=blob) for blob in wanted
        ]
    if not state.ended_ms or at_ms < state.ended_ms + KEEP_MS:
        effects += [
            Send(to=shard.provider, message=DeliveryAccepted(lease=shard.lease), keep_until_ms=at_ms + KEEP_MS)
            for shard in state.shards
            if shard.phase == "finished"
        ]
    return tuple(effects)
