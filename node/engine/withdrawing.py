"""Devices taken back from the market and given to it again, by their owner or by the watch on their health."""

from typing import Any

from hansa.market import sale_events
from hansa.node.engine.events import DevicesReturned, DevicesWithdrawn
from hansa.node.engine.selling_turns import advance_sale
from hansa.node.engine.state import NodeState
from hansa.scheduler import capacity

Effects = list[Any]


def withdraw(state: NodeState, event: DevicesWithdrawn) -> Effects:
    """Lend these devices no more: bids on them lapse, and whoever computes on them leaves."""
    by_ms = event.at_ms + event.notice_ms
    state.capacity = capacity.withdraw(
        state.capacity, event.devices, by_ms=by_ms, why=event.why, at_ms=event.at_ms, by_owner=event.by_owner
    )
    taken = set(event.devices)
    effects: Effects = []
    for bid, entry in list(state.sales.live.items()):
        if bid in state.capacity.allotments and taken & set(entry.bid.devices):
            order = sale_events.ReclaimOrdered(by_ms=by_ms, reason=event.why, at_ms=event.at_ms)
            effects += advance_sale(state, bid, order)
    return effects


def give_back(state: NodeState, event: DevicesReturned) -> Effects:
    """Lend these devices again, once whoever still computes on them has left."""
    state.capacity = capacity.give_back(state.capacity, event.devices, by_owner=event.by_owner)
    return []
