"""What a provider wants for its devices, and how a tender is answered: a bid, or a decline that explains."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hansa.market.clauses import shared_facts, unreadable, written
from hansa.market.effects import clipped, derived_nonce
from hansa.market.pricing_rule import PricingRule, RulePrice, price_of
from hansa.market.receipts import CLOCK_SKEW_MS
from hansa.market.sale_state import MAX_FETCH_BYTES
from hansa.market.shares import SHARE, WHOLE_MILLI, cost, share_asked
from hansa.market.value_forms import number_text
from hansa.market.vocabulary import VOCABULARY
from hansa.proto.currency import currency_of
from hansa.proto.errors import Malformed
from hansa.proto.market_documents import (
    LEASE_ANY,
    LEASE_FIRM,
    LEASE_SPOT,
    Bid,
    Clause,
    Decline,
    Device,
    Fact,
    Shortfall,
    Tender,
)
from hansa.proto.splits import check_splits, percent, splits_hash
from hansa.proto.units import (
    Address,
    Amount,
    DurationMs,
    Line,
    PriceE18,
    Uint32,
    Uint64,
    e18_to_price_per_hour,
    format_amount,
    parse_amount,
    price_per_hour_to_e18,
)
from hansa.proto.workload import LARGEST_SIZE_BYTES

LONGEST_BIDDING_MS = 60_000
"""Devices are held while a bid stands, and nobody pays for that: no tender may keep bids open for longer."""
LONGEST_WINDOW_MS = 10 * 60_000
"""A bid holds devices until bidding closes; nobody may have them held for longer than this."""
LONGEST_NOTE_BYTES = 2_000
LONGEST_LINE_BYTES = 250
MOST_SHORTFALLS = 64


DEFAULT_MAX_SPLITS_BPS = 1_000
ITSELF = bytes(20)
"""Stands for a payee where no other account than the one that trades is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTerms:
    """The owner's own rules, from the configuration.

    Attributes:
        account: who trades, and is paid unless the owner names a colder account.
        currency: the unit of account of the prices.
        tier: the isolation that jobs get here.
        features: what else jobs can have here (``Advert.features``).
        egress: hosts that jobs may be let out to, as in ``Requirements.egress``; ``"*"`` is any public host.
        price_e18_per_device_ms: for any device without a price of its own.
        rule: prices of their own by model, and what hours and utilisation make of them.
        on_price_fault: what is done where the owner's program names no price: ``"rule"`` or ``"decline"``; empty where
            there is no program.
        leases: the kinds of lease to be had, the one first that a tender for any kind gets.
        penalty_ms: what a firm lease withholds until it has ended well, as time of all its devices.
        buyers: the only accounts that are served; empty serves everyone.
        voucher_timeout_ms: without a voucher for this long after a receipt the run is paused.
        max_unpaid: with more than this run up and not vouched for, the run is paused.
        grace_ms: a run that is paused for this long is stopped.
        credit_limit: what one buyer may owe here before its tenders are declined.
        bid_ms: how long a bid stands.
        reclaim_notice_ms: how long before taking a device back the owner says so.
        meter_interval_ms: receipts are never closer together than this, whatever a tender wishes.
        max_fetch_bytes: what the files of one shard may weigh.
        mirror_bytes: what the copies of other shards' checkpoints may weigh, all together.
        payee: who is paid; 20 zero bytes for the account itself.
        prepay_ms: so much device time is to be paid ahead; 0 where everybody pays afterwards.
        prepay_everybody: whether buyers that have paid here before pay ahead too.
        max_splits_bps: the most of a payment that may go to others, in ten-thousandths.
        accepts: what must hold of a job (``hansa.market.acceptance``).
        facts: what is true of every device, by the owner's word or the node's own look.
        min_buyer_ppm: buyers whose reputation is below this are declined, in millionths.
        tenants: so many buyers' leases may have parts of one device at a time, where devices are lent in parts.
    """

    account: Address
    currency: Line
    tier: Line
    features: tuple[Line, ...] = ()
    egress: tuple[Line, ...] = ()
    price_e18_per_device_ms: PriceE18
    rule: PricingRule = field(default_factory=PricingRule)
    on_price_fault: Line = ""
    leases: tuple[Line, ...] = (LEASE_SPOT,)
    penalty_ms: DurationMs = 0
    buyers: frozenset[Address] = frozenset()
    voucher_timeout_ms: DurationMs
    max_unpaid: Amount
    grace_ms: DurationMs
    credit_limit: Amount
    bid_ms: DurationMs
    reclaim_notice_ms: DurationMs
    meter_interval_ms: DurationMs = 0
    max_fetch_bytes: Uint64 = MAX_FETCH_BYTES
    mirror_bytes: Uint64 = 0
    min_buyer_ppm: Uint32 = 0
    accepts: tuple[Clause, ...] = ()
    facts: tuple[Fact, ...] = ()
    payee: Address = ITSELF
    prepay_ms: DurationMs = 0
    prepay_everybody: bool = False
    max_splits_bps: Uint32 = DEFAULT_MAX_SPLITS_BPS
    tenants: Uint32 = 0

    def price(self, devices: Sequence[Device], *, lease: str, share_ppm: int, at_ms: int) -> RulePrice:
        """What the owner's rule says of the very devices that would be given."""
        return price_of(
            self.rule,
            devices,
            otherwise_e18=self.price_e18_per_device_ms,
            lease=lease,
            share_ppm=share_ppm,
            at_ms=at_ms,
        )

    def lease_for(self, tender: Tender) -> str | None:
        """The kind of lease that a tender would get; None where the one that it wants is not to be had."""
        if tender.lease == LEASE_ANY:
            return self.leases[0]
        return tender.lease if tender.lease in self.leases else None


