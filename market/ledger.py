"""Double-entry books as a fold over entries: the only place where money is added up.

Accounts are plain names. As buyer a node has ``spend:<job>``, ``owed:<account>`` and ``paid:<account>``; as provider
``earned:<job>``, ``due:<buyer>`` and ``settled:<buyer>``. Work that nobody vouched for is in ``unpaid:<buyer>`` and
``written-off:<job>``, and what a buyer paid ahead in vain in ``forfeited:<provider>``
and ``taken:<provider>``, by its provider's books in ``kept:<buyer>`` and ``unearned:<buyer>``. What is paid ahead moves
nothing until a receipt uses it. Every entry's legs sum to zero, so the whole does too. An entry has an id that follows
from what it records, so a store that has it already ignores it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hansa.proto.keccak import keccak256
from hansa.proto.splits import Split, shares_of
from hansa.proto.units import Address, Amount, Bytes32, Line, UnixMs

NO_CHANNEL = bytes(32)


_MEMO_CHARS = 64
"""A memo is a line of at most 256 bytes, and no character has more than four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One side of an entry: the account, and what is added to it, in smallest units (negative: taken)."""

    account: Line
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One movement of money.

    Attributes:
        id: follows from what it records.
        at_ms: when it was recorded here.
        memo: in words.
        legs: at least two, summing to zero.
        channel_id: the channel that it is about; 32 zero bytes if it is about none, or is older than this field.
    """

    id: Bytes32
    at_ms: UnixMs
    memo: Line
    legs: tuple[Leg, ...]
    channel_id: Bytes32 = NO_CHANNEL

    def __post_init__(self) -> None:
        """Refuse an entry that makes or loses money."""
        assert sum(leg.amount for leg in self.legs) == 0, f"entry {self.memo!r} does not sum to zero"


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """Effect: put the entry into the books."""

    entry: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The balances that follow from every entry posted so far. The entries themselves lie in the ledger's store."""

    balances: Mapping[str, int] = field(default_factory=dict)
    entries: int = 0

    def post(self, entry: Entry) -> "Ledger":
        """The books with this entry in them."""
        balances = dict(self.balances)
        for leg in entry.legs:
            balances[leg.account] = balances.get(leg.account, 0) + leg.amount
        return Ledger(balances=balances, entries=self.entries + 1)

    def balance(self, account: str) -> int:
        """What stands on an account, in smallest units."""
        return self.balances.get(account, 0)

    def total(self, prefix: str = "") -> int:
        """The sum over all accounts whose name starts with ``prefix``; over all accounts it is zero."""
        return sum(amount for account, amount in self.balances.items() if account.startswith(prefix))


def fold(entries: Iterable[Entry]) -> Ledger:
    """The books that follow from these entries, each of which counts once."""
    ledger, seen = Ledger(), set[bytes]()
    for entry in entries:
        if entry.id not in seen:
            ledger = ledger.post(entry)
            seen.add(entry.id)
    return ledger


def entry_id(what: bytes, channel_id: bytes, seq: int) -> bytes:
    """Each side has ids of its own: a node that buys from itself keeps both in one store."""
    return keccak256(what + channel_id + seq.to_bytes(8, "big"))


def parts_of(total: int, splits: Sequence[Split], payee: Address) -> dict[bytes, int]:
    """What each account is due of a channel's total, were it the last: each split its floor, the payee the rest.

    A payee that is named in the splits too, or two of whose accounts are one, is owed both parts.
    """
    parts, rest = shares_of(total, 0, splits, last=True)
    found = {payee: rest}
    for split, part in zip(splits, parts, strict=True):
        found[split.account] = found.get(split.account, 0) + part
    return found


def payees_part(total: int, splits: Sequence[Split]) -> int:
    """What a channel's total is worth to the payee itself."""
    return shares_of(total, 0, splits, last=True)[1]


def _rises(before: int, after: int, splits: Sequence[Split], payee: Address) -> dict[bytes, int]:
    had, has = parts_of(before, splits, payee), parts_of(after, splits, payee)
    return {account: amount - had[account] for account, amount in has.items() if account == payee or amount}


def _net(shares: Mapping[bytes, Amount], net: int) -> dict[bytes, int]:
    """Each job's share of what the payee itself gets: in proportion, and together exactly that."""
    gross, passed, given = sum(shares.values()), 0, 0
    found: dict[bytes, int] = {}
    for job, share in sorted(shares.items()):
        passed += share
        upto = passed * net // gross if gross else 0
        found[job], given = upto - given, upto
    return found


def vouched_by_buyer(
    *,
    channel_id: Bytes32,
    seq: int,
    provider: Address,
    shares: Mapping[bytes, Amount],
    at_ms: int,
    before: Amount = 0,
    splits: Sequence[Split] = (),
) -> Entry:
    """The buyer's entry for one voucher: each job spent its share, the provider is owed the sum.

    Where others have a part of it (``splits``), each of them is owed its own; ``before`` is the total until now.
    """
    rises = _rises(before, before + sum(shares.values()), splits, provider)
    legs = [Leg(account=f"spend:{job.hex()}", amount=share) for job, share in sorted(shares.items())]
    legs += [Leg(account=f"owed:{account.hex()}", amount=-rise) for account, rise in rises.items()]
    return Entry(
        id=entry_id(b"vouched by buyer", channel_id, seq),
        at_ms=at_ms,
        memo=f"voucher {seq} on channel {channel_id.hex()[:8]}",
        legs=tuple(legs),
        channel_id=channel_id,
    )


