"""A runner that is up before its run is known: Ray started, the workers waiting, nothing of any job in the sandbox.

The daemon says of which shape the run will be (`Prepare`), asks now and then whether all is up still (`Look`), and at
last what to run (`Begin`). The workers are imported and alive by then, so what is left is the job's own beginning.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hansa.proto.frames import Begin, Look, Prepare, Prepared
from hansa.worker.cluster import RAY_NAMES, place_options, prepare_environment, ray_processes, start_cluster
from hansa.worker.shard_worker import ShardWorker
from hansa.worker.wire import Wire

WORK = Path("/job/work")
ANSWER_S = 5.0
CALLS_AT_ONCE = 6
"""Of one worker: the job's function takes one thread of its actor for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCluster:
    """What is up.

    Attributes:
        ray: the module, connected.
        actors: a worker for each that the run will have, which knows nothing of it yet.
    """

    ray: Any
    actors: list[Any]


def start_workers(workers: int, gpus: int) -> RunningCluster:
    """A cluster and its workers. The environment has been prepared."""
    ray = start_cluster(workers, gpus)
    actor_class = ray.remote(max_concurrency=CALLS_AT_ONCE)(ShardWorker)
    actors = [actor_class.options(**place_options(number, workers, gpus)).remote() for number in range(workers)]
    return RunningCluster(ray=ray, actors=actors)


def await_begin(wire: Wire, frames: Iterator[Any]) -> tuple[Begin, RunningCluster | None]:
    """What to run, and what is up for it, if the daemon had that prepared first. Leaves when it hangs up instead."""
    standing: RunningCluster | None = None
    needed: list[Path] = []
    for frame in frames:
        match frame:
            case Prepare() if standing is None:
                prepare_environment(frame.threads)
                standing = start_workers(frame.workers, frame.gpus)
                standing.ray.get([actor.process_id.remote() for actor in standing.actors])
                needed = [path for path in WORK.rglob("*") if path.is_dir()]  # Ray made them, and will use them
                wire.send(Prepared())
            case Look() if standing is not None:
                if not _is_up(standing):
                    break
                wire.send(Prepared())
            case Begin():
                for directory in needed:  # the run's disk covers what was there
                    directory.mkdir(parents=True, exist_ok=True)
                return frame, standing
    os._exit(0)  # nobody is left to work for, or nothing is left to work with


def _is_up(standing: RunningCluster) -> bool:
    """Whether Ray's processes live, and those that can be asked answer."""
    try:
        standing.ray.get([actor.process_id.remote() for actor in standing.actors], timeout=ANSWER_S)
        # This asks the head; a raylet that is gone is missing among the processes, and as a node it would be dead.
        return all(node["Alive"] for node in standing.ray.nodes()) and set(RAY_NAMES.values()) <= set(ray_processes())
    except Exception:  # noqa: BLE001 - Ray raises many kinds; any of them means that it is not as it should be
        return False
