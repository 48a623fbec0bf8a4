"""The Philly jobs in a simulated market: waiting, use and cost per job, by how machines are chosen for them.

Jobs, gangs and their lengths are those of ../shared/data/traces/philly. What is not in the trace is drawn from a seed
or stated here. A job is of one of Gavel's kinds, whose measured speeds on V100, P100 and K80 say how long it takes on
another model than the P100 that its length is taken to be of. A machine's price is around its model's (2.48, 1.46 and
0.45 dollars a GPU-hour, list prices of a large cloud in the years of both traces), as far off as real offers of one
model are from their median. A job is worth something to its buyer (log-normal). A gang runs on one model. Nobody knows
how long a job will take, and nothing is taken back.

- *first come*: strictly in order, the first machines with room; whoever waits first holds up the rest.
- *cheapest an hour*: in order, others may pass; the cheapest GPUs at that moment, whatever they can do.
- *ours*: the most valuable first, others may pass; the lowest expected cost of the work (``scheduler.matching``), and
  of machines that cost about the same the one where it spoils least (``scheduler.packing``).

``python tests/bench/bench_trace.py`` takes 12,000 jobs; ``--full`` all 82,220 since 20 September 2017, in minutes.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ast
import csv
import heapq
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from alibaba_trace import TRACES
from marketplace_offers import E18_OF_A_DOLLAR_AN_HOUR, HOUR_MS, NOW_MS, OFFERS, offers

from hansa.proto.market_documents import Advert, Device
from hansa.scheduler.matching import Taste, expected_costs
from hansa.scheduler.matching_columns import Columns
from hansa.scheduler.packing import Expected, Fleet, Floats, Ints, Machine, Packer, Place, Request

PHILLY = TRACES / "philly" / "philly.csv"
GAVEL = TRACES / "gavel-throughputs" / "simulation_throughputs.json"
MODELS = {"V100": (30, 8, 2.48), "P100": (35, 8, 1.46), "K80": (70, 4, 0.45)}
"""By model: machines, GPUs of each, dollars a GPU-hour."""
FIRST_JOBS = 12_000
ALIKE = 1.1
"""Machines whose expected cost is within a tenth of the lowest are alike."""
LOOKED_AT = 200
"""So many of those that wait are looked at when something becomes free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job of the trace: when it came, its length on a P100, and what was drawn for it."""

    number: int
    came_s: float
    length_s: float
    gpus: int
    kind: str
    value: float


class Market:
    """Machines for rent: what is free, what they cost, and how fast they are for a kind of job."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        by_model = defaultdict(list)
        for row in offers():
            by_model[row["gpu"], row["count"]].append(float(row["usd_per_gpu_hour"]))
        ratios = [
            price / statistics.median(prices) for prices in by_model.values() if len(prices) > 2 for price in prices
        ]
        machines = [(model, gpus, dollars) for model, (many, gpus, dollars) in MODELS.items() for _ in range(many)]
        chance.shuffle(machines)
        self.model = np.array([list(MODELS).index(model) for model, _, _ in machines])
        self.dollars = np.array([dollars * chance.choice(ratios) for _, _, dollars in machines])
        self.size = np.array([gpus for _, gpus, _ in machines])
        self.columns = Columns()
        for number, (model, gpus, _) in enumerate(machines):
            self.columns.put(_advert(number, model, gpus, float(self.dollars[number])))
        rows_of = self.columns.rows_of
        self.rows: Ints = np.array([rows_of[_account(number)][0] for number in range(len(machines))])
        fleet = Fleet([Machine(model=model, free_milli=(1000,) * gpus) for model, gpus, _ in machines])
        sizes = ((1, 0.8), (2, 0.05), (4, 0.05), (8, 0.1))
        self.packer = Packer(
            fleet=fleet, expected=[Expected(request=Request(devices=gpus), weight=weight) for gpus, weight in sizes]
        )
        with GAVEL.open() as file:
            measured = json.load(file)
        self.speeds = {
            ast.literal_eval(name)[0]: [measured[model.lower()][name]["null"] for model in MODELS]
            for name in measured["p100"]
            if ast.literal_eval(name)[1] == 1
            and all(measured[model.lower()].get(name, {}).get("null", 0) > 0 for model in MODELS)
        }
        self._costs: dict[str, Floats] = {}

    def free(self) -> Ints:
        """Free GPUs by machine."""
        return np.asarray((self.packer.fleet.free == 1000).sum(axis=1), dtype=np.int64)

    def costs(self, kind: str) -> Floats:
        """Expected cost of this kind of work, by machine."""
        if kind not in self._costs:
            taste = Taste(speeds=dict(zip(MODELS, self.speeds[kind], strict=True)))
            self._costs[kind] = expected_costs(self.columns, self.rows, taste)
        return self._costs[kind]

    def length_s(self, job: Job, model: int) -> float:
        """How long the job takes on a model."""
        speeds = self.speeds[job.kind]
        return job.length_s * speeds[list(MODELS).index("P100")] / speeds[model]


