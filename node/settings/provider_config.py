"""``[provider]``: what a node lends, to whom, and on which terms."""

from dataclasses import dataclass

from hansa.market.needs_text import NeedsError
from hansa.market.requirements import parse_rules
from hansa.node.devices.machine_facts import read_owners_facts
from hansa.node.settings.pricing_config import PricingConfig, read_pricing
from hansa.node.settings.share_config import ShareConfig, read_share
from hansa.node.settings.splits_config import read_percent
from hansa.node.toml_reader import TomlTable
from hansa.proto.errors import Malformed
from hansa.proto.market_documents import LEASE_FIRM, LEASE_SPOT, TIER_GVISOR, TIER_NONE, TIER_SANDBOX, Clause, Fact
from hansa.proto.signing import parse_address
from hansa.proto.units import Address, Amount, DurationMs, PriceE18, Uint32

PREPAY_STRANGERS, PREPAY_EVERYBODY = "strangers", "everybody"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    """What this node lends, to whom, and on which terms.

    Attributes:
        enabled: whether it lends anything at all.
        price_e18_per_device_ms: the posted price.
        gpus: uuids or indices of the GPUs to lend; ``None`` lends all.
        cpu_slots: how many slots of CPU capacity to sell; ``None`` lets the inventory decide.
        cpu_cores_milli_per_slot: CPU cores of one slot, in thousandths.
        memory_bytes_per_slot: main memory of one slot.
        accept_buyers: accounts whose jobs are taken; ``None`` takes anybody's.
        payee: the account that is paid; ``None`` is the node's own.
        tier: the isolation that every job gets.
        meter_interval_ms: a receipt at most this often.
        voucher_timeout_ms: a run is paused without a voucher for this long after a receipt.
        max_unpaid: a run is paused with more than this run up and not vouched for.
        prepay_ms: how much device time is paid ahead; 0 for none.
        prepay_from: who pays ahead: ``strangers``, who never settled anything here, or ``everybody``.
        max_splits_bps: the most of a payment that may go to others than this provider, in ten-thousandths.
        grace_ms: a run that has been paused for this long is stopped.
        reclaim_notice_ms: how long before taking a device back the buyer is told.
        leases: the kinds of lease that are offered; the first is for who does not mind.
        firm_penalty_ms: what a firm lease withholds until it has ended well, as time of all its devices.
        shells: whether buyers may open shells in their own runs.
        max_fetch_bytes: what one shard may bring beside its package at most.
        mirror_bytes: what the copies of checkpoints may weigh that are held for shards elsewhere; 0 holds none.
        accepts: the owner's rules over a job's facts, all of which must hold.
        facts: what the owner says of the machine.
        pricing: what makes the price of a bid out of the posted one.
        share: how devices are lent in parts; ``None`` lends them whole.
    """

    enabled: bool
    price_e18_per_device_ms: PriceE18
    gpus: tuple[str, ...] | None
    cpu_slots: int | None
    cpu_cores_milli_per_slot: int
    memory_bytes_per_slot: int
    accept_buyers: frozenset[Address] | None
    payee: Address | None
    tier: str
    meter_interval_ms: DurationMs
    voucher_timeout_ms: DurationMs
    max_unpaid: Amount
    prepay_ms: DurationMs
    prepay_from: str
    max_splits_bps: Uint32
    grace_ms: DurationMs
    reclaim_notice_ms: DurationMs
    leases: tuple[str, ...]
    firm_penalty_ms: DurationMs
    shells: bool
    max_fetch_bytes: int
    mirror_bytes: int
    accepts: tuple[Clause, ...]
    facts: tuple[Fact, ...]
    pricing: PricingConfig
    share: ShareConfig | None


