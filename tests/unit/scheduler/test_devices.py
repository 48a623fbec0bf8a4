"""Which devices a shard gets, and what is missing, in words."""

from dataclasses import replace

import pytest
from drawn_values import values
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.trading import DEVICE, needs, tender

from hansa.market.clauses import relaxed_requirements, unreadable
from hansa.market.needs_rendering import render
from hansa.market.pricing import decline_for
from hansa.market.requirements import parse_needs
from hansa.market.vocabulary import VOCABULARY
from hansa.proto.codec import decode, encode
from hansa.proto.market_documents import Clause, Decline, Device, DeviceChoice, Fact, Requirements, Shortfall
from hansa.scheduler.device_lacks import GIB, NOTHING_SAID, Judge, Shortage
from hansa.scheduler.devices import Topology, choose

GPU = replace(DEVICE, id=b"g" * 32, kind="gpu", model="NVIDIA H100 80GB", memory_bytes=80 * GIB)
SMALL = replace(DEVICE, id=b"s" * 32, memory_bytes=2 * GIB)
LARGE = replace(DEVICE, id=b"l" * 32, memory_bytes=64 * GIB)


def is_fit(asked: Requirements, device: Device) -> bool:
    return not Judge(asked, NOTHING_SAID).lacks(asked, device)


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
        ({"choices": (DeviceChoice(devices=1, model="A100"),)}, "gpu"),
        ({"device_memory_bytes": 1 << 60}, "vram"),
    ],
)
def test_what_no_device_meets_is_named_with_the_nearest_change(wanted, name):
    found = choose(needs(**wanted), [LARGE], [LARGE])
    assert isinstance(found, Shortage)
    assert found.reason == f"no device here meets {name}"
    assert found.relaxation.startswith(f"{name} = ")


def test_models_are_found_by_their_family_in_any_form():
    for wanted, fits in (("h100", True), ("H100-80GB", True), ("H100-SXM", False), ("H10", False)):
        assert is_fit(needs(kind="gpu", choices=(DeviceChoice(devices=1, model=wanted),)), GPU) is fits, wanted
    assert is_fit(needs(kind="any"), GPU)


def fleet(models, **changes):
    return [
        replace(GPU, id=f"{model}{number}".encode().ljust(32, b"."), model=model, **changes)
        for model, count in models.items()
        for number in range(count)
    ]


def either(*sets, **changes):
    choices = tuple(DeviceChoice(devices=devices, model=model) for devices, model in sets)
    return needs(kind="gpu", choices=choices, devices=max(devices for devices, _ in sets), cores_milli=0, **changes)


def models_of(found):
    assert not isinstance(found, Shortage), found
    return [device.model for device in found]


def test_of_several_sets_of_devices_the_best_liked_is_given_and_any_other_where_it_cannot_be():
    owned = fleet({"NVIDIA L4": 4, "NVIDIA H100 PCIe": 2})
    asked = either((2, "H100"), (4, "L4"))
    assert models_of(choose(asked, owned, owned)) == ["NVIDIA H100 PCIe"] * 2
    assert models_of(choose(asked, owned[:5], owned)) == ["NVIDIA L4"] * 4, "one H100 is taken"
    assert choose(asked, owned[:3], owned).reason == "2 of 2 fitting devices are busy"
    assert models_of(choose(either((4, "L4"), (2, "H100")), owned, owned)) == ["NVIDIA L4"] * 4


def test_devices_of_a_named_family_are_all_of_one_model():
    owned = fleet({"NVIDIA A100-SXM4-80GB": 1, "NVIDIA A100-PCIE-40GB": 2})
    assert models_of(choose(either((2, "A100")), owned, owned)) == ["NVIDIA A100-PCIE-40GB"] * 2
    assert isinstance(choose(either((3, "A100")), owned, owned), Shortage)
    assert len(choose(needs(kind="gpu", devices=3, cores_milli=0), owned, owned)) == 3


def test_every_requirement_that_fails_at_the_nearest_devices_is_named():
    owned = fleet({"NVIDIA L4": 2}, facts=(Fact(name="cuda", value="12.2"),), memory_bytes=23_034 << 20)
    clauses = parse_needs("cuda >= 12.4 and driver >= 550 and region = de and reliability >= 0.9").clauses
    found = choose(
        either((4, "H100"), device_memory_bytes=40 * GIB, clauses=clauses), owned, owned, about={"region": "us"}
    )
    assert found.shortfalls == (
        Shortfall(name="gpu", wanted="4\N{MULTIPLICATION SIGN}H100", nearest="2\N{MULTIPLICATION SIGN}L4"),
        Shortfall(name="vram", wanted="vram >= 40 GiB", nearest="23034 MiB"),
        Shortfall(name="cuda", wanted="cuda >= 12.4", nearest="12.2"),
        Shortfall(name="driver", wanted="driver >= 550", nearest="any"),
        Shortfall(name="region", wanted="region = de", nearest="us"),
    )
    assert found.reason == (
        "no device here meets gpu and vram and cuda and driver and region: "
        "cuda is 12.2; does not say its driver; region is us"
    )
    assert found.relaxation.endswith("vram = 22.5 GiB and cuda >= 12.2 and driver = any and region = us")


