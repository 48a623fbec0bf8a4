"""Markets drawn from real offers of GPUs (vast.ai and lium): adverts, jobs that look for them, and tables of worth."""

import csv
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa.proto.gpu_models import canonical
from hansa.proto.market_documents import Advert, Clause, Device, DeviceChoice, Fact, Requirements
from hansa.scheduler.matching import Wish
from hansa.scheduler.matching_assignment import IMPOSSIBLE

OFFERS = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces" / "marketplace-offers" / "offers.csv"
MIB = 1 << 20
E18_OF_A_DOLLAR_AN_HOUR = 10**6 * 10**18 // 3_600_000
NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
CUDA = ("11.8", "12.1", "12.2", "12.4", "12.6", "12.8")
DRIVERS = ("525.147", "535.183", "550.54", "560.35", "570.86")


def offers() -> list[dict[str, str]]:
    """The rows of the file."""
    with OFFERS.open(newline="") as file:
        return list(csv.DictReader(file))


def advert_from(row: dict[str, str], number: int, chance: random.Random) -> Advert:
    """An advert of a made-up account whose devices and price are those of a real offer, the price up to a fifth off."""
    count = int(row["count"])
    device = Device(
        id=number.to_bytes(32, "big"),
        kind="gpu",
        model=canonical(row["gpu"].replace("_", " ")),
        memory_bytes=int(row["vram_total_mib"]) // count * MIB,
        cores_milli=int(row["vcpus"]) * 1000 // count,
        facts=(),
    )
    facts = {
        "cuda": chance.choice(CUDA),
        "download": f"{chance.choice((100, 300, 500, 1000, 5000))} Mbit/s",
        "driver": chance.choice(DRIVERS),
        "region": row["region"].lower(),
    }
    return Advert(
        signer=chance.randbytes(20),
        peer_id="",
        addresses=(),
        devices=(device,) * count,
        free=count,
        tier=chance.choice(("sandbox", "sandbox", "gvisor")),
        features=("dependencies",) if chance.random() < 0.7 else ("dependencies", "image"),
        region=row["region"],
        facts=tuple(Fact(name=name, value=value) for name, value in facts.items()),
        currency="usd",
        price_e18_per_device_ms=int(
            float(row["usd_per_gpu_hour"]) * chance.uniform(0.8, 1.2) * E18_OF_A_DOLLAR_AN_HOUR
        ),
        sequence=1,
        expires_ms=NOW_MS + HOUR_MS,
    )


def adverts(how_many: int, seed: int) -> list[Advert]:
    """So many, drawn with putting back."""
    chance, rows = random.Random(seed), offers()
    return [advert_from(chance.choice(rows), number, chance) for number in range(how_many)]


def wishes(how_many: int, seed: int) -> list[Wish]:
    """Jobs: half of them name models, the others memory; many want a version, a region or a tier."""
    chance, rows = random.Random(seed), offers()
    return [_wish(chance.choice(rows), chance) for _ in range(how_many)]


def _wish(row: dict[str, str], chance: random.Random) -> Wish:
    count = chance.choice((1, 1, 1, 2, 4, 8))
    model = canonical(row["gpu"].replace("_", " "))
    clauses = [Clause(name="cuda", operator=">=", values=(chance.choice(CUDA),))]
    if chance.random() < 0.5:
        clauses.append(Clause(name="download", operator=">=", values=("300 Mbit/s",)))
    if chance.random() < 0.3:
        clauses.append(Clause(name="region", operator="not in", values=("cn", "ru")))
    requirements = Requirements(
        kind="gpu",
        choices=(DeviceChoice(devices=count, model=model),) if chance.random() < 0.5 else (),
        devices=count,
        device_memory_bytes=chance.choice((0, 16, 24, 40, 80)) << 30,
        cores_milli=count * 1000,
        memory_bytes=0,
        scratch_bytes=0,
        tier=chance.choice(("sandbox", "sandbox", "gvisor")),
        features=("dependencies",),
        egress=(),
        wall_ms=HOUR_MS,
        clauses=tuple(clauses),
    )
    return Wish(requirements=requirements, currency="usd", ceiling_e18=int(chance.uniform(0.3, 5) * 1e18 / 3.6))


def worth_table(jobs: int, lots: int, seed: int) -> NDArray[np.float64]:
    """What every job would gain on every lot of ``drawn_market``."""
    return drawn_market(jobs, lots, seed)[0]


def drawn_market(jobs: int, lots: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Jobs by lots, and the lots' prices: each lot is a real offer that is lent whole, its price up to a fifth off.

    A job needs a number of GPUs of at least some memory, and is worth to its buyer the median price of what would do,
    times a factor (log-normal, median 1.2) that is its own; on every lot it works up to a fifth faster or slower.
    """
    draw, rows = np.random.default_rng(seed), offers()
    picked = [rows[number] for number in draw.integers(len(rows), size=lots)]
    count = np.array([int(row["count"]) for row in picked])
    memory = np.array([int(row["vram_total_mib"]) for row in picked]) / count
    price = np.array([float(row["usd_per_hour"]) for row in picked]) * draw.uniform(0.8, 1.2, lots)
    needs = draw.choice((1, 2, 4, 8), size=jobs, p=(0.6, 0.15, 0.1, 0.15))
    least = draw.choice((8_000, 16_000, 24_000, 40_000, 79_000), size=jobs)
    does = (count >= needs[:, None]) & (memory >= least[:, None])
    median = np.array([np.median(price[row]) if row.any() else 0.0 for row in does])
    value = median * draw.lognormal(np.log(1.2), 0.5, jobs)
    worth = value[:, None] * draw.uniform(0.8, 1.2, (jobs, lots)) - price
    return np.where(does, worth, IMPOSSIBLE), price
