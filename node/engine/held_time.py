"""What of this provider's devices was held for whom in vain, and whether a buyer may have more of it now."""

from collections.abc import Mapping

from hansa.market.holding import Holdings, charged, wait_ms
from hansa.market.sale_state import Sale
from hansa.node.engine.state import NodeState


def paid_times(state: NodeState) -> dict[bytes, int]:
    """Device time that each buyer has paid for here, as far as it is remembered."""
    paid: dict[bytes, int] = {}
    for sold in state.sales.ended.values():
        if sold.phase in ("settled", "stopped") and sold.vouched:
            paid[sold.buyer] = paid.get(sold.buyer, 0) + sold.device_ms
    return paid


def with_hold(state: NodeState, holdings: Holdings, sold: Sale, since_ms: int, paid: Mapping[bytes, int]) -> Holdings:
    """What one sale held until now is counted as held in vain.

    A part of a device counts as all of it: nobody who wants the whole can have it meanwhile, and of its tenants' places
    one is taken. It is lent for less only once it is used.
    """
    held_ms = max(0, state.at_ms - since_ms) * len(sold.bid.devices)
    return charged(
        holdings,
        sold.buyer,
        held_ms,
        paid_ms=paid.get(sold.buyer, 0),
        devices=len(state.capacity.devices),
        at_ms=state.at_ms,
    )


def held_too_long(state: NodeState, buyer: bytes, *, at_ms: int) -> tuple[str, str] | None:
    """Why nothing more is held for a buyer now, and when to come again; None where there is room.

    Bids that stand count with what they have held until now: nobody is to get round this by many at once.
    """
    paid, holdings = paid_times(state), state.holdings
    for key, sold in state.sales.live.items():
        allotment = state.capacity.allotments.get(key)
        if sold.phase == "bid" and allotment is not None:
            holdings = with_hold(state, holdings, sold, allotment.since_ms, paid)
    own_ms, shared_ms = wait_ms(
        holdings, buyer, paid_ms=paid.get(buyer, 0), devices=len(state.capacity.devices), at_ms=at_ms
    )
    if not own_ms and not shared_ms:
        return None
    whom = "you" if own_ms >= shared_ms else "buyers that paid for little here"
    seconds = -(-max(own_ms, shared_ms) // 1000)
    return f"devices were held for {whom} for too long without a run", f"tender again in {seconds} s"
