"""What lines do to a tender: the way of states in the table, who is awarded, and who replaces whom."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import (
    BUYER_KEY,
    NOW_MS,
    OTHER,
    OTHER_KEY,
    PRICE,
    PROVIDER,
    PROVIDER_KEY,
    THIRD,
    THIRD_KEY,
    bid,
    tender,
    workload,
)

from hansa.market.bandwidth import BACK, THERE, Bandwidth, noted
from hansa.market.gang import Company
from hansa.market.pace import Pace
from hansa.market.purchase import advance
from hansa.market.purchase_awards import CONFIRM_MS
from hansa.market.purchase_events import BidArrived, ConfirmationArrived, TimePassed
from hansa.market.purchase_state import Purchase
from hansa.market.scoring import LONGEST_WAY_MS, MEASURED_HERE, SLOWEST_KNOWN, STATED, UNKNOWN
from hansa.market.selection import rank
from hansa.proto.market_documents import Fact
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest
from hansa.proto.units import HOUR_MS

FOURTH_KEY = BUYER_KEY
KEYS = {key.address: key for key in (PROVIDER_KEY, OTHER_KEY, THIRD_KEY, FOURTH_KEY)}
TWO = tender(shards=(0, 1))
SIZE = 10_000_000
PACE = Pace(kind=b"k" * 32, state_bytes=SIZE, works_ms=(10_000,))


def line(provider, there, back):
    known = Bandwidth(provider=provider)
    for way, rate in ((THERE, there), (BACK, back)):
        known = noted(known, way, rate, is_bound=False, at_ms=NOW_MS) if rate else known
    return known


def bid_of(key, price, of=TWO, **stated):
    facts = tuple(Fact(name=name, value=stated[name]) for name in sorted(stated))
    most = of.requirements.wall_ms * price // PRICE
    device = key.address + bytes(12)
    signed = bid(of, key=key, price_e18_per_device_ms=price, max_total=most, devices=(device,), facts=facts)
    return BidArrived(bid=signed, at_ms=NOW_MS + 500)


def start(of=TWO, **changes):
    made = Purchase(
        tender=of,
        tender_digest=digest(DOMAIN, of),
        workload=workload(),
        funds=10_000_000,
        invited=tuple(KEYS),
        pace=PACE,
    )
    return replace(made, **changes)


def winners(state):
    """In the order of their accounts: equal scores stand in that of their digests."""
    return sorted(entry.provider for entry in state.placements)


def after(state, *events):
    for event in events:
        state = advance(state, event).state
    return state


def closed(state, *bids):
    return after(state, *bids, TimePassed(at_ms=NOW_MS + 2_000))


def table(*offers, lines=(), state_bytes=SIZE, input_bytes=0):
    bids = {each.bid.document.signer: each.bid.document for each in offers}
    known = {each.provider: each for each in lines}
    ranking = rank(TWO, bids, {}, lines=known, state_bytes=state_bytes, input_bytes=input_bytes, at_ms=NOW_MS)
    return {entry.provider: entry for entry in ranking}


def test_the_way_of_states_is_there_and_back_each_at_its_own_speed():
    found = table(bid_of(PROVIDER_KEY, PRICE), lines=[line(PROVIDER, 1_000_000, 100_000)])
    assert (found[PROVIDER].way_ms, found[PROVIDER].line_source) == (10_000 + 100_000, MEASURED_HERE)


def test_what_was_measured_goes_before_what_is_stated_and_counts_as_slow_as_it_is():
    boast = {"download": "8 Gbit/s", "upload": "8 Gbit/s"}
    found = table(
        bid_of(PROVIDER_KEY, PRICE, **boast),
        bid_of(OTHER_KEY, PRICE, **boast),
        bid_of(THIRD_KEY, PRICE),
        lines=[line(PROVIDER, 1_000, 1_000)],
        input_bytes=SIZE,
    )
    assert (found[PROVIDER].way_ms, found[PROVIDER].line_source) == (20_000_000, MEASURED_HERE)
    # Of the only one that was measured four times is too little to go by: the least line that counts stands for it.
    assert (found[OTHER].way_ms, found[OTHER].line_source) == (2 * SIZE * 8 // 1_000, STATED)
    assert (found[THIRD].way_ms, found[THIRD].line_source) == (found[OTHER].way_ms, SLOWEST_KNOWN)
    # Its inputs come over the same line.
    assert found[PROVIDER].transfer > 100 * found[OTHER].transfer


def test_no_stated_line_counts_for_more_than_four_times_the_usual_one_that_was_measured():
    boast = {"download": "999999999 Gbit/s", "upload": "999999999 Gbit/s"}
    measured = [line(PROVIDER, 1_000_000, 1_000_000), line(OTHER, 2_000_000, 2_000_000)]
    bids = (bid_of(PROVIDER_KEY, PRICE), bid_of(OTHER_KEY, PRICE), bid_of(THIRD_KEY, PRICE, **boast))
    found = table(*bids, lines=measured, input_bytes=SIZE)
    assert found[PROVIDER].way_ms == 20_000
    assert (found[THIRD].way_ms, found[THIRD].line_source) == (5_000, STATED)
    assert found[PROVIDER].transfer // 4 == found[THIRD].transfer > 0


def test_no_stated_line_counts_for_more_than_four_times_the_usual_one_of_other_providers_however_many_bids_it_sent():
    boast, usual = ({"download": f"{each} Mbit/s", "upload": f"{each} Mbit/s"} for each in (10**9, 8))
    honest = [bid_of(PROVIDER_KEY, PRICE, **usual), bid_of(OTHER_KEY, PRICE, **usual)]
    boasts = [bid_of(THIRD_KEY, PRICE - number, **boast) for number in range(9)]
    bids = {bytes([number]) * 32: each.bid.document for number, each in enumerate((*honest, *boasts))}
    ranking = rank(TWO, bids, {}, state_bytes=SIZE, at_ms=NOW_MS)
    assert {(entry.provider, entry.way_ms) for entry in ranking} == {
        (PROVIDER, 20_000),
        (OTHER, 20_000),
        (THIRD, 5_000),
    }


def test_silence_is_no_better_than_any_stated_line_and_nothing_known_of_anybody_is_no_way_at_all():
    slow = {"download": "8 Mbit/s", "upload": "8 Mbit/s"}
    found = table(bid_of(PROVIDER_KEY, PRICE, **slow), bid_of(OTHER_KEY, PRICE))
    assert found[OTHER].way_ms == found[PROVIDER].way_ms == 20_000
    nothing = table(bid_of(PROVIDER_KEY, PRICE), bid_of(OTHER_KEY, PRICE))
    assert [(entry.way_ms, entry.line_source) for entry in nothing.values()] == [(0, UNKNOWN)] * 2
    none = table(bid_of(PROVIDER_KEY, PRICE, **slow), state_bytes=0)
    assert (none[PROVIDER].way_ms, none[PROVIDER].line_source) == (0, "")


@given(st.integers(1, 1 << 64), st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_no_way_is_longer_than_can_be_written_down(state_bytes, there, back):
    found = table(bid_of(PROVIDER_KEY, PRICE), lines=[line(PROVIDER, there, back)], state_bytes=state_bytes)
    assert found[PROVIDER].way_ms <= 2 * LONGEST_WAY_MS


FAST = tuple(line(account, 4_000_000, 4_000_000) for account in (PROVIDER, OTHER, THIRD))
LINES = (*FAST, line(FOURTH_KEY.address, 2_000_000, 2_000_000))
"""A state is 5 s on its way with the first three and 10 s with the fourth, to 10 s of work."""


def test_a_gang_is_awarded_to_those_that_cost_least_together():
    # By itself the fourth costs less, its waiting included; but another would wait for it too.
    offers = [bid_of(PROVIDER_KEY, PRICE), bid_of(OTHER_KEY, PRICE), bid_of(FOURTH_KEY, PRICE * 7 // 10)]
    two = closed(start(lines=LINES), *offers)
    assert winners(two) == sorted([PROVIDER, OTHER])
    assert two.lines == ()
    one = tender()
    single = [bid_of(PROVIDER_KEY, PRICE, one), bid_of(FOURTH_KEY, PRICE * 7 // 10, one)]
    assert winners(closed(start(one, lines=LINES), *single)) == [FOURTH_KEY.address]


def test_who_has_no_rounds_is_chosen_without_them():
    offers = [bid_of(PROVIDER_KEY, PRICE), bid_of(OTHER_KEY, PRICE), bid_of(FOURTH_KEY, PRICE * 99 // 100)]
    state = closed(start(lines=LINES, pace=None), *offers)
    assert FOURTH_KEY.address in winners(state)
    assert {entry.rounds for entry in state.ranking} == {0}


def test_the_table_says_what_the_gang_would_wait_longer_for_who_lost():
    offers = [bid_of(PROVIDER_KEY, PRICE), bid_of(OTHER_KEY, PRICE), bid_of(FOURTH_KEY, PRICE * 7 // 10)]
    state = closed(start(lines=LINES), *offers)
    rounds = {entry.provider: entry.rounds for entry in state.ranking}
    hourly = HOUR_MS
    assert rounds == {
        PROVIDER: hourly // 2,
        OTHER: hourly // 2,
        FOURTH_KEY.address: hourly * 7 // 10 + hourly // 2,
    }
    for entry in state.ranking:
        terms = (entry.finishing, entry.risk, entry.transfer, entry.reclaim, entry.rounds)
        assert entry.expected_cost == sum(terms)


@pytest.mark.parametrize(("beside", "winner"), [(Company(), FOURTH_KEY.address), (Company(hourly=HOUR_MS), PROVIDER)])
def test_a_shard_that_is_tendered_again_is_chosen_beside_those_that_run(beside, winner):
    one = tender()
    offers = [bid_of(PROVIDER_KEY, PRICE, one), bid_of(FOURTH_KEY, PRICE * 7 // 10, one)]
    state = closed(start(one, lines=LINES, company=replace(beside, way_ms=5_000)), *offers)
    assert winners(state) == [winner]


def test_who_replaces_a_winner_that_did_not_come_is_chosen_beside_those_that_did():
    offers = [
        bid_of(PROVIDER_KEY, PRICE),
        bid_of(OTHER_KEY, PRICE),
        bid_of(THIRD_KEY, PRICE * 6 // 5),
        bid_of(FOURTH_KEY, PRICE * 7 // 10),
    ]
    for fourth, replacement in ((2_000_000, FOURTH_KEY.address), (1_000_000, THIRD)):
        state = closed(start(lines=(*FAST, line(FOURTH_KEY.address, fourth, fourth))), *offers)
        assert winners(state) == sorted([PROVIDER, OTHER])
        came = ConfirmationArrived(lease=state.placements[0].lease, at_ms=NOW_MS + 3_000)
        # Alone the fourth would be cheaper either way.
        state = after(state, came, TimePassed(at_ms=NOW_MS + 2_000 + CONFIRM_MS))
        assert [entry.provider for entry in state.placements[2:]] == [replacement]
