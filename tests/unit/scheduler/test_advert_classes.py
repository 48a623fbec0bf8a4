"""Few classes, and none that could serve a job is left out when its buyer asks."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hansa.proto.gpu_models import canonical
from hansa.proto.market_documents import Advert, Clause, Device, DeviceChoice, Requirements
from hansa.scheduler.advert_classes import (
    ANYWHERE,
    CLASSES,
    MANY_ADVERTS,
    MOST_NAMES,
    NARROW_FOR_MS,
    Interest,
    capability_names,
    class_of_device,
    classes_for,
    classes_of,
    wanted_names,
)
from hansa.scheduler.fitting import misfit

GIB = 1 << 30
MODELS = (
    ("NVIDIA GeForce GTX 1060", 6),
    ("Tesla T4", 15),
    ("NVIDIA GeForce RTX 4090", 24),
    ("NVIDIA A100-SXM4-40GB", 40),
    ("NVIDIA A100-SXM4-80GB", 79),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 5),
    ("NVIDIA H100 80GB HBM3", 80),
    ("NVIDIA H200", 140),
    ("NVIDIA L40S", 45),
    ("Who knows", 33),
)


def device(model: str, gib: int, kind: str = "gpu") -> Device:
    return Device(id=bytes(32), kind=kind, model=model, memory_bytes=gib * GIB, cores_milli=8_000, facts=())


def advert(*devices: Device, region: str = "eu-west-1") -> Advert:
    return Advert(
        signer=bytes(20),
        peer_id="peer",
        addresses=(),
        devices=devices,
        free=len(devices),
        tier="sandbox",
        features=(),
        region=region,
        facts=(),
        currency="USD",
        price_e18_per_device_ms=1,
        sequence=1,
        expires_ms=1,
    )


def needs(**changes: Any) -> Requirements:
    plain: dict[str, Any] = {
        "kind": "gpu",
        "choices": (),
        "devices": 1,
        "device_memory_bytes": 0,
        "cores_milli": 1,
        "memory_bytes": 0,
        "scratch_bytes": 0,
        "tier": "sandbox",
        "features": (),
        "egress": (),
        "wall_ms": 1,
        "clauses": (),
    }
    return Requirements(**(plain | changes))


@given(
    st.sampled_from(MODELS),
    st.sampled_from([None, *(name for name, _ in MODELS), "A100", "H100", "4090", "rtx", "gpu"]),
    st.sampled_from(["gpu", "any", "cpu"]),
    st.integers(0, 150),
    st.sampled_from(["gpu", "cpu"]),
)
def test_whoever_could_serve_stands_in_a_class_that_is_looked_for(have, wanted, kind, least_gib, is_kind):
    lent = device(*have, kind=is_kind)
    choices = () if wanted is None else (DeviceChoice(devices=1, model=canonical(wanted)),)
    asked = needs(kind=kind, choices=choices, device_memory_bytes=least_gib * GIB)
    if misfit(advert(lent), asked, currency="USD", ceiling_e18=1) is None:
        assert class_of_device(lent) in classes_for(asked)


def test_a_model_that_is_made_with_one_memory_is_looked_for_in_few_classes():
    assert classes_for(needs(choices=(DeviceChoice(devices=1, model="RTX4090"),))) == ("gpu-24",)
    assert classes_for(needs(device_memory_bytes=80 * GIB)) == ("gpu-80",)
    assert classes_for(needs(kind="cpu")) == ("cpu",)
    assert classes_for(needs(kind="any")) == CLASSES


def test_an_advert_stands_in_the_class_of_each_of_its_devices_and_always_in_one():
    assert classes_of(advert(device("NVIDIA H200", 141), device("Xeon", 4, "cpu"))) == ("cpu", "gpu-80")
    assert classes_of(advert()) == ("cpu",)
    assert classes_of(advert(device("?", 1, "quantum"))) == ("cpu",)


def test_a_provider_is_found_by_class_and_model_anywhere_and_in_each_part_of_its_region():
    names = capability_names(advert(device("NVIDIA H200", 141)))
    assert set(names) == {f"{what}/{where}" for what in ("gpu-80", "h200") for where in (ANYWHERE, "eu", "west", "1")}
    crowd = [device(f"RTX {number}", 24) for number in range(2000, 2100)]
    assert len(capability_names(advert(*crowd, region="a-b-c-d-e-f"))) <= MOST_NAMES
    assert capability_names(advert(device("\x00" * 250, 1), region="\x00/../*")) == ("gpu-small/*",)


def test_a_buyer_looks_under_what_the_provider_it_wants_stands_under():
    asked = needs(
        choices=(DeviceChoice(devices=1, model="H200"),),
        clauses=(Clause(name="region", operator="in", values=("eu-west",)),),
    )
    assert wanted_names(asked) == ("h200/eu", "h200/*")
    assert set(wanted_names(asked)) <= set(capability_names(advert(device("NVIDIA H200", 141))))
    assert wanted_names(needs(device_memory_bytes=40 * GIB)) == ("gpu-40/*", "gpu-80/*")


def test_a_small_market_is_heard_whole_and_of_a_large_one_only_what_is_of_use():
    interest = Interest()
    assert interest.classes(MANY_ADVERTS, {"cpu"}, 0) == CLASSES
    assert interest.classes(MANY_ADVERTS + 1, {"gpu-80", "cpu"}, 1) == ("cpu", "gpu-80")
    assert interest.classes(5, {"cpu"}, 2) == ("cpu",), "the book has shrunk only because less is heard"
    assert interest.classes(5, {"cpu"}, NARROW_FOR_MS + 1) == CLASSES
