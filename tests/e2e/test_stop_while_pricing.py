"""A daemon that is told to stop while the owner's pricing program runs does not wait for it, and leaves none behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.sandbox_harness import need_sandbox
from kit.marked_processes import living, new_mark, nothing_lives

SLEEPS_S = 300
# The longest that a config file may give a program is shorter than what a slow machine needs to stop.
DAEMON = f"""
import sys
from dataclasses import replace
from pathlib import Path
from hansa.node.settings.config import load_config
from hansa.node.daemon.node_process import run
config = load_config(Path(sys.argv[1]))
pricing = replace(config.provider.pricing, program_timeout_ms={SLEEPS_S * 1000})
run(replace(config, provider=replace(config.provider, pricing=pricing)), as_json=True)
"""


def hansa(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hansa", *arguments]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user of this machine can read."""
    need_sandbox()
    made = Path(f"/var/tmp/hansa-stop-{os.getpid()}-{time.monotonic_ns()}")
    made.mkdir(mode=0o755)
    yield made
    shutil.rmtree(made)


def wait_until_it_lives(mark: str) -> None:
    deadline = time.monotonic() + 60
    while not living(mark):
        assert time.monotonic() < deadline, "the program was never started"
        time.sleep(0.1)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_stops_while_its_pricing_program_sleeps_and_nothing_is_left(place: Path, how: signal.Signals) -> None:
    data, mark = place / "node", new_mark()
    program = place / "price"
    program.write_text(f"#!/bin/sh\n/bin/sh -c 'sleep {SLEEPS_S}' {mark} &\n/bin/sh -c 'sleep {SLEEPS_S}' {mark}\n")
    program.chmod(0o755)
    wishes = ("--provider", "--cpu-slots", "1", "--listen", "/ip4/127.0.0.1/tcp/0", "--metrics-port", "0")
    subprocess.run(hansa("init", "--data", str(data), *wishes, "--json"), capture_output=True, check=True, timeout=60)
    config = data / "config.toml"
    text = re.sub(r"(?m)^program = \[\]", f'program = ["{program}"]', config.read_text())
    config.write_text(text)
    command = [sys.executable, "-c", DAEMON, str(data)]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    asking = None
    try:
        assert daemon.stdout is not None
        assert '"ready": true' in daemon.stdout.readline()
        asking = subprocess.Popen(
            hansa("node", "price", "--data", str(data)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until_it_lives(mark)
        began = time.monotonic()
        daemon.send_signal(how)
        daemon.wait(60)
        assert time.monotonic() - began < 60
        nothing_lives(mark)
    finally:
        for process in (daemon, asking):
            if process is not None:
                process.kill()
                process.communicate()
        for number in living(mark):
            os.kill(number, signal.SIGKILL)
