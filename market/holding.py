"""What buyers have had held and did not use: device time that a provider kept for them, and that nobody pays for.

A bid holds devices, and who tenders again and again without an award could hold them for ever. So the time is counted
for each buyer, like water in a bucket that drains: an honest buyer's bidding of seconds never fills it, and who has
filled it comes back when enough has drained. Accounts cost nothing, so buyers have one bucket together as well, for
what their own earlier paid time here does not cover: it drains slower than devices can be held, which leaves free a
share of the time in which others find room.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hansa.proto.units import Address, DeviceMs, UnixMs

BUYER_BURST_MS = 5 * 60_000
"""One buyer may have had each of the devices held for so long, if it never paid for any time here."""
BUYER_SHARE = 4
"""And in the long run for one part in so many of the time."""
STRANGERS_BURST_MS = 10 * 60_000
"""The same for all buyers together, as far as what they paid for before does not cover it."""
STRANGERS_SHARE = 2
MOST_BUYERS = 1_024
"""More are not remembered one by one: who had least held goes first, and stays in the sum of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One bucket.

    Attributes:
        device_ms: what is in it.
        at_ms: as of when.
    """

    device_ms: DeviceMs = 0
    at_ms: UnixMs = 0

    def at(self, at_ms: int, *, devices: int, share: int) -> "Held":
        """What is left of it later. A clock that went back drains nothing."""
        passed_ms = max(0, at_ms - self.at_ms)
        left = max(0, self.device_ms - passed_ms * max(1, devices) // share)
        return Held(device_ms=left, at_ms=max(at_ms, self.at_ms))


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What was held in vain.

    Attributes:
        buyers: by account.
        strangers: what of it no buyer's own paid time covers, of all buyers together.
    """

    buyers: Mapping[Address, Held] = field(default_factory=dict)
    strangers: Held = field(default_factory=Held)


def charged(state: Holdings, buyer: bytes, device_ms: int, *, paid_ms: int, devices: int, at_ms: int) -> Holdings:
    """Count device time that was held for a buyer in vain.

    Args:
        state: what was counted before.
        buyer: for whom.
        device_ms: how much.
        paid_ms: device time that the buyer has paid for here before.
        devices: how many are owned.
        at_ms: now.
    """
    drained = {key: held.at(at_ms, devices=devices, share=BUYER_SHARE) for key, held in state.buyers.items()}
    before = drained.get(buyer, Held(at_ms=at_ms))
    after = replace(before, device_ms=before.device_ms + max(0, device_ms))
    drained[buyer] = after
    uncovered = max(0, after.device_ms - paid_ms) - max(0, before.device_ms - paid_ms)
    pool = state.strangers.at(at_ms, devices=devices, share=STRANGERS_SHARE)
    kept = sorted(
        ((key, held) for key, held in drained.items() if held.device_ms),
        key=lambda entry: (-entry[1].device_ms, entry[0]),
    )
    return Holdings(buyers=dict(kept[:MOST_BUYERS]), strangers=replace(pool, device_ms=pool.device_ms + uncovered))


def wait_ms(state: Holdings, buyer: bytes, *, paid_ms: int, devices: int, at_ms: int) -> tuple[int, int]:
    """How long a buyer has to wait before devices are held for it again: for itself, and for all strangers' sake.

    Paid time raises a buyer's limit by as much, and what it covers is nothing that strangers could use up.
    """
    owned = max(1, devices)
    had = state.buyers.get(buyer, Held(at_ms=at_ms)).at(at_ms, devices=owned, share=BUYER_SHARE).device_ms
    own_ms = _until(had, BUYER_BURST_MS * owned + paid_ms, owned, BUYER_SHARE)
    if had < paid_ms:
        return own_ms, 0
    pool = state.strangers.at(at_ms, devices=owned, share=STRANGERS_SHARE).device_ms
    return own_ms, _until(pool, STRANGERS_BURST_MS * owned, owned, STRANGERS_SHARE)


def _until(level: int, limit: int, devices: int, share: int) -> int:
    return -(-max(0, level - limit) * share // devices)
