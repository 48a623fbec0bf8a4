"""`hansa agent` as its owner meets it: what it says to mistakes, and whether the page about it names what there is."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from hansa.node.agents import agent_setup
from hansa.node.agents.agent_keys import parse_line
from hansa.node.agents.agent_setup import invite
from hansa.node.commands.cli import cli
from hansa.node.commands.first_setup import Wishes, set_up
from hansa.node.faults import ConfigError, NoSandbox
from hansa.node.isolation.preflight import SandboxReport
from hansa.node.settings.config import load_config

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "clusters.md").read_text()


def hansa(*arguments, typed=None):
    return subprocess.run(
        [sys.executable, "-m", "hansa", *arguments],
        input=typed, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def node(tmp_path):
    """A node that listens for machines."""
    set_up(tmp_path / "node", Wishes(metrics_port=0))
    file = tmp_path / "node" / "config.toml"
    file.write_text(file.read_text().replace('\nlisten = ""', '\nlisten = "127.0.0.1:4011"'))
    return tmp_path / "node"


def test_a_node_that_does_not_listen_for_machines_invites_none(tmp_path):
    set_up(tmp_path / "node", Wishes(metrics_port=0))
    said = hansa("agent", "invite", "--data", str(tmp_path / "node"))
    assert said.returncode == 2
    assert "does not listen for other machines" in said.stderr
    assert "[cluster]" in said.stderr


def test_an_invitation_names_the_place_where_machines_reach_the_node(node):
    assert parse_line(invite(node, address="", lasts="15 min")).host == "127.0.0.1"
    line = parse_line(invite(node, address="[fd00::7]:99", lasts="1 min"))
    assert (line.host, line.port) == ("fd00::7", 99)
    for address, lasts in (("x", "1 min"), ("x:0", "1 min"), (":9", "1 min"), ("x:y", "1 min"), ("x:9", "soon")):
        with pytest.raises(ConfigError):
            invite(node, address=address, lasts=lasts)


def test_an_agent_that_can_confine_nobody_does_not_begin(monkeypatch, tmp_path):
    config = SimpleNamespace(data_dir=tmp_path, launcher="")
    no = SandboxReport(available=False, tier="none", reason="user namespaces are forbidden here")
    monkeypatch.setattr(agent_setup, "start_logging", lambda **_how: None)
    monkeypatch.setattr(agent_setup, "load_agent_config", lambda _data_dir: config)
    monkeypatch.setattr(agent_setup, "check_sandbox", lambda **_how: no)
    with pytest.raises(NoSandbox, match="user namespaces are forbidden here"):
        agent_setup.run_agent(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_joining_with_a_mistake_is_one_line_and_a_hint(node, tmp_path):
    line = invite(node, address="127.0.0.1:1", lasts="15 min")  # nobody listens there
    for arguments, words in (
        (["x"], "no join line"),
        ([line], "nobody answers"),
        ([line, "--name", "../x"], "a machine's name"),
        ([line, "--cpu-cores-per-slot", "none"], "cpu_cores_per_slot"),
    ):
        said = hansa("agent", "join", *arguments, "--data", str(tmp_path / "agent"))
        assert said.returncode == 2, said
        assert words in said.stderr
        assert "hint:" in said.stderr
        assert "Traceback" not in said.stderr
    assert not list((tmp_path / "agent").glob("invitation*")), "the invitation's key does not stay"


def test_the_line_is_read_from_where_nobody_else_sees_it(node, tmp_path):
    line = invite(node, address="127.0.0.1:1", lasts="15 min")  # nobody listens there, which is said after it was read
    (tmp_path / "line").write_text(f"On the other machine:\nwhich asks for this line:\n  {line}\n")
    data = ("--data", str(tmp_path / "agent"))
    for said in (
        hansa("agent", "join", *data, typed=line + "\n"),
        hansa("agent", "join", *data, "--line-file", "-", typed=line),
        hansa("agent", "join", *data, "--line-file", str(tmp_path / "line")),
    ):
        assert said.returncode == 2
        assert "nobody answers" in said.stderr
        assert "warning" not in said.stderr
    as_argument = hansa("agent", "join", line, *data)
    assert "other users of this machine can read the line" in as_argument.stderr
    for said in (hansa("agent", "join", *data, typed=""), hansa("agent", "join", *data, "--line-file", "/nowhere")):
        assert said.returncode == 2
        assert "hint:" in said.stderr
        assert "Traceback" not in said.stderr


def test_a_terminal_is_asked_and_shows_nothing_of_the_line(node, tmp_path):
    line = invite(node, address="127.0.0.1:1", lasts="15 min")
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "hansa", "agent", "join", "--data", str(tmp_path / "agent")]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = b""
    while b"invite" not in shown:
        shown += os.read(ours, 4096)
    os.write(ours, line.encode() + b"\n")
    with contextlib.suppress(OSError):  # which is how a terminal tells that nobody is there any more
        while more := os.read(ours, 4096):
            shown += more
    assert process.wait(30) == 2
    os.close(ours)
    assert b"nobody answers" in shown
    assert line.encode()[-40:] not in shown


def test_running_where_nothing_was_joined_says_how_to(tmp_path):
    said = hansa("agent", "run", "--data", str(tmp_path))
    assert said.returncode == 2
    assert "hansa agent join" in said.stderr


def test_machines_are_listed_and_removed_without_a_daemon(node):
    assert hansa("agent", "list", "--data", str(node)).stdout.startswith("No machine is enrolled")
    said = hansa("agent", "remove", "rack-2", "--data", str(node))
    assert (said.returncode, "no machine is called rack-2" in said.stderr) == (2, True)


@pytest.mark.parametrize("value", ["x", "1.2.3.4", ":1", "h:0", "h:70000", "h:x"])
def test_a_place_to_listen_that_is_none_is_refused(node, value):
    file = node / "config.toml"
    file.write_text(file.read_text().replace("127.0.0.1:4011", value))
    with pytest.raises(ConfigError, match="listen"):
        load_config(node)


def commands_of(page):
    """Every command of ours that the page shows, with what stands for a value put in."""
    found = re.findall(r"^ {4}hansa (agent [^#\n]+)", page, re.MULTILINE)
    found += [found for found in re.findall(r"hansa (agent join .*)$", page, re.MULTILINE) if "/lines" in found]
    found += [" ".join(re.split(r",\s*", one)[1:]) for one in re.findall(r"command: \[(hansa.*)\]", page)]
    return found


def test_the_page_shows_commands_that_there_are():
    shown = commands_of(PAGE)
    assert len(shown) >= 7
    for line in shown:
        words = shlex.split(line)
        command: click.Command = cli
        while isinstance(command, click.Group):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words, resilient_parsing=False).close()


def test_the_manifest_on_the_page_is_one():
    yaml = pytest.importorskip("yaml")
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    spec = yaml.safe_load(text)["spec"]
    pod = spec["template"]["spec"]
    claims = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    volumes = {volume["name"] for volume in pod["volumes"]} | claims
    for container in (*pod["initContainers"], *pod["containers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    # What the agent keeps must outlive its pod, and what the first container writes the second one reads.
    (agent,) = pod["containers"]
    data = agent["command"][agent["command"].index("--data") + 1]
    assert {"name": "data", "mountPath": data} in agent["volumeMounts"]
    assert f"--data {data}" in pod["initContainers"][0]["command"][-1]
