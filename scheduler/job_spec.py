"""A job as its developer described it: the whole of ``job.toml``, checked and in exact units.

``hansa.node.jobs.job_file`` reads the file; nothing here knows where the values came from.
"""

from dataclasses import dataclass

from hansa.proto.blob import BlobRef
from hansa.proto.market_documents import LEASE_ANY, Fact, Requirements
from hansa.proto.splits import Split
from hansa.proto.units import Amount, Bytes32, DurationMs, Line, PriceE18, Uint32, Uint64
from hansa.proto.workload import Parameter, Workload

WORTH_RETRYING = ("lost", "ray-lost", "refused", "sandbox-lost", "silent", "stalled", "stopped", "worker-died")
"""Kinds of failure that another attempt, perhaps elsewhere, may not have; ``hansa.scheduler.job_losses`` says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What to run, on what, for how long, and for how much at the most.

    Attributes:
        name: what its author calls it.
        entry: ``"file.py:function"`` in the job's directory.
        shards: parts of the job that run at once, each on one provider.
        workers: Ray workers that share one shard.
        parameters: handed to the job's code as they are.
        requirements: what each shard needs.
        currency: the unit of account.
        budget: the most that the whole job may cost, all attempts together.
        price_ceiling_e18_per_device_ms: no bid above this is considered.
        meter_interval_ms: how often providers send receipts.
        bid_window_ms: how long bids are waited for when somebody stays silent.
        round_timeout_ms: after the first contribution, the others of a round are waited for this long.
        stall_ms: a run without progress for this long has failed.
        silence_ms: a provider that says nothing for this long has lost its lease.
        retries: how often one shard may be tendered again. A shard whose devices were taken back does not count.
        retry_on: the kinds of failure after which it is, sorted.
        mirror: whether checkpoints are held by the provider of another shard too.
        lease: ``"firm"``, ``"spot"``, or ``"any"`` for either.
        max_prepay_ms: how much device time of each lease may be paid ahead: what a provider could take and leave with.
        most_each: how many shards one provider may have at once; 0 for any number.
        only_bids: bids are asked for, shown, and let go: nothing is awarded.
        splits: who else than the provider gets a part of every payment.
        retry_same_provider: whether a provider that lost a shard may have it again if nobody else will.
        output_bytes: the most that one shard's outputs may weigh.
        state_bytes: the most that one shard's state or checkpoint may weigh.
        fetch_bytes: what the files beside the package weigh for one shard.
        shared_memory_bytes: size of /dev/shm in the sandbox.
        egress_bytes: the most that a shard may send to and get from the outside.
        keep_failed_ms: how long a run that failed is kept to be looked at.
        queue_ms: how long the job looks for its first providers before it fails for want of them; 0: one tender.
        facts: what its buyer states of it, for the providers' own rules; sorted by name, each name once.
        round_bytes: what its buyer expects a shard's state to weigh in a round; 0 where it does not say.
        round_every_ms: and how long shards work between two rounds.
        deadline_after_ms: so long after it was submitted the job is worth nothing; 0 where there is no such time.
    """

    name: Line
    entry: Line
    shards: Uint32
    workers: Uint32
    parameters: tuple[Parameter, ...]
    requirements: Requirements
    currency: Line
    budget: Amount
    price_ceiling_e18_per_device_ms: PriceE18
    meter_interval_ms: DurationMs
    bid_window_ms: DurationMs
    round_timeout_ms: DurationMs
    stall_ms: DurationMs
    silence_ms: DurationMs
    retries: Uint32
    output_bytes: Uint64
    state_bytes: Uint64
    fetch_bytes: Uint64
    shared_memory_bytes: Uint64
    egress_bytes: Uint64
    keep_failed_ms: DurationMs
    retry_on: tuple[Line, ...] = WORTH_RETRYING
    retry_same_provider: bool = True
    mirror: bool = False
    lease: Line = LEASE_ANY
    max_prepay_ms: DurationMs = 0
    most_each: Uint32 = 0
    only_bids: bool = False
    splits: tuple[Split, ...] = ()
    queue_ms: DurationMs = 0
    deadline_after_ms: DurationMs = 0
    facts: tuple[Fact, ...] = ()
    round_bytes: Uint64 = 0
    round_every_ms: DurationMs = 0

    def workload(self, job: Bytes32, package: BlobRef, files: BlobRef | None) -> Workload:
        """What an award for any shard of this job buys the running of."""
        needs = self.requirements
        return Workload(
            job=job,
            name=self.name,
            package_root=package.root,
            package_bytes=package.size_bytes,
            entry=self.entry,
            shards=self.shards,
            workers=self.workers,
            parameters=self.parameters,
            files_root=files.root if files else bytes(32),
            files_bytes=files.size_bytes if files else 0,
            fetch_bytes=self.fetch_bytes,
            memory_bytes=needs.memory_bytes,
            shared_memory_bytes=self.shared_memory_bytes,
            scratch_bytes=needs.scratch_bytes,
            egress_bytes=self.egress_bytes,
            output_bytes=self.output_bytes,
            state_bytes=self.state_bytes,
            stall_ms=self.stall_ms,
            wall_ms=needs.wall_ms,
            keep_failed_ms=self.keep_failed_ms,
        )
