"""The one writer of job.toml: what it writes is accepted, and says what it does not do."""

import tomllib
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.market.requirements import parse_needs
from hansa.node.faults import ConfigError
from hansa.node.jobs.import_formats import FORMATS, read_spec
from hansa.node.jobs.import_job import GIB, Draft
from hansa.node.jobs.import_writer import pinned, quoted, write_job
from hansa.node.jobs.job_file import JobFile, read_job_file
from hansa.proto.market_documents import Clause, DeviceChoice

DIGEST = "sha256:" + "0a" * 32


def full() -> Draft:
    draft = Draft(
        system="Akash",
        name='a "name"\n\x7f',
        devices=8,
        choices=((8, "H100-80GB"), (4, "A100-80GB")),
        clauses=["cuda >= 12.4", "region not in (cn, ru)", "vram <= 80 GiB"],
        vram_bytes=80 * 10**9,
        cores_milli=16_500,
        memory_bytes=64 * GIB,
        disk_bytes=100 * 10**9,
        shared_memory_bytes=8 * GIB,
        shards=2,
        image=f"vllm/vllm-openai:v0.6.2@{DIGEST}",
        wall_ms=23_400_000,
        queue_ms=7_200_000,
        price_per_hour=Decimal("2.10"),
        retries=2,
        retry_own_errors=True,
        hosts=("huggingface.co:443",),
        packages=("einops>=0.8",),
        lease="firm",
    )
    draft.set_env([("MODE", 'fast "\\ \N{SNOWMAN}', "env"), ("TOKEN", "abc", "env")])
    return draft


def accepted(draft: Draft, directory: Path) -> JobFile:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "job.toml").write_text(write_job(draft, "deploy.yaml").text)
    (directory / "main.py").write_text("def main(context): ...\n")
    return read_job_file(directory)


def test_what_it_writes_is_read_as_what_was_meant(tmp_path: Path) -> None:
    spec = accepted(full(), tmp_path).spec
    needs = spec.requirements
    assert spec.name == 'a "name"'
    assert (spec.shards, spec.entry) == (2, "main.py:main")
    assert needs.kind == "gpu"
    assert needs.choices == (DeviceChoice(devices=8, model="H100-80GB"), DeviceChoice(devices=4, model="A100-80GB"))
    assert needs.devices == 8
    assert needs.device_memory_bytes == 80 * 10**9
    assert (needs.cores_milli, needs.memory_bytes, needs.scratch_bytes) == (16_500, 64 * GIB, 100 * 10**9)
    assert spec.shared_memory_bytes == 8 * GIB
    assert Clause(name="cuda", operator=">=", values=("12.4",)) in needs.clauses
    assert Clause(name="region", operator="not in", values=("cn", "ru")) in needs.clauses
    assert Clause(name="vram", operator="<=", values=("80 GiB",)) in needs.clauses
    assert needs.wall_ms == 23_400_000
    assert spec.queue_ms == 7_200_000
    assert spec.retries == 2
    assert "user-exception" in spec.retry_on
    (env,) = spec.parameters
    assert (env.name, env.value) == ("env", '{"MODE":"fast \\"\\\\ \\u2603"}')


def test_an_image_by_its_digest_is_carried_over_and_a_tag_is_not(tmp_path: Path) -> None:
    assert accepted(full(), tmp_path).environment.reference == f"docker.io/vllm/vllm-openai@{DIGEST}"
    made = write_job(Draft(system="Akash", image="me/train:latest"), "x.yaml")
    assert '# image = "image.tar"' in made.text
    assert any("skopeo copy docker://me/train:latest" in line for line in made.draft.to_write)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
        (f"me/x:1@{DIGEST}", f"docker.io/me/x@{DIGEST}"),
        (f"ghcr.io/me/x@{DIGEST}", f"ghcr.io/me/x@{DIGEST}"),
        (f"registry:5000/x:1@{DIGEST}", f"registry:5000/x@{DIGEST}"),
        ("nginx", "nginx"),
        ("nginx:1@sha256:abc", "nginx:1@sha256:abc"),
    ],
)
def test_images_are_named_in_full(image: str, name: str) -> None:
    assert pinned(image) == name


def test_a_secret_is_named_and_nowhere_written() -> None:
    made = write_job(full(), "deploy.yaml")
    assert "TOKEN" in made.text
    assert "abc" not in made.text


def test_an_empty_draft_is_a_job_too(tmp_path: Path) -> None:
    spec = accepted(Draft(system="Bacalhau"), tmp_path).spec
    assert spec.name == "deploy"
    assert spec.requirements.choices == ()
    assert spec.requirements.clauses == ()


