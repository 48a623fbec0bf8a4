"""Prime Intellect's requirement strings."""

from pathlib import Path

import pytest

from hansa.node.faults import ConfigError
from hansa.node.jobs.import_formats import read_spec
from hansa.node.jobs.import_job import Draft


def read(text: str) -> Draft:
    return read_spec(text.encode(), Path("needs.txt"))


def test_groups_are_alternatives_and_the_rest_holds_together() -> None:
    draft = read(
        "gpu:count=8;gpu:model=H100;gpu:memory_mb=80000 ; gpu:count=4;gpu:model=A100;gpu:memory_mb=40000;"
        "ram_mb=128000; storage_gb=1000; cpu:cores=16"
    )
    assert draft.choices == ((8, "H100"), (4, "A100"))
    assert draft.vram_bytes == 40_000 * 10**6
    assert (draft.memory_bytes, draft.disk_bytes, draft.cores_milli) == (128 * 10**9, 10**12, 16_000)
    assert any(remark.what == "80000 MB" for remark in draft.left_out), "one least memory holds for all"


def test_any_model_beside_a_named_one_is_told() -> None:
    draft = read("gpu:count=8;gpu:model=H100 ; gpu:count=16; ram_mb=128000")
    assert draft.choices == ((8, "H100"),)
    assert any("or 16 of any model" in remark.what for remark in draft.left_out)


def test_a_machine_without_gpus_is_one_too() -> None:
    draft = read("ram_mb=32000;storage_gb=250;cpu:cores=8")
    assert (draft.devices, draft.cores_milli) == (0, 8_000)


def test_a_range_of_memory_keeps_both_ends() -> None:
    draft = read("gpu:count=1;gpu:memory_mb_min=24000;gpu:memory_mb_max=80000")
    assert (draft.vram_bytes, draft.clauses) == (24 * 10**9, ["vram <= 80000 MB"])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("gpu:count=abc", '"abc" is no whole number'),
        ("ram_mb=100;gpu_model=xyz", 'unknown requirement key "gpu_model"'),
        ("gpu:count=1=2", '"1=2" is no whole number'),
        ("gpu:count=1;ram_mb", "has no value"),
        ("gpu:count=-1", "is no whole number"),
        ("gpu:count=99999999999", "is no whole number"),
        ("gpu:count=0;ram_mb=1", "outside 1 .. 64"),
        ("gpu:memory_mb=1;gpu:memory_mb_min=1", "stands beside gpu:memory_mb"),
        ("gpu:memory_mb_min=2;gpu:memory_mb_max=1", "least is more than the most"),
        ("gpu:count=1;gpu:model=flibble", "no GPU is known"),
    ],
)
def test_what_prime_intellect_refuses_is_refused(text: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert what in caught.value.what
    assert caught.value.hint
