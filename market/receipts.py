"""Receipts: how a provider builds the next one and how a buyer checks it before it pays. Pure rules, no state.

A receipt is the whole running total of a channel; its lines, one for each lease that ever shared the channel, and the
evidence of what was delivered travel beside it and are committed to by two roots. A line is paid only as far as its
evidence rose: work without evidence earns nothing, and earns it later if the evidence comes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hansa.market.shares import WHOLE_MILLI, device_ms
from hansa.proto.documents import MeterLine, Receipt
from hansa.proto.keccak import keccak256
from hansa.proto.market_documents import Evidence
from hansa.proto.merkle import merkle_root
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest, struct_hash
from hansa.proto.units import Amount, Bytes32, Line, PriceE18, Uint32, UnixMs, amount_for

CLOCK_SKEW_MS = 30_000
"""How far two honest clocks may be apart."""
SPARE_MS = 2_000
"""So much more than passed here a lease may count: two clocks tick and are set a little differently."""
DRIFT_PARTS = 5_000
"""One part in so many besides: two clocks that nobody sets run apart by no more, and by a skew at the most."""
AHEAD_OF_TIME = "a line counts more device time than has passed here since its start was ordered"
IN_THE_FUTURE = "the period ends before it begins, or in the future"
OUTSIDE = "a line is outside the lease's time"
BEYOND = "parts of one device are charged that are more than the whole"
NOTHING = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTerms:
    """What was agreed for one lease, as far as money needs it.

    Attributes:
        lease: digest of the award.
        job: the job that pays.
        shard: the shard that it runs.
        devices: ids of the devices that work on it.
        tier: the isolation that the bid promised.
        price_e18_per_device_ms: the agreed price of a whole device.
        share_milli: the part of each device that works on it, in thousandths.
        max_total: the most that the lease can ever cost.
        prepay: how far vouchers run ahead of its receipts while it lives.
        penalty: of a firm lease, what is not charged before it has ended well.
        released: whether it has, by its buyer's word.
        begins_ms: the start was not ordered before this.
        ends_ms: nothing is paid for after this.
    """

    lease: Bytes32
    job: Bytes32
    shard: Uint32
    devices: tuple[Bytes32, ...]
    tier: Line
    price_e18_per_device_ms: PriceE18
    max_total: Amount
    prepay: Amount = 0
    penalty: Amount = 0
    released: bool = False
    begins_ms: UnixMs
    ends_ms: UnixMs
    share_milli: Uint32 = WHOLE_MILLI

    @property
    def width_milli(self) -> int:
        """How much works on it: all its devices together, in thousandths of one."""
        return len(self.devices) * self.share_milli

    @property
    def device(self) -> Bytes32:
        """What a meter line names as its device: the one device, or a hash over all of them."""
        return self.devices[0] if len(self.devices) == 1 else keccak256(b"".join(self.devices))

    def amount(self, device_ms: int) -> int:
        """What so many device-milliseconds cost, never more than the lease allows."""
        return min(amount_for(device_ms, self.price_e18_per_device_ms), self.max_total)

    def withholding(self, device_ms: int) -> int:
        """What of that is charged as long as nobody said that the lease ended well."""
        return max(0, self.amount(device_ms) - self.penalty)

    @property
    def most(self) -> int:
        """The most that ``fault_in`` could ever let through for the lease, given when it ends."""
        return self.amount(self.longest_ms(self.ends_ms))

    def longest_ms(self, now_ms: int) -> int:
        """The most device time that can be used up by now, by the clock that knows when the start was ordered.

        A duration needs no agreement of clocks: that the provider's is ahead or behind is no reason to count more.
        """
        passed_ms = max(0, min(now_ms, self.ends_ms) - self.begins_ms)
        drift_ms = min(passed_ms // DRIFT_PARTS, CLOCK_SKEW_MS)
        return device_ms(passed_ms + SPARE_MS + drift_ms, self.width_milli)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A receipt with what its roots commit to."""

    receipt: Receipt
    lines: tuple[MeterLine, ...]
    evidence: tuple[Evidence, ...]


def root_of(documents: Sequence[MeterLine] | Sequence[Evidence]) -> bytes:
    """The Merkle root over the documents' struct hashes; 32 zero bytes over none."""
    return merkle_root([struct_hash(document) for document in documents]) if documents else NOTHING


def receipt_digest(receipt: Receipt) -> bytes:
    """What a voucher names as its statement, and the next receipt as its ``prev``."""
    return digest(DOMAIN, receipt)


