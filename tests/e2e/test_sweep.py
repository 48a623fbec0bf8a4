"""The example of pools of tasks, over real daemons and real sandboxes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from kit.market import await_job, job_of, running_market, submit

from hansa.node.commands.demo_nodes import DemoNodes
from hansa.proto.blob import BlobRef

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def output(nodes: DemoNodes, job: str, path: str) -> Any:
    """The bytes of one file of a job's results."""
    (found,) = [entry for entry in job_of(nodes, job)["outputs"] if entry["path"] == path]
    ref = BlobRef(root=bytes.fromhex(found["root"]), size_bytes=found["size_bytes"])
    return b"".join(nodes.buyer.daemon.blob(ref))


@pytest.mark.long
def test_a_sweep_and_its_inference_are_done_once_by_two_shards_and_paid_by_the_item(tmp_path: Path) -> None:
    for example in ("digits", "sweep"):
        shutil.copytree(EXAMPLES / example, tmp_path / example)
    file = tmp_path / "sweep" / "job.toml"
    assert "cores = 2 " in file.read_text()
    file.write_text(file.read_text().replace("cores = 2 ", "cores = 1 "))  # two providers share this machine
    with running_market("0.30", "0.35") as nodes:
        job = submit(nodes, tmp_path / "sweep")
        ended = await_job(nodes, job, 180)
        assert ended["phase"] == "succeeded", ended["reason"]
        told = [json.loads(output(nodes, job, f"sweep-{shard}.json")) for shard in (0, 1)]
        assert told[0]["tried"] == told[1]["tried"], "they met"
        assert len(told[0]["tried"]) == 12
        assert min(told[0]["tried"].values()) > 0.5, "nobody's item was left out"
        assert told[0]["of"] + told[1]["of"] == 1797
        assert (told[0]["right"] + told[1]["right"]) / 1797 > 0.9
        rows = [line for shard in (0, 1) for line in output(nodes, job, f"labels-{shard}.csv").decode().splitlines()]
        assert [int(line.split(",")[0]) for line in rows] == list(range(1797)), "each image once, in order"
        assert [shard["step"] for shard in ended["shards"]] == [6 + 9, 6 + 9], "a settled item is a step"
