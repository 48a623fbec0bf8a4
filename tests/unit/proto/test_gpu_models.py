"""Every way of writing a GPU's name comes to one form, and a wish is met by what was meant and by nothing else."""

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.proto.gpu_models import GIB, canonical, matches, parse

DATA = Path(__file__).parents[4] / "shared" / "data"
OFFERS = DATA / "traces" / "marketplace-offers" / "offers.csv"
AKASH = DATA / "specs" / "akash"
NODES = DATA / "traces" / "alibaba-gpu-v2023" / "openb_node_list_all_node.csv"

NAMES = {
    "NVIDIA A100-SXM4-80GB": "A100-SXM4-80GB",
    "A100-80GB-SXM": "A100-SXM4-80GB",
    "nvidia_a100_80gb_pcie": "A100-PCIE-80GB",
    "NVIDIA A100 80GB PCIe": "A100-PCIE-80GB",
    "A100 80GB": "A100-80GB",
    "a100": "A100",
    "NVIDIA H100 80GB HBM3": "H100-SXM5",
    "H100_SXM": "H100-SXM5",
    "NVIDIA H100 PCIe": "H100-PCIE",
    "H100NVL": "H100-NVL",
    "NVIDIA H200": "H200",
    "NVIDIA GH200 480GB": "GH200",
    "NVIDIA GeForce RTX 4090": "RTX4090",
    "rtx4090": "RTX4090",
    "4090": "RTX4090",
    "RTX_4090 24GB": "RTX4090",
    "RTX_4090 48GB": "RTX4090-48GB",
    "NVIDIA GeForce RTX 4090 D": "RTX4090D",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "RTX4090-LAPTOP",
    "NVIDIA GeForce RTX 4070 Ti SUPER": "RTX4070TI-SUPER",
    "RTX_4070S_Ti": "RTX4070TI-SUPER",
    "gtx1080ti": "GTX1080TI",
    "a6000": "RTXA6000",
    "RTX_A6000": "RTXA6000",
    "NVIDIA RTX 6000 Ada Generation": "RTX6000-ADA",
    "RTX_6000Ada": "RTX6000-ADA",
    "Quadro RTX 6000": "RTX6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTXPRO6000-SERVER",
    "RTXPRO6000-WK": "RTXPRO6000-WORKSTATION",
    "Tesla V100-SXM2-16GB": "V100-SXM2-16GB",
    "V100M32": "V100-32GB",
    "Tesla T4": "T4",
    "AMD Instinct MI300X": "MI300X",
    "AMD Instinct MI250X/MI250": "MI250X",
    "AMD Radeon RX 7900 XTX": "RX7900XTX",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb": "A100-SXM4-40GB MIG 1g.5gb",
    "AMD EPYC 7763 64-Core Processor": "AMD EPYC 7763 64-Core Processor",
    "NVIDIA A40-48Q": "NVIDIA A40-48Q",
    "NVIDIA A40-8C": "NVIDIA A40-8C",
    "x86_64": "x86_64",
    "": "",
}


@pytest.mark.parametrize(("text", "name"), NAMES.items())
def test_each_way_of_writing_a_model_has_one_form(text, name):
    assert canonical(text) == name
    assert canonical(name) == name
    assert canonical(text.upper()) == canonical(text.lower()) or parse(text) is None


