"""Until when each device's time is charged, so that no line of a later lease begins before that.

A provider's wall clock may be set back between two leases of one device. Each of its lines would still be what its
clock said, and both together would charge for time that never passed, which is a proof of a lie. So what has been
charged is kept by device: in the books' own order of events, and not by the clock. Leases of parts that fit beside each
other on one device may overlap, and only those that cannot have run together must follow each other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hansa.market.shares import WHOLE_MILLI
from hansa.proto.units import Bytes32, Uint32, UnixMs

MOST_DEVICES = 4_096
"""A machine's devices change their ids as its owner parts them anew. Beyond this the longest unused are forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """Lines of leases of so large a part of a device, in thousandths, end at this time or before."""

    share_milli: Uint32
    end_ms: UnixMs


DeviceTimes = Mapping[Bytes32, tuple[Charged, ...]]


def not_before_ms(times: DeviceTimes, devices: Iterable[bytes], share_milli: int) -> int:
    """When a new lease of such a part of these devices may begin to charge: 0 where nothing stands against it."""
    ends = (
        part.end_ms
        for device in devices
        for part in times.get(device, ())
        if part.share_milli + share_milli > WHOLE_MILLI
    )
    return max(ends, default=0)


def with_charge(
    times: DeviceTimes, devices: Iterable[bytes], share_milli: int, end_ms: int
) -> dict[bytes, tuple[Charged, ...]]:
    """The times after a line of such a part of these devices was written."""
    after = dict(times)
    for device in devices:
        known = after.pop(device, ())
        if not any(part.share_milli >= share_milli and part.end_ms >= end_ms for part in known):
            # What a larger part stood against until later says all that a smaller one could.
            rest = [part for part in known if part.share_milli > share_milli or part.end_ms > end_ms]
            known = tuple(
                sorted((*rest, Charged(share_milli=share_milli, end_ms=end_ms)), key=lambda part: part.share_milli)
            )
        after[device] = known
    while len(after) > MOST_DEVICES:
        del after[min(after, key=lambda device: (max(part.end_ms for part in after[device]), device))]
    return after