def _account(number: int) -> bytes:
    return (number + 1).to_bytes(20, "big")


def _advert(number: int, model: str, gpus: int, dollars: float) -> Advert:
    device = Device(id=bytes(32), kind="gpu", model=model, memory_bytes=1, cores_milli=1000, facts=())
    return Advert(
        signer=_account(number),
        peer_id="",
        addresses=(),
        devices=(device,) * gpus,
        free=gpus,
        tier="sandbox",
        features=(),
        region="",
        facts=(),
        currency="usd",
        price_e18_per_device_ms=int(dollars * E18_OF_A_DOLLAR_AN_HOUR),
        sequence=1,
        expires_ms=NOW_MS + HOUR_MS,
    )


def place(market: Market, job: Job, order: Floats, free: Ints, *, packed: bool) -> list[Place]:
    """GPUs for a job on machines of one model, those with the lowest order first; none where no model has enough."""
    if packed and job.gpus <= 8:
        fits = free >= job.gpus
        if not fits.any():
            return []
        alike = np.flatnonzero(fits & (order <= order[fits].min() * ALIKE))
        spoilt, _device = market.packer._cost(Request(devices=job.gpus), alike)
        best = int(alike[np.lexsort((order[alike], spoilt))[0]])
        return [_on(market, best, job.gpus)]
    found: list[tuple[float, list[int]]] = []
    for model in range(len(MODELS)):
        there = np.flatnonzero((market.model == model) & (free > 0))
        # Small jobs are not torn apart: one machine; gangs take whole machines first.
        if job.gpus <= 8:
            there = there[free[there] >= job.gpus]
        there = there[np.argsort(order[there], kind="stable")]
        if job.gpus > 8:
            there = there[np.argsort(-free[there], kind="stable")]
        reached = np.cumsum(free[there])
        if len(there) and reached[-1] >= job.gpus:
            needed = int(np.searchsorted(reached, job.gpus)) + 1
            found.append((float(order[there[:needed]].mean()), there[:needed].tolist()))
    if not found:
        return []
    places, left = [], job.gpus
    for machine in min(found)[1]:
        places.append(_on(market, machine, min(left, int(free[machine]))))
        left -= len(places[-1].devices)
    return places


def _on(market: Market, machine: int, gpus: int) -> Place:
    whole = np.flatnonzero(market.packer.fleet.free[machine] == 1000)[:gpus]
    return Place(machine=machine, devices=tuple(int(number) for number in whole))