def next_statement(
    *,
    channel_id: Bytes32,
    last: Receipt | None,
    lines: Mapping[bytes, MeterLine],
    evidence: Mapping[bytes, Evidence],
    passed_over: int = 0,
) -> Statement:
    """The receipt that follows ``last`` and covers these lines (by lease), all of them, in the order of leases.

    ``passed_over`` is the number of a receipt after ``last`` that will never be paid: no number is used twice.
    """
    ordered = tuple(lines[lease] for lease in sorted(lines))
    proofs = tuple(evidence[lease] for lease in sorted(lines))
    starts = min(line.start_ms for line in ordered)
    receipt = Receipt(
        channel_id=channel_id,
        seq=max(passed_over, 0 if last is None else last.seq) + 1,
        prev=NOTHING if last is None else receipt_digest(last),
        period_start_ms=starts if last is None else last.period_end_ms,
        period_end_ms=max([line.end_ms for line in ordered] + ([] if last is None else [last.period_end_ms])),
        amount_total=sum(line.amount for line in ordered),
        lines=len(ordered),
        lines_root=root_of(ordered),
        evidence=root_of(proofs),
    )
    return Statement(receipt=receipt, lines=ordered, evidence=proofs)


def fault_in(
    statement: Statement,
    *,
    last: Statement | None,
    terms: Mapping[bytes, LeaseTerms],
    now_ms: int,
    passed_over: int = 0,
) -> str | None:
    """Why a buyer does not pay for this statement, in words; None where nothing is wrong.

    ``passed_over`` is the number of the newest receipt that it will never pay for.
    """
    receipt = statement.receipt
    seq = max(passed_over, 0 if last is None else last.receipt.seq) + 1
    if last is None:
        if receipt.seq != seq or receipt.prev != NOTHING:
            return "the first receipt of a channel must have number 1 and no predecessor"
    elif receipt.seq != seq or receipt.prev != receipt_digest(last.receipt):
        return "the receipt does not follow the last one that was vouched for"
    if last is not None and receipt.period_start_ms != last.receipt.period_end_ms:
        return "the period does not begin where the last one ended"
    if not receipt.period_start_ms <= receipt.period_end_ms <= now_ms + CLOCK_SKEW_MS:
        return IN_THE_FUTURE
    if receipt.lines != len(statement.lines) or receipt.lines_root != root_of(statement.lines):
        return "the lines are not those that the receipt commits to"
    if receipt.evidence != root_of(statement.evidence):
        return "the evidence is not that which the receipt commits to"
    if receipt.amount_total != sum(line.amount for line in statement.lines):
        return "the total is not the sum of the lines"
    fault = _fault_in_lines(statement, last=last, terms=terms)
    early = fault is None and any(line.device_ms > terms[line.lease].longest_ms(now_ms) for line in statement.lines)
    return AHEAD_OF_TIME if early else fault


def is_early(statement: Statement, terms: Mapping[bytes, LeaseTerms]) -> bool:
    """Whether a statement that is ahead of time may be paid later as it stands: as much can pass by its leases' ends.

    A clock that was set back is that of an honest buyer; it must not cost an honest provider its lease.
    """
    return all(line.device_ms <= terms[line.lease].longest_ms(terms[line.lease].ends_ms) for line in statement.lines)


def _fault_in_lines(statement: Statement, *, last: Statement | None, terms: Mapping[bytes, LeaseTerms]) -> str | None:
    before = {line.lease: line for line in last.lines} if last else {}
    proved = {proof.lease: proof for proof in last.evidence} if last else {}
    leases = [line.lease for line in statement.lines]
    if leases != sorted(set(leases)) or [proof.lease for proof in statement.evidence] != leases:
        return "the lines and the evidence must name each lease once, in order"
    if not set(before) <= set(leases):
        return "a line of the last receipt is missing"
    for line, proof in zip(statement.lines, statement.evidence, strict=True):
        agreed = terms.get(line.lease)
        if agreed is None:
            return "a line names a lease that is not on this channel"
        fault = _fault_in_line(line, agreed, before.get(line.lease), statement.receipt.period_end_ms)
        fault = fault or _fault_in_evidence(line, proof, agreed, before.get(line.lease), proved.get(line.lease))
        if fault is not None:
            return fault
    return _double_charge(statement.lines, before, terms)


