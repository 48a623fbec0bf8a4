"""The buyer's machine for a training job's rounds: collect the shards' states, reduce them, publish the result.

A round is the unit of commitment. Membership changes only between contributions: a shard that is lost is no longer
waited for, one that comes late is told the newest result and goes on from there. After the first contribution the
others are waited for until a deadline; then half of the unfinished shards are enough, and fewer leave the round open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hansa.market.effects import Send
from hansa.market.machine import Step, Table, ignore, rows
from hansa.proto.blob import BlobRef
from hansa.proto.messages import RoundPublished
from hansa.proto.units import Address, Bytes32, DurationMs, Line, Uint32, Uint64, UnixMs

KEEP_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A shard that takes part: its lease, and whose node runs it."""

    shard: Uint32
    lease: Bytes32
    provider: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one shard brought to the round that is collected; ``at_ms`` is when its word of that came."""

    shard: Uint32
    provider: Address
    weight_milli: Uint64
    state: BlobRef
    at_ms: UnixMs = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberJoined:
    """A shard's run was ordered to start."""

    member: Member


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLeft:
    """A shard finished, or was lost."""

    lease: Bytes32
    finished: bool
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionArrived:
    """A shard's state at the end of its part of a round."""

    lease: Bytes32
    round: Uint32
    weight_milli: Uint64
    state: BlobRef
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A contribution that was left out, and why."""

    shard: Uint32
    reason: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """The states were fetched, checked and averaged."""

    round: Uint32
    state: BlobRef
    accepted: tuple[Uint32, ...]
    rejected: tuple[Rejected, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ReductionFailed:
    """Too little of what was announced could be had or was sound."""

    round: Uint32
    rejected: tuple[Rejected, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded:
    """No more rounds will be needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """The deadline that the machine named has come."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ReductionWanted:
    """Effect: fetch these states and average them."""

    job: Bytes32
    round: Uint32
    previous: BlobRef | None
    contributions: tuple[Contribution, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """One published round, for whoever looks back."""

    round: Uint32
    members: tuple[Uint32, ...]
    rejected: tuple[Rejected, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """The state.

    Attributes:
        phase: collecting, reducing or published (the job is over).
        job: the job.
        shards: how many the job has that are not finished, lost ones included: a quorum is half of these.
        finished: which shards are finished. One whose results were lost joins again, and is to be finished again.
        timeout_ms: how long after the first contribution the others are waited for.
        published: number of the newest published round; 0 before the first.
        state: what it came to.
        members: by lease.
        contributions: by shard, for round ``published + 1``.
        deadline: when waiting for the others ends; 0 before the first contribution.
        history: published rounds, the newest last, bounded.
    """

    phase: str = "collecting"
    job: Bytes32
    shards: Uint32
    timeout_ms: DurationMs
    published: Uint32 = 0
    state: BlobRef | None = None
    members: Mapping[bytes, Member] = field(default_factory=dict)
    contributions: Mapping[int, Contribution] = field(default_factory=dict)
    deadline: UnixMs = 0
    history: tuple[Past, ...] = ()
    finished: frozenset[Uint32] = frozenset()

    @property
    def quorum(self) -> int:
        """The least number of contributions that may stand for the whole job."""
        return (self.shards + 1) // 2


HISTORY_ROUNDS = 1_000

TABLE: Table[Rounds] = Table(
    name="scheduler.rounds",
    start="collecting",
    terminal=frozenset({"published"}),
    allowed=rows(
        (("collecting", "reducing"), MemberJoined, "same"),
        ("collecting", (MemberLeft, ContributionArrived, TimePassed), ("collecting", "reducing")),
        ("reducing", (MemberLeft, ContributionArrived), "reducing"),
        ("reducing", Reduced, ("collecting", "reducing")),
        ("reducing", ReductionFailed, "collecting"),
        (("collecting", "reducing"), JobEnded, "published"),
    ),
)


def advance(state: Rounds, event: Any) -> Step[Rounds]:
    """One event of a job's rounds."""
    return TABLE.advance(state, event, _react)


def deadline_ms(state: Rounds) -> int | None:
    """When time alone will change something."""
    return state.deadline or None if state.phase == "collecting" else None


