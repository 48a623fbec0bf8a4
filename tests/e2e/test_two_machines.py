"""One provider with two machines, each a network of its own, and a buyer: enrolled, sold as one, lost in words."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import pytest

from hansa.node.api.cli_client import DaemonClient
from hansa.node.isolation import process_tree
from hansa.node.isolation.overlay_device import why_no_overlay
from hansa.node.isolation.preflight import check_sandbox

pytestmark = pytest.mark.long
JOB = """
name = "{name}"
entry = "job.py:main"
workers = {workers}

[resources]
kind = "cpu"
devices = {devices}
cores = 0.5
memory = "{memory}"
disk = "64 MiB"
{more}

[limits]
wall = "3 min"
silence = "30 s"
retries = 0

[budget]
total = "1.00"

[tender]
bids = "1.5 s"
meter = "1 s"
"""
CODE = """
import fcntl, socket, struct, time
import numpy as np

def address():
    for name in (b"gang0", b"lo"):
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                return socket.inet_ntoa(fcntl.ioctl(one.fileno(), 0x8915, struct.pack("256s", name))[20:24])
        except OSError:
            pass

def reached(host, port):
    try:
        socket.create_connection((host, port), timeout=1).close()
        return "reached"
    except OSError as error:
        return type(error).__name__

def main(ctx):
    print(f"worker {ctx.worker} is at {address()}, the daemon is {reached('192.0.2.1', PORT)}", flush=True)
    state = {"w": np.full(4, float(ctx.worker), dtype=np.float32)}
    while ctx.round < ROUNDS:
        state = ctx.sync(state)
        ctx.report(step=ctx.round, mean=float(state["w"][0]))
        time.sleep(PAUSE)
    (ctx.outputs / f"mean-{ctx.worker}.txt").write_text(str(float(state["w"][0])))
"""


def hansa(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hansa", *arguments]


def called(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


class TwoMachines:
    """Two hosts with a cable between them; on each, programs are started in its own network."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hosts = tuple(f"hansa-{os.getpid()}-{letter}" for letter in "ab")
        self.running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        one, two = self.hosts
        cable = f"hv{os.getpid()}"
        for host in self.hosts:
            called("ip", "netns", "add", host)
        called("ip", "link", "add", f"{cable}a", "type", "veth", "peer", "name", f"{cable}b")
        for host, end, address in ((one, "a", "192.0.2.1/24"), (two, "b", "192.0.2.2/24")):
            called("ip", "link", "set", f"{cable}{end}", "netns", host, "name", "eth0")
            for command in (f"addr add {address} dev eth0", "link set eth0 up", "link set lo up"):
                called("ip", "-n", host, *command.split())
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
        for host in self.hosts:
            subprocess.run(["ip", "netns", "del", host], check=False, timeout=30)

    def on(self, number: int, *arguments: str) -> list[str]:
        # Not `ip netns exec`: that mounts /sys anew, and the control groups are gone.
        return ["nsenter", f"--net=/run/netns/{self.hosts[number]}", *hansa(*arguments)]

    def start(self, number: int, *arguments: str) -> subprocess.Popen[str]:
        log = (self.directory / f"{len(self.running)}.log").open("w")
        with log:
            process = subprocess.Popen(self.on(number, *arguments), stdout=log, stderr=log, text=True)
        self.running.append(process)
        return process

    def ask(self, number: int, *arguments: str) -> Any:
        said = subprocess.run(
            self.on(number, *arguments, "--json"), check=False, capture_output=True, text=True, timeout=60
        )
        assert said.returncode == 0, said.stderr + self.logs()
        return json.loads(said.stdout)

    def ask_lines(self, number: int, *arguments: str) -> str:
        return subprocess.run(
            self.on(number, *arguments), check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.directory.glob("*.log")))

    def await_that(self, true: Any, within_s: float, what: str) -> Any:
        deadline = time.monotonic() + within_s
        while not (found := true()):
            assert time.monotonic() < deadline, f"not within {within_s} s: {what}\n{self.logs()}"
            time.sleep(0.2)
        return found


def need_rights() -> None:
    why = why_no_overlay()
    if why is not None:
        pytest.skip(f"no networks of their own can be made here: {why}")
    if not check_sandbox().available:
        pytest.skip("no sandbox can be made here")
    for program in ("ip", "nsenter"):
        if not any(os.access(Path(folder, program), os.X_OK) for folder in os.environ["PATH"].split(":")):
            pytest.skip(f"the program {program} is missing")
    probe = f"hansa-{os.getpid()}-probe"
    if subprocess.run(["ip", "netns", "add", probe], check=False, capture_output=True, timeout=30).returncode:
        pytest.skip("network namespaces cannot be named here")
    subprocess.run(["ip", "netns", "del", probe], check=False, timeout=30)


def change(file: Path, *pairs: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new, 1)
    file.write_text(text)


@pytest.fixture
def two(tmp_path: Path) -> Any:
    need_rights()
    with TwoMachines(tmp_path) as machines:
        yield machines


