"""What a job brings beside its code: named in the job file, found on disk, or refused with the place and a way out."""

import os
from pathlib import Path

import pytest

from hansa.node.faults import ConfigError
from hansa.node.jobs.job_file import JobFile, read_job_file
from hansa.proto.frames import is_safe_path

HEAD = 'name = "digits"\nentry = "train.py:train"\nshards = 2\n'


@pytest.fixture
def job(tmp_path: Path) -> Path:
    directory = tmp_path / "job"
    directory.mkdir()
    (directory / "train.py").write_text("def train(ctx): ...\n")
    (directory / "data").mkdir()
    for name in ("part-0.npy", "part-1.npy", "x.csv"):
        (directory / "data" / name).write_bytes(name.encode())
    (directory / "data" / "deep").mkdir()
    (directory / "data" / "deep" / "y.csv").write_bytes(b"y")
    return directory


def read(job: Path, text: str) -> JobFile:
    (job / "job.toml").write_text(HEAD + text)
    return read_job_file(job)


def refused(job: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(job, text)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def paths(found: JobFile) -> list[tuple[str, tuple[int, ...]]]:
    return [(file.path, file.shards) for file in found.inputs]


def test_a_file_is_found_under_its_name_and_stays_out_of_the_package(job: Path) -> None:
    found = read(job, '[inputs]\n"train.csv" = "data/x.csv"\n')
    assert paths(found) == [("train.csv", ())]
    assert found.inputs[0].source.read_bytes() == b"x.csv"
    assert found.inputs[0].size_bytes == 5
    assert found.left_out == {"data/x.csv"}


def test_a_directory_is_found_with_everything_below_it(job: Path) -> None:
    found = read(job, '[inputs]\nset = "data/"\n')
    names = ["set/deep/y.csv", "set/part-0.npy", "set/part-1.npy", "set/x.csv"]
    assert paths(found) == [(name, ()) for name in names]
    assert found.left_out == {"data"}
    assert all(is_safe_path(name) for name, _ in paths(found))


def test_a_path_may_be_absolute_and_is_then_no_matter_of_the_package(job: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.bin").write_bytes(b"1")
    found = read(job, f'[inputs]\nx = "{tmp_path}/elsewhere.bin"\n')
    assert (paths(found), found.left_out) == ([("x", ())], frozenset())
    found = read(job, '[inputs]\nx = "../elsewhere.bin"\n')
    assert (paths(found), found.left_out) == ([("x", ())], frozenset())


def test_a_shard_has_a_file_of_its_own_where_the_path_says_so(job: Path) -> None:
    found = read(job, '[inputs]\npart = "data/part-{shard}.npy"\n')
    assert paths(found) == [("part", (0,)), ("part", (1,))]
    assert [file.source.name for file in found.inputs] == ["part-0.npy", "part-1.npy"]
    assert found.left_out == {"data/part-0.npy", "data/part-1.npy"}


def test_every_shards_file_has_to_be_there(job: Path) -> None:
    (job / "data" / "part-1.npy").unlink()
    fault = refused(job, '[inputs]\npart = "data/part-{shard}.npy"\n')
    assert "job.toml:5: inputs.part:" in str(fault)
    assert "part-1.npy is not there" in str(fault)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('x = "nowhere"', "is not there"),
        ('"../x" = "data/x.csv"', "no plain relative path"),
        ('"/x" = "data/x.csv"', "no plain relative path"),
        ("x = 3", "must be text"),
        ('a = "data/x.csv"\n"a/b" = "data/x.csv"', "a is a file"),
        ('d = "data"\n"d/x.csv" = "data/x.csv"', "two inputs appear as d/x.csv"),
        ('p = "data/part-{shard}.npy"\n[inputs.q]\n', "must be text"),
    ],
)
def test_what_is_wrong_is_said_in_words(job: Path, text: str, words: str) -> None:
    assert words in str(refused(job, "[inputs]\n" + text + "\n"))


