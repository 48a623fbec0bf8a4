"""How long a run takes to start, what it costs in memory, and how fast its steps are inside the sandbox.

Run with the environment's Python, from anywhere: ``python tests/bench/bench_execution.py``.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import trio
from integration.sandbox_harness import LIMITS, a_room, an_order, sandbox_report

from hansa.node import process_tree
from hansa.scheduler.run import RunFailed, RunLogged, RunProgressed, RunStarted

STARTS = 3
STEPS = 30
WORK = f"""
import time
import numpy as np

def measure():
    a = np.random.default_rng(1).normal(size=(300, 300))
    def step():
        b = a
        for _ in range(8):
            b = np.tanh(b @ a / 17)
        return float(sum(i * i for i in range(20000))) + float(b.sum())
    step()
    times = []
    for _ in range({STEPS}):
        before = time.perf_counter()
        step()
        times.append(time.perf_counter() - before)
    return sorted(times)[{STEPS} // 2] * 1000

def main(ctx):
    ctx.report(step=1)
    print("step", measure(), flush=True)
    while True:
        time.sleep(1)

if __name__ == "__main__":
    print("step", measure())
"""


async def one_run(directory: Path, number: int) -> dict[str, float]:
    async with a_room() as room:
        await trio.sleep(0.5)  # the launcher is up, as in a daemon
        before = time.perf_counter()
        await room.executor.start(an_order(directory, WORK, run=bytes([number]) * 32, workers=2))
        await room.wait_for((RunStarted, RunFailed), within_s=90)
        start_s = time.perf_counter() - before
        used_s = cpu_s(process_tree.descendants(os.getpid())[3:])
        await room.wait_for((RunProgressed, RunFailed))
        while room.log.count("step") < 1:
            await trio.sleep(0.05)
            assert not any(isinstance(event, RunFailed) for event in room.events), room.events
        pids = process_tree.descendants(os.getpid())[3:]
        memory_mb = process_tree.memory_bytes(pids) / 1e6
        texts = "".join(event.text for event in room.events if isinstance(event, RunLogged))
        before_kill = time.perf_counter()
        await room.executor.stop(bytes([number]) * 32, grace_ms=0)
        while room.executor.running:  # noqa: ASYNC110 - nothing tells it
            await trio.sleep(0.002)
        stop_s = time.perf_counter() - before_kill
    return {
        "start_s": start_s,
        "cpu_s": used_s,
        "memory_mb": memory_mb,
        "processes": len(pids),
        "step_ms": float(texts.split("step ")[1].split()[0]),
        "stop_s": stop_s,
    }


def cpu_s(pids: list[int]) -> float:
    """CPU time of these processes so far."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(fields[at]) for at in (11, 12, 13, 14))
    return ticks / os.sysconf("SC_CLK_TCK")


def outside_ms(directory: Path) -> float:
    file = directory / "outside.py"
    file.write_text(WORK)
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[1])


def main() -> None:
    report = sandbox_report()
    print(f"sandbox: {report.reason}")
    if not report.available:
        return
    print(f"limits: {LIMITS.memory_bytes >> 20} MiB, {LIMITS.cpu_millis / 1000:g} CPUs; two Ray workers")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        runs = [trio.run(one_run, directory, number + 1) for number in range(STARTS)]
        outside = outside_ms(directory)
    for key, unit in (
        ("start_s", "s   order → first line of the job's code"),
        ("cpu_s", "s   of CPU until then"),
        ("memory_mb", "MB  of the whole sandbox, two idle workers"),
        ("processes", "    processes"),
        ("stop_s", "s   kill → nothing left"),
        ("step_ms", "ms  a step inside (two workers at once)"),
    ):
        values = sorted(run[key] for run in runs)
        print(f"  {values[len(values) // 2]:9.2f} {unit}  (of {', '.join(f'{value:.2f}' for value in values)})")
    print(f"  {outside:9.2f} ms  the same step outside, alone")
    fastest = min(run["step_ms"] for run in runs)
    print(f"  {outside / fastest:9.2f}     throughput inside against outside")


if __name__ == "__main__":
    main()