def _double_charge(
    lines: Sequence[MeterLine], before: Mapping[bytes, MeterLine], terms: Mapping[bytes, LeaseTerms]
) -> str | None:
    """Only a line that grew can charge anew for what another one charges too."""
    for line in lines:
        if before.get(line.lease) == line:
            continue
        agreed = terms[line.lease]
        parts = [line]
        for other in lines:
            held = terms[other.lease]
            shares = other.lease != line.lease and set(agreed.devices) & set(held.devices)
            if shares and charged_twice(line, len(agreed.devices), other, len(held.devices)):
                return "one device is charged on two leases for the same time"
            if shares and held.devices == agreed.devices and held.width_milli < WHOLE_MILLI:
                parts.append(other)
        if agreed.width_milli < WHOLE_MILLI and charged_beyond(parts):
            return BEYOND
    return None


def charged_beyond(parts: Sequence[MeterLine]) -> bool:
    """Whether lines of parts of one device charge for more of it than time passed: each two of them may be well.

    Only while all of them ran they hide nothing from each other, so those that began last are looked at with the rest.
    """
    for late in parts:
        beside = [one for one in parts if one.start_ms <= late.start_ms < max(one.end_ms, late.start_ms + 1)]
        passed_ms = max(one.end_ms for one in beside) - min(one.start_ms for one in beside)
        if sum(one.device_ms for one in beside) > passed_ms + CLOCK_SKEW_MS:
            return True
    return False


def charged_twice(one: MeterLine, devices: int, other: MeterLine, other_devices: int) -> bool:
    """Whether two lines of leases that share a device charge for more of it than time passed, a clock's skew apart.

    All other devices of a lease may have computed all the time; what a line charges beyond that is the shared one's.
    """
    overlap_ms = max(0, min(one.end_ms, other.end_ms) - max(one.start_ms, other.start_ms))
    passed_ms = (one.end_ms - one.start_ms) + (other.end_ms - other.start_ms) - overlap_ms
    return least_ms(one, devices) + least_ms(other, other_devices) > passed_ms + CLOCK_SKEW_MS


def least_ms(line: MeterLine, devices: int) -> int:
    """The least time that each of a lease's devices computed, if what its line charges is true."""
    return max(0, line.device_ms - (devices - 1) * max(0, line.end_ms - line.start_ms))


def _fault_in_line(line: MeterLine, agreed: LeaseTerms, before: MeterLine | None, period_end_ms: int) -> str | None:
    if line.shard != agreed.shard or line.device != agreed.device:
        return "a line names another shard or device than the lease"
    if line.start_ms < agreed.begins_ms - CLOCK_SKEW_MS or line.end_ms > agreed.ends_ms + CLOCK_SKEW_MS:
        return OUTSIDE
    if not line.start_ms <= line.end_ms <= period_end_ms:
        return "a line ends before it begins, or after the receipt's period"
    if line.device_ms > device_ms(line.end_ms - line.start_ms, agreed.width_milli):
        return "a line counts more device time than has passed"
    whole, withholding = agreed.amount(line.device_ms), agreed.withholding(line.device_ms)
    if line.amount != withholding and not (agreed.released and line.amount == whole):
        early = withholding < line.amount <= whole
        return (
            "a line charges what a firm lease pays only once it has ended well"
            if early
            else "a line's amount is not the agreed price for its device time"
        )
    if before is not None:
        if line.start_ms != before.start_ms or line.end_ms < before.end_ms or line.device_ms < before.device_ms:
            return "a line went back"
        # The money check stands by itself: whatever else may be wrong, a total never falls and never passes its limit.
        if line.amount < before.amount:
            return "a line's amount fell"
    return "a line is over the lease's limit" if line.amount > agreed.max_total else None


def _fault_in_evidence(
    line: MeterLine, proof: Evidence, agreed: LeaseTerms, before: MeterLine | None, proved: Evidence | None
) -> str | None:
    if proof.shard != line.shard:
        return "evidence names another shard than its line"
    if proof.tier != agreed.tier:
        return "evidence names another isolation than the bid promised"
    if proof.busy_ms > line.device_ms:
        return "evidence claims that devices computed for longer than is metered"
    if proved is not None and (proof.steps < proved.steps or proof.rounds < proved.rounds):
        return "evidence went back"
    if proved is not None and proof.busy_ms < proved.busy_ms:
        return "the time that devices computed went back"
    grew = line.device_ms > (before.device_ms if before else 0)
    progressed = proof.steps > (proved.steps if proved else 0)
    return "device time is charged without evidence of progress" if grew and not progressed else None
