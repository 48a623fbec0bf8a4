"""Reputation: what counts, for how much, and what a liar can make of it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import (
    BUYER,
    BUYER_KEY,
    CHANNEL,
    CHANNEL_ID,
    NOW_MS,
    OTHER_KEY,
    PROVIDER,
    PROVIDER_KEY,
    evidence,
    line,
    statement,
)

from hansa.market.receipts import receipt_digest
from hansa.market.reputation import (
    BUYER as AS_BUYER,
)
from hansa.market.reputation import (
    HALF_LIFE_MS,
    OVERDUE_MS,
    PRIOR,
    WHOLE_PPM,
    Dealt,
    Standing,
    faded_ppm,
    newest,
    read_dealing,
    share_ppm,
    standing,
)
from hansa.market.reputation import (
    PROVIDER as AS_PROVIDER,
)
from hansa.proto.documents import Receipt, Voucher
from hansa.proto.errors import ProtocolError
from hansa.proto.history import Dealing
from hansa.proto.network import DOMAIN
from hansa.proto.signing import SigningKey, sign

VIEWER, SUBJECT, TELLER = b"V" * 20, b"S" * 20, b"T" * 20


def dealt(buyer: bytes, provider: bytes, value: int, **changes: Any) -> Dealt:
    made = Dealt(
        channel_id=bytes(12) + buyer[:10] + provider[:10],
        currency="USD",
        buyer=buyer,
        provider=provider,
        value=value,
        at_ms=NOW_MS,
    )
    return replace(made, **changes)


def figure(*dealings: Dealt, role: str = AS_PROVIDER, at_ms: int = NOW_MS, **changes: Any) -> Standing:
    return standing(VIEWER, SUBJECT, role, newest(dealings), currency="USD", at_ms=at_ms, **changes)


def test_a_newcomer_has_nothing_and_a_unit_of_currency_makes_half() -> None:
    assert figure().ppm == 0
    assert figure(dealt(VIEWER, SUBJECT, PRIOR)).ppm == WHOLE_PPM // 2
    assert figure(dealt(VIEWER, SUBJECT, 9 * PRIOR)).ppm == WHOLE_PPM * 9 // 10


def test_values_are_halved_every_ninety_days_and_never_rise() -> None:
    assert [faded_ppm(halves * HALF_LIFE_MS) for halves in (0, 1, 2, 20, 10_000)] == [1_000_000, 500_000, 250_000, 0, 0]
    ages = [faded_ppm(age * HALF_LIFE_MS // 7) for age in range(60)]
    assert ages == sorted(ages, reverse=True)
    assert faded_ppm(-5) == WHOLE_PPM


def test_a_strangers_word_counts_nothing_however_much_it_is() -> None:
    sybils = [dealt(bytes([number]) * 20, SUBJECT, 10**15) for number in range(1, 80)]
    assert figure(*sybils).ppm == 0
    assert figure(*sybils).terms == ()


@given(st.integers(0, 10**12), st.integers(0, 10**15))
def test_a_teller_is_believed_by_half_and_for_no_more_than_the_viewer_had_with_it(known: int, told: int) -> None:
    seen = figure(dealt(VIEWER, TELLER, known), dealt(TELLER, SUBJECT, told))
    assert seen.good == min(known, told) // 2


@given(st.lists(st.integers(0, 10**9), max_size=6))
def test_many_dealings_told_by_one_teller_count_together_no_more_than_one(values: list[int]) -> None:
    told = [dealt(TELLER, SUBJECT, value, channel_id=bytes([place]) * 32) for place, value in enumerate(values)]
    assert figure(dealt(VIEWER, TELLER, PRIOR), *told).good == min(PRIOR, sum(values)) // 2


def test_it_does_not_matter_on_which_side_the_viewer_came_to_know_a_teller() -> None:
    assert figure(dealt(TELLER, VIEWER, PRIOR), dealt(TELLER, SUBJECT, PRIOR)).good == PRIOR // 2


def test_dealings_with_oneself_in_another_currency_or_in_the_future_do_not_count() -> None:
    known = dealt(VIEWER, SUBJECT, 3)
    assert figure(known, dealt(SUBJECT, SUBJECT, PRIOR)).good == 3
    assert figure(dealt(VIEWER, SUBJECT, PRIOR, currency="EUR")).good == 0
    assert figure(dealt(VIEWER, SUBJECT, PRIOR, at_ms=NOW_MS + 3_600_000)).good == 0


def test_a_channel_counts_once_with_its_highest_total() -> None:
    assert figure(dealt(VIEWER, SUBJECT, 3), dealt(VIEWER, SUBJECT, 7), dealt(VIEWER, SUBJECT, 5)).good == 7


def test_what_a_buyer_did_not_vouch_for_within_a_day_counts_against_it_and_not_against_the_provider() -> None:
    owes = dealt(SUBJECT, VIEWER, PRIOR, unpaid=PRIOR, unpaid_ms=NOW_MS)
    assert figure(owes, role=AS_BUYER).bad == 0
    late = figure(owes, role=AS_BUYER, at_ms=NOW_MS + OVERDUE_MS)
    assert late.bad > 0
    assert late.ppm < figure(replace(owes, unpaid=0), role=AS_BUYER, at_ms=NOW_MS + OVERDUE_MS).ppm
    mirrored = dealt(VIEWER, SUBJECT, PRIOR, unpaid=PRIOR, unpaid_ms=NOW_MS)
    assert figure(mirrored, at_ms=NOW_MS + OVERDUE_MS).bad == 0


def test_a_tellers_complaint_weighs_no_more_than_its_praise_could() -> None:
    lie = dealt(SUBJECT, TELLER, 0, unpaid=10**30, unpaid_ms=NOW_MS)
    seen = figure(dealt(VIEWER, TELLER, PRIOR), lie, role=AS_BUYER, at_ms=NOW_MS + OVERDUE_MS)
    assert seen.bad <= PRIOR // 2
    assert figure(lie, role=AS_BUYER, at_ms=NOW_MS + OVERDUE_MS).bad == 0


def test_whoever_contradicted_itself_has_zero_and_is_not_believed() -> None:
    own = dealt(VIEWER, SUBJECT, PRIOR)
    assert figure(own, proven_false=frozenset({SUBJECT})).ppm == 0
    told = (dealt(VIEWER, TELLER, PRIOR), dealt(TELLER, SUBJECT, PRIOR))
    assert figure(*told).good > 0
    assert figure(*told, proven_false=frozenset({TELLER})).good == 0


@given(st.permutations(range(6)))
def test_the_order_in_which_dealings_were_heard_changes_nothing(order: list[int]) -> None:
    known = [
        dealt(VIEWER, SUBJECT, 5),
        dealt(TELLER, SUBJECT, 70),
        dealt(VIEWER, TELLER, 30),
        dealt(b"U" * 20, SUBJECT, 11),
        dealt(VIEWER, b"U" * 20, 9),
        dealt(SUBJECT, VIEWER, 2),
    ]
    assert figure(*(known[place] for place in order)) == figure(*known)


def test_a_figure_never_passes_the_whole() -> None:
    assert share_ppm(10**60) <= WHOLE_PPM
    assert share_ppm(10**60, 10**60) <= WHOLE_PPM // 2


# The documents behind it.

FIRST = statement((line(1_000), evidence(1)))
ELSEWHERE = replace(FIRST.receipt, channel_id=b"x" * 32)
SECOND = statement((line(3_000), evidence(2)), last=FIRST)


def signed_dealing(
    *,
    receipt: Receipt = FIRST.receipt,
    unpaid: Receipt | None = SECOND.receipt,
    provider_key: SigningKey = PROVIDER_KEY,
    buyer_key: SigningKey = BUYER_KEY,
    **of_voucher: Any,
) -> Dealing:
    voucher = Voucher(channel_id=CHANNEL_ID, cumulative=1_000, statement=receipt_digest(FIRST.receipt))
    return Dealing(
        currency="USD",
        config=CHANNEL,
        receipt=sign(DOMAIN, receipt, provider_key),
        voucher=sign(DOMAIN, replace(voucher, **of_voucher), buyer_key),
        unpaid=sign(DOMAIN, unpaid, provider_key) if unpaid else None,
    )


def test_a_dealing_is_read_from_its_signatures_alone() -> None:
    read = read_dealing(signed_dealing())
    assert (read.buyer, read.provider, read.value, read.unpaid) == (BUYER, PROVIDER, 1_000, 2_000)
    assert read_dealing(signed_dealing(unpaid=None)).unpaid == 0


def test_a_buyer_that_never_vouched_for_anything_can_be_told_of() -> None:
    told = Dealing(
        currency="USD",
        config=CHANNEL,
        receipt=None,
        voucher=None,
        unpaid=sign(DOMAIN, FIRST.receipt, PROVIDER_KEY),
    )
    assert (read_dealing(told).value, read_dealing(told).unpaid) == (0, 1_000)
    for wrong in (
        replace(told, unpaid=sign(DOMAIN, FIRST.receipt, OTHER_KEY)),
        replace(told, unpaid=sign(DOMAIN, SECOND.receipt, PROVIDER_KEY)),
        replace(told, unpaid=None),
        replace(signed_dealing(), voucher=None),
        replace(signed_dealing(), receipt=None),
    ):
        with pytest.raises(ProtocolError):
            read_dealing(wrong)


def test_money_paid_in_advance_is_no_work_delivered() -> None:
    assert read_dealing(signed_dealing(cumulative=9_999)).value == 1_000
    assert read_dealing(signed_dealing(cumulative=400)).value == 400


@pytest.mark.parametrize(
    "wrong",
    [
        signed_dealing(buyer_key=OTHER_KEY),
        signed_dealing(provider_key=OTHER_KEY, unpaid=None),
        signed_dealing(receipt=ELSEWHERE, unpaid=None, statement=receipt_digest(ELSEWHERE)),
        signed_dealing(unpaid=replace(SECOND.receipt, channel_id=b"x" * 32)),
        signed_dealing(statement=b"x" * 32),
        signed_dealing(channel_id=b"x" * 32),
        signed_dealing(receipt=replace(FIRST.receipt, amount_total=10**9)),
        signed_dealing(unpaid=replace(SECOND.receipt, prev=b"x" * 32)),
        signed_dealing(unpaid=replace(SECOND.receipt, seq=1)),
        replace(signed_dealing(), config=replace(CHANNEL, salt=b"y" * 32)),
        replace(signed_dealing(), currency="eip155:1/escrow:0x" + "11" * 20 + "/erc20:0x" + "22" * 20),
        replace(signed_dealing(), unpaid=sign(DOMAIN, SECOND.receipt, BUYER_KEY)),
    ],
)
def test_documents_that_do_not_belong_together_or_are_anothers_are_no_dealing(wrong: Dealing) -> None:
    with pytest.raises(ProtocolError):
        read_dealing(wrong)
