"""All that two nodes say to each other about a job, in the order in which a job's life says it.

A message is delivered at least once: the sender repeats it until the receiver has it in its journal. Every machine
therefore ignores what it has heard before. Signed documents carry the weight; everything else only moves work along
and is believed only as far as it costs nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from hansa.proto.blob import BlobRef
from hansa.proto.codec import encode
from hansa.proto.documents import (
    ChannelConfig,
    CooperativeClose,
    CreditLine,
    MeterLine,
    Netting,
    NodeBinding,
    Payment,
    Receipt,
    TreeHead,
    Voucher,
)
from hansa.proto.market_documents import Advert, Award, Bid, Decline, Evidence, Tender
from hansa.proto.signing import Signed
from hansa.proto.units import (
    AbsentMeans,
    Address,
    Amount,
    AtMost,
    Bytes32,
    Data,
    Line,
    Note,
    Signature,
    Uint32,
    Uint64,
    UnixMs,
)
from hansa.proto.workload import Workload

RefusalKind = Literal["channel-closed", "expired", "mismatch", "not-held", "reclaimed", "too-large", "unknown-bid"]
"""Why a provider does not take an award; ``hansa.market.refusals`` says which of them are its own fault."""
MAX_LINES = 1024
"""Most meter lines in one receipt: leases that ever shared the channel."""
MAX_METRICS = 32
MAX_BOOK_ADVERTS = 1024
MAX_SEEN_HEADS = 16
MAX_PROOF_HASHES = 65
MAX_MIRRORS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """First words on a connection: which account this node speaks for, proved by both keys over one digest."""

    binding: NodeBinding
    account_signature: Signature
    node_signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvertPublished:
    """By gossip, and in answer to a newcomer who wants the market's book."""

    advert: Signed[Advert]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenderSent:
    """Buyer to a provider whose advert fits."""

    tender: Signed[Tender]


@dataclass(frozen=True, slots=True, kw_only=True)
class BidSent:
    """Provider to the buyer alone."""

    bid: Signed[Bid]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclineSent:
    """Provider to the buyer."""

    decline: Signed[Decline]


