"""What can happen to a node: everything that its engine journals, in the words of the outside.

The journal holds exactly these. Machines have events of their own; ``hansa.node.routing`` turns one into the other.
"""

from dataclasses import dataclass

from hansa.market.pricing import ProviderTerms
from hansa.proto.blob import BlobRef
from hansa.proto.market_documents import Device, Tender
from hansa.proto.messages import Direct
from hansa.proto.units import Address, Bytes32, Line, Uint32, UnixMs
from hansa.scheduler.job_spec import JobSpec
from hansa.scheduler.rounds import Rejected
from hansa.scheduler.run import (
    RunCheckpointed,
    RunFailed,
    RunFinished,
    RunOutput,
    RunPaused,
    RunProgressed,
    RunResumed,
    RunStarted,
    RunStopped,
    RunSynced,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The daemon began, or began again: who it is, what it lends, and the owner's rules from now on."""

    account: Address
    peer_id: Line
    terms: ProviderTerms | None
    devices: tuple[Device, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryChanged:
    """A device came, went or fell ill."""

    devices: tuple[Device, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageArrived:
    """A peer said something. The sender's account is proven, and so are all signatures in the message."""

    sender: Address
    message: Direct
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSubmitted:
    """The user wants a job run."""

    job: Bytes32
    spec: JobSpec
    package: BlobRef
    files: BlobRef | None = None
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCancelled:
    """The user does not want it any more."""

    job: Bytes32
    reason: Line
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TenderPrepared:
    """A tender was written, with chance in its nonce, and providers whose adverts fit were found."""

    tender: Tender
    invited: tuple[Address, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobFetched:
    """A blob that a job waits for is here, checked."""

    job: Bytes32
    lease: Bytes32
    blob: BlobRef
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReduced:
    """The states of a round were averaged."""

    job: Bytes32
    round: Uint32
    state: BlobRef
    accepted: tuple[Uint32, ...]
    rejected: tuple[Rejected, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundNotReduced:
    """Too little of what was announced could be had or was sound.

    Attributes:
        unsound: everything was here and none of it was fit to be averaged, so another try would end alike.
    """

    job: Bytes32
    round: Uint32
    rejected: tuple[Rejected, ...]
    unsound: bool
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeCame:
    """The earliest deadline of any machine has come."""

    at_ms: UnixMs


RunNews = (
    RunStarted
    | RunProgressed
    | RunSynced
    | RunCheckpointed
    | RunOutput
    | RunFinished
    | RunFailed
    | RunStopped
    | RunPaused
    | RunResumed
)
"""What the executor tells of a run and the journal keeps. Logs are not among them: they are for people, and many."""

NodeEvent = (
    Started
    | InventoryChanged
    | MessageArrived
    | JobSubmitted
    | JobCancelled
    | TenderPrepared
    | BlobFetched
    | RoundReduced
    | RoundNotReduced
    | TimeCame
    | RunNews
)
