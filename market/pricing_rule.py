"""A provider's own rule of pricing: a rate card by model, and curves over its week and over its own utilisation.

Pure arithmetic on integers: the moment, the distance of the owner's clock from UTC and how much of the house is leased
come in as arguments, so the same facts always give the same price, also when a journal is folded again.

A bid names one price for a device-millisecond. A set of unlike devices costs the mean of its devices' rates: all of
them work for as long as the lease is worked on, so together they earn what each would at its own rate. There is one
rounding, and it is up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hansa.proto.gpu_models import matches
from hansa.proto.market_documents import LEASE_FIRM, Device
from hansa.proto.units import Line, PriceE18, Uint32, Uint64, UnixMs

PPM = 1_000_000
"""A factor of one, and a share of the whole."""
MOST_FACTOR_PPM = 1_000 * PPM
LARGEST_PRICE_E18 = (1 << 128) - 1
MINUTE_MS = 60_000
WEEK_MINUTES = 7 * 24 * 60
EPOCH_MINUTES = 3 * 24 * 60
"""1970-01-01 was a Thursday, and weeks begin on Mondays here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HourFactor:
    """What a part of the owner's week makes of the price.

    Attributes:
        begins_minute, ends_minute: since Monday 00:00, the second not included.
        factor_ppm: in millionths.
    """

    begins_minute: Uint32
    ends_minute: Uint32
    factor_ppm: Uint64


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockOffset:
    """From a moment on the owner's clock is so far ahead of UTC, until the next of these; negative in the west."""

    from_ms: UnixMs
    offset_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A point of a curve that is straight between its points and level beyond the first and the last.

    Attributes:
        share_ppm: how much of the own devices is leased, in millionths.
        factor_ppm: what that makes of the price, in millionths.
    """

    share_ppm: Uint64
    factor_ppm: Uint64


@dataclass(frozen=True, slots=True, kw_only=True)
class PricingRule:
    """The owner's rule.

    Attributes:
        rates: prices of their own, by a model's name as ``hansa.proto.gpu_models`` writes it, or a family's.
        hours: parts of the week with a factor of their own; the first that holds counts.
        clock: how the owner's clock stands to UTC, by time; empty means UTC.
        utilisation: the curve over the share of devices that are leased, by rising share; empty means no factor.
        floor_e18: no bid is below this.
        spot_ppm: what a spot lease makes of the price.
        firm_ppm: the same of a firm one.
    """

    rates: Mapping[Line, PriceE18] = field(default_factory=dict)
    hours: tuple[HourFactor, ...] = ()
    clock: tuple[ClockOffset, ...] = ()
    utilisation: tuple[CurvePoint, ...] = ()
    floor_e18: PriceE18 = 0
    spot_ppm: Uint64 = PPM
    firm_ppm: Uint64 = PPM

    def rate(self, device: Device, otherwise_e18: int) -> int:
        """The price of one device; of several entries that its model meets, the one with the longest name."""
        met = [name for name in self.rates if matches(name, device.model, device.memory_bytes)]
        return self.rates[max(met, key=lambda name: (len(name), name))] if met else otherwise_e18


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePrice:
    """What the rule says, and of what it is made.

    Attributes:
        price_e18: for one device and one millisecond of the set.
        rates_e18: of each device, in the order of the set.
        hours_ppm, utilisation_ppm, lease_ppm: the factors.
        share_ppm: how much of the own devices was leased.
        minute_of_week: of the owner's clock, since Monday 00:00.
        at_floor: the floor is above what card and factors come to.
    """

    price_e18: int
    rates_e18: tuple[int, ...]
    hours_ppm: int
    utilisation_ppm: int
    lease_ppm: int
    share_ppm: int
    minute_of_week: int
    at_floor: bool


def price_of(
    rule: PricingRule,
    devices: Sequence[Device],
    *,
    otherwise_e18: int,
    lease: str,
    share_ppm: int,
    at_ms: int,
) -> RulePrice:
    """What the very devices that would be given cost.

    Args:
        rule: the owner's.
        devices: at least one.
        otherwise_e18: the price of a model that is not on the rate card.
        lease: ``"firm"`` or ``"spot"``.
        share_ppm: how much of the own devices is leased.
        at_ms: when.
    """
    assert devices, "a bid on no device has no price"
    rates = tuple(rule.rate(device, otherwise_e18) for device in devices)
    minute = minute_of_week(rule, at_ms)
    hours_ppm = next((part.factor_ppm for part in rule.hours if part.begins_minute <= minute < part.ends_minute), PPM)
    utilisation_ppm = factor_at(rule.utilisation, share_ppm)
    lease_ppm = rule.firm_ppm if lease == LEASE_FIRM else rule.spot_ppm
    worked_e18 = -(-sum(rates) * hours_ppm * utilisation_ppm * lease_ppm // (len(rates) * PPM**3))
    return RulePrice(
        price_e18=min(max(worked_e18, rule.floor_e18), LARGEST_PRICE_E18),
        rates_e18=rates,
        hours_ppm=hours_ppm,
        utilisation_ppm=utilisation_ppm,
        lease_ppm=lease_ppm,
        share_ppm=share_ppm,
        minute_of_week=minute,
        at_floor=worked_e18 < rule.floor_e18,
    )


def minute_of_week(rule: PricingRule, at_ms: int) -> int:
    """What the owner's clock shows, in minutes since Monday 00:00."""
    offset_s = 0
    for change in rule.clock:
        if change.from_ms > at_ms:
            break
        offset_s = change.offset_s
    return ((at_ms + offset_s * 1_000) // MINUTE_MS + EPOCH_MINUTES) % WEEK_MINUTES


def factor_at(curve: Sequence[CurvePoint], share_ppm: int) -> int:
    """A curve's height at a share, rounded down between two points."""
    if not curve:
        return PPM
    if share_ppm <= curve[0].share_ppm:
        return curve[0].factor_ppm
    for left, right in pairwise(curve):
        if share_ppm <= right.share_ppm:
            rise = (right.factor_ppm - left.factor_ppm) * (share_ppm - left.share_ppm)
            return left.factor_ppm + rise // (right.share_ppm - left.share_ppm)
    return curve[-1].factor_ppm
