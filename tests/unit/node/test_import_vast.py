"""Vast.ai's queries: every field is carried over, left out with a reason, or refused."""

from decimal import Decimal
from pathlib import Path

import pytest

from hansa.market.clauses import failures
from hansa.market.requirements import parse_needs
from hansa.node.faults import ConfigError
from hansa.node.jobs.import_formats import read_spec
from hansa.node.jobs.import_job import Draft

FIELDS = [
    *("bw_nvlink", "compute_cap", "cpu_arch", "cpu_cores", "cpu_ghz", "cpu_cores_effective", "cpu_ram", "cuda_vers"),
    *("datacenter", "direct_port_count", "disk_bw", "disk_space", "dlperf", "dlperf_usd", "dph", "driver_version"),
    *("duration", "external", "flops_usd", "geolocation", "gpu_arch", "gpu_max_power", "gpu_max_temp", "gpu_mem_bw"),
    *("gpu_name", "gpu_ram", "gpu_total_ram", "gpu_frac", "gpu_display_active", "has_avx", "id", "inet_down"),
    *("inet_down_cost", "inet_up", "inet_up_cost", "machine_id", "min_bid", "num_gpus", "pci_gen", "pcie_bw"),
    *("reliability", "rentable", "storage_cost", "static_ip", "total_flops", "ubuntu_version", "verified"),
    "vms_enabled",
]
VALUES = {"cpu_arch": "amd64", "gpu_arch": "nvidia", "gpu_name": "RTX_4090", "geolocation": "US", "reliability": "0.9"}
FLAGS = {"datacenter", "external", "gpu_display_active", "has_avx", "rentable", "static_ip", "verified", "vms_enabled"}


def read(text: str) -> Draft:
    return read_spec(text.encode(), Path("query.txt"), named="vast")


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.hint
    return caught.value.what


def test_everything_that_has_a_place_here_is_carried_over() -> None:
    draft = read(
        'vastai search offers \'gpu_name in ["RTX 4090", RTX_3090] num_gpus>=4 gpu_ram>=24 dph<2.5 reliability>0.99'
        " geolocation notin [CN,VN] cuda_vers>=12.1 driver_version >= 535.86.05 inet_down>1000 compute_cap>=750"
        " cpu_ram>64 disk_space>146 cpu_cores_effective>=16 bw_nvlink>100 cpu_arch=amd64 gpu_arch=nvidia' -o 'dph'"
    )
    assert draft.choices == ((4, "RTX4090"), (4, "RTX3090"))
    assert draft.vram_bytes == 24 * 10**9
    assert draft.price_per_hour == Decimal("0.625")
    assert (draft.memory_bytes, draft.disk_bytes, draft.cores_milli) == (64 * 10**9, 146 * 10**9, 16_000)
    assert draft.clauses == [
        "reliability > 0.99",
        "region not in (cn, china, prc, vn, vietnam, 'viet nam')",
        "cuda >= 12.1",
        "driver >= 535.86.05",
        "download > 1000 Mbit/s",
        "compute >= 7.5",
        "interconnect = nvlink",
        "arch in (x86_64)",
        "vendor in (nvidia)",
    ]


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_is_dropped_in_silence(field: str) -> None:
    value = VALUES.get(field, "true" if field in FLAGS else "1")
    text = f"{field} = {value} num_gpus>=2"
    if field in ("id", "machine_id"):
        assert "one certain machine" in refusal(text)
        return
    draft = read(text)
    told = [remark for remark in (*draft.carried, *draft.left_out) if field in remark.place or field in remark.what]
    assert told or (field == "gpu_name" and draft.choices)
    assert all(remark.how for remark in told)


def test_there_are_48_fields() -> None:
    assert len(FIELDS) == 48


def test_a_condition_that_sets_none_is_none() -> None:
    draft = read("num_gpus=any gpu_name=RTX_4090 verified=any")
    assert (draft.devices, draft.choices) == (1, ((1, "RTX4090"),))


def test_the_number_of_gpus_may_stand_anywhere() -> None:
    assert read("num_gpus>3 gpu_name=H100_SXM").choices == ((4, "H100-SXM5"),)
    assert read("gpu_name=H100_SXM num_gpus>3 dph<8 gpu_total_ram>=320").vram_bytes == 80 * 10**9


def test_models_to_be_avoided_are_a_condition() -> None:
    assert read("gpu_name notin [RTX_3090,L4] num_gpus=1").clauses == ["gpu not in (RTX3090, L4)"]
    assert read("gpu_name != RTX_3090").clauses == ["gpu not in (RTX3090)"]


def test_upper_ends_are_left_out_and_said() -> None:
    draft = read("num_gpus<=4 gpu_name=L4 disk_space<100")
    assert draft.devices == 1
    assert [remark.what for remark in draft.left_out] == ["num_gpus <= 4", "disk_space < 100"]


def test_a_capability_in_the_wrong_unit_is_pointed_out() -> None:
    draft = read("gpu_ram >= 24 compute_cap >= 70")
    assert draft.clauses == ["compute >= 0.7"]
    assert any("700 for 7.0" in line for line in draft.to_write)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("gpu_nam=RTX_4090", '"gpu_nam" is no field'),
        ("num_gpus>=many", '"many" is no number'),
        ("verified=maybe", "neither true nor false"),
        ("gpu_name in RTX_4090", "needs a list"),
        ("num_gpus >= [1,2]", "cannot be compared with a list"),
        ("geolocation in []", "has no value"),
        ("<FILTERS>", "no comparison can be read"),
        ("gpu_name=RTX_4090 and nothing else", "no comparison can be read"),
        ("machine_id=42 rentable=any", "one certain machine"),
        ("machine_id={args.machine_id}", "is no number"),
        ("vastai search offers 'reliability>0.99 gpu_name in [\"", "quotes are not closed"),
        ("vastai search offers '<FILTERS>'", "no comparison can be read"),
        ("vastai search offers", "is no query"),
        ("gpu_name=Flibble_9000", "no GPU is known"),
        ("num_gpus>=65", "1 to 64 GPUs"),
        ("# nothing", "comments only"),
    ],
)
def test_what_is_no_query_is_refused(text: str, what: str) -> None:
    assert what in refusal(text)


def test_countries_go_by_their_names_too_since_owners_write_those() -> None:
    draft = read("geolocation in [IN,SE,XX]")
    assert draft.clauses == ["region in ('in', india, se, sweden, xx)"]
    assert any("add the names of xx" in line for line in draft.to_write)
    (clause,) = parse_needs(draft.clauses[0]).clauses
    assert clause.values == ("in", "india", "se", "sweden", "xx")


@pytest.mark.parametrize(
    ("query", "place", "taken"),
    [
        ("geolocation notin [CN,VN]", "Hanoi, Vietnam", False),
        ("geolocation notin [CN,VN]", "Bergen, Norway", True),
        ("geolocation in [NO,US]", "Bergen, Norway", True),
        ("geolocation in [NO,US]", "Dallas, United States", True),
        ("geolocation in [NO,US]", "Hanoi, Vietnam", False),
    ],
)
def test_a_country_is_known_in_its_owners_words(query: str, place: str, taken: bool) -> None:
    clauses = parse_needs(read(query).clauses[0]).clauses
    assert (not failures(clauses, {"region": place.casefold()})) == taken
