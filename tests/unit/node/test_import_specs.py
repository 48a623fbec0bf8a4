"""Every real file that there is: imported, or refused for a reason that is true. Skipped where the files are not."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hansa.node.faults import ConfigError
from hansa.node.jobs.import_formats import read_spec
from hansa.node.jobs.import_job import Draft
from hansa.node.jobs.import_writer import write_job
from hansa.node.jobs.job_file import read_job_file

SPECS = Path(__file__).resolve().parents[4] / "shared" / "data" / "specs"
if not SPECS.is_dir():
    # Before anything is parametrized by the files: a set of none is an error of the collection.
    pytest.skip(f"no real specs at {SPECS}", allow_module_level=True)

SEVERAL = "deploys several services"
REFUSED = {
    # Not valid where they come from, as Akash's own tests say: deployment-svc-mismatch and storageClass1 to 5 there.
    "akash/provider-deployment-svc-mismatch.yaml": "no service profile named webapp",
    "akash/provider-storageClass1.yaml": "mount must be an absolute path",
    "akash/provider-storageClass2.yaml": "mount must be an absolute path",
    "akash/provider-storageClass3.yaml": "there is no volume named data",
    "akash/provider-storageClass4.yaml": "/etc/nginx is already in use by config",
    "akash/provider-storageClass5.yaml": "is persistent, which needs a mount",
    # Akash's parser refuses these two as well: GPUs have attributes, and Gb is no unit of its.
    "akash/provider-run-ssh-gpu.yaml": "attributes must be present where units is more than 0",
    "akash/ray_deploy.yaml": '"10Gb" has an unknown unit',
    # Valid, and more than one program.
    **dict.fromkeys(
        (
            "akash/Llama-3.1-405B-BF16_deploy.yaml",
            "akash/provider-deployment-v2-c2c.yaml",
            "akash/provider-deployment-v2-custom-currency.yaml",
            "akash/provider-deployment-v2-escrow.yaml",
            "akash/provider-deployment-v2-multi-groups-ip-endpoint.yaml",
            "akash/provider-deployment-v2-multi-ip-endpoint.yaml",
            "akash/provider-deployment-v2-shared-ip-endpoint.yaml",
            "akash/provider-deployment-v2-storage-default.yaml",
            "akash/provider-permissions.yaml",
            "akash/provider-private_service.yaml",
            "akash/weaviate_deploy.yaml",
        ),
        SEVERAL,
    ),
    "skypilot/elastic_training_job.yaml": "holds several tasks (controller, workers)",
    # Nothing to run.
    "bacalhau/custom-task-type.yaml": '"flibble" is no engine',
    "bacalhau/empty.yaml": "is empty",
    "bacalhau/nameless.yaml": "noop is an engine that does nothing",
    "bacalhau/noop.yaml": "noop is an engine that does nothing",
    "dstack/examples_misc_ray_fleet.dstack.yaml": "a fleet is a set of machines to keep",
    # Many queries in one file, and a text about queries.
    "primeintellect/requirement_strings.txt": "holds 8 lines",
    "vast/queries.txt": "holds 32 lines",
    "vast/search_offers_help.txt": "is no valid YAML",
}
EXPECTED = {
    "akash/Hermes-4-405B-FP8_deploy.yaml": ("8x H100-80GB or 8x A100-80GB", 1, 64_000, (256 + 32) << 30, 600 << 30),
    "akash/Mistral-7B_deploy.yaml": ("1x A100 or 1x RTX4090 or 1x H100-80GB", 1, 12_000, 42 << 30, 60 << 30),
    "akash/FLock-training-node_deploy.yml": (
        "1x H100 or 1x A100 or 1x RTX3090 or 1x RTX4090 or 1x RTX8000 or 1x RTXA6000 or 1x A40 or 1x P40",
        *(1, 8_000, 24 << 30, 100 << 30),
    ),
    "akash/llama-factory_deploy.yaml": ("kind = gpu and devices = 4 and vendor = nvidia", 1, None, None, None),
    "akash/provider-simple.yaml": ("", 2, 100, 1 << 30, 1 << 30),
    "skypilot/axolotl-spot.yaml": ("1x A100", 1, None, None, None),
    "skypilot/minGPT-ddp.yaml": ("1x L4", 2, 4_000, None, None),
    "skypilot/ray_train.yaml": ("2x L4", 2, None, None, None),
    "dstack/examples_distributed-training_torchrun_.dstack.yml": (
        "kind = gpu and devices = 1",
        2,
        2_000,
        17 << 30,
        None,
    ),
    "dstack/examples_misc_ray_cluster.dstack.yaml": ("", 4, 2_000, 9 << 30, None),
    "dstack/examples_single-node-training_qlora_.dstack.yml": (
        "kind = gpu and devices = 1 and vram >= 16 GB and vram <= 24 GiB",
        *(1, 2_000, 8 << 30, None),
    ),
    "dstack/examples_llms_deepseek_trl_nvidia_.dstack.yml": (
        "kind = gpu and devices = 1 and vram >= 24 GB and vram <= 24 GiB",
        *(1, 2_000, 8 << 30, None),
    ),
    "bacalhau/llama-benchmarking.yaml": ("kind = gpu and devices = 8", 1, 32_000, 640 * 10**9, None),
    "bacalhau/docker-s3.yaml": ("", 1, None, None, None),
}
"""Checked by hand: needs, shards, cores in thousandths, memory, disk; ``None`` where the file says nothing."""
UNKNOWN = {"akash/torchbench_torchbench_gpu_sdl_cuda12_0.yaml": ["services.gpu-test.cmd (line 10)"]}
"""What the other system does not know either, and passes over."""
QUERIES = {
    1: "kind = gpu and devices = 1 and compute > 6.1",
    2: "kind = gpu and devices = 1 and arch in (aarch64)",
    3: "kind = gpu and devices = 1 and vram >= 10 GB and cuda >= 12.1 and driver >= 535.86.05",
    4: "1x RTX4090",
    5: "4x RTX4090",
    10: "1x RTX4090 or 1x RTX3090 and reliability > 0.99 and region not in (cn, china, prc, vn, vietnam, 'viet nam')",
    11: "kind = gpu and devices = 4 and reliability > 0.99 and region in (tw, taiwan, se, sweden)",
    14: "kind = gpu and devices = 4 and vram >= 80 GB and cuda >= 12.4",
    22: "4x RTX4090 and reliability > 0.98 and download > 1000 Mbit/s and cuda >= 12.9",
    24: "kind = gpu and devices = 1 and vram >= 24 GB and region in (us, usa, 'united states')",
}
NO_QUERIES = {
    6: "one certain machine",
    7: "is no number",
    8: "is no number",
    9: "is no number",
    15: "no comparison can be read",
    27: "one certain machine",
    28: "is no number",
    31: "quotes are not closed",
}


def files() -> list[str]:
    return sorted(
        str(path.relative_to(SPECS))
        for path in SPECS.rglob("*")
        if path.is_file() and path.relative_to(SPECS).parts[0] != "iexec"
    )


def read(name: str, part: str = "") -> Draft:
    return read_spec((SPECS / name).read_bytes(), Path(name), part=part)


def needs_in(text: str) -> str:
    found = re.search(r'^needs = "(.*)"$', text, re.MULTILINE)
    return found[1] if found else ""


def check_written(draft: Draft, name: str, directory: Path) -> str:
    directory.mkdir(parents=True)
    made = write_job(draft, Path(name).name)
    (directory / "job.toml").write_text(made.text)
    (directory / "main.py").write_text("def main(context): ...\n")
    read_job_file(directory)
    return made.text


@pytest.mark.parametrize("name", files())
def test_every_file_is_imported_or_refused_for_a_true_reason(name: str, tmp_path: Path) -> None:
    if name in REFUSED:
        with pytest.raises(ConfigError) as caught:
            read(name)
        assert REFUSED[name] in caught.value.what
        assert caught.value.what.startswith(name)
        assert caught.value.hint
        return
    draft = read(name)
    text = check_written(draft, name, tmp_path / "job")
    unknown = [remark.place for remark in draft.left_out if "does not know what this means" in remark.how]
    assert unknown == UNKNOWN.get(name, [])
    if name in EXPECTED:
        needs, shards, cores, memory, disk = EXPECTED[name]
        spec = read_job_file(tmp_path / "job").spec
        assert needs_in(text) == needs
        assert spec.shards == shards
        for told, found in (
            (cores, spec.requirements.cores_milli),
            (memory, spec.requirements.memory_bytes),
            (disk, spec.requirements.scratch_bytes),
        ):
            assert told is None or told == found


def services() -> Iterator[tuple[str, str]]:
    for name, reason in REFUSED.items():
        if reason == SEVERAL and SPECS.is_dir():
            text = (SPECS / name).read_text()
            for service in re.findall(r"^ {2}([\w-]+):", text[text.index("\ndeployment:") :], re.MULTILINE):
                if service not in ("meow", "kittens"):
                    yield name, service


@pytest.mark.parametrize(("name", "service"), list(services()))
def test_every_service_of_several_can_be_chosen(name: str, service: str, tmp_path: Path) -> None:
    draft = read(name, part=service)
    assert draft.name == service
    check_written(draft, name, tmp_path / "job")


def test_a_cluster_of_rays_own_can_be_taken_apart() -> None:
    assert read("akash/Llama-3.1-405B-BF16_deploy.yaml", part="rayworker2").choices == (
        (8, "H100-80GB"),
        (8, "A100-80GB"),
    )


def test_more_workers_than_a_job_has_shards_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 1024 shards, and this is 1500"):
        read("skypilot/elastic_training_job.yaml", part="workers")
    assert read("skypilot/elastic_training_job.yaml", part="controller").cores_milli == 1_000


def test_every_verdict_of_prime_intellect_is_met(tmp_path: Path) -> None:
    lines = (SPECS / "primeintellect" / "requirement_strings.txt").read_text().splitlines()
    told = [line.split(maxsplit=1) for line in lines if line.startswith(("OK", "ERR"))]
    assert len(told) == 8
    for number, (verdict, text) in enumerate(told):
        if verdict == "OK":
            check_written(read_spec(text.encode(), Path("string.txt")), "string.txt", tmp_path / str(number))
        else:
            with pytest.raises(ConfigError):
                read_spec(text.encode(), Path("string.txt"))


@pytest.mark.parametrize("line", range(1, 33))
def test_every_query_is_imported_or_refused_for_a_true_reason(line: int, tmp_path: Path) -> None:
    if line in NO_QUERIES:
        with pytest.raises(ConfigError, match=NO_QUERIES[line]):
            read("vast/queries.txt", part=str(line))
        return
    text = check_written(read("vast/queries.txt", part=str(line)), "queries.txt", tmp_path / "job")
    if line in QUERIES:
        assert needs_in(text) == QUERIES[line]


def test_no_secret_of_any_file_is_written() -> None:
    for name in files():
        if name in REFUSED:
            continue
        draft = read(name)
        text = write_job(draft, Path(name).name).text
        for value in re.findall(
            r"(?:TOKEN|PASSWORD|API_KEY)=([^\s\"'#$][^\s\"'#]{3,})", (SPECS / name).read_text(), re.IGNORECASE
        ):
            assert len(value) < 8 or value not in text
            assert value not in draft.env.values()
