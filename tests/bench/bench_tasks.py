"""What a pool of tasks costs for each item, beside plain Ray in the very same sandbox, and what a second worker brings.

Run with the environment's Python, from anywhere: ``python tests/bench/bench_tasks.py``. Medians of five turns that take
each way in its turn, so that whatever else the machine does meets all of them alike.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import trio
from integration.sandbox_harness import LIMITS, a_room, an_order, sandbox_report

from hansa.scheduler.run import RunFailed, RunFinished

JOB = """
import json, statistics, time
import ray
from ray.util import ActorPool

SHORT, LONG, TURNS = 600, 60, 5


def nothing(item):
    return item


def asleep(item):
    time.sleep(0.05)  # and not at work: other programs on the machine are not what is measured
    return item


def pool_of_ours(ctx, function, count, workers, name):
    results = ctx.tasks(function, range(count), workers=workers, name=name, keep=False)
    next(results)  # the workers are up
    began = time.perf_counter()
    assert sum(1 for _ in results) == count - 1
    return (time.perf_counter() - began) / (count - 1)


def pool_of_rays(function, count, workers):
    class Plain:
        def go(self, item):
            return function(item)

    Plain.__module__ = "__main__"  # sent by value, since a plain worker does not know this file
    actors = [ray.remote(Plain).options(num_cpus=0).remote() for _ in range(workers)]
    ray.get([actor.go.remote(0) for actor in actors])
    pool = ActorPool(actors)
    began = time.perf_counter()
    assert sum(1 for _ in pool.map_unordered(lambda actor, item: actor.go.remote(item), range(count))) == count
    took = time.perf_counter() - began
    for actor in actors:
        ray.kill(actor)
    return took / count


def main(ctx):
    import ray.cloudpickle, sys
    ray.cloudpickle.register_pickle_by_value(sys.modules["hansa_job"])
    told = {}
    for turn in range(TURNS):
        for label, function, count in (("nothing", nothing, SHORT), ("50 ms", asleep, LONG)):
            for workers in (1, 2):
                ours = pool_of_ours(ctx, function, count, workers, f"{label} {workers} {turn}")
                rays = pool_of_rays(function, count, workers)
                told.setdefault(f"{label}, {workers}", []).append((ours, rays))
    medians = {key: [statistics.median(one) for one in zip(*pairs)] for key, pairs in told.items()}
    print("TOLD", json.dumps(medians), flush=True)
"""


async def measure(directory: Path) -> dict[str, list[float]]:
    """Seconds for each item, ours and plain Ray's, by what the items do and how many workers there are."""
    limits = replace(LIMITS, wall_ms=600_000, memory_bytes=2 << 30)
    async with a_room() as room:
        await room.executor.start(an_order(directory, JOB, limits=limits))
        ended = await room.wait_for((RunFinished, RunFailed), within_s=600)
        assert isinstance(ended, RunFinished), ended
        (line,) = [line for line in room.log.splitlines() if line.startswith("TOLD")]
    told: dict[str, list[float]] = json.loads(line.removeprefix("TOLD"))
    return told


def main() -> None:
    """Measure and print."""
    report = sandbox_report()
    if not report.available:
        print(f"no sandbox on this machine: {report.reason}")
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        told = trio.run(measure, Path(folder))
    print(f"{'items':8} {'workers':>7} {'ctx.tasks':>12} {'ActorPool':>12} {'more':>10} {'items/s':>8}")
    for key, (ours, rays) in told.items():
        label, workers = key.split(", ")
        figures = (
            f"{1000 * ours:.2f} ms",
            f"{1000 * rays:.2f} ms",
            f"{1000 * (ours - rays):+.2f} ms",
            f"{1 / ours:.0f}",
        )
        print(f"{label:8} {workers:>7} {figures[0]:>12} {figures[1]:>12} {figures[2]:>10} {figures[3]:>8}")


if __name__ == "__main__":
    main()
