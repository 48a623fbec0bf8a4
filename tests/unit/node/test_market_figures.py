"""The market's figures: what happened is counted once, under words of this node's own and no others."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, NOW_MS, OTHER_KEY, PROVIDER, PROVIDER_KEY, needs, tender
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from hansa.market.effects import Send, unsigned
from hansa.node.api.market_figures import (
    BID_OUTCOMES,
    DECLINE_REASONS,
    MOST_HEARD,
    PURCHASE_OUTCOMES,
    MarketFigures,
)
from hansa.node.api.metrics import Metrics
from hansa.node.engine import events
from hansa.node.engine.state import NodeState, Turn
from hansa.proto.market_documents import Decline, Shortfall
from hansa.proto.messages import AwardSent, BidReleased, BidSent, DeclineSent, TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import sign
from hansa.proto.typed_data import digest


class Watched(SmallMarket):
    """A market of engines, each counted as its daemon would."""

    def __init__(self):
        super().__init__()
        self.figures = {}

    def take(self, account, event):
        figures = self.figures.setdefault(account, MarketFigures())
        if isinstance(event, events.MessageArrived) and isinstance(event.message, TenderSent):
            figures.heard(event.message.tender.document, self.now_ms / 1000)
        engine = self.engines[account]
        taken = engine.take

        def counted(batch):
            effects = taken(batch)
            figures.turned(engine.state, engine.state.turns, self.now_ms / 1000 + 0.02)
            figures.sent(engine.state, effects)
            engine.state.turns.clear()
            return effects

        engine.take = counted
        try:
            super().take(account, event)
        finally:
            engine.take = taken


def text(figures):
    registry = CollectorRegistry(auto_describe=False)
    registry.register(figures)
    return generate_latest(registry).decode().splitlines()


def ask(market, key, **changes):
    made = tender(signer=key.address, **changes)
    market.tell(key.address, PROVIDER, TenderSent(tender=sign(DOMAIN, made, key)))


def test_what_a_provider_hears_and_answers_is_counted_with_the_time_that_it_took():
    market = Watched()
    market.add(PROVIDER_KEY, devices=1)
    ask(market, BUYER_KEY)
    ask(market, OTHER_KEY)
    ask(market, OTHER_KEY, nonce=b"2" * 32, currency="EUR")
    ask(market, OTHER_KEY, nonce=b"3" * 32, requirements=needs(devices=9))
    figures = market.figures[PROVIDER]
    lines = text(figures)
    for line in (
        'hansa_tenders_total{outcome="heard"} 4.0',
        'hansa_tenders_total{outcome="bid"} 1.0',
        'hansa_tenders_total{outcome="declined"} 3.0',
        'hansa_tender_to_bid_seconds_bucket{le="0.01"} 0.0',
        'hansa_tender_to_bid_seconds_bucket{le="0.025"} 1.0',
        "hansa_tender_to_bid_seconds_count 1.0",
        'hansa_declines_total{lack="busy"} 2.0',
        'hansa_declines_total{lack="devices"} 1.0',
    ):
        assert line in lines, (line, lines)
    assert figures.bids == {"sent": 1, "won": 0, "lost": 0, "lapsed": 0, "called_off": 0}
    (bid,) = [message.bid.document for message in market.heard(BidSent)]
    market.tell(BUYER, PROVIDER, BidReleased(bid=digest(DOMAIN, bid), reason="another bid won"))
    assert (figures.bids["sent"], figures.bids["lost"]) == (1, 1)


def a_job_for_either_of_two():
    """A market of two providers with a device each, and a buyer whose job wants one."""
    market = Watched()
    for key in (PROVIDER_KEY, OTHER_KEY):
        market.add(key, devices=1)
    market.add(BUYER_KEY)
    market.submit(BUYER)
    return market


def test_what_a_buyer_buys_is_counted_with_why_bidding_closed_and_who_was_replaced():
    market = a_job_for_either_of_two()
    awarded = []

    def is_the_first_winners(to, message):
        """The first winner never hears of it."""
        if isinstance(message, AwardSent):
            awarded.append(to)
        return isinstance(message, AwardSent) and to == awarded[0]

    market.lost = is_the_first_winners
    market.tender(BUYER, (PROVIDER_KEY.address, OTHER_KEY.address))
    assert len(awarded) == 1
    market.pass_time(5_000, BUYER)
    lines = text(market.figures[BUYER])
    for line in (
        'hansa_bidding_closed_total{cause="answered"} 1.0',
        'hansa_replaced_winners_total{cause="silent"} 1.0',
        'hansa_purchases_total{outcome="filled"} 1.0',
        'hansa_purchases_total{outcome="unfilled"} 0.0',
    ):
        assert line in lines, (line, lines)


def test_a_winner_that_was_due_while_nobody_at_all_was_heard_counts_as_unheard_and_not_as_one_that_refused():
    market = a_job_for_either_of_two()
    market.lost = lambda _to, message: isinstance(message, AwardSent)
    market.tender(BUYER, (PROVIDER_KEY.address, OTHER_KEY.address))
    for _ in range(3):
        market.pass_time(5_000, BUYER)
    lines = text(market.figures[BUYER])
    for line in (
        'hansa_replaced_winners_total{cause="silent"} 0.0',
        'hansa_replaced_winners_total{cause="unheard"} 1.0',
        'hansa_replaced_winners_total{cause="refused"} 0.0',
    ):
        assert line in lines, (line, lines)


def test_a_tender_that_nobody_answers_closes_at_its_deadline_and_is_unfilled():
    market = Watched()
    market.add(BUYER_KEY)
    market.submit(BUYER)
    market.tender(BUYER, (PROVIDER,))
    market.pass_time(3_000, BUYER)
    lines = text(market.figures[BUYER])
    assert 'hansa_bidding_closed_total{cause="deadline"} 1.0' in lines
    assert 'hansa_purchases_total{outcome="unfilled"} 1.0' in lines


def test_a_counter_does_not_fall_when_what_ended_is_forgotten():
    figures, state = MarketFigures(), NodeState()
    for number in range(3_000):
        turn = Turn(machine="run", key=number.to_bytes(32, "big"), before="running", after="succeeded", reason="")
        figures.turned(state, [turn], 0.0)
    assert figures.runs["succeeded"] == 3_000


WORD = st.text(max_size=20) | st.sampled_from(["bid", "new", "leased", "declined", "lapsed", "running", "awarding"])


@given(
    st.lists(st.tuples(st.sampled_from(["sale", "purchase", "run", "job"]), WORD, WORD, st.text()), max_size=40),
    st.lists(st.text(max_size=30), max_size=30),
)
@settings(max_examples=100, deadline=None)
def test_nothing_that_somebody_else_may_choose_is_a_label(
    turns: list[tuple[str, str, str, str]], lacks: list[str]
) -> None:
    figures, state = MarketFigures(), NodeState()
    figures.turned(state, [Turn(machine=one, key=b"k", before=a, after=b, reason=why) for one, a, b, why in turns], 1.0)
    for lack in lacks:
        decline = Decline(
            signer=PROVIDER,
            tender=bytes(32),
            reason=lack,
            relaxation=lack,
            shortfalls=(Shortfall(name=lack, wanted="", nearest=""),),
            expires_ms=NOW_MS,
            nonce=bytes(32),
        )
        figures.sent(state, [Send(to=BUYER, message=DeclineSent(decline=unsigned(decline)), keep_until_ms=NOW_MS)])
    words = {*BID_OUTCOMES.values(), *PURCHASE_OUTCOMES.values(), *DECLINE_REASONS, *figures.runs}
    words |= {
        "heard",
        "turned_away",
        "bid",
        "declined",
        "silent",
        "unheard",
        "refused",
        "answered",
        "enough",
        "deadline",
    }
    for family in figures.collect():
        for sample in family.samples:
            assert {value for name, value in sample.labels.items() if name != "le"} <= words
    assert set(figures.bids) | set(figures.runs) <= words


def test_tenders_that_are_never_answered_do_not_fill_the_memory():
    figures = MarketFigures()
    for number in range(MOST_HEARD + 10):
        figures.heard(replace(tender(), nonce=number.to_bytes(32, "big")), 0.0)
    assert len(figures._heard) == MOST_HEARD


def test_the_page_shows_them_beside_the_rest():
    page = Metrics(MarketFigures()).text().decode()
    for name in (
        "hansa_tenders_total",
        "hansa_book_adverts 0.0",
        "hansa_matching_seconds_bucket",
        "hansa_bids_standing",
    ):
        assert name in page
