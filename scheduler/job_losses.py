"""What a job does about an attempt that came to nothing: who is at fault, whether another one can help, and from where.

Another attempt is worth making where it may end differently: a worker died, a provider was lost, nothing moved any
more. A fault in the job's own code would recur. So would ``out-of-memory``, which says that the run went over the
memory that it had itself asked for: the next one has no more. That kind is tried again only where ``job.toml`` names it
(a run's need may depend on chance, and a provider cannot always tell a kill by the run's own limit from one by a
machine that was short of memory itself).

A lease whose devices are taken back is nobody's failure and costs no retry. The shard is tendered again when its run
has ended and the newest checkpoint that was announced is here, and not already when the notice comes: until then the
old run may finish by itself, a lease bought early would hold devices that nobody pays for (and that a tight budget
cannot cover twice), and the place where the next run begins is not known. What that costs is one bidding, which closes
as soon as everybody invited has answered, and one start: ``tests/simulation/simulate.py`` prints how long shards stood
still. It cannot go on for ever either: a shard is moved ``MOST_RECLAIMS`` times at the most, and within its budget.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hansa.market.effects import Send, clipped, clipped_inside
from hansa.market.firm_leases import DEVELOPERS_OWN, JOBS_OWN, SEEN, is_due, is_due_for_success, rests_on_word
from hansa.market.funding import start_ms
from hansa.market.machine import Step
from hansa.market.purchase_awards import CONFIRM_MS
from hansa.market.sale_events import RECLAIMED, RECLAIMED_EARLY
from hansa.market.sale_funding import UNFUNDED
from hansa.proto.messages import RunStopOrdered
from hansa.scheduler.job_events import JobOver, LeaseOver, TendersUnwanted, TenderWanted, WordBorneOut
from hansa.scheduler.job_state import Job, OwnEnd, Shard, with_shards
from hansa.scheduler.rounds import MemberLeft

KEEP_MS = 3_600_000
WALL_LIMIT = "wall-limit"
MOST_RECLAIMS = 50
"""A shard whose devices were taken back so often is not tendered to yet another owner."""
MOST_OWN_ENDS = 32
"""So many words of what a job did itself are held beside each other."""

WORDS = {
    "lost": "its provider was lost",
    "worker-died": "a worker died",
    "out-of-memory": "it went over its memory",
    "ray-lost": "Ray was lost in its sandbox",
    "sandbox-lost": "its sandbox was lost",
    "stalled": "it hung: there was no progress",
    "silent": "its sandbox fell silent",
    "refused": "its provider could not start it",
    "stopped": "its provider stopped it",
    "no-room": "what it made found no room",
    "user-exception": "its code ended with an error",
    "bad-entry": "its code could not be started",
    "bad-state": "its state could not be used",
    "wall-limit": "it took longer than it may",
    "protocol": "its sandbox said what it must not",
    UNFUNDED: "its channel could not pay for it",
    RECLAIMED: "its devices were taken back, with the notice that was promised",
    RECLAIMED_EARLY: "its devices were taken back with less notice than was promised",
}
"""Each kind of end that is not a success, for people. A provider may say others; those stand for themselves."""


def in_words(kind: str, reason: str) -> str:
    """How an attempt ended: the kind in words, then what its provider said."""
    words = WORDS.get(kind, kind)
    return clipped_inside(f"{words}: {reason}" if reason else words, 2_000)


def lose(state: Job, lost: Sequence[tuple[Shard, str, str]], at_ms: int) -> Step[Job]:
    """These shards' attempts came to nothing: tender them again, or fail the job where that cannot help."""
    effects: list[Any] = []
    for shard, kind, reason in lost:
        blameless = kind in (RECLAIMED, UNFUNDED)
        if shard.phase not in ("kept", "leaving"):
            effects.append(MemberLeft(lease=shard.lease, finished=False, at_ms=at_ms))
        own, borne_out = _is_developers(shard, kind), _is_borne_out(state, shard, kind)
        state, due, on_word, others = _judged(state, shard, kind, at_ms)
        told, over = stop(shard.provider, shard.lease, in_words(kind, reason), at_ms, blameless=blameless, due=due)
        over = replace(over, reclaimed=kind == RECLAIMED, on_word=on_word, own=own, borne_out=borne_out)
        effects += [told, over, *others]
        moved = kind in (RECLAIMED, RECLAIMED_EARLY)
        waiting = replace(
            shard,
            phase="waiting",
            copying=None,
            announced=None,
            waiting_ms=at_ms,
            kind=kind,
            reason=in_words(kind, reason),
            losses=shard.losses + (not moved and kind != UNFUNDED),
            short=kind == UNFUNDED,
            over_budget=False,
            reclaims=shard.reclaims + moved,
        )
        state = with_shards(state, waiting)
        why = _why_not_again(state, waiting)
        if why:
            failed = end(state, "failed", why, at_ms)
            return Step(state=failed.state, effects=(*effects, *failed.effects))
        if not waiting.short:
            effects.append(tender_for(state, waiting, at_ms))
    return Step(state=state, effects=tuple(effects))


def is_worth_another(state: Job, kind: str) -> bool:
    """Whether an attempt that ended like this may be followed by another, as far as its kind goes."""
    return kind in (RECLAIMED, RECLAIMED_EARLY, UNFUNDED) or kind in state.spec.retry_on


def _why_not_again(state: Job, shard: Shard) -> str:
    if not is_worth_another(state, shard.kind):
        return f"shard {shard.shard} failed ({shard.kind}): {shard.reason}"
    if shard.reclaims > MOST_RECLAIMS:
        return f"the devices of shard {shard.shard} were taken back {shard.reclaims} times"
    if shard.losses > state.spec.retries:
        return f"shard {shard.shard} was lost {shard.losses} times, the last time because: {shard.reason}"
    return ""


