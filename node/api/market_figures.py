"""What Prometheus may know of the market, counted as it happens: tenders, bids, declines, purchases, and times.

Every label is one of a few words of this node's own: whatever a stranger may choose (a reason, a name, an account) is
never a label, and what is not among the words is counted as ``other``. Counted from this start of the daemon on.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from hansa.market.effects import Send
from hansa.market.purchase_state import DEAF, SILENT, UNHEARD, Purchase
from hansa.market.shortfalls import BUSY as NONE_FREE
from hansa.market.vocabulary import VOCABULARY
from hansa.node.engine.state import NodeState, Turn
from hansa.proto.market_documents import Tender
from hansa.proto.messages import DeclineSent

OTHER: Final = "other"
RULES, BUSY = "rules", "busy"
DECLINE_REASONS: Final = frozenset({*VOCABULARY, "devices", "network", "lease", "features", RULES, BUSY, OTHER})
"""What a decline lacks first, by the names of the language of needs; ``rules`` is the owner's or the market's no."""
BID_OUTCOMES: Final = {
    ("new", "bid"): "sent",
    ("bid", "leased"): "won",
    ("bid", "declined"): "lost",
    ("bid", "lapsed"): "lapsed",
    ("leased", "lapsed"): "called_off",
    ("funding", "lapsed"): "called_off",
}
PURCHASE_OUTCOMES: Final = {"running": "filled", "unfilled": "unfilled", "cancelled": "cancelled", "settled": "settled"}
RUN_OUTCOMES: Final = ("succeeded", "failed", "stopped")
CAUSES: Final = {SILENT: "silent", UNHEARD: "unheard", DEAF: "unheard"}
MOST_HEARD: Final = 4_096
"""Tenders whose arrival is remembered until they are answered."""
ANSWER_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MATCHING_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

Counts = Mapping[str, int]


class MarketFigures(Collector):
    """Counts what the daemon hands in. It decides nothing, and nothing reads money from it.

    Attributes:
        bids: of this provider, by outcome.
        runs: on this provider, by outcome.
    """

    def __init__(self) -> None:
        """Begin with nothing counted, and every word of ours at zero, so that rates are there from the start."""
        self.bids = Counter(dict.fromkeys(BID_OUTCOMES.values(), 0))
        self.runs = Counter(dict.fromkeys(RUN_OUTCOMES, 0))
        self._tenders = Counter({"heard": 0, "turned_away": 0, "bid": 0, "declined": 0})
        self._declines: Counter[str] = Counter()
        self._purchases = Counter(dict.fromkeys(PURCHASE_OUTCOMES.values(), 0))
        self._replaced = Counter(dict.fromkeys((*CAUSES.values(), "refused"), 0))
        self._closed = Counter({"answered": 0, "enough": 0, "deadline": 0})
        self._heard: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()
        self._to_bid = Histogram(
            "hansa_tender_to_bid_seconds",
            "From a tender's arrival to this provider's first bid on it.",
            buckets=ANSWER_BUCKETS,
            registry=None,
        )
        self._matching = Histogram(
            "hansa_matching_seconds",
            "How long the book was searched for whom to invite.",
            buckets=MATCHING_BUCKETS,
            registry=None,
        )

    def heard(self, tender: Tender, at_s: float) -> None:
        """A tender has come to the engine."""
        self._tenders["heard"] += 1
        self._heard.setdefault((tender.signer, tender.nonce), at_s)
        while len(self._heard) > MOST_HEARD:
            self._heard.popitem(last=False)

    def turned_away(self) -> None:
        """A tender was more than its buyer may send."""
        self._tenders["turned_away"] += 1

    def matched(self, took_s: float) -> None:
        """The book was searched."""
        self._matching.observe(took_s)

    def turned(self, state: NodeState, turns: Iterable[Turn], now_s: float) -> None:
        """Machines went from one phase to another."""
        for turn in turns:
            if turn.machine == "sale":
                self._sale_turned(state, turn, now_s)
            elif turn.machine == "purchase":
                self._purchase_turned(state, turn)
            elif turn.machine == "run" and turn.after in RUN_OUTCOMES:
                self.runs[turn.after] += 1

    def sent(self, state: NodeState, effects: Sequence[Any]) -> None:
        """What the engine orders: of that, the declines."""
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, DeclineSent):
                self._tenders["declined"] += 1
                self._declines[self._reason(state, effect.message)] += 1

    def _reason(self, state: NodeState, message: DeclineSent) -> str:
        lacks = message.decline.document.shortfalls
        if not lacks:
            return RULES if state.capacity.free else BUSY
        if lacks[0].name == NONE_FREE:
            return BUSY
        return lacks[0].name if lacks[0].name in DECLINE_REASONS else OTHER

    def _sale_turned(self, state: NodeState, turn: Turn, now_s: float) -> None:
        outcome = BID_OUTCOMES.get((turn.before, turn.after))
        if outcome is None:
            return
        self.bids[outcome] += 1
        sold = state.sales.get(turn.key) if outcome == "sent" else None
        began_s = self._heard.pop((sold.tender.signer, sold.tender.nonce), None) if sold is not None else None
        if began_s is not None:
            self._tenders["bid"] += 1
            self._to_bid.observe(max(0.0, now_s - began_s))

    def _purchase_turned(self, state: NodeState, turn: Turn) -> None:
        bought = state.purchases.get(turn.key)
        if turn.after in PURCHASE_OUTCOMES:
            self._purchases[PURCHASE_OUTCOMES[turn.after]] += 1
        if bought is None:
            return
        if turn.before == "tendering" and turn.after in {"awarding", "unfilled"}:
            self._closed[_cause_of_closing(bought, state.at_ms)] += 1
        if turn.before == "awarding" and turn.after in {"running", "unfilled"}:
            for number, entry in enumerate(bought.placements):
                # The last one of a shard was replaced by nobody, also where all came to nothing in the end.
                if any(later.shard == entry.shard for later in bought.placements[number + 1 :]):
                    self._replaced[CAUSES.get(entry.why, "refused")] += 1

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client.registry.Collector``."""
        for name, words, label, counts in (
            ("hansa_tenders", "Tenders of others, heard and answered.", "outcome", self._tenders),
            ("hansa_declines", "Declines of this provider, by what is lacking first.", "lack", self._declines),
            ("hansa_purchases", "Purchases of this buyer.", "outcome", self._purchases),
            ("hansa_replaced_winners", "Winners that another bid took the place of.", "cause", self._replaced),
            ("hansa_bidding_closed", "Why bidding on this buyer's tenders closed.", "cause", self._closed),
        ):
            family = CounterMetricFamily(name, words, labels=[label])
            for value, count in sorted(counts.items()):
                family.add_metric([value], count)
            yield family
        yield from self._to_bid.collect()
        yield from self._matching.collect()


def _cause_of_closing(bought: Purchase, at_ms: int) -> str:
    if at_ms >= bought.tender.bids_close_ms:
        return "deadline"
    return "enough" if 0 < bought.closes_ms <= at_ms else "answered"
