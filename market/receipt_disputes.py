"""Receipts of which only clocks may be the fault: how far a buyer pays them, and what a provider signs of that.

Rules without state, over those of ``hansa.market.receipts``. The two machines of a channel say when they are asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hansa.market.receipts import (
    AHEAD_OF_TIME,
    BEYOND,
    CLOCK_SKEW_MS,
    IN_THE_FUTURE,
    OUTSIDE,
    LeaseTerms,
    Statement,
    fault_in,
    is_early,
    next_statement,
)
from hansa.market.shares import WHOLE_MILLI, device_ms
from hansa.proto.documents import MeterLine
from hansa.proto.market_documents import Evidence

OF_CLOCKS = frozenset({AHEAD_OF_TIME, IN_THE_FUTURE, OUTSIDE, BEYOND})
"""Faults of which a clock that is wrong, or was set, may be all the cause: the rest is paid all the same."""
MOST_TRIED = 8
"""Of so many parts of devices it is tried whether the rest is sound without what one of them has more."""


def payable_lines(
    statement: Statement, *, last: Statement | None, terms: Mapping[bytes, LeaseTerms], now_ms: int
) -> tuple[MeterLine, ...]:
    """The lines of a statement as far as they can be paid, where only clocks may be at fault; empty where none can be.

    A provider whose clock jumped loses the time that did not pass here, and neither the rest of that lease nor what its
    other leases on the channel earned. What may yet pass until a lease ends is left to be paid then.
    """
    leases = [line.lease for line in statement.lines]
    if leases != sorted(set(leases)) or [proof.lease for proof in statement.evidence] != leases:
        return ()
    if not set(leases) <= terms.keys():
        return ()
    before = {line.lease: line for line in last.lines} if last else {}
    payable = tuple(_payable(line, terms[line.lease], before.get(line.lease), now_ms) for line in statement.lines)
    parts = [line for line in payable if terms[line.lease].width_milli < WHOLE_MILLI and line != before.get(line.lease)]
    # Of parts that cannot all have run together the one that began last gives way.
    parts.sort(key=lambda line: -line.start_ms)
    less = {line.lease: _nothing(line, before.get(line.lease)) for line in parts[:MOST_TRIED]}
    for tried in (b"", *less):
        lines = tuple(less[line.lease] if line.lease == tried else line for line in payable)
        if _is_sound(statement, lines, last=last, terms=terms, now_ms=now_ms):
            return lines
    return ()


def _is_sound(
    statement: Statement,
    payable: Sequence[MeterLine],
    *,
    last: Statement | None,
    terms: Mapping[bytes, LeaseTerms],
    now_ms: int,
) -> bool:
    """Whether the receipt that a provider writes over these lines instead is one to be paid."""
    evidence = {proof.lease: proof for proof in statement.evidence}
    lines, proofs = instead(
        {line.lease: line for line in statement.lines}, evidence, payable, vouched=last.lines if last else ()
    )
    if sum(line.amount for line in lines.values()) <= (last.receipt.amount_total if last else 0):
        return True
    channel_id = statement.receipt.channel_id
    receipt = None if last is None else last.receipt
    would_be = next_statement(channel_id=channel_id, last=receipt, lines=lines, evidence=proofs)
    fault = fault_in(would_be, last=last, terms=terms, now_ms=now_ms)
    return fault is None or (fault == AHEAD_OF_TIME and is_early(would_be, terms))


def _nothing(line: MeterLine, before: MeterLine | None) -> MeterLine:
    """Of a line what was vouched for before."""
    return before or replace(line, end_ms=line.start_ms, device_ms=0, amount=0)


def _payable(line: MeterLine, agreed: LeaseTerms, before: MeterLine | None, now_ms: int) -> MeterLine:
    nothing = _nothing(line, before)
    end_ms = min(line.end_ms, agreed.ends_ms + CLOCK_SKEW_MS, now_ms + CLOCK_SKEW_MS)
    if line.start_ms < agreed.begins_ms - CLOCK_SKEW_MS or end_ms < max(line.start_ms, before.end_ms if before else 0):
        return nothing
    if end_ms == line.end_ms and line.device_ms <= agreed.longest_ms(agreed.ends_ms):
        return line
    most_ms = min(agreed.longest_ms(now_ms), device_ms(end_ms - line.start_ms, agreed.width_milli))
    counted_ms = min(line.device_ms, most_ms)
    if counted_ms <= (before.device_ms if before else 0):
        return nothing
    is_whole = agreed.released and line.amount == agreed.amount(line.device_ms)
    amount = agreed.amount(counted_ms) if is_whole else agreed.withholding(counted_ms)
    return replace(line, end_ms=end_ms, device_ms=counted_ms, amount=amount)


def disputed_lines(
    own: Sequence[MeterLine],
    payable: Sequence[MeterLine],
    vouched: Sequence[MeterLine],
    terms: Mapping[bytes, LeaseTerms],
) -> tuple[MeterLine, ...] | None:
    """Those of a buyer's lines that have less time than a provider's own; None if a provider must not say them.

    None may begin at another time, or hold more of it than lies between its ends: with such a line a provider would
    prove itself a liar, if its devices worked for another lease then.
    """
    mine, paid = {line.lease: line for line in own}, {line.lease: line for line in vouched}
    if [line.lease for line in payable] != sorted(mine):
        return None
    found = tuple(line for line in payable if line != mine[line.lease])
    for line in found:
        agreed, whole, least = terms[line.lease], mine[line.lease], paid.get(line.lease)
        same = replace(line, end_ms=whole.end_ms, device_ms=whole.device_ms, amount=whole.amount) == whole
        lasts_ms = min(line.end_ms, whole.end_ms) - line.start_ms
        fits = line.end_ms <= whole.end_ms and 0 <= line.device_ms <= device_ms(lasts_ms, agreed.width_milli)
        priced = line.amount in (agreed.withholding(line.device_ms), agreed.amount(line.device_ms))
        falls = line.device_ms <= whole.device_ms and line.amount <= whole.amount
        if not (same and fits and priced and falls):
            return None
        back = least and (line.end_ms < least.end_ms or line.device_ms < least.device_ms or line.amount < least.amount)
        if back:
            return None
    return found


def instead(
    lines: Mapping[bytes, MeterLine],
    evidence: Mapping[bytes, Evidence],
    payable: Sequence[MeterLine],
    *,
    vouched: Sequence[MeterLine],
) -> tuple[dict[bytes, MeterLine], dict[bytes, Evidence]]:
    """Lines and their evidence with some in the place of theirs; a line of no time at all is left out.

    Not so one that stands in the receipt that was vouched for, as it may of a step that was reported at once: no line
    of that may be missing in another.
    """
    changed, proofs = dict(lines), dict(evidence)
    kept = {line.lease for line in vouched}
    for line in payable:
        if line.device_ms or line.lease in kept:
            changed[line.lease] = line
            proof = proofs[line.lease]
            proofs[line.lease] = replace(proof, busy_ms=min(proof.busy_ms, line.device_ms))
        else:
            del changed[line.lease], proofs[line.lease]
    return changed, proofs
