"""Which bids win: every bid gets a score and a sentence, and the cheapest way to finish comes first.

The score is the expected cost of one shard-hour: price times devices, divided by the share of this provider's leases
with us that ended well (Laplace's rule, so a newcomer counts as one good and one bad). What others' signed dealings say
of it (``hansa.market.reputation``) counts as up to four good ones: our own experience soon weighs more. Integers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hansa.market.isolation import is_served
from hansa.proto.market_documents import Bid, Tender
from hansa.proto.splits import splits_hash
from hansa.proto.units import Address, Amount, Bytes32, Line, Uint32, amount_for, e18_to_price_per_hour, format_amount

HOUR_MS = 3_600_000
TOLD_LEASES = 4
"""As so many good leases counts the best reputation of a provider that is new here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How a provider's earlier leases with this node ended, and its figure from signed dealings, in millionths."""

    good: Uint32 = 0
    bad: Uint32 = 0
    told_ppm: Uint32 = 0

    @property
    def reliability_ppm(self) -> int:
        """Expected share of good ends, in millionths."""
        told = TOLD_LEASES * self.told_ppm
        good, all_ends = (self.good + 1) * 1_000_000 + told, (self.good + self.bad + 2) * 1_000_000 + told
        return good * 1_000_000 // all_ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One bid in the table that the buyer sees.

    Attributes:
        bid: the bid's digest.
        provider: who made it.
        price_per_hour: of one device, as text.
        reliability_ppm: expected share of good ends, in millionths; a provider that is new here counts as one half.
        expected_cost: of one shard-hour, reliability counted in, in smallest units: the score. Lower is better.
        excluded: why it cannot win; empty if it can.
    """

    bid: Bytes32
    provider: Address
    price_per_hour: Line
    reliability_ppm: Uint32
    expected_cost: Amount
    excluded: Line


def rank(
    tender: Tender,
    bids: Mapping[bytes, Bid],
    records: Mapping[bytes, Record],
    *,
    max_prepay_ms: int = 0,
    at_ms: int,
) -> tuple[Scored, ...]:
    """All bids, the best first. Equal scores stand in the order of their digests.

    ``max_prepay_ms`` is how much device time the buyer pays ahead at the most: what it may lose to a provider that
    takes it and leaves.
    """
    scored = [
        _score(digest, bid, records.get(bid.signer, Record()), _exclusion(tender, bid, max_prepay_ms, at_ms))
        for digest, bid in bids.items()
    ]
    return tuple(sorted(scored, key=lambda entry: (bool(entry.excluded), entry.expected_cost, entry.bid)))


def _score(digest: bytes, bid: Bid, record: Record, excluded: str) -> Scored:
    hourly = amount_for(HOUR_MS * len(bid.devices), bid.price_e18_per_device_ms)
    return Scored(
        bid=digest,
        provider=bid.signer,
        price_per_hour=e18_to_price_per_hour(bid.price_e18_per_device_ms),
        reliability_ppm=record.reliability_ppm,
        expected_cost=hourly * 1_000_000 // record.reliability_ppm,
        excluded=excluded,
    )


def _exclusion(tender: Tender, bid: Bid, max_prepay_ms: int, at_ms: int) -> str:
    needs = tender.requirements
    if bid.expires_ms <= at_ms:
        return "the bid has expired"
    if bid.price_e18_per_device_ms > tender.price_ceiling_e18_per_device_ms:
        return "above the price ceiling"
    if len(bid.devices) != needs.devices or len(set(bid.devices)) != len(bid.devices):
        return "not the number of devices that was tendered for"
    if not is_served(needs.tier, bid.tier):
        return f"not the isolation that was tendered for ({needs.tier})"
    if bid.max_total > amount_for(needs.wall_ms * needs.devices, bid.price_e18_per_device_ms) + 1:
        return "its limit is above price times time"
    if bid.meter_interval_ms > max(tender.meter_interval_ms, 1) * 10:
        return "its receipts would come too seldom"
    if bid.splits_hash != splits_hash(tender.splits):
        return "it does not agree to the splits"
    if bid.prepay > min(bid.max_total, amount_for(max_prepay_ms * needs.devices, bid.price_e18_per_device_ms)):
        return f"it wants {format_amount(bid.prepay)} paid ahead, more than max_prepay allows"
    return ""


def explain_choice(ranking: Sequence[Scored], winner: bytes) -> str:
    """Why this bid won, for a person."""
    eligible = [entry for entry in ranking if not entry.excluded]
    place = next(index for index, entry in enumerate(eligible) if entry.bid == winner)
    if len(eligible) == 1:
        return "the only eligible bid"
    if place == 0:
        return f"lowest expected cost of {len(eligible)} bids"
    return f"number {place + 1} of {len(eligible)} by expected cost"
