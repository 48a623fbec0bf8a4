"""Bacalhau's jobs, in YAML and JSON, with keys in any case."""

import json
from pathlib import Path

import pytest

from hansa.node.faults import ConfigError
from hansa.node.jobs.import_formats import read_spec
from hansa.node.jobs.import_job import Draft


def read(text: str, **values: str) -> Draft:
    return read_spec(text.encode(), Path("job.yaml"), values=values)


def refusal(text: str, **values: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text, **values)
    assert caught.value.hint
    return caught.value


JOB = """Name: train-{{.steps}}
Type: batch
Namespace: default
Count: 3
Constraints:
  - Key: gpu
    Operator: "="
    Values: ["A100"]
Tasks:
  - Name: main
    Engine:
      Type: docker
      Params:
        Image: ghcr.io/me/train:1
        Entrypoint: [/bin/bash]
        Parameters: ["-c", "python train.py --steps {{.steps}}"]
        EnvironmentVariables:
          - STEPS={{.steps}}
          - API_KEY=abc
          - MODE=fast
    InputSources:
      - Target: /data
        Source: {Type: s3, Params: {Bucket: b}}
    Publisher:
      Type: s3
      Params:
        Bucket: {{.bucket}}
    ResultPaths:
      - Name: results
        Path: /results
    Resources:
      CPU: "500m"
      Memory: "640G"
      Disk: 1GiB
      GPU: "8"
    Network:
      Type: HTTP
      Domains: [data.example.org, .example.com]
    Timeouts:
      ExecutionTimeout: 7200
      QueueTimeout: 3600
"""


def test_everything_that_has_a_place_here_is_carried_over() -> None:
    draft = read(JOB, steps="100")
    assert (draft.system, draft.name, draft.shards) == ("Bacalhau", "train-100", 3)
    assert (draft.devices, draft.cores_milli) == (8, 500)
    assert (draft.memory_bytes, draft.disk_bytes) == (640 * 10**9, 1 << 30)
    assert (draft.wall_ms, draft.queue_ms) == (7_200_000, 3_600_000)
    assert draft.image == "ghcr.io/me/train:1"
    assert draft.env == {"STEPS": "100", "MODE": "fast"}
    assert draft.secrets == ["API_KEY"]
    assert draft.hosts == ("data.example.org:443", "example.com:443")


def test_a_template_that_nobody_filled_in_is_told_and_no_value() -> None:
    draft = read(JOB)
    assert draft.env == {"MODE": "fast"}
    assert any("--set steps=VALUE" in remark.how for remark in draft.left_out)
    assert not any(remark.how == "parameters.env.STEPS" for remark in draft.carried)
    assert any("--set steps=VALUE" in line for line in draft.to_write)


def test_a_template_where_a_number_belongs_asks_for_one() -> None:
    fault = refusal(JOB.replace('GPU: "8"', "GPU: {{.gpus}}"))
    assert "is still the template {{.gpus}}" in fault.what
    assert fault.hint == "give it a value: --set gpus=VALUE"
    assert read(JOB.replace('GPU: "8"', "GPU: {{.gpus}}"), gpus="4").devices == 4


def test_a_value_for_no_template_is_refused() -> None:
    assert refusal(JOB, stepz="1").hint == "it has steps, bucket"


def test_what_has_none_is_named() -> None:
    left = {remark.place: remark for remark in read(JOB, steps="1", bucket="b").left_out}
    assert "own disk" in left["Tasks[0].InputSources[0] (line 22)"].how
    assert "ctx.outputs" in left["Tasks[0].ResultPaths[0] (line 29)"].how
    assert "published nowhere" in left["Tasks[0].Publisher (line 24)"].how
    assert "compare labels" in left["Constraints (line 5)"].how


def test_json_and_small_letters_are_the_same_job() -> None:
    job = {
        "name": "a",
        "type": "batch",
        "count": 1,
        "tasks": [{"name": "m", "engine": {"type": "docker", "params": {"Image": "x"}}, "resources": {"gpu": "2"}}],
    }
    assert read(json.dumps(job, indent="\t")).devices == 2


def test_a_job_on_every_node_is_one_shard() -> None:
    draft = read("Name: a\nType: ops\nTasks:\n  - Engine: {Type: docker, Params: {Image: x}}\n")
    assert draft.shards == 1
    assert any(remark.what == "ops" for remark in draft.left_out)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Name: a\nType: batch\nTasks:\n  - Engine: {Type: noop}\n", "noop is an engine that does nothing"),
        ("Name: a\nType: batch\nTasks:\n  - Engine: {Type: wasm}\n", "wasm is WebAssembly"),
        ("Name: a\nType: batch\nTasks:\n  - Engine: {Type: flibble}\n", '"flibble" is no engine'),
        ("Name: a\nType: service\nTasks:\n  - Engine: {Type: docker}\n", "runs until it is stopped"),
        ("Name: a\nType: daemon\nTasks:\n  - Engine: {Type: docker}\n", "runs until it is stopped"),
        ("Name: a\nType: other\nTasks:\n  - Engine: {Type: docker}\n", "is no type of job"),
        ("Name: a\nType: batch\nTasks:\n  - Engine: {Type: docker, Params: {}}\n", "Image is missing"),
        ("Name: a\nType: batch\nTasks: []\n", "has 0 tasks"),
        ("Name: a\nTasks: []\n", "Type is missing"),
    ],
)
def test_what_is_no_job_is_refused(text: str, what: str) -> None:
    assert what in refusal(text).what
