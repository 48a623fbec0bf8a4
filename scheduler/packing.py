"""Which devices of a fleet a request gets, so that the requests to be expected still fit afterwards. numpy, no I/O.

A fleet is machines, each with cores, memory and devices that are free in thousandths. What is left on a machine is
worth what the expected requests could use of it (``Outlook.worth``), and a request goes where it takes the least of
that. The idea is fragmentation gradient descent (Weng et al., USENIX ATC 2023). What is counted is our own, and so is
the price on models that are asked for by name (decision 0018).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

WHOLE = 1000
"""All of a device, in thousandths."""
MOST_KINDS = 1_000
"""Of so many kinds of requests the costs are remembered."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one shard takes of one machine.

    Attributes:
        devices: how many; 0 for cores and memory alone.
        share_milli: how much of each, in thousandths; less than all only where one device is asked for.
        cores_milli: CPU cores, in thousandths.
        memory_bytes: main memory.
        models: of any of these models; empty means any.
    """

    devices: int
    share_milli: int = WHOLE
    cores_milli: int = 0
    memory_bytes: int = 0
    models: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """A request that nothing could mean is a mistake of the caller's."""
        assert self.devices >= 0
        assert 0 < self.share_milli <= WHOLE
        assert self.share_milli == WHOLE or self.devices == 1

    @property
    def taken_milli(self) -> int:
        """Of all devices together, in thousandths."""
        return self.devices * self.share_milli


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine of the fleet as it stands.

    Attributes:
        model: of its devices; a machine has devices of one model.
        free_milli: what is free of each device, in thousandths.
        cores_milli: free CPU cores, in thousandths.
        memory_bytes: free main memory.
    """

    model: str
    free_milli: tuple[int, ...]
    cores_milli: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a request goes: the machine's number in the fleet and its devices' numbers on the machine."""

    machine: int
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A kind of request that is to be expected, and how often beside the others."""

    request: Request
    weight: float


class Fleet:
    """What is free on every machine, in columns. A machine with fewer devices than another has 0 in the rest."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        """As the machines stand."""
        widest = max((len(machine.free_milli) for machine in machines), default=0)
        self.models = tuple(sorted({machine.model for machine in machines}))
        self.model: Ints = np.array([self.models.index(machine.model) for machine in machines], dtype=np.int64)
        self.cores: Ints = np.array([machine.cores_milli for machine in machines], dtype=np.int64)
        self.memory: Ints = np.array([machine.memory_bytes for machine in machines], dtype=np.int64)
        self.free: Ints = np.zeros((len(machines), widest), dtype=np.int64)
        for number, machine in enumerate(machines):
            self.free[number, : len(machine.free_milli)] = machine.free_milli

    def take(self, request: Request, place: Place) -> None:
        """The request stands there now."""
        self._move(request, place, -1)
        assert self.cores[place.machine] >= 0
        assert self.memory[place.machine] >= 0
        assert self.free[place.machine].min(initial=0) >= 0, "a device is not promised twice"

    def give_back(self, request: Request, place: Place) -> None:
        """It has gone."""
        self._move(request, place, 1)
        assert self.free[place.machine].max(initial=0) <= WHOLE

    def _move(self, request: Request, place: Place, sign: int) -> None:
        assert len(place.devices) == request.devices
        self.cores[place.machine] += sign * request.cores_milli
        self.memory[place.machine] += sign * request.memory_bytes
        self.free[place.machine, list(place.devices)] += sign * request.share_milli

    def named(self, models: frozenset[str]) -> Flags:
        """Which of the fleet's models a request with this list may use."""
        return np.array([not models or model in models for model in self.models], dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How what is left on a machine is valued.

    Attributes:
        touched: on the whole of every device that an expected request could be put on (what FGD counts).
        filled: on what as many requests of the one kind as would fit could use, cores and memory counted.
        scarce: on the pressure on a model (``pressure``).
    """

    touched: float = 0.9
    filled: float = 0.1
    scarce: float = 1.0


class Outlook:
    """What the expected requests could use of a machine."""

    def __init__(self, fleet: Fleet, expected: Sequence[Expected], weights: Weights) -> None:
        """``expected`` may have any positive weights."""
        with_devices = [kind for kind in expected if kind.request.devices]
        total = sum(kind.weight for kind in expected) or 1.0
        self.weights = weights
        self._share: Floats = np.array([kind.weight / total for kind in with_devices], dtype=np.float64)
        self._cores = np.array([kind.request.cores_milli for kind in with_devices], dtype=np.int64)
        self._memory = np.array([kind.request.memory_bytes for kind in with_devices], dtype=np.int64)
        self._devices = np.array([kind.request.devices for kind in with_devices], dtype=np.int64)
        self._taken = np.array([kind.request.taken_milli for kind in with_devices], dtype=np.int64)
        shares_milli = [kind.request.share_milli for kind in with_devices]
        self._steps = sorted(set(shares_milli))
        self._step = np.array([self._steps.index(share) for share in shares_milli], dtype=np.int64)
        self._named: Flags = (
            np.stack([fleet.named(kind.request.models) for kind in with_devices], axis=1)
            if with_devices
            else np.zeros((len(fleet.models), 0), dtype=np.bool_)
        )

    def worth(self, model: Ints, cores: Ints, memory: Ints, free: Ints) -> Floats:
        """What is usable of each of these machines, in thousandths of a device, averaged over the expected requests."""
        if not self._steps:
            return np.zeros(len(model), dtype=np.float64)
        large = free[:, :, None] >= np.array(self._steps, dtype=np.int64)
        room = large.sum(axis=1)[:, self._step]
        # How often the machine's cores and memory would do for a request of the kind.
        often = np.where(self._cores > 0, cores[:, None] // np.maximum(self._cores, 1), np.iinfo(np.int64).max)
        if self._memory.any():
            enough = np.where(self._memory > 0, memory[:, None] // np.maximum(self._memory, 1), often)
            often = np.minimum(often, enough)
        fits = (often > 0) & (room >= self._devices) & self._named[model]
        worth = np.zeros(len(model), dtype=np.float64)
        if self.weights.touched:
            usable = (free[:, :, None] * large).sum(axis=1)[:, self._step]
            worth += self.weights.touched * ((fits * usable) @ self._share)
        if self.weights.filled:
            pieces = (free[:, :, None] // np.array(self._steps, dtype=np.int64)).sum(axis=1)[:, self._step]
            runs = np.minimum(pieces // self._devices, often)
            worth += self.weights.filled * ((fits * runs * self._taken) @ self._share)
        return worth


def pressure(fleet: Fleet, expected: Sequence[Expected]) -> Floats:
    """By model, how much of its devices those want who name models, if the expected requests were as much as the fleet.

    Who names several models is spread over them. Where it is above 1 not all of them can be served: whoever could go
    anywhere should keep away from there.
    """
    room = np.array([fleet.free[fleet.model == model].sum() for model in range(len(fleet.models))], dtype=np.float64)
    wanted = sum(kind.weight * kind.request.taken_milli for kind in expected)
    pressed = np.zeros(len(fleet.models), dtype=np.float64)
    for kind in expected:
        named = fleet.named(kind.request.models)
        if kind.request.models and kind.request.devices and room[named].sum() > 0:
            part = kind.weight * kind.request.taken_milli / wanted
            pressed += named * part * room.sum() / room[named].sum()
    return pressed


def least_missed(free_devices: Sequence[int], devices: int) -> int | None:
    """Of machines with so many free devices each the one to take some from, whole; None where none has enough.

    Requests for 1, 2, 4 … up to all of the machine with the most are expected, each as often. Of machines that are as
    good the one with the fewest free is taken, and of these the first.
    """
    order = sorted(range(len(free_devices)), key=lambda number: (free_devices[number], number))
    machines = [Machine(model="", free_milli=(WHOLE,) * free_devices[number]) for number in order]
    sizes = [1 << power for power in range(max(free_devices, default=0).bit_length())]
    expected = [Expected(request=Request(devices=size), weight=1) for size in sizes]
    place = Packer(fleet=Fleet(machines), expected=expected).best(Request(devices=devices))
    return None if place is None else order[place.machine]


@dataclass(slots=True)
class _Scores:
    """What is remembered of one kind of request: the cost on every machine, and the device it would go to there."""

    cost: Floats
    device: Ints
    at: int = -1


@dataclass(slots=True)
class Packer:
    """Chooses places in a fleet, one request after the other.

    Attributes:
        fleet: changed by ``take`` and ``give_back`` of this class only: what is remembered of it would go stale.
        expected: what is to be expected.
        weights: see there.
    """

    fleet: Fleet
    expected: Sequence[Expected]
    weights: Weights = field(default_factory=Weights)
    outlook: Outlook = field(init=False)
    scarcity: Floats = field(init=False)
    _known: dict[Request, _Scores] = field(default_factory=dict)
    _worth: Floats = field(init=False)
    _changed_at: Ints = field(init=False)
    _now: int = 0

    def __post_init__(self) -> None:
        """Everything is new."""
        fleet = self.fleet
        self.outlook = Outlook(fleet, self.expected, self.weights)
        self.scarcity = pressure(fleet, self.expected)
        self._worth = self.outlook.worth(fleet.model, fleet.cores, fleet.memory, fleet.free)
        self._changed_at = np.zeros(len(fleet.model), dtype=np.int64)

    def best(self, request: Request) -> Place | None:
        """Where the request costs the least of what is worth keeping; None where it fits nowhere.

        Equal costs go to the machine with the lowest number.
        """
        if not len(self.fleet.model):
            return None
        known = self._known.get(request)
        if known is None:
            if len(self._known) >= MOST_KINDS:
                self._known.clear()
            empty = np.full(len(self.fleet.model), np.inf)
            known = self._known[request] = _Scores(cost=empty, device=np.zeros(len(empty), dtype=np.int64))
        stale = np.flatnonzero(self._changed_at > known.at)
        if len(stale):
            known.cost[stale], known.device[stale] = self._cost(request, stale)
            known.at = self._now
        machine = int(np.argmin(known.cost))
        if np.isinf(known.cost[machine]):
            return None
        return Place(machine=machine, devices=self._devices(request, machine, int(known.device[machine])))

    def take(self, request: Request, place: Place) -> None:
        """The request stands there now."""
        self.fleet.take(request, place)
        self._touch(place.machine)

    def give_back(self, request: Request, place: Place) -> None:
        """It has gone."""
        self.fleet.give_back(request, place)
        self._touch(place.machine)

    def _touch(self, machine: int) -> None:
        self._now += 1
        self._changed_at[machine] = self._now
        fleet, one = self.fleet, slice(machine, machine + 1)
        self._worth[machine] = self.outlook.worth(
            fleet.model[one], fleet.cores[one], fleet.memory[one], fleet.free[one]
        )[0]

    def _cost(self, request: Request, machines: Ints) -> tuple[Floats, Ints]:
        """The cost of the request on each of these machines, and the device it would be put on."""
        fleet = self.fleet
        room = (fleet.free[machines] >= request.share_milli).sum(axis=1)
        fits = (
            (room >= request.devices)
            & (fleet.cores[machines] >= request.cores_milli)
            & (fleet.memory[machines] >= request.memory_bytes)
            & (fleet.named(request.models)[fleet.model[machines]] | (request.devices == 0))
        )
        cost, device = np.full(len(machines), np.inf), np.zeros(len(machines), dtype=np.int64)
        where = np.flatnonzero(fits)
        if not len(where):
            return cost, device
        row, column = self._options(request, machines[where])
        there = machines[where][row]
        free = fleet.free[there].copy()
        if request.share_milli < WHOLE:
            free[np.arange(len(there)), column] -= request.share_milli
        elif request.devices:
            whole = free == WHOLE
            free[whole & (np.cumsum(whole, axis=1) <= request.devices)] = 0
        after = self.outlook.worth(
            fleet.model[there],
            fleet.cores[there] - request.cores_milli,
            fleet.memory[there] - request.memory_bytes,
            free,
        )
        # Sums of floats depend on their order a little; equal costs are to stay equal.
        each = np.round(self.price(request, there, self._worth[there], after), 6)
        # The cheapest option of every machine, the first among equals: rows come in order, and so do devices in them.
        order = np.lexsort((column, each, row))
        first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
        cost[where], device[where] = each[first], column[first]
        return cost, device

    def price(self, request: Request, machines: Ints, before: Floats, after: Floats) -> Floats:
        """The cost of putting the request on these machines, whose worth is so much before and so much after."""
        scarce = self.weights.scarce * self.scarcity[self.fleet.model[machines]] * request.taken_milli
        return np.asarray(before - after + scarce, dtype=np.float64)

    def _options(self, request: Request, machines: Ints) -> tuple[Ints, Ints]:
        """Pairs of machine (its place in the list) and device to try; device 0 where no choice of one is to be made."""
        if request.share_milli == WHOLE:
            return np.arange(len(machines)), np.zeros(len(machines), dtype=np.int64)
        free = self.fleet.free[machines]
        possible = free >= request.share_milli
        # Of devices that are equally free one is enough.
        for column in range(1, free.shape[1]):
            possible[:, column] &= ~(free[:, :column] == free[:, column : column + 1]).any(axis=1)
        row, column_of = np.nonzero(possible)
        return row, column_of

    def _devices(self, request: Request, machine: int, device: int) -> tuple[int, ...]:
        if not request.devices:
            return ()
        if request.share_milli < WHOLE:
            return (device,)
        whole = np.flatnonzero(self.fleet.free[machine] == WHOLE)[: request.devices]
        return tuple(int(number) for number in whole)
