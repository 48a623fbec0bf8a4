"""Devices taken back from the market and given to it again, by their owner or by the watch on their health."""

from typing import Any

from hansa.node.events import DevicesReturned, DevicesWithdrawn
from hansa.node.state import NodeState
from hansa.scheduler import capacity

Effects = list[Any]


def withdraw(state: NodeState, event: DevicesWithdrawn) -> Effects:
    """Lend these devices no more."""
    by_ms = event.at_ms + event.notice_ms
    state.capacity = capacity.withdraw(state.capacity, event.devices, by_ms=by_ms, why=event.why, at_ms=event.at_ms)
    return []


def give_back(state: NodeState, event: DevicesReturned) -> Effects:
    """Lend these devices again, once whoever still computes on them has left."""
    state.capacity = capacity.give_back(state.capacity, event.devices)
    return []
