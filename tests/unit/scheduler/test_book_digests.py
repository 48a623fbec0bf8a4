"""Digests tell two books' differences, whatever stands in them."""

from hypothesis import given
from hypothesis import strategies as st

from hansa.scheduler.book_digests import (
    MARK_BYTES,
    MOST_BITS,
    Shelf,
    bits_for,
    mark,
    packed,
    range_of,
    unpacked,
)

ODD = 0x9E3779B97F4A7C15F39CC0605CEDC8341082276B
"""Spreads small numbers over all accounts, and so over all ranges."""
ACCOUNTS = st.integers(0, 40).map(lambda number: (number * ODD % (1 << 160)).to_bytes(20, "big"))
ENTRIES = st.dictionaries(ACCOUNTS, st.integers(0, (1 << 64) - 1), max_size=30)
FIRST = bytes(20)


def shelf(entries: dict[bytes, int]) -> Shelf:
    made = Shelf()
    for account, sequence in entries.items():
        made.put(account, sequence)
    return made


@given(ENTRIES, ENTRIES, st.integers(0, MOST_BITS))
def test_every_difference_is_named_and_ranges_that_are_equal_are_not(one, other, bits):
    mine, theirs = shelf(one), shelf(other)
    named = list(theirs.differing(bits, mine.digests(bits), FIRST))
    assert named == sorted(named)
    differ = {account for account, sequence in other.items() if one.get(account) != sequence and account != FIRST}
    assert differ <= set(named)
    equal = {number for number in range(1 << bits) if _range(one, number, bits) == _range(other, number, bits)}
    assert not {range_of(account, bits) for account in named} & equal


def _range(entries: dict[bytes, int], number: int, bits: int) -> dict[bytes, int]:
    return {account: sequence for account, sequence in entries.items() if range_of(account, bits) == number}


@given(ENTRIES, st.integers(0, MOST_BITS), ACCOUNTS)
def test_what_is_asked_beyond_an_account_is_beyond_it(entries, bits, after):
    full, nothing = shelf(entries), Shelf()
    named = list(full.differing(bits, nothing.digests(bits), after))
    assert named == sorted(account for account in entries if account > after)


@given(st.lists(st.tuples(ACCOUNTS, st.integers(0, 5), st.booleans()), max_size=40))
def test_digests_follow_every_change(changes):
    kept: dict[bytes, int] = {}
    changing = Shelf()
    for account, sequence, gone in changes:
        if gone:
            kept.pop(account, None)
            changing.remove(account)
        else:
            kept[account] = sequence
            changing.put(account, sequence)
    assert changing.digests(MOST_BITS) == shelf(kept).digests(MOST_BITS)
    assert changing.digests(0) == shelf(kept).digests(0)
    assert changing.accounts == sorted(kept)
    assert len(changing) == len(kept)


def test_a_digest_of_more_bits_folds_into_one_of_fewer():
    full = shelf({number.to_bytes(20, "little"): number for number in range(1, 500)})
    for bits in range(MOST_BITS):
        digests = full.digests(bits)
        assert len(digests) == MARK_BYTES << bits
        whole = 0
        for start in range(0, len(digests), MARK_BYTES):
            whole ^= int.from_bytes(digests[start : start + MARK_BYTES], "big")
        assert whole == int.from_bytes(full.digests(0), "big")


def test_a_newer_advert_of_the_same_account_is_another_entry():
    assert mark(b"a" * 20, 1) != mark(b"a" * 20, 2) != mark(b"b" * 20, 2)


def test_more_entries_are_cut_into_more_ranges_up_to_a_limit():
    assert [bits_for(entries) for entries in (0, 7, 8, 100, 10_000, 1 << 20)] == [0, 0, 1, 4, 11, MOST_BITS]


@given(ENTRIES)
def test_entries_come_back_from_the_wire(entries):
    assert dict(unpacked(packed(entries.items()))) == entries
    assert dict(unpacked(packed(entries.items()) + b"left over")) == entries
