import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.proto.errors import Malformed
from hansa.proto.keccak import keccak256
from hansa.proto.splits import MOST_SPLITS, NO_SPLITS, WHOLE_BPS, Split, check_splits, shares_of, splits_hash

A, B = b"\x01" * 20, b"\x02" * 20


def split(account, bps):
    return Split(account=account, bps=bps)


@st.composite
def splits(draw):
    accounts = sorted(draw(st.sets(st.binary(min_size=20, max_size=20).filter(any), max_size=MOST_SPLITS)))
    edges = st.lists(st.integers(1, WHOLE_BPS), min_size=len(accounts), max_size=len(accounts), unique=True)
    upper = sorted(draw(edges))
    sizes = [edge - before for before, edge in zip([0, *upper], upper, strict=False)]
    return tuple(split(account, bps) for account, bps in zip(accounts, sizes, strict=True))


@given(splits(), st.lists(st.integers(0, 1 << 127) | st.integers(0, 40_000), min_size=1, max_size=8))
def test_however_a_total_is_cut_everybody_gets_the_same_and_nothing_is_lost(parts, cuts):
    check_splits(parts)
    totals = sorted(cuts)
    paid, payee, before = [0] * len(parts), 0, 0
    for place, total in enumerate(totals):
        shares, rest = shares_of(total, before, parts, last=place == len(totals) - 1)
        assert rest >= 0
        assert all(share >= 0 for share in shares)
        paid = [known + share for known, share in zip(paid, shares, strict=True)]
        payee, before = payee + rest, total
        assert 0 <= total - sum(paid) - payee <= len(parts)
    at_once, rest_at_once = shares_of(totals[-1], 0, parts, last=True)
    assert (tuple(paid), payee) == (at_once, rest_at_once)
    assert sum(paid) + payee == totals[-1]


def test_one_unit_that_makes_two_splits_whole_takes_nothing_back_from_the_payee():
    halves = (split(A, 5_000), split(B, 5_000))
    assert shares_of(1, 0, halves, last=False) == ((0, 0), 0)
    assert shares_of(2, 1, halves, last=True) == ((1, 1), 0)
    assert shares_of(3, 1, halves, last=True) == ((1, 1), 1)


@pytest.mark.parametrize(
    "wrong",
    [
        (split(B, 1), split(A, 1)),
        (split(A, 1), split(A, 1)),
        (split(bytes(20), 1),),
        (split(A, 0),),
        (split(A, 10_001),),
        (split(A, 5_000), split(B, 5_001)),
        tuple(split(bytes([number]) * 20, 1) for number in range(1, MOST_SPLITS + 2)),
    ],
)
def test_splits_that_break_a_rule_are_malformed(wrong):
    with pytest.raises(Malformed):
        check_splits(wrong)


def test_a_channel_names_its_splits_by_a_chain_of_hashes():
    assert splits_hash(()) == NO_SPLITS
    first = keccak256(bytes(32) + bytes(12) + A + (7).to_bytes(32, "big"))
    assert splits_hash((split(A, 7),)) == first
    assert splits_hash((split(A, 7), split(B, 9))) == keccak256(first + bytes(12) + B + (9).to_bytes(32, "big"))
