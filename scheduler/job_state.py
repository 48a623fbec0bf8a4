"""What a buyer knows of one job and its shards: the state of ``hansa.scheduler.job``."""

from dataclasses import dataclass, field, replace

from hansa.market.sale_funding import UNFUNDED
from hansa.proto.blob import BlobRef
from hansa.proto.messages import Metric
from hansa.proto.units import Address, Amount, Bytes32, DurationMs, Line, Note, Uint32, Uint64, UnixMs
from hansa.scheduler.job_spec import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A state from which a shard can go on."""

    round: Uint32
    step: Uint64
    blob: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """Who else was asked to hold a shard's checkpoint, and what it holds.

    Attributes:
        provider, lease: of another shard of the job.
        wanted: what was asked for and not answered yet; asked_ms: when.
        held: the newest that it says it holds.
        refusal, refused: why it would not hold which one.
    """

    provider: Address
    lease: Bytes32
    wanted: BlobRef | None = None
    asked_ms: UnixMs = 0
    held: BlobRef | None = None
    refusal: Note = ""
    refused: BlobRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnEnd:
    """An end that a provider says was the job's own doing: what others say of the same job is held beside it.

    Attributes:
        kind: what sort of end.
        provider, lease: whose word it is, and of which lease.
        counts: whether it could be believed: no devices had been taken back, and its provider was not silent.
    """

    kind: Line
    provider: Address
    lease: Bytes32
    counts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One file of a shard's outputs."""

    path: Line
    blob: BlobRef
    here: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard of the job.

    Attributes:
        shard: its number.
        phase: waiting, starting, running, kept (it failed and stays to be looked at), leaving (it has ended, and its
            newest checkpoint is on its way), ending (its outputs are on their way), finished or lost.
        lease: the newest lease it had.
        provider: whose that is.
        step: the newest step that was reported.
        metrics: what was reported with it.
        attempts: how many leases it had.
        checkpoint: the newest one that is here.
        copying: one that is announced and on its way.
        announced: a newer one, which is copied after that: a slow line must bring some of them.
        refusal: why the newest that was copied did not take the checkpoint's place; empty where it did.
        mirror: who holds the checkpoint beside us, if the job asks for that.
        outputs: files announced by the newest run.
        expected: how many files the run announced in all, once it ended.
        heard_ms: when its provider was last heard.
        ends_ms: when its lease ends.
        waiting_ms: since when it looks for another provider; 0 while it has one.
        retry_ms: when it is tendered again; 0 while a tender is out.
        tries: how many tenders for it came to nothing since it last had a place.
        tried_ms: when the last of these did.
        unfilled: why.
        held_until_ms: its start is not ordered before this, or before its whole gang can be paid; 0 once it is ordered.
        short: whether it waits for money and not for a provider.
        over_budget: whether that is money of its budget; else it is for its channel to be able to pay.
        losses: how many of its leases came to nothing, those left out whose devices were taken back.
        reclaims: how many of those there were.
        reclaim_notice_ms: the notice that the newest lease promises.
        reclaim_by_ms, reclaim_why: when its devices are taken back at the latest, and why; 0 while they are not.
        reclaim_early: whether that was said later than promised.
        reclaim_saved: whether a checkpoint was announced since then.
        over_ms: when it was said that the newest run is over; 0 before.
        kept_until_ms: how long the run that failed is kept.
        kind: what sort of end the last attempt had, the present one while it is kept or leaving.
        reason: the same in words.
    """

    shard: Uint32
    phase: str = "waiting"
    lease: Bytes32 = bytes(32)
    provider: Address = bytes(20)
    step: Uint64 = 0
    metrics: tuple[Metric, ...] = ()
    attempts: Uint32 = 0
    checkpoint: Checkpoint | None = None
    copying: Checkpoint | None = None
    announced: Checkpoint | None = None
    refusal: Note = ""
    mirror: Mirrored | None = None
    outputs: tuple[Output, ...] = ()
    expected: Uint32 = 0
    heard_ms: UnixMs = 0
    ends_ms: UnixMs = 0
    waiting_ms: UnixMs = 0
    retry_ms: UnixMs = 0
    tries: Uint32 = 0
    tried_ms: UnixMs = 0
    unfilled: Note = ""
    held_until_ms: UnixMs = 0
    short: bool = False
    over_budget: bool = False
    losses: Uint32 = 0
    reclaims: Uint32 = 0
    reclaim_notice_ms: DurationMs = 0
    reclaim_by_ms: UnixMs = 0
    reclaim_why: Note = ""
    reclaim_early: bool = False
    reclaim_saved: bool = False
    over_ms: UnixMs = 0
    kept_until_ms: UnixMs = 0
    kind: Line = ""
    reason: str = ""

    @property
    def lacks_budget(self) -> bool:
        """Whether it waits for more of its job's budget. What was written down before ``over_budget`` came counts."""
        return self.short and (self.over_budget or self.kind != UNFUNDED)

    @property
    def complete(self) -> bool:
        """Whether everything that the ended run announced is here."""
        return self.phase == "ending" and sum(output.here for output in self.outputs) >= self.expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The metrics of one step, as the first shard that reached it reported them."""

    step: Uint64
    metrics: tuple[Metric, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The state.

    Attributes:
        phase: gathering, running, succeeded, failed or cancelled.
        job: its id.
        spec: what the developer asked for.
        package: the job's directory as a blob.
        files: the list of the files beside it, if there are any.
        shards: one entry each.
        missing: how much more its budget needs at least, so that what waits for money can go on; 0 where nothing does.
        desertions: how often the first gang failed because winners did not confirm.
        history: metrics by step, in the order of steps.
        submitted_ms: when it came.
        ended_ms: when it ended; 0 before.
        reason: why it failed or was cancelled.
        own_ends: the newest ends that were said to be its own doing.
    """

    phase: str = "gathering"
    job: Bytes32
    spec: JobSpec
    package: BlobRef
    shards: tuple[Shard, ...]
    missing: Amount = 0
    desertions: Uint32 = 0
    history: tuple[Point, ...] = field(default=())
    submitted_ms: UnixMs
    ended_ms: UnixMs = 0
    reason: str = ""
    files: BlobRef | None = None
    own_ends: tuple[OwnEnd, ...] = ()

    def on(self, lease: bytes) -> Shard | None:
        """The shard whose newest lease this is, while it lives."""
        alive = ("starting", "running", "kept", "leaving", "ending")
        return next((shard for shard in self.shards if shard.lease == lease and shard.phase in alive), None)

    @property
    def waits_for_money(self) -> bool:
        """Whether some of its shards could go on, were there more money."""
        return any(shard.phase == "waiting" and shard.short for shard in self.shards)


def with_shards(state: Job, *changed: Shard) -> Job:
    """The job with these of its shards changed."""
    by_number = {shard.shard: shard for shard in changed}
    return replace(state, shards=tuple(by_number.get(shard.shard, shard) for shard in state.shards))
