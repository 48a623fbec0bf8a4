"""What an execution costs: from the award to the job's first line, memory, CPU, the end, and what the walls take.

Run with the environment's Python, from anywhere: ``python tests/bench/bench_execution.py [--short]``. How to read the
figures stands in docs/benchmarks.md.
"""

import argparse
import contextlib
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import trio
from integration.sandbox_harness import (
    LIMITS,
    WARM,
    Room,
    a_room,
    an_order,
    guard_and_launcher,
    sandbox_report,
    stands_ready,
)
from kit.market import asked, job_of, running_market, submit

from hansa.node.commands.demo_nodes import DemoNodes
from hansa.node.isolation import process_tree
from hansa.node.runs.warm_pool import threads_of
from hansa.proto.tensors import encode_state
from hansa.scheduler.run import RunFailed, RunProgressed, RunStarted, RunSynced

POLL_S = 0.01
IDLE_S = 10.0
PATIENCE_S = 120.0
SELDOM = """
import time

def main(ctx):
    ctx.report(step=1)
    while True:
        time.sleep(1)
"""
FIRST_LINE = """
import time
NOW = time.time()

def main(ctx):
    print("first line at", NOW, flush=True)
    ctx.report(step=1)
"""
JOB = """
name = "first line"
entry = "job.py:main"
shards = 1

[resources]
kind = "cpu"
cores = 0.5
memory = "700 MiB"
disk = "64 MiB"

[budget]
total = "1.00"

[tender]
bids = "1 s"
"""
# The same file is the job's code inside and a program outside, so that both measure the very same loop.
TRAINING = '''
import sys
import time


def make_step():
    """One step of training a small network; with torch on one thread, else with numpy."""
    if USE_TORCH:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
        x, y = torch.randn(256, 256), torch.randint(0, 10, (256,))

        def step():
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()

        return step
    import numpy as np

    random = np.random.default_rng(1)
    x, y = random.normal(size=(256, 256)).astype("f4"), random.normal(size=(256, 10)).astype("f4")
    first, second = (random.normal(size=shape).astype("f4") / 20 for shape in ((256, 512), (512, 10)))

    # Nothing is allocated in a step. Whether the C library gives such memory back to the system each time depends on
    # what a process did before, and made a plain program slower by half than a worker of Ray.
    hidden, back, change, alive = (np.empty((256, 512), kind) for kind in ("f4", "f4", "f4", "?"))
    error, last_change = np.empty((256, 10), "f4"), np.empty((512, 10), "f4")

    def step():
        np.maximum(np.matmul(x, first, out=hidden), 0, out=hidden)
        np.subtract(np.matmul(hidden, second, out=error), y, out=error)
        np.multiply(np.matmul(error, second.T, out=back), np.greater(hidden, 0, out=alive), out=back)
        np.subtract(second, np.multiply(np.matmul(hidden.T, error, out=last_change), 4e-5, out=last_change), out=second)
        np.subtract(first, np.multiply(np.matmul(x.T, back, out=change), 4e-5, out=change), out=first)

    return step


def measure(step, steps):
    """Milliseconds for one step: by the clock, and of this thread's CPU."""
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in range(steps):
        step()
    return (time.perf_counter() - wall) / steps * 1e3, (time.thread_time() - cpu) / steps * 1e3


def main(ctx):
    step = make_step()
    measure(step, STEPS)
    while True:
        ctx.sync({"turn": 1.0})
        wall, cpu = measure(step, STEPS)
        ctx.report(step=ctx.round, wall=wall, cpu=cpu)


if __name__ == "__main__":
    step = make_step()
    measure(step, STEPS)
    print("ready", flush=True)
    for _line in sys.stdin:
        print(*measure(step, STEPS), flush=True)
'''


# ---- one run ---------------------------------------------------------------------------------------------------------


async def one_run(directory: Path, number: int) -> dict[str, float]:
    """A run from its order to its end, with two Ray workers that do nothing."""
    run = bytes([number]) * 32
    async with a_room() as room:
        launcher = await launcher_below_us()
        before_s = time.perf_counter()
        await room.executor.start(an_order(directory, SELDOM, run=run, workers=2))
        await room.wait_for((RunStarted, RunFailed), within_s=PATIENCE_S)
        start_s = time.perf_counter() - before_s
        pids = process_tree.descendants(launcher)[1:]
        start_cpu_s = cpu_s(pids)
        await room.wait_for((RunProgressed, RunFailed), within_s=PATIENCE_S)
        await trio.sleep(3)  # Ray goes on with something or other for a while
        pids = process_tree.descendants(launcher)[1:]
        memory_mb, processes = process_tree.memory_bytes(pids) / 1e6, len(pids)
        idle_before_s = cpu_s(pids)
        await trio.sleep(IDLE_S)
        idle_percent = (cpu_s(pids) - idle_before_s) / IDLE_S * 100
        before_s = time.perf_counter()
        await room.executor.stop(run, grace_ms=0)
        while room.executor.running or any(is_alive(pid) for pid in pids):  # noqa: ASYNC110 - nothing tells it
            await trio.sleep(0.002)
        end_s = time.perf_counter() - before_s
    return {
        "start_s": start_s,
        "start_cpu_s": start_cpu_s,
        "memory_mb": memory_mb,
        "processes": processes,
        "idle_percent": idle_percent,
        "end_s": end_s,
    }