def test_a_condition_on_the_model_is_told_apart_from_the_sets_of_devices():
    owned = fleet({"NVIDIA A100-SXM4-80GB": 1})
    asked = either((1, "H100"), (2, "H200"), clauses=parse_needs("gpu != A100").clauses)
    found = choose(asked, owned, owned)
    assert [(one.wanted, one.nearest) for one in found.shortfalls] == [
        ("1\N{MULTIPLICATION SIGN}H100 or 2\N{MULTIPLICATION SIGN}H200", "1\N{MULTIPLICATION SIGN}A100-SXM4-80GB"),
        ("gpu != A100", "any"),
    ]
    assert choose(relaxed_requirements(asked, found.shortfalls), owned, owned) == tuple(owned)


def test_where_slots_of_cpus_would_do_their_memory_counts_too():
    asked = needs(kind="gpu", memory_bytes=3 * GIB, cores_milli=0)
    found = choose(asked, [SMALL], [SMALL])
    assert [(one.name, one.nearest) for one in found.shortfalls] == [("kind", "cpu"), ("ram", "2 GiB")]
    assert choose(relaxed_requirements(asked, found.shortfalls), [SMALL], [SMALL]) == (SMALL,)


def test_memory_and_disk_of_the_machine_count_where_they_are_known():
    asked = needs(memory_bytes=GIB, scratch_bytes=4 * GIB)
    assert choose(asked, [LARGE], [LARGE]) == (LARGE,)
    assert choose(asked, [LARGE], [LARGE], about={"disk": "4 GiB", "ram": "1 GiB"}) == (LARGE,)
    found = choose(asked, [LARGE], [LARGE], about={"disk": "3 GiB"})
    assert found.shortfalls == (Shortfall(name="disk", wanted="disk >= 4 GiB", nearest="3 GiB"),)


MODELS = ["NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA GeForce RTX 4090", "Xeon 7"]
ABOUT = st.fixed_dictionaries(
    {},
    optional={
        "region": st.sampled_from(["de", "us"]),
        "disk": st.sampled_from(["1 GiB", "9 GiB"]),
        "ram": st.just("1 GB"),
    },
)
SAID = st.lists(
    st.sampled_from(
        [
            "cuda >= 12.4",
            "cuda < 12",
            "region in (de, fr)",
            "region not in (us, cn)",
            "interconnect = nvlink",
            "gpu != A100",
            "disk <= 4 GiB",
            "cores <= 3",
            "vram <= 30 GB",
            "licence = mit",
        ]
    ),
    max_size=4,
)


@st.composite
def some_fleet(draw):
    fleet = []
    for number, model in enumerate(draw(st.lists(st.sampled_from(MODELS), max_size=6))):
        told = draw(st.dictionaries(st.sampled_from(["cuda", "interconnect"]), st.sampled_from(["12.2", "13"])))
        told = {name: value if name == "cuda" else "pcie" for name, value in told.items()}
        facts = tuple(Fact(name=name, value=told[name]) for name in sorted(told))
        fleet.append(
            replace(
                DEVICE,
                id=bytes([number]) * 32,
                kind="cpu" if model == "Xeon 7" else "gpu",
                model=model,
                memory_bytes=draw(st.sampled_from([2, 24, 80])) * GIB,
                cores_milli=draw(st.sampled_from([1_000, 4_000])),
                facts=facts,
            )
        )
    return fleet


@given(
    fleet=some_fleet(),
    about=ABOUT,
    said=SAID,
    choices=st.lists(
        st.builds(DeviceChoice, devices=st.integers(1, 4), model=st.sampled_from(["H100", "A100", "RTX4090"])),
        max_size=2,
    ),
    vram_bytes=st.sampled_from([0, 30 * GIB, 100 * GIB]),
    kind=st.sampled_from(["any", "gpu", "cpu"]),
)
def test_with_every_shortfalls_nearest_value_the_answer_is_devices(fleet, about, said, *, choices, vram_bytes, kind):
    asked = needs(
        kind=kind,
        choices=tuple(choices),
        devices=max((one.devices for one in choices), default=2),
        device_memory_bytes=vram_bytes,
        cores_milli=3_000,
        memory_bytes=3 * GIB,
        scratch_bytes=4 * GIB,
        clauses=parse_needs(" and ".join(said)).clauses,
    )
    found = choose(asked, fleet, fleet, about=about)
    if not isinstance(found, Shortage):
        sizes = {(one.devices, one.model) for one in asked.choices} or {(asked.devices, "")}
        assert len(found) in {devices for devices, _ in sizes}
        return
    assert bool(found.shortfalls) == bool(fleet)
    if fleet:
        eased = relaxed_requirements(asked, found.shortfalls)
        assert not isinstance(choose(eased, fleet, fleet, about=about), Shortage), (found, eased)


