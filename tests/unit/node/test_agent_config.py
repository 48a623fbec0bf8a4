"""An agent's data directory: what may stand in it, and what belongs to the daemon's."""

import pytest

from hansa.node.agents.agent_config import (
    DaemonPlace,
    agent_config_text,
    load_agent_config,
    own_name,
    parse_agent_config,
    write_daemon,
)
from hansa.node.agents.agent_keys import check_name, load_identity
from hansa.node.faults import ConfigError

WISHES = {"gpus": None, "cpu_slots": 2, "cpu_cores_per_slot": "0.5", "memory_per_slot": "1 GiB", "launcher": ""}


def test_a_joined_directory_reads_back_as_it_was_written(tmp_path):
    place = DaemonPlace(name="rack-2", host="192.0.2.7", port=4011, pin=bytes(32))
    identity = load_identity(tmp_path)
    write_daemon(tmp_path, place)
    (tmp_path / "agent.toml").write_text(agent_config_text(**{**WISHES, "gpus": ("GPU-1", "1")}))
    config = load_agent_config(tmp_path)
    assert (config.daemon, config.identity, config.launcher) == (place, identity, None)
    assert config.provider.enabled
    assert config.provider.gpus == ("GPU-1", "1")
    assert (config.provider.cpu_slots, config.provider.cpu_cores_milli_per_slot) == (2, 500)


@pytest.mark.parametrize("cores", ["x", "0", "1.2345", "1e3"])
def test_wishes_that_are_none_are_found_before_anything_is_written(tmp_path, cores):
    with pytest.raises(ConfigError):
        parse_agent_config(agent_config_text(**{**WISHES, "cpu_cores_per_slot": cores}), tmp_path / "agent.toml")


@pytest.mark.parametrize(
    "line",
    [
        '[provider]\nprice_per_hour = "1"',
        "[provider]\nenabled = false",
        '[node]\nregion = "x"',
        "[sandbox]\nrequire = false",
    ],
)
def test_what_the_daemon_decides_does_not_belong_here(tmp_path, line):
    with pytest.raises(ConfigError):
        parse_agent_config(line, tmp_path / "agent.toml")


def test_a_file_that_was_emptied_is_refused_and_does_not_lend_every_device(tmp_path):
    with pytest.raises(ConfigError, match=r"agent\.toml: is empty") as caught:
        parse_agent_config("", tmp_path / "agent.toml")
    assert "hansa init" not in caught.value.hint


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "a", "host": "h", "port": 1, "pin": "AAAA"}'])
def test_a_broken_directory_is_said_to_be_one(tmp_path, text):
    load_identity(tmp_path)
    (tmp_path / "agent.toml").write_text(agent_config_text(**WISHES))
    with pytest.raises(ConfigError, match="no agent lives"):
        load_agent_config(tmp_path)
    (tmp_path / "daemon.json").write_text(text)
    with pytest.raises(ConfigError):
        load_agent_config(tmp_path)


def test_every_machine_has_a_name(monkeypatch):
    for host in ("Rack_2.Example.org", "ärger", "-", "x" * 80, ""):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        check_name(own_name())