def _react(state: Rounds, event: Any) -> Step[Rounds]:
    match event:
        case MemberJoined(member=member):
            others = {lease: entry for lease, entry in state.members.items() if entry.shard != member.shard}
            again = member.shard in state.finished
            rejoined = replace(state, shards=state.shards + again, finished=state.finished - {member.shard})
            return Step(state=replace(rejoined, members={**others, member.lease: member}))
        case MemberLeft(lease=lease, finished=finished, at_ms=at_ms):
            if lease not in state.members:
                return ignore(state, "the leaving of no member")
            members = {key: entry for key, entry in state.members.items() if key != lease}
            done = state.finished | {state.members[lease].shard} if finished else state.finished
            left = replace(state, members=members, shards=state.shards - finished, finished=done)
            return _reduce_if_complete(left, at_ms)
        case ContributionArrived():
            return _collect(state, event)
        case TimePassed(at_ms=at_ms):
            if len(state.contributions) < max(1, state.quorum):
                return Step(state=replace(state, deadline=at_ms + max(1, state.timeout_ms)))
            return _reduce(state, at_ms)
        case Reduced():
            return _publish(state, event)
        case ReductionFailed(round=number) if number != state.published + 1:
            return ignore(state, "the outcome of another round")
        case ReductionFailed():
            kept = {
                shard: entry
                for shard, entry in state.contributions.items()
                if shard not in {rejected.shard for rejected in event.rejected}
            }
            deadline = event.at_ms + max(1, state.timeout_ms)
            return Step(state=replace(state, phase="collecting", contributions=kept, deadline=deadline))
        case JobEnded():
            return Step(state=replace(state, phase="published", contributions={}, deadline=0))
        case _:
            raise AssertionError(f"the table knows {type(event).__name__}, this function does not")


def _collect(state: Rounds, event: ContributionArrived) -> Step[Rounds]:
    member = state.members.get(event.lease)
    if member is None:
        return ignore(state, "a contribution of no member")
    if event.round == 0:
        return ignore(state, "a contribution to no round")
    if event.round <= state.published:
        # The shard was away while the round went on without it: it gets the newest state and goes on from there.
        return Step(state=state, effects=_publications(state, (member,), event.at_ms))
    if event.round != state.published + 1:
        return ignore(state, "a contribution to a round that has not begun")
    contribution = Contribution(
        shard=member.shard,
        provider=member.provider,
        weight_milli=event.weight_milli,
        state=event.state,
        at_ms=event.at_ms,
    )
    known = state.contributions.get(member.shard)
    if state.phase == "reducing" or (known is not None and replace(known, at_ms=event.at_ms) == contribution):
        return ignore(state, "a contribution that is known, or comes while its round is reduced")
    # A shard that began again, here or elsewhere, brings another state: each shard counts once, with its newest.
    collected = replace(
        state,
        contributions={**state.contributions, member.shard: contribution},
        deadline=state.deadline or event.at_ms + state.timeout_ms,
    )
    return _reduce_if_complete(collected, event.at_ms)


def _reduce_if_complete(state: Rounds, at_ms: int) -> Step[Rounds]:
    waiting = {member.shard for member in state.members.values()} - set(state.contributions)
    if state.phase != "collecting" or waiting or len(state.contributions) < max(1, state.quorum):
        return Step(state=state)
    return _reduce(state, at_ms)


def _reduce(state: Rounds, at_ms: int) -> Step[Rounds]:
    reducing = replace(state, phase="reducing")
    return Step(state=reducing, effects=outstanding(reducing, at_ms))


def _publish(state: Rounds, event: Reduced) -> Step[Rounds]:
    if event.round != state.published + 1:
        return ignore(state, "the outcome of another round")
    past = Past(round=event.round, members=event.accepted, rejected=event.rejected, at_ms=event.at_ms)
    after = replace(
        state,
        phase="collecting",
        published=event.round,
        state=event.state,
        contributions={},
        deadline=0,
        history=(*state.history, past)[-HISTORY_ROUNDS:],
    )
    return Step(state=after, effects=_publications(after, tuple(after.members.values()), event.at_ms))


def _publications(state: Rounds, members: tuple[Member, ...], at_ms: int) -> tuple[Send, ...]:
    assert state.state is not None
    return tuple(
        Send(
            to=member.provider,
            message=RoundPublished(lease=member.lease, round=state.published, state=state.state),
            keep_until_ms=at_ms + KEEP_MS,
            replaces=f"round {member.lease.hex()}",
        )
        for member in members
    )


def outstanding(state: Rounds, at_ms: int) -> tuple[Any, ...]:
    """What waits to be done or taken, ordered again: after a restart, and when a reduction begins."""
    if state.phase == "reducing":
        ordered = tuple(state.contributions[shard] for shard in sorted(state.contributions))
        return (
            ReductionWanted(
                job=state.job,
                round=state.published + 1,
                previous=state.state,
                contributions=ordered,
                at_ms=at_ms,
            ),
        )
    if state.phase == "collecting" and state.state is not None:
        behind = tuple(member for member in state.members.values() if member.shard not in state.contributions)
        return _publications(state, behind, at_ms)
    return ()
