"""Channels that both sides have ended and their chain has not: what is said again until it has."""

from typing import Any

from hansa.market import earning_channel, paying_channel
from hansa.market.funding import SettlementWanted
from hansa.node.engine.state import NodeState
from hansa.proto.currency import currency_of

MOST_AT_ONCE = 64
"""So many are said again at a time; the others come next, as more may have ended than a chain takes at once."""
EVERY_MS = 30_000


def settlements_wanted(state: NodeState, at_ms: int) -> list[SettlementWanted]:
    """The ends that a chain should be told, of a bounded number of channels, and of others at another time."""
    if not state.currency or not currency_of(state.currency).is_on_chain:
        return []
    wanted: list[Any] = []
    for key, paying in state.paying.ended.items():
        if not paying.settled_ms and paying.currency == state.currency:
            wanted += [(key, effect) for effect in paying_channel.outstanding(paying, at_ms)]
    for key, earning in state.earning.ended.items():
        if not earning.settled_ms and earning.currency == state.currency:
            wanted += [(key, effect) for effect in earning_channel.outstanding(earning, at_ms)]
    ends = [effect for _, effect in sorted(wanted, key=lambda each: each[0]) if isinstance(effect, SettlementWanted)]
    if len(ends) <= MOST_AT_ONCE:
        return ends
    start = at_ms // EVERY_MS * MOST_AT_ONCE % len(ends)
    return (ends + ends)[start : start + MOST_AT_ONCE]
