"""What a bid would cost until the work is done: the terms of its score, each an amount of money that can be shown.

All terms are for one shard and as much work as an hour does at the usual speed of the bids at hand:

- *finishing*: price times devices, divided by how fast such devices do this kind of work;
- *risk*: what is added because some of such leases end badly (``hansa.market.track_record``);
- *transfer*: its devices wait while inputs come over its line;
- *reclaim*: its owner may take the devices back, and then the shard moves. A penalty in the bid makes up for that.

What is not known is worth no more than what is usual: who hides how fast its devices or its line are counts as the
slowest that is known, down to a quarter of the usual. What is said is believed within bounds, and so is what was
measured: steps are counted by the provider. Integers only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hansa.market.shares import WHOLE_MILLI, cost, share_given, width_milli
from hansa.market.track_record import PPM, Record, Trial, lower_median, measured_rate
from hansa.proto.market_documents import Bid, Tender
from hansa.proto.units import (
    HOUR_MS,
    Address,
    Amount,
    Bytes32,
    Line,
    Uint32,
    Uint64,
    e18_to_price_per_hour,
)

MOVE_MS = 60_000
"""Allowed for a bidding and a start, when a shard has to move."""
MOST_BELIEVED = 4
"""A speed that is only stated counts for at most so many times the usual one, and for at least that part of it."""
LEAST_OTHERS = 2
"""Among no more than so many other providers, one that is false would decide what is usual."""
LEAST_LINE_BPS = 1_000_000
"""A line that is stated slower than that counts as not stated."""
MOST_TERM = 1 << 100
"""Prices and lines are strangers' words: whatever they make of a score has to fit where it is written down."""
MEASURED_HERE = "measured on this provider"
MEASURED_ON_MODEL = "measured on this model"
STATED = "as the provider states"
SLOWEST_KNOWN = "not known: as the slowest that is"
UNKNOWN = "not known of any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What a bid says of its devices and its line, in plain numbers; 0 or empty where it says nothing.

    Attributes:
        model: of its devices, in its one form.
        benchmark: how fast one device is, in thousandths of the benchmark's unit.
        download_bps: bits that its line brings in a second.
    """

    model: Line = ""
    benchmark: Uint64 = 0
    download_bps: Uint64 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One bid in the table that the buyer sees. Amounts are for as much work as an hour does at the usual speed.

    Attributes:
        bid: the bid's digest.
        provider: who made it.
        price_per_hour: of one device, as text.
        reliability_ppm: the share of its leases that will end well, with some certainty, in millionths.
        expected_cost: the score, the sum of the five terms below, in smallest units. Lower is better.
        excluded: why it cannot win; empty if it can.
        devices: how many it offers for the shard.
        share_milli: how much of each, in thousandths.
        speed_ppm: how fast they are together, in millionths of the usual speed of the bids at hand.
        speed_source: how that is known.
        finishing: price times devices, divided by their speed.
        risk: what unreliability adds.
        transfer: what it costs that devices wait for the inputs.
        reclaim: what it costs that the devices may be taken back.
    """

    bid: Bytes32
    provider: Address
    price_per_hour: Line
    reliability_ppm: Uint32
    expected_cost: Amount
    excluded: Line
    devices: Uint32 = 0
    share_milli: Uint32 = WHOLE_MILLI
    speed_ppm: Uint64 = PPM
    speed_source: Line = UNKNOWN
    finishing: Amount = 0
    risk: Amount = 0
    transfer: Amount = 0
    reclaim: Amount = 0