def test_nothing_is_sent_that_a_link_leads_to_outside(job: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    (job / "data" / "link").symlink_to(tmp_path / "secret")
    assert "leads out of" in str(refused(job, '[inputs]\nset = "data"\n'))


@pytest.mark.parametrize("named", ["x.csv", "sub/x.csv", "data/../x.csv", "part-{shard}"])
def test_a_link_out_of_the_job_is_no_file_of_the_job(job: Path, tmp_path: Path, named: str) -> None:
    """What a job file names looks like the job's own, and would be a file of whoever submits it."""
    (tmp_path / "secret").write_text("mine")
    (job / "x.csv").symlink_to(tmp_path / "secret")
    (job / "part-0").symlink_to(tmp_path / "secret")
    (job / "sub").symlink_to(job)
    assert "is a link out of the job's directory" in str(refused(job, f'[inputs]\nset = "{named}"\n'))
    (job / "loop").symlink_to("loop")
    assert "is not there" in str(refused(job, '[inputs]\nset = "loop"\n'))
    (job / "within.csv").symlink_to(job / "data" / "x.csv")
    assert paths(read(job, '[inputs]\nset = "within.csv"\n')) == [("set", ())]


def test_a_link_that_is_named_by_its_whole_path_is_the_users_own(job: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "x.csv").write_text("mine")
    (tmp_path / "latest").symlink_to(tmp_path / "large")
    assert paths(read(job, f'[inputs]\nset = "{tmp_path}/latest"\n')) == [("set/x.csv", ())]


@pytest.mark.parametrize(("name", "content"), [("node.key", "\0"), ("copy.json", '{"version": 3, "crypto": {}}')])
@pytest.mark.parametrize("named", ["data", "data/{name}"])
def test_a_key_is_no_input(job: Path, name: str, content: str, named: str) -> None:
    (job / "data" / name).write_text(content)
    text = f'[inputs]\nset = "{named.format(name=name)}"\n'
    assert "is a key, and a provider would get it" in str(refused(job, text))


def test_a_link_inside_is_followed_and_one_in_a_circle_is_not_for_ever(job: Path) -> None:
    (job / "data" / "again.csv").symlink_to("x.csv")
    assert ("set/again.csv", ()) in paths(read(job, '[inputs]\nset = "data"\n'))
    (job / "data" / "self").symlink_to(".")
    assert "directories deep" in str(refused(job, '[inputs]\nset = "data"\n'))


def test_what_is_no_file_is_refused(job: Path) -> None:
    os.mkfifo(job / "data" / "pipe")
    assert "neither file nor directory" in str(refused(job, '[inputs]\nset = "data"\n'))
    assert "neither file nor directory" in str(refused(job, '[inputs]\nset = "data/pipe"\n'))


def test_a_jobs_ways_out_are_written_in_the_markets_one_way(job: Path) -> None:
    found = read(job, '[network]\nallow = ["*.Example.org", "pypi.org:443", "a.example:80"]\nbytes = "3 MiB"\n')
    assert found.spec.requirements.egress == ("*.example.org:443", "a.example:80", "pypi.org:443")
    assert found.spec.requirements.features == ("egress",)
    assert found.spec.egress_bytes == 3 << 20
    without = read(job, "").spec
    assert (without.requirements.egress, without.requirements.features, without.egress_bytes) == ((), (), 0)
    fault = refused(job, '[network]\nallow = ["10.0.0.1:99999"]\n')
    assert "network.allow" in str(fault)


def test_shared_memory_and_the_time_that_a_failed_run_is_kept_are_the_jobs_choice(job: Path) -> None:
    found = read(job, '[resources]\nshared_memory = "1 GiB"\n[limits]\nkeep_failed = "1 h"\n').spec
    assert (found.shared_memory_bytes, found.keep_failed_ms) == (1 << 30, 3_600_000)
    assert read(job, "").spec.shared_memory_bytes == 192 << 20
    assert "more than the memory" in str(refused(job, '[resources]\nmemory = "1 GiB"\nshared_memory = "2 GiB"\n'))
    assert "too small" in str(refused(job, '[resources]\nshared_memory = "1 MiB"\n'))


def test_a_tilde_is_named_as_what_it_is_not(job: Path) -> None:
    fault = refused(job, '[inputs]\nx = "~/rows.csv"')
    assert "is not there" in fault.what
    assert fault.hint.startswith("write the whole path: a ~ is not read as your home")
