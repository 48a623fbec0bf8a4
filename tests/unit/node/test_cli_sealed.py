"""``hansa submit`` seals before anything leaves the command; ``hansa results`` writes what the daemon opened."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kit.memory_desk import MemoryDesk, job_view, output_view
from kit.served_desk import just, served

from hansa.node.api.http_api import build_api
from hansa.node.commands.cli import cli
from hansa.node.commands.cli_results import write_opened
from hansa.node.faults import OperatorError
from hansa.node.storage.file_lists import read_file_list
from hansa.node.storage.packages import unpack
from hansa.node.storage.sealing import SealBroken, open_sealed
from hansa.proto.sealed import sealed_size_bytes

JOB = "ab" * 32
WORDS = "nobody is to find these words "
JOB_FILE = """
name = "quiet"
entry = "train.py:train"
shards = 2

[inputs]
"all.txt" = "../all.txt"
"own.txt" = "../own-{shard}.txt"

[data]
sealed = true
"""


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def desk() -> MemoryDesk:
    return MemoryDesk()


@pytest.fixture
def data(tmp_path: Path, desk: MemoryDesk) -> Iterator[Path]:
    with served(tmp_path / "node", just(build_api(desk))) as directory:
        yield directory


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "train.py").write_text(f"# {WORDS}\ndef train(context): ...\n")
    (folder / "job.toml").write_text(JOB_FILE)
    (tmp_path / "all.txt").write_text(WORDS * 5_000)
    for number in range(2):
        (tmp_path / f"own-{number}.txt").write_text(f"{WORDS}{number}")
    return folder


def test_nothing_of_a_sealed_job_reaches_the_daemon_unsealed(job: Path, data: Path, desk: MemoryDesk) -> None:
    result = run("submit", job, "--json", "--data", data)
    assert result.exit_code == 0, result.stderr
    assert "sealed: code, inputs, states" in result.stderr
    ((spec, package),), (files,), (key,) = desk.submitted, desk.files, desk.keys
    assert files is not None
    assert key is not None
    assert key.secret().hex() not in result.stdout + result.stderr
    assert spec.requirements.features == ("sealed",)
    assert len(desk.blobs) == 5
    assert not any(WORDS.encode() in blob for blob in desk.blobs.values())

    def opened(root: bytes, *keys: object) -> bytes:
        return open_sealed(io.BytesIO(desk.blobs[root]), keys).read()  # type: ignore[arg-type]

    unpack(io.BytesIO(opened(package.root, key.shared)), job.parent / "unpacked", limit_bytes=1 << 20)
    assert WORDS in (job.parent / "unpacked" / "train.py").read_text()
    listed = read_file_list(opened(files.root, key.shared), 2)
    by_shard = {(file.path, file.shards): file.blob for file in listed.files}
    assert set(by_shard) == {("all.txt", ()), ("own.txt", (0,)), ("own.txt", (1,))}
    assert opened(by_shard["all.txt", ()].root, key.shared) == WORDS.encode() * 5_000
    for number in range(2):
        root = by_shard["own.txt", (number,)].root
        assert opened(root, *key.of_shard(number).both) == f"{WORDS}{number}".encode()
        with pytest.raises(SealBroken, match="another key"):
            opened(root, *key.of_shard(1 - number).both)
    assert spec.fetch_bytes == sealed_size_bytes(len(WORDS) * 5_000) + sealed_size_bytes(len(WORDS) + 1)


def test_each_submission_has_a_key_of_its_own(job: Path, data: Path, desk: MemoryDesk) -> None:
    for _ in range(2):
        assert run("submit", job, "--data", data).exit_code == 0
    first, second = desk.keys
    assert first != second
    assert len(desk.blobs) == 10, "the same bytes are other blobs"


def test_a_job_that_is_not_sealed_has_no_key(job: Path, data: Path, desk: MemoryDesk) -> None:
    (job / "job.toml").write_text(JOB_FILE.replace("sealed = true", "sealed = false"))
    assert run("submit", job, "--data", data).exit_code == 0
    assert desk.keys == [None]
    assert any(WORDS.encode() in blob for blob in desk.blobs.values())


def with_output(desk: MemoryDesk, content: bytes) -> None:
    blob = desk.add_blob(bytes(sealed_size_bytes(len(content))))
    desk.opened[blob.root] = content
    output = output_view("model/weights", blob, shard=1)
    desk.add(job_view(JOB, phase="succeeded", ended_ms=1, sealed=True, outputs=[output]))


def test_a_sealed_jobs_results_are_written_opened(data: Path, desk: MemoryDesk, tmp_path: Path) -> None:
    with_output(desk, WORDS.encode() * 100_000)
    out = tmp_path / "out"
    for _ in range(2):
        result = run("results", JOB, "-o", out, "--json", "--data", data)
        assert json.loads(result.stdout)["files"] == [str(out / "shard-1/model/weights")]
        assert (out / "shard-1/model/weights").read_bytes() == WORDS.encode() * 100_000
    assert not list(out.rglob(".hansa-*"))
    (out / "shard-1/model/weights").write_bytes(b"precious" + bytes(len(WORDS) * 100_000 - 8))
    again = run("results", JOB, "-o", out, "--data", data)
    assert again.exit_code == 2
    assert "is there already and is something else" in again.stderr
    assert (out / "shard-1/model/weights").read_bytes().startswith(b"precious")


@pytest.mark.parametrize("pieces", [[b"weight"], [b"weights", b"more"], []])
def test_less_or_more_than_was_sealed_leaves_no_file(tmp_path: Path, pieces: list[bytes]) -> None:
    with pytest.raises(OperatorError, match="not all of"):
        write_opened(tmp_path, 0, "weights.bin", 7, pieces)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_link_that_stands_there_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "shard-0").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"weights")
    (tmp_path / "shard-0" / "weights").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OperatorError, match="something else"):
        write_opened(tmp_path, 0, "weights", 7, [b"weights"])
    with pytest.raises(OperatorError, match="named an output"):
        write_opened(tmp_path, 0, "../../weights", 7, [b"weights"])