def test_what_is_too_small_for_ray_is_raised_and_said(tmp_path: Path) -> None:
    draft = Draft(system="Akash", cores_milli=10, memory_bytes=16 << 20, disk_bytes=1 << 20, shared_memory_bytes=1)
    needs = accepted(draft, tmp_path).spec.requirements
    assert (needs.cores_milli, needs.scratch_bytes) == (100, 256 << 20)
    assert needs.memory_bytes == (128 << 20) + GIB
    assert {remark.place for remark in draft.carried} == {"CPU cores", "memory", "disk"}


def test_a_ceiling_that_the_usual_total_cannot_pay_stays_a_comment(tmp_path: Path) -> None:
    draft = Draft(system="Vast.ai", devices=64, price_per_hour=Decimal(10))
    spec = accepted(draft, tmp_path).spec
    text = (tmp_path / "job.toml").read_text()
    assert '# price_ceiling_per_hour = "10"' in text
    assert spec.requirements.devices == 64
    assert any("before its wall" in line for line in draft.to_write)


def test_a_ceiling_is_never_rounded_up(tmp_path: Path) -> None:
    draft = Draft(system="Vast.ai", devices=3, price_per_hour=Decimal(1) / 3)
    accepted(draft, tmp_path)
    assert 'price_ceiling_per_hour = "0.333333"' in (tmp_path / "job.toml").read_text()


def test_more_environment_than_a_parameter_holds_is_left_out_and_said(tmp_path: Path) -> None:
    draft = Draft(system="Akash")
    draft.set_env([(f"V{number}", "x " * 100, f"env[{number}]") for number in range(20)])
    (env,) = accepted(draft, tmp_path).spec.parameters
    kept = [remark.what for remark in draft.carried]
    left = [remark.what for remark in draft.left_out]
    assert kept
    assert left
    assert len(kept) + len(left) == 20
    assert all(f'"{name}"' in env.value for name in kept)


def test_more_choices_than_a_job_names_are_left_out_and_said(tmp_path: Path) -> None:
    models = ("A100", "H100", "H200", "L4", "L40S", "A10", "T4", "V100", "P100", "A40", "RTX3090", "RTX4090", "RTX5090")
    models = (*models, "RTXA6000", "RTX8000", "P40", "K80")
    draft = Draft(system="Akash", devices=1, choices=tuple((1, model) for model in models))
    assert len(accepted(draft, tmp_path).spec.requirements.choices) == 16
    assert [remark.what for remark in draft.left_out] == ["1 x K80"]


def test_a_firm_lease_is_asked_for_and_any_is_not() -> None:
    def needs(lease: str) -> str:
        return str(tomllib.loads(write_job(Draft(system="x", devices=1, lease=lease), "x").text)["resources"]["needs"])

    assert parse_needs(needs("firm")).lease == "firm"
    assert parse_needs(needs("any")).lease == ""


@given(st.text(max_size=60))
def test_any_text_is_quoted_so_that_toml_reads_it(text: str) -> None:
    whole = text.encode("utf-8", "replace").decode()
    assert tomllib.loads(f"a = {quoted(whole)}")["a"] == whole


NAMES = st.sampled_from(
    [
        *(
            "version",
            "services",
            "profiles",
            "deployment",
            "compute",
            "placement",
            "pricing",
            "resources",
            "gpu",
            "units",
        ),
        *("attributes", "vendor", "nvidia", "model", "cpu", "memory", "storage", "size", "env", "image", "expose"),
        *("count", "profile", "accelerators", "cpus", "num_nodes", "run", "setup", "envs", "type", "task", "name"),
        *("nodes", "python", "commands", "ports", "Tasks", "Engine", "Type", "Params", "Image", "Count", "Resources"),
        *("GPU", "Timeouts", "any_of", "ordered", "a", "b"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers(-5, 99) | st.text(max_size=12) | st.sampled_from(
    ["2.0", "task", "docker", "batch", "web", "A100:8", "24GB..80GB:2", "16Gi", "100m", "x=1", "h100", "{{.a}}", "8.."]
)  # fmt: skip
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6), max_leaves=30
)


@given(st.dictionaries(NAMES, TREES, max_size=8), st.sampled_from(["", *FORMATS]))
@settings(max_examples=200, deadline=None)
def test_whatever_a_file_holds_it_is_a_job_or_refused(tree: dict[str, object], named: str) -> None:
    import json

    with suppress(ConfigError):
        draft = read_spec(json.dumps(tree).encode(), Path("any.yaml"), named=named)
        tomllib.loads(write_job(draft, "any.yaml").text)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_job_or_refused(data: bytes) -> None:
    for named in ("", *FORMATS):
        with suppress(ConfigError):
            tomllib.loads(write_job(read_spec(data, Path("any.yaml"), named=named), "any.yaml").text)
