"""The books: every entry sums to zero, counts once, and has an id of its side alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import BUYER, CHANNEL_ID, JOB, NOW_MS, PROVIDER

from hansa.market.ledger import (
    Entry,
    Ledger,
    Leg,
    closed_by_buyer,
    closed_to_provider,
    fold,
    vouched_by_buyer,
    vouched_to_provider,
)


def entry_of(number, amounts):
    legs = (*(Leg(account=f"a{index}", amount=amount) for index, amount in enumerate(amounts)),)
    return Entry(id=bytes([number]) * 32, at_ms=1, memo="m", legs=(*legs, Leg(account="rest", amount=-sum(amounts))))


def test_an_entry_that_makes_money_is_our_own_fault():
    with pytest.raises(AssertionError, match="does not sum to zero"):
        Entry(id=bytes(32), at_ms=1, memo="m", legs=(Leg(account="a", amount=1),))


@given(st.lists(st.lists(st.integers(-(10**30), 10**30), max_size=4), max_size=20))
def test_the_books_sum_to_zero_whatever_is_posted(amounts):
    books = fold(entry_of(number, each) for number, each in enumerate(amounts))
    assert books.total() == 0
    assert books.entries == len(amounts)


@given(st.lists(st.integers(0, 5), max_size=30))
def test_an_entry_counts_once_however_often_it_comes(numbers):
    entries = [entry_of(number, [number + 1]) for number in numbers]
    assert fold(entries).balance("a0") == sum(number + 1 for number in set(numbers))


def test_a_voucher_moves_each_jobs_share_and_a_close_settles_the_sum():
    shares = {JOB: 30, b"k" * 32: 12}
    common = {"channel_id": CHANNEL_ID, "at_ms": NOW_MS}
    bought = [
        vouched_by_buyer(seq=1, provider=PROVIDER, shares=shares, **common),
        closed_by_buyer(provider=PROVIDER, cumulative=42, **common),
    ]
    sold = [
        vouched_to_provider(seq=1, buyer=BUYER, shares=shares, **common),
        closed_to_provider(buyer=BUYER, cumulative=42, **common),
    ]
    assert fold(bought).balances == {
        f"spend:{JOB.hex()}": 30,
        f"spend:{(b'k' * 32).hex()}": 12,
        f"owed:{PROVIDER.hex()}": 0,
        f"paid:{PROVIDER.hex()}": -42,
    }
    assert fold(sold).balance(f"settled:{BUYER.hex()}") == 42
    # A node that buys from itself keeps both sides in one store.
    assert len({entry.id for entry in bought + sold}) == 4
    assert Ledger().post(bought[0]).total("spend:") == 42


def test_ids_follow_from_channel_and_number():
    ids = {
        vouched_by_buyer(channel_id=channel, seq=seq, provider=PROVIDER, shares={JOB: 1}, at_ms=NOW_MS).id
        for channel in (CHANNEL_ID, b"x" * 32)
        for seq in (1, 2, 256)
    }
    assert len(ids) == 6
