"""When bidding closes before its deadline: never for the sake of a moment that more bids could pay for."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.playbook import Playbook, some
from kit.trading import NOW_MS, OTHER_KEY, PRICE, PROVIDER_KEY, THIRD_KEY, bid, needs, tender, workload

from hansa.market import purchase
from hansa.market.closing import MOST_WEIGHED, enough_bids, pays_until_ms
from hansa.market.effects import Send
from hansa.market.purchase import advance, open_purchase
from hansa.market.purchase_events import BidArrived, TimePassed
from hansa.market.purchase_state import Purchase
from hansa.market.scoring import Scored
from hansa.proto.messages import AwardSent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import SigningKey
from hansa.proto.typed_data import digest

WALL_MS, LATEST_MS = 600_000, NOW_MS + 10_000
FOURTH_KEY = SigningKey(b"\5" * 32)
KEYS = (PROVIDER_KEY, OTHER_KEY, THIRD_KEY, FOURTH_KEY)


def entries(*costs):
    return [
        Scored(
            bid=bytes([number]) * 32,
            provider=bytes([number]) * 20,
            price_per_hour="1",
            reliability_ppm=1_000_000,
            expected_cost=cost,
            excluded="",
            finishing=cost,
        )
        for number, cost in enumerate(sorted(costs))
    ]


def until(*costs, **changes):
    asked = {"shards": 1, "invited": 4, "answered": 2, "wall_ms": WALL_MS, "opened_ms": NOW_MS, "latest_ms": LATEST_MS}
    return pays_until_ms(entries(*costs), **{**asked, **changes}) - NOW_MS


def test_bids_that_are_alike_are_not_waited_upon_for_long():
    # Two bids, one in three chances each of a gain that counts as a five-hundredth, over ten minutes.
    assert until(1_000_000, 1_000_000) == 2 * WALL_MS // (3 * 500)


def test_bids_that_are_far_apart_are_waited_upon_to_the_end():
    assert until(1_000_000, 2_000_000) == LATEST_MS - NOW_MS


def test_a_long_run_is_worth_a_longer_wait():
    assert until(1_000_000, 1_001_000) < until(1_000_000, 1_001_000, wall_ms=2 * WALL_MS) <= LATEST_MS - NOW_MS


@pytest.mark.parametrize(("shards", "least"), [(1, 2), (4, 5), (5, 6), (6, 8), (16, 20)])
def test_there_is_a_bid_for_every_shard_and_one_in_five_beside_them(shards, least):
    assert enough_bids(shards) == least
    many = [1_000_000] * least
    assert until(*many, shards=shards, answered=4) < LATEST_MS - NOW_MS
    assert until(*many[1:], shards=shards, answered=4) == LATEST_MS - NOW_MS


def test_half_of_those_invited_are_heard_first():
    assert until(1_000_000, 1_000_000, invited=5, answered=2) == LATEST_MS - NOW_MS
    assert until(1_000_000, 1_000_000, invited=5, answered=3) < LATEST_MS - NOW_MS


def test_more_bids_than_are_weighed_wait_for_the_deadline():
    assert until(*[1_000_000] * MOST_WEIGHED) < LATEST_MS - NOW_MS
    assert until(*[1_000_000] * (MOST_WEIGHED + 1)) == LATEST_MS - NOW_MS


def test_what_costs_nothing_is_not_waited_for():
    assert until(0, 0) == 0


@given(st.lists(st.integers(0, 10**12), min_size=2, max_size=20), st.integers(1, 5), st.integers(0, 10**10))
def test_it_closes_between_its_opening_and_its_deadline(costs, shards, wall_ms):
    assert 0 <= until(*costs, shards=shards, wall_ms=wall_ms) <= LATEST_MS - NOW_MS


@given(st.lists(st.integers(50_000, 10**9), min_size=3, max_size=10))
def test_it_does_not_matter_in_which_unit_costs_are_counted(costs):
    close, scaled = until(*costs), until(*(1_000 * cost for cost in costs))
    assert abs(close - scaled) <= max(2, scaled // 50)


# In the machine.

ASKED = tender(bids_close_ms=LATEST_MS, requirements=needs(wall_ms=WALL_MS))


def opened():
    made = Purchase(
        tender=ASKED,
        tender_digest=digest(DOMAIN, ASKED),
        workload=workload(),
        funds=10_000_000,
        invited=tuple(key.address for key in KEYS),
    )
    return open_purchase(made, NOW_MS).state


def arrives(key, price=PRICE, after_ms=100):
    signed = bid(ASKED, key=key, price_e18_per_device_ms=price, max_total=1, expires_ms=NOW_MS + 60_000)
    return BidArrived(bid=signed, at_ms=NOW_MS + after_ms)


def test_the_machine_wakes_when_waiting_stops_paying():
    playbook = Playbook(advance, opened()) >> arrives(PROVIDER_KEY)
    assert purchase.deadline_ms(playbook.reaches("tendering")) == LATEST_MS
    playbook >> arrives(OTHER_KEY)
    due_ms = purchase.deadline_ms(playbook.reaches("tendering"))
    assert NOW_MS + 100 < due_ms < NOW_MS + 3_000
    (playbook >> TimePassed(at_ms=due_ms) << some(Send, message=some(AwardSent))).reaches("awarding")


def test_an_answer_that_comes_when_waiting_has_stopped_paying_closes_at_once():
    playbook = Playbook(advance, opened()) >> arrives(PROVIDER_KEY) >> arrives(OTHER_KEY, after_ms=5_000)
    (playbook << some(Send, message=some(AwardSent))).reaches("awarding")


def test_a_bid_that_stands_apart_opens_the_wait_again():
    playbook = Playbook(advance, opened()) >> arrives(PROVIDER_KEY) >> arrives(OTHER_KEY)
    soon_ms = purchase.deadline_ms(playbook.reaches("tendering"))
    playbook >> arrives(THIRD_KEY, PRICE // 2)
    assert purchase.deadline_ms(playbook.reaches("tendering")) == LATEST_MS > soon_ms


def test_one_device_that_is_offered_twice_is_one_bid():
    two = tender(bids_close_ms=LATEST_MS, shards=(0, 1))
    state = replace(opened(), tender=two, tender_digest=digest(DOMAIN, two))
    for number in range(2):
        for key in (PROVIDER_KEY, OTHER_KEY):
            signed = bid(two, key=key, max_total=1, nonce=bytes([number]) * 32, expires_ms=NOW_MS + 60_000)
            state = advance(state, BidArrived(bid=signed, at_ms=NOW_MS + 9_999)).state
    assert state.phase == "tendering"
    assert purchase.deadline_ms(state) == LATEST_MS
