"""What happens to a job, and what it orders: the words between ``hansa.scheduler.job`` and the rooms around it."""

from dataclasses import dataclass

from hansa.proto.blob import BlobRef
from hansa.proto.messages import Metric
from hansa.proto.units import Address, Amount, Bytes32, DurationMs, Line, Note, Uint32, Uint64, UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """One shard's lease, as the purchase reports it."""

    shard: Uint32
    lease: Bytes32
    provider: Address
    ends_ms: UnixMs
    reclaim_notice_ms: DurationMs = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GangCame:
    """Every shard that was tendered has a confirmed lease.

    Attributes:
        hold_ms: their starts may be held back for so long, until the money for all of them is there: a shard that
            waits for another one's part of a round computes nothing that its provider is paid for.
    """

    granted: tuple[Granted, ...]
    hold_ms: DurationMs = 0
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TenderFailed:
    """The tender ended without leases.

    Attributes:
        deserted: winners did not confirm. Without them another tender may well be filled.
        missing: how much more the budget would have had to be; 0 where money was not the reason.
    """

    shards: tuple[Uint32, ...]
    reason: str
    deserted: bool
    missing: Amount = 0
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomSeen:
    """A provider that could take a shard of the job has appeared, or has devices free again."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportArrived:
    """A sign of life from a run."""

    lease: Bytes32
    step: Uint64
    metrics: tuple[Metric, ...]
    started: bool
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointAnnounced:
    """The provider has a checkpoint for us to copy."""

    lease: Bytes32
    round: Uint32
    step: Uint64
    checkpoint: BlobRef
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputAnnounced:
    """The provider has a file of the outputs for us to fetch."""

    lease: Bytes32
    path: Line
    blob: BlobRef
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobArrived:
    """A checkpoint or an output is here, checked."""

    lease: Bytes32
    blob: BlobRef
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobMissed:
    """A checkpoint could not be copied just now: if there is a newer one, that is wanted instead.

    Attributes:
        refusal: it was copied and is none that the shard could go on from, and why: it is not wanted any more.
    """

    lease: Bytes32
    blob: BlobRef
    refusal: Note = ""
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEndArrived:
    """The provider says that the run is over."""

    lease: Bytes32
    outcome: Line
    kind: Line
    reason: str
    outputs: Uint32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepingArrived:
    """The provider says that the run has failed, and stays for a while to be looked at."""

    lease: Bytes32
    kind: Line
    reason: str
    until_ms: UnixMs
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimArrived:
    """The provider says that the devices are taken back, and that the run has left them by then."""

    lease: Bytes32
    by_ms: UnixMs
    reason: Note
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelWanted:
    """The user wants the job to end."""

    reason: str
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class GangFunded:
    """The money for all of these leases, which came together, is there."""

    leases: tuple[Bytes32, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRaised:
    """The user lets the job cost more, or (by 0) has it try again with what there is."""

    amount: Amount
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundUnsound:
    """Every shard's part of a round is here, and none of it can be averaged: the training itself went wrong."""

    round: Uint32
    reason: str
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """This node was away. Silence before this moment was its own."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """The deadline that the machine named has come."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TenderWanted:
    """Effect: buy leases for these shards, all or none."""

    job: Bytes32
    shards: tuple[Uint32, ...]
    attempt: Uint32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TendersUnwanted:
    """Effect: withdraw every purchase of the job that still gathers."""

    job: Bytes32
    reason: str
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchWanted:
    """Effect: copy a blob from the provider and keep it for the job."""

    job: Bytes32
    lease: Bytes32
    provider: Address
    blob: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOver:
    """Effect to the purchase: nothing more will run under the lease.

    Attributes:
        blameless: it did not end well, and its provider did all that it had promised.
        reclaimed: blameless since its devices were taken back with all the notice that was promised.
        due: its provider has left the devices to it until the end: what a firm lease withholds is to be paid.
        on_word: that is nothing but its provider's word, and counts as far as that is believed.
        own: it ended with an error of the job's own code, by its provider's word.
        borne_out: the same job came to the same end at another provider.
    """

    lease: Bytes32
    well: bool
    blameless: bool = False
    reclaimed: bool = False
    due: bool = False
    on_word: bool = False
    own: bool = False
    borne_out: bool = False
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class WordBorneOut:
    """Effect to the channel: what ended this lease was the job's own doing, since it happened elsewhere too.

    ``own``: it was an error of its code, and nobody had borne that out before.
    """

    lease: Bytes32
    own: bool = False
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOver:
    """Effect to the rounds: no more of them are needed."""

    job: Bytes32
