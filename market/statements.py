"""Statements: what a node earned or spent, added up by job, by the other side or by day. Only the books' entries count.

Every entry of the books either vouches for something (``spend``, ``earned``) or takes from what is open between two
accounts (``owed``, ``due``): a channel's final sum, a payment, debts that cancel out. So for each currency and any way
of grouping, vouched less settled is what is open, and the totals are those of the books. Settling happens by channel or
between two accounts, never by job: what a channel settled is put to its jobs in the order in which they were vouched
for, and what cannot be put to any job stands under the job ``""``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from hansa.market.ledger import Entry
from hansa.proto.units import Bytes32, Line, UnixMs

Side = Literal["earnings", "spend"]
By = Literal["job", "peer", "day"]
SIDES: Final[tuple[Side, ...]] = ("earnings", "spend")
WAYS: Final[tuple[By, ...]] = ("job", "peer", "day")
DAY_MS: Final = 86_400_000
_PREFIXES: Final[Mapping[Side, tuple[str, str]]] = {"earnings": ("earned:", "due:"), "spend": ("spend:", "owed:")}
"""For each side the accounts of what was vouched for, and of what is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFacts:
    """What the books do not know of a lease, since no debt follows from it.

    Attributes:
        job: hex of the job.
        peer: hex of the other side's account.
        currency: the currency's name.
        at_ms: when it ended, or the newest word of it.
        unvouched: metered with evidence and not vouched for, while it may still be.
        written_off: the same, once nobody will vouch for it any more.
        is_retry: whether it replaced a lease that was lost.
        lost_cost: what was vouched for on it, if it was lost and its shard went on elsewhere.
    """

    job: Line
    peer: Line
    currency: Line
    at_ms: UnixMs
    unvouched: int = 0
    written_off: int = 0
    is_retry: bool = False
    lost_cost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a statement, in smallest units.

    Attributes:
        key: hex of the job or the account, or the first millisecond of the day; empty where nothing can be named.
        currency: the currency's name.
        vouched: what vouchers promised.
        settled: how much of that was settled: by a channel's final sum, a payment, debts that cancel out.
        unvouched: metered and not vouched for yet.
        written_off: metered, and nobody will vouch for it any more.
        retries: leases that replaced a lost one.
        lost_cost: what was vouched for on leases that were lost; a part of ``vouched``.
    """

    key: Line
    currency: Line
    vouched: int = 0
    settled: int = 0
    unvouched: int = 0
    written_off: int = 0
    retries: int = 0
    lost_cost: int = 0

    @property
    def open(self) -> int:
        """What is still owed. Below zero where more was settled than vouched for."""
        return self.vouched - self.settled


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
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
    settled: int = 0


def statement(
    entries: Iterable[Entry],
    *,
    side: Side,
    by: By,
    currency_of_channel: Callable[[Bytes32], str],
    leases: Sequence[LeaseFacts] = (),
) -> Statement:
    """Add the books up.

    Args:
        entries: all of them, in their order; each counts once.
        side: what was earned, or what was spent.
        by: how to group.
        currency_of_channel: a channel's currency; for ``NO_CHANNEL`` that of the node.
        leases: what the books do not know.
    """
    rows: dict[tuple[str, str], Row] = {}

    def add(key: str, currency: str, **amounts: int) -> None:
        row = rows.get((currency, key)) or Row(key=key, currency=currency)
        rows[currency, key] = replace(row, **{name: getattr(row, name) + amount for name, amount in amounts.items()})

    for found in _movements(entries, side, currency_of_channel):
        key = _key(by, found.job, found.peer, found.at_ms)
        add(key, found.currency, vouched=found.vouched, settled=found.settled)
    for lease in leases:
        if lease.unvouched or lease.written_off or lease.is_retry or lease.lost_cost:
            key = _key(by, lease.job, lease.peer, lease.at_ms)
            add(
                key,
                lease.currency,
                unvouched=lease.unvouched,
                written_off=lease.written_off,
                retries=int(lease.is_retry),
                lost_cost=lease.lost_cost,
            )
    ordered = tuple(rows[which] for which in sorted(rows))
    return Statement(side=side, by=by, rows=ordered, totals=_totals(ordered))


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
            settled=total.settled + row.settled,
            unvouched=total.unvouched + row.unvouched,
            written_off=total.written_off + row.written_off,
            retries=total.retries + row.retries,
            lost_cost=total.lost_cost + row.lost_cost,
        )
    return tuple(totals[currency] for currency in sorted(totals))


def _movements(
    entries: Iterable[Entry], side: Side, currency_of_channel: Callable[[Bytes32], str]
) -> Iterable[_Movement]:
    gained, standing = _PREFIXES[side]
    sign = 1 if side == "spend" else -1
    seen: set[bytes] = set()
    waiting: dict[tuple[bytes, str], dict[str, int]] = {}
    for entry in entries:
        if entry.id in seen:
            continue
        seen.add(entry.id)
        currency = currency_of_channel(entry.channel_id)
        peers = [leg.account[len(standing) :] for leg in entry.legs if leg.account.startswith(standing)]
        if not peers:
            assert not any(leg.account.startswith(gained) for leg in entry.legs), "a voucher that nobody owes"
            continue
        for peer in dict.fromkeys(peers):
            open_jobs = waiting.setdefault((entry.channel_id, peer), {})
            vouched = 0
            if peer == peers[0]:
                for leg in entry.legs:
                    if leg.account.startswith(gained):
                        job, amount = leg.account[len(gained) :], sign * leg.amount
                        vouched += amount
                        open_jobs[job] = open_jobs.get(job, 0) + amount
                        yield _Movement(at_ms=entry.at_ms, job=job, peer=peer, currency=currency, vouched=amount)
            moved = sum(leg.amount for leg in entry.legs if leg.account == standing + peer)
            settled = sign * moved + vouched
            for job, amount in _put_to_jobs(open_jobs, settled):
                yield _Movement(at_ms=entry.at_ms, job=job, peer=peer, currency=currency, settled=amount)


def _put_to_jobs(open_jobs: dict[str, int], settled: int) -> Iterable[tuple[str, int]]:
    for job in list(open_jobs):
        part = min(settled, open_jobs[job])
        if part > 0:
            open_jobs[job] -= part
            settled -= part
            yield job, part
    if settled:
        yield "", settled
