"""Whatever of an execution is killed, at whichever level: it is told in words, nothing is left, and the meter stops."""

import os
import re
import signal
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from integration.sandbox_harness import need_sandbox
from kit.market import asked, await_job, await_that, books, job_of, kill, running_market, submit
from kit.traces import Traces, command_of, descriptors_of, mounts_of, name_of

from hansa.node.commands.demo_nodes import DemoNode, DemoNodes
from hansa.node.isolation import process_tree

pytestmark = pytest.mark.long
EVERY = 10
STEP_S = 0.12
JOB = """
name = "counting"
entry = "count.py:count"
shards = 1

[parameters]
steps = {steps}
every = {every}
pause = {pause}

[resources]
kind = "cpu"
cores = 0.5
memory = "700 MiB"
disk = "64 MiB"

[limits]
wall = "4 min"
stall = "6 s"
silence = "{silence}"
retries = {retries}

[budget]
total = "1.00"

[tender]
bids = "1 s"
meter = "1 s"
"""
CODE = """
import time


def count(ctx):
    state = ctx.restore()
    step = 0 if state is None else int(state["step"])
    print("begins after", step, flush=True)
    while step < ctx.parameters["steps"]:
        time.sleep(ctx.parameters["pause"])
        step += 1
        print("step", step, flush=True)
        ctx.report(step=step)
        if step % ctx.parameters["every"] == 0:
            ctx.checkpoint({"step": step})
    (ctx.outputs / "end.txt").write_text(str(step))
"""


@dataclass
class Stage:
    nodes: DemoNodes
    traces: Traces
    directory: Path

    def begin(self, *, steps: int = 100_000, retries: int = 0, silence: str = "20 s") -> "Running":
        """Submit a job and let it come past its first checkpoint."""
        text = JOB.format(steps=steps, every=EVERY, pause=STEP_S, retries=retries, silence=silence)
        (self.directory / "job.toml").write_text(text)
        (self.directory / "count.py").write_text(textwrap.dedent(CODE))
        self.traces.forget()
        await_that(self.is_idle, 30, "every device is free")
        submitted_s = time.monotonic()
        job = submit(self.nodes, self.directory)

        def is_underway() -> bool:
            view = job_of(self.nodes, job)
            assert view.get("phase") not in ("failed", "succeeded"), view["reason"]
            return checkpoint_of(self.nodes, job) >= EVERY

        await_that(is_underway, 60, "the first checkpoint is at the buyer's")
        provider = next(node for node in self.nodes.providers if node.account == shard_of(self.nodes, job)["provider"])
        return Running(self, job, provider, submitted_s)

    def is_idle(self) -> bool:
        return all(states_of(node) == ["free"] for node in self.nodes.providers)


@dataclass
class Running:
    stage: Stage
    job: str
    provider: DemoNode
    submitted_s: float

    @property
    def nodes(self) -> DemoNodes:
        return self.stage.nodes

    @property
    def pids(self) -> list[int]:
        return self.stage.traces.look(self.provider)

    def victim(self, kind: str) -> int:
        """The process of this kind below the run's provider."""
        daemon, guard, launcher, *others = self.pids
        fixed = {"daemon": daemon, "guard": guard, "launcher": launcher}
        if kind in fixed:
            return fixed[kind]
        wrappers = [pid for pid in others if name_of(pid) == "bwrap"]
        found = {
            "outer bubblewrap": wrappers[:1],
            "the sandbox's init": wrappers[-1:],
            "the runner": [pid for pid in others if b"hansa.worker.runner" in command_of(pid) and pid not in wrappers],
            "Ray's GCS": [pid for pid in others if name_of(pid) == "gcs_server"],
            "raylet": [pid for pid in others if name_of(pid) == "raylet"],
            "Ray's agent": [pid for pid in others if b"dashboard/agent.py" in command_of(pid)],
            "a Ray worker": [pid for pid in others if name_of(pid).startswith("ray::ShardWorke")],
        }[kind]
        assert found, [(pid, name_of(pid)) for pid in others]
        return found[0]

    def most_it_may_cost(self, until_s: float) -> Decimal:
        """What its provider could charge for all the time since the job was submitted, and a second."""
        price = Decimal(self.provider.price_per_hour)
        return price * Decimal(until_s - self.submitted_s + 1) / 3600

    def paid(self) -> Decimal:
        view = job_of(self.nodes, self.job)
        return sum((Decimal(entry["vouched"]) for entry in view["spend"]["by_provider"]), Decimal(0))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    need_sandbox()
    places = {"TMPDIR": tmp_path_factory.mktemp("temporary"), "HANSA_SCRATCH": tmp_path_factory.mktemp("scratch")}
    before = {name: os.environ.get(name) for name in places}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        os.environ.update({name: str(place) for name, place in places.items()})
        tempfile.tempdir = None
        with running_market("0.30", "0.36") as nodes:
            traces = Traces(places["TMPDIR"], places["HANSA_SCRATCH"])
            traces.usual = {path for node in nodes.providers for path in traces.files(node)}  # the market's directory
            yield Stage(nodes, traces, tmp_path_factory.mktemp("job"))
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        tempfile.tempdir = None
        for number, handler in handlers.items():
            signal.signal(number, handler)


