"""Where the newest checkpoint of each shard is held beside the buyer: at the provider of another shard of the job.

A job that asks for mirrors pays nothing for them: its shards hold each other's checkpoints within their own leases. So
there is no mirror where one provider has all shards, nor once the others have finished; the job goes on without. What
``Shard.checkpoint`` names is always here at the buyer: a mirror's word that it holds a copy never takes its place, it
only names one more who may be asked.
"""

from dataclasses import dataclass, replace
from typing import Any

from hansa.market.effects import Send, clipped
from hansa.market.machine import Step, ignore
from hansa.proto.blob import BlobRef
from hansa.proto.messages import CheckpointGranted, MirrorReleased, MirrorWanted
from hansa.proto.units import Bytes32, Note, Uint32, UnixMs
from hansa.scheduler.job_losses import KEEP_MS
from hansa.scheduler.job_state import Job, Mirrored, Shard, with_shards

ANSWER_MS = 60_000
"""A mirror that says nothing for so long is asked for what is newest by then."""
MAY_MIRROR = ("starting", "running", "kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorAnswered:
    """A provider holds the copy that it was asked for, or will not.

    Attributes:
        lease: the mirror's own.
        shard: whose checkpoint it is about.
        refusal: why not; empty when it holds it.
    """

    lease: Bytes32
    shard: Uint32
    checkpoint: BlobRef
    refusal: Note
    at_ms: UnixMs


def take_answer(state: Job, mirror: Shard, event: MirrorAnswered) -> Step[Job]:
    """A mirror answered. Only the one that was asked, about what it was asked for, is believed."""
    of = state.shards[event.shard] if event.shard < len(state.shards) else None
    asked = of.mirror if of is not None else None
    if of is None or asked is None or asked.lease != mirror.lease or asked.wanted != event.checkpoint:
        return ignore(state, "the answer of a mirror that was not asked for this")
    if event.refusal:
        told = replace(asked, wanted=None, refusal=clipped(event.refusal, 256), refused=event.checkpoint)
    else:
        told = replace(asked, wanted=None, held=event.checkpoint, refusal="", refused=None)
    return Step(state=with_shards(state, replace(of, mirror=told)))


def mirrors_of(state: Job, shard: Shard) -> tuple[bytes, ...]:
    """The providers that hold a shard's newest checkpoint beside the buyer."""
    mirror = shard.mirror
    if mirror is None or shard.checkpoint is None or mirror.held != shard.checkpoint.blob:
        return ()
    return (mirror.provider,) if _may_mirror(state, mirror, shard) else ()


def grant_to(state: Job, shard: Shard, at_ms: int) -> list[Send]:
    """Let the mirrors of a shard give its checkpoint to the provider that the shard has now."""
    if shard.mirror is None or shard.checkpoint is None or not mirrors_of(state, shard):
        return []
    return [_grant(shard.mirror.provider, shard.mirror.lease, shard.checkpoint.blob, shard.provider, at_ms)]


def keep_mirrored(state: Job, at_ms: int) -> Step[Job]:
    """Ask for what is not mirrored yet, release what need not be any more. Said again, it changes nothing."""
    if not state.spec.mirror or state.phase != "running":
        return Step(state=state)
    effects: list[Any] = []
    for shard in state.shards:
        step = _keep_shard(state, shard, at_ms)
        state, effects = step.state, [*effects, *step.effects]
    return Step(state=state, effects=tuple(effects))


def _keep_shard(state: Job, shard: Shard, at_ms: int) -> Step[Job]:
    effects: list[Any] = []
    mirror = shard.mirror
    if mirror is not None and (shard.phase == "finished" or not _may_mirror(state, mirror, shard)):
        if state.on(mirror.lease) is not None:
            released = MirrorReleased(lease=mirror.lease, shard=shard.shard)
            effects.append(_send(mirror.provider, released, at_ms, f"mirror {mirror.lease.hex()} {shard.shard}"))
        mirror = None
    newest = shard.checkpoint.blob if shard.checkpoint is not None and shard.phase != "finished" else None
    if mirror is None and newest is not None:
        mirror = _choose(state, shard)
    if mirror is not None and newest is not None and _is_due(mirror, newest, at_ms):
        mirror = replace(mirror, wanted=newest, asked_ms=at_ms)
        wanted = MirrorWanted(lease=mirror.lease, shard=shard.shard, checkpoint=newest, holder=shard.provider)
        effects.append(_send(mirror.provider, wanted, at_ms, f"mirror {mirror.lease.hex()} {shard.shard}"))
        if state.on(shard.lease) is shard:
            effects.append(_grant(shard.provider, shard.lease, newest, mirror.provider, at_ms))
    if mirror == shard.mirror:
        return Step(state=state, effects=tuple(effects))
    return Step(state=with_shards(state, replace(shard, mirror=mirror)), effects=tuple(effects))


def _is_due(mirror: Mirrored, newest: BlobRef, at_ms: int) -> bool:
    """One copy at a time: a newer one waits for the answer, or a slow line would never bring any of them."""
    if newest in (mirror.held, mirror.refused, mirror.wanted):
        return False
    return mirror.wanted is None or at_ms >= mirror.asked_ms + ANSWER_MS


def _may_mirror(state: Job, mirror: Mirrored, shard: Shard) -> bool:
    """Whether its lease lives, and it is not the shard's own provider: that would be no second place."""
    other = state.on(mirror.lease)
    return other is not None and other.phase in MAY_MIRROR and mirror.provider != shard.provider


def _choose(state: Job, shard: Shard) -> Mirrored | None:
    """The next shard in the circle that another provider has, so that the copies spread evenly."""
    count = len(state.shards)
    for step in range(1, count):
        other = state.shards[(shard.shard + step) % count]
        found = Mirrored(provider=other.provider, lease=other.lease)
        if _may_mirror(state, found, shard):
            return found
    return None


def _grant(to: bytes, lease: bytes, checkpoint: BlobRef, account: bytes, at_ms: int) -> Send:
    granted = CheckpointGranted(lease=lease, checkpoint=checkpoint, account=account)
    return _send(to, granted, at_ms, f"grant {lease.hex()} {account.hex()}")


def _send(to: bytes, message: Any, at_ms: int, replaces: str) -> Send:
    return Send(to=to, message=message, keep_until_ms=at_ms + KEEP_MS, replaces=replaces)