def a_market(two: TwoMachines) -> tuple[Path, Path]:
    """A provider with one slot on each machine and a buyer; gives the two data directories on the first machine."""
    provider, buyer = two.directory / "provider", two.directory / "buyer"
    listen = "/ip4/127.0.0.1/tcp/4001"
    slots = ("--cpu-slots", "1", "--metrics-port", "0", "--listen", listen)
    two.ask(0, "init", "--provider", *slots, "--data", str(provider))
    change(
        provider / "config.toml",
        ('\nlisten = ""\n', '\nlisten = "0.0.0.0:4011"\n'),
        ('\nannounce = ""\n', '\nannounce = "192.0.2.1:4011"\n'),
        ("cpu_cores_per_slot = 2", "cpu_cores_per_slot = 1"),
        ('memory_per_slot = "4 GiB"', 'memory_per_slot = "2 GiB"'),
        ('gpus = "all"', "gpus = []"),
    )
    two.start(0, "node", "run", "--data", str(provider))
    two.await_that((provider / "api.sock").exists, 40, "the provider is up")
    node = two.ask(0, "init", "--listen", "/ip4/127.0.0.1/tcp/4002", "--metrics-port", "0", "--data", str(buyer))
    assert node["account"]
    address = f"{listen}/p2p/{asked(provider)['peer_id']}"
    change(buyer / "config.toml", ("bootstrap = []", f'bootstrap = ["{address}"]'))
    two.start(0, "node", "run", "--data", str(buyer))
    two.await_that((buyer / "api.sock").exists, 40, "the buyer is up")
    return provider, buyer


def asked(data: Path, path: str = "/v1/node") -> Any:
    daemon = DaemonClient(data)
    try:
        return daemon.get(path)
    finally:
        daemon.close()


def join(two: TwoMachines, provider: Path) -> subprocess.Popen[str]:
    line = two.ask(0, "agent", "invite", "--data", str(provider))["line"]
    assert line.startswith("192.0.2.1:4011/")
    agent = two.directory / "agent"
    wishes = ("--no-gpus", "--cpu-slots", "1", "--cpu-cores-per-slot", "1", "--memory-per-slot", "2 GiB")
    (two.directory / "line").write_text(line)
    joined = two.ask(
        1, "agent", "join", "--line-file", str(two.directory / "line"), "--name", "beta", *wishes, "--data", str(agent)
    )
    assert joined["name"] == "beta"
    process = two.start(1, "agent", "run", "--data", str(agent))
    two.await_that(lambda: len(asked(provider)["devices"]) == 2, 60, "both machines are one inventory")
    return process


def submit(two: TwoMachines, buyer: Path, name: str, *, rounds: int, pause: float, **facts: Any) -> str:
    folder = two.directory / name
    folder.mkdir()
    facts = {"workers": 2, "devices": 2, "memory": "2 GiB", "more": "several_machines = true", **facts}
    (folder / "job.toml").write_text(JOB.format(name=name, **facts))
    code = CODE.replace("ROUNDS", str(rounds)).replace("PAUSE", str(pause)).replace("PORT", "4011")
    (folder / "job.py").write_text(code)
    found: str = two.ask(0, "submit", str(folder), "--data", str(buyer))["job"]
    return found


def await_end(two: TwoMachines, buyer: Path, job: str) -> Any:
    def view() -> Any:
        found = asked(buyer, f"/v1/jobs/{job}")
        return found if found["phase"] in ("succeeded", "failed", "cancelled") else None

    return two.await_that(view, 90, "the job ends")


def await_steps(two: TwoMachines, buyer: Path, job: str) -> None:
    two.await_that(lambda: asked(buyer, f"/v1/jobs/{job}")["round"] > 2, 60, "the job has done some rounds")


def test_two_machines_are_sold_as_one_and_a_lost_one_is_told_in_words(two: TwoMachines) -> None:
    provider, buyer = a_market(two)
    agent = join(two, provider)
    machines = two.ask(0, "agent", "list", "--data", str(provider))["machines"]
    assert [(one["name"], one["connected"], one["devices"], one["gangs"]) for one in machines] == [
        ("beta", True, 1, True)
    ]
    # One run over both machines: its workers exchange what they have, and reach nobody else.
    job = submit(two, buyer, "both", rounds=3, pause=0.1)
    view = await_end(two, buyer, job)
    logs = two.ask_lines(0, "logs", job, "--data", str(buyer))
    assert view["phase"] == "succeeded", view["reason"] + logs + two.logs()
    for worker in (0, 1):
        assert f"worker {worker} is at 10.77.0.{worker + 1}, the daemon is OSError" in logs, logs
    # The second machine is lost in the middle: its agent and everything below it, at once.
    job = submit(two, buyer, "lost", rounds=1000, pause=0.2)
    await_steps(two, buyer, job)
    there = [agent.pid, *process_tree.descendants(agent.pid)]
    assert len(there) > 6
    os.kill(agent.pid, signal.SIGKILL)
    view = await_end(two, buyer, job)
    assert view["phase"] == "failed"
    assert "machine beta was lost" in json.dumps(view), view
    two.await_that(lambda: len(asked(provider)["devices"]) == 1, 10, "its devices are withdrawn")
    two.await_that(lambda: not [pid for pid in there if alive(pid)], 15, "nothing is left there")
    # And the provider goes on with what it has.
    job = submit(two, buyer, "alone", rounds=2, pause=0.1, devices=1, workers=1, memory="1 GiB", more="")
    view = await_end(two, buyer, job)
    assert view["phase"] == "succeeded", view


def alive(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_killed_daemon_leaves_nothing_on_any_machine(two: TwoMachines) -> None:
    provider, buyer = a_market(two)
    agent = join(two, provider)
    job = submit(two, buyer, "killed", rounds=1000, pause=0.2)
    await_steps(two, buyer, job)
    daemon = two.running[0]
    everything = [*process_tree.descendants(daemon.pid), *process_tree.descendants(agent.pid)]
    sandboxes = [pid for pid in everything if pid != agent.pid]
    assert len(sandboxes) > 12
    daemon.kill()
    two.await_that(lambda: not [pid for pid in sandboxes if alive(pid)], 20, "nothing is left anywhere")
    assert agent.poll() is None, "the agent dials again"
