"""What a provider is really asked for: kinds of requests and how often, the newest counting most.

A histogram of few kinds whose weights halve with time, in integers: the same tenders give the same histogram on every
fold of the journal. Strangers send tenders, so it is bounded, a tender counts once whatever it asks for, and nothing
but the choice among devices that cost the same hangs on it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hansa.market.shares import WHOLE_MILLI, share_asked
from hansa.proto.market_documents import Requirements
from hansa.proto.units import Line, Uint32, Uint64, UnixMs

HALF_LIFE_MS = 6 * 3_600_000
"""After so long a tender counts half."""
ONE = 1 << 16
"""The weight of a tender when it comes."""
MOST_KINDS = 32
"""Of more kinds, the one that was asked for the least is forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of request.

    Attributes:
        devices: how many for a shard.
        share_milli: how much of each, in thousandths.
        kind: ``"gpu"``, ``"cpu"`` or ``"any"``.
        model: a model or a family; empty for any.
        memory_bytes: the least that a shard gets of each device's own memory.
    """

    devices: Uint32
    share_milli: Uint32 = WHOLE_MILLI
    kind: Line = "any"
    model: Line = ""
    memory_bytes: Uint64 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A kind and its weight."""

    kind: Kind
    weight: Uint64


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The histogram.

    Attributes:
        seen: by falling weight as of ``since_ms``.
        since_ms: when the weights were halved last.
    """

    seen: tuple[Seen, ...] = ()
    since_ms: UnixMs = 0


def kinds_of(needs: Requirements) -> tuple[Kind, ...]:
    """What a tender asks for: one kind for each set of devices that would do."""
    share = share_asked(needs) or WHOLE_MILLI
    sets = [(one.devices, one.model) for one in needs.choices] or [(needs.devices, "")]
    return tuple(
        dict.fromkeys(
            Kind(
                devices=devices,
                share_milli=share,
                kind=needs.kind,
                model=model,
                memory_bytes=needs.device_memory_bytes,
            )
            for devices, model in sets
        )
    )


def noted(demand: Demand, needs: Requirements, *, at_ms: int) -> Demand:
    """The histogram with one more tender in it."""
    aged = _aged(demand, at_ms)
    kinds = kinds_of(needs)[:MOST_KINDS]
    weights = {one.kind: one.weight for one in aged.seen}
    for kind in kinds:
        weights[kind] = weights.get(kind, 0) + ONE // len(kinds)
    # What is asked for now stays, or a new kind would never be heard of beside many old ones.
    kept = sorted(weights, key=lambda kind: (kind not in kinds, -weights[kind]))[:MOST_KINDS]
    ranked = sorted(kept, key=lambda kind: -weights[kind])
    return replace(aged, seen=tuple(Seen(kind=kind, weight=weights[kind]) for kind in ranked))


def _aged(demand: Demand, at_ms: int) -> Demand:
    """As of later. A clock that went back makes nothing young again."""
    if not demand.seen:
        return Demand(since_ms=at_ms)
    halvings = max(0, at_ms - demand.since_ms) // HALF_LIFE_MS
    if not halvings:
        return demand
    since_ms = demand.since_ms + halvings * HALF_LIFE_MS
    return Demand(seen=tuple(_halved(demand.seen, min(halvings, 64))), since_ms=since_ms)


def _halved(seen: Iterable[Seen], times: int) -> Iterable[Seen]:
    return (Seen(kind=one.kind, weight=left) for one in seen if (left := one.weight >> times))
