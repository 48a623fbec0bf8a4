"""Jobs in real sandboxes with real Ray: what they get, and how each way of ending is told."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import trio
from integration.sandbox_harness import a_room, alive, an_order, guard_and_launcher, need_sandbox

from hansa.node.isolation import process_tree
from hansa.proto.tensors import decode_state, encode_state
from hansa.proto.workload import Parameter
from hansa.scheduler.run import (
    RunCheckpointed,
    RunFailed,
    RunFinished,
    RunOutput,
    RunPaused,
    RunProgressed,
    RunResumed,
    RunStarted,
    RunStopped,
    RunSynced,
)

RUN = b"r" * 32

TRAINING = """
import numpy as np

def main(ctx):
    print(f"worker {ctx.worker} has", ctx.share(12), "of", ctx.parameters["name"], flush=True)
    state = ctx.restore() or {"w": np.full(3, float(ctx.worker), dtype=np.float32), "nested": [1.0, (2,)]}
    print("restored" if ctx.restore() else "fresh", "in round", ctx.round)
    while ctx.round < 4:
        state = ctx.sync(state, weight=1 + ctx.worker)
        assert state["w"].dtype == np.float32 and type(state["nested"][0]) is float and type(state["nested"]) is list
        ctx.report(step=ctx.round, loss=float(state["w"][0]) + ctx.worker)
        if ctx.round % 2 == 0:
            ctx.checkpoint(state)
    if ctx.worker == 0:
        (ctx.outputs / "sub").mkdir()
        np.save(ctx.outputs / "sub" / "w.npy", state["w"])
"""


async def answer_rounds(room, add):
    """Play the buyer: every synced state comes back with a number added to its weights."""
    answered = 0
    while True:
        synced = [event for event in room.events if isinstance(event, RunSynced)]
        for event in synced[answered:]:
            state = decode_state(room.blobs.kept[event.state.root])
            result = room.blobs.put_bytes(encode_state({**state, "w": state["w"] + np.float32(add)}))
            await room.executor.deliver_round(event.run, event.round, result)
        answered = len(synced)
        await trio.sleep(0.01)


@pytest.mark.trio
async def test_two_workers_train_in_rounds_and_leave_checkpoints_metrics_and_outputs(tmp_path):
    need_sandbox()
    parameters = (Parameter(name="name", value=json.dumps("twelve rows")),)
    async with a_room() as room, trio.open_nursery() as nursery:
        nursery.start_soon(answer_rounds, room, 10)
        order = an_order(tmp_path, TRAINING, workers=2, parameters=parameters)
        await room.executor.start(order)
        await room.wait_for((RunFinished, RunFailed))
        first = list(room.events)
        # A second run goes on from the first one's first checkpoint, as if on another machine.
        checkpoint = next(event for event in first if isinstance(event, RunCheckpointed))
        room.events.clear()
        await room.executor.start(dataclasses.replace(order, run=b"s" * 32, checkpoint=checkpoint.checkpoint))
        await room.wait_for((RunFinished, RunFailed))
        nursery.cancel_scope.cancel()
    assert [type(event) for event in first if isinstance(event, (RunStarted, RunFinished))] == [RunStarted, RunFinished]
    synced = [event for event in first if isinstance(event, RunSynced)]
    assert [event.round for event in synced] == [0, 1, 2, 3]
    assert {event.weight_ppm for event in synced} == {3_000_000}
    start = decode_state(room.blobs.kept[synced[0].state.root])
    assert np.allclose(start["w"], 2 / 3), "worker 1 counts twice"
    assert [event.step for event in first if isinstance(event, RunProgressed)][-1] == 4
    losses = dict(next(event for event in reversed(first) if isinstance(event, RunProgressed)).metrics)
    assert losses["loss"] == pytest.approx(40 + 2 / 3 + 0.5), "the mean of both workers' figures"
    assert [(event.round, event.step) for event in first if isinstance(event, RunCheckpointed)] == [(2, 2), (4, 4)]
    (output,) = [event for event in first if isinstance(event, RunOutput)]
    assert output.path == "sub/w.npy"
    text = "".join(event.text for event in first if type(event).__name__ == "RunLogged")
    assert "worker 0 has slice(0, 6, None) of twelve rows" in text
    assert "worker 1 has slice(6, 12, None) of twelve rows" in text
    assert [event.round for event in room.events if isinstance(event, RunSynced)] == [2, 3]
    assert "restored in round 2" in room.log


@pytest.mark.trio
async def test_an_exception_of_the_jobs_is_told_with_the_jobs_own_lines(tmp_path):
    need_sandbox()
    async with a_room() as room:
        code = "def main(ctx):\n    answer = {}\n    return answer['nothing here']\n"
        await room.executor.start(an_order(tmp_path, code))
        failed = await room.wait_for((RunFailed, RunFinished))
        missing = an_order(tmp_path, code, run=b"m" * 32, entry="job.py:mian")
        await room.executor.start(missing)
        bad_entry = await room.wait_for(RunFailed, count=2)
    assert failed.kind == "user-exception"
    assert "KeyError: 'nothing here'" in failed.reason
    assert 'File "/job/code/job.py", line 3, in main' in failed.reason
    assert "hansa" not in failed.reason
    assert bad_entry.kind == "bad-entry"
    assert "mian" in bad_entry.reason


@pytest.mark.trio
async def test_a_paused_run_computes_nothing_and_a_stopped_one_can_still_save(tmp_path):
    need_sandbox()
    code = """
