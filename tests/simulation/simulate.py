"""Play many worlds: ``python tests/simulation/simulate.py --seeds 1000``. A world that fails is named by its seed."""

import argparse
import collections
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from simulation.market import Market, Verdict
from simulation.strategies import StrategicMarket


def play(seed: int, kind: type[Market] = Market) -> Verdict:
    """One world, or an ``AssertionError`` that says how to see it again."""
    market = kind(seed)
    try:
        return market.play()
    except BaseException as fault:
        lies = sorted(node.lie for node in market.nodes.values() if hasattr(node, "lie"))
        option = " --players" if kind is StrategicMarket else ""
        fault.add_note(
            f"seed {seed} after {market.world.now_ms - 1_700_000_000_000} ms, liars {lies}\n"
            f"replay it: python tests/simulation/simulate.py --first {seed} --seeds 1{option}\n{market.world.faults}"
        )
        raise


def main() -> int:
    """Play, count, and name what failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="a traceback for every world that fails")
    parser.add_argument("--players", action="store_true", help="markets of dozens of nodes, half of which play")
    chosen = parser.parse_args()
    failed: list[int] = []
    jobs: collections.Counter[str] = collections.Counter()
    sales: collections.Counter[str] = collections.Counter()
    ignored: collections.Counter[str] = collections.Counter()
    moves: collections.Counter[str] = collections.Counter()
    cuts: collections.Counter[str] = collections.Counter()
    standstills_ms: list[int] = []
    crashes = packets = simulated_ms = 0
    began = time.monotonic()
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        try:
            verdict = play(seed, StrategicMarket if chosen.players else Market)
        except Exception as fault:  # noqa: BLE001 - whatever it is, the seed is named and the next world is played
            failed.append(seed)
            if chosen.verbose or chosen.seeds == 1:
                traceback.print_exception(fault)
            else:
                where = traceback.extract_tb(fault.__traceback__)[-1]
                place = f"{Path(where.filename).name}:{where.lineno}"
                print(f"seed {seed}: {type(fault).__name__} {str(fault)[:300]} ({place})")
            continue
        jobs.update(verdict.jobs)
        sales.update(verdict.sales)
        ignored.update(verdict.ignored)
        moves.update(verdict.moves)
        cuts.update(verdict.cuts)
        standstills_ms += verdict.standstills_ms
        crashes, packets = crashes + verdict.crashes, packets + verdict.packets
        simulated_ms += verdict.simulated_ms
    took_s = time.monotonic() - began
    print(f"{chosen.seeds} worlds in {took_s:.1f} s, {len(failed)} failed: {failed[:50]}")
    print(
        f"jobs {dict(jobs)}\nsales {dict(sales)}\n{crashes} crashes, {packets} packets, {simulated_ms // 1000} s played"
    )
    for name, count in moves.most_common():
        print(f"  {count:7} {name}")
    if standstills_ms:
        standstills_ms.sort()
        middle, most = standstills_ms[len(standstills_ms) // 2], standstills_ms[len(standstills_ms) * 9 // 10]
        print(f"a moved shard stood still for {middle / 1000:.1f} s, nine of ten for less than {most / 1000:.1f} s")
    print(f"daemons died at {sum(cuts.values())} instants, of {len(cuts)} kinds:")
    for name, count in cuts.most_common():
        print(f"  {count:7} {name}")
    for name, count in ignored.most_common(60):
        print(f"  ignored {count:7} {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
