"""The Alibaba-2023 pods and nodes, and the protocol by which the published figures of packing policies were made.

The protocol (hkust-adsl/kubernetes-scheduler-simulator): the nodes with GPUs; all pods of the list in an order drawn
from the seed, then pods drawn from the list until the demand for GPUs is 130 % of what the cluster has; each is placed
at once or never, and none ends. The figure is the share of GPUs that is allocated when the arrived demand is 100 % of
the cluster (the mean over the moments at which it is between 99.5 and 100.5 %).
"""

import csv
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hansa.scheduler.packing import Expected, Fleet, Machine, Place, Request

TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"
ALIBABA = TRACES / "alibaba-gpu-v2023"
BASELINES = TRACES / "fgd-baselines" / "analysis_allo_discrete_subset.csv"
TUNED = 1.3
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A cluster and a list of pods."""

    machines: tuple[Machine, ...]
    pods: tuple[Request, ...]

    @property
    def total_milli(self) -> int:
        """GPUs of the cluster, in thousandths."""
        return sum(sum(machine.free_milli) for machine in self.machines)


def read(name: str) -> Trace:
    """The cluster and the pods of ``openb_pod_list_<name>.csv``."""
    with (ALIBABA / "openb_node_list_all_node.csv").open(newline="") as file:
        machines = tuple(
            Machine(
                model=row["model"],
                free_milli=(1000,) * int(row["gpu"]),
                cores_milli=int(row["cpu_milli"]),
                memory_bytes=int(row["memory_mib"]) * MIB,
            )
            for row in csv.DictReader(file)
            if int(row["gpu"])
        )
    with (ALIBABA / f"openb_pod_list_{name}.csv").open(newline="") as file:
        pods = tuple(
            Request(
                devices=int(row["num_gpu"]),
                share_milli=int(row["gpu_milli"]) or 1000,
                cores_milli=int(row["cpu_milli"]),
                memory_bytes=int(row["memory_mib"]) * MIB,
                models=frozenset(filter(None, row["gpu_spec"].split("|"))),
            )
            for row in csv.DictReader(file)
        )
    return Trace(machines=machines, pods=pods)


def arrivals(trace: Trace, seed: int) -> list[Request]:
    """The pods in the order in which they come."""
    chance = random.Random(seed)
    coming = list(trace.pods)
    chance.shuffle(coming)
    demand_milli, limit_milli = sum(pod.taken_milli for pod in coming), TUNED * trace.total_milli
    while True:
        pod = chance.choice(trace.pods)
        demand_milli += pod.taken_milli
        if demand_milli > limit_milli:
            return coming
        coming.append(pod)


def usual(pods: Sequence[Request], *, popular: float = 0.95, memory: bool = False) -> tuple[Expected, ...]:
    """The kinds of pods that make up so much of the list, the most frequent first. FGD is told these too."""
    kinds = Counter(
        Request(
            devices=pod.devices,
            share_milli=pod.share_milli,
            cores_milli=pod.cores_milli,
            memory_bytes=pod.memory_bytes if memory else 0,
            models=pod.models,
        )
        for pod in pods
    )
    chosen: list[Expected] = []
    reached = 0
    for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0].cores_milli, sorted(item[0].models))):
        if reached >= popular * len(pods):
            break
        reached += count
        chosen.append(Expected(request=kind, weight=count))
    return tuple(chosen)


def shuffled_machines(trace: Trace, seed: int) -> list[Machine]:
    """The machines in an order of the seed: it decides between equal scores."""
    machines = list(trace.machines)
    random.Random(seed + 1_000_000).shuffle(machines)
    return machines


def allocated_percent(
    trace: Trace,
    pods: Sequence[Request],
    best: Callable[[Request], Place | None],
    take: Callable[[Request, Place], None],
    at_percent: Sequence[int] = (100,),
) -> dict[int, float]:
    """Runs the pods through a policy: percent of the GPUs allocated, by percent of arrived demand."""
    total_milli, arrived_milli, used_milli = trace.total_milli, 0, 0
    seen: dict[int, list[float]] = {percent: [] for percent in at_percent}
    last = max(at_percent)
    for pod in pods:
        arrived_milli += pod.taken_milli
        place = best(pod)
        if place is not None:
            take(pod, place)
            used_milli += pod.taken_milli
        percent = round(100 * arrived_milli / total_milli)
        if percent in seen:
            seen[percent].append(100 * used_milli / total_milli)
        if percent > last:
            break
    return {percent: sum(values) / len(values) for percent, values in seen.items()}


def fleet_of(machines: Sequence[Machine]) -> Fleet:
    """The cluster, empty."""
    return Fleet(machines)
