"""The doctor calls bad what the daemon would refuse, and tells no secret while it says so."""

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from hansa.node.commands import doctor
from hansa.node.commands.cli import cli
from hansa.node.commands.first_setup import Wishes, set_up
from hansa.node.settings.config import Config, load_config


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    set_up(tmp_path / "node", Wishes(metrics_port=0))
    return load_config(tmp_path / "node")


def test_keys_that_open_are_well_and_are_not_told(config: Config) -> None:
    name, well, words = doctor._keys(config, daemon_runs=False)
    assert (name, well) == ("keys", True)
    for file in (config.node_key, config.password_file):
        assert file.read_text().strip() not in words


@pytest.mark.parametrize("name", ["node.key", "account.password", "account.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe"], ids=["empty", "no text"])
def test_a_key_file_without_a_key_is_bad(config: Config, name: str, content: bytes) -> None:
    (config.data_dir / name).write_bytes(content)
    _, well, words = doctor._keys(config, daemon_runs=False)
    assert not well
    assert "\n" not in words


@pytest.mark.parametrize("name", ["node.key", "account.password", "account.json"])
def test_a_lost_key_file_is_bad_and_named(config: Config, name: str) -> None:
    (config.data_dir / name).unlink()
    _, well, words = doctor._keys(config, daemon_runs=False)
    assert not well
    assert name in words


@pytest.mark.parametrize(("name", "well"), [("node.key", True), ("account.password", True), ("account.json", False)])
def test_what_a_running_daemon_has_as_a_credential_is_not_missed(config: Config, name: str, well: bool) -> None:
    (config.data_dir / name).unlink()
    assert doctor._keys(config, daemon_runs=True)[1] is well


def test_a_running_daemon_is_no_word_for_an_account_that_is_lost_with_the_nodes_key(config: Config) -> None:
    config.node_key.unlink()
    config.keystore.unlink()
    assert not doctor._keys(config, daemon_runs=True)[1], (
        "no credential holds the account: it is a file here or nowhere"
    )


def test_the_examination_looks_at_the_keys(config: Config) -> None:
    config.node_key.write_bytes(b"")
    found = {name: well for name, well, _ in doctor.examine(config.data_dir)}
    assert found["config"]
    assert found["keys"] is False


def test_what_a_tool_said_on_many_lines_stands_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Using CPython 3.11\nerror: Failed to install\n  cause: Permission denied"
    monkeypatch.setattr("hansa.node.commands.doctor.examine", lambda _data: [("packages", False, said)])
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1
    assert result.stdout == "BAD  packages Using CPython 3.11 error: Failed to install cause: Permission denied\n"


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.ENOSPC, "make room on the disk"), (errno.EROFS, "able to write below")]
)
def test_a_disk_that_takes_nothing_is_a_finding_and_the_others_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    data = tmp_path / "node"
    set_up(data, Wishes(provides=True, gpus=(), cpu_slots=1, cpu_cores_per_slot=1, metrics_port=0))

    def refuse(path: str, mode: int = 0o777) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(doctor, "_sandbox", lambda _config: [])
    monkeypatch.setattr("tempfile._os.mkdir", refuse)
    findings = {name: (ok, words) for name, ok, words in doctor.examine(data)}
    ok, words = findings["packages"]
    assert not ok
    assert os.strerror(number) in words
    assert hint in words
    assert findings["devices"][0]
