"""Which devices a shard gets, and what is missing, in words."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import DEVICE, needs

from hansa.scheduler.devices import GIB, Shortage, choose, unmet

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
    assert unmet(needs(kind="gpu", models=("h100",)), GPU) is None
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