async def launcher_below_us() -> int:
    """The launcher's pid, once it is up and has nothing to do, as in a daemon."""
    with trio.fail_after(PATIENCE_S):
        while True:
            with contextlib.suppress(ValueError, AssertionError, OSError):
                _guard, launcher = guard_and_launcher(os.getpid())
                await trio.sleep(1)
                return launcher
            await trio.sleep(POLL_S)


def cpu_s(pids: list[int]) -> float:
    """CPU time of these processes and of their children that ended."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(fields[at]) for at in (11, 12, 13, 14))
    return ticks / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int) -> bool:
    """Whether a process still runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ---- a whole market --------------------------------------------------------------------------------------------------


async def prepared_runs(directory: Path, starts: int) -> dict[str, list[float]]:
    """Runs that begin in prepared sandboxes, and what one costs that waits."""
    found: dict[str, list[float]] = {"warm_s": [], "memory_mb": [], "idle_cpu_s": []}
    async with a_room(**WARM) as room:
        launcher = await launcher_below_us()
        for number in range(starts):
            order = an_order(directory, SELDOM, run=bytes([number + 1]) * 32, workers=2)
            await stands_ready(room, order)
            pids = process_tree.descendants(launcher)[1:]
            found["memory_mb"].append(process_tree.memory_bytes(pids) / 1e6)
            before_s = cpu_s(pids)
            await trio.sleep(IDLE_S)
            found["idle_cpu_s"].append(cpu_s(pids) - before_s)
            before_s = time.perf_counter()
            await room.executor.start(order)
            await room.wait_for((RunStarted, RunFailed), count=number + 1, within_s=PATIENCE_S)
            found["warm_s"].append(time.perf_counter() - before_s)
            await room.executor.stop(order.run, grace_ms=0)
            while room.executor.running:  # noqa: ASYNC110 - nothing tells it
                await trio.sleep(0.002)
        if room.executor.pool.begun != starts:
            raise SystemExit(
                f"only {room.executor.pool.begun} of {starts} runs began in a prepared sandbox: {room.words}"
            )
    return found


def await_prepared(nodes: DemoNodes) -> None:
    """Until the provider has a sandbox that waits."""
    deadline = time.monotonic() + PATIENCE_S
    while not asked(nodes.providers[0], "/v1/node")["sandbox"].get("prepared"):
        if time.monotonic() > deadline:
            raise SystemExit("the provider prepared no sandbox")
        time.sleep(POLL_S)


def award_to_first_line(jobs: int, *, warm: bool) -> list[float]:
    """Seconds from the buyer's award to the first line of the job's code, job after job on the same provider.

    The first is cold, the others too unless ``warm``.
    """
    found = []
    settings = {"warm = 0": "warm = 1"} if warm else {}
    with running_market("0.30", settings=settings) as nodes, tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "job.toml").write_text(JOB)
        (directory / "job.py").write_text(textwrap.dedent(FIRST_LINE))
        for number in range(jobs):
            if warm and number:
                await_prepared(nodes)
            job = submit(nodes, directory)
            awarded_s = await_award(nodes, job)
            said = await_first_line(nodes, job)
            found.append(said - awarded_s)
            while any(device["state"] != "free" for device in asked(nodes.providers[0], "/v1/node")["devices"]):
                time.sleep(POLL_S)
    return found


def await_award(nodes: DemoNodes, job: str) -> float:
    """When the award was signed, to a hundredth of a second."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        tenders = job_of(nodes, job).get("tenders") or [{"phase": ""}]
        if tenders[0]["phase"] in ("awarding", "running", "settling", "settled"):
            return time.time()
        time.sleep(POLL_S)
    raise SystemExit(f"job {job[:8]} found nobody")


def await_first_line(nodes: DemoNodes, job: str) -> float:
    """What the job printed."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and job_of(nodes, job)["phase"] not in ("succeeded", "failed"):
        time.sleep(0.05)
    lines = [entry["text"] for entry in nodes.buyer.daemon.lines(f"/v1/jobs/{job}/logs")]
    return next(float(line.split()[-1]) for line in lines if line.startswith("first line at"))


# ---- inside against outside ------------------------------------------------------------------------------------------


