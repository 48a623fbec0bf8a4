"""Devices that are lent in parts: who draws them, and what the auditor holds of them.

Drawn by a chance of its own, so that all else in a world stays as its seed has always drawn it. What a part is, is read
from the signed documents here, and not with the code that decides.
"""

from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any

from hansa.proto.documents import MeterLine
from hansa.proto.market_documents import Bid, Clause, Fact

WHOLE = 1_000
LEAST = ("0.125", "0.25", "0.5")
WISHES = ("0.125", "0.3", "0.5", "0.5", "0.75")


class Parts:
    """What one world draws of parts."""

    def __init__(self, seed: int) -> None:
        """From the world's seed."""
        self._chance = Random(f"parts of {seed}")

    def facts(self) -> tuple[Fact, ...]:
        """Of a device: two of three are lent in parts."""
        chance = self._chance
        return (Fact(name="share", value=chance.choice(LEAST)),) if chance.random() < 0.67 else ()

    def tenants(self) -> int:
        """Of a provider."""
        return self._chance.choice((2, 2, 3, 8))

    def clauses(self) -> tuple[Clause, ...]:
        """Of a job: a third of them wants a part."""
        chance = self._chance
        wish = Clause(name="share", operator="<=", values=(chance.choice(WISHES),))
        return (wish,) if chance.random() < 0.33 else ()


def part_milli(bid: Bid) -> int:
    """How much of each of its devices a bid gives, in thousandths."""
    for fact in bid.facts:
        if fact.name == "share":
            whole, _, decimals = fact.value.partition(".")
            return int(whole) * WHOLE + int(decimals.ljust(3, "0"))
    return WHOLE


def check_promises(state: Any) -> None:
    """No device of a house is promised for more than the whole at one instant, nor to more than its owner allows."""
    promised, tenants = Counter[bytes](), Counter[bytes]()
    for key, entry in state.capacity.allotments.items():
        sold = state.sales.get(key)
        assert sold is not None, "something is held for no bid"
        part = part_milli(sold.bid)
        assert (entry.devices, entry.share_milli) == (sold.bid.devices, part), "held is not what was bid"
        for device in entry.devices:
            promised[device] += part
            tenants[device] += part < WHOLE
    assert not any(milli > WHOLE for milli in promised.values()), "a device is promised twice"
    allowed = state.terms.tenants if state.terms is not None else 0
    assert not any(count > allowed for count in tenants.values()), "a device has more tenants than its owner allows"


def check_charges(latest: Iterable[tuple[MeterLine, Bid]]) -> None:
    """What an honest provider charged of one device is never more than time passed while it charged for it."""
    begun: dict[bytes, int] = {}
    ended: dict[bytes, int] = {}
    charged = Counter[bytes]()
    for line, bid in latest:
        for device in bid.devices if len(bid.devices) == 1 else ():
            charged[device] += line.device_ms
            begun[device] = min(begun.get(device, line.start_ms), line.start_ms)
            ended[device] = max(ended.get(device, line.end_ms), line.end_ms)
    for device, device_ms in charged.items():
        assert device_ms <= ended[device] - begun[device], "a device is charged for more time than passed"
