"""Which devices a shard gets, and what is missing, in words."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import DEVICE, needs

from hansa.proto.market_documents import DeviceChoice
from hansa.scheduler.devices import GIB, Shortage, Topology, choose, unmet

GPU = replace(DEVICE, id=b"g" * 32, kind="gpu", model="NVIDIA H100 80GB", memory_bytes=80 * GIB)
SMALL = replace(DEVICE, id=b"s" * 32, memory_bytes=2 * GIB)
LARGE = replace(DEVICE, id=b"l" * 32, memory_bytes=64 * GIB)


def test_the_smallest_that_fits_is_given():
    assert choose(needs(), [LARGE, SMALL], [LARGE, SMALL]) == (SMALL,)
    assert choose(needs(device_memory_bytes=3 * GIB), [LARGE, SMALL], [LARGE, SMALL]) == (LARGE,)


def test_a_larger_device_is_given_where_the_smallest_has_too_few_cores_or_too_little_memory():
    weak, huge = replace(SMALL, cores_milli=500), replace(LARGE, id=b"h" * 32, memory_bytes=512 * GIB)
    assert choose(needs(cores_milli=1_000), [huge, LARGE, weak], [huge, LARGE, weak]) == (LARGE,)
    assert choose(needs(memory_bytes=8 * GIB), [huge, LARGE, SMALL], [huge, LARGE, SMALL]) == (LARGE,)


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ({"kind": "gpu"}, "kind"),
        ({"models": ("A100",)}, "gpu_models"),
        ({"device_memory_bytes": 1 << 60}, "device_memory"),
    ],
)
def test_what_no_device_meets_is_named_with_the_nearest_change(wanted, name):
    found = choose(needs(**wanted), [LARGE], [LARGE])
    assert isinstance(found, Shortage)
    assert found.reason == f"no device here meets {name}"
    assert found.relaxation.startswith(f"{name} = ")


def test_models_are_found_by_any_part_of_their_name_in_any_case():
    assert unmet(needs(kind="gpu", choices=(DeviceChoice(devices=1, model="h100"),)), GPU) is None
    assert unmet(needs(kind="any"), GPU) is None


@pytest.mark.parametrize(
    ("asked", "free", "owned", "reason"),
    [
        (needs(), [], [], "this provider lends no devices at present"),
        (needs(), [], [SMALL], "1 of 1 fitting devices are busy"),
        (needs(devices=2), [SMALL], [SMALL], "1 fitting devices here, 2 wanted"),
        (needs(cores_milli=2_001), [SMALL], [SMALL], "2 CPU cores come with 1 devices here"),
        (needs(memory_bytes=3 * GIB), [SMALL], [SMALL], "2 GiB of memory come with 1 devices here"),
    ],
)
def test_a_shortage_says_what_is_short(asked, free, owned, reason):
    found = choose(asked, free, owned)
    assert isinstance(found, Shortage)
    assert found.reason == reason


@given(
    st.lists(st.sampled_from([SMALL, LARGE, GPU]), unique=True),
    st.integers(1, 3),
    st.sampled_from(["cpu", "gpu", "any"]),
)
def test_what_is_chosen_is_free_fits_and_is_as_many_as_asked(free, devices, kind):
    asked = needs(devices=devices, kind=kind, cores_milli=0, memory_bytes=0)
    found = choose(asked, free, [SMALL, LARGE, GPU])
    if not isinstance(found, Shortage):
        assert len(found) == devices == len(set(found))
        assert all(device in free and unmet(asked, device) is None for device in found)


def on(machine, count):
    """So many alike devices; their ids say where they are."""
    return [replace(SMALL, id=f"{machine}{number}".encode().ljust(32, b".")) for number in range(count)]


def topology_of(*machines, apart=()):
    names = {device.id: device.id.decode()[0] for machine in machines for device in machine}
    return Topology(machine_of={key: name for key, name in names.items() if name != "h"}, apart=frozenset(apart))


def where(found):
    assert not isinstance(found, Shortage), found
    return sorted({device.id.decode()[0] for device in found})


def test_a_shard_gets_devices_of_one_machine_and_of_the_fullest_that_does():
    here, a, b = on("h", 2), on("a", 4), on("b", 3)
    owned = [*here, *a, *b]
    topology = topology_of(here, a, b)
    assert where(choose(needs(devices=1), owned, owned, topology)) == ["h"]
    assert where(choose(needs(devices=3), owned, owned, topology)) == ["b"]
    assert where(choose(needs(devices=4), owned, owned, topology)) == ["a"]


def test_a_shard_is_spread_over_machines_only_if_its_job_says_that_it_may():
    here, a = on("h", 2), on("a", 3)
    owned = [*here, *a]
    topology = topology_of(here, a)
    refused = choose(needs(devices=4), owned, owned, topology)
    assert isinstance(refused, Shortage)
    assert refused.relaxation == "devices ≤ 3, or several_machines = true"
    spread = needs(devices=4, features=("several-machines",))
    found = choose(spread, owned, owned, topology)
    assert where(found) == ["a", "h"]
    assert sum(device in a for device in found) == 3, "as few machines as can be, the fullest first"
    assert where(choose(needs(devices=3, features=("several-machines",)), owned, owned, topology)) == ["a"]
    assert isinstance(choose(spread, owned[1:2], owned, topology), Shortage)


def test_a_machine_that_cannot_be_joined_has_no_part_in_a_spread():
    here, a = on("h", 2), on("a", 3)
    owned = [*here, *a]
    spread = needs(devices=4, features=("several-machines",))
    assert isinstance(choose(spread, owned, owned, topology_of(here, a, apart="a")), Shortage)
    assert where(choose(needs(devices=3), owned, owned, topology_of(here, a, apart="a"))) == ["a"]
    b = on("b", 2)
    owned = [*here, *a, *b]
    assert where(choose(spread, owned, owned, topology_of(here, a, b, apart="a"))) == ["b", "h"]


@given(st.lists(st.sampled_from("hab"), max_size=8), st.integers(1, 8), st.booleans(), st.data())
def test_whatever_is_chosen_is_free_and_on_one_machine_unless_it_may_be_spread(places, wanted, spread, data):
    owned = [replace(SMALL, id=f"{place}{n}".encode().ljust(32, b".")) for n, place in enumerate(places)]
    free = [device for device in owned if data.draw(st.booleans())]
    apart = data.draw(st.sets(st.sampled_from("ab")))
    asked = needs(devices=wanted, features=("several-machines",) if spread else ())
    found = choose(asked, free, owned, topology_of(owned, apart=apart))
    most = max((sum(device.id.decode()[0] == place for device in free) for place in "hab"), default=0)
    if isinstance(found, Shortage):
        assert most < wanted
        return
    assert len(found) == len(set(found)) == wanted
    assert set(found) <= set(free)
    if len(where(found)) > 1:
        assert spread
        assert most < wanted
        assert not set(where(found)) & apart
