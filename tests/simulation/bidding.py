"""What must hold of every tender, whoever plays: the auditor's part about holds, awards and what is paid for them.

Worked out from the states of honest nodes and the documents in them, and not with the code that decides.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

from simulation.parts import WHOLE, part_milli

from hansa.market.purchase_state import Purchase

LONGEST_HOLD_MS = 60_000 + 10_000 + 30_000
"""The longest bidding that a provider takes part in, how long bids stand after it, and what clocks may differ by."""
DOWN_MS = 62_000
"""A node that lies dead decides nothing; it may lie for so long."""


def check_bidding(node: Any, least_funds: dict[bytes, int]) -> None:
    """After every batch of an honest node.

    Args:
        node: the node.
        least_funds: the least that each purchase ever had to spend, by tender; it is brought up to date.
    """
    state = node.engine.state
    for bid, entry in state.capacity.allotments.items():
        if entry.phase == "hold":
            held_ms = state.at_ms - entry.since_ms
            assert held_ms <= LONGEST_HOLD_MS + DOWN_MS, f"devices are held for {held_ms} ms by a bid"
            sold = state.sales.get(bid)
            assert sold is not None
            assert sold.phase == "bid", f"devices are held by a bid that is {sold.phase}"
    for bought in state.purchases.live.values():
        least = min(bought.funds, least_funds.get(bought.tender_digest, bought.funds))
        least_funds[bought.tender_digest] = least
        check_purchase(bought, state.at_ms, least)


def check_purchase(bought: Purchase, at_ms: int, least_funds: int | None = None) -> None:
    """One purchase, in any phase. What it was given to spend after an award says nothing of that award."""
    tender = bought.tender
    if bought.phase == "tendering":
        late_ms = at_ms - tender.bids_close_ms
        assert late_ms <= DOWN_MS, f"bidding is open {late_ms} ms after its end"
        assert not bought.placements, "something is awarded while bidding is open"
        return
    stands = [entry for entry in bought.placements if entry.phase != "failed"]
    shards = [entry.shard for entry in stands]
    assert len(shards) == len(set(shards)), "a shard is bought twice"
    bids = [entry.bid for entry in bought.placements]
    assert len(bids) == len(set(bids)), "a bid is awarded twice"
    devices = Counter[tuple[bytes, bytes]]()
    for entry in stands:
        for device in bought.bids[entry.bid].devices:
            devices[entry.provider, device] += part_milli(bought.bids[entry.bid])
    assert all(milli <= WHOLE for milli in devices.values()), "a device is bought twice"
    for entry in stands:
        bid = bought.bids[entry.bid]
        assert entry.award.bid == entry.bid
        assert entry.provider == bid.signer
        assert bid.price_e18_per_device_ms <= tender.price_ceiling_e18_per_device_ms, "awarded above the ceiling"
    if bought.phase in ("running", "settling"):
        assert set(shards) == set(tender.shards), "a gang runs that is not whole"
        assert all(entry.phase in ("confirmed", "ended") for entry in stands), "a gang runs that is not confirmed"
    if bought.phase == "awarding":
        promised = sum(bought.bids[entry.bid].max_total for entry in stands)
        assert promised <= bought.funds or any(entry.phase == "confirmed" for entry in stands), "more than there is"
    _check_order(bought if least_funds is None else replace(bought, funds=least_funds), set(devices))


def _check_order(bought: Purchase, devices: set[tuple[bytes, bytes]]) -> None:
    """Whatever was awarded, nothing that could have been was cheaper to finish with."""
    dearest = max((_cost(bought, entry.bid) for entry in bought.placements), default=0)
    tried = {entry.bid for entry in bought.placements}
    for scored in bought.ranking:
        offered = {(scored.provider, device) for device in bought.bids[scored.bid].devices}
        free = not scored.excluded and scored.bid not in tried and not offered & devices
        if free and scored.provider not in bought.deserters and scored.expected_cost < dearest:
            passed = _was_sold(bought, offered) or _is_full(bought, scored.provider) or _is_too_dear(bought, scored.bid)
            assert passed, "a better bid was passed by"


def _is_full(bought: Purchase, provider: bytes) -> bool:
    """Whether one provider has as many shards as it may, or had them before one came to nothing."""
    placed = sum(entry.provider == provider for entry in bought.placements) + bought.elsewhere.get(provider, 0)
    return bought.most_each > 0 and placed >= bought.most_each


def _is_too_dear(bought: Purchase, bid: bytes) -> bool:
    """Whether the money would not have been enough with a bid in the place of any that was awarded and is dearer.

    Once an award has come to nothing, what was left for the others is not known any more from the state alone; then it
    is enough that not everything could have been bought.
    """
    most, cost = bought.bids[bid].max_total, _cost(bought, bid)
    stands = [entry for entry in bought.placements if entry.phase != "failed"]
    promised = sum(bought.bids[entry.bid].max_total for entry in stands)
    if len(stands) < len(bought.placements) or bought.phase not in ("awarding", "running"):
        dearest = sorted(bought.bids[entry.bid].max_total for entry in bought.ranking if not entry.excluded)
        return sum(dearest[-len(bought.tender.shards) :]) > bought.funds
    dearer = [bought.bids[entry.bid].max_total for entry in stands if _cost(bought, entry.bid) > cost]
    return all(promised - theirs + most > bought.funds for theirs in dearer)


def _was_sold(bought: Purchase, offered: set[tuple[bytes, bytes]]) -> bool:
    """Whether an award that came to nothing since had these devices: then they were not to be had at the time."""
    return any(
        offered & {(entry.provider, device) for device in bought.bids[entry.bid].devices} for entry in bought.placements
    )


def _cost(bought: Purchase, bid: bytes) -> int:
    return next(entry.expected_cost for entry in bought.ranking if entry.bid == bid)
