"""How runs end that somebody has to look into: the words for each failure, runs that are kept, and runs that leave."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import trio
from integration.sandbox_harness import LIMITS, a_room, an_order, need_sandbox

from hansa.node.isolation import process_tree
from hansa.proto.tensors import decode_state
from hansa.scheduler.run import (
    RunCheckpointed,
    RunFailed,
    RunFinished,
    RunKept,
    RunProgressed,
)

RUN = b"r" * 32

FAULTS = """
import ctypes, os, signal, sys, time
import numpy as np

def crash(ctx):
    ctypes.string_at(0)

def killed(ctx):
    os.kill(os.getpid(), signal.SIGKILL)

def leaves(ctx):
    os._exit(7)

def exits(ctx):
    sys.exit(3)

def too_much(ctx):
    np.ones(1 << 50)

def hang(ctx):
    ctx.report(step=12)
    while True:
        time.sleep(1)
"""

EXPECTED = {
    "crash": ("worker-died", ["worker 0 was killed by SIGSEGV", "Fatal Python error", "job.py"]),
    "leaves": ("worker-died", ["worker 0 exited with status 7"]),
    "exits": ("user-exception", ["exited with status 3", "in exits"]),
    "too_much": ("out-of-memory", ["not the memory that it asked for", "in too_much"]),
    "hang": ("stalled", ["for 1.5 s it neither printed nor reported anything, after step 12"]),
}


def kernel_tells_status():
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)))) >= (6, 15)


@pytest.mark.trio
async def test_a_failure_says_what_happened_in_words(tmp_path):
    need_sandbox()
    limits = dataclasses.replace(LIMITS, stall_ms=1500)
    names = list(EXPECTED)
    async with a_room() as room:
        for at in range(0, len(names), 3):
            for name in names[at : at + 3]:
                run = name.ljust(32).encode()
                await room.executor.start(an_order(tmp_path, FAULTS, run=run, entry=f"job.py:{name}", limits=limits))
            await room.wait_for(RunFailed, count=at + len(names[at : at + 3]))
    told = {event.run.decode().strip(): event for event in room.events if isinstance(event, RunFailed)}
    for name, (kind, words) in EXPECTED.items():
        assert told[name].kind == kind, told[name]
        for word in words[1:] if kind == "worker-died" and not kernel_tells_status() else words:
            assert word in told[name].reason, told[name].reason


@pytest.mark.trio
async def test_each_of_rays_own_processes_that_dies_is_told_by_its_name(tmp_path):
    need_sandbox()
    code = "import time\ndef main(ctx):\n    ctx.report(step=1)\n    while True: time.sleep(0.1)\n"
    victims = {"gcs_server": "gcs_server", "raylet": "raylet", "ray::DashboardA": "dashboard agent"}
    async with a_room() as room:
        for name in victims:
            await room.executor.start(an_order(tmp_path, code, run=name.ljust(32).encode()))
            await room.wait_for(RunProgressed, count=sum(isinstance(event, RunFailed) for event in room.events) + 1)
            (pid,) = [pid for pid in process_tree.descendants(os.getpid()) if comm(pid) == name]
            os.kill(pid, signal.SIGKILL)
            before_s = trio.current_time()
            await room.wait_for(RunFailed, count=list(victims).index(name) + 1, within_s=10)
            assert trio.current_time() - before_s < 5
    told = {event.run.decode().strip(): event for event in room.events if isinstance(event, RunFailed)}
    for name, words in victims.items():
        assert told[name].kind == "ray-lost"
        how = " was killed by SIGKILL" if kernel_tells_status() else ""
        assert f"Ray's {words}{how}" in told[name].reason, told[name].reason


@pytest.mark.trio
async def test_a_run_that_must_not_go_on_is_over_at_once_and_is_not_kept_to_be_looked_at(tmp_path):
    need_sandbox()
    limits = dataclasses.replace(LIMITS, keep_failed_ms=60_000)
    code = "import time\ndef main(ctx):\n    ctx.report(step=1)\n    while True: time.sleep(0.1)\n"
    async with a_room() as room:
        await room.executor.start(an_order(tmp_path, code, limits=limits))
        await room.wait_for(RunProgressed)
        await room.executor.fail(RUN, "out-of-memory", "it had 41 GiB of its GPU's memory")
        await room.executor.fail(RUN, "out-of-memory", "said again")
        failed = await room.wait_for(RunFailed, within_s=20)
        assert (failed.kind, failed.reason) == ("out-of-memory", "it had 41 GiB of its GPU's memory")
        assert not [event for event in room.events if isinstance(event, RunKept)]
        await room.executor.fail(RUN, "out-of-memory", "nobody is there")


LEAVING = """
import time
def main(ctx):
    state = ctx.restore() or {"step": 0}
    while state["step"] < 1000:
        time.sleep(0.05)
        state = {"step": state["step"] + 1}
        ctx.report(step=state["step"])
        if ctx.worker == 1 and ctx.leaving:
            ctx.sync(state)     # waits for worker 0, which leaves before it ever syncs
        if ctx.leaving and ctx.worker == 0:
            print("leaving", ctx.stopping, flush=True)
            ctx.checkpoint(state)
            print("never", flush=True)