@pytest.mark.parametrize(
    ("wanted", "have", "is_met"),
    [
        ("A100", "NVIDIA A100-SXM4-40GB", True),
        ("A100", "nvidia_a100_80gb_pcie", True),
        ("A100-80GB", "NVIDIA A100-SXM4-80GB", True),
        ("A100-80GB", "NVIDIA A100 80GB PCIe", True),
        ("A100-80GB", "NVIDIA A100-SXM4-40GB", False),
        ("A100", "NVIDIA A10", False),
        ("A10", "NVIDIA A100-SXM4-40GB", False),
        ("L40", "NVIDIA L40S", False),
        ("H100-SXM", "NVIDIA H100 80GB HBM3", True),
        ("H100-SXM", "NVIDIA H100 PCIe", False),
        ("H100-80GB", "NVIDIA H100 PCIe", True),
        ("H100-80GB", "NVIDIA H100 NVL", False),
        ("H200-SXM", "NVIDIA H200", True),
        ("H200-SXM", "NVIDIA H200 NVL", False),
        ("RTX 4090", "NVIDIA GeForce RTX 4090", True),
        ("RTX 4090", "NVIDIA GeForce RTX 4090 Laptop GPU", False),
        ("RTX 4090", "NVIDIA GeForce RTX 4090 D", False),
        ("RTX3060", "NVIDIA GeForce RTX 3060 Ti", False),
        ("RTX6000", "NVIDIA RTX 6000 Ada Generation", False),
        ("RTXPRO6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition", True),
        ("MI300X", "AMD Instinct MI300X OAM", True),
        ("A100", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", False),
        ("A100 MIG 1g.5gb", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", True),
        ("A100 MIG 2g.10gb", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", False),
        ("EPYC", "AMD EPYC 7763 64-Core Processor", True),
        ("EPYC 7763", "AMD EPYC 7763 64-Core Processor", True),
        ("EPYC 776", "AMD EPYC 7763 64-Core Processor", False),
        ("H100", "AMD EPYC 7763 64-Core Processor", False),
        ("", "NVIDIA H100 PCIe", False),
    ],
)
def test_a_wish_is_met_by_its_family_and_by_nothing_else(wanted, have, is_met):
    assert matches(wanted, have) is is_met


def test_memory_that_a_name_does_not_say_is_the_drivers():
    mib = 1 << 20
    assert matches("A100-80GB", "A100_SXM4", 81_920 * mib)
    assert not matches("A100-80GB", "A100_SXM4", 40_960 * mib)
    assert not matches("A100-80GB", "A100_SXM4"), "nobody says"
    assert matches("RTX4090", "RTX_4090", 49_140 * mib), "a card with more memory is that model still"
    assert matches("RTX4090-48GB", "RTX_4090", 49_140 * mib)
    assert not matches("RTX4090-48GB", "RTX_4090", 24_564 * mib)


def test_memory_that_a_name_implies_is_what_drivers_report():
    if not OFFERS.is_file():
        pytest.skip(f"{OFFERS} is absent")
    with OFFERS.open() as stream:
        for row in csv.DictReader(stream):
            model = parse(row["gpu"])
            assert model is not None, row["gpu"]
            each_bytes = int(row["vram_total_mib"]) // int(row["count"]) << 20
            if model.memory_gb and (model.base, each_bytes // GIB) != ("RTX4090", 47):
                assert abs(each_bytes / GIB - model.memory_gb) <= 0.07 * model.memory_gb, row


def test_every_gpu_of_real_specs_and_traces_is_known():
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is absent")
    names = set()
    for file in AKASH.iterdir():
        names |= set(re.findall(r"^\s*- model: (\S+)", file.read_text(), re.MULTILINE))
    with NODES.open() as stream:
        names |= {row["model"] for row in csv.DictReader(stream) if row["model"]}
    names |= set(re.findall(r"gpu_name ?= ?(\w+)", (DATA / "specs" / "vast" / "queries.txt").read_text()))
    assert len(names) > 20
    # Of the real names this one alone stands for several cards: a Quadro RTX, and an RTX of the Ada generation.
    assert {name for name in names if parse(name) is None} <= {"4000", '"*"', "*"}


VOCABULARY = (
    "nvidia amd geforce rtx gtx tesla a100 h100 v100 4090 6000 a6000 l40s mi300x 80gb 40gb sxm4 sxm pcie nvl hbm3 ti "
    "super s d ada laptop max-q pro blackwell server edition mig 1g.5gb titan gh200 480gb v100m32 h100sxm 7763 x"
)
WORDS = st.sampled_from(VOCABULARY.split())


@given(st.one_of(st.text(), st.lists(WORDS, max_size=6).map(" ".join), st.lists(WORDS, max_size=6).map("-".join)))
def test_the_one_form_is_its_own_form_and_meets_itself(text):
    name = canonical(text)
    assert canonical(name) == name
    if parse(name) is not None:
        assert matches(name, name)
        assert matches(text, name)
        assert matches(parse(name).base + _profile(name), name)


def _profile(name):
    profile = parse(name).profile
    return f" MIG {profile}" if profile else ""
