"""What two accounts are to each other on the ledger: how far one trusts the other, what was paid outside, what netted.

A debt comes from vouchers alone. Here is what bounds it and what takes it away again: the credit line that a provider
signs, the payments that a creditor acknowledges, and the nettings that both sign. Every one of them is a running total
or a number that only rises, so a repeat changes nothing and a loss is made good by the next.
"""

from dataclasses import dataclass, replace

from hansa.proto.documents import CreditLine, Netting, Payment
from hansa.proto.units import Address, Amount, Bytes32, Uint64, UnixMs

LINE_LIFE_MS = 30 * 24 * 3_600_000
RENEW_MS = LINE_LIFE_MS // 2
"""A credit line is signed anew when half its life is over, so one that is in use does not run out."""
LARGEST = (1 << 128) - 1
LATE_MS = 60_000
"""A new line may be so long on its way: one that says to be older than that is taken for newer than it says."""
MOST_BEFORE = 16
"""Replaced lines of one account that somebody may still rely on. Nobody changes a line so often under one lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineBefore:
    """A credit line that a newer one replaced. Whoever had awarded a lease by then relied on it.

    Attributes:
        limit: what it lent.
        nonce: its number.
        until_ms: until when it was the newest, as the debtor sees it.
    """

    limit: Amount
    nonce: Uint64
    until_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutual:
    """Between this node and one other account, in this node's unit of account.

    Attributes:
        limit: what the owner lets this account owe, where that differs from what everybody may.
        given: the newest credit line to it.
        taken: the newest credit line from it.
        paid_in: the newest payment of it that this node acknowledged.
        paid_out: the newest payment of this node that it acknowledged.
        netting: the newest netting that both signed.
        proposed: a netting that this node proposed and waits for.
        before: replaced lines from it that a lease which lives may have relied on, the oldest first.
    """

    limit: Amount | None = None
    given: CreditLine | None = None
    taken: CreditLine | None = None
    paid_in: Payment | None = None
    paid_out: Payment | None = None
    netting: Netting | None = None
    proposed: Netting | None = None
    before: tuple[LineBefore, ...] = ()

    def netted(self) -> int:
        """What was netted between the two, in all."""
        return self.netting.total if self.netting else 0


def next_line(
    state: Mutual, *, creditor: Address, debtor: Address, unit: Bytes32, limit: Amount, at_ms: int
) -> CreditLine | None:
    """The credit line that is to be signed now; None as long as the last one says the same for long enough."""
    last = state.given
    if last is not None and last.unit == unit and last.limit == limit and last.not_after >= at_ms + RENEW_MS:
        return None
    return CreditLine(
        creditor=creditor,
        debtor=debtor,
        unit=unit,
        limit=limit,
        not_after=at_ms + LINE_LIFE_MS,
        nonce=last.nonce + 1 if last else 1,
    )


def room(line: CreditLine | None, *, owed: int, at_ms: int) -> int:
    """How much more may be owed under a line: nothing where there is none, or it has run out."""
    if line is None or at_ms > line.not_after:
        return 0
    return max(0, line.limit - owed)


def is_newer_line(state: Mutual, line: CreditLine) -> bool:
    """Whether a line from the other side replaces the one that is known. The first has number 1."""
    return line.nonce > (state.taken.nonce if state.taken else 0)


def is_dated_ahead(line: CreditLine, *, at_ms: int) -> bool:
    """Whether a line says to be signed later than now. By its date it is judged what its creditor knew by when."""
    return line.not_after > at_ms + LINE_LIFE_MS + LATE_MS


def with_line(state: Mutual, line: CreditLine, *, since_ms: int | None, at_ms: int) -> Mutual:
    """The state with a newer line from the other side.

    What it replaces is kept as long as a lease lives that was awarded before: that the line was lowered since is no
    reason to end that one.

    Args:
        state: as it is.
        line: the newer line.
        since_ms: when the oldest lease with that account that lives was awarded; None where none lives.
        at_ms: when the line came.
    """
    before = state.before
    if state.taken is not None:
        # Its own word counts for when it was signed, as far as its way here can explain why it came so late.
        until_ms = min(at_ms, max(line.not_after - LINE_LIFE_MS, at_ms - LATE_MS))
        before = (*before, LineBefore(limit=state.taken.limit, nonce=state.taken.nonce, until_ms=until_ms))
    kept = tuple(entry for entry in before if since_ms is not None and entry.until_ms > since_ms)
    while len(kept) > MOST_BEFORE:
        # By what is forgotten nobody may gain who signs lines without end.
        one, other, *rest = kept
        both = LineBefore(
            limit=max(one.limit, other.limit),
            nonce=min(one.nonce, other.nonce),
            until_ms=max(one.until_ms, other.until_ms),
        )
        kept = (both, *rest)
    return replace(state, taken=line, before=kept)


def relied_on(state: Mutual, shown: CreditLine, *, since_ms: int) -> Amount:
    """The most that any line lent which was replaced since a lease was awarded; 0 where none was.

    Only older ones than the line that is shown count: what is signed later cannot have been known.
    """
    lent = (entry.limit for entry in state.before if entry.until_ms > since_ms and entry.nonce < shown.nonce)
    return max(lent, default=0)


def next_payment(
    state: Mutual, *, creditor: Address, debtor: Address, unit: Bytes32, amount: Amount, how: str, at_ms: int
) -> Payment:
    """The creditor's word that so much more has reached it."""
    assert amount > 0, "a payment is of something"
    last = state.paid_in
    total = amount + (last.total if last else 0)
    assert total <= LARGEST, "more than there is of any currency"
    nonce = last.nonce + 1 if last else 1
    return Payment(creditor=creditor, debtor=debtor, unit=unit, total=total, how=how, nonce=nonce, paid_ms=at_ms)


def newly_paid(last: Payment | None, payment: Payment) -> int:
    """By how much a payment is more than the last one that is known; 0 for an old or a contradictory one."""
    if last is None:
        return payment.total if payment.nonce > 0 else 0
    return payment.total - last.total if payment.nonce > last.nonce and payment.total > last.total else 0


def next_netting(state: Mutual, *, own: Address, peer: Address, unit: Bytes32, owes: int, owed: int) -> Mutual | None:
    """The state with a netting proposed, where both owe each other; None where there is nothing to propose.

    The account whose bytes come first proposes, so the two never cross. A proposal stands until it is accepted: it is
    signed, so the other may accept it at any time.
    """
    amount = min(owes, owed)
    if state.proposed is not None or amount <= 0 or own >= peer:
        return None
    nonce = state.netting.nonce + 1 if state.netting else 1
    proposed = Netting(lower=own, higher=peer, unit=unit, total=state.netted() + amount, nonce=nonce)
    return replace(state, proposed=proposed)


def accepts(state: Mutual, netting: Netting, *, owes: int, owed: int) -> bool:
    """Whether this node would sign a netting too: it follows the last one, and both sides owe that much here."""
    nonce = state.netting.nonce + 1 if state.netting else 1
    rise = netting.total - state.netted()
    return netting.nonce == nonce and 0 < rise <= min(owes, owed)
