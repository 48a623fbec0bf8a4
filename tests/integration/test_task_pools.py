"""Pools of tasks in real sandboxes with real Ray: items spread over a shard's devices, and kept when it moves."""

import dataclasses
import json

import pytest
from integration.sandbox_harness import LIMITS, a_room, an_order, need_sandbox

from hansa.scheduler.run import RunCheckpointed, RunFailed, RunFinished, RunProgressed

SWEEP = """
import json, os, signal, time
import numpy as np

def load():
    print("loading", flush=True)
    return np.arange(4)

def score(model, item):
    if item == 3:
        raise ValueError("three is bad")
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 7:
        time.sleep(60)
    return {"sum": model.sum() * item, "pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}

def main(ctx):
    told = {}
    for result in ctx.tasks(score, range(20), setup=load, timeout_s=3, retries=1):
        told[result.index] = [result.item, result.error, result.attempts]
        if not result.error:
            told[result.index] += [int(result.value["sum"]), result.value["pid"], result.value["threads"]]
    print("TOLD", json.dumps(told), flush=True)
    in_order = [result.value for result in ctx.tasks(abs, [-3, -1, -2, -9, -7, -8], ordered=True)]
    print("ORDERED", in_order, flush=True)
"""


def lines(text, word):
    return [line.removeprefix(word).strip() for line in text.splitlines() if line.startswith(word)]


@pytest.mark.trio
async def test_a_pool_does_every_item_once_and_a_bad_one_costs_only_itself(tmp_path):
    need_sandbox()
    async with a_room() as room:
        await room.executor.start(an_order(tmp_path, SWEEP))
        ended = await room.wait_for((RunFinished, RunFailed))
    assert isinstance(ended, RunFinished), ended
    (told,) = [{int(key): value for key, value in json.loads(one).items()} for one in lines(room.log, "TOLD")]
    good = [number for number in range(20) if number not in (3, 5, 7)]
    assert sorted(told) == list(range(20))
    assert [told[number][3] for number in good] == [6 * number for number in good]
    assert all(told[number][1] == "" for number in good)
    assert told[3][1].splitlines()[-1] == "ValueError: three is bad"
    assert 'File "/job/code/job.py", line 11, in score' in told[3][1]
    assert (told[5][1], told[5][2]) == ("its worker was killed by SIGKILL", 2)
    assert told[7][1:] == ["its worker was ended, since it took longer than 3 s", 1], "it would take as long again"
    pids = {told[number][4] for number in good}
    assert 2 <= len(pids) <= 5, "two workers, and one in place of each that ended"
    assert 2 <= len(lines(room.log, "loading")) <= 5, "once in each worker, and what it prints is heard"
    assert {told[number][5] for number in good} == {"1"}, "two cores are shared by two workers"
    assert "item 5 failed: its worker was killed by SIGKILL" in room.log
    assert lines(room.log, "ORDERED") == ["[3, 1, 2, 9, 7, 8]"]
    progress = [event for event in room.events if isinstance(event, RunProgressed)]
    assert progress[-1].step == 26, "a settled item is a step, over all pools"
    assert ("failed", 3.0) in {metric for event in progress for metric in _metrics(event)}


def _metrics(event):
    return [(name, value) for name, value in event.metrics]


MOVING = """
import time
import numpy as np

def work(item):
    time.sleep(0.4)
    print("doing", item, flush=True)
    if item == 2:
        raise ValueError("two")
    return {"square": np.full(2, item * item)}

def main(ctx):
    before = ctx.restore()
    print("restored", before, flush=True)
    if before is None:
        ctx.checkpoint({"mine": 7})
    total = 0
    for result in ctx.tasks(work, range(40)):
        total += 0 if result.error else int(result.value["square"][0])
    print("total", total, flush=True)
    (ctx.outputs / f"total-{ctx.shard}").write_text(str(total))
"""


@pytest.mark.trio
async def test_what_was_done_before_a_move_is_not_done_again_and_comes_again(tmp_path):
    need_sandbox()
    async with a_room() as room:
        order = an_order(tmp_path, MOVING, shard=1, shards=2)
        await room.executor.start(order)
        await room.wait_for(RunProgressed, count=6)
        await room.executor.leave(order.run, 20_000, "the owner wants it")
        await room.wait_for(RunFailed)
        first, first_log = list(room.events), room.log
        room.events.clear()
        last = [event for event in first if isinstance(event, RunCheckpointed)][-1]
        await room.executor.start(dataclasses.replace(order, run=b"s" * 32, checkpoint=last.checkpoint))
        ended = await room.wait_for((RunFinished, RunFailed))
    assert first[-1].kind == "reclaimed", first[-1]
    assert isinstance(ended, RunFinished), ended
    done_first, done_then = ({int(one) for one in lines(log, "doing")} for log in (first_log, room.log))
    assert last.step >= 5
    assert len(done_first - done_then) == last.step, (
        "what the checkpoint holds was not done again, the one that failed included"
    )
    assert done_first | done_then == set(range(20, 40)), "the second shard's half"
    assert lines(room.log, "total") == [str(sum(item * item for item in range(20, 40)))]
    assert lines(room.log, "restored") == ["{'mine': 7}"], "the job's own state is in it, too"
    steps = [event.step for event in room.events if isinstance(event, RunProgressed)]
    assert steps[0] > last.step
    assert steps[-1] == 20


