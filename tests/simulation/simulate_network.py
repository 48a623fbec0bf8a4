"""A thousand nodes' books in virtual time: ``python tests/simulation/simulate_network.py --nodes 1000``.

Prints how long until nodes know 99 % of all providers, what a node sends and receives in a minute, and how long until
both halves of a network that was cut agree; and with ``--hours`` whether a long life of coming and going leaks
anything.
"""

import argparse
import gc
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from simulation.gossip import GossipWorld

KNOWN = 0.99


def shown(times: Sequence[float]) -> str:
    """The median, the 95th and the 99th percentile, in seconds."""
    ranked = sorted(times)
    marks = (ranked[min(len(ranked) - 1, int(len(ranked) * part))] for part in (0.5, 0.95, 0.99))
    return " / ".join(f"{mark:.1f}" for mark in marks)


def grow(world: GossipWorld, nodes: int, providers: int) -> None:
    """All nodes, one after the other within ten seconds."""
    for number in range(nodes):
        world.join(provides=number < providers)
        world.run(10 / nodes)


def traffic(world: GossipWorld, seconds: float) -> tuple[float, float]:
    """Kilobytes that a node sends and receives in a minute: by gossip, and by comparing."""
    for node in world.nodes.values():
        node.gossip_bytes = node.sync_bytes = 0
    world.run(seconds)
    scale = 60 / seconds / 1000 / len(world.nodes)
    every = world.nodes.values()
    return sum(node.gossip_bytes for node in every) * scale, sum(node.sync_bytes for node in every) * scale


def cut_and_heal(world: GossipWorld, seconds: float) -> list[float]:
    """Two halves that do not hear each other, each with newcomers; then how long until all know all again."""
    world.cut = lambda one, other: (one ^ other) & 1 == 1
    for _ in range(max(4, len(world.nodes) // 20)):
        world.join()
        world.run(0.2)
    world.run(seconds)
    world.cut = lambda _one, _other: False
    return world.until_known(list(world.nodes.values()), KNOWN, 300, 1.0)


def measure(nodes: int, providers: int, seed: int, steady_s: float) -> None:
    """One network from its start to a cut that heals."""
    began = time.perf_counter()
    world = GossipWorld(seed)
    grow(world, nodes, providers)
    print(f"{nodes} nodes, {providers} of them providers")
    cold = world.until_known(list(world.nodes.values()), KNOWN, 300)
    print(f"  after all have come, until 99 % known, p50 / p95 / p99: {shown(cold)} s", flush=True)
    gossip, sync = traffic(world, steady_s)
    print(f"  steady state: {gossip:.0f} KB/min of gossip and {sync:.0f} KB/min of comparing for each node", flush=True)
    late = []
    for _ in range(10):
        newcomer = world.join(provides=False)
        late += world.until_known([newcomer], KNOWN, 120, 0.1)
    print(f"  a newcomer, until 99 % known: {shown(late)} s", flush=True)
    healed = cut_and_heal(world, steady_s)
    print(f"  a cut of {steady_s:.0f} s through the middle, until 99 % known after it heals: {shown(healed)} s")
    print(f"  ({world.now_s:.0f} s of virtual time in {time.perf_counter() - began:.0f} s)", flush=True)


def memory_bytes() -> int:
    """What this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def live(nodes: int, hours: float, seed: int) -> bool:
    """A long life: every two minutes a node goes and another comes. Answers whether what could grow stayed flat."""
    began = time.perf_counter()
    world = GossipWorld(seed)
    grow(world, nodes, nodes)
    world.run(600)
    marks: list[tuple[dict[str, int], int]] = []
    for hour in range(int(hours)):
        for _ in range(30):
            world.leave(world.chance.choice(list(world.nodes)))
            world.join()
            world.run(120)
        world.forget_old()
        gc.collect()
        marks.append((world.sizes(), memory_bytes()))
        if hour % 4 == 3 or hour == int(hours) - 1:
            print(f"  hour {hour + 1}: {marks[-1][0]}, {marks[-1][1] / 1e6:.1f} MB", flush=True)
    quarter = max(1, len(marks) // 4)
    first, last = marks[quarter - 1], marks[-1]
    flat = all(last[0][name] <= 2 * first[0][name] + 50 for name in first[0]) and last[1] <= 1.2 * first[1] + 10e6
    print(f"  {nodes} nodes, {hours:.0f} h of virtual time in {time.perf_counter() - began:.0f} s: flat: {flat}")
    return flat


def main() -> int:
    """Measure, and say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--providers", type=int, help="all of them by default")
    parser.add_argument("--steady", type=float, default=60, help="how many seconds of the steady state are measured")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=float, default=0, help="live so long instead, with nodes coming and going")
    chosen = parser.parse_args()
    if chosen.hours:
        return 0 if live(chosen.nodes, chosen.hours, chosen.seed) else 1
    measure(chosen.nodes, chosen.providers or chosen.nodes, chosen.seed, chosen.steady)
    return 0


if __name__ == "__main__":
    sys.exit(main())