def shard_of(nodes: DemoNodes, job: str) -> dict[str, Any]:
    shards: list[dict[str, Any]] = job_of(nodes, job).get("shards") or [{}]
    return shards[0]


def checkpoint_of(nodes: DemoNodes, job: str) -> int:
    return (shard_of(nodes, job).get("checkpoint") or {"step": 0})["step"]


def states_of(node: DemoNode) -> list[str]:
    return [device["state"] for device in (asked(node, "/v1/node") or {"devices": []})["devices"]]


def log_of(running: Running) -> str:
    path = Path(running.nodes.buyer.made.config.data_dir, "jobs", running.job, "shard-0.jsonl")
    text = path.read_text() if path.exists() else ""
    return "".join(re.findall(r'"text": "((?:[^"\\]|\\.)*)"', text)).replace("\\n", "\n")


WORDS = {
    "Ray's GCS": ("Ray was lost",),
    "raylet": ("Ray was lost", "a worker died"),
    "Ray's agent": ("Ray was lost", "a worker died"),
    "a Ray worker": ("a worker died",),
    "the runner": ("its sandbox was lost",),
    "the sandbox's init": ("its sandbox was lost",),
    "outer bubblewrap": ("its sandbox was lost",),
    "launcher": ("its sandbox was lost",),
    "guard": ("its sandbox was lost",),
}


@pytest.mark.parametrize("kind", WORDS)
def test_what_is_killed_is_told_to_the_buyer_and_leaves_nothing(stage: Stage, kind: str) -> None:
    running = stage.begin()
    provider = running.provider
    pids = running.pids
    assert len(pids) > 8, "there is something to leave"
    os.kill(running.victim(kind), signal.SIGKILL)
    killed_s = time.monotonic()
    view = await_job(running.nodes, running.job, 45)
    assert view["phase"] == "failed"
    assert any(words in view["reason"] for words in WORDS[kind]), view["reason"]
    kept = {pid for pid in pids[:3] if kind not in ("launcher", "guard") or pid == pids[0]}
    for pid in kept:
        stage.traces.seen.pop(pid, None)
    assert stage.traces.left(provider) == {}
    await_that(lambda: states_of(provider) == ["free"], 20, "the device is free again")
    check_the_meter_stopped(running, killed_s)
    check_the_daemon_is_as_before(provider)


def test_a_runner_that_is_stopped_in_its_tracks_is_ended_for_it(stage: Stage) -> None:
    running = stage.begin()
    pids = running.pids
    os.kill(running.victim("the runner"), signal.SIGSTOP)
    stopped_s = time.monotonic()
    view = await_job(running.nodes, running.job, 45)
    assert view["phase"] == "failed"
    assert "no progress" in view["reason"] or "silent" in view["reason"], view["reason"]
    for pid in pids[:3]:
        stage.traces.seen.pop(pid, None)
    assert stage.traces.left(running.provider) == {}
    await_that(lambda: states_of(running.provider) == ["free"], 20, "the device is free again")
    # It was leased for six seconds more, in which it did no step: they are not charged.
    check_the_meter_stopped(running, stopped_s)


