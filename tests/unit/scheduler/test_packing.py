"""Packing: what fits, what never happens, and that large requests still fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.scheduler.packing import Expected, Fleet, Machine, Packer, Place, Request, Weights, least_missed, pressure

LARGE = (Expected(request=Request(devices=1), weight=3), Expected(request=Request(devices=4), weight=1))


def machine(*free_milli: int, model: str = "A", cores: int = 100_000, memory: int = 1 << 40) -> Machine:
    return Machine(model=model, free_milli=free_milli, cores_milli=cores, memory_bytes=memory)


def packer(*machines: Machine, expected: tuple[Expected, ...] = LARGE, weights: Weights | None = None) -> Packer:
    return Packer(fleet=Fleet(machines), expected=expected, weights=weights or Weights())


def test_a_small_request_goes_where_it_spoils_the_least() -> None:
    fleet = packer(machine(1000, 1000, 1000, 1000), machine(1000), machine(1000, 1000, 1000, 1000))
    assert fleet.best(Request(devices=1)) == Place(machine=1, devices=(0,))


def test_a_part_of_a_device_goes_to_one_that_is_begun() -> None:
    fleet = packer(machine(1000, 1000, 400, 600), machine(1000, 1000, 1000, 1000))
    assert fleet.best(Request(devices=1, share_milli=400)) == Place(machine=0, devices=(2,))


def test_parts_that_fill_a_device_together_are_put_together() -> None:
    expected = (
        Expected(request=Request(devices=1, share_milli=700), weight=1),
        Expected(request=Request(devices=1, share_milli=300), weight=1),
        Expected(request=Request(devices=1), weight=1),
    )
    fleet = packer(machine(1000, 1000), machine(1000, 1000), expected=expected)
    for share_milli in (700, 300, 300, 700):
        request = Request(devices=1, share_milli=share_milli)
        place = fleet.best(request)
        assert place is not None
        fleet.take(request, place)
    assert fleet.best(Request(devices=2)) is not None, "two devices of one machine are still whole"


def test_who_could_go_anywhere_keeps_away_from_what_others_name() -> None:
    named = Expected(request=Request(devices=1, models=frozenset({"B"})), weight=1)
    free = Expected(request=Request(devices=1), weight=1)
    fleet = packer(machine(1000, model="B"), machine(1000, 1000, 1000, 1000, model="A"), expected=(named, free))
    place = fleet.best(Request(devices=1))
    assert place is not None
    assert place.machine == 1
    only = fleet.best(named.request)
    assert only is not None
    assert only.machine == 0


def test_the_more_a_model_is_asked_for_by_name_the_more_others_keep_away_from_it() -> None:
    named = Expected(request=Request(devices=1, models=frozenset({"B"})), weight=1)
    pair = Expected(request=Request(devices=2), weight=1)
    machines = (machine(1000, model="B"), machine(1000, 1000, model="A"))
    pressed = packer(*machines, expected=(named, pair))
    careless = packer(*machines, expected=(named, pair), weights=Weights(scarce=0))
    one = Request(devices=1)
    assert (pressed.best(one), careless.best(one)) == (
        Place(machine=1, devices=(0,)),
        Place(machine=0, devices=(0,)),
    )


def test_equal_costs_stay_equal_however_their_sums_were_added() -> None:
    expected = (
        Expected(request=Request(devices=0), weight=0.75),
        Expected(request=Request(devices=1, share_milli=3, cores_milli=223), weight=2.0),
        Expected(request=Request(devices=1, share_milli=601), weight=2.9599280971148634),
    )
    ours = packer(machine(1000, cores=1561), machine(1000, cores=669), expected=expected)
    request = Request(devices=0, cores_milli=1)
    before = ours.best(request)
    assert before == Place(machine=0, devices=())
    ours.take(request, before)
    ours.give_back(request, before)
    assert ours.best(request) == before


def test_the_pressure_on_a_model_is_what_its_devices_are_asked_for_by_name() -> None:
    fleet = Fleet((machine(1000, 1000, model="A"), machine(1000, 1000, model="B")))
    expected = (
        Expected(request=Request(devices=1, models=frozenset({"A"})), weight=3),
        Expected(request=Request(devices=1), weight=1),
    )
    assert pressure(fleet, expected).tolist() == [1.5, 0.0]
    both = (Expected(request=Request(devices=1, models=frozenset({"A", "B", "C"})), weight=1),)
    assert pressure(fleet, both).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "request_",
    [
        Request(devices=3),
        Request(devices=1, models=frozenset({"Z"})),
        Request(devices=1, cores_milli=8_001),
        Request(devices=1, memory_bytes=1 << 41),
        Request(devices=0, cores_milli=8_001),
    ],
)
def test_what_fits_nowhere_gets_no_place(request_: Request) -> None:
    assert packer(machine(1000, 1000, 999, cores=8_000)).best(request_) is None


def test_an_empty_fleet_has_no_place() -> None:
    assert packer().best(Request(devices=1)) is None


def test_without_expectations_a_place_is_found_all_the_same() -> None:
    assert packer(machine(1000), expected=()).best(Request(devices=1)) == Place(machine=0, devices=(0,))


def test_cores_alone_go_where_they_are_missed_the_least() -> None:
    expected = (Expected(request=Request(devices=1, cores_milli=10_000), weight=1),)
    fleet = packer(machine(1000, cores=10_000), machine(0, cores=10_000), expected=expected)
    place = fleet.best(Request(devices=0, cores_milli=5_000))
    assert place == Place(machine=1, devices=())


requests = st.one_of(
    st.builds(Request, devices=st.integers(0, 4), cores_milli=st.integers(0, 9_000), memory_bytes=st.integers(0, 9)),
    st.builds(
        Request,
        devices=st.just(1),
        share_milli=st.integers(1, 1000),
        cores_milli=st.integers(0, 4_000),
        models=st.sampled_from((frozenset[str](), frozenset({"A"}), frozenset({"A", "B"}))),
    ),
)
machines = st.builds(
    Machine,
    model=st.sampled_from("AB"),
    free_milli=st.lists(st.just(1000), min_size=0, max_size=4).map(tuple),
    cores_milli=st.integers(0, 32_000),
    memory_bytes=st.integers(0, 30),
)


def fits(one: Machine, request: Request) -> bool:
    """Whether there is room, read plainly."""
    named = not request.devices or not request.models or one.model in request.models
    enough = sum(free >= request.share_milli for free in one.free_milli) >= request.devices
    return named and enough and one.cores_milli >= request.cores_milli and one.memory_bytes >= request.memory_bytes


@settings(max_examples=150, deadline=None)
@given(
    fleet=st.lists(machines, min_size=1, max_size=4),
    expected=st.lists(st.builds(Expected, request=requests, weight=st.floats(0.1, 9)), max_size=5),
    wanted=st.lists(st.tuples(requests, st.booleans()), max_size=25),
)
def test_nothing_is_given_twice_and_what_fits_gets_a_place(
    fleet: list[Machine], expected: list[Expected], wanted: list[tuple[Request, bool]]
) -> None:
    ours = Packer(fleet=Fleet(fleet), expected=tuple(expected))
    now = list(fleet)
    held: list[tuple[Request, Place]] = []
    for request, ends in wanted:
        place = ours.best(request)
        assert (place is not None) == any(fits(one, request) for one in now)
        if place is not None:
            ours.take(request, place)
            held.append((request, place))
            assert len(set(place.devices)) == request.devices
            now[place.machine] = moved(now[place.machine], request, place, -1)
        if ends and held:
            gone, where = held.pop(0)
            ours.give_back(gone, where)
            now[where.machine] = moved(now[where.machine], gone, where, 1)
        for number, one in enumerate(now):
            assert min((one.cores_milli, one.memory_bytes, *one.free_milli)) >= 0
            assert tuple(ours.fleet.free[number, : len(one.free_milli)]) == one.free_milli
    # What is remembered is what would be found anew.
    anew = Packer(fleet=Fleet(now), expected=tuple(expected))
    anew.scarcity = ours.scarcity
    for request, _ends in wanted:
        before, after = ours.best(request), anew.best(request)
        assert before == after
    assert np.allclose(ours._worth, anew._worth)


def moved(one: Machine, request: Request, place: Place, sign: int) -> Machine:
    free = list(one.free_milli)
    for device in place.devices:
        free[device] += sign * request.share_milli
    return Machine(
        model=one.model,
        free_milli=tuple(free),
        cores_milli=one.cores_milli + sign * request.cores_milli,
        memory_bytes=one.memory_bytes + sign * request.memory_bytes,
    )


@pytest.mark.parametrize(
    ("free_devices", "devices", "machine"),
    [
        ([3, 2], 1, 0),  # and two requests for two still fit
        ([8, 1], 1, 1),
        ([8, 4], 4, 1),
        ([8, 6, 2], 2, 2),
        ([4, 4], 2, 0),
        ([2, 1], 3, None),
        ([], 1, None),
    ],
)
def test_whole_devices_come_from_the_machine_where_they_are_missed_the_least(
    free_devices: list[int], devices: int, machine: int | None
) -> None:
    assert least_missed(free_devices, devices) == machine


def test_a_place_that_is_taken_cannot_be_taken_again() -> None:
    fleet = packer(machine(1000))
    request = Request(devices=1)
    place = Place(machine=0, devices=(0,))
    fleet.take(request, place)
    with pytest.raises(AssertionError, match="twice"):
        fleet.take(request, place)
