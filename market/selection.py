"""Which bids win: every bid gets a score and a sentence, and the cheapest way to finish comes first.

The score is what a bid would cost until the work is done (``hansa.market.scoring``). What cannot win is scored too, so
that the buyer sees what it would have cost. Integers.
"""

from collections.abc import Mapping, Sequence

from hansa.market.bandwidth import THERE, Bandwidth
from hansa.market.clauses import facts_of, unmet_by_bid, why_no_answer
from hansa.market.effects import clipped
from hansa.market.isolation import is_served
from hansa.market.scoring import Scored, Stated, measured_lines, score, speeds, transfer_times_ms, ways_ms
from hansa.market.shares import WHOLE_MILLI, cost, most_ahead, share_asked, share_given, width_milli
from hansa.market.track_record import PPM, Record, Trial
from hansa.market.value_forms import number_text, share_text, size_text
from hansa.market.vocabulary import ANY, VOCABULARY
from hansa.proto.market_documents import (
    LEASE_ANY,
    LEASE_FIRM,
    LEASE_SPOT,
    Bid,
    Clause,
    Requirements,
    Shortfall,
    Tender,
)
from hansa.proto.splits import splits_hash
from hansa.proto.units import format_amount

LONGEST_REASON_BYTES = 256


def rank(
    tender: Tender,
    bids: Mapping[bytes, Bid],
    records: Mapping[bytes, Record],
    *,
    trials: Sequence[Trial] = (),
    lines: Mapping[bytes, Bandwidth] | None = None,
    input_bytes: int = 0,
    state_bytes: int = 0,
    max_prepay_ms: int = 0,
    at_ms: int,
) -> tuple[Scored, ...]:
    """All bids, the best first. Equal scores stand in the order of their digests.

    Args:
        tender: what was tendered.
        bids: by digest.
        records: how leases with each provider ended.
        trials: how fast this kind of job ran.
        lines: what was measured of the lines to the providers.
        input_bytes: what a provider has to fetch before a shard can start.
        state_bytes: what a shard brings to each round; 0 where nothing is known of rounds.
        max_prepay_ms: how much device time the buyer pays ahead at the most: what it may lose to a provider that takes
            it and leaves.
        at_ms: now.
    """
    excluded = {
        # Choices and words of strangers stand in it: it has to fit where it is written down.
        key: clipped(
            _exclusion(tender, bid, max_prepay_ms, at_ms) or _shortfall(tender, bid, records.get(bid.signer, Record())),
            LONGEST_REASON_BYTES,
        )
        for key, bid in bids.items()
    }
    stated = {key: stated_in(bid) for key, bid in bids.items()}
    # Whoever cannot win must not move what the others are measured by.
    eligible = {key: bid for key, bid in bids.items() if not excluded[key]}
    fast = {**speeds(bids, stated, trials), **speeds(eligible, stated, trials)}
    said = {key: stated[key] for key in eligible}
    lines = lines or {}
    there = measured_lines(bids, lines, THERE, at_ms), measured_lines(eligible, lines, THERE, at_ms)
    waits = transfer_times_ms(bids, stated, input_bytes, there[0])
    waits |= transfer_times_ms(eligible, said, input_bytes, there[1])
    ways: dict[bytes, tuple[int, str]] = {}
    if state_bytes:
        ways |= ways_ms(bids, stated, lines, state_bytes=state_bytes, at_ms=at_ms)
        ways |= ways_ms(eligible, said, lines, state_bytes=state_bytes, at_ms=at_ms)
    scored = [
        score(
            key,
            bid,
            tender,
            records.get(bid.signer, Record()),
            speed=fast[key],
            transfer_ms=waits[key],
            excluded=excluded[key],
            way=ways.get(key, (0, "")),
        )
        for key, bid in bids.items()
    ]
    return tuple(sorted(scored, key=lambda entry: (bool(entry.excluded), entry.expected_cost, entry.bid)))


def stated_in(bid: Bid) -> Stated:
    """What a bid says of its devices and its line, as far as the score needs it."""
    facts = {fact.name: fact.value for fact in bid.facts}
    share = share_given(bid)
    # How fast a part is says nothing of the whole: the two are measured apart. It is written down, as short as a line.
    part = f"{number_text(share)} of " if share != WHOLE_MILLI else ""
    return Stated(
        model=clipped(part + facts.get("gpu", ""), LONGEST_REASON_BYTES),
        benchmark=_figure("benchmark", facts),
        download_bps=_figure("download", facts),
        upload_bps=_figure("upload", facts),
    )