def objection(tender: Tender, terms: ProviderTerms, *, owed: int, at_ms: int) -> tuple[str, str] | None:
    """Why there can be no bid, whatever the devices: (reason, nearest change); None if nothing speaks against one.

    What a tender asks of the provider, and the owner of the tender, is in ``hansa.market.acceptance``.
    """
    # The buyer's clock said when bids close; a bid that comes too late costs one message.
    if at_ms >= tender.bids_close_ms + CLOCK_SKEW_MS:
        return "the tender is closed for bids", ""
    if tender.bids_close_ms > at_ms + LONGEST_WINDOW_MS:
        return "devices would be held too long before bidding closes", f"bids close within {LONGEST_WINDOW_MS} ms"
    if why := unreadable(tender.requirements):
        return why, ""
    if max(tender.requirements.memory_bytes, tender.requirements.scratch_bytes) > LARGEST_SIZE_BYTES:
        # Not every provider states its memory and disk, and what it does not state is no obstacle.
        return "no machine has 1024 TiB of memory, or of room for files", "less memory, and less room for files"
    if tender.bids_close_ms > at_ms + LONGEST_BIDDING_MS:
        return "the tender would stay open for too long", f"bids ≤ {LONGEST_BIDDING_MS // 1000} s"
    if tender.currency != terms.currency:
        return f"prices here are in {terms.currency}", f"tender in {terms.currency}"
    try:
        check_splits(tender.splits)
    except Malformed as fault:
        return f"the splits {fault.why}", ""
    shared_bps = sum(split.bps for split in tender.splits)
    if shared_bps > terms.max_splits_bps:
        shared, most = percent(shared_bps), percent(terms.max_splits_bps)
        return f"{shared} of every payment would go to others, and here at most {most}", f"splits ≤ {most} in all"
    if terms.buyers and tender.signer not in terms.buyers:
        return "this provider serves only buyers of its own list", ""
    if owed >= terms.credit_limit and not currency_of(terms.currency).is_on_chain:
        # On a chain nothing is lent: a run is worked within its buyer's deposit.
        return "you owe this provider as much as it lends to one buyer", "settle what you owe"
    return None


def too_cheap(tender: Tender, price_e18: int) -> tuple[str, str, Shortfall] | None:
    """Whether the tender's price ceiling is below a price: (reason, nearest change, the same for a machine).

    The change is rounded up to what a price is written with, so a ceiling that was raised to it is not too low again.
    """
    if price_e18 <= tender.price_ceiling_e18_per_device_ms:
        return None
    wanted = price_not_below(price_e18)
    ceiling = e18_to_price_per_hour(tender.price_ceiling_e18_per_device_ms)
    reason = f"the price here is {wanted} a device-hour, above your ceiling of {ceiling}"
    shortfall = Shortfall(name="price", wanted=f"price <= {ceiling}", nearest=VOCABULARY["price"].read(wanted))
    return reason, f"price ceiling ≥ {wanted}", shortfall