def read_provider(table: TomlTable) -> ProviderConfig:
    """Read and check the table."""
    provider = ProviderConfig(
        enabled=table.boolean("enabled", False),
        price_e18_per_device_ms=table.price_e18("price_per_hour", "0.40"),
        gpus=_gpus(table),
        cpu_slots=_cpu_slots(table),
        cpu_cores_milli_per_slot=table.cores_milli("cpu_cores_per_slot", 2),
        memory_bytes_per_slot=table.size_bytes("memory_per_slot", "4 GiB", least=1 << 20),
        accept_buyers=_accept_buyers(table),
        payee=table.account("payee"),
        tier=table.choice("tier", TIER_SANDBOX, (TIER_SANDBOX, TIER_GVISOR, TIER_NONE)),
        meter_interval_ms=table.duration_ms("meter_interval", "10 s", least=100),
        voucher_timeout_ms=table.duration_ms("voucher_timeout", "60 s", least=1_000),
        max_unpaid=table.amount("max_unpaid", "0.25", least=1),
        prepay_ms=table.duration_ms("prepay", "0 s", least=0),
        prepay_from=table.choice("prepay_from", PREPAY_STRANGERS, (PREPAY_STRANGERS, PREPAY_EVERYBODY)),
        max_splits_bps=read_percent(table, "max_splits", "10 %"),
        grace_ms=table.duration_ms("grace", "2 min"),
        reclaim_notice_ms=table.duration_ms("reclaim_notice", "1 min"),
        leases=_leases(table),
        firm_penalty_ms=table.duration_ms("firm_penalty", "10 min"),
        shells=table.boolean("shells", True),
        max_fetch_bytes=table.size_bytes("max_fetch", "100 GiB"),
        mirror_bytes=table.size_bytes("mirrors", "10 GiB"),
        accepts=_accepts(table),
        facts=read_owners_facts(table.table("facts")),
        pricing=read_pricing(table.table("pricing")),
        share=read_share(table, table.cores_milli("cpu_cores_per_slot", 2)),
    )
    if provider.tier == TIER_GVISOR and provider.gpus != ():
        raise table.fault("gpus", 'must be empty with tier = "gvisor"', "runs in gVisor get no GPU here: gpus = []")
    table.finish()
    return provider


def _leases(table: TomlTable) -> tuple[str, ...]:
    leases = table.texts("leases", (LEASE_SPOT,))
    if not leases or len(set(leases)) != len(leases) or not set(leases) <= {LEASE_SPOT, LEASE_FIRM}:
        raise table.fault("leases", 'must name "spot", "firm" or both', 'leases = ["spot", "firm"]')
    return leases


def _gpus(table: TomlTable) -> tuple[str, ...] | None:
    if not table.has("gpus"):
        return None
    value = table.raw("gpus")
    if value == "all":
        return None
    if not isinstance(value, list) or not all(type(item) in (str, int) for item in value):
        raise table.fault("gpus", 'must be "all" or a list', 'for example gpus = ["GPU-6f1c...", "1"], or [] for none')
    return tuple(str(item).strip() for item in value)


def _cpu_slots(table: TomlTable) -> int | None:
    if table.has("cpu_slots") and isinstance(table.raw("cpu_slots"), str):
        if table.raw("cpu_slots") == "auto":
            return None
        raise table.fault("cpu_slots", 'must be a whole number or "auto"', "cpu_slots = 0 sells no CPU capacity")
    return table.integer("cpu_slots", 0, least=0, most=1024)


def _accept_buyers(table: TomlTable) -> frozenset[Address] | None:
    if not table.has("accept_buyers") or table.raw("accept_buyers") == "any":
        return None
    accounts = table.texts("accept_buyers", (), most=4096)
    if not accounts:
        raise table.fault("accept_buyers", "names nobody", "set enabled = false to lend nothing")
    try:
        return frozenset(parse_address(account) for account in accounts)
    except Malformed as fault:
        hint = 'accept_buyers = "any", or a list of accounts as `hansa balance` shows them'
        raise table.fault("accept_buyers", f"an account {fault.why}", hint) from None


def _accepts(table: TomlTable) -> tuple[Clause, ...]:
    if not table.has("accepts"):
        return ()
    text = table.raw("accepts")
    if not isinstance(text, str):
        raise table.fault("accepts", "must be text", 'for example accepts = "wall <= 24 h and network = none"')
    try:
        return parse_rules(text)
    except NeedsError as fault:
        raise table.fault("accepts", str(fault), fault.hint, fault.shown) from None