import time
def main(ctx):
    step = 0
    try:
        while True:
            time.sleep(0.05)
            step += 1
            ctx.report(step=step, value=step)
    finally:
        ctx.checkpoint({"step": step})
"""
    async with a_room() as room:
        await room.executor.start(an_order(tmp_path, code))
        await room.wait_for(RunProgressed, count=2)
        await room.executor.pause(RUN)
        await room.wait_for(RunPaused)
        await trio.sleep(0.5)  # what was on its way
        before = len(room.events)
        await trio.sleep(1.5)
        assert len(room.events) == before
        await room.executor.resume(RUN)
        await room.wait_for(RunResumed)
        steps = sum(isinstance(event, RunProgressed) for event in room.events)
        await room.wait_for(RunProgressed, count=steps + 2)
        await room.executor.stop(RUN, grace_ms=10_000)
        await room.wait_for((RunStopped, RunFailed))
    assert isinstance(room.events[-1], RunStopped), room.events[-3:]
    saved = [event for event in room.events if isinstance(event, RunCheckpointed)]
    assert decode_state(room.blobs.kept[saved[0].checkpoint.root])["state"]["step"] >= 2


@pytest.mark.trio
@pytest.mark.parametrize("victim", ["launcher", "guard"])
async def test_a_launcher_that_is_killed_takes_its_sandboxes_with_it_and_another_is_started(tmp_path, victim):
    need_sandbox()
    code = "def main(ctx):\n    ctx.report(step=1)\n    while True: pass\n"
    async with a_room() as room:
        await room.executor.start(an_order(tmp_path, code))
        await room.wait_for(RunProgressed)
        guard, launcher = guard_and_launcher(os.getpid())
        everything = process_tree.descendants(guard)
        assert len(everything) > 9
        os.kill(launcher if victim == "launcher" else guard, signal.SIGKILL)
        failed = await room.wait_for(RunFailed)
        assert failed.kind == "sandbox-lost"
        assert await gone(everything[1:]) == []
        await trio.sleep(1.5)
        quick = an_order(tmp_path, "def main(ctx): pass\n", run=b"q" * 32)
        await room.executor.start(quick)
        await room.wait_for(RunFinished)


def test_an_executor_that_is_killed_leaves_no_process_and_no_cgroup_behind():
    need_sandbox()
    root = Path(__file__).parent.parent
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, str(root / "integration" / "executor_in_a_process.py")],
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        try:
            for line in process.stdout:
                if line.startswith(b"RunProgressed"):
                    break
            everything = process_tree.descendants(process.pid)
            _guard, launcher = guard_and_launcher(process.pid)
            assert len(everything) > 8, everything
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    assert trio.run(gone, everything[1:]) == []
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/hansa-{launcher}-*")]
    assert groups == []


async def gone(pids, within_s=5.0):
    """Which of these processes are still there after a while."""
    deadline = time.monotonic() + within_s
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:  # noqa: ASYNC110 - nothing tells it
        await trio.sleep(0.02)
    return [pid for pid in pids if alive(pid)]