DEVICES = """
import os, time
import numpy as np

def see(item):
    time.sleep(0.3)
    return os.environ["CUDA_VISIBLE_DEVICES"]

def large(item):
    return np.full(50 << 18, item, np.float32)

def main(ctx):
    print("driver", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    print("one", sorted({result.value for result in ctx.tasks(see, range(6))}), flush=True)
    (both,) = {result.value for result in ctx.tasks(see, range(2), gpus_each=2)}
    print("two", sorted(both.split(",")), flush=True)
    spilled = False
    for result in ctx.tasks(large, range(8), keep=False, name="large"):
        patience = time.monotonic() + 5  # the workers are ahead, and what both have does not fit into the object store
        while not spilled and time.monotonic() < patience:
            spilled = any(files for _, _, files in os.walk("/job/work/.ray"))
            time.sleep(0.05)
        assert result.value.nbytes == 50 << 20 and result.value[0] == result.item
    print("spilled", spilled, flush=True)
    for result in ctx.tasks(see, range(9), workers=1, most_failures=0, retries=0, timeout_s=0.1, name="last"):
        pass
"""


@pytest.mark.long
@pytest.mark.trio
async def test_each_worker_has_whole_gpus_and_large_results_go_to_the_runs_disk(tmp_path):
    need_sandbox()
    gpus = ("GPU-aaaa1111-0000-0000-0000-000000000000", "GPU-bbbb2222-0000-0000-0000-000000000000")
    limits = dataclasses.replace(LIMITS, memory_bytes=2 << 30, scratch_bytes=512 << 20)
    async with a_room() as room:
        await room.executor.start(an_order(tmp_path, DEVICES, cuda_devices=gpus, limits=limits))
        ended = await room.wait_for((RunFinished, RunFailed))
    assert lines(room.log, "driver") == [",".join(gpus)], room.log + str(ended)
    assert lines(room.log, "one") == [str(list(gpus))]
    assert lines(room.log, "two") == [str(list(gpus))]
    assert lines(room.log, "spilled") == ["True"]
    assert (type(ended), ended.kind) == (RunFailed, "user-exception")
    assert "TooManyFailures: 1 items failed" in ended.reason


WRONG = """
import numpy as np

def wide(item):
    return np.zeros(10 << 20, np.uint8)

def load():
    raise RuntimeError("no such weights")

def main(ctx):
    for wish in ({"workers": 0}, {"retries": -1}, {"gpus_each": 2}, {"timeout_s": 0}):
        try:
            ctx.tasks(abs, [1], **wish)
        except ValueError as error:
            print("refused", error, flush=True)
    print("wide", sum(result.value.size for result in ctx.tasks(wide, range(5))) >> 20, flush=True)
    ctx.checkpoint({})
    for result in ctx.tasks(abs, [1], setup=load):
        print("never")
"""


@pytest.mark.trio
async def test_a_pool_keeps_what_fits_and_one_whose_workers_cannot_be_made_ends_the_job_with_the_reason(tmp_path):
    need_sandbox()
    async with a_room() as room:
        await room.executor.start(an_order(tmp_path, WRONG))
        failed = await room.wait_for((RunFailed, RunFinished))
        several = an_order(tmp_path, "def main(ctx):\n    ctx.tasks(abs, [1])\n", run=b"t" * 32, workers=2)
        await room.executor.start(several)
        refused = await room.wait_for(RunFailed, count=2)
    assert len(lines(room.log, "refused")) == 4
    assert lines(room.log, "wide") == ["50"]
    assert "the results are larger than limits.state" in room.log, "32 MiB, and the checkpoint keeps within it"
    assert [event.checkpoint.size_bytes >> 20 for event in room.events if isinstance(event, RunCheckpointed)][-1] == 30
    assert failed.kind == "user-exception"
    assert "SetupFailed" in failed.reason
    assert "RuntimeError: no such weights" in failed.reason
    assert "leave workers at 1" in refused.reason
