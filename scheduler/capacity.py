"""A provider's devices over time: held while a bid stands, leased when it is accepted, free the instant it is over.

Each allotment is a small machine of its own; the collection guards the one rule that matters: no device is promised
twice in one instant, and of parts of one device never more than the whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hansa.market.effects import clipped
from hansa.market.machine import Step, Table, rows
from hansa.market.shares import WHOLE_MILLI, least_milli
from hansa.proto.market_documents import Device
from hansa.proto.units import Bytes32, Note, Uint32, UnixMs
from hansa.scheduler.devices import ONE_MACHINE, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldAccepted:
    """The bid that holds the devices became a lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """The bid was lost or has lapsed, or the run is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """Some devices, or a part of one, promised to one bid. Phases: hold, lease, released.

    Attributes:
        bid: whose promise.
        devices: which.
        since_ms: since when.
        share_milli: how much of each, in thousandths.
    """

    phase: str = "hold"
    bid: Bytes32
    devices: tuple[Bytes32, ...]
    since_ms: UnixMs
    share_milli: Uint32 = WHOLE_MILLI


TABLE: Table[Allotment] = Table(
    name="scheduler.capacity",
    start="hold",
    terminal=frozenset({"released"}),
    allowed=rows(
        ("hold", HoldAccepted, "lease"),
        ("hold", Freed, "released"),
        ("lease", Freed, "released"),
    ),
)


def _react(state: Allotment, event: Any) -> Step[Allotment]:
    match event:
        case HoldAccepted():
            return Step(state=replace(state, phase="lease"))
        case Freed():
            return Step(state=replace(state, phase="released"))
        case _:
            raise AssertionError(f"the table knows {type(event).__name__}, this function does not")


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """One device taken back from the market.

    Attributes:
        by_ms: whoever computes on it has left by then.
        why: in words.
        since_ms: when that was said.
    """

    by_ms: UnixMs
    why: Note
    since_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The state: what is owned, and who was promised which of it.

    Attributes:
        devices: everything the inventory found fit to lend.
        allotments: by bid; released ones are dropped.
        withdrawn: devices that the node itself does not lend at present, by id: they are ill, or a rule of the owner
            holds. A promise of one of them may still have to end.
        claimed: devices that the owner said they want back, by id; only the owner's word lends them again.
        topology: which devices share a machine.
    """

    devices: tuple[Device, ...] = ()
    allotments: Mapping[bytes, Allotment] = field(default_factory=dict)
    withdrawn: Mapping[bytes, Withdrawal] = field(default_factory=dict)
    topology: Topology = ONE_MACHINE
    claimed: Mapping[bytes, Withdrawal] = field(default_factory=dict)

    @property
    def withheld(self) -> Mapping[bytes, Withdrawal]:
        """Devices that are not lent, whoever says so, by id; where both do, the earlier moment and both reasons."""
        found = {**self.withdrawn, **self.claimed}
        for device in self.withdrawn.keys() & self.claimed.keys():
            own, said = self.withdrawn[device], self.claimed[device]
            found[device] = Withdrawal(
                by_ms=min(own.by_ms, said.by_ms),
                why=clipped(f"{said.why}; {own.why}", 2_000),
                since_ms=min(own.since_ms, said.since_ms),
            )
        return found

    @property
    def lent(self) -> tuple[Device, ...]:
        """Devices that anybody may have: all but those that are withheld."""
        withheld = self.withheld
        return tuple(device for device in self.devices if device.id not in withheld)

    @property
    def promised(self) -> frozenset[bytes]:
        """Ids of devices that are held or leased, all of them or in part."""
        return frozenset(device for entry in self.allotments.values() for device in entry.devices)

    @property
    def free(self) -> tuple[Device, ...]:
        """Devices that are lent and that nobody was promised any of."""
        promised = self.promised
        return tuple(device for device in self.lent if device.id not in promised)

    def spare(self, tenants: int) -> dict[bytes, int]:
        """How much of each device that is lent in parts may still be given so, in thousandths; with so many at most."""
        left = {device.id: WHOLE_MILLI for device in self.lent if least_milli(device.facts) is not None}
        sharers = dict.fromkeys(left, 0)
        for entry in self.allotments.values():
            for device in left.keys() & set(entry.devices):
                left[device] -= entry.share_milli
                sharers[device] += 1
        return {device: milli for device, milli in left.items() if milli > 0 and sharers[device] < tenants}

    @property
    def leased_ppm(self) -> int:
        """How much of what is owned is leased, in millionths. What is only held earns nothing yet."""
        owned = {device.id for device in self.devices}
        leased_milli = sum(
            entry.share_milli * len(owned & set(entry.devices))
            for entry in self.allotments.values()
            if entry.phase == "lease"
        )
        return leased_milli * 1_000_000 // (len(owned) * WHOLE_MILLI) if owned else 0

    def taken_milli(self, device: bytes) -> int:
        """How much of a device is held or leased, in thousandths."""
        return sum(entry.share_milli for entry in self.allotments.values() if device in entry.devices)

    def phase_of(self, device: bytes) -> str:
        """``"free"``, ``"held"``, ``"leased"`` (a withdrawn device too, until its run has left) or ``"withdrawn"``.

        One that is held or leased in part counts as all of it does; what is leased goes before what is held.
        """
        phases = {entry.phase for entry in self.allotments.values() if device in entry.devices}
        if phases:
            return "leased" if "lease" in phases else "held"
        return "withdrawn" if device in self.withheld else "free"


