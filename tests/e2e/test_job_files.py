"""Jobs that bring more than code, over real daemons and real sandboxes."""

import json
import os
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
from integration.test_furnishing import an_image
from kit.images import an_archive, layer_of
from kit.market import asked, await_job, job_of, running_market
from kit.wheels import a_wheel, an_index

from hansa.node.commands.cli_jobs import submit_job
from hansa.node.commands.demo_nodes import DemoNodes

JOB = """
name = "reading"
entry = "read.py:read"
shards = {shards}

[resources]
kind = "cpu"
cores = 0.5
memory = "600 MiB"
disk = "64 MiB"

[limits]
wall = "5 min"

[tender]
bids = "2 s"
meter = "1 s"
"""


def write_job(directory: Path, code: str, more: str, shards: int = 1) -> Path:
    directory.mkdir()
    (directory / "job.toml").write_text(JOB.format(shards=shards) + textwrap.dedent(more))
    (directory / "read.py").write_text(textwrap.dedent(code))
    return directory


def result(nodes: DemoNodes, job: str, shard: int) -> Any:
    """What a shard wrote to result.json."""
    from hansa.proto.blob import BlobRef

    (output,) = [entry for entry in job_of(nodes, job)["outputs"] if entry["shard"] == shard]
    ref = BlobRef(root=bytes.fromhex(output["root"]), size_bytes=output["size_bytes"])
    return json.loads(b"".join(nodes.buyer.daemon.blob(ref)))


READ = """
import json
import os
import shutil


def read(ctx):
    found = {}
    for folder, _, names in os.walk(ctx.inputs):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                data = file.read()
            found[os.path.relpath(path, ctx.inputs)] = [len(data), data[:4].hex()]
    try:
        open(os.path.join(ctx.inputs, "common/a"), "wb")
        found["writable"] = True
    except OSError:
        pass
    found["package"] = sorted(os.listdir("/job/code"))
    ctx.report(step=1)
    (ctx.outputs / "result.json").write_text(json.dumps(found))
"""


def test_each_shard_reads_its_own_inputs_and_they_are_sent_once(tmp_path: Path) -> None:
    with running_market("0.30", "0.35") as nodes:
        inputs = '\n[inputs]\ncommon = "data/common"\n"own.bin" = "data/part-{shard}.bin"\n'
        directory = write_job(tmp_path / "job", READ, inputs, shards=2)
        (directory / "data" / "common").mkdir(parents=True)
        (directory / "data" / "common" / "a").write_bytes(b"aaaa")
        large = os.urandom(5 << 20)
        (directory / "data" / "part-0.bin").write_bytes(large)
        (directory / "data" / "part-1.bin").write_bytes(b"1111")
        said: list[str] = []
        job = submit_job(nodes.buyer.daemon, directory, say=said.append)
        ended = await_job(nodes, job, 120)
        assert ended["phase"] == "succeeded", ended["reason"]
        assert result(nodes, job, 0) == {
            "common/a": [4, b"aaaa".hex()],
            "own.bin": [len(large), large[:4].hex()],
            "package": ["job.toml", "read.py"],
        }
        assert result(nodes, job, 1)["own.bin"] == [4, b"1111".hex()]
        assert said[0] == "3 files beside the package, 5 MiB"
        assert "kept out of the package: data/common" in said
        submit_job(nodes.buyer.daemon, directory, say=said.append)
        assert "3 files beside the package, 5 MiB, 5 MiB of it there already" in said


IMPORT = """
import json


def read(ctx):
    import fetched
    import shipped

    ctx.report(step=1)
    found = {"fetched": fetched.NAME, "shipped": shipped.NAME, "where": fetched.__file__}
    try:
        open(fetched.__file__, "w")
        found["writable"] = True
    except OSError:
        pass
    (ctx.outputs / "result.json").write_text(json.dumps(found))
"""


def test_a_job_runs_with_its_own_packages_and_the_second_time_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = a_wheel(tmp_path / "w", "fetched", "1.2", {"fetched.py": "NAME = 'from the index'\n"})
    index = an_index(tmp_path / "index", fetched)
    monkeypatch.setenv("UV_DEFAULT_INDEX", index)
    settings = {'index = "https://pypi.org/simple"': f'index = "{index}"'}
    with running_market("0.30", settings=settings) as nodes:
        if "dependencies" not in asked(nodes.buyer, "/v1/providers")["providers"][0]["features"]:
            pytest.skip("no room for tools on this machine: hansa doctor says why")
        environment = '\n[environment]\ndependencies = ["fetched>=1", "shipped"]\nwheels = "wheels"\n'
        directory = write_job(tmp_path / "job", IMPORT, environment)
        a_wheel(directory / "wheels", "shipped", "0.1", {"shipped.py": "NAME = 'from the job'\n"})
        said: list[str] = []
        for number in range(2):
            job = submit_job(nodes.buyer.daemon, directory, say=said.append)
            ended = await_job(nodes, job, 120)
            assert ended["phase"] == "succeeded", ended["reason"]
            found = result(nodes, job, 0)
            assert (found["fetched"], found["shipped"]) == ("from the index", "from the job")
            assert "writable" not in found
            lines = [line["text"] for line in nodes.buyer.daemon.lines(f"/v1/jobs/{job}/logs", follow="0")]
            (ready,) = [line for line in lines if "packages are ready" in line]
            begun = [number for number, line in enumerate(lines) if "packages: installing" in line]
            assert begun, "a buyer who waits for gigabytes would see nothing"
            assert begun[0] < lines.index(ready)
            took_s = float(ready.split()[-2])
            print(f"packages ready after {took_s} s, submission {number + 1}")
            assert number == 0 or took_s < 1.0
        assert said[0].startswith("locked 2 packages in")
        assert not any(line.startswith("locked") for line in said[1:])


IN_IMAGE = """
import json


def read(ctx):
    import numpy

    ctx.report(step=1)
    with open("/etc/image-release") as file:
        found = {"release": file.read(), "numpy": numpy.__file__}
    try:
        open("/etc/image-release", "w")
        found["writable"] = True
    except OSError:
        pass
    (ctx.outputs / "result.json").write_text(json.dumps(found))
"""


def test_a_job_runs_on_the_image_that_it_ships(tmp_path: Path) -> None:
    with running_market("0.30") as nodes:
        if "image" not in asked(nodes.buyer, "/v1/providers")["providers"][0]["features"]:
            pytest.skip("images cannot be unpacked on this machine: skopeo and umoci are needed")
        directory = write_job(tmp_path / "job", IN_IMAGE, '\n[environment]\nimage = "image.tar"\n')
        (tmp_path / "root").mkdir()
        root = an_image(tmp_path / "root")
        an_archive(directory / "image.tar", [layer_of(root)])
        shutil.rmtree(directory / "image.layout")
        said: list[str] = []
        job = submit_job(nodes.buyer.daemon, directory, say=said.append)
        ended = await_job(nodes, job, 120)
        assert ended["phase"] == "succeeded", ended["reason"]
        found = result(nodes, job, 0)
        assert found["release"] == "an image"
        assert found["numpy"].startswith("/usr/local/lib/")
        assert "writable" not in found
        assert "kept out of the package: image.tar" in said
