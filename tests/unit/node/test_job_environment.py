"""What a job asks to run on: read, locked where the developer is, or refused in words."""

import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner
from kit.wheels import a_wheel, an_index, sha256

from hansa.node.commands.cli_jobs import lock as lock_command
from hansa.node.faults import ConfigError
from hansa.node.jobs.job_environment import LOCK_NAME, JobEnvironment
from hansa.node.jobs.job_file import JobFile, read_job_file
from hansa.node.jobs.job_lock import JobLock, lock_of
from hansa.node.runs.locks import parse_lock

HEAD = 'name = "digits"\nentry = "train.py:train"\n'
RAY = version("ray")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    directory = tmp_path / "job"
    directory.mkdir()
    (directory / "train.py").write_text("def train(ctx): ...\n")
    return directory


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An index with two versions of one package, which needs another."""
    wheels = [
        a_wheel(tmp_path / "w", "one", "1.0", {"one.py": ""}, requires=("two>=2",)),
        a_wheel(tmp_path / "w", "one", "1.5", {"one.py": ""}, requires=("two>=2", "three; sys_platform == 'win32'")),
        a_wheel(tmp_path / "w", "two", "2.0", {"two.py": ""}),
        a_wheel(tmp_path / "w", "three", "3.0", {"three.py": ""}),
        a_wheel(tmp_path / "w", "needy", "1.0", {"needy.py": ""}, requires=("ray",)),
        a_wheel(tmp_path / "w", "ray", RAY, {"ray/__init__.py": ""}),
        a_wheel(tmp_path / "w", "ray", "99.0", {"ray/__init__.py": ""}),
        a_wheel(tmp_path / "w", "msgpack", "1.1.0", {"msgpack.py": ""}),
        a_wheel(tmp_path / "w", "msgpack", "7.0", {"msgpack.py": ""}),
    ]
    address = an_index(tmp_path / "index", *wheels)
    monkeypatch.setenv("UV_DEFAULT_INDEX", address)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return iter([address])


def read(job: Path, text: str) -> JobFile:
    (job / "job.toml").write_text(HEAD + "[environment]\n" + text + "\n")
    return read_job_file(job)


def locked(found: JobFile) -> tuple[JobLock, list[str]]:
    said: list[str] = []
    lock = lock_of(found.environment, found.directory, said.append)
    assert lock is not None
    return lock, said


def names(lock: JobLock) -> dict[str, str]:
    return {package.name: package.version for package in parse_lock(lock.text)}


def test_a_job_that_asks_for_nothing_needs_nothing(job: Path) -> None:
    (job / "job.toml").write_text(HEAD)
    found = read_job_file(job)
    assert found.environment == JobEnvironment()
    assert found.spec.requirements.features == ()
    assert lock_of(found.environment, job, print) is None


def test_what_a_job_asks_for_becomes_what_its_provider_must_have(job: Path) -> None:
    digest = "ab" * 32
    text = f'dependencies = ["one>=1"]\npython = "3.12"\nimage = "docker.io/library/python@sha256:{digest}"'
    found = read(job, text)
    assert found.spec.requirements.features == ("dependencies", "image", "python3.12")
    assert found.environment.reference.endswith(digest)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('dependencies = ["one >"]', "is no requirement"),
        ('dependencies = ["-r other.txt"]', "is no requirement"),
        ('dependencies = ["one @ https://example.org/one.whl"]', "comes from an address"),
        ('dependencies = ["hansa"]', "hansa is in every sandbox already"),
        ('dependencies = ["Ray==2.1"]', f"ray {RAY} is in every sandbox, and cannot be another"),
        ('dependencies = "one"', "must be a list"),
        ('dependencies = ["one"]\nlock = "x.lock"', "there is no file"),
        ('wheels = "wheels"\ndependencies = ["one"]', "there is no directory"),
        ('python = "2.7"', "is not one of the allowed words"),
        ('image = "python:3.11"', "must name its registry and its digest"),
        ('image = "docker.io/library/python:3.11"', "must name its registry and its digest"),
        ('image = "image.tar"', "there is no"),
        ('image = "data"', "neither an OCI archive nor an OCI layout"),
        ('pythons = "3.11"', "unknown key"),
    ],
)
def test_what_is_wrong_is_said_in_words(job: Path, text: str, words: str) -> None:
    (job / "data").mkdir()
    with pytest.raises(ConfigError) as caught:
        read(job, text)
    assert words in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        'image = "link"',
        'lock = "link"',
        'wheels = "linked"\ndependencies = ["one"]',
        'wheels = "w"\ndependencies = ["one"]',
    ],
)
def test_a_link_out_of_the_job_is_nothing_of_the_jobs(job: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "mine").mkdir()
    mine = a_wheel(tmp_path / "mine", "own", "1", {"own.py": ""})
    (job / "link").symlink_to(mine)
    (job / "linked").symlink_to(mine.parent)
    (job / "w").mkdir()
    (job / "w" / mine.name).symlink_to(mine)
    with pytest.raises(ConfigError, match="is a link out of the job's directory"):
        read(job, text)


def test_rays_own_version_may_be_named(job: Path) -> None:
    assert read(job, f'dependencies = ["ray=={RAY}", "one"]').environment.dependencies


def test_a_lock_is_made_once_and_again_when_the_dependencies_change(job: Path, index: object) -> None:
    found = read(job, 'dependencies = ["one>=1"]')
    lock, said = locked(found)
    assert names(lock) == {"one": "1.5", "two": "2.0", "three": "3.0"}
    assert said == [f"locked 3 packages in {job / LOCK_NAME}"]
    text = (job / LOCK_NAME).read_text()
    assert locked(found) == (lock, [])
    assert (job / LOCK_NAME).read_text() == text
    again, said = locked(read(job, 'dependencies = ["one==1.0"]'))
    assert names(again) == {"one": "1.0", "two": "2.0"}
    assert said
    _, said = locked(read(job, 'dependencies = ["one==1.0"]\npython = "3.12"'))
    assert said


def test_markers_of_other_platforms_stay_in_the_lock_as_markers(job: Path, index: object) -> None:
    lock, _ = locked(read(job, 'dependencies = ["one>=1"]'))
    by_name = {package.name: package for package in parse_lock(lock.text)}
    assert by_name["three"].marker == 'sys_platform == "win32"'
    assert all(package.hashes for package in by_name.values())


def test_ray_is_locked_in_the_sandboxes_version_and_not_sent(job: Path, index: object) -> None:
    lock, _ = locked(read(job, 'dependencies = ["needy", "msgpack"]'))
    assert f"ray=={RAY}" in (job / LOCK_NAME).read_text()
    assert names(lock) == {"needy": "1.0", "msgpack": "1.1.0"}, "and nothing that Ray could not share"


def test_what_cannot_be_had_is_said_in_one_line(job: Path, index: object) -> None:
    with pytest.raises(ConfigError) as caught:
        locked(read(job, 'dependencies = ["one>=9"]'))
    assert "cannot be locked" in str(caught.value)
    assert "one" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (job / LOCK_NAME).exists()


def test_wheels_of_the_jobs_own_are_locked_and_only_those_that_are_used_are_sent(job: Path, index: object) -> None:
    own = a_wheel(job / "wheels", "own_thing", "0.1", {"own_thing.py": ""}, requires=("two",))
    a_wheel(job / "wheels", "unused", "0.1", {"unused.py": ""})
    found = read(job, 'dependencies = ["own-thing"]\nwheels = "wheels/"')
    lock, _ = locked(found)
    assert names(lock) == {"own-thing": "0.1", "two": "2.0"}
    assert lock.wheels == (own,)
    assert sha256(own) in lock.text
    assert found.left_out == {"wheels"}
    a_wheel(job / "wheels", "own_thing", "0.1", {"own_thing.py": "NEW = 1"}, requires=("two",))
    changed, said = locked(read(job, 'dependencies = ["own-thing"]\nwheels = "wheels/"'))
    assert said
    assert sha256(own) in changed.text


def test_a_lock_from_elsewhere_is_used_as_it_is_or_refused_with_its_line(job: Path) -> None:
    (job / "other.lock").write_text(f"two==2.0 --hash=sha256:{'a' * 64}\n")
    lock, said = locked(read(job, 'lock = "other.lock"'))
    assert (names(lock), said) == ({"two": "2.0"}, [])
    assert read(job, 'lock = "other.lock"').spec.requirements.features == ("dependencies",)
    (job / "other.lock").write_text("two==2.0\n")
    with pytest.raises(ConfigError, match=r"other\.lock: lock line 1 has no hash"):
        locked(read(job, 'lock = "other.lock"'))


@pytest.mark.parametrize("name", ["uv.toml", "pyproject.toml"])
@pytest.mark.parametrize("beside", [True, False])
def test_what_configures_uv_beside_a_job_or_above_it_has_no_say(
    job: Path, index: object, tmp_path: Path, name: str, *, beside: bool
) -> None:
    """The job may be somebody else's, and the directory above it everybody's."""
    mine = tmp_path / "mine"
    mine.write_text("precious")
    table = "[pip]" if name == "uv.toml" else "[tool.uv.pip]"
    told = f'{table}\noutput-file = "{mine}"\nemit-index-url = true\n'
    ((job if beside else job.parent) / name).write_text(told)
    lock, _ = locked(read(job, 'dependencies = ["one>=1"]'))
    assert mine.read_text() == "precious"
    assert names(lock) == {"one": "1.5", "two": "2.0", "three": "3.0"}


def test_wheels_are_found_from_wherever_the_command_is_given(
    job: Path, index: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_wheel(job / "wheels", "own_thing", "0.1", {"own_thing.py": ""})
    monkeypatch.chdir(job.parent)
    lock, _ = locked(read(Path(job.name), 'dependencies = ["own-thing"]\nwheels = "wheels/"'))
    assert names(lock) == {"own-thing": "0.1"}


def test_a_lock_is_never_written_through_a_link(job: Path, index: object, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (job / LOCK_NAME).symlink_to(mine)
    lock, _ = locked(read(job, 'dependencies = ["one>=1"]'))
    assert mine.read_text() == "precious"
    assert not (job / LOCK_NAME).is_symlink()
    assert parse_lock((job / LOCK_NAME).read_text()) == parse_lock(lock.text)
    assert {path.name for path in job.iterdir()} == {"job.toml", "train.py", LOCK_NAME}


def test_a_lock_that_cannot_be_written_is_said_in_words(job: Path, index: object) -> None:
    (job / LOCK_NAME).mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        locked(read(job, 'dependencies = ["one>=1"]'))
    assert {path.name for path in job.iterdir()} == {"job.toml", "train.py", LOCK_NAME}


def test_a_pipe_in_the_place_of_a_lock_is_waited_for_by_nobody(job: Path, index: object) -> None:
    os.mkfifo(job / LOCK_NAME)
    lock, _ = locked(read(job, 'dependencies = ["one>=1"]'))
    assert parse_lock((job / LOCK_NAME).read_text()) == parse_lock(lock.text)


def test_hansa_lock_takes_the_newest_that_fit(job: Path, index: object) -> None:
    read(job, 'dependencies = ["one"]')
    shown = CliRunner().invoke(lock_command, [str(job)])
    assert shown.exit_code == 0, shown.output
    assert "one 1.5" in shown.output
    assert (job / LOCK_NAME).exists()


def test_the_examples_lock_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails after a new Ray: ``hansa lock examples/patches``."""
    directory = Path(__file__).resolve().parents[3] / "examples" / "patches"
    monkeypatch.setenv("UV_OFFLINE", "1")
    found = read_job_file(directory)
    said: list[str] = []
    assert lock_of(found.environment, found.directory, said.append)
    assert not said
    assert [file.path for file in found.inputs] == ["digits.csv.gz"]