def price_not_below(price_e18: int) -> str:
    """A price for a device-hour as text, and never a text that stands for less."""
    text = e18_to_price_per_hour(price_e18)
    try:
        if price_per_hour_to_e18(text) >= price_e18:
            return text
    except ValueError:
        # Rounded up it is more than the wire carries: no ceiling is as high, and adverts with such prices are read.
        return text
    return format_amount(parse_amount(text) + 1)


def bid_for(
    tender: Tender,
    tender_digest: bytes,
    devices: Sequence[Device],
    terms: ProviderTerms,
    *,
    price_e18: int,
    lease: str = LEASE_SPOT,
    number: int,
    is_stranger: bool = False,
    at_ms: int,
) -> Bid:
    """The bid on one shard with these devices at this price. ``number`` tells several bids on one tender apart.

    Where the owner wants to be paid ahead (by strangers, or by everybody), nothing is done on trust beside that.
    """
    share = share_asked(tender.requirements)
    assert share is not None, "what cannot be read is an objection"
    width = len(devices) * share
    # One unit more than the product: the difference of two floors may be one above the floor of the difference.
    max_total = cost(tender.requirements.wall_ms, width, price_e18) + 1
    ahead_ms = terms.prepay_ms if is_stranger or terms.prepay_everybody else 0
    prepay = min(max_total, cost(ahead_ms, width, price_e18))
    is_firm = lease == LEASE_FIRM
    penalty = min(max_total, cost(terms.penalty_ms, width, price_e18)) if is_firm else 0
    return Bid(
        lease=lease,
        penalty=penalty,
        facts=written(_facts_of_bid(devices, share, terms)),
        signer=terms.account,
        tender=tender_digest,
        devices=tuple(device.id for device in devices),
        tier=terms.tier,
        price_e18_per_device_ms=price_e18,
        meter_interval_ms=max(tender.meter_interval_ms, terms.meter_interval_ms),
        voucher_timeout_ms=terms.voucher_timeout_ms,
        max_unpaid=0 if prepay else terms.max_unpaid,
        max_total=max_total,
        reclaim_notice_ms=terms.reclaim_notice_ms,
        prepay=prepay,
        payee=terms.account if terms.payee == ITSELF else terms.payee,
        splits_hash=splits_hash(tender.splits),
        expires_ms=min(tender.expires_ms, max(at_ms, tender.bids_close_ms) + terms.bid_ms),
        nonce=derived_nonce(b"bid", tender_digest, terms.account, number.to_bytes(4, "big")),
    )


def _facts_of_bid(devices: Sequence[Device], share: int, terms: ProviderTerms) -> dict[str, str]:
    """What is true of these devices; of cores a shard gets all that come with them, or its part of them."""
    own = {fact.name: fact.value for fact in terms.facts}
    cores = number_text(sum(device.cores_milli for device in devices) * share // WHOLE_MILLI)
    told = own | {"features": ",".join(terms.features)} | shared_facts(devices) | {"cores": cores}
    # A device says how small its parts may be; a bid says which part it gives.
    told.pop(SHARE, None)
    return told if share == WHOLE_MILLI else told | {SHARE: number_text(share)}


def _shortened(shortfall: Shortfall) -> Shortfall:
    """They hold the tender's own words, too."""
    wanted, nearest = (clipped(text, LONGEST_LINE_BYTES) for text in (shortfall.wanted, shortfall.nearest))
    return replace(shortfall, wanted=wanted, nearest=nearest)


def decline_for(
    tender: Tender,
    tender_digest: bytes,
    account: bytes,
    why: tuple[str, str],
    shortfalls: tuple[Shortfall, ...] = (),
) -> Decline:
    """The "no" to a tender with its reason and the nearest change that would make it a yes."""
    reason, relaxation = why
    return Decline(
        shortfalls=tuple(_shortened(one) for one in shortfalls[:MOST_SHORTFALLS]),
        signer=account,
        tender=tender_digest,
        # They may hold the tender's own words, of which there may be many.
        reason=clipped(reason, LONGEST_NOTE_BYTES),
        relaxation=clipped(relaxation, LONGEST_NOTE_BYTES),
        expires_ms=tender.expires_ms,
        nonce=derived_nonce(b"decline", tender_digest, account),
    )
