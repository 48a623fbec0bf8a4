"""What a bid would cost until the work is done: the terms of its score, each an amount of money that can be shown.

All terms are for one shard and as much work as an hour does at the usual speed of the bids at hand:

- *finishing*: price times devices, divided by how fast such devices do this kind of work;
- *risk*: what is added because some of such leases end badly (``hansa.market.track_record``);
- *transfer*: its devices wait while inputs come over its line;
- *reclaim*: its owner may take the devices back, and then the shard moves. A penalty in the bid makes up for that;
- *rounds*: its devices, and those of the whole gang, wait while states go over its line (``hansa.market.gang``).

What is not known is worth no more than what is usual: who hides how fast its devices or its line are counts as the
slowest that is known, down to a quarter of the usual. What is said is believed within bounds, and so is what was
measured: steps are counted by the provider. Of a line what this node measured itself goes before what is said of it.
Integers only.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hansa.market.bandwidth import BACK, THERE, Bandwidth
from hansa.market.shares import WHOLE_MILLI, cost, share_given, width_milli
from hansa.market.track_record import PPM, Record, Trial, lower_median, measured_rate
from hansa.proto.market_documents import Bid, Tender
from hansa.proto.units import (
    HOUR_MS,
    Address,
    Amount,
    Bytes32,
    DurationMs,
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
LONGEST_WAY_MS = 7 * 24 * HOUR_MS
"""Whatever is said or was measured, nothing counts as longer on its way."""
BITS_MS = 8_000
"""Bits of a byte, times milliseconds of a second."""
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
        upload_bps: bits that its line takes away in a second.
    """

    model: Line = ""
    benchmark: Uint64 = 0
    download_bps: Uint64 = 0
    upload_bps: Uint64 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One bid in the table that the buyer sees. Amounts are for as much work as an hour does at the usual speed.

    Attributes:
        bid: the bid's digest.
        provider: who made it.
        price_per_hour: of one device, as text.
        reliability_ppm: the share of its leases that will end well, with some certainty, in millionths.
        expected_cost: the score, the sum of the terms below, in smallest units. Lower is better.
        excluded: why it cannot win; empty if it can.
        devices: how many it has for the shard.
        share_milli: how much of each, in thousandths.
        speed_ppm: how fast they are together, in millionths of the usual speed of the bids at hand.
        speed_source: how that is known.
        finishing: price times devices, divided by their speed.
        risk: what unreliability adds.
        transfer: what it costs that devices wait for the inputs.
        reclaim: what it costs that the devices may be taken back.
        rounds: what it costs that it and its gang wait for the states of rounds on its line.
        way_ms: how long the states of one round are on its line, there and back; 0 where rounds are not known of.
        line_source: how that is known.
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
    rounds: Amount = 0
    way_ms: DurationMs = 0
    line_source: Line = ""


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
    held = _usual_beside(known, owners)
    most = {key: MOST_BELIEVED * min(usual, held.get(owners[key], usual)) for key in bids}
    found = {key: (max(1, min(rate, most[key]) * PPM // usual), sources[key]) for key, rate in rates.items()}
    for key, figure in said.items():
        speed = max(min(figure, most[key]) * PPM // usual, PPM // MOST_BELIEVED)
        found[key] = (speed, STATED)
    slowest = max(min(speed for speed, _ in found.values()), PPM // MOST_BELIEVED)
    return {key: found.get(key, (slowest, SLOWEST_KNOWN)) for key in bids}


def _usual(figures: Mapping[bytes, int], owners: Mapping[bytes, bytes]) -> int:
    """The lower median of all providers', each counted once however many bids it sent."""
    return lower_median(list(_by_owner(figures, owners).values()))


def _usual_beside(figures: Mapping[bytes, int], owners: Mapping[bytes, bytes]) -> dict[bytes, int]:
    """What is usual beside each provider that has a figure, all of them put in order but once: bids are many.

    One provider's figures are held against the others' where there are three of these or more: among fewer a single one
    that is false would be the measure itself, and with its own beside them it is not.
    """
    medians = _by_owner(figures, owners)
    ordered = sorted(medians.values())
    others = len(ordered) - 1
    if others <= LEAST_OTHERS:
        return dict.fromkeys(medians, lower_median(ordered) if ordered else 0)
    middle = (others - 1) // 2
    return {owner: ordered[middle + (bisect_left(ordered, own) <= middle)] for owner, own in medians.items()}


def _by_owner(figures: Mapping[bytes, int], owners: Mapping[bytes, bytes]) -> dict[bytes, int]:
    """One figure of each provider, however many bids it sent: the lower median."""
    found: dict[bytes, list[int]] = {}
    for key, figure in figures.items():
        found.setdefault(owners[key], []).append(figure)
    return {owner: lower_median(values) for owner, values in found.items()}


def transfer_times_ms(
    bids: Mapping[bytes, Bid], stated: Mapping[bytes, Stated], input_bytes: int, measured: Mapping[bytes, int]
) -> dict[bytes, int]:
    """How long each bid's devices would wait for the inputs; see ``_times_ms``."""
    owners = {key: bid.signer for key, bid in bids.items()}
    return _times_ms({key: each.download_bps for key, each in stated.items()}, owners, input_bytes, measured)


def _times_ms(
    said_bps: Mapping[bytes, int], owners: Mapping[bytes, bytes], size_bytes: int, measured: Mapping[bytes, int]
) -> dict[bytes, int]:
    """How long so many bytes are on each bid's line, one way.

    What was measured counts as it is. What is only stated is believed up to a multiple of the usual one, measured where
    any is; with the least line that counts as the bound if all that were measured are slower, or one that stalls would
    make everybody else as bad. A line of which nothing is known is the slowest known, but no slower than a part of the
    usual one: nobody's word on its own line ruins those that are silent. No line that is only stated counts as slower
    than that either, or it would be better to say nothing.

    Args:
        said_bps: bits in a second, as each bid states them; 0 where it does not.
        owners: whose each bid is; each counts once, however many bids it sent.
        size_bytes: how much it is.
        measured: bytes in a second, of the bids for whose provider this node knows it.
    """
    seen = {key: bytes_per_s * 8 for key, bytes_per_s in measured.items()}
    said = {key: bps for key, bps in said_bps.items() if bps >= LEAST_LINE_BPS and key not in seen}
    known = seen or said
    if not known:
        return dict.fromkeys(said_bps, 0)
    usual = _usual(known, owners)
    held = _usual_beside(known, owners)
    most = {key: MOST_BELIEVED * min(usual, held.get(owners[key], usual)) for key in said}
    lines = seen | {key: min(bps, max(most[key], LEAST_LINE_BPS)) for key, bps in said.items()}
    each = sorted(_by_owner(lines, owners).values())
    silent = max(each[0], each[len(each) // 2] // MOST_BELIEVED, LEAST_LINE_BPS)
    bps = {key: lines[key] if key in seen else max(lines.get(key, 0), silent) for key in said_bps}
    return {key: min(LONGEST_WAY_MS, size_bytes * BITS_MS // max(1, bps[key])) for key in said_bps}


def ways_ms(
    bids: Mapping[bytes, Bid],
    stated: Mapping[bytes, Stated],
    lines: Mapping[bytes, Bandwidth],
    *,
    state_bytes: int,
    at_ms: int,
) -> dict[bytes, tuple[int, str]]:
    """How long the states of one round are on each bid's line, there and back, and how that is known."""
    times: list[dict[bytes, int]] = []
    owners = {key: bid.signer for key, bid in bids.items()}
    known: Counter[bytes] = Counter()
    for way in (THERE, BACK):
        measured = measured_lines(bids, lines, way, at_ms)
        known.update(measured.keys())
        said = {key: each.download_bps if way == THERE else each.upload_bps for key, each in stated.items()}
        times.append(_times_ms(said, owners, state_bytes, measured))
    found: dict[bytes, tuple[int, str]] = {}
    for key, each in stated.items():
        way_ms = sum(found_ms[key] for found_ms in times)
        source = SLOWEST_KNOWN if way_ms else UNKNOWN
        if known[key] == len(times):
            source = MEASURED_HERE
        elif each.download_bps and each.upload_bps:
            source = STATED
        found[key] = way_ms, source
    return found


def measured_lines(
    bids: Mapping[bytes, Bid], lines: Mapping[bytes, Bandwidth], way: str, at_ms: int
) -> dict[bytes, int]:
    """Bytes in a second, of those bids whose provider's line was measured that way."""
    found = {key: lines[bid.signer].bytes_per_s(way, at_ms) for key, bid in bids.items() if bid.signer in lines}
    return {key: bytes_per_s for key, bytes_per_s in found.items() if bytes_per_s}


def score(
    key: bytes,
    bid: Bid,
    tender: Tender,
    record: Record,
    *,
    speed: tuple[int, str],
    transfer_ms: int,
    excluded: str,
    way: tuple[int, str] = (0, ""),
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
        way_ms=way[0],
        line_source=way[1],
    )
