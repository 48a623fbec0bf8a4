"""What a provider keeps of the other shards of a job that it runs one of: copies of their newest checkpoints.

A mirror lives as long as the lease under which it is asked for, and costs the buyer nothing beside that lease. It keeps
the copy that it has until the next one is here, so that there is never none; a copy that is over the owner's limit is
refused in words.
"""

from dataclasses import dataclass, replace
from typing import Any

from hansa.market.effects import Send
from hansa.market.machine import Step, Table, ignore, rows
from hansa.proto.blob import BlobRef
from hansa.proto.messages import MirrorHeld, MirrorRefused
from hansa.proto.units import Address, Bytes32, Line, Uint32, Uint64, UnixMs

MIRRORING, RELEASED = "mirroring", "released"
MOST_COPIES = 64
"""Shards that one lease may be asked to mirror."""
MOST_GRANTS = 64
ANSWER_KEEP_MS = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One shard's checkpoint.

    Attributes:
        shard: whose.
        holder: the provider that made the one that is wanted.
        held: the newest that is here.
        wanted: the one that is on its way.
    """

    shard: Uint32
    holder: Address
    held: BlobRef | None = None
    wanted: BlobRef | None = None

    @property
    def blobs(self) -> frozenset[BlobRef]:
        """What must not be evicted."""
        return frozenset(blob for blob in (self.held, self.wanted) if blob is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The buyer lets an account have a checkpoint that was made or is mirrored here."""

    account: Address
    checkpoint: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """The state.

    Attributes:
        lease: this provider's own, in the same job.
        buyer: whose job it is.
        copies: one for each shard, by its number.
        grants: the newest ones.
        sources: who mirrors the shard that runs here, in case that its buyer cannot give its checkpoint.
    """

    phase: Line = MIRRORING
    lease: Bytes32
    buyer: Address
    copies: tuple[Copy, ...] = ()
    grants: tuple[Grant, ...] = ()
    sources: tuple[Address, ...] = ()

    @property
    def size_bytes(self) -> int:
        """What the copies weigh, those on their way included."""
        return sum(blob.size_bytes for copy in self.copies for blob in copy.blobs)

    def copy_of(self, shard: int) -> Copy | None:
        """What is kept for one shard."""
        return next((copy for copy in self.copies if copy.shard == shard), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyWanted:
    """The buyer wants a checkpoint of another shard to be held here.

    Attributes:
        most_bytes: what all mirrors of this node may still take, the copies of this one left out.
    """

    shard: Uint32
    checkpoint: BlobRef
    holder: Address
    most_bytes: Uint64
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyCame:
    """A checkpoint that was on its way is here."""

    checkpoint: BlobRef
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyUnwanted:
    """The buyer needs no copy of this shard here any more."""

    shard: Uint32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The buyer lets somebody have a checkpoint."""

    grant: Grant
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcesNamed:
    """The shard of this lease goes on from a checkpoint that these have, too."""

    accounts: tuple[Address, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnded:
    """The lease that pays for all this is over."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchCopy:
    """Effect: bring this checkpoint here, from its buyer or from the provider that made it.

    Attributes:
        like: the copy before it, if there is one.
    """

    lease: Bytes32
    shard: Uint32
    buyer: Address
    holder: Address
    checkpoint: BlobRef
    like: BlobRef | None


TABLE: Table[Mirror] = Table(
    name="scheduler.mirror",
    start=MIRRORING,
    terminal=frozenset({RELEASED}),
    allowed=rows(
        (MIRRORING, (CopyWanted, CopyCame, CopyUnwanted, Granted, SourcesNamed), MIRRORING),
        (MIRRORING, LeaseEnded, RELEASED),
    ),
)


def advance(state: Mirror, event: Any) -> Step[Mirror]:
    """One event of a mirror."""
    return TABLE.advance(state, event, _react)


def outstanding(state: Mirror) -> tuple[FetchCopy, ...]:
    """What is on its way, ordered again after a restart."""
    return tuple(_fetch(state, copy) for copy in state.copies if copy.wanted is not None)


def _react(state: Mirror, event: Any) -> Step[Mirror]:
    match event:
        case CopyWanted():
            return _want(state, event)
        case CopyCame(checkpoint=checkpoint, at_ms=at_ms):
            came = tuple(copy for copy in state.copies if copy.wanted == checkpoint)
            if not came:
                return ignore(state, "a copy that nobody waits for")
            after = _with(state, *(replace(copy, held=checkpoint, wanted=None) for copy in came))
            told = tuple(_held(state, copy.shard, checkpoint, at_ms) for copy in came)
            return Step(state=after, effects=told)
        case CopyUnwanted(shard=shard):
            return Step(state=replace(state, copies=tuple(copy for copy in state.copies if copy.shard != shard)))
        case Granted(grant=grant):
            others = tuple(known for known in state.grants if known != grant)
            return Step(state=replace(state, grants=(*others, grant)[-MOST_GRANTS:]))
        case SourcesNamed(accounts=accounts):
            return Step(state=replace(state, sources=accounts))
        case LeaseEnded():
            return Step(state=replace(state, phase=RELEASED, copies=(), grants=()))
        case _:
            raise AssertionError(f"the table knows {type(event).__name__}, this function does not")


def _want(state: Mirror, event: CopyWanted) -> Step[Mirror]:
    before = state.copy_of(event.shard)
    if before is not None and before.held == event.checkpoint:
        settled = _with(state, replace(before, wanted=None))
        return Step(state=settled, effects=(_held(state, event.shard, event.checkpoint, event.at_ms),))
    if before is not None and before.wanted == event.checkpoint:
        return ignore(state, "a copy that is on its way")
    copy = Copy(shard=event.shard, holder=event.holder, held=before.held if before else None, wanted=event.checkpoint)
    after = _with(state, copy)
    if after.size_bytes > event.most_bytes or len(after.copies) > MOST_COPIES:
        why = "this provider keeps no more copies for others" if event.most_bytes else "this provider keeps no copies"
        refused = MirrorRefused(lease=state.lease, shard=event.shard, checkpoint=event.checkpoint, reason=why)
        return Step(state=state, effects=(_answer(state, refused, event.at_ms, event.shard),))
    return Step(state=after, effects=(_fetch(state, copy),))


def _fetch(state: Mirror, copy: Copy) -> FetchCopy:
    assert copy.wanted is not None, "nothing else is fetched"
    return FetchCopy(
        lease=state.lease,
        shard=copy.shard,
        buyer=state.buyer,
        holder=copy.holder,
        checkpoint=copy.wanted,
        like=copy.held,
    )


def _held(state: Mirror, shard: int, checkpoint: BlobRef, at_ms: int) -> Send:
    held = MirrorHeld(lease=state.lease, shard=shard, checkpoint=checkpoint)
    return _answer(state, held, at_ms, shard)


def _answer(state: Mirror, message: MirrorHeld | MirrorRefused, at_ms: int, shard: int) -> Send:
    replaces = f"mirror {state.lease.hex()} {shard}"
    return Send(to=state.buyer, message=message, keep_until_ms=at_ms + ANSWER_KEEP_MS, replaces=replaces)


def _with(state: Mirror, *changed: Copy) -> Mirror:
    by_shard = {copy.shard: copy for copy in (*state.copies, *changed)}
    return replace(state, copies=tuple(by_shard[shard] for shard in sorted(by_shard)))
