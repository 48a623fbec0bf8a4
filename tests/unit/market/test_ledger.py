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
    payees_part,
    vouched_by_buyer,
    vouched_to_provider,
    written_back,
    written_off,
)
from hansa.proto.splits import Split


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


SPLITS = (Split(account=b"a" * 20, bps=250), Split(account=b"b" * 20, bps=3_333))


@given(st.lists(st.dictionaries(st.sampled_from([JOB, b"k" * 32]), st.integers(0, 10_000), min_size=1), max_size=12))
def test_each_is_owed_its_own_part_however_a_total_is_cut_and_both_sides_agree(vouchers):
    bought, sold, total = [], [], 0
    for seq, shares in enumerate(vouchers, start=1):
        common = {"channel_id": CHANNEL_ID, "seq": seq, "shares": shares, "at_ms": NOW_MS}
        bought.append(vouched_by_buyer(provider=PROVIDER, before=total, splits=SPLITS, **common))
        sold.append(vouched_to_provider(buyer=BUYER, before=total, splits=SPLITS, **common))
        total += sum(shares.values())
    books, own = fold(bought), fold(sold)
    parts = {split.account: total * split.bps // 10_000 for split in SPLITS}
    assert {who: -books.balance(f"owed:{who.hex()}") for who in parts} == parts
    assert -books.balance(f"owed:{PROVIDER.hex()}") == total - sum(parts.values()) == payees_part(total, SPLITS)
    assert own.balance(f"due:{BUYER.hex()}") == -own.total("earned:") == payees_part(total, SPLITS)
    assert books.total("spend:") == total
    ends = {"channel_id": CHANNEL_ID, "cumulative": total, "at_ms": NOW_MS, "splits": SPLITS}
    closed = books.post(closed_by_buyer(provider=PROVIDER, **ends))
    assert (closed.total("owed:"), closed.total("paid:")) == (0, -total)
    assert own.post(closed_to_provider(buyer=BUYER, **ends)).total("due:") == 0


def test_what_was_written_off_is_in_accounts_of_its_own_and_comes_back_when_it_is_paid_after_all():
    common = {"channel_id": CHANNEL_ID, "lease": b"L" * 32, "job": JOB, "buyer": BUYER, "at_ms": NOW_MS}
    off = written_off(amount=100, **common)
    back = [written_back(amount=40, vouched=40, **common), written_back(amount=60, vouched=100, **common)]
    books = fold([off, off, *back])
    assert books.balance(f"unpaid:{BUYER.hex()}") == books.balance(f"written-off:{JOB.hex()}") == 0
    assert fold([off]).balance(f"unpaid:{BUYER.hex()}") == 100
    assert len({entry.id for entry in (off, *back)}) == 3
