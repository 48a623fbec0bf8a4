"""What a provider knows of one bid and of the lease that may come of it: the state of ``hansa.market.sale``."""

from dataclasses import dataclass

from hansa.market.receipts import NOTHING, LeaseTerms
from hansa.market.shares import WHOLE_MILLI, device_ms, width_milli
from hansa.proto.blob import BlobRef
from hansa.proto.documents import CreditLine
from hansa.proto.market_documents import Award, Bid, Tender
from hansa.proto.units import Amount, Bytes32, DeviceMs, DurationMs, Line, Note, Uint32, Uint64, UnixMs, amount_for
from hansa.proto.workload import Workload

MAX_FETCH_BYTES = 100 << 30
"""What one shard may bring beside its package where the owner says nothing else."""
ENDED = ("settled", "lapsed", "declined", "stopped", "unpaid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """The state.

    Attributes:
        phase: bid, leased, funding (its start is ordered and its money is not there), running, delivering,
            settling, settled, lapsed, declined, stopped or unpaid.
        tender: what was answered.
        bid: the promise.
        bid_digest: its digest.
        max_unpaid: see ``Bid``; kept beside it since the owner may change the rules for later bids only.
        grace_ms: a pause longer than this ends the run.
        max_fetch_bytes: what the shard's files may weigh, by the owner's rules when the bid was made.
        award: the buyer's acceptance, once there.
        lease: its digest.
        workload: what is run.
        terms: what was agreed, as far as money needs it.
        started_ms: when metering began.
        device_ms: metered with evidence, in time of whole devices.
        rest_milli: what is metered beyond that, in thousandths: parts of a device make parts of a millisecond.
        seen_ms: the run's own time up to which it is charged, or known to be work that is done again.
        redoing: whether its sandbox was lost and no new step came since: steps that are known are done again.
        steps, rounds, checkpoint: the newest evidence.
        busy_ms: device time in which the devices computed, as their driver saw it; may run ahead of ``device_ms``.
        evident_ms: when the time that is charged was last worked; a line ends then, however late it is written.
        lined_ms: when the last line was given to the channel.
        lined_steps: the evidence it had.
        lined_amount: what it came to.
        vouched: what the buyer vouched for.
        disputed: what was metered and the buyer will not pay, since so much time did not pass on its clock.
        is_over: whether for that reason no more time is metered.
        written_off: what was metered and nobody vouched for, once it was given up.
        ahead: what the buyer paid ahead of receipts for this lease.
        ceiling: what its channel can pay for it in all; None where nothing limits it.
        start_round, start_checkpoint: where the run is to start from, once ordered.
        funded_by_ms: when its money must be there at the latest.
        unproved_since_ms: since when it computes without a new step; 0 while it does not compute.
        unvouched_since_ms: when the oldest line that waits for its voucher was written; 0 if none waits.
        paused_ms: since when the run is paused for want of vouchers or funds; 0 if it is not.
        unproved: what the work before its pauses, or in a sandbox that was lost, is worth that no step has proved yet.
        starved: whether it is paused because its channel can pay no more.
        released: whether the buyer said that a firm lease has ended well.
        outcome, kind, reason, outputs: how the run ended.
        lent, paid, held: the buyer's credit line, what was taken off its debt, and the signed total on the channel, as
            they were when a lease on the ledger could last have ended for want of money.
        over_ms: when it ended.
        reclaim_by_ms, reclaim_why: when its devices are wanted back at the latest, and why; 0 while they are not.
        reclaim_early: whether that leaves less time than the bid promised.
    """

    phase: str = "bid"
    tender: Tender
    bid: Bid
    bid_digest: Bytes32
    grace_ms: DurationMs
    max_fetch_bytes: Uint64 = MAX_FETCH_BYTES
    award: Award | None = None
    lease: Bytes32 = NOTHING
    channel_id: Bytes32 = NOTHING
    workload: Workload | None = None
    terms: LeaseTerms | None = None
    started_ms: UnixMs = 0
    device_ms: DeviceMs = 0
    rest_milli: Uint32 = 0
    seen_ms: DurationMs = 0
    redoing: bool = False
    steps: Uint64 = 0
    evident_ms: UnixMs = 0
    rounds: Uint32 = 0
    checkpoint: Bytes32 = NOTHING
    busy_ms: DeviceMs = 0
    lined_ms: UnixMs = 0
    lined_steps: Uint64 = 0
    lined_amount: Amount = 0
    vouched: Amount = 0
    disputed: Amount = 0
    is_over: bool = False
    written_off: Amount = 0
    ahead: Amount = 0
    ceiling: Amount | None = None
    start_round: Uint32 = 0
    start_checkpoint: BlobRef | None = None
    funded_by_ms: UnixMs = 0
    unproved_since_ms: UnixMs = 0
    unvouched_since_ms: UnixMs = 0
    paused_ms: UnixMs = 0
    unproved: Amount = 0
    starved: bool = False
    stopping: bool = False
    refused: str = ""
    released: bool = False
    outcome: Line = ""
    kind: Line = ""
    reason: str = ""
    reclaim_by_ms: UnixMs = 0
    reclaim_why: Note = ""
    reclaim_early: bool = False
    outputs: Uint32 = 0
    lent: CreditLine | None = None
    paid: Amount = 0
    held: Amount = 0
    over_ms: UnixMs = 0

    @property
    def accrued(self) -> int:
        """What the evidence until now is worth."""
        return self.terms.amount(self.device_ms) if self.terms else 0

    @property
    def withheld(self) -> int:
        """What of a firm lease's price is not charged as long as it has not ended well."""
        return 0 if self.released else min(self.accrued, self.bid.penalty)

    @property
    def chargeable(self) -> int:
        """What the evidence until now lets receipts come to."""
        return self.accrued - self.withheld

    def unproved_at(self, at_ms: int) -> int:
        """What the work until a moment is worth that no step has proved yet."""
        if not self.unproved_since_ms:
            return self.unproved
        worked_ms = device_ms(max(0, at_ms - self.unproved_since_ms), self.width_milli)
        return self.unproved + amount_for(worked_ms, self.bid.price_e18_per_device_ms)

    @property
    def width_milli(self) -> int:
        """How much the bid gives: all its devices together, in thousandths of one."""
        return width_milli(self.bid)

    @property
    def unpaid(self) -> int:
        """What may be charged and neither a voucher nor what was paid ahead covers; negative where more was."""
        return self.chargeable - self.vouched - self.ahead

    @property
    def exposed_at_ms(self) -> int | None:
        """When what ran up without a voucher passes ``max_unpaid``, if no step and no voucher comes before; or None.

        What no step has proved yet counts, whatever pauses lie between.
        """
        rate_e21 = self.bid.price_e18_per_device_ms * self.width_milli
        if not self.unproved_since_ms or not rate_e21:
            return None
        left = max(0, self.bid.max_unpaid - self.unpaid - self.unproved)
        return self.unproved_since_ms + -(-(left + 1) * 10**18 * WHOLE_MILLI // rate_e21)

    @property
    def buyer(self) -> bytes:
        """Whose job it is."""
        return self.tender.signer
