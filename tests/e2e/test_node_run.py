"""A daemon as a service manager sees it: one line when it is ready, a log of JSON, health, and a clean end."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from hansa.node.commands.demo_nodes import free_ports


def hansa(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hansa", *arguments]


def test_a_daemon_says_when_it_is_ready_tells_its_health_and_ends_when_told(tmp_path: Path) -> None:
    data = tmp_path / "node"
    (port,) = free_ports(1)
    made = subprocess.run(
        hansa("init", "--data", str(data), "--listen", "/ip4/127.0.0.1/tcp/0", "--metrics-port", str(port), "--json"),
        capture_output=True,
        check=True,
        timeout=60,
    )
    process = subprocess.Popen(
        hansa("node", "run", "--data", str(data), "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["ready"] is True
        assert ready["account"] == json.loads(made.stdout)["account"]
        assert Path(ready["api"]).stat().st_mode & 0o777 == 0o600
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            assert answer.read() == b"ok\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b"hansa_engine_events_total" in answer.read()
        second = subprocess.run(
            hansa("node", "run", "--data", str(data)), capture_output=True, check=False, timeout=60, text=True
        )
        assert second.returncode == 2, "a second daemon on one directory is the operator's mistake"
        assert f"another daemon (process {process.pid}) runs on {data}" in second.stderr, (
            "before it has touched anything"
        )
        assert "hint:" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    for line in errors.splitlines():
        json.loads(line)


@pytest.mark.parametrize("taken", ["listen", "metrics"])
def test_a_port_that_another_program_has_is_told_in_a_line_with_a_hint(tmp_path: Path, taken: str) -> None:
    data = tmp_path / "node"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        listen, metrics = (port, 0) if taken == "listen" else (0, port)
        ports = ("--listen", f"/ip4/127.0.0.1/tcp/{listen}", "--metrics-port", str(metrics))
        subprocess.run(hansa("init", "--data", str(data), *ports), capture_output=True, check=True, timeout=60)
        ended = subprocess.run(
            hansa("node", "run", "--data", str(data)), capture_output=True, check=False, timeout=60, text=True
        )
    assert ended.returncode == 2
    assert str(port) in ended.stderr
    assert "hint:" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("lost", ["account.json", "account.password", "node.key"])
def test_a_lost_file_is_named_with_what_its_owner_can_do(tmp_path: Path, lost: str) -> None:
    data = tmp_path / "node"
    ports = ("--listen", "/ip4/127.0.0.1/tcp/0", "--metrics-port", "0")
    subprocess.run(hansa("init", "--data", str(data), *ports), capture_output=True, check=True, timeout=60)
    (data / lost).unlink()
    ended = subprocess.run(
        hansa("node", "run", "--data", str(data)), capture_output=True, check=False, timeout=60, text=True
    )
    assert ended.returncode == 2
    assert lost in ended.stderr
    assert "hint:" in ended.stderr
    assert "--password-file" not in ended.stderr, "node run has no such option"
