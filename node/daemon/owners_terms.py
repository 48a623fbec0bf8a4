"""What the owner's config makes of this node in the market: the terms that its engine is told at each start."""

from collections.abc import Collection
from dataclasses import replace

from hansa.market.pricing import ITSELF, ProviderTerms
from hansa.market.pricing_rule import PricingRule
from hansa.node.agents.agent_cluster import makes_gangs
from hansa.node.devices.machine_facts import owners_facts
from hansa.node.isolation.preflight import SandboxReport
from hansa.node.runs.environments import python_version
from hansa.node.settings.config import Config
from hansa.node.settings.pricing_config import clock_of
from hansa.node.settings.provider_config import PREPAY_EVERYBODY
from hansa.proto.market_documents import FEATURE_EGRESS, FEATURE_MIRRORS, FEATURE_SEALED, FEATURE_SEVERAL_MACHINES
from hansa.proto.units import UnixMs

BID_MS = 20_000
"""Long enough that the second and third choice still stand when the first ones do not confirm."""


def terms_of(config: Config, *, account: bytes, features: tuple[str, ...], at_ms: UnixMs) -> ProviderTerms:
    """The terms of a node that lends."""
    provider = config.provider
    return ProviderTerms(
        account=account,
        currency=config.currency,
        tier=provider.tier,
        features=features,
        egress=config.egress.allow,
        price_e18_per_device_ms=provider.price_e18_per_device_ms,
        rule=_rule_now(config, at_ms),
        on_price_fault=provider.pricing.on_program_fault if provider.pricing.program else "",
        buyers=provider.accept_buyers or frozenset(),
        accepts=provider.accepts,
        facts=owners_facts(provider.facts, config.region),
        payee=provider.payee or ITSELF,
        voucher_timeout_ms=provider.voucher_timeout_ms,
        max_unpaid=provider.max_unpaid,
        prepay_ms=provider.prepay_ms,
        prepay_everybody=provider.prepay_from == PREPAY_EVERYBODY,
        max_splits_bps=provider.max_splits_bps,
        grace_ms=provider.grace_ms,
        credit_limit=config.settlement.credit_limit,
        bid_ms=BID_MS,
        reclaim_notice_ms=provider.reclaim_notice_ms,
        leases=provider.leases,
        penalty_ms=provider.firm_penalty_ms,
        max_fetch_bytes=min(provider.max_fetch_bytes, config.blob_bytes),
        mirror_bytes=min(provider.mirror_bytes, config.blob_bytes // 2),
        meter_interval_ms=provider.meter_interval_ms,
        min_buyer_ppm=config.reputation.min_buyer_ppm,
        tenants=provider.share.tenants if provider.share is not None else 0,
    )


def _rule_now(config: Config, at_ms: UnixMs) -> PricingRule:
    """The owner's rule, with the owner's clock as it will be in the next years."""
    rule = config.provider.pricing.rule
    return replace(rule, clock=clock_of(config.rules.utc_offset_s, at_ms)) if rule.hours else rule


def features_of(config: Config, sandbox: SandboxReport | None, furnishings: Collection[str]) -> tuple[str, ...]:
    """What jobs can have here beside devices, sorted."""
    here = {
        FEATURE_EGRESS: bool(config.egress.allow),
        FEATURE_SEVERAL_MACHINES: config.cluster.listen is not None and makes_gangs(sandbox),
        FEATURE_MIRRORS: config.provider.mirror_bytes > 0,
        # Other machines keep what runs were furnished with, for the next that wants the same: not what was sealed.
        FEATURE_SEALED: config.cluster.listen is None,
        f"python{python_version()}": True,
    }
    return tuple(sorted({*furnishings, *(feature for feature, is_here in here.items() if is_here)}))