@pytest.mark.parametrize(
    ("asked", "free", "owned", "reason"),
    [
        (needs(), [], [], "this provider lends no devices at present"),
        (needs(), [], [SMALL], "1 of 1 fitting devices are busy"),
        (needs(devices=2), [SMALL], [SMALL], "1 fitting device here, 2 wanted"),
        (needs(cores_milli=2_001), [SMALL], [SMALL], "2 CPU cores come with 1 device here, 2.001 wanted"),
        (needs(memory_bytes=3 * GIB), [SMALL], [SMALL], "2 GiB of memory come with 1 device here, 3 GiB wanted"),
        (
            needs(kind="any", memory_bytes=3 * GIB),
            [SMALL],
            [SMALL],
            "2 GiB of memory come with 1 device here, 3 GiB wanted",
        ),
    ],
)
def test_a_shortage_says_what_is_short(asked, free, owned, reason):
    found = choose(asked, free, owned)
    assert isinstance(found, Shortage)
    assert found.reason == reason


def test_a_slots_memory_bounds_a_job_that_takes_any_kind_of_device():
    asked = needs(kind="any", memory_bytes=3 * GIB)
    assert choose(asked, [SMALL, LARGE], [SMALL, LARGE]) == (LARGE,)
    assert len(choose(replace(asked, devices=2), on("a", 2), on("a", 2))) == 2
    assert choose(asked, [GPU], [GPU]) == (GPU,), "a GPU's memory says nothing of its machine's"


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
        assert all(device in free and is_fit(asked, device) for device in found)


def on(machine, count):
    """So many alike devices; their ids say where they are."""
    return [replace(SMALL, id=f"{machine}{number}".encode().ljust(32, b".")) for number in range(count)]


def topology_of(*machines, apart=()):
    names = {device.id: device.id.decode()[0] for machine in machines for device in machine}
    return Topology(machine_of={key: name for key, name in names.items() if name != "h"}, apart=frozenset(apart))


def where(found):
    assert not isinstance(found, Shortage), found
    return sorted({device.id.decode()[0] for device in found})


def test_a_shard_gets_devices_of_one_machine_and_of_that_where_they_are_missed_the_least():
    here, a, b = on("h", 2), on("a", 4), on("b", 3)
    owned = [*here, *a, *b]
    topology = topology_of(here, a, b)
    assert where(choose(needs(devices=1), owned, owned, topology)) == ["b"], "two devices are left on each machine"
    assert where(choose(needs(devices=2), owned, owned, topology)) == ["h"]
    assert where(choose(needs(devices=3), owned, owned, topology)) == ["b"]
    assert where(choose(needs(devices=4), owned, owned, topology)) == ["a"]


def test_a_shard_is_spread_over_machines_only_if_its_job_says_that_it_may():
    here, a = on("h", 2), on("a", 3)
    owned = [*here, *a]
    topology = topology_of(here, a)
    refused = choose(needs(devices=4), owned, owned, topology)
    assert isinstance(refused, Shortage)
    assert refused.relaxation == "devices = 3, or several_machines = true"
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


@pytest.mark.parametrize(("operator", "values"), [("=", ("x",)), ("not in", ("1", "2", "3")), ("!=", ("2",))])
def test_a_strangers_condition_on_the_number_of_devices_is_an_answer_whatever_it_says(operator, values):
    asked = needs(
        device_memory_bytes=900 << 40, clauses=(Clause(name="devices", operator=operator, values=values),), devices=2
    )
    found = choose(asked, [SMALL, LARGE, GPU], [SMALL, LARGE, GPU])
    assert isinstance(found, Shortage)
    assert "vram" in {lack.name for lack in found.shortfalls}


def test_no_devices_at_all_are_given_to_nobody():
    for asked in (needs(devices=0), needs(choices=(DeviceChoice(devices=0, model="A100"),))):
        assert choose(asked, [SMALL], [SMALL]) == Shortage(reason="no devices are asked for", relaxation="")