def vouched_to_provider(
    *,
    channel_id: Bytes32,
    seq: int,
    buyer: Address,
    shares: Mapping[bytes, Amount],
    at_ms: int,
    before: Amount = 0,
    splits: Sequence[Split] = (),
) -> Entry:
    """The provider's entry for one voucher: the buyer owes the sum, each job earned its share.

    Where others have a part of it (``splits``), only the provider's own part is in its books.
    """
    rise = payees_part(before + sum(shares.values()), splits) - payees_part(before, splits)
    legs = [Leg(account=f"due:{buyer.hex()}", amount=rise)]
    legs += [Leg(account=f"earned:{job.hex()}", amount=-share) for job, share in _net(shares, rise).items()]
    return Entry(
        id=entry_id(b"vouched to provider", channel_id, seq),
        at_ms=at_ms,
        memo=f"voucher {seq} on channel {channel_id.hex()[:8]}",
        legs=tuple(legs),
        channel_id=channel_id,
    )


def closed_by_buyer(
    *, channel_id: Bytes32, provider: Address, cumulative: Amount, at_ms: int, splits: Sequence[Split] = ()
) -> Entry:
    """The buyer's entry for a closed channel: what was owed is settled as both signed it."""
    parts = parts_of(cumulative, splits, provider)
    owed = [Leg(account=f"owed:{account.hex()}", amount=part) for account, part in parts.items()]
    paid = [Leg(account=f"paid:{account.hex()}", amount=-part) for account, part in parts.items()]
    return Entry(
        id=entry_id(b"closed by buyer", channel_id, 0),
        at_ms=at_ms,
        memo=f"channel {channel_id.hex()[:8]} closed",
        legs=(*owed, *paid),
        channel_id=channel_id,
    )


def closed_to_provider(
    *, channel_id: Bytes32, buyer: Address, cumulative: Amount, at_ms: int, splits: Sequence[Split] = ()
) -> Entry:
    """The provider's entry for a closed channel."""
    own = payees_part(cumulative, splits)
    return Entry(
        id=entry_id(b"closed to provider", channel_id, 0),
        at_ms=at_ms,
        memo=f"channel {channel_id.hex()[:8]} closed",
        legs=(
            Leg(account=f"settled:{buyer.hex()}", amount=own),
            Leg(account=f"due:{buyer.hex()}", amount=-own),
        ),
        channel_id=channel_id,
    )


def unreceived_by_provider(
    *, channel_id: Bytes32, buyer: Address, closed: Amount, paid: Amount, at_ms: int, splits: Sequence[Split] = ()
) -> Entry:
    """The provider's entry for a channel whose chain paid less than both had closed it at: the rest is due again."""
    short = payees_part(closed, splits) - payees_part(paid, splits)
    return Entry(
        id=entry_id(b"unreceived by provider", channel_id, 0),
        at_ms=at_ms,
        memo=f"channel {channel_id.hex()[:8]} paid less than it closed at",
        legs=(
            Leg(account=f"due:{buyer.hex()}", amount=short),
            Leg(account=f"settled:{buyer.hex()}", amount=-short),
        ),
        channel_id=channel_id,
    )


def unpaid_by_buyer(
    *, channel_id: Bytes32, provider: Address, closed: Amount, paid: Amount, at_ms: int, splits: Sequence[Split] = ()
) -> Entry:
    """The buyer's entry for the same: what its contract did not pay is owed again, to each its own part."""
    had, has = parts_of(closed, splits, provider), parts_of(paid, splits, provider)
    short = {account: part - has[account] for account, part in had.items()}
    paid_back = [Leg(account=f"paid:{account.hex()}", amount=part) for account, part in short.items()]
    owed = [Leg(account=f"owed:{account.hex()}", amount=-part) for account, part in short.items()]
    return Entry(
        id=entry_id(b"unpaid by buyer", channel_id, 0),
        at_ms=at_ms,
        memo=f"channel {channel_id.hex()[:8]} paid less than it closed at",
        legs=(*paid_back, *owed),
        channel_id=channel_id,
    )


def paid_to_provider(*, debtor: Address, unit: Bytes32, nonce: int, amount: Amount, how: str, at_ms: int) -> Entry:
    """The creditor's entry for a payment that reached it outside: by so much the debtor owes less."""
    return Entry(
        id=entry_id(b"paid to provider" + debtor, unit, nonce),
        at_ms=at_ms,
        memo=f"payment {nonce}: {how}"[:_MEMO_CHARS],
        legs=(
            Leg(account=f"received:{debtor.hex()}", amount=amount),
            Leg(account=f"acknowledged:{debtor.hex()}", amount=-amount),
        ),
    )


