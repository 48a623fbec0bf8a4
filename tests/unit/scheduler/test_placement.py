"""Which devices are given, so that large requests still fit: in parts, on one machine, and by what is really asked."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.trading import DEVICE, NOW_MS, needs

from hansa.market.shares import share_clause
from hansa.proto.market_documents import DeviceChoice, Fact
from hansa.scheduler.capacity import Capacity, Freed, advance, hold, with_inventory
from hansa.scheduler.demand import Demand, noted
from hansa.scheduler.device_lacks import Shortage
from hansa.scheduler.devices import Topology, choose
from hansa.scheduler.placement import Choosing

GIB = 1 << 30
PARTS = (Fact(name="share", value="0.1"),)


def gpus(model, count, first=0, memory_gib=80):
    return [
        replace(
            DEVICE,
            id=f"{model}{number}".encode().ljust(32, b"."),
            kind="gpu",
            model=model,
            memory_bytes=memory_gib * GIB,
            facts=PARTS,
        )
        for number in range(first, first + count)
    ]


def asking(milli=1000, devices=1, model="", **changes):
    clauses = (share_clause(milli),) if milli < 1000 else ()
    choices = (DeviceChoice(devices=devices, model=model),) if model else ()
    return needs(kind="gpu", clauses=clauses, choices=choices, devices=devices, cores_milli=0, **changes)


def names(found):
    assert not isinstance(found, Shortage), found
    return [device.id.rstrip(b".").decode() for device in found]


class House:
    """A provider's devices, and what it gives whom."""

    def __init__(self, devices, *, tenants=8, machines=None):
        topology = Topology(machine_of=machines or {})
        self.capacity = with_inventory(Capacity(), devices, topology)
        self.tenants, self.demand, self.bids = tenants, Demand(), 0

    def ask(self, wanted):
        capacity = self.capacity
        choosing = Choosing(spare=capacity.spare(self.tenants), demand=self.demand)
        return choose(wanted, capacity.free, capacity.lent, capacity.topology, choosing=choosing)

    def give(self, wanted, milli=1000):
        found = self.ask(wanted)
        if isinstance(found, Shortage):
            return found
        self.bids += 1
        bid = self.bids.to_bytes(32, "big")
        self.capacity = hold(self.capacity, bid, found, NOW_MS, share_milli=milli)
        return found

    def seen(self, wanted, times=8):
        for _ in range(times):
            self.demand = noted(self.demand, wanted, at_ms=NOW_MS)


def test_parts_fill_up_a_device_that_is_begun_before_the_next_is_broken_into():
    house = House(gpus("L4", 4))
    given_out = [names(house.give(asking(500), 500)) for _ in range(4)]
    assert given_out == [["L40"], ["L40"], ["L41"], ["L41"]]
    assert names(house.give(asking(devices=2))) == ["L42", "L43"]


def test_a_part_goes_where_what_is_left_is_of_use_to_what_is_asked_for():
    house = House(gpus("L4", 3))
    for device, milli in zip(house.capacity.devices[:2], (400, 600), strict=True):
        house.capacity = hold(house.capacity, device.id[::-1], [device], NOW_MS, share_milli=milli)
    house.seen(asking(600))
    assert names(house.ask(asking(400))) == ["L41"], "and the one with 600 left stays for who wants 600"
    assert names(house.ask(asking(600))) == ["L40"]


def test_a_device_whose_owner_lends_it_whole_is_given_in_parts_to_nobody():
    whole = [replace(device, facts=()) for device in gpus("L4", 2)]
    found = House(whole).ask(asking(500))
    assert isinstance(found, Shortage)
    assert found.reason == "no device here meets share: devices are lent whole there"
    assert found.relaxation == "share = any"
    assert [(one.name, one.nearest) for one in found.shortfalls] == [("share", "any")]
    assert names(House([*whole, *gpus("H100", 1)]).ask(asking(500))) == ["H1000"]


def test_too_small_a_part_is_declined_with_the_smallest_that_is_lent():
    found = House([replace(gpus("L4", 1)[0], facts=(Fact(name="share", value="0.25"),))]).ask(asking(100))
    assert isinstance(found, Shortage)
    assert found.relaxation == "share = 0.25"
    assert [(one.name, one.wanted, one.nearest) for one in found.shortfalls] == [("share", "share <= 0.1", "0.25")]


