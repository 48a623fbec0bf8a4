"""Which bid wins, and which may not."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import NOW_MS, OTHER_KEY, PRICE, PROVIDER, PROVIDER_KEY, bid, needs, tender

from hansa.market.selection import explain_choice, rank
from hansa.market.track_record import Record
from hansa.proto.splits import Split, splits_hash

TENDER = tender()
SOUND = bid(TENDER).document


def ranked(*bids, records=None, of=TENDER):
    return rank(of, {bytes([number]): each for number, each in enumerate(bids)}, records or {}, at_ms=NOW_MS)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"expires_ms": NOW_MS}, "the bid has expired"),
        ({"price_e18_per_device_ms": 2 * PRICE + 1}, "above the price ceiling"),
        ({"devices": ()}, "not the number of devices that was tendered for"),
        ({"devices": (b"1" * 32, b"2" * 32)}, "not the number of devices that was tendered for"),
        ({"tier": "none"}, "not the isolation that was tendered for (sandbox)"),
        ({"max_total": 600_002}, "its limit is above price times time"),
        ({"meter_interval_ms": 10_001}, "its receipts would come too seldom"),
        ({"splits_hash": b"x" * 32}, "it does not agree to the splits"),
        ({"prepay": 1}, "it wants 0.000001 paid ahead, more than max_prepay allows"),
    ],
)
def test_a_bid_that_is_not_what_was_tendered_for_cannot_win(changes, why):
    assert ranked(replace(SOUND, **changes))[0].excluded == why


def test_the_same_device_twice_is_not_two_devices():
    two = tender(requirements=needs(devices=2))
    assert ranked(replace(SOUND, devices=(b"1" * 32,) * 2), of=two)[0].excluded.startswith("not the number")


def test_the_cheapest_wins_and_what_is_excluded_comes_last():
    dear = replace(SOUND, price_e18_per_device_ms=PRICE * 3 // 2, max_total=600_001)
    table = ranked(replace(SOUND, tier="none"), dear, SOUND)
    assert [entry.bid for entry in table] == [b"\x02", b"\x01", b"\x00"]
    assert explain_choice(table, b"\x02") == "lowest expected cost of 2 bids"
    assert explain_choice(table, b"\x01") == "number 2 of 2 by expected cost"
    assert explain_choice(ranked(SOUND), b"\x00") == "the only eligible bid"


def test_a_provider_that_often_failed_costs_more_than_its_price():
    reliable = bid(TENDER, key=OTHER_KEY, price_e18_per_device_ms=PRICE * 3 // 2).document
    assert ranked(SOUND, reliable, records={PROVIDER: Record(bad=2)})[0].bid == b"\x01"
    assert ranked(SOUND, reliable, records={PROVIDER: Record(good=2)})[0].bid == b"\x00"


@given(st.lists(st.integers(1, 2 * PRICE), max_size=6), st.randoms())
def test_the_order_in_which_bids_came_does_not_matter(prices, random):
    bids = {
        bytes([number]): bid(TENDER, key=PROVIDER_KEY, price_e18_per_device_ms=price, max_total=1).document
        for number, price in enumerate(prices)
    }
    shuffled = list(bids.items())
    random.shuffle(shuffled)
    assert rank(TENDER, bids, {}, at_ms=NOW_MS) == rank(TENDER, dict(shuffled), {}, at_ms=NOW_MS)


@pytest.mark.parametrize(
    ("prepay", "max_total", "fine"), [(60_000, 600_001, True), (60_001, 600_001, False), (2, 1, False)]
)
def test_a_bid_may_want_as_much_paid_ahead_as_the_buyer_allows_and_its_lease_costs(prepay, max_total, fine):
    asked = replace(SOUND, prepay=prepay, max_total=max_total)
    (found,) = rank(TENDER, {b"x": asked}, {}, max_prepay_ms=60_000, at_ms=NOW_MS)
    assert (found.excluded == "") == fine


def test_a_bid_agrees_to_the_very_splits_of_its_tender():
    splits = (Split(account=b"a" * 20, bps=250),)
    asked = tender(splits=splits)
    sound = bid(asked, splits_hash=splits_hash(splits)).document
    assert ranked(sound, of=asked)[0].excluded == ""
    assert ranked(replace(sound, splits_hash=bytes(32)), of=asked)[0].excluded == "it does not agree to the splits"
