"""Runs on other machines with real launchers and real Ray: on one afar, and on two at once, joined by the switch."""

import os
import signal

import pytest
import trio
from integration.agent_house import a_house, a_report
from integration.sandbox_harness import LIMITS, a_room, alive, an_order, need_sandbox

from hansa.node.agents.agent_switchboard import HERE, Part, Switchboard
from hansa.node.isolation import process_tree
from hansa.node.isolation.launcher_link import start_launcher
from hansa.node.isolation.overlay_device import why_no_overlay
from hansa.scheduler.run import RunFailed, RunFinished, RunProgressed, RunSynced

pytestmark = pytest.mark.trio
RUN = b"r" * 32


def need_overlay():
    need_sandbox()
    why = why_no_overlay()
    if why is not None:
        pytest.skip(f"no interfaces for gangs on this machine: {why}")


class Machines:
    """A switchboard with a launcher of its own, and an agent with another, which could be on another machine."""

    def __init__(self, house):
        self.board = Switchboard(start_launcher, house.fleet)
        self.processes = []

    def launch(self):
        process, control = start_launcher()
        self.processes.append(process)
        return process, control


async def two_machines(house, **settings):
    machines = Machines(house)
    await house.nursery.start(machines.board.serve)
    agent = house.agent("b", house.enrol("b"), a_report(1), launch=machines.launch, **settings)
    machines.agent = trio.CancelScope()

    async def serve():
        with machines.agent:
            await agent.serve()

    house.nursery.start_soon(serve)
    await house.until(lambda: "b" in house.fleet.machines)
    return machines


def part(machine, workers=1):
    return Part(machine=machine, gpu_minors=(), cpu_millis=1000, memory_bytes=LIMITS.memory_bytes, workers=workers)


WHERE = """
from pathlib import Path

def main(ctx):
    print("it has", (Path(__file__).parent / "more.txt").read_text(), flush=True)
    (ctx.outputs / f"made-{ctx.worker}.txt").write_text(str(ctx.worker))
"""

SYNC = """
import socket, struct, fcntl
import numpy as np

def address():
    for name in (b"gang0", b"lo"):
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                return socket.inet_ntoa(fcntl.ioctl(one.fileno(), 0x8915, struct.pack("256s", name))[20:24])
        except OSError:
            pass

def main(ctx):
    print(f"worker {ctx.worker} of {ctx.workers} is at {address()}", flush=True)
    state = {"w": np.full(1000, float(ctx.worker), dtype=np.float32)}
    for step in range(3):
        state = ctx.sync(state, weight=1)
        ctx.report(step=ctx.round, mean=float(state["w"][0]))
    (ctx.outputs / "sub").mkdir(exist_ok=True)
    (ctx.outputs / "sub" / f"of-{ctx.worker}.txt").write_text(str(ctx.worker) * 1_000_000)
    (ctx.outputs / "same.txt").write_text(address())
"""

HOLD = """
import time

def main(ctx):
    for step in range(600):
        ctx.report(step=step, x=0.0)
        time.sleep(0.2)
"""


async def test_a_run_on_another_machine_is_like_one_here(tmp_path):
    need_sandbox()
    async with a_house(tmp_path) as house:
        machines = await two_machines(house)
        async with a_room(launch=machines.board.launch) as room:
            order = an_order(tmp_path, WHERE)
            (order.code / "more.txt").write_text("carried")
            machines.board.place(RUN, [part("b")])
            await room.executor.start(order)
            await room.wait_for((RunFinished, RunFailed))
            print(room.events)
            assert isinstance(room.events[-1], RunFinished)
            assert "it has carried" in room.log
            outputs = [event for event in room.events if type(event).__name__ == "RunOutput"]
            assert [event.path for event in outputs] == ["made-0.txt"]


async def answer_rounds(room):
    answered = 0
    while True:
        synced = [event for event in room.events if isinstance(event, RunSynced)]
        for event in synced[answered:]:
            await room.executor.deliver_round(event.run, event.round, event.state)
        answered = len(synced)
        await trio.sleep(0.01)


async def test_a_gang_on_two_machines_is_one_run(tmp_path):
    need_overlay()
    async with a_house(tmp_path) as house:
        machines = await two_machines(house)
        async with a_room(launch=machines.board.launch) as room, trio.open_nursery() as nursery:
            nursery.start_soon(answer_rounds, room)
            machines.board.place(RUN, [part(HERE, workers=1), part("b", workers=2)])
            await room.executor.start(an_order(tmp_path, SYNC, workers=3))
            await room.wait_for((RunFinished, RunFailed))
            print(room.events, room.log)
            assert isinstance(room.events[-1], RunFinished)
            for worker, address in enumerate(("10.77.0.1", "10.77.0.2", "10.77.0.2")):
                assert f"worker {worker} of 3 is at {address}" in room.log
            steps = [event for event in room.events if isinstance(event, RunProgressed)]
            assert dict(steps[-1].metrics)["mean"] == 1.0
            outputs = {one.path: one.blob for one in room.events if type(one).__name__ == "RunOutput"}
            assert set(outputs) == {"sub/of-0.txt", "sub/of-1.txt", "sub/of-2.txt", "same.txt"}
            assert room.blobs.kept[outputs["sub/of-2.txt"].root] == b"2" * 1_000_000
            assert room.blobs.kept[outputs["same.txt"].root] == b"10.77.0.1"
            assert "output left out: same.txt of another machine" in room.log
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lost", ["agent", "launcher"])
async def test_a_gang_whose_other_machine_is_lost_fails_in_words_and_leaves_nothing(tmp_path, lost):
    need_overlay()
    async with a_house(tmp_path) as house:
        machines = await two_machines(house)
        async with a_room(launch=machines.board.launch) as room:
            machines.board.place(RUN, [part(HERE), part("b")])
            await room.executor.start(an_order(tmp_path, HOLD, workers=2))
            await room.wait_for(RunProgressed, count=2)
            there = process_tree.descendants(machines.processes[0].pid)
            assert len(there) > 5
            if lost == "agent":
                machines.agent.cancel()
            else:
                os.kill(machines.processes[0].pid, signal.SIGKILL)
            failed = await room.wait_for(RunFailed, within_s=20)
            print(failed)
            assert ("machine b was lost" if lost == "agent" else "on b") in failed.reason
            assert failed.kind == "sandbox-lost"
            await house.until(lambda: not any(alive(pid) for pid in there))
            # The daemon's own machine goes on.
            await room.executor.start(an_order(tmp_path, "def main(ctx): print('still here')"))
            await room.wait_for(RunFinished)