@dataclass(frozen=True, slots=True, kw_only=True)
class BidReleased:
    """Buyer to a provider that did not win: the devices are free again at once."""

    bid: Bytes32
    reason: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class AwardSent:
    """Buyer to the winner of one shard."""

    award: Signed[Award]
    channel: ChannelConfig
    workload: Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseConfirmed:
    """Provider to buyer: bid and award are a lease now."""

    lease: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRefused:
    """Provider to buyer: no lease, of what kind the reason is, and the same in words.

    Attributes:
        lease: the lease that it is not.
        kind: of what kind the reason is. A node of the time before this field names none.
        reason: in words.
    """

    lease: Bytes32
    kind: Annotated[RefusalKind, AbsentMeans("not-held", since=2)]
    reason: Note


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseCancelled:
    """Buyer to provider: the gang did not come together, or the buyer changed its mind before the start."""

    lease: Bytes32
    reason: Note


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrdered:
    """Buyer to provider: start, from this checkpoint if there is one.

    Attributes:
        lease: the lease.
        round: the round that the checkpoint belongs to.
        checkpoint: where to go on from.
        mirrors: providers that hold the checkpoint too, should the buyer itself not give it.
    """

    lease: Bytes32
    round: Uint32
    checkpoint: BlobRef | None
    mirrors: Annotated[tuple[Address, ...], AtMost(MAX_MIRRORS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One named figure that the job's code reported."""

    name: Line
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReported:
    """Provider to buyer, every few seconds while a run lives: a sign of life with the newest step."""

    lease: Bytes32
    step: Uint64
    metrics: Annotated[tuple[Metric, ...], AtMost(MAX_METRICS)]
    started: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLogSent:
    """Provider to buyer: what the job printed. Never journaled; a buyer that is away misses it."""

    lease: Bytes32
    text: Note


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundContributed:
    """Provider to buyer: the shard's state at the end of its part of a round."""

    lease: Bytes32
    round: Uint32
    weight_milli: Uint64
    state: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPublished:
    """Buyer to providers: what the round came to. A shard that is behind goes on from here."""

    lease: Bytes32
    round: Uint32
    state: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointStored:
    """Provider to buyer: a state from which the shard can go on; the buyer keeps a copy."""

    lease: Bytes32
    round: Uint32
    step: Uint64
    checkpoint: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorWanted:
    """Buyer to the provider of one shard: hold a copy of another shard's checkpoint while this lease lasts.

    Attributes:
        lease: the receiver's own.
        shard: whose checkpoint it is.
        checkpoint: the newest one; it takes the place of the one before once it is there.
        holder: the provider that made it and may be asked for it, as the buyer may.
    """

    lease: Bytes32
    shard: Uint32
    checkpoint: BlobRef
    holder: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorHeld:
    """Provider to buyer: the copy is here."""

    lease: Bytes32
    shard: Uint32
    checkpoint: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorRefused:
    """Provider to buyer: no copy of this one, and why."""

    lease: Bytes32
    shard: Uint32
    checkpoint: BlobRef
    reason: Note


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorReleased:
    """Buyer to provider: no copy of this shard is needed there any more."""

    lease: Bytes32
    shard: Uint32


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointGranted:
    """Buyer to a provider that made or mirrors a checkpoint: this account may have it too, and the job's code."""

    lease: Bytes32
    checkpoint: BlobRef
    account: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStored:
    """Provider to buyer: one file of the shard's outputs."""

    lease: Bytes32
    path: Line
    blob: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """Provider to buyer: the run is over.

    Attributes:
        lease: the lease it ran under.
        outcome: ``"succeeded"``, ``"failed"`` or ``"stopped"``.
        kind: what sort of failure, for the retry policy; empty on success.
        reason: in words, bounded, and to be shown as text only.
        outputs: how many files were announced before this.
        line: where it ended for want of money on the ledger, the credit line that the provider went by.
        paid: what the provider had taken off the buyer's debt by then, in all: payments and nettings.
        vouched: the signed total that the provider held by then on the lease's channel.
    """

    lease: Bytes32
    outcome: Line
    kind: Line
    reason: Annotated[str, AtMost(8192)]
    outputs: Uint32
    line: Signed[CreditLine] | None
    paid: Amount
    vouched: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKept:
    """Provider to buyer: the run has failed and is kept for a while to be looked at. ``RunEnded`` follows after that.

    Attributes:
        lease: the lease it ran under.
        kind: what sort of failure.
        reason: in words, as in ``RunEnded``.
        until_ms: when it goes.
    """

    lease: Bytes32
    kind: Line
    reason: Annotated[str, AtMost(8192)]
    until_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReclaimed:
    """Provider to buyer: the devices are taken back. The run ends at its next checkpoint, and then at the latest.

    Attributes:
        lease: the lease.
        by_ms: when it is over at the latest.
        reason: the owner's, in words.
    """

    lease: Bytes32
    by_ms: UnixMs
    reason: Note


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStopOrdered:
    """Buyer to provider: stop, and why."""

    lease: Bytes32
    reason: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryAccepted:
    """Buyer to provider: everything announced has arrived; the provider may forget the blobs."""

    lease: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyReleased:
    """Buyer to provider: a firm lease has ended well, and what was withheld of its price may be charged."""

    lease: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptSent:
    """Provider to buyer: the running total, with the lines and the evidence that its roots commit to."""

    receipt: Signed[Receipt]
    lines: Annotated[tuple[MeterLine, ...], AtMost(MAX_LINES)]
    evidence: Annotated[tuple[Evidence, ...], AtMost(MAX_LINES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class VoucherSent:
    """Buyer to provider: what it pays until now, naming the receipt that it pays for."""

    currency: Line
    voucher: Signed[Voucher]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptRefused:
    """Buyer to provider: no voucher for this receipt, and why."""

    channel_id: Bytes32
    seq: Uint64
    reason: Note


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptDisputed:
    """Buyer to provider: this receipt is never paid, for the time in it that did not pass here; another one would be.

    Attributes:
        channel_id: the channel.
        seq: the receipt's number. The next one follows the same receipt as this one did.
        payable: all of its lines, those with too much time as far as they would be paid; a line with none of it is
            to be left out.
        reason: in words.
    """

    channel_id: Bytes32
    seq: Uint64
    payable: Annotated[tuple[MeterLine, ...], AtMost(MAX_LINES)]
    reason: Note


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseProposed:
    """Buyer to provider: no lease is left on the channel; this is the final sum."""

    currency: Line
    close: Signed[CooperativeClose]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseAccepted:
    """Provider to buyer: its signature over the same final sum. The channel is closed."""

    currency: Line
    close: Signed[CooperativeClose]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditGranted:
    """Provider to buyer: how much it may owe on the ledger from now on."""

    line: Signed[CreditLine]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentAcknowledged:
    """Creditor to debtor: so much has been paid outside, in all. It takes the debt off, and cannot be taken back."""

    payment: Signed[Payment]


@dataclass(frozen=True, slots=True, kw_only=True)
class NettingProposed:
    """The account whose bytes come first to the other: so much of what we owe each other cancels out, in all."""

    netting: Signed[Netting]


@dataclass(frozen=True, slots=True, kw_only=True)
class NettingAccepted:
    """Its signature over the same words. The debts are gone on both sides."""

    netting: Signed[Netting]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHeadsSent:
    """To everybody with whom money moves, and never journaled: which history this node's ledger has.

    Attributes:
        own: the newest head of the sender's own ledger.
        seen: heads of others' ledgers as they were shown to the sender, so that two histories of one meet.
    """

    own: Signed[TreeHead]
    seen: Annotated[tuple[Signed[TreeHead], ...], AtMost(MAX_SEEN_HEADS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyWanted:
    """To the owner of a ledger: prove that its history at one size is the beginning of that at another."""

    first: Uint64
    second: Uint64


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencySent:
    """The answer: the proof's hashes, as RFC 6962 has them."""

    first: Uint64
    second: Uint64
    proof: Annotated[tuple[Bytes32, ...], AtMost(MAX_PROOF_HASHES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofSent:
    """To anybody, and never journaled: a proof that some account signed two things which contradict each other.

    Attributes:
        proof: an ``Equivocation`` (``hansa.market.equivocation``) as the codec writes it.
    """

    proof: Data


@dataclass(frozen=True, slots=True, kw_only=True)
class BookRequested:
    """A newcomer to any node: which adverts do you know?"""

    most: Uint32


@dataclass(frozen=True, slots=True, kw_only=True)
class BookSent:
    """The answer: adverts that stand, the cheapest first. The newcomer checks each as if it came by gossip."""

    adverts: Annotated[tuple[Signed[Advert], ...], AtMost(MAX_BOOK_ADVERTS)]


Direct = (
    TenderSent
    | BidSent
    | DeclineSent
    | BidReleased
    | AwardSent
    | LeaseConfirmed
    | LeaseRefused
    | LeaseCancelled
    | RunOrdered
    | RunReported
    | RunLogSent
    | RoundContributed
    | RoundPublished
    | CheckpointStored
    | MirrorWanted
    | MirrorHeld
    | MirrorRefused
    | MirrorReleased
    | CheckpointGranted
    | OutputStored
    | RunEnded
    | RunKept
    | LeaseReclaimed
    | RunStopOrdered
    | DeliveryAccepted
    | PenaltyReleased
    | ReceiptSent
    | VoucherSent
    | ReceiptRefused
    | ReceiptDisputed
    | CloseProposed
    | CloseAccepted
    | CreditGranted
    | PaymentAcknowledged
    | NettingProposed
    | NettingAccepted
    | TreeHeadsSent
    | ConsistencyWanted
    | ConsistencySent
    | ProofSent
)
"""What goes over ``/hansa/market/2``, one message a request; the response is empty and means: it is in my journal."""

SINCE: Mapping[type, int] = {ProofSent: 2, ReceiptDisputed: 2}
"""The first number of the market's protocol that has a message, where that is not 1."""


def as_of(message: Any, number: int) -> bytes | None:
    """A message for one who speaks this number of the market's protocol; None where it has no words for it."""
    if SINCE.get(type(message), 1) <= number:
        return encode(message, number=number)
    if isinstance(message, ReceiptDisputed):
        # That another receipt would be paid it cannot be told, but that this one is not.
        refused = ReceiptRefused(channel_id=message.channel_id, seq=message.seq, reason=message.reason)
        return encode(refused, number=number)
    return None