def with_inventory(state: Capacity, devices: Iterable[Device], topology: Topology = ONE_MACHINE) -> Capacity:
    """The inventory changed. Promises already made stand; their runs find out for themselves."""
    return replace(state, devices=tuple(devices), topology=topology)


def withdraw(
    state: Capacity, devices: Iterable[bytes], *, by_ms: int, why: str, at_ms: int, by_owner: bool = False
) -> Capacity:
    """Lend these devices no more. One that is withdrawn already keeps the earlier moment, and gets the newer reason."""
    withdrawn = dict(state.claimed if by_owner else state.withdrawn)
    owned = {device.id for device in state.devices} | state.promised
    for device in devices:
        if device in owned:
            before = withdrawn.get(device)
            withdrawn[device] = Withdrawal(
                by_ms=min(by_ms, before.by_ms) if before else by_ms,
                why=why,
                since_ms=before.since_ms if before else at_ms,
            )
    return replace(state, claimed=withdrawn) if by_owner else replace(state, withdrawn=withdrawn)


def give_back(state: Capacity, devices: Iterable[bytes], *, by_owner: bool = False) -> Capacity:
    """Lend these devices again, as far as that goes: the node and its owner each take back only their own word.

    Who was promised one of them still has it.
    """
    returned = set(devices)
    said = state.claimed if by_owner else state.withdrawn
    left = {device: entry for device, entry in said.items() if device not in returned}
    return replace(state, claimed=left) if by_owner else replace(state, withdrawn=left)


def hold(
    state: Capacity, bid: bytes, devices: Iterable[Device], at_ms: int, *, share_milli: int = WHOLE_MILLI
) -> Capacity:
    """Hold these devices, or a part of one, for a bid, in the same instant in which it is made."""
    ids = tuple(device.id for device in devices)
    assert 0 < share_milli <= WHOLE_MILLI, "there is no such part of a device"
    assert share_milli == WHOLE_MILLI or len(ids) == 1, "a part is of one device"
    assert all(state.taken_milli(device) + share_milli <= WHOLE_MILLI for device in ids), (
        "a device would be promised twice"
    )
    assert not state.withheld.keys() & set(ids), "a device that was withdrawn would be promised"
    assert bid not in state.allotments, "a bid would hold devices twice"
    made = Allotment(bid=bid, devices=ids, since_ms=at_ms, share_milli=share_milli)
    return replace(state, allotments={**state.allotments, bid: made})


def advance(state: Capacity, bid: bytes, event: HoldAccepted | Freed) -> tuple[Capacity, str | None]:
    """One event for the allotment of a bid. Answers the new state, and why nothing happened if nothing did."""
    allotment = state.allotments.get(bid)
    if allotment is None:
        return state, f"{type(event).__name__} of no allotment"
    step = TABLE.advance(allotment, event, _react)
    others = {key: entry for key, entry in state.allotments.items() if key != bid}
    if step.state.phase != "released":
        others[bid] = step.state
    return replace(state, allotments=others), step.ignored
