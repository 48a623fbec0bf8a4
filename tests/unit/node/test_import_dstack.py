"""dstack's tasks; its services, environments and fleets are no jobs."""

from decimal import Decimal
from pathlib import Path

import pytest

from hansa.node.faults import ConfigError
from hansa.node.jobs.import_formats import read_spec
from hansa.node.jobs.import_job import GIB, Draft


def read(text: str) -> Draft:
    return read_spec(text.encode(), Path(".dstack.yml"))


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.hint
    return caught.value


TASK = """type: task
name: train
nodes: 2
python: 3.12
image: me/train@sha256:{digest}
env:
  - HF_TOKEN
  - WANDB_PROJECT
  - MODEL_ID=deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
commands:
  - git clone https://github.com/huggingface/trl.git
  - uv pip install trl 'peft>=0.1'
  - python train.py
files:
  - train.py
ports:
  - 6006
resources:
  cpu: arm:8..16
  memory: 32GB..64GB
  gpu: A100,H100:40GB..80GB:2
  disk: 200GB..
  shm_size: 16GB
spot_policy: auto
max_duration: 6h30m
max_price: 4.5
retry:
  on_events: [error, interruption, no-capacity]
  duration: 4h
backends: [gcp]
regions: [us-west1]
"""


def test_everything_that_has_a_place_here_is_carried_over() -> None:
    draft = read(TASK)
    assert (draft.system, draft.name, draft.shards) == ("dstack", "train", 2)
    assert draft.choices == ((2, "A100"), (2, "H100"))
    assert draft.vram_bytes == 40 * 10**9
    assert draft.clauses == ["arch = aarch64", "vram <= 80 GiB"]
    assert (draft.cores_milli, draft.memory_bytes, draft.disk_bytes) == (8_000, 32 * GIB, 200 * GIB)
    assert draft.shared_memory_bytes == 16 * GIB
    assert draft.lease == "any"
    assert (draft.wall_ms, draft.queue_ms) == ((6 * 60 + 30) * 60_000, 4 * 3_600_000)
    assert draft.price_per_hour == Decimal("2.25")
    assert (draft.retries, draft.retry_own_errors) == (None, True)
    assert draft.packages == ("trl", "peft>=0.1")
    assert draft.env == {"MODEL_ID": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"}
    assert draft.secrets == ["HF_TOKEN"]
    assert draft.hosts[0] == "github.com:443"


def test_what_has_none_is_named() -> None:
    left = {remark.place: remark.how for remark in read(TASK).left_out}
    assert "fewer providers bid" in left["python (line 4)"]
    assert "no port of it can be reached" in left["ports (line 16)"]
    assert "Hansa has providers and no clouds" in left["backends (line 30)"]
    assert "has no value" in left["env[1] (line 8)"]
    assert "attempts are counted" in left["retry.duration (line 29)"]


@pytest.mark.parametrize(
    ("gpu", "devices", "choices", "vram_bytes", "clauses"),
    [
        ("1", 1, (), 0, []),
        ("1..8", 1, (), 0, []),
        ("..4", 1, (), 0, []),
        ("24GB", 1, (), 24 * 10**9, ["vram <= 24 GiB"]),
        ("24GB..", 1, (), 24 * 10**9, []),
        ("24GB..80GB:2", 2, (), 24 * 10**9, ["vram <= 80 GiB"]),
        ("..80GB", 1, (), 0, ["vram <= 80 GiB"]),
        ("nvidia:8", 8, (), 0, ["vendor = nvidia"]),
        ("amd:MI300X:8", 8, ((8, "MI300X"),), 0, ["vendor = amd"]),
        ("H100:80GB:4..8", 4, ((4, "H100"),), 80 * 10**9, ["vram <= 80 GiB"]),
        ("{name: [A100, L4], count: 2, memory: 20GB..}", 2, ((2, "A100"), (2, "L4")), 20 * 10**9, []),
        ("{count: {min: 2, max: 4}, compute_capability: 8.0}", 2, (), 0, ["compute >= 8.0"]),
        ("{vendor: nvidia, memory: {min: 16GB}}", 1, (), 16 * 10**9, ["vendor = nvidia"]),
    ],
)
def test_every_way_to_write_gpus_is_read(
    gpu: str, devices: int, choices: tuple[tuple[int, str], ...], vram_bytes: int, clauses: list[str]
) -> None:
    draft = read(f"type: task\nresources:\n  gpu: {gpu}\n")
    assert (draft.devices, draft.choices, draft.vram_bytes) == (devices, choices, vram_bytes)
    assert draft.clauses == clauses


def test_what_dstack_takes_by_itself_is_said() -> None:
    draft = read("type: task\ncommands: [x]\n")
    assert (draft.cores_milli, draft.memory_bytes, draft.devices) == (2_000, 8 * GIB, 0)
    assert sum("what dstack takes by itself" in remark.how for remark in draft.carried) == 2


@pytest.mark.parametrize("kind", ["service", "dev-environment", "fleet", "volume", "gateway"])
def test_what_is_no_job_is_refused_with_a_way_on(kind: str) -> None:
    fault = refusal(f"type: {kind}\nname: x\n")
    assert fault.what.startswith(f".dstack.yml:1: type: a {kind} ")
    assert fault.hint.startswith("import ")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("gpu: tpu:v5litepod-8", "nobody lends"),
        ("gpu: tenstorrent:1", "nobody lends devices of tenstorrent"),
        ("gpu: A100::2", "has an empty part"),
        ("gpu: 24GB:16GB", "says twice how much memory"),
        ("gpu: 2:4", "says twice how many"),
        ("gpu: 8..2", "from more to less"),
        ("gpu: 65", "more than one shard has"),
        ("memory: ..", "a range without ends"),
        ("memory: 8 barrels", "is no size"),
    ],
)
def test_what_is_wrong_is_refused_at_its_place(line: str, what: str) -> None:
    fault = refusal(f"type: task\nresources:\n  {line}\n")
    assert what in fault.what
    assert fault.what.startswith(".dstack.yml:3: resources.")


def test_no_more_attempts_and_no_end_are_understood() -> None:
    draft = read("type: task\nretry: false\nmax_duration: off\nspot_policy: on-demand\n")
    assert (draft.retries, draft.retry_own_errors, draft.wall_ms, draft.lease) == (0, False, 0, "firm")
    draft = read("type: task\nretry: true\n")
    assert (draft.retry_own_errors, draft.queue_ms) == (True, 3_600_000)
