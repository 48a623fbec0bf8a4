"""A lease that ends for want of money: whose word is true, when each side has some documents before the other."""

from dataclasses import replace

import pytest
from kit.trading import BUYER, CHANNEL, CHANNEL_ID, JOB, LEASE, NOW_MS, OTHER, PRICE, PROVIDER

from hansa.market.effects import unsigned
from hansa.market.mutual import LINE_LIFE_MS, LineBefore, Mutual
from hansa.market.paying_channel import PayingChannel
from hansa.market.receipts import LeaseTerms
from hansa.market.sale_funding import UNFUNDED
from hansa.market.want_of_credit import FRESH_MS, contradiction
from hansa.proto.currency import escrow_currency, unit_of
from hansa.proto.documents import CreditLine, Payment
from hansa.proto.messages import RunEnded

MOST = 600_001
TERMS = LeaseTerms(
    lease=LEASE,
    job=JOB,
    shard=0,
    devices=(b"d" * 32,),
    tier="sandbox",
    price_e18_per_device_ms=PRICE,
    max_total=MOST,
    begins_ms=NOW_MS,
    ends_ms=NOW_MS + 600_000,
)
OPEN = PayingChannel(phase="open", config=CHANNEL, channel_id=CHANNEL_ID, currency="USD", terms={LEASE: TERMS})
START_MS = NOW_MS + 30_000
HEARD_MS = START_MS + 1_000
START = 5
STARTS = (MOST,)
"""So much it takes to start that nothing less than the whole is enough, where a test does not say otherwise."""


def line(limit, nonce=1, signed_ms=NOW_MS - 1):
    return CreditLine(
        creditor=PROVIDER,
        debtor=BUYER,
        unit=unit_of("USD"),
        limit=limit,
        not_after=signed_ms + LINE_LIFE_MS,
        nonce=nonce,
    )


def payment(total, paid_ms):
    return Payment(creditor=PROVIDER, debtor=BUYER, unit=bytes(32), total=total, how="cash", nonce=1, paid_ms=paid_ms)


def fault(
    *,
    by=None,
    paid=0,
    held=0,
    known=None,
    vouched=0,
    channel=OPEN,
    paid_ahead=False,
    starts=STARTS,
    by_ms=START_MS,
    at_ms=HEARD_MS,
):
    said = by and unsigned(by)
    end = RunEnded(
        lease=LEASE, outcome="failed", kind=UNFUNDED, reason="", outputs=0, line=said, paid=paid, vouched=held
    )
    return contradiction(
        end,
        channel,
        known or Mutual(),
        vouched=vouched,
        paid_ahead=paid_ahead,
        awarded_ms=NOW_MS,
        start=START,
        starts=starts,
        by_ms=by_ms,
        at_ms=at_ms,
    )


def test_too_little_credit_by_the_line_that_it_shows_is_the_truth():
    assert fault(by=line(MOST - 1)) == ""


@pytest.mark.parametrize(("vouched", "true"), [(0, False), (90_000, False), (90_001, True)])
def test_too_little_for_the_whole_lease_is_no_reason_as_long_as_it_could_start_anew(vouched, true):
    assert (fault(by=line(100_000), vouched=vouched, starts=(10_000,)) == "") is true


@pytest.mark.parametrize(("left", "true"), [(49_999, True), (50_000, False)])
def test_what_is_left_is_shared_and_what_the_others_ran_up_is_not_vouched_for_yet(left, true):
    assert (fault(by=line(left), starts=(10_000, 700, 9_000)) == "") is true


@pytest.mark.parametrize(("seconds", "left", "true"), [(20, 29_999, True), (20, 30_000, False), (600, 310_000, False)])
def test_what_was_worked_for_and_is_withheld_counts_as_used_up_as_far_as_there_was_time_for_it(seconds, left, true):
    firm = replace(OPEN, terms={LEASE: replace(TERMS, penalty=300_000)})
    heard_ms = NOW_MS + seconds * 1_000
    assert (fault(by=line(left), channel=firm, starts=(10_000,), at_ms=heard_ms) == "") is true
    assert fault(by=line(309_999), channel=firm, starts=(10_000,), at_ms=NOW_MS + 600_000) == ""


def test_a_line_that_can_pay_for_every_lease_is_no_reason_to_end_one():
    assert "by its own words" in fault(by=line(MOST))


def test_on_the_ledger_who_shows_no_line_has_no_reason():
    assert fault() == "it names no credit line"


@pytest.mark.parametrize("foreign", [{"creditor": OTHER}, {"debtor": OTHER}, {"unit": unit_of("EUR")}])
def test_a_line_between_others_or_in_another_unit_is_no_reason(foreign):
    assert fault(by=replace(line(0, nonce=99), **foreign)) == "its credit line is of somebody else"


def test_a_provider_that_is_paid_on_another_account_shows_the_line_of_its_own():
    elsewhere = replace(OPEN, config=replace(CHANNEL, payee=OTHER))
    assert fault(by=line(5), channel=elsewhere) == ""


def test_what_was_vouched_for_counts_against_the_line_and_what_was_paid_does_not():
    assert fault(by=line(MOST + 500), vouched=501) == ""
    assert fault(by=line(MOST + 500), vouched=501, paid=1)


@pytest.mark.parametrize(("signed_ms", "true"), [(START_MS - 1, False), (START_MS, True)])
def test_a_newer_line_is_no_fault_only_if_it_was_signed_after_the_lease_could_have_ended(signed_ms, true):
    newer = Mutual(taken=line(10**9, nonce=2, signed_ms=signed_ms))
    assert (fault(by=line(5), known=newer) == "") is true