def speeds(
    bids: Mapping[bytes, Bid], stated: Mapping[bytes, Stated], trials: Sequence[Trial]
) -> dict[bytes, tuple[int, str]]:
    """How fast each bid's shard would run: millionths of the usual speed among them, and how that is known."""
    rates: dict[bytes, int] = {}
    sources: dict[bytes, str] = {}
    for key, bid in bids.items():
        measured = measured_rate(trials, bid.signer, stated[key].model, len(bid.devices))
        if measured is not None:
            rates[key], sources[key] = measured[0], MEASURED_HERE if measured[1] else MEASURED_ON_MODEL
    figures = {key: stated[key].benchmark * len(bid.devices) for key, bid in bids.items() if stated[key].benchmark}
    owners = {key: bid.signer for key, bid in bids.items()}
    both = {key: rates[key] * PPM // figures[key] for key in rates if figures.get(key)}
    scale = _usual(both, owners) if both else 0
    if rates and scale:
        said = {key: figure * scale // PPM for key, figure in figures.items() if key not in rates}
    else:
        said = {} if rates else figures
    known = rates or said
    usual = _usual(known, owners) if known else 0
    if not usual:
        return dict.fromkeys(bids, (PPM, UNKNOWN))
    # Steps are the provider's own word even where they were paid for: far above the usual they are not believed.
    most = {key: MOST_BELIEVED * min(usual, _usual(known, owners, without=owners[key])) for key in bids}
    found = {key: (max(1, min(rate, most[key]) * PPM // usual), sources[key]) for key, rate in rates.items()}
    for key, figure in said.items():
        speed = max(min(figure, most[key]) * PPM // usual, PPM // MOST_BELIEVED)
        found[key] = (speed, STATED)
    slowest = max(min(speed for speed, _ in found.values()), PPM // MOST_BELIEVED)
    return {key: found.get(key, (slowest, SLOWEST_KNOWN)) for key in bids}


def _usual(figures: Mapping[bytes, int], owners: Mapping[bytes, bytes], *, without: bytes = b"") -> int:
    """The lower median of all providers', each counted once however many bids it sent.

    One provider's figures are held against the others' where there are three of these or more: among fewer a single one
    that is false would be the measure itself, and with its own beside them it is not.
    """
    by_owner: dict[bytes, list[int]] = {}
    for key, figure in figures.items():
        by_owner.setdefault(owners[key], []).append(figure)
    medians = {owner: lower_median(values) for owner, values in by_owner.items()}
    others = [median for owner, median in medians.items() if owner != without]
    return lower_median(others if len(others) > LEAST_OTHERS else list(medians.values()))


def transfer_times_ms(stated: Mapping[bytes, Stated], input_bytes: int) -> dict[bytes, int]:
    """How long each bid's devices would wait for the inputs.

    A line of which nothing is said is the slowest known, but no slower than a part of the usual one: nobody's word on
    its own line ruins those that are silent. No line that is stated counts as slower than that either, or it would be
    better to say nothing.
    """
    lines = {key: each.download_bps for key, each in stated.items() if each.download_bps >= LEAST_LINE_BPS}
    if not lines:
        return dict.fromkeys(stated, 0)
    said = sorted(lines.values())
    silent = max(said[0], said[len(said) // 2] // MOST_BELIEVED)
    return {key: input_bytes * 8_000 // max(lines.get(key, 0), silent) for key in stated}


def score(
    key: bytes,
    bid: Bid,
    tender: Tender,
    record: Record,
    *,
    speed: tuple[int, str],
    transfer_ms: int,
    excluded: str,
) -> Scored:
    """One bid with every term of its score."""
    hourly = cost(HOUR_MS, width_milli(bid), bid.price_e18_per_device_ms)
    reliability, wall_ms = record.reliability_ppm, max(1, tender.requirements.wall_ms)
    finishing = min(hourly * PPM // speed[0], MOST_TERM)
    risk = min(finishing * PPM // reliability - finishing, MOST_TERM)
    transfer = min(hourly * transfer_ms // wall_ms, MOST_TERM)
    moved = hourly * (transfer_ms + MOVE_MS) // HOUR_MS
    # The penalty is for the whole lease, and so is what a move costs; the score is for an hour of it.
    reclaim = min(max(0, moved - bid.penalty) * record.taken_back_ppm * HOUR_MS // (PPM * wall_ms), MOST_TERM)
    return Scored(
        bid=key,
        provider=bid.signer,
        price_per_hour=e18_to_price_per_hour(bid.price_e18_per_device_ms),
        reliability_ppm=reliability,
        expected_cost=finishing + risk + transfer + reclaim,
        excluded=excluded,
        devices=len(bid.devices),
        share_milli=share_given(bid),
        speed_ppm=speed[0],
        speed_source=speed[1],
        finishing=finishing,
        risk=risk,
        transfer=transfer,
        reclaim=reclaim,
    )
