"""How this provider answered the newest tenders, and what became of its bids: so that its owner learns what it lacks.

Of a bid the sale remembers everything. Of a "no" there is no machine, so the newest are kept here, a bounded number.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hansa.market.effects import clipped
from hansa.market.sale_state import Sale
from hansa.market.shares import share_given
from hansa.market.value_forms import number_text
from hansa.proto.market_documents import Tender
from hansa.proto.signing import checksum_address
from hansa.proto.units import Address, Bytes32, Note, Uint32, UnixMs, e18_to_price_per_hour

if TYPE_CHECKING:
    from hansa.node.engine.state import NodeState

Json = dict[str, Any]
MOST_DECLINED = 200
MOST_SHOWN = 200
LONGEST_BYTES = 500
OUTCOMES = {"bid": "stands", "declined": "lost", "lapsed": "lapsed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """One "no" of this provider.

    Attributes:
        buyer: whose tender it was.
        shards: for how many shards.
        closes_ms: when its bidding closed.
        reason, relaxation: what was said.
    """

    buyer: Address
    shards: Uint32
    closes_ms: UnixMs
    reason: Note
    relaxation: Note


def note_decline(state: "NodeState", tender: Tender, tender_digest: Bytes32, reason: str, relaxation: str) -> None:
    """Remember a "no", and forget the oldest."""
    state.declined.pop(tender_digest, None)
    state.declined[tender_digest] = Declined(
        buyer=tender.signer,
        shards=len(tender.shards),
        closes_ms=tender.bids_close_ms,
        reason=clipped(reason, LONGEST_BYTES),
        relaxation=clipped(relaxation, LONGEST_BYTES),
    )
    while len(state.declined) > MOST_DECLINED:
        del state.declined[next(iter(state.declined))]


def tenders_view(state: "NodeState") -> list[Json]:
    """The newest tenders that were answered, the newest first, each with its bids and why there were no more."""
    bids: dict[bytes, list[Sale]] = {}
    for _, sold in state.sales.all():
        bids.setdefault(sold.bid.tender, []).append(sold)
    rows = [_row(key, bids.get(key, []), state.declined.get(key)) for key in {**bids, **state.declined}]
    rows.sort(key=lambda row: (-row["closes_ms"], row["tender"]))
    return rows[:MOST_SHOWN]


def _row(tender: bytes, sales: Iterable[Sale], declined: Declined | None) -> Json:
    sold = list(sales)
    buyer = declined.buyer if declined is not None else sold[0].tender.signer
    return {
        "tender": tender.hex(),
        "buyer": checksum_address(buyer),
        "shards": declined.shards if declined is not None else len(sold[0].tender.shards),
        "closes_ms": declined.closes_ms if declined is not None else sold[0].tender.bids_close_ms,
        "declined": declined.reason if declined is not None else "",
        "relaxation": declined.relaxation if declined is not None else "",
        "bids": [
            {
                "bid": entry.bid_digest.hex(),
                "devices": len(entry.bid.devices),
                "share": number_text(share_given(entry.bid)),
                "price_per_hour": e18_to_price_per_hour(entry.bid.price_e18_per_device_ms),
                "outcome": OUTCOMES.get(entry.phase, "won"),
                "phase": entry.phase,
                "why": entry.reason,
            }
            for entry in sold
        ],
    }
