"""Which of several sets of devices a request gets, so that what is to be expected still fits (``scheduler.packing``).

Devices of one sort on one machine are a row. What a request would take away is what its rows are worth less with it in
place. What is expected is what was asked for before (``scheduler.demand``), and beside it, so that a new provider is
not blind, requests for 1, 2, 4 … whole devices, together worth one tender.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hansa.market.vocabulary import ANY
from hansa.proto.gpu_models import canonical, matches
from hansa.proto.market_documents import Device
from hansa.scheduler.demand import ONE, Demand, Kind
from hansa.scheduler.packing import WHOLE, Expected, Fleet, Machine, Outlook, Request, Weights, pressure

Sort = tuple[str, str, int]
NOTHING_SEEN = Demand()


def no_price(_devices: Sequence[Device]) -> int:
    """Where prices make no difference."""
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choosing:
    """What a choice among devices goes by.

    Attributes:
        spare: how much of each device may be given in parts, in thousandths; None where that is all of what is free.
        demand: what was asked for before.
        price: of a set of devices. Packing never makes a bid dearer: only the cheapest sets are compared.
    """

    spare: Mapping[bytes, int] | None = None
    demand: Demand = NOTHING_SEEN
    price: Callable[[Sequence[Device]], int] = no_price

    def spare_of(self, free: Sequence[Device]) -> Mapping[bytes, int]:
        """How much of each device may be given in parts."""
        return dict.fromkeys((device.id for device in free), WHOLE) if self.spare is None else self.spare


BY_SIZE = Choosing()


def best(
    options: Sequence[tuple[Device, ...]],
    *,
    share_milli: int,
    choosing: Choosing,
    owned: Sequence[Device],
    free: Sequence[Device],
    machine_of: Callable[[Device], str],
) -> tuple[Device, ...]:
    """Of these sets of devices the one that is missed the least; of equal ones the first.

    Args:
        options: each could be given; at least one.
        share_milli: how much of each device would be.
        choosing: what the choice goes by.
        owned: all devices that are lent.
        free: those that nobody has any of.
        machine_of: the machine of a device.
    """
    prices = [choosing.price(option) for option in options]
    cheapest = [option for option, price in zip(options, prices, strict=True) if price == min(prices)]
    if len(cheapest) == 1:
        return cheapest[0]
    rows = _Rows(owned, choosing.spare_of(free), free, machine_of, choosing.demand)
    costs = [rows.cost(option, share_milli) for option in cheapest]
    return cheapest[costs.index(min(costs))]


class _Rows:
    """The devices that are lent, as rows of one sort and one machine, with what is left of each."""

    def __init__(
        self,
        owned: Sequence[Device],
        spare: Mapping[bytes, int],
        free: Sequence[Device],
        machine_of: Callable[[Device], str],
        demand: Demand,
    ) -> None:
        whole = {device.id for device in free}
        by_row: dict[tuple[str, Sort], list[Device]] = {}
        self.place: dict[bytes, tuple[int, int]] = {}
        for device in owned:
            by_row.setdefault((machine_of(device), _sort(device)), []).append(device)
        machines = []
        for number, ((_, sort), devices) in enumerate(by_row.items()):
            left = tuple(WHOLE if device.id in whole else spare.get(device.id, 0) for device in devices)
            machines.append(Machine(model=_name(sort), free_milli=left))
            self.place |= {device.id: (number, column) for column, device in enumerate(devices)}
        self.fleet = Fleet(machines)
        sorts = {sort: devices[0] for (_, sort), devices in by_row.items()}
        widest = max((len(devices) for devices in by_row.values()), default=0)
        expected = [*_usual(widest), *_asked(demand, sorts)]
        self.outlook = Outlook(self.fleet, expected, Weights())
        self.scarcity = pressure(self.fleet, expected)

    def cost(self, option: Sequence[Device], share_milli: int) -> float:
        """How much less what is left is worth without it. Equal costs are to stay equal, whatever the sums' order."""
        fleet, after = self.fleet, self.fleet.free.copy()
        places = [self.place[device.id] for device in option]
        for row, column in places:
            after[row, column] -= share_milli
        rows = np.array(sorted({row for row, _ in places}), dtype=np.int64)
        columns = fleet.model[rows], fleet.cores[rows], fleet.memory[rows]
        before = self.outlook.worth(*columns, fleet.free[rows]).sum()
        left = self.outlook.worth(*columns, after[rows]).sum()
        scarce = sum(self.scarcity[fleet.model[row]] * share_milli for row, _ in places)
        return round(float(before - left + scarce), 6)


def _sort(device: Device) -> Sort:
    return device.kind, canonical(device.model), device.memory_bytes


def _name(sort: Sort) -> str:
    return "\n".join(map(str, sort))


def _usual(widest: int) -> list[Expected]:
    sizes = [1 << power for power in range(widest.bit_length())]
    return [Expected(request=Request(devices=size), weight=ONE / len(sizes)) for size in sizes]


def _asked(demand: Demand, sorts: Mapping[Sort, Device]) -> list[Expected]:
    """What was asked for, as far as any sort of device here would do."""
    found = []
    for seen in demand.seen:
        kind = seen.kind
        named = frozenset(_name(sort) for sort, device in sorts.items() if _would_do(kind, device))
        if named and kind.devices:
            some = frozenset() if len(named) == len(sorts) else named
            request = Request(devices=kind.devices, share_milli=kind.share_milli, models=some)
            found.append(Expected(request=request, weight=float(seen.weight)))
    return found


def _would_do(kind: Kind, device: Device) -> bool:
    return (
        kind.kind in (ANY, device.kind)
        and (not kind.model or matches(kind.model, device.model, device.memory_bytes))
        and device.memory_bytes * kind.share_milli // WHOLE >= kind.memory_bytes
    )