def end(state: Job, phase: str, reason: str, at_ms: int) -> Step[Job]:
    """The job is over: whoever works for it stops."""
    effects: list[Any] = [TendersUnwanted(job=state.job, reason=reason, at_ms=at_ms)]
    for shard in state.shards:
        if state.on(shard.lease) is shard:
            # Whatever ended the job, it was no provider whose run went well so far: whoever lost one was marked before.
            # Who wants the end owes what was withheld, unless the run had ended badly or its devices were taken back.
            due, on_word, own, borne_out = is_due_if_it_succeeded(state, shard), False, False, False
            others: tuple[WordBorneOut, ...] = ()
            if shard.phase in ("kept", "leaving"):
                own, borne_out = _is_developers(shard, shard.kind), _is_borne_out(state, shard, shard.kind)
                state, due, on_word, others = _judged(state, shard, shard.kind, at_ms)
            told, over = stop(shard.provider, shard.lease, reason, at_ms, blameless=shard.phase != "kept", due=due)
            reclaimed = shard.phase == "leaving" and shard.kind == RECLAIMED
            over = replace(over, reclaimed=reclaimed, on_word=on_word, own=own, borne_out=borne_out)
            effects += [told, over, *others]
    shards = tuple(replace(shard, phase="lost" if shard.phase != "finished" else shard.phase) for shard in state.shards)
    ended = replace(state, phase=phase, reason=reason, ended_ms=at_ms, shards=shards)
    return Step(state=ended, effects=(*effects, JobOver(job=state.job)))


def is_due_if_it_succeeded(state: Job, shard: Shard) -> bool:
    """Whether what a firm lease withheld is owed if its run is over well, or its buyer wants the end.

    What another provider's shard of the same job came to says whether there should have been files.
    """
    others = [entry for entry in state.shards if entry.phase == "finished" and entry.provider != shard.provider]
    return is_due_for_success(
        taken_back=shard.reclaim_by_ms > 0,
        results=sum(output.here for output in shard.outputs) if shard.phase == "ending" else 0,
        borne_out=shard.phase == "ending" and any(not entry.expected and not entry.reclaim_by_ms for entry in others),
    )


def _judged(state: Job, shard: Shard, kind: str, at_ms: int) -> tuple[Job, bool, bool, tuple[WordBorneOut, ...]]:
    """Whether what a firm lease withheld is owed although its run came to nothing, and what follows for others' leases.

    Answers the job with this end, whether it is due, whether that is only a word, and whose word is now borne out.
    """
    if kind not in JOBS_OWN - SEEN:
        return state, _is_due(state, shard, kind, at_ms), False, ()
    same = _others_than(shard.provider, state, kind)
    counts = _is_due(state, shard, kind, at_ms, borne_out=True)
    own = OwnEnd(kind=clipped(kind, 64), provider=shard.provider, lease=shard.lease, counts=counts)
    noted = replace(state, own_ends=(*state.own_ends, own)[-MOST_OWN_ENDS:])
    borne_out = bool(same)
    due = _is_due(state, shard, kind, at_ms, borne_out=borne_out)
    marked = [end.lease for end in same if kind in DEVELOPERS_OWN and not _others_than(end.provider, state, kind)]
    others = tuple(WordBorneOut(lease=end.lease, own=end.lease in marked, at_ms=at_ms) for end in same)
    others = others if counts else ()
    return noted, due, due and rests_on_word(kind, borne_out=borne_out), others


def _others_than(provider: bytes, state: Job, kind: str) -> list[OwnEnd]:
    """The same end of the same job at other providers: these bear a word out."""
    return [end for end in state.own_ends if end.kind == kind and end.provider != provider and end.counts]


def _is_developers(shard: Shard, kind: str) -> bool:
    """Whether the job's author is said to be at fault. Who had taken its devices back has another way out in that."""
    return kind in DEVELOPERS_OWN and not shard.reclaim_by_ms


def _is_borne_out(state: Job, shard: Shard, kind: str) -> bool:
    return kind in JOBS_OWN - SEEN and bool(_others_than(shard.provider, state, kind))


def _is_due(state: Job, shard: Shard, kind: str, at_ms: int, *, borne_out: bool = False) -> bool:
    return is_due(
        kind,
        taken_back=shard.reclaim_by_ms > 0,
        is_silent=kind == "lost" and shard.heard_ms + state.spec.silence_ms <= at_ms,
        ends_ms=shard.ends_ms,
        # The end of a run may come before its checkpoint does, and is what the word of its time is held against.
        at_ms=shard.over_ms if kind == WALL_LIMIT and shard.over_ms else at_ms,
        full_ms=shard.ends_ms - CONFIRM_MS - start_ms(state.spec.currency),
        borne_out=borne_out,
    )


def stop(
    provider: bytes, lease: bytes, reason: str, at_ms: int, *, blameless: bool = False, due: bool = False
) -> list[Any]:
    """Tell a provider that its run is not wanted any more, and the purchase that the lease is over."""
    message = RunStopOrdered(lease=lease, reason=clipped(reason, 256))
    told = Send(to=provider, message=message, keep_until_ms=at_ms + KEEP_MS, replaces=f"stop {lease.hex()}")
    return [told, LeaseOver(lease=lease, well=False, blameless=blameless, due=due, at_ms=at_ms)]


def tender_for(state: Job, shard: Shard, at_ms: int) -> TenderWanted:
    """The call for another lease of one shard."""
    return TenderWanted(job=state.job, shards=(shard.shard,), attempt=shard.attempts, at_ms=at_ms)