"""


@pytest.mark.trio
async def test_a_run_that_is_to_leave_ends_at_its_checkpoint_and_another_goes_on_from_there(tmp_path):
    need_sandbox()
    async with a_room() as room:
        order = an_order(tmp_path, LEAVING, workers=2)
        await room.executor.start(order)
        await room.wait_for(RunProgressed, count=3)
        before_s = trio.current_time()
        await room.executor.leave(RUN, 60_000, "the owner wants to play")
        failed = await room.wait_for(RunFailed, within_s=15)
        assert trio.current_time() - before_s < 10
        assert (failed.kind, failed.reason) == ("reclaimed", "the owner wants to play")
        (saved,) = [event for event in room.events if isinstance(event, RunCheckpointed)]
        assert decode_state(room.blobs.kept[saved.checkpoint.root])["state"]["step"] >= 3
        assert "leaving False" in room.log
        assert "never" not in room.log
        room.events.clear()
        again = dataclasses.replace(order, run=b"s" * 32, checkpoint=saved.checkpoint)
        await room.executor.start(again)
        first = await room.wait_for(RunProgressed)
        assert first.step > saved.step


@pytest.mark.trio
async def test_a_job_that_finishes_while_it_is_to_leave_has_finished(tmp_path):
    need_sandbox()
    code = """
import sys, time
def main(ctx):
    ctx.report(step=1)
    while not ctx.leaving: time.sleep(0.05)
    sys.exit()   # which is as good an end as any
"""
    async with a_room() as room:
        await room.executor.start(an_order(tmp_path, code))
        await room.wait_for(RunProgressed)
        await room.executor.leave(RUN, 20_000, "the owner wants to play")
        await room.wait_for(RunFinished, within_s=15)


KEPT = """
import subprocess, sys, time
def main(ctx):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    open("left.txt", "w").write("what it was doing")
    ctx.report(step=1)
    time.sleep(1)
    raise ValueError("look at me")
"""


@pytest.mark.trio
async def test_a_run_that_failed_is_kept_to_be_looked_at_and_then_ends_as_it_would_have(tmp_path):
    need_sandbox()
    limits = dataclasses.replace(LIMITS, keep_failed_ms=60_000, stall_ms=1000)
    async with a_room() as room:
        await room.executor.start(an_order(tmp_path, KEPT, workers=2, limits=limits))
        await room.wait_for(RunProgressed)
        assert any(map(is_worker, process_tree.descendants(os.getpid())))
        kept = await room.wait_for(RunKept)
        assert kept.kind == "user-exception"
        assert "look at me" in kept.reason
        assert 50_000 < kept.until_ms - kept.at_ms <= 60_000
        await trio.sleep(2.5)  # longer than it may stall
        assert room.executor.running
        assert not any(map(is_worker, process_tree.descendants(os.getpid())))
        shell = await room.executor.open_shell(RUN, ("cat", "left.txt"), 80, 24)
        assert await all_of(shell) == b"what it was doing"
        shell = await room.executor.open_shell(RUN, ("sh", "-c", "ls /proc | grep -c '^[0-9]'"), 80, 24)
        assert int(await all_of(shell)) <= 12, "the job's own processes are gone, too"
        await room.executor.stop(RUN, 0)
        failed = await room.wait_for(RunFailed, within_s=10)
        assert (failed.kind, failed.reason) == (kept.kind, kept.reason)
        assert not room.executor.running


@pytest.mark.trio
async def test_a_run_is_kept_for_its_time_and_no_longer_and_for_failures_of_its_own_only(tmp_path):
    need_sandbox()
    limits = dataclasses.replace(LIMITS, keep_failed_ms=1500)
    async with a_room() as room:
        await room.executor.start(an_order(tmp_path, FAULTS, entry="job.py:killed", limits=limits))
        await room.executor.start(an_order(tmp_path, FAULTS, entry="job.py:hang", run=b"h" * 32, limits=limits))
        kept = await room.wait_for(RunKept)
        failed = await room.wait_for(RunFailed)
        assert (failed.run, failed.kind) == (kept.run, "worker-died")
        assert not kernel_tells_status() or failed.reason == "worker 0 was killed by SIGKILL"
        assert 1400 <= failed.at_ms - kept.at_ms < 8000
        await room.wait_for(RunProgressed)
        (pid,) = [pid for pid in process_tree.descendants(os.getpid()) if comm(pid) == "gcs_server"]
        os.kill(pid, signal.SIGKILL)
        await room.wait_for(RunFailed, count=2, within_s=10)
    assert [event.run for event in room.events if isinstance(event, RunKept)] == [RUN]


def is_worker(pid):
    return comm(pid) == "ray::ShardWorke"  # the kernel keeps fifteen characters of a name


def comm(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


async def all_of(shell, within_s=20):
    said = b""
    with trio.fail_after(within_s):
        while shell.ended is None:
            said += await shell.receive(1)
    return said
