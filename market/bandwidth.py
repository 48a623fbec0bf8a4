"""What this node measured of the line to each provider: bytes in a second, each way, by its own clock.

Only what this node saw itself counts: bytes that it received and checked, and bytes whose arrival the other side's
kernel confirmed. Of each way the lower median of the newest transfers is the figure: one stall does not ruin a
provider, one fast hour does not make it, and whoever was fast and is slow now counts as slow after four slow transfers.
What is older than a month says nothing.

A transfer may be slow because this node's own line was shared by others at the same time. One that got no less than its
even share of what moved is therefore a lower bound only: it may raise the figure, and never lowers it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hansa.market.track_record import lower_median
from hansa.proto.blob import MAX_BLOB_BYTES
from hansa.proto.units import Address, Line, Uint64, UnixMs

THERE, BACK = "there", "back"
"""From this node to the provider, and from the provider to this node."""
KEPT = 7
"""So many transfers of each way are kept of a provider."""
FRESH_MS = 30 * 24 * 3_600_000
LEAST_BYTES = 4 << 20
"""Less is over before the line is full, unless it took long."""
LONG_MS = 5_000
LEAST_SLOW_BYTES = 256 << 10
MOST_BYTES_PER_S = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One measured transfer.

    Attributes:
        bytes_per_s: how fast it was.
        at_ms: when it was over.
    """

    bytes_per_s: Uint64
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """What was measured of the line to one provider.

    Attributes:
        provider: its account.
        there: transfers from this node to it, the newest last.
        back: transfers from it to this node, the newest last.
    """

    provider: Address
    there: tuple[Transfer, ...] = ()
    back: tuple[Transfer, ...] = ()

    def bytes_per_s(self, way: Line, at_ms: int) -> int:
        """The figure of one way; 0 where nothing is known of it."""
        kept = self.there if way == THERE else self.back
        fresh = [transfer.bytes_per_s for transfer in kept if transfer.at_ms > at_ms - FRESH_MS]
        return lower_median(fresh) if fresh else 0


def rate_of(size_bytes: int, took_ms: int) -> int:
    """Bytes in a second; 0 where a transfer was too small to say anything."""
    is_enough = size_bytes >= LEAST_BYTES or (took_ms >= LONG_MS and size_bytes >= LEAST_SLOW_BYTES)
    if not is_enough or size_bytes > MAX_BLOB_BYTES:
        return 0
    return min(MOST_BYTES_PER_S, max(1, size_bytes * 1_000 // max(1, took_ms)))


def noted(before: Bandwidth, way: str, bytes_per_s: int, *, is_bound: bool, at_ms: int) -> Bandwidth:
    """What is known of a line with one transfer more.

    Args:
        before: what was known.
        way: ``THERE`` or ``BACK``.
        bytes_per_s: how fast it was.
        is_bound: this node's own line may have been what held it up.
        at_ms: when it was over.
    """
    if is_bound and bytes_per_s <= before.bytes_per_s(way, at_ms):
        return before
    newest = Transfer(bytes_per_s=bytes_per_s, at_ms=at_ms)
    if way == THERE:
        return replace(before, there=(*before.there, newest)[-KEPT:])
    return replace(before, back=(*before.back, newest)[-KEPT:])


def by_provider(known: Sequence[Bandwidth]) -> Mapping[bytes, Bandwidth]:
    """The lines by whose they are."""
    return {line.provider: line for line in known}
