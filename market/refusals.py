"""Why a winner does not take its award, and whose fault that is.

A provider says of what kind its refusal is. Whoever wins a tender and does not come has broken its word, just as one
that says nothing, and a liar would say whatever excuses it: so only what the buyer can see itself is an excuse. A bid
ran out before its award could come; the channel that the award named was an older one, which its provider may close at
any time; the shard weighs what no provider takes, or has a limit that no sandbox can have, or brings files, of which
each takes as many as it likes. Everything else is the provider's own doing, and marks its record as silence does:
devices that it took back before they could be used among them, since its bid was a promise for exactly these few
seconds.
"""

from hansa.market.receipts import CLOCK_SKEW_MS
from hansa.market.sale_award import is_possible, is_too_large
from hansa.market.sale_events import AwardArrived
from hansa.market.sale_state import Sale
from hansa.proto.market_documents import Award, Bid
from hansa.proto.messages import RefusalKind
from hansa.proto.workload import Workload

NEAR_MS = 4_000
"""A bid that has so little time left when its refusal comes may have run out by its provider's clock."""


def kind_of_objection(state: Sale, event: AwardArrived) -> RefusalKind:
    """Of what kind it is that a provider has something against an award of a bid that stands."""
    if event.at_ms > min(event.award.confirm_by_ms + CLOCK_SKEW_MS, state.bid.expires_ms):
        return "expired"
    if event.channel_closed:
        return "channel-closed"
    weighs_too_much = is_too_large(event.workload) or event.workload.fetch_bytes > state.max_fetch_bytes
    if weighs_too_much or not is_possible(event.workload):
        return "too-large"
    return "mismatch"


def kind_of_end(state: Sale) -> RefusalKind:
    """Of what kind it is that a bid does not stand any more when its award comes."""
    if state.reclaim_by_ms:
        return "reclaimed"
    return "expired" if state.phase == "lapsed" and state.award is None else "not-held"


def is_own_fault(
    kind: RefusalKind, *, award: Award, bid: Bid, is_old_channel: bool, workload: Workload, at_ms: int
) -> bool:
    """Whether a winner that refuses is to blame, as far as its buyer can see.

    Args:
        kind: what it says.
        award: what it refuses.
        bid: what it had promised.
        is_old_channel: the award named a channel that was there before the tender.
        workload: what was to be run.
        at_ms: when the refusal came.
    """
    match kind:
        case "expired":
            return at_ms <= min(award.confirm_by_ms, bid.expires_ms - NEAR_MS)
        case "channel-closed":
            return not is_old_channel
        case "too-large":
            return not (workload.fetch_bytes or is_too_large(workload) or not is_possible(workload))
        case _:
            return True