def replay(jobs: list[Job], policy: str, seed: int) -> str:
    """One policy over all jobs, in words."""
    market = Market(seed)
    waiting: list[tuple[float, int]] = []
    ends: list[tuple[float, int]] = []
    running: dict[int, list[Place]] = {}
    waited, dollars, worth_waited, busy, last_s = [], [], 0.0, 0.0, jobs[-1].came_s
    coming, now_s, first_s = 0, jobs[0].came_s, jobs[0].came_s
    while coming < len(jobs) or ends:
        next_came = jobs[coming].came_s if coming < len(jobs) else float("inf")
        if ends and ends[0][0] <= next_came:
            now_s, number = heapq.heappop(ends)
            for one in running.pop(number):
                market.packer.give_back(Request(devices=len(one.devices)), one)
        else:
            now_s, job = next_came, jobs[coming]
            coming += 1
            heapq.heappush(waiting, (-job.value if policy == "ours" else job.came_s, job.number))
        free, passed = market.free(), []
        looked = 1 if policy == "first come" else LOOKED_AT
        hopeless = 1_000
        while waiting and looked and free.any():
            entry = heapq.heappop(waiting)
            job = jobs[entry[1]]
            looked -= 1
            if job.gpus < hopeless:
                order = {"ours": market.costs(job.kind), "cheapest an hour": market.dollars}.get(
                    policy, np.zeros(len(free))
                )
                places = place(market, job, order, free, packed=policy == "ours")
                if places:
                    looked += policy == "first come"
                    for one in places:
                        market.packer.take(Request(devices=len(one.devices)), one)
                    length_s = market.length_s(job, int(market.model[places[0].machine]))
                    running[job.number] = places
                    heapq.heappush(ends, (now_s + length_s, job.number))
                    waited.append(now_s - job.came_s)
                    worth_waited += (now_s - job.came_s) * job.value
                    rate = sum(market.dollars[one.machine] * len(one.devices) for one in places)
                    dollars.append(rate * length_s / 3600)
                    busy += max(0.0, min(length_s, last_s - now_s)) * job.gpus
                    free = market.free()
                    continue
                hopeless = min(hopeless, job.gpus)  # whoever needs as many finds nothing either
            passed.append(entry)
        for entry in passed:
            heapq.heappush(waiting, entry)
    values = sum(job.value for job in jobs)
    used = busy / (float(market.size.sum()) * (last_s - first_s))
    waited.sort()
    return (
        f"{policy:<17} waited: mean {statistics.mean(waited) / 60:7.1f} min,"
        f" median {waited[len(waited) // 2] / 60:5.1f}, 95 % {waited[int(0.95 * len(waited))] / 60:7.1f},"
        f" by value {worth_waited / values / 60:7.1f}; in use {100 * used:4.1f} % until the last came;"
        f" {statistics.mean(dollars):6.2f} $ a job"
    )


def read(how_many: int, seed: int) -> list[Job]:
    """The first so many jobs by the time at which they came."""
    chance = random.Random(seed)
    kinds = sorted(Market(seed).speeds)
    with PHILLY.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["timestamp"])
    # The trace's first three weeks have hardly a job.
    rows = [row for row in rows if row["timestamp"] >= "2017-09-20"][:how_many]
    return [
        Job(
            number=number,
            came_s=datetime.fromisoformat(row["timestamp"]).timestamp(),
            length_s=float(row["duration"]),
            gpus=int(row["num_gpus"]),
            kind=chance.choice(kinds),
            value=chance.lognormvariate(0, 0.6),
        )
        for number, row in enumerate(rows)
    ]


def main() -> None:
    """Replay and print."""
    if not PHILLY.exists() or not GAVEL.exists() or not OFFERS.exists():
        print(f"skipped: {TRACES} is not here")
        return
    jobs = read(10**9 if "--full" in sys.argv else FIRST_JOBS, seed=7)
    print(
        f"load before: {os.getloadavg()[0]:.1f}; {len(jobs):,} jobs, {sum(job.gpus for job in jobs):,} GPUs asked for"
    )
    for policy in ("first come", "cheapest an hour", "ours"):
        begin = time.perf_counter()
        told = replay(jobs, policy, seed=7)
        print(f"{told}; {time.perf_counter() - begin:.0f} s")
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
