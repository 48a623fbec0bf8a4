"""A builder that runs as a service of its own does for a daemon what the daemon may not do itself."""

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import trio
from integration.test_environments import why_not
from kit.wheels import a_wheel, lock_line

from hansa.node.isolation.build_room import Tool, make_work
from hansa.node.isolation.trees import Trees
from hansa.node.runs.builder import ask_builder, read_tool, tool_runner
from hansa.node.runs.environments import Environments, ShippedWheel, check_environments
from hansa.node.settings.environments_config import EnvironmentsConfig


@pytest.fixture(scope="module")
def builder() -> Iterator[Path]:
    if why_not():
        pytest.skip(f"no room for tools on this machine: {why_not()}")
    with tempfile.TemporaryDirectory(prefix="hansa-builder-") as directory:
        path = Path(directory) / "socket"
        process = subprocess.Popen([sys.executable, "-m", "hansa.node.runs.builder", str(path)])
        deadline = time.monotonic() + 15
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.1)
        yield path
        process.terminate()
        process.wait()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    make_work(tmp_path / "work")
    return tmp_path / "work"


def a_tool(work: Path, *command: str, most_s: float = 30.0) -> Tool:
    return Tool(command=command, work=str(work), most_bytes=1 << 30, most_s=most_s)


def test_it_runs_what_it_is_told_and_says_how_that_went(builder: Path, work: Path) -> None:
    outcome = ask_builder(builder, a_tool(work, "/bin/sh", "-c", "echo hello; echo x > /work/file"), None)
    assert (outcome.ok, outcome.words) == (True, "hello")
    assert (work / "file").read_text() == "x\n"
    assert not ask_builder(builder, a_tool(work, "/bin/false"), None).ok
    outcome = ask_builder(builder, a_tool(work, "/bin/sleep", "60", most_s=0.5), None)
    assert "longer than" in outcome.words


def test_packages_are_installed_through_it(builder: Path, tmp_path: Path) -> None:
    trees = Trees(tmp_path / "t", quota_bytes=1 << 30)
    assert check_environments(trees, tool_runner(builder)) == ""
    config = EnvironmentsConfig(
        enabled=True, index="file:///nowhere/simple", find_links=(), quota_bytes=1 << 30, images=(), builder=builder
    )
    wheel = a_wheel(tmp_path / "w", "one", "1.0", {"one.py": ""})
    shipped = [ShippedWheel(name=wheel.name, path=wheel)]
    tree = trio.run(Environments(trees, config).bring, lock_line(wheel), shipped, b"run", "2.60.0")
    assert tree is not None
    assert (tree / "one.py").exists()


def test_who_hangs_up_ends_the_tool(builder: Path, work: Path) -> None:
    given_up = threading.Event()
    threading.Timer(1.0, given_up.set).start()
    began = time.monotonic()
    loop = "while :; do date +%s.%N > /work/alive; sleep 0.05; done"
    assert not ask_builder(builder, a_tool(work, "/bin/sh", "-c", loop), given_up).ok
    assert time.monotonic() - began < 5
    time.sleep(1.0)
    before = (work / "alive").read_text()
    time.sleep(0.4)
    assert (work / "alive").read_text() == before


def test_several_tools_run_beside_each_other(builder: Path, tmp_path: Path) -> None:
    found: list[bool] = []

    def one(number: int) -> None:
        make_work(tmp_path / str(number))
        found.append(ask_builder(builder, a_tool(tmp_path / str(number), "/bin/sleep", "1"), None).ok)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_nobody_but_its_own_user_may_ask_it(builder: Path) -> None:
    assert builder.stat().st_mode & 0o077 == 0


def test_a_builder_that_is_not_there_is_said_in_words(tmp_path: Path, work: Path) -> None:
    outcome = ask_builder(tmp_path / "nobody", a_tool(work, "/bin/true"), None)
    assert not outcome.ok
    assert "no builder answers" in outcome.words


SOUND: dict[str, Any] = asdict(a_tool(Path("/work"), "/bin/true"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        b"[]",
        b"{}",
        json.dumps({**SOUND, "more": 1}).encode(),
        json.dumps({**SOUND, "command": []}).encode(),
        json.dumps({**SOUND, "command": ["a\0b"]}).encode(),
        json.dumps({**SOUND, "command": [1]}).encode(),
        json.dumps({**SOUND, "work": "relative"}).encode(),
        json.dumps({**SOUND, "read": [["/a"]]}).encode(),
        json.dumps({**SOUND, "network": "yes"}).encode(),
        json.dumps({**SOUND, "most_s": -1}).encode(),
        json.dumps({**SOUND, "variables": {"A": 1}}).encode(),
    ],
)
def test_what_is_no_tool_is_refused_and_the_builder_lives(builder: Path, work: Path, data: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        read_tool(data)
    assert read_tool(json.dumps(SOUND).encode()).command == ("/bin/true",)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.connect(str(builder))
        control.sendall(data or b" ")
        control.settimeout(10)
        assert not json.loads(control.recv(1 << 16))["ok"]
    assert ask_builder(builder, a_tool(work, "/bin/true"), None).ok