@pytest.mark.parametrize(("paid_ms", "true"), [(START_MS - 1, False), (START_MS, True)])
def test_a_payment_that_it_leaves_out_is_no_fault_only_if_it_was_acknowledged_later(paid_ms, true):
    later = Mutual(taken=line(MOST), paid_out=payment(1_000, paid_ms))
    assert (fault(by=line(MOST), vouched=1_000, paid=0, known=later) == "") is true
    assert fault(by=line(MOST), vouched=1_000, paid=1_000, known=later), "with it there was enough"


def test_what_is_paid_ahead_and_on_its_way_is_nobodys_fault():
    paid = replace(OPEN, cumulative=700)
    assert fault(by=line(10**9), channel=paid, held=0, paid_ahead=True) == ""
    assert fault(by=line(10**9), channel=paid, held=700, paid_ahead=True)
    assert fault(by=line(10**9), channel=paid, held=0), "nothing was to be paid ahead for this lease"


def test_a_lease_that_ended_just_now_may_still_count_for_its_provider():
    over = replace(TERMS, lease=bytes(32), ends_ms=HEARD_MS - 1_000)
    two = replace(OPEN, terms={**OPEN.terms, over.lease: over})
    assert fault(by=line(2 * MOST - 1), channel=two) == ""
    long_ago = replace(over, ends_ms=HEARD_MS - FRESH_MS)
    two = replace(OPEN, terms={**OPEN.terms, over.lease: long_ago})
    assert fault(by=line(2 * MOST - 1), channel=two, at_ms=HEARD_MS)


def test_that_a_line_ran_out_is_no_reason_for_whoever_has_to_sign_it_anew():
    old = line(MOST, signed_ms=HEARD_MS - LINE_LIFE_MS - 1)
    assert "by its own words" in fault(by=old)


@pytest.mark.parametrize(("limit", "true"), [(START - 1, False), (START, True)])
def test_who_lends_less_than_the_start_that_it_bid_for_has_no_reason(limit, true):
    assert (fault(by=line(limit)) == "") is true


def lowered(*, to=START, was=MOST, until_ms=NOW_MS + 1, **changes):
    """What is said of an end by a line that replaced a larger one."""
    before = LineBefore(limit=was, nonce=1, until_ms=until_ms)
    newer = line(to, nonce=2, signed_ms=until_ms)
    return fault(by=newer, known=Mutual(taken=newer, before=(before,)), **changes)


@pytest.mark.parametrize(("until_ms", "true"), [(NOW_MS, True), (NOW_MS + 1, False)])
def test_a_line_that_was_lowered_after_the_award_is_no_reason_and_one_lowered_before_is(until_ms, true):
    assert (lowered(until_ms=until_ms) == "") is true


def test_a_lower_line_that_was_not_taken_takes_the_place_of_none():
    assert fault(by=line(START, nonce=2), known=Mutual(taken=line(MOST, nonce=1)))
    assert fault(by=line(START, nonce=2), known=Mutual(taken=line(MOST - 1, nonce=1))) == ""


def test_who_lowers_its_line_and_would_have_had_to_end_the_lease_all_the_same_told_the_truth():
    assert lowered(was=MOST) == "it has lowered its credit line since the award"
    assert lowered(was=MOST - 1) == "", "that is less than it takes to start"
    assert lowered(was=MOST + 700, vouched=700)
    assert lowered(was=MOST + 700, vouched=701) == ""
    assert lowered(was=MOST + 700, vouched=701, paid=1)


def test_where_little_is_left_to_be_paid_a_line_that_could_pay_it_was_enough():
    small = replace(OPEN, terms={LEASE: replace(TERMS, max_total=700)})
    assert lowered(was=700, channel=small)
    assert lowered(was=699, channel=small) == ""


def test_a_line_that_was_raised_after_the_one_it_goes_by_is_no_lowered_one():
    late = LineBefore(limit=10**9, nonce=3, until_ms=START_MS)
    newest = Mutual(taken=line(5, nonce=4, signed_ms=START_MS), before=(late,))
    assert fault(by=line(5, nonce=2), known=newest) == ""


@pytest.mark.parametrize(
    ("able_ms", "true"), [(0, True), (START_MS - FRESH_MS, True), (START_MS - FRESH_MS - 1, False)]
)
def test_on_a_chain_a_deposit_that_was_final_only_just_may_not_have_been_seen(able_ms, true):
    on_chain = replace(OPEN, currency=escrow_currency(1, b"e" * 20, b"t" * 20), able_ms=able_ms)
    assert (fault(channel=on_chain) == "") is true


def on_chain(**changes):
    return replace(OPEN, currency=escrow_currency(1, b"e" * 20, b"t" * 20), **changes)


@pytest.mark.parametrize(("funds", "true"), [(29_999, True), (30_000, False)])
def test_on_a_chain_another_lease_that_joins_is_no_reason_while_the_deposit_has_enough_for_both(funds, true):
    joined = on_chain(funds=funds, funds_ms=NOW_MS, terms={LEASE: TERMS, b"2" * 32: replace(TERMS, lease=b"2" * 32)})
    by_ms = NOW_MS + FRESH_MS + 1
    assert (fault(channel=joined, starts=(10_000, 10_000), by_ms=by_ms) == "") is true
    assert fault(channel=joined, starts=(10_000, 10_000), by_ms=by_ms - 1) == "", "its provider may not have seen it"


def test_on_a_chain_what_is_paid_ahead_and_on_its_way_is_nobodys_fault():
    rich = on_chain(funds=10**6, funds_ms=NOW_MS, cumulative=700)
    by_ms = NOW_MS + FRESH_MS + 1
    assert fault(channel=rich, by_ms=by_ms, paid_ahead=True, held=699) == ""
    assert fault(channel=rich, by_ms=by_ms, paid_ahead=True, held=700)
