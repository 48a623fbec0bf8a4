"""Statements: what a node earned or spent, added up by job, by the other side or by day. Only the books' entries count.

An entry of the books vouches for something (``spend``, ``earned``), closes a channel at a sum that both signed
(``owed``, ``due``), records a payment outside or debts that cancel out (``acquitted``, ``acknowledged``), or writes
work off. For each currency and any way of grouping, vouched less paid is what is open, and the totals are those of the
books. What both sides closed a channel at is paid once its contract has ended it; on the ledger a close pays nothing.
Payments are between two accounts and not for a job: by job they stand under the job ``""``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Final, Literal

from hansa.market.ledger import Entry
from hansa.proto.units import Line, UnixMs

Side = Literal["earnings", "spend"]
By = Literal["job", "peer", "day"]
SIDES: Final[tuple[Side, ...]] = ("earnings", "spend")
WAYS: Final[tuple[By, ...]] = ("job", "peer", "day")
DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Accounts:
    """The accounts of one side, and the sign that makes what stands on them positive.

    Attributes:
        gained: by job, what was vouched for.
        standing: by the other side's account, what is vouched for and not closed.
        paid: by the other side's account, what was paid outside or cancelled out.
        lost: by the other side's account, what is lost for good, and whose it was.
        lost_job: by job, what was lost; empty where it is no job's.
    """

    gained: str
    standing: str
    paid: str
    lost: str
    lost_job: str
    sign: int


_ACCOUNTS: Final[Mapping[Side, _Accounts]] = {
    "earnings": _Accounts(
        gained="earned", standing="due", paid="acknowledged", lost="unpaid", lost_job="written-off", sign=-1
    ),
    "spend": _Accounts(gained="spend", standing="owed", paid="acquitted", lost="forfeited", lost_job="", sign=1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFacts:
    """What the books do not know of a lease, since no debt follows from it.

    Attributes:
        job: hex of the job.
        peer: hex of the other side's account.
        currency: the currency's name.
        at_ms: when it ended, or the newest word of it.
        unvouched: metered with evidence and not vouched for, while it may still be.
        is_retry: whether it replaced a lease that was lost.
        lost_cost: what was vouched for on it, if it was lost and its shard went on elsewhere.
    """

    job: Line
    peer: Line
    currency: Line
    at_ms: UnixMs
    unvouched: int = 0
    is_retry: bool = False
    lost_cost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a statement, in smallest units.

    Attributes:
        key: hex of the job or the account, or the first millisecond of the day; empty where nothing can be named.
        currency: the currency's name.
        vouched: what vouchers promised.
        closed: how much of that both sides signed as the final sum of a channel.
        paid: how much was paid: outside and acknowledged, cancelled out, or by a contract at a channel's close.
        unvouched: metered and not vouched for yet.
        written_off: lost for good: metered and never vouched for, or paid ahead and taken.
        retries: leases that replaced a lost one.
        lost_cost: what was vouched for on leases that were lost; a part of ``vouched``.
    """

    key: Line
    currency: Line
    vouched: int = 0
    closed: int = 0
    paid: int = 0
    unvouched: int = 0
    written_off: int = 0
    retries: int = 0
    lost_cost: int = 0

    @property
    def open(self) -> int:
        """What is still owed. Below zero where more was paid than vouched for."""
        return self.vouched - self.paid


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountStatement:
    """Rows in the order of their keys, days and names alike, and one total for each currency."""

    side: Side
    by: By
    rows: tuple[Row, ...]
    totals: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Movement:
    at_ms: UnixMs
    job: str
    peer: str
    currency: str
    vouched: int = 0
    closed: int = 0
    paid: int = 0
    written_off: int = 0


def statement(
    entries: Iterable[Entry],
    *,
    side: Side,
    by: By,
    currency_of: Callable[[Entry], str],
    is_paid_by_close: Callable[[Entry], bool],
    leases: Sequence[LeaseFacts] = (),
) -> AccountStatement:
    """Add the books up.

    Args:
        entries: all of them, in their order; each counts once.
        side: what was earned, or what was spent.
        by: how to group.
        currency_of: what an entry's amounts are in.
        is_paid_by_close: whether what an entry closes was paid with it: a contract has ended that channel.
        leases: what the books do not know.
    """
    rows: dict[tuple[str, str], Row] = {}

    def add(key: str, currency: str, **amounts: int) -> None:
        row = rows.get((currency, key)) or Row(key=key, currency=currency)
        rows[currency, key] = replace(row, **{name: getattr(row, name) + amount for name, amount in amounts.items()})

    for found in _movements(entries, side, currency_of, is_paid_by_close):
        key = _key(by, found.job, found.peer, found.at_ms)
        amounts = {name: getattr(found, name) for name in ("vouched", "closed", "paid", "written_off")}
        add(key, found.currency, **amounts)
    for lease in leases:
        if lease.unvouched or lease.is_retry or lease.lost_cost:
            key = _key(by, lease.job, lease.peer, lease.at_ms)
            add(
                key,
                lease.currency,
                unvouched=lease.unvouched,
                retries=int(lease.is_retry),
                lost_cost=lease.lost_cost,
            )
    ordered = tuple(rows[which] for which in sorted(rows))
    return AccountStatement(side=side, by=by, rows=ordered, totals=_totals(ordered))


