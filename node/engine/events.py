"""What can happen to a node: everything that its engine journals, in the words of the outside.

The journal holds exactly these. Machines have events of their own; ``hansa.node.engine.routing`` turns one into the
other.
"""

from dataclasses import dataclass

from hansa.market.funding import ChannelSettled, FundingFailed, FundsKnown
from hansa.market.pricing import ITSELF, ProviderTerms
from hansa.market.reputation import Heard
from hansa.proto.blob import BlobRef
from hansa.proto.market_documents import Device, Tender
from hansa.proto.messages import Direct
from hansa.proto.units import (
    Address,
    Amount,
    Bytes32,
    DeviceMs,
    DurationMs,
    Line,
    Note,
    PriceE18,
    Uint32,
    Uint64,
    UnixMs,
)
from hansa.scheduler.devices import ONE_MACHINE, Topology
from hansa.scheduler.job_spec import JobSpec
from hansa.scheduler.rounds import Rejected
from hansa.scheduler.run import (
    RunCheckpointed,
    RunFailed,
    RunFinished,
    RunKept,
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
    """The daemon began, or began again: who it is, what it lends, and the owner's rules from now on.

    ``payer`` is whose money pays for jobs on a chain; ``ITSELF`` is the account's own.
    """

    account: Address
    peer_id: Line
    terms: ProviderTerms | None
    devices: tuple[Device, ...]
    at_ms: UnixMs
    currency: Line = ""
    netting: bool = True
    payer: Address = ITSELF


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryChanged:
    """A device came, went or fell ill, or a machine did.

    Attributes:
        devices: of all machines.
        topology: which of them share a machine.
    """

    devices: tuple[Device, ...]
    topology: Topology = ONE_MACHINE
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesWithdrawn:
    """Devices are taken back from the market: by their owner, or because something is wrong with them.

    Whoever computes on one of them leaves at its next checkpoint. What is not a device of this node is passed over.

    Attributes:
        devices: their ids.
        notice_ms: how long whoever computes on them may still take.
        why: in words, for the owner's own eyes and for the buyers'.
        by_owner: it is the owner's own word, which stands until the owner takes it back.
    """

    devices: tuple[Bytes32, ...]
    notice_ms: DurationMs
    why: Note
    by_owner: bool = False
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesReturned:
    """Devices that were withdrawn, by the same word, are lent again. A run that was told to leave still leaves."""

    devices: tuple[Bytes32, ...]
    by_owner: bool = False
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesUsed:
    """How much the devices of a lease really computed, as their driver's samples have it.

    Attributes:
        busy_ms: device-milliseconds in which they computed, a running total over the whole lease: a sampler that
            begins anew goes on from what the lease's sale has.
    """

    lease: Bytes32
    busy_ms: DeviceMs
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageArrived:
    """A peer said something. The sender's account is proven, and so are all signatures in the message."""

    sender: Address
    message: Direct
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class DealingsHeard:
    """Somebody showed dealings of others. Every signature in them was checked."""

    heard: tuple[Heard, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountBlocked:
    """The owner wants nothing more to do with an account."""

    account: Address
    reason: Line
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountUnblocked:
    """The owner changed its mind about it."""

    account: Address
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentReceived:
    """The owner says that an account has paid outside what it owed on the ledger, or a part of it."""

    debtor: Address
    amount: Amount
    how: Line
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditDecided:
    """The owner says how much one account may owe; None: as much as everybody."""

    debtor: Address
    limit: Amount | None
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class NettingDue:
    """Debts of accounts that owe each other may cancel out now."""

    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class EquivocationProven:
    """Two signed objects that contradict each other are in the store of proofs."""

    account: Address
    words: Line
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
class JobToppedUp:
    """The user lets a job cost more, or (by 0) has it try again with what there is."""

    job: Bytes32
    amount: Amount
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TenderPrepared:
    """A tender was written, with chance in its nonce, and providers whose adverts fit were found."""

    tender: Tender
    invited: tuple[Address, ...]
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedSet:
    """What the owner's program wants for one set of devices; None: what the rule says."""

    devices: tuple[Bytes32, ...]
    price_e18: PriceE18 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TenderPriced:
    """The owner's program has looked at a tender.

    Attributes:
        tender: it; nothing of it is remembered while the program thinks.
        sets: a price for each set of devices that was asked about; none where it declines or failed.
        refusal: its words, where it declines.
        fault: why it named no price, where it failed.
        tries: how often it was asked.
    """

    tender: Tender
    sets: tuple[PricedSet, ...] = ()
    refusal: Note = ""
    fault: Line = ""
    tries: Uint32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TenderUndelivered:
    """Bidding is over, and somebody who was invited never got the tender; the reason is for people."""

    tender: Bytes32
    provider: Address
    why: Line
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class NobodyFits:
    """A tender was wanted and not sent: nobody that is known would fit, or it could not end in time."""

    job: Bytes32
    shards: tuple[Uint32, ...]
    reason: Note
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomAppeared:
    """A provider that could take a shard of a waiting job is new in the book, or has devices free again."""

    job: Bytes32
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobFetched:
    """A blob that a job waits for is here, checked."""

    job: Bytes32
    lease: Bytes32
    blob: BlobRef
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobNotFetched:
    """A try to copy a checkpoint came to nothing. It is tried again, unless a newer one is to be had.

    Attributes:
        refusal: why what came is no checkpoint to go on from; then it is not tried again. Empty if nothing came.
    """

    job: Bytes32
    lease: Bytes32
    blob: BlobRef
    refusal: Note = ""
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyFetched:
    """A copy of another shard's checkpoint is here, held for its buyer."""

    lease: Bytes32
    checkpoint: BlobRef
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
class LineMeasured:
    """Something large moved between this node and a provider's, and how fast is known.

    Attributes:
        provider: the account of the node at the other end.
        way: ``"there"``, to it, or ``"back"``.
        bytes_per_s: how fast.
        is_bound: this node's own line may have been what held it up.
    """

    provider: Address
    way: Line
    bytes_per_s: Uint64
    is_bound: bool
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
    | RunKept
)
"""What the executor tells of a run and the journal keeps. Logs are not among them: they are for people, and many."""

NodeEvent = (
    Started
    | InventoryChanged
    | DevicesWithdrawn
    | DevicesReturned
    | DevicesUsed
    | MessageArrived
    | DealingsHeard
    | AccountBlocked
    | AccountUnblocked
    | PaymentReceived
    | CreditDecided
    | NettingDue
    | EquivocationProven
    | JobSubmitted
    | JobCancelled
    | JobToppedUp
    | TenderPrepared
    | TenderUndelivered
    | NobodyFits
    | RoomAppeared
    | TenderPriced
    | BlobFetched
    | BlobNotFetched
    | CopyFetched
    | RoundReduced
    | RoundNotReduced
    | LineMeasured
    | TimeCame
    | FundsKnown
    | FundingFailed
    | ChannelSettled
    | RunNews
)
