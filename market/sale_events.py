"""What happens to a sale, and what it orders: the words between ``hansa.market.sale`` and the rooms around it."""

from dataclasses import dataclass

from hansa.market.receipts import LeaseTerms
from hansa.proto.blob import BlobRef
from hansa.proto.documents import ChannelConfig, MeterLine
from hansa.proto.market_documents import Award
from hansa.proto.units import Amount, Bytes32, DeviceMs, DurationMs, Line, Note, Uint32, Uint64, UnixMs
from hansa.proto.workload import Workload

RECLAIMED = "reclaimed"
"""The kind of end of a run whose devices its owner took back, with all the notice that the bid promised."""
RECLAIMED_EARLY = "reclaimed-early"
"""The same with less notice than that: a promise broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwardArrived:
    """An award with the buyer's own signature on it.

    Attributes:
        channel_closed: the channel is over, or may have been: it is neither known nor one that the tender could open.
    """

    award: Award
    channel: ChannelConfig
    workload: Workload
    channel_closed: bool = False
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class BidLost:
    """The buyer took another bid, or none; perhaps it says why."""

    reason: Note = ""
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseCalledOff:
    """The buyer takes the lease back before its start."""

    reason: str
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOrdered:
    """The buyer wants the run to start, from a checkpoint if it names one."""

    round: Uint32
    checkpoint: BlobRef | None
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimOrdered:
    """The owner takes devices of this bid back.

    Attributes:
        by_ms: whoever computes on them has left by then.
        reason: in words.
    """

    by_ms: UnixMs
    reason: Note
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOrdered:
    """The buyer wants the run to end."""

    reason: Line
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBegan:
    """The job's code runs, for the first time or again after its sandbox was lost."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInterrupted:
    """The sandbox was lost with the daemon: nothing computes until it begins again.

    Attributes:
        at_ms: until when it is known to have computed.
    """

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressMade:
    """The run delivered something. All figures are totals of the run.

    Attributes:
        running_ms: how long it ran, pauses left out, as the daemon measured it.
        steps: the newest step that the job reported, or None where this is not the report of a step.
        rounds: rounds that it contributed to.
        checkpoint: root of its newest checkpoint, or 32 zero bytes.
        not_before_ms: until when its devices' time is charged on other leases.
        at_ms: when.
    """

    running_ms: DurationMs
    steps: Uint64 | None
    rounds: Uint32
    checkpoint: Bytes32
    not_before_ms: UnixMs = 0
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class UseSampled:
    """So much device time, all in all, the devices really computed."""

    busy_ms: DeviceMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOver:
    """The run ended. ``outcome`` is succeeded, failed or stopped."""

    outcome: Line
    kind: Line
    reason: str
    outputs: Uint32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryTaken:
    """The buyer has everything."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyLifted:
    """The buyer says that the firm lease has ended well: what was withheld may be charged."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LineVouched:
    """The buyer vouched for this lease, up to this total.

    Attributes:
        amount: what its receipts came to.
        ahead: how much more it paid ahead of receipts for this lease, as things stand.
    """

    amount: Amount
    ahead: Amount = 0
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class FundsShared:
    """So much of what the channel can pay is this lease's; None where nothing limits it."""

    ceiling: Amount | None
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRefused:
    """The buyer refuses to vouch for a receipt that holds this lease."""

    reason: str
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LineDisputed:
    """The buyer pays for no more of this lease's time than this line has: the rest did not pass on its clock."""

    line: MeterLine
    reason: str
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """The deadline that the machine named has come."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseMade:
    """Effect: the held devices are leased now, and the channel learns the terms."""

    bid: Bytes32
    channel: ChannelConfig
    terms: LeaseTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWanted:
    """Effect: stage and start the run of this lease."""

    lease: Bytes32
    round: Uint32
    checkpoint: BlobRef | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunUnwanted:
    """Effect: stop the run of this lease."""

    lease: Bytes32
    reason: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveWanted:
    """Effect: let the run of this lease end at its next checkpoint, and at ``by_ms`` at the latest."""

    lease: Bytes32
    by_ms: UnixMs
    why: Note


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseWanted:
    """Effect: freeze the run of this lease."""

    lease: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeWanted:
    """Effect: let the run of this lease go on."""

    lease: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesFreed:
    """Effect: the devices of this bid are free again, at once."""

    bid: Bytes32