def day_of(at_ms: int) -> UnixMs:
    """The first millisecond of a day, in UTC."""
    return at_ms - at_ms % DAY_MS


def _key(by: By, job: str, peer: str, at_ms: int) -> str:
    return job if by == "job" else peer if by == "peer" else str(day_of(at_ms))


def _totals(rows: Sequence[Row]) -> tuple[Row, ...]:
    totals: dict[str, Row] = {}
    for row in rows:
        total = totals.get(row.currency) or Row(key="", currency=row.currency)
        totals[row.currency] = replace(
            total,
            vouched=total.vouched + row.vouched,
            closed=total.closed + row.closed,
            paid=total.paid + row.paid,
            unvouched=total.unvouched + row.unvouched,
            written_off=total.written_off + row.written_off,
            retries=total.retries + row.retries,
            lost_cost=total.lost_cost + row.lost_cost,
        )
    return tuple(totals[currency] for currency in sorted(totals))


def _movements(
    entries: Iterable[Entry],
    side: Side,
    currency_of: Callable[[Entry], str],
    is_paid_by_close: Callable[[Entry], bool],
) -> Iterable[_Movement]:
    of = _ACCOUNTS[side]
    seen: set[bytes] = set()
    waiting: dict[tuple[bytes, str], dict[str, int]] = {}
    put: dict[tuple[bytes, str], dict[str, int]] = {}
    for entry in entries:
        if entry.id in seen:
            continue
        seen.add(entry.id)
        make = partial(_Movement, at_ms=entry.at_ms, currency=currency_of(entry))
        gained, standing = _sums(entry, of.gained, of.sign), _sums(entry, of.standing, of.sign)
        if gained:
            for (job, peer), amount in _crossed(gained, {peer: -moved for peer, moved in standing.items()}).items():
                open_jobs = waiting.setdefault((entry.channel_id, peer), {})
                open_jobs[job] = open_jobs.get(job, 0) + amount
                yield make(job=job, peer=peer, vouched=amount)
        else:
            pays = is_paid_by_close(entry)
            for peer, closed in standing.items():
                which = entry.channel_id, peer
                for job, part in _put_to_jobs(waiting.setdefault(which, {}), put.setdefault(which, {}), closed):
                    yield make(job=job, peer=peer, closed=part, paid=part if pays else 0)
        for peer, paid in _sums(entry, of.paid, of.sign).items():
            yield make(job="", peer=peer, paid=paid)
        jobs = list(_sums(entry, of.lost_job, 1)) if of.lost_job else []
        for peer, lost in _sums(entry, of.lost, 1).items():
            yield make(job=jobs[0] if jobs else "", peer=peer, written_off=lost)


def _sums(entry: Entry, kind: str, sign: int) -> dict[str, int]:
    """What an entry adds to each account of a kind."""
    found: dict[str, int] = {}
    for leg in entry.legs:
        name, _, whose = leg.account.partition(":")
        if name == kind:
            found[whose] = found.get(whose, 0) + sign * leg.amount
    return found


def _crossed(jobs: Mapping[str, int], peers: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """What each job cost and what each peer is owed, as one table whose rows and columns add up to just that.

    With splits one's part may fall by a unit when others' parts become whole; such a fall is put to the first of the
    other kind.
    """
    assert sum(jobs.values()) == sum(peers.values()), "a voucher that nobody owes"
    left, due, found = dict(jobs), dict(peers), dict[tuple[str, str], int]()

    def put(job: str, peer: str, amount: int) -> None:
        found[job, peer] = found.get((job, peer), 0) + amount
        left[job] -= amount
        due[peer] -= amount

    for job in [job for job, amount in left.items() if amount < 0]:
        put(job, next(iter(due)), left[job])
    for peer in [peer for peer, amount in due.items() if amount < 0]:
        put(next(iter(left)), peer, due[peer])
    for peer, job in product(peers, jobs):
        part = min(left[job], due[peer])
        if part > 0:
            put(job, peer, part)
    return found


def _put_to_jobs(open_jobs: dict[str, int], put: dict[str, int], closed: int) -> Iterable[tuple[str, int]]:
    """Put a close to the jobs that wait for it, and what a chain did not pay of one back to those that had it."""
    source, sign = (open_jobs, 1) if closed >= 0 else (put, -1)
    left = abs(closed)
    for job in list(source):
        part = min(left, source[job])
        if part > 0:
            left -= part
            open_jobs[job] = open_jobs.get(job, 0) - sign * part
            put[job] = put.get(job, 0) + sign * part
            yield job, sign * part
    if left:
        yield "", sign * left
