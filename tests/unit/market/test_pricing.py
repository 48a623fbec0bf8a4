"""What a provider answers to a tender."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import BUYER, DEVICE, NOW_MS, OTHER, PRICE, PROVIDER, needs, tender

from hansa.market.pricing import (
    LONGEST_WINDOW_MS,
    ProviderTerms,
    bid_for,
    decline_for,
    objection,
    too_cheap,
)
from hansa.market.receipts import CLOCK_SKEW_MS
from hansa.market.selection import rank
from hansa.proto.codec import decode, encode
from hansa.proto.currency import escrow_currency
from hansa.proto.market_documents import Bid, DeviceChoice
from hansa.proto.network import DOMAIN
from hansa.proto.splits import Split
from hansa.proto.typed_data import digest
from hansa.proto.units import price_per_hour_to_e18

TERMS = ProviderTerms(
    account=PROVIDER,
    currency="USD",
    tier="sandbox",
    price_e18_per_device_ms=PRICE,
    voucher_timeout_ms=5_000,
    max_unpaid=3_000,
    grace_ms=10_000,
    credit_limit=1_000,
    bid_ms=10_000,
    reclaim_notice_ms=1_000,
)


def why(of, *, terms=TERMS, owed=0, at_ms=NOW_MS):
    found = objection(of, terms, owed=owed, at_ms=at_ms)
    return found and found[0]


def test_a_plain_tender_is_welcome():
    assert why(tender()) is None


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({"currency": "EUR"}, "prices here are in USD"),
        ({"requirements": needs(devices=0)}, "no devices are asked for"),
        ({"requirements": needs(choices=(DeviceChoice(devices=0, model="H100"),))}, "no devices are asked for"),
        ({"requirements": needs(choices=(DeviceChoice(devices=1, model="H100"),) * 17)}, "more than 16 sets"),
        ({"bids_close_ms": NOW_MS + LONGEST_WINDOW_MS + 1}, "devices would be held too long"),
        ({"bids_close_ms": (1 << 64) - 1}, "devices would be held too long"),
        ({"bids_close_ms": NOW_MS - CLOCK_SKEW_MS}, "the tender is closed"),
    ],
)
def test_a_tender_against_the_owners_rules_is_declined_in_words(changes, begins):
    assert why(tender(**changes)).startswith(begins)


def test_a_clock_that_is_a_little_ahead_does_not_shut_a_provider_out():
    assert why(tender(), at_ms=NOW_MS + 2_000 + CLOCK_SKEW_MS - 1) is None


def test_an_owners_list_of_buyers_is_kept():
    assert why(tender(), terms=replace(TERMS, buyers=frozenset({OTHER}))).startswith("this provider serves only")
    assert why(tender(), terms=replace(TERMS, buyers=frozenset({BUYER}))) is None


@pytest.mark.parametrize(("owed", "fine"), [(999, True), (1_000, False)])
def test_no_buyer_owes_more_than_its_credit(owed, fine):
    assert (why(tender(), owed=owed) is None) == fine


def test_on_a_chain_nothing_is_lent_so_nothing_is_owed_too_much():
    name = escrow_currency(31337, b"\xe5" * 20, b"\x70" * 20)
    terms = replace(TERMS, currency=name)
    assert why(tender(currency=name), terms=terms, owed=10**12) is None


def test_a_ceiling_below_the_price_is_told_the_price():
    assert too_cheap(tender(price_ceiling_e18_per_device_ms=PRICE), PRICE) is None
    reason, change, shortfall = too_cheap(tender(price_ceiling_e18_per_device_ms=PRICE - 1), PRICE)
    assert "above your ceiling" in reason
    assert "3.6" in change
    assert (shortfall.name, shortfall.nearest) == ("price", "3.6")


@given(price=st.integers(1, 10**24), under=st.integers(1, 10**24))
def test_a_ceiling_that_is_raised_to_the_price_that_was_told_is_not_too_low_again(price, under):
    told = too_cheap(tender(price_ceiling_e18_per_device_ms=max(0, price - under)), price)
    raised = price_per_hour_to_e18(told[2].nearest)
    assert too_cheap(tender(price_ceiling_e18_per_device_ms=raised), price) is None


@given(
    wall_ms=st.integers(0, (1 << 64) - 1),
    devices=st.integers(1, 8),
    window_ms=st.integers(0, LONGEST_WINDOW_MS),
    interval_ms=st.integers(0, (1 << 64) - 1),
)
def test_a_bid_is_a_document_that_its_buyer_can_read_and_would_rank(wall_ms, devices, window_ms, interval_ms):
    asked = tender(
        requirements=needs(wall_ms=wall_ms, devices=devices),
        bids_close_ms=NOW_MS + window_ms,
        meter_interval_ms=interval_ms,
    )
    owned = [replace(DEVICE, id=bytes([number]) * 32) for number in range(devices)]
    made = bid_for(asked, digest(DOMAIN, asked), owned, TERMS, price_e18=PRICE, number=0, at_ms=NOW_MS)
    assert decode(encode(made), Bid, limit_bytes=1 << 16) == made
    assert made.expires_ms <= NOW_MS + LONGEST_WINDOW_MS + TERMS.bid_ms
    assert rank(asked, {b"x": made}, {}, at_ms=NOW_MS)[0].excluded == ""


def test_receipts_come_no_more_often_than_the_owner_wants():
    slow = replace(TERMS, meter_interval_ms=3_000)
    made = bid_for(tender(), bytes(32), [DEVICE], slow, price_e18=PRICE, number=0, at_ms=NOW_MS)
    assert made.meter_interval_ms == 3_000


def test_bids_on_one_tender_differ_and_a_replay_makes_the_same():
    one, two, again = (
        bid_for(tender(), bytes(32), [DEVICE], TERMS, price_e18=PRICE, number=n, at_ms=NOW_MS) for n in (0, 1, 0)
    )
    assert one == again
    assert one.nonce != two.nonce


def test_a_decline_names_reason_and_change():
    made = decline_for(tender(), bytes(32), PROVIDER, ("busy", "later"))
    assert (made.signer, made.reason, made.relaxation) == (PROVIDER, "busy", "later")


def test_only_so_much_of_every_payment_goes_to_others_and_the_limit_is_told():
    splits = (Split(account=b"a" * 20, bps=300), Split(account=b"b" * 20, bps=701))
    reason, change = objection(tender(splits=splits), TERMS, owed=0, at_ms=NOW_MS)
    assert reason == "10.01 % of every payment would go to others, and here at most 10 %"
    assert change == "splits ≤ 10 % in all"
    assert why(tender(splits=splits), terms=replace(TERMS, max_splits_bps=1_001)) is None
    assert why(tender(splits=splits[::-1])).startswith("the splits are not in the order")


@pytest.mark.parametrize(
    ("everybody", "is_stranger", "ahead"), [(False, True, 60_000), (False, False, 0), (True, False, 60_000)]
)
def test_strangers_or_everybody_pays_ahead_and_then_nothing_is_done_on_trust(everybody, is_stranger, ahead):
    terms = replace(TERMS, prepay_ms=60_000, prepay_everybody=everybody)
    asked = tender()
    made = bid_for(
        asked, digest(DOMAIN, asked), (DEVICE,), terms, price_e18=PRICE, number=0, is_stranger=is_stranger, at_ms=NOW_MS
    )
    assert (made.prepay, made.max_unpaid) == (ahead, 0 if ahead else TERMS.max_unpaid)
    assert rank(asked, {b"x": made}, {}, max_prepay_ms=60_000, at_ms=NOW_MS)[0].excluded == ""


def test_nobody_is_asked_to_pay_ahead_more_than_the_lease_can_cost():
    asked = tender(requirements=needs(wall_ms=1_000))
    terms = replace(TERMS, prepay_ms=60_000, prepay_everybody=True)
    assert (
        bid_for(asked, digest(DOMAIN, asked), (DEVICE,), terms, price_e18=PRICE, number=0, at_ms=NOW_MS).prepay == 1_001
    )