def paid_by_buyer(*, creditor: Address, unit: Bytes32, nonce: int, amount: Amount, how: str, at_ms: int) -> Entry:
    """The debtor's entry for a payment that its creditor acknowledged."""
    return Entry(
        id=entry_id(b"paid by buyer" + creditor, unit, nonce),
        at_ms=at_ms,
        memo=f"payment {nonce}: {how}"[:_MEMO_CHARS],
        legs=(
            Leg(account=f"acquitted:{creditor.hex()}", amount=amount),
            Leg(account=f"remitted:{creditor.hex()}", amount=-amount),
        ),
    )


def netted(*, peer: Address, unit: Bytes32, nonce: int, amount: Amount, at_ms: int) -> Entry:
    """Either side's entry for debts that cancel out: both owe each other so much less."""
    return Entry(
        id=entry_id(b"netted" + peer, unit, nonce),
        at_ms=at_ms,
        memo=f"netting {nonce}",
        legs=(
            Leg(account=f"acquitted:{peer.hex()}", amount=amount),
            Leg(account=f"acknowledged:{peer.hex()}", amount=-amount),
        ),
    )


def owed_by(ledger: Ledger, buyer: Address) -> int:
    """What a buyer owes this node: all that it vouched for, less what it paid and what was netted."""
    return sum(ledger.balance(f"{account}:{buyer.hex()}") for account in ("due", "settled", "acknowledged"))


def taken_off(ledger: Ledger, buyer: Address) -> int:
    """What was taken off a buyer's debt in all: payments that this node acknowledged, and nettings."""
    return -ledger.balance(f"acknowledged:{buyer.hex()}")


def vouched_to(ledger: Ledger, provider: Address) -> int:
    """All that this node ever vouched for to a provider, whatever was paid since."""
    return -sum(ledger.balance(f"{account}:{provider.hex()}") for account in ("owed", "paid"))


def owed_to(ledger: Ledger, provider: Address) -> int:
    """What this node owes a provider: all that it vouched for, less what was acknowledged and what was netted."""
    return -sum(ledger.balance(f"{account}:{provider.hex()}") for account in ("owed", "paid", "acquitted"))


def written_off(
    *, channel_id: Bytes32, lease: Bytes32, job: Bytes32, buyer: Address, amount: Amount, at_ms: int
) -> Entry:
    """The provider's entry for work that nobody vouched for: it was metered, and will not be earned.

    It was never in ``earned`` or ``due``, which only a voucher moves, so it stands in accounts of its own.
    """
    return Entry(
        id=keccak256(b"written off" + lease),
        at_ms=at_ms,
        memo=f"lease {lease.hex()[:8]} was not paid for",
        legs=(
            Leg(account=f"unpaid:{buyer.hex()}", amount=amount),
            Leg(account=f"written-off:{job.hex()}", amount=-amount),
        ),
        channel_id=channel_id,
    )


def written_back(
    *,
    channel_id: Bytes32,
    lease: Bytes32,
    job: Bytes32,
    buyer: Address,
    amount: Amount,
    vouched: Amount,
    at_ms: int,
) -> Entry:
    """The provider's entry for a voucher that came after all, for a lease that was written off.

    ``amount`` is by how much what was vouched for rose; ``vouched`` is what it is now: it tells several such vouchers
    apart.
    """
    return Entry(
        id=keccak256(b"written back" + lease + vouched.to_bytes(16, "big")),
        at_ms=at_ms,
        memo=f"lease {lease.hex()[:8]} was paid for after all",
        legs=(
            Leg(account=f"unpaid:{buyer.hex()}", amount=-amount),
            Leg(account=f"written-off:{job.hex()}", amount=amount),
        ),
        channel_id=channel_id,
    )


def forfeited(*, channel_id: Bytes32, provider: Address, amount: Amount, at_ms: int) -> Entry:
    """The buyer's entry for what a channel paid beyond all receipts: money paid ahead that did not come back."""
    return Entry(
        id=keccak256(b"forfeited" + channel_id),
        at_ms=at_ms,
        memo=f"channel {channel_id.hex()[:8]} paid more than was received",
        legs=(
            Leg(account=f"forfeited:{provider.hex()}", amount=amount),
            Leg(account=f"taken:{provider.hex()}", amount=-amount),
        ),
        channel_id=channel_id,
    )


def kept(*, channel_id: Bytes32, buyer: Address, amount: Amount, at_ms: int) -> Entry:
    """The provider's entry for the same: it was paid, and nothing was delivered for it, so it is not among earnings."""
    return Entry(
        id=keccak256(b"kept" + channel_id),
        at_ms=at_ms,
        memo=f"channel {channel_id.hex()[:8]} paid more than was delivered",
        legs=(
            Leg(account=f"kept:{buyer.hex()}", amount=amount),
            Leg(account=f"unearned:{buyer.hex()}", amount=-amount),
        ),
        channel_id=channel_id,
    )