def _figure(name: str, facts: Mapping[str, str]) -> int:
    """A fact as a number; 0 where it is not stated, or is no value of its word."""
    try:
        return int(VOCABULARY[name].key(facts[name]))
    except (KeyError, ValueError):
        return 0


def _exclusion(tender: Tender, bid: Bid, max_prepay_ms: int, at_ms: int) -> str:
    needs = tender.requirements
    if bid.expires_ms <= at_ms:
        return "the bid has expired"
    if bid.price_e18_per_device_ms > tender.price_ceiling_e18_per_device_ms:
        return "above the price ceiling"
    if len(set(bid.devices)) != len(bid.devices):
        return "not the number of devices that was tendered for"
    if why := why_no_answer(needs, len(bid.devices), facts_of(bid)):
        return why
    if share_given(bid) != share_asked(needs):
        return "not the part of a device that was tendered for"
    if bid.lease not in (LEASE_FIRM, LEASE_SPOT) or tender.lease not in (LEASE_ANY, bid.lease):
        return f"not the lease that was tendered for ({tender.lease})"
    if bid.penalty > (bid.max_total if bid.lease == LEASE_FIRM else 0):
        return "its penalty is more than its lease can cost, or stands in a lease without one"
    if not is_served(needs.tier, bid.tier):
        return f"not the isolation that was tendered for ({needs.tier})"
    if bid.max_total > cost(needs.wall_ms, width_milli(bid), bid.price_e18_per_device_ms) + 1:
        return "its limit is above price times time"
    if bid.meter_interval_ms > max(tender.meter_interval_ms, 1) * 10:
        return "its receipts would come too seldom"
    if bid.splits_hash != splits_hash(tender.splits):
        return "it does not agree to the splits"
    if bid.prepay > most_ahead(bid, max_prepay_ms):
        return f"it wants {format_amount(bid.prepay)} paid ahead, more than max_prepay allows"
    return ""


def shortfalls_of(tender: Tender, bid: Bid, record: Record) -> tuple[Shortfall, ...]:
    """Which of the tender's clauses the bid does not meet: those on what only the buyer knows are judged here too.

    How its leases ended is asked of those that had some with this buyer; of others there is nothing that could fail.
    What has a field of its own in the requirements is held against what the bid says of it.
    """
    facts = facts_of(bid)
    fields = [clause for clause in _fields(tender.requirements) if clause.name in facts]
    if not tender.requirements.clauses and not fields:
        return ()
    known = {"reputation": share_text(record.told_ppm)}
    if ends := record.good + record.bad:
        known["reliability"] = share_text(record.good * PPM // ends)
    return unmet_by_bid((*fields, *tender.requirements.clauses), {**facts, **known})


def _shortfall(tender: Tender, bid: Bid, record: Record) -> str:
    unmet = shortfalls_of(tender, bid, record)
    return f"does not meet {' and '.join(each.wanted for each in unmet)}" if unmet else ""


def _fields(needs: Requirements) -> tuple[Clause, ...]:
    # A bid says how much memory the whole device has, of which a part comes with a part.
    vram_bytes = -(-needs.device_memory_bytes * WHOLE_MILLI // (share_asked(needs) or WHOLE_MILLI))
    wanted = {
        "kind": ("=", "" if needs.kind == ANY else needs.kind),
        "vram": (">=", size_text(vram_bytes) if vram_bytes else ""),
        "cores": (">=", number_text(needs.cores_milli) if needs.cores_milli else ""),
    }
    return tuple(
        Clause(name=name, operator=operator, values=(value,)) for name, (operator, value) in wanted.items() if value
    )


def explain_choice(ranking: Sequence[Scored], winner: bytes) -> str:
    """Why this bid won, for a person."""
    eligible = [entry for entry in ranking if not entry.excluded]
    place = next(index for index, entry in enumerate(eligible) if entry.bid == winner)
    if len(eligible) == 1:
        return "the only eligible bid"
    if place == 0:
        return f"lowest expected cost of {len(eligible)} bids"
    return f"number {place + 1} of {len(eligible)} by expected cost"