def test_what_else_is_lacking_is_that_of_the_part_that_would_be_given():
    whole = [replace(device, facts=()) for device in gpus("L4", 1, memory_gib=24)]
    found = House(whole).ask(asking(500, device_memory_bytes=20 * GIB))
    assert isinstance(found, Shortage)
    assert [(one.name, one.nearest) for one in found.shortfalls] == [("share", "any")], "all of it has 24 GiB"
    quarters = [replace(device, facts=(Fact(name="share", value="0.25"),)) for device in whole]
    found = House(quarters).ask(asking(100, device_memory_bytes=20 * GIB))
    assert isinstance(found, Shortage)
    assert [(one.name, one.nearest) for one in found.shortfalls] == [("share", "0.25"), ("vram", "6 GiB")]
    assert found.relaxation == "share = 0.25 and vram = 6 GiB"


def test_memory_and_cores_that_are_asked_for_are_those_of_the_part():
    house = House(gpus("H100", 1))
    assert names(house.ask(asking(500, device_memory_bytes=40 * GIB))) == ["H1000"]
    found = house.ask(asking(499, device_memory_bytes=40 * GIB))
    assert isinstance(found, Shortage)
    assert found.shortfalls[0].name == "vram"
    few = house.ask(replace(asking(500), cores_milli=1_001))
    assert isinstance(few, Shortage)
    assert few.reason == "1 CPU core comes with 0.5 of a device here, 1.001 wanted"


def test_when_nothing_is_left_it_says_so_and_not_that_it_never_could():
    house = House(gpus("L4", 1), tenants=2)
    house.give(asking(400), 400)
    house.give(asking(400), 400)
    found = house.ask(asking(200))
    assert isinstance(found, Shortage)
    assert (found.reason, found.shortfalls) == ("1 of 1 fitting devices are busy", ())


def test_on_one_machine_whole_devices_are_given_by_what_is_really_asked_for():
    house = House([*gpus("A10", 2, memory_gib=24), *gpus("L40S", 1, memory_gib=48)])
    assert names(house.ask(asking())) == ["A100"], "the smallest, as long as nothing is known"
    house.seen(asking(devices=2))
    assert names(house.ask(asking())) == ["L40S0"], "the pair stays whole for who wants two"
    house.seen(asking(model="L40S"), times=40)
    assert names(house.ask(asking())) == ["A100"], "what is asked for by name is kept"


def test_packing_never_makes_a_bid_dearer():
    small, large = gpus("A10", 2, memory_gib=24), gpus("L40S", 1, memory_gib=48)
    owned = [*small, *large]
    demand = noted(Demand(), asking(devices=2), at_ms=NOW_MS)
    for price, given_out in ((lambda _: 1, ["L40S0"]), (lambda devices: devices[0].memory_bytes, ["A100"])):
        found = choose(asking(), owned, owned, choosing=Choosing(demand=demand, price=price))
        assert names(found) == given_out


def test_among_machines_parts_go_where_they_spoil_the_least():
    devices = gpus("L4", 6)
    machines = {device.id: "other" for device in devices[4:]}
    house = House(devices, machines=machines)
    house.seen(asking(devices=4))
    assert names(house.ask(asking(500))) == ["L44"], "four whole devices of one machine stay together"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([125, 250, 500, 1000]), st.integers(1, 3), st.booleans()), max_size=25),
    st.integers(1, 4),
)
def test_whatever_is_asked_for_nothing_is_promised_twice_and_what_fits_is_given(wishes, tenants):
    house = House([*gpus("L4", 2, memory_gib=24), *gpus("H100", 2)], tenants=tenants)
    for milli, devices, frees in wishes:
        wanted = asking(milli, devices=devices if milli == 1000 else 1)
        found = house.give(wanted, milli)
        if isinstance(found, Shortage):
            spare = house.capacity.spare(tenants)
            room = len(house.capacity.free) if milli == 1000 else sum(left >= milli for left in spare.values())
            assert room < wanted.devices, found
        else:
            house.seen(wanted, times=1)
        if frees and house.capacity.allotments:
            house.capacity, _ = advance(house.capacity, next(iter(house.capacity.allotments)), Freed())
        for device in house.capacity.devices:
            assert house.capacity.taken_milli(device.id) <= 1000


@pytest.mark.parametrize("milli", [125, 250, 500])
def test_parts_spoil_no_more_whole_devices_than_they_must(milli):
    house, count = House(gpus("L4", 8)), 1000 // milli * 3
    for _ in range(count):
        house.give(asking(milli), milli)
    assert len(house.capacity.free) == 5
    assert len(names(house.give(asking(devices=5)))) == 5
