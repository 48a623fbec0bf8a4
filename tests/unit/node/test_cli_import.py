"""``hansa import`` as its users type it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hansa.node.commands.cli import cli
from hansa.node.jobs.job_file import read_job_file

TASK = """type: task
name: train
nodes: 2
env:
  - HF_TOKEN=hf_abcdefgh
  - MODE=fast
commands:
  - python train.py
ports:
  - 6006
resources:
  gpu: H100:8
  memory: 64GB
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.dstack.yml"
    path.write_text(TASK)
    return path


def run(*arguments: str | Path, stdin: str = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["import", *map(str, arguments)], input=stdin, prog_name="hansa")
    return result.exit_code, result.stdout, result.stderr


def test_a_job_file_is_written_and_everything_is_said(task: Path, tmp_path: Path) -> None:
    code, out, err = run(task, "--output", tmp_path / "job")
    assert (code, err) == (0, "")
    assert "carried over" in out
    assert "not carried over" in out
    assert "ports (line 9)" in out
    assert "because a job runs to its end and serves nobody" in out
    assert "main.py: def main(context)" in out
    assert f"hansa submit {tmp_path / 'job'}" in out
    assert "hf_abcdefgh" not in out
    (tmp_path / "job" / "main.py").write_text("def main(context): ...\n")
    assert read_job_file(tmp_path / "job").spec.shards == 2


def test_without_a_directory_the_file_is_printed_by_itself(task: Path, tmp_path: Path) -> None:
    code, out, err = run(task)
    assert code == 0
    assert "carried over" in err
    (tmp_path / "job.toml").write_text(out)
    (tmp_path / "main.py").write_text("def main(context): ...\n")
    assert read_job_file(tmp_path).spec.name == "train"


def test_a_file_that_is_there_is_never_replaced(task: Path, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("mine")
    code, out, err = run(task, "-o", tmp_path)
    assert (code, out) == (2, "")
    assert "is there already" in err
    assert (tmp_path / "job.toml").read_text() == "mine"


def test_a_refusal_is_one_line_with_its_place_and_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text("type: service\nname: x\n")
    code, out, err = run(path)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"hansa: {path}:1: type: a service stays up and answers requests, and a job runs to its end",
        "hint: import a task, such as a batch of requests",
    ]


def test_json_has_all_of_it(task: Path) -> None:
    code, out, err = run(task, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["system"] == "dstack"
    assert told["written"] is None
    assert 'needs = "8x H100"' in told["job_toml"]
    assert {"place": "resources.gpu (line 12)", "what": "8 x H100", "how": "resources.needs: 8x H100"} in told[
        "carried"
    ]
    assert any(one["what"] == "HF_TOKEN" for one in told["left_out"])
    assert told["to_write"][0].startswith("main.py")


def test_a_query_comes_from_standard_input() -> None:
    code, out, _ = run("-", stdin="gpu_name=RTX_4090 num_gpus=2\n")
    assert code == 0
    assert 'needs = "2x RTX4090"' in out


def test_the_system_can_be_named(task: Path) -> None:
    code, _, err = run(task, "--format", "akash")
    assert code == 2
    assert "version is missing" in err


def test_a_template_is_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("Name: a-{{.n}}\nType: batch\nTasks:\n  - Engine: {Type: docker, Params: {Image: x}}\n")
    assert 'name = "a-7"' in run(path, "--set", "n=7")[1]
    assert run(path, "--set", "n")[0] == 2


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_what_cannot_be_read_is_said(name: str, tmp_path: Path) -> None:
    code, _, err = run(tmp_path / name)
    assert code == 2
    assert "hint:" in err


def test_a_strangers_controls_reach_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text('type: task\nname: "a\\e[31mb"\nunheard: 1\n"\\e[2Jkey": 1\n')
    code, out, err = run(path)
    assert code == 0
    assert "\x1b" not in out + err
