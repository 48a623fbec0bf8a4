"""What a large state costs the daemon in memory, and how fast it passes between a job in a sandbox and the store.

Run with the environment's Python, from anywhere: ``python tests/bench/bench_states.py [MEBIBYTES]``.
"""

import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import trio
from integration.sandbox_harness import LIMITS, a_room, an_order, sandbox_report

from hansa.node.isolation import process_tree
from hansa.scheduler.run import RunCheckpointed, RunFailed, RunFinished, RunOutput, RunProgressed, RunSynced

SIZE_MIB = int(sys.argv[1]) if len(sys.argv) > 1 else 512
WORK = f"""
import numpy as np

def main(ctx):
    state = ctx.restore() or {{"w": np.ones({SIZE_MIB} << 18, dtype=np.float32)}}
    ctx.report(step=1)
    state = ctx.sync(state)
    ctx.report(step=2)
    ctx.checkpoint(state)
    ctx.report(step=3)
    with open(ctx.outputs / "w.bin", "wb") as file:
        file.write(state["w"].data)
"""


def memory_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise KeyError(name)


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


async def sample(peaks: list[int]) -> None:
    """The most memory that all processes below this one had together."""
    while True:
        pids = process_tree.descendants(os.getpid())[1:]
        peaks[0] = max(peaks[0], process_tree.memory_bytes(pids))
        await trio.sleep(0.5)  # it reads much of /proc


async def measure(directory: Path) -> None:
    state_bytes = (SIZE_MIB << 20) + (1 << 20)
    limits = dataclasses.replace(
        LIMITS,
        memory_bytes=(6 * SIZE_MIB << 20) + (1 << 30),
        scratch_bytes=2 * state_bytes,
        state_bytes=state_bytes,
        output_bytes=2 * state_bytes,
        stall_ms=300_000,
        wall_ms=600_000,
    )
    async with a_room() as room, trio.open_nursery() as nursery:
        peaks = [0]
        nursery.start_soon(sample, peaks)
        for run in (b"a" * 32, b"b" * 32):
            room_events = len(room.events)
            saved = [event for event in room.events if isinstance(event, RunCheckpointed)]
            checkpoint = saved[-1].checkpoint if saved else None
            order = an_order(directory, WORK, run=run, limits=limits, checkpoint=checkpoint)
            forget_peak()
            before_kib, marks = memory_kib("VmRSS"), {}
            at_s = time.perf_counter()
            await room.executor.start(order)
            while True:
                for event in room.events[room_events:]:
                    marks.setdefault((type(event), getattr(event, "step", None)), time.perf_counter())
                    if isinstance(event, RunSynced) and (RunSynced, "answered") not in marks:
                        marks[RunSynced, "answered"] = time.perf_counter()
                        await room.executor.deliver_round(run, event.round, event.state)
                if any(kind in (RunFinished, RunFailed) for kind, _ in marks):
                    break
                await trio.sleep(0.01)
            assert not any(kind is RunFailed for kind, _ in marks), room.events[-3:]
            grown_mib = (memory_kib("VmHWM") - before_kib) / 1024
            start_s = marks[RunProgressed, 1] - at_s
            sync_s = marks[RunSynced, None] - marks[RunProgressed, 1]
            # Of two steps in quick succession only the second may be told.
            after = min(at for (kind, step), at in marks.items() if kind is RunProgressed and step > 1)
            result_s = after - marks[RunSynced, "answered"]
            output_s = marks[RunOutput, None] - marks[next(k for k in marks if k[0] is RunCheckpointed)]
            print(f"{'from a checkpoint' if checkpoint else 'fresh':>18}: daemon +{grown_mib:.1f} MiB at most")
            print(
                f"{'':>18}  start {start_s:.1f} s, state out {sync_s:.1f} s, result in {result_s:.1f} s,"
                f" file out {output_s:.1f} s; sandbox {peaks[0] / 2**20:.0f} MiB at most"
            )
        nursery.cancel_scope.cancel()


def main() -> None:
    report = sandbox_report()
    print(f"sandbox: {report.reason}\nstate: {SIZE_MIB} MiB")
    if report.available:
        with tempfile.TemporaryDirectory() as name:
            trio.run(measure, Path(name))


if __name__ == "__main__":
    main()