def check_the_meter_stopped(running: Running, died_s: float) -> None:
    """Nothing is charged for what came after the death, then or later."""
    metered = metered_by(running.provider)
    assert running.paid() <= running.most_it_may_cost(died_s)
    time.sleep(1.5)  # more than a metering interval
    assert metered_by(running.provider) == metered
    assert Decimal(books(running.provider)["sum"]) == Decimal(books(running.nodes.buyer)["sum"]) == 0


def metered_by(provider: DemoNode) -> Decimal:
    return sum((Decimal(channel["metered"]) for channel in books(provider)["channels"]), Decimal(0))


def check_the_daemon_is_as_before(provider: DemoNode) -> None:
    """It holds nothing of the run's, nor does its launcher see a mount that we do not."""
    assert provider.process is not None
    daemon = provider.process.pid
    held = descriptors_of(daemon)
    assert not [kind for kind in held if "deleted" in kind or "/runs/" in kind], held
    for pid in process_tree.descendants(daemon):
        assert mounts_of(pid) <= mounts_of(os.getpid())


@pytest.mark.parametrize("kind", ["a Ray worker", "launcher"])
def test_a_lost_run_goes_on_from_its_last_checkpoint(stage: Stage, kind: str) -> None:
    running = stage.begin(steps=45, retries=2)
    os.kill(running.victim(kind), signal.SIGKILL)
    view = await_job(running.nodes, running.job, 90)
    assert view["phase"] == "succeeded", view["reason"]
    assert view["shards"][0]["attempts"] == 2
    check_steps_redone(log_of(running))


def test_a_killed_daemon_finds_its_run_again_and_nothing_of_the_old_one_is_left(stage: Stage) -> None:
    running = stage.begin(steps=45, retries=2, silence="30 s")
    before = shard_of(running.nodes, running.job)["step"]
    running.victim("daemon")
    kill(running.provider)
    assert stage.traces.left(running.provider, but=("code",)) == {}
    running.nodes.start_one(running.provider)
    view = await_job(running.nodes, running.job, 90)
    assert view["phase"] == "succeeded", view["reason"]
    assert view["shards"][0]["attempts"] == 1, "under the same lease"
    begun = [int(step) for step in re.findall(r"begins after (\d+)", log_of(running))]
    assert len(begun) == 2
    assert before - begun[1] <= EVERY + 2
    await_that(lambda: states_of(running.provider) == ["free"], 20, "the device is free again")
    assert stage.traces.left(running.provider) == {}


def test_a_machine_that_lost_its_power_goes_on_when_it_is_back(stage: Stage) -> None:
    running = stage.begin(steps=45, retries=2, silence="30 s")
    everything = running.pids
    for pid in everything:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    kill(running.nodes.buyer)
    assert running.provider.process is not None
    running.provider.process.wait()
    assert stage.traces.left(running.provider, but=("code", "groups")) == {}
    running.nodes.start_one(running.nodes.buyer)
    running.nodes.start_one(running.provider)
    view = await_job(running.nodes, running.job, 90)
    assert view["phase"] == "succeeded", view["reason"]
    check_steps_redone(log_of(running))
    await_that(lambda: states_of(running.provider) == ["free"], 20, "the device is free again")
    assert stage.traces.left(running.provider) == {}, "whoever came back has cleared away"
    for node in (*running.nodes.providers, running.nodes.buyer):
        assert Decimal(books(node)["sum"]) == 0


def check_steps_redone(log: str) -> None:
    """At most one checkpoint's distance is done twice. What was on the way to its buyer may add a step or two."""
    told = [line for line in log.splitlines() if re.fullmatch(r"(begins after|step) \d+", line)]
    starts = [at for at, line in enumerate(told) if line.startswith("begins")]
    assert len(starts) == 2, told
    last = int(told[starts[1] - 1].split()[-1])
    again = int(told[starts[1]].split()[-1])
    assert again >= EVERY, "it did not begin from nothing"
    assert again % EVERY == 0
    assert last - again <= EVERY + 2
    assert told[-1] == "step 45"
