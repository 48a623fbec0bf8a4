"""SkyPilot's tasks."""

from decimal import Decimal
from pathlib import Path

import pytest

from hansa.node.faults import ConfigError
from hansa.node.jobs.import_formats import read_spec
from hansa.node.jobs.import_job import GIB, Draft


def read(text: str, part: str = "") -> Draft:
    return read_spec(text.encode(), Path("task.yaml"), part=part)


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.hint
    return caught.value


TASK = """name: train
num_nodes: 4
workdir: ~/code
resources:
  infra: aws/us-east-1
  accelerators: {A100-80GB: 8, H100: 4}
  cpus: 32+
  memory: 128+
  disk_size: 512
  use_spot: true
  max_hourly_cost: 16
  image_id: docker:me/train:1
  ports: 8080
  job_recovery:
    strategy: EAGER_NEXT_REGION
    max_restarts_on_errors: 2
envs:
  EPOCHS: 3
  HF_TOKEN:
secrets:
  DATASET: abc
file_mounts:
  /data: s3://bucket/data
  /small: ./small
setup: |
  pip install -r requirements.txt "einops>=0.8" ray
run: |
  python train.py
service:
  replicas: 2
unheard_of: 1
"""


def test_everything_that_has_a_place_here_is_carried_over() -> None:
    draft = read(TASK)
    assert (draft.system, draft.name, draft.shards) == ("SkyPilot", "train", 4)
    assert draft.choices == ((8, "A100-80GB"), (4, "H100"))
    assert draft.devices == 8
    assert (draft.cores_milli, draft.memory_bytes, draft.disk_bytes) == (32_000, 128 * GIB, 512 * GIB)
    assert draft.lease == "any"
    assert draft.price_per_hour == Decimal(2)
    assert draft.image == "me/train:1"
    assert (draft.retries, draft.retry_own_errors) == (2, True)
    assert draft.env == {"EPOCHS": "3"}
    assert draft.packages == ("einops>=0.8",), "Ray is every sandbox's own, and -r names a file"


def test_what_has_none_is_named() -> None:
    left = {remark.place: remark.how for remark in read(TASK).left_out}
    assert "Hansa has providers and no clouds" in left["resources.infra (line 5)"]
    assert "no port of it can be reached" in left["resources.ports (line 13)"]
    assert "a bucket is not mounted" in left["file_mounts./data (line 23)"]
    assert "below ctx.inputs" in left["file_mounts./small (line 24)"]
    assert "does not know what this means" in left["unheard_of (line 31)"]
    assert "serves nobody" in left["service (line 29)"]
    assert "every provider" in left["secrets.DATASET (line 21)"]
    assert "DATASET" in read(TASK).secrets
    assert "abc" not in repr(read(TASK))


@pytest.mark.parametrize(
    ("written", "choices"),
    [
        ("L4", ((1, "L4"),)),
        ("A100:8", ((8, "A100"),)),
        ("[A100:8, 'L4:1', V100-32GB]", ((8, "A100"), (1, "L4"), (1, "V100-32GB"))),
        ("{A100, L4}", ((1, "A100"), (1, "L4"))),
        ("{'H100:8', 'A100:8'}", ((8, "H100"), (8, "A100"))),
        ("{RTX4090: 2}", ((2, "RTX4090"),)),
    ],
)
def test_every_way_to_write_accelerators_is_read(written: str, choices: tuple[tuple[int, str], ...]) -> None:
    assert read(f"resources:\n  accelerators: {written}\n").choices == choices


def test_alternatives_keep_their_order() -> None:
    text = (
        "resources:\n  cpus: 4\n  ordered:\n    - infra: aws\n      accelerators: H100:8\n    - accelerators: A100:8\n"
    )
    draft = read(text)
    assert draft.choices == ((8, "H100"), (8, "A100"))
    assert any(remark.place.startswith("resources.ordered[0].infra") for remark in draft.left_out)
    assert read(text.replace("ordered", "any_of")).choices == ((8, "H100"), (8, "A100"))


def test_alternatives_without_gpus_leave_those_of_the_resources() -> None:
    text = "resources:\n  accelerators: A100:8\n  any_of:\n    - infra: aws\n    - infra: gcp\n"
    assert read(text).choices == ((8, "A100"),)


def test_on_demand_is_a_firm_lease() -> None:
    assert read("resources:\n  accelerators: L4\n  use_spot: false\n").lease == "firm"


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("tpu-v5e-8", "is no GPU, and nobody lends it here"),
        ("A100:0.5", "is part of a GPU"),
        ("A100:many", "is no GPU with a number from 1 to 64"),
        ("A100:65", "is no GPU with a number from 1 to 64"),
        ("Flibble:1", "no GPU is known by any of these names"),
    ],
)
def test_what_nobody_lends_is_refused(written: str, what: str) -> None:
    assert what in refusal(f"resources:\n  accelerators: {written}\n").what


def test_several_tasks_are_a_question() -> None:
    text = "name: both\nexecution: parallel\n---\nname: a\nrun: x\n---\nname: b\nnum_nodes: 3\nrun: y\n"
    assert refusal(text).hint == "choose one with --part a"
    assert read(text, part="b").shards == 3
    with pytest.raises(ConfigError, match="has no task c"):
        read(text, part="c")


def test_more_nodes_than_shards_are_refused() -> None:
    assert "at most 1024 shards" in refusal("num_nodes: 1500\nrun: x\n").what


def test_a_repository_as_the_code_is_left_to_the_user() -> None:
    draft = read("workdir:\n  url: https://me:pw@github.com/a/b.git\n  ref: x\nrun: x\n")
    assert any(remark.what == "github.com:443" for remark in draft.left_out)
    assert "pw" not in repr(draft)