ODD = (
    *(
        "",
        "any",
        "x",
        "0",
        "1",
        "2",
        "-1",
        "1; 2",
        "9" * 18,
        "24 GB",
        "40 GiB",
        "80 GiB",
        "8388607 TiB",
        "16777215 TiB",
    ),
    *(
        "550",
        "1.2.3",
        "6 h",
        "95 %",
        "2.10",
        "1 Gbit/s",
        "gvisor",
        "none",
        "gpu",
        "firm",
        "A100",
        "A100-80GB",
        "a,b",
        "\x00",
    ),
    *("½", "²", "é" * 128, "0x" + "ab" * 20, '"', "; ", ",", "1e9", "inf"),
)
words = st.sampled_from([*VOCABULARY, "Devices", "VRAM", "nothing", ""])
odd_clauses = st.builds(
    Clause,
    name=words,
    operator=st.sampled_from(("=", "!=", "<", "<=", ">", ">=", "in", "not in", "..", "")),
    values=st.lists(st.sampled_from(ODD), max_size=4).map(tuple),
)
odd_facts = st.lists(st.builds(Fact, name=words, value=st.sampled_from(ODD)), max_size=4).map(tuple)
sizes_bytes = st.sampled_from((0, 1, 40 * GIB, 80 * GIB, 1 << 63, (1 << 64) - 1))
odd_devices = st.builds(
    Device,
    id=st.binary(min_size=32, max_size=32),
    kind=st.sampled_from(("gpu", "cpu", "", "x" * 256)),
    model=st.sampled_from(("NVIDIA A100", "A100-80GB", "", "Xeon", "é" * 128)),
    memory_bytes=sizes_bytes,
    cores_milli=st.sampled_from((0, 1, 4_000, (1 << 32) - 1)),
    facts=odd_facts,
)
odd_choices = st.builds(
    DeviceChoice, devices=st.sampled_from((0, 1, 2, 3, (1 << 32) - 1)), model=st.sampled_from(("A100", "", "é" * 128))
)
odd_needs = st.builds(
    Requirements,
    kind=st.sampled_from(("any", "gpu", "cpu", "", "x" * 256)),
    choices=st.lists(odd_choices, max_size=3).map(tuple),
    devices=st.sampled_from((0, 1, 2, 3, (1 << 32) - 1)),
    device_memory_bytes=sizes_bytes,
    cores_milli=st.sampled_from((0, 1, (1 << 32) - 1)),
    memory_bytes=sizes_bytes,
    scratch_bytes=sizes_bytes,
    tier=st.sampled_from(("none", "gvisor", "x")),
    features=st.just(()),
    egress=st.just(()),
    wall_ms=st.just(1),
    clauses=st.lists(odd_clauses, max_size=5).map(tuple),
)


@settings(max_examples=400)
@given(odd_needs | values(Requirements), st.lists(odd_devices | values(Device), max_size=4), odd_facts, st.booleans())
def test_whatever_a_stranger_asks_and_whatever_is_advertised_the_answer_can_be_sent(asked, fleet, said, is_split):
    topology = Topology(machine_of={device.id: str(at % 2) for at, device in enumerate(fleet)} if is_split else {})
    about = {fact.name: fact.value for fact in said}
    found = choose(asked, fleet, fleet, topology, about=about)
    render(asked)
    unreadable(asked)
    if isinstance(found, Shortage):
        decline = decline_for(
            tender(requirements=asked), b"t" * 32, b"p" * 20, (found.reason, found.relaxation), found.shortfalls
        )
        assert decode(encode(decline), Decline, limit_bytes=1 << 20) == decline
        choose(relaxed_requirements(asked, found.shortfalls), fleet, fleet, topology, about=about)


def test_of_unlike_cards_only_what_neither_is_stays_excluded():
    fleet = [replace(GPU, id=bytes([at]) * 32, memory_bytes=size * GIB) for at, size in enumerate((40, 80))]
    for excluded, left in ((("24 GB", "40 GiB", "80 GiB"), "24 GB"), (("40 GiB", "80 GiB"), "any")):
        asked = needs(
            kind="gpu", devices=2, memory_bytes=0, clauses=(Clause(name="vram", operator="not in", values=excluded),)
        )
        found = choose(asked, fleet, fleet)
        assert [lack.nearest for lack in found.shortfalls] == [left]
        assert not isinstance(choose(relaxed_requirements(asked, found.shortfalls), fleet, fleet), Shortage)


def test_cards_larger_than_any_size_that_can_be_written_are_told_without_a_fault():
    fleet = [replace(GPU, id=bytes([at]) * 32, memory_bytes=(1 << 63) + at) for at in range(2)]
    found = choose(needs(kind="gpu", devices=2, device_memory_bytes=(1 << 64) - 1), fleet, fleet)
    assert [lack.nearest for lack in found.shortfalls] == ["any"]
