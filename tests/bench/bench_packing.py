"""How much of a fleet's GPUs a packing policy fills: the Alibaba-2023 pods, beside the published figures.

Random, BestFit and FGD are written anew after their publication (Weng et al., USENIX ATC 2023) and held against the
published figures of the same protocol (``alibaba_trace``); only the order of the pods differs, since theirs comes from
another generator of chance. Ours is ``hansa.scheduler.packing``. It was tuned on seeds 1 to 3 and on nothing else.

``python tests/bench/bench_packing.py`` takes a minute or two (seeds 42 to 44), with ``--full`` all ten published
seeds. Without ../shared/data it says so and does nothing.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import csv
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from alibaba_trace import ALIBABA, BASELINES, Trace, allocated_percent, arrivals, read, shuffled_machines, usual

from hansa.scheduler.packing import Fleet, Floats, Ints, Packer, Place, Request, Weights

PUBLISHED_SEEDS = tuple(range(42, 52))
WANTED = {"default": 95.23, "gpuspec33": 87.84}
LARGEST_CORES_MILLI = 128_000
LARGEST_DEVICES_MILLI = 8_000


class Published(Packer):
    """FGD as published: whole percents of a sigmoid of the gradient, the first of equals."""

    def price(self, request: Request, _machines: Ints, before: Floats, after: Floats) -> Floats:
        """The score, turned round."""
        gradient = (after - before + request.taken_milli) / 1000
        return -np.floor(100 / (1 + np.exp(-gradient)))


class BestFit(Packer):
    """The machine with the least left of cores and devices, and on it the device with the least left."""

    def price(self, request: Request, machines: Ints, _before: Floats, _after: Floats) -> Floats:
        """The score, turned round."""
        cores = (self.fleet.cores[machines] - request.cores_milli) / LARGEST_CORES_MILLI
        devices = (self.fleet.free[machines].sum(axis=1) - request.taken_milli) / LARGEST_DEVICES_MILLI
        return -np.floor(100 * (1 - (cores + devices) / 2))

    def best(self, request: Request) -> Place | None:
        """Of the machine's devices the fullest."""
        place = Packer.best(self, request)
        if place is None or request.share_milli == 1000:
            return place
        free = self.fleet.free[place.machine]
        fullest = min((int(left), number) for number, left in enumerate(free) if left >= request.share_milli)
        return replace(place, devices=(fullest[1],))


def anyone(fleet: Fleet, seed: int) -> tuple[Callable[[Request], Place | None], Callable[[Request, Place], None]]:
    """A machine of those that fit, and a device of those of it that fit, both by chance."""
    chance = random.Random(seed)
    packer = Packer(fleet=fleet, expected=(), weights=Weights(touched=0, filled=0, scarce=0))

    def best(request: Request) -> Place | None:
        cost, _device = packer._cost(request, np.arange(len(fleet.model)))
        fitting = np.flatnonzero(np.isfinite(cost))
        if not len(fitting):
            return None
        machine = int(chance.choice(fitting))
        devices = np.flatnonzero(fleet.free[machine] >= request.share_milli)
        chosen = chance.sample(list(devices), request.devices) if request.share_milli < 1000 else devices
        return Place(machine=machine, devices=tuple(int(number) for number in chosen[: request.devices]))

    return best, packer.take


def policy(
    name: str, trace: Trace, seed: int
) -> tuple[Callable[[Request], Place | None], Callable[[Request, Place], None]]:
    """The two functions that a policy is."""
    fleet, expected = Fleet(shuffled_machines(trace, seed)), usual(trace.pods)
    packer: Packer
    match name:
        case "Random":
            return anyone(fleet, seed)
        case "BestFit":
            packer = BestFit(fleet=fleet, expected=(), weights=Weights(touched=0, filled=0, scarce=0))
        case "FGD":
            packer = Published(fleet=fleet, expected=expected, weights=Weights(touched=1, filled=0, scarce=0))
        case _:
            packer = Packer(fleet=fleet, expected=expected)
    return packer.best, packer.take


def published(list_name: str, policy_name: str) -> float | None:
    """The mean of the published figures at 100 %."""
    with BASELINES.open(newline="") as file:
        found = [
            float(row["100"])
            for row in csv.DictReader(file)
            if row["workload"] == f"openb_pod_list_{list_name}" and row["sc_policy"].endswith(f"-{policy_name}")
        ]
    return statistics.mean(found) if found else None


def main() -> None:
    """Run and print."""
    if not BASELINES.exists() or not ALIBABA.exists():
        print(f"skipped: {ALIBABA} is not here")
        return
    seeds = PUBLISHED_SEEDS if "--full" in sys.argv else PUBLISHED_SEEDS[:3]
    print(f"load before: {os.getloadavg()[0]:.1f}; seeds {seeds[0]} to {seeds[-1]}; percent of GPUs allocated at 100 %")
    for list_name, wanted in WANTED.items():
        trace = read(list_name)
        for name in ("Random", "BestFit", "FGD", "ours"):
            begin = time.perf_counter()
            found = []
            for seed in seeds:
                best, take = policy(name, trace, seed)
                found.append(allocated_percent(trace, arrivals(trace, seed), best, take)[100])
            seconds = (time.perf_counter() - begin) / len(seeds)
            spread = f"{min(found):.2f} to {max(found):.2f}"
            known = published(list_name, name)
            beside = f"wanted: {wanted}" if known is None else f"published, 10 seeds: {known:.2f}"
            print(f"{list_name:<10}{name:<8}{statistics.mean(found):6.2f} ({spread}); {beside}; {seconds:.1f} s a run")
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