async def throughput(directory: Path, turns: int, steps: int) -> dict[str, float]:
    """Take turns: a block of steps inside, the same outside, neither while the other computes."""
    use_torch = importlib.util.find_spec("torch") is not None
    text = f"USE_TORCH, STEPS = {use_torch}, {steps}\n" + TRAINING
    limits = replace(LIMITS, memory_bytes=2 << 30, wall_ms=900_000)
    inside: list[tuple[float, float]] = []
    outside: list[tuple[float, float]] = []
    async with a_room() as room:
        order = an_order(directory, text, limits=limits)
        await room.executor.start(order)
        other = subprocess.Popen(  # noqa: ASYNC220 - nothing else has to go on meanwhile
            [sys.executable, str(order.code / "job.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # numpy computes with as many threads here as it may in the sandbox; torch with one in both.
            env={
                **os.environ,
                **{f"{name}_NUM_THREADS": str(threads_of(order)) for name in ("OMP", "OPENBLAS", "MKL")},
            },
        )
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        await room.wait_for(RunSynced, within_s=PATIENCE_S)
        for turn in range(turns):
            for which in ("inside", "outside") if turn % 2 else ("outside", "inside"):
                if which == "inside":
                    inside.append(await turn_inside(room, order.run, turn))
                else:
                    other.stdin.write("\n")
                    other.stdin.flush()
                    wall, cpu = (await trio.to_thread.run_sync(other.stdout.readline)).split()
                    outside.append((float(wall), float(cpu)))
        other.stdin.close()
        other.wait()
    pairs = list(zip(outside, inside, strict=True))
    return {
        "torch": float(use_torch),
        "inside_ms": statistics.median(wall for wall, _ in inside),
        "outside_ms": statistics.median(wall for wall, _ in outside),
        "wall": statistics.median(out[0] / within[0] for out, within in pairs),
        "cpu": statistics.median(out[1] / within[1] for out, within in pairs),
        "spread": statistics.stdev(out[1] / within[1] for out, within in pairs),
    }


async def turn_inside(room: Room, run: bytes, turn: int) -> tuple[float, float]:
    """Let the job out of its round, and wait for its next with what it measured."""
    result = room.blobs.put_bytes(encode_state({"turn": float(turn)}))
    await room.executor.deliver_round(run, turn, result)
    await room.wait_for(RunSynced, count=turn + 2, within_s=PATIENCE_S)
    metrics = dict([event for event in room.events if isinstance(event, RunProgressed)][-1].metrics)
    return metrics["wall"], metrics["cpu"]


# ---- what is printed -------------------------------------------------------------------------------------------------

LINES = (
    ("start_s", "s    start → first line, inside the executor"),
    ("start_cpu_s", "s    of CPU until then"),
    ("memory_mb", "MB   of memory (shared pages divided), two idle workers"),
    ("processes", "     processes"),
    ("idle_percent", "%    of one core while idle"),
    ("end_s", "s    kill → nothing left"),
)


def print_warm(starts: int, jobs: int, cold_starts: list[float], cold_awards: list[float]) -> None:
    """Runs that begin in prepared sandboxes, against those before that did not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        found = trio.run(prepared_runs, Path(name), starts)
    line(found["warm_s"], "s    start → first line, in a prepared sandbox")
    print(f"  {statistics.median(found['warm_s']) / statistics.median(cold_starts):9.3f}      of a cold start")
    line(found["memory_mb"], "MB   of memory (shared pages divided), a prepared sandbox that waits, two workers")
    line(found["idle_cpu_s"], f"s    of CPU in {IDLE_S:g} s, the same")
    _cold, *warm = award_to_first_line(jobs, warm=True)
    line(warm, "s    award → first line, in a prepared sandbox")
    print(f"  {statistics.median(warm) / statistics.median(cold_awards):9.3f}      of a cold one", flush=True)


def line(values: list[float], words: str) -> None:
    """The median, and all of them."""
    print(
        f"  {statistics.median(values):9.3f} {words}  (of {', '.join(f'{value:.3f}' for value in values)})", flush=True
    )


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="fewer repetitions")
    short = parser.parse_args().short
    starts, jobs, turns = (2, 2, 6) if short else (5, 4, 24)
    report = sandbox_report()
    print(f"machine: {os.cpu_count()} cores, {memory_gb():.0f} GB, {platform.machine()}, Linux {platform.release()}")
    print(f"load before: {os.getloadavg()[0]:.1f}")
    print(f"sandbox: {report.reason}", flush=True)
    if not report.available:
        return
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        runs: list[dict[str, Any]] = [trio.run(one_run, Path(name), number + 1) for number in range(starts)]
    for key, words in LINES:
        line([run[key] for run in runs], words)
    first, *others = award_to_first_line(jobs, warm=False)
    line([first], "s    award → first line, the daemon's first job")
    line(others, "s    award → first line, the same job again")
    if os.getuid() == 0:
        print_warm(starts, jobs, [run["start_s"] for run in runs], others)
    else:
        print("  warm starts: none, since only a launcher that is root prepares sandboxes")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        found = trio.run(throughput, Path(name), turns, 150)
    library = "torch" if found["torch"] else "numpy"
    print(f"  {found['inside_ms']:9.3f} ms   a step of {library} inside, {found['outside_ms']:.3f} ms outside")
    print(f"  {found['cpu']:9.3f}      throughput inside against outside by CPU time, ± {found['spread']:.3f} a pair")
    print(f"  {found['wall']:9.3f}      the same by the clock")
    print(f"load after: {os.getloadavg()[0]:.1f}")


def memory_gb() -> float:
    """This machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


if __name__ == "__main__":
    main()
