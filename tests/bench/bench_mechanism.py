"""What each rule of deciding a tender pays and who gains by playing: ``python tests/bench/bench_mechanism.py``.

A buyer wants ``n`` shards of one device each. Providers have one device each and a cost of their own for it, drawn
evenly from 0.5 to 1.5 of the usual one; the buyer's ceiling is 2. The rules: *pay as bid* (what is in force), and the
*uniform* price at which the best bid that lost would have sold. Figures are means over many tenders, in parts of the
usual cost; decision 17 is argued with them.
"""

import argparse
from random import Random
from statistics import fmean

CEILING = 2.0
SHARDS = 4


def costs_of(chance: Random, bidders: int) -> list[float]:
    """What each provider's device costs it, the cheapest first."""
    return sorted(chance.uniform(0.5, 1.5) for _ in range(bidders))


def best_shaded(cost: float, bidders: int) -> float:
    """What a provider bids under pay as bid when everybody shades: the ``n``-th lowest of the others, if above its own.

    That is the symmetric equilibrium, by the equivalence of payments, of even costs. With fewer others than shards
    nothing holds a bid below the ceiling.
    """
    others = bidders - 1
    if others < SHARDS:
        return CEILING
    # The n-th lowest of the others, given that it is above this cost: integrated over its density.
    steps, mass, total = 200, 0.0, 0.0
    for step in range(steps):
        value = cost + (1.5 - cost) * (step + 0.5) / steps
        share = value - 0.5
        density = share ** (SHARDS - 1) * (1 - share) ** (others - SHARDS)
        mass, total = mass + density, total + density * value
    return total / mass if mass else cost


def uniform_price(bids: list[float]) -> float:
    """The price of each shard: the best bid that lost, or the ceiling where none did."""
    return bids[SHARDS] if len(bids) > SHARDS else CEILING


def measure(bidders: int, tenders: int, seed: int) -> dict[str, float]:
    """The means for so many bidders."""
    chance = Random(seed)
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    curve = [best_shaded(0.5 + place / 100, bidders) for place in range(101)]
    for _ in range(tenders):
        costs = costs_of(chance, bidders)
        price = uniform_price(costs)
        note("cheapest possible", fmean(costs[:SHARDS]))
        note("uniform, everybody honest", price)
        note("pay as bid, everybody shades", fmean(curve[round((cost - 0.5) * 100)] for cost in costs[:SHARDS]))
        # A buyer that may invent a bid after it has seen the others: it loses by a hair to the dearest that wins.
        note("uniform, the buyer invents a bid", costs[SHARDS - 1])
        # One owner has two of the devices. It keeps the dearer one back where that pays.
        mine = sorted(chance.sample(range(bidders), 2))
        note("uniform: gain of an owner of two by keeping one back", kept_back_gain(costs, mine))
    return {name: fmean(values) for name, values in found.items()}


def kept_back_gain(costs: list[float], mine: list[int]) -> float:
    """What an owner of two devices earns more, in parts of the usual cost, when it offers the cheaper one only."""
    price = uniform_price(costs)
    honest = sum(max(0.0, price - costs[place]) for place in mine if place < SHARDS)
    left = [cost for place, cost in enumerate(costs) if place != mine[1]]
    alone = uniform_price(left) - costs[mine[0]] if mine[0] < SHARDS else 0.0
    return max(0.0, alone - honest)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenders", type=int, default=20_000)
    chosen = parser.parse_args()
    markets = (SHARDS + 1, 2 * SHARDS, 3 * SHARDS, 5 * SHARDS)
    tables = [measure(bidders, chosen.tenders, seed=17) for bidders in markets]
    print(f"{'':55}" + "".join(f"{f'{bidders} bids':>10}" for bidders in markets))
    for name in tables[0]:
        print(f"{name:55}" + "".join(f"{table[name]:10.3f}" for table in tables))


if __name__ == "__main__":
    main()
