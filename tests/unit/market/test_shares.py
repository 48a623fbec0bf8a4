"""Parts of a device: what is asked for, what is given, and that nobody ever pays for more than the part."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import (
    CHANNEL,
    DEVICE,
    LEASE,
    NOW_MS,
    OTHER_LEASE,
    PRICE,
    award,
    bid,
    evidence,
    line,
    needs,
    statement,
    tender,
    terms,
    workload,
)

from hansa.market.clauses import unmet_by_bid, unreadable
from hansa.market.needs_rendering import render
from hansa.market.receipt_disputes import MOST_TRIED, OF_CLOCKS, payable_lines
from hansa.market.receipts import BEYOND, CLOCK_SKEW_MS, fault_in
from hansa.market.requirements import NeedsError, parse_needs
from hansa.market.sale import advance, deadline_ms
from hansa.market.sale_events import AwardArrived, LineVouched, ProgressMade, RunBegan, StartOrdered
from hansa.market.sale_funding import enough_to_start
from hansa.market.sale_state import Sale
from hansa.market.selection import rank, stated_in
from hansa.market.shares import WHOLE_MILLI, cost, device_ms, share_asked, share_clause, share_given, width_milli
from hansa.proto.market_documents import Clause, DeviceChoice, Fact
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest

HALF = tender(requirements=needs(clauses=(share_clause(500),), cores_milli=0))
GIVES_HALF = (Fact(name="share", value="0.5"),)
BID = bid(HALF, facts=GIVES_HALF, max_total=300_001).document


def asked(*clauses, **changes):
    return share_asked(needs(clauses=clauses, **changes))


# The language.


@pytest.mark.parametrize(
    ("text", "milli"),
    [
        ("gpu = 0.5\N{MULTIPLICATION SIGN}H100", 500),
        ("0.25xA100", 250),
        ("H100:0.5", 500),
        ("share = 25 %", 250),
        ("kind = cpu and share = 0.125", 125),
        ("share <= 0.75", 750),
        ("0.5xH100 or 0.5xA100", 500),
        ("0.5xH100 and share = 50 %", 500),
        ("share = 100%", 1000),
        ("1.0xH100", 1000),
        ("share = any", 1000),
    ],
)
def test_a_part_of_one_device_can_be_asked_for_and_reads_the_same_again(text, milli):
    said = parse_needs(text)
    assert share_asked(said.applied_to(needs())) == milli
    assert parse_needs(render(said)) == said
    assert ("share = " in render(said)) == (milli < WHOLE_MILLI)


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("1.5xH100", "1.5xH100"),
        ("0.0xH100", "0.0xH100"),
        ("0.0005xH100", "0.0005xH100"),
        ("0.5xH100 or H100", "0.5xH100"),
        ("0.5xH100 or 0.25xA100", "0.25xA100"),
        ("2xH100 and share = 0.5", "0.5"),
        ("share = 0.5 and devices = 2", "0.5"),
        ("share >= 0.5", "share"),
        ("share = 0", "0"),
        ("share = 101 %", "101 %"),
    ],
)
def test_what_is_no_part_of_one_device_is_refused_at_the_token(text, token):
    with pytest.raises(NeedsError) as caught:
        parse_needs(text)
    assert caught.value.token == token
    assert caught.value.hint


def test_the_command_lines_part_goes_before_the_files():
    base = parse_needs("share = 0.5").applied_to(needs())
    assert share_asked(parse_needs("share = 0.25").applied_to(base)) == 250


# What strangers send.


@pytest.mark.parametrize(
    "clauses",
    [
        (share_clause(500), share_clause(250)),
        (Clause(name="share", operator="=", values=("0.5",)),),
        (Clause(name="share", operator=">=", values=("0.5",)),),
        (Clause(name="share", operator="<=", values=("0.5", "0.6")),),
        (Clause(name="share", operator="<=", values=()),),
        (Clause(name="share", operator="<=", values=("0",)),),
        (Clause(name="share", operator="<=", values=("1",)),),
        (Clause(name="share", operator="<=", values=("0.0001",)),),
        (Clause(name="share", operator="<=", values=("0.2505",)),),
        (Clause(name="share", operator="<=", values=("-1",)),),
        (Clause(name="SHARE", operator="<=", values=("2",)),),
        (Clause(name="share", operator="<=", values=("half",)),),
    ],
)
def test_a_strangers_words_that_mean_no_part_are_judged_by_nobody(clauses):
    assert asked(*clauses) is None
    assert unreadable(needs(clauses=clauses)) == "what is asked for as a share is no part of one device"


def test_a_part_is_of_one_device_and_never_of_several():
    assert asked(share_clause(500), devices=2) is None
    assert asked(share_clause(500), choices=(DeviceChoice(devices=2, model="H100"),)) is None
    assert asked(share_clause(500)) == 500
    assert asked() == WHOLE_MILLI
    assert asked(Clause(name="Share", operator="<=", values=("25 %",))) == 250


@pytest.mark.parametrize("value", ["", "0", "2", "0.0001", "0.5005", "x", "-0.5", "½"])
def test_a_bid_whose_part_cannot_be_read_gives_nothing_and_cannot_win(value):
    odd = replace(BID, facts=(Fact(name="share", value=value),))
    assert share_given(odd) == 0
    assert rank(HALF, {b"1": odd}, {}, at_ms=NOW_MS)[0].excluded


def test_a_bid_that_gives_another_part_than_was_asked_for_cannot_win():
    why = "not the part of a device that was tendered for"
    for facts in ((), (Fact(name="share", value="0.25"),), (Fact(name="share", value="0.75"),), GIVES_HALF * 2):
        assert rank(HALF, {b"1": replace(BID, facts=facts)}, {}, at_ms=NOW_MS)[0].excluded == why
    whole = bid(tender()).document
    assert rank(tender(), {b"1": replace(whole, facts=GIVES_HALF)}, {}, at_ms=NOW_MS)[0].excluded == why
    assert rank(HALF, {b"1": BID}, {}, at_ms=NOW_MS)[0].excluded == ""


def test_who_does_not_know_the_word_meets_no_condition_on_it():
    (lack,) = unmet_by_bid((replace(share_clause(500), name="shard_of_a_device"),), {"share": "0.5"})
    assert lack.nearest == "any"
    (lack,) = unmet_by_bid((share_clause(500),), {})
    assert lack.nearest == "any"


# Money.


def test_a_limit_or_a_payment_ahead_of_more_than_the_part_cannot_win():
    dear = replace(BID, max_total=300_002)
    assert rank(HALF, {b"1": dear}, {}, at_ms=NOW_MS)[0].excluded == "its limit is above price times time"
    ahead = replace(BID, prepay=30_001)
    assert "paid ahead" in rank(HALF, {b"1": ahead}, {}, max_prepay_ms=60_000, at_ms=NOW_MS)[0].excluded
    sound = replace(BID, prepay=30_000)
    assert not rank(HALF, {b"1": sound}, {}, max_prepay_ms=60_000, at_ms=NOW_MS)[0].excluded


def test_a_score_counts_what_the_part_costs():
    (half,) = rank(HALF, {b"1": BID}, {}, at_ms=NOW_MS)
    (whole,) = rank(tender(), {b"1": bid(tender()).document}, {}, at_ms=NOW_MS)
    assert half.finishing * 2 == whole.finishing == 3_600_000
    assert half.price_per_hour == whole.price_per_hour, "the price is of a whole device"


def test_how_fast_a_part_ran_says_nothing_of_the_whole_device():
    models = [stated_in(replace(BID, facts=facts)).model for facts in ((), GIVES_HALF)]
    assert models == ["", "0.5 of "]
    long = (*GIVES_HALF, Fact(name="gpu", value="x" * 256))
    assert len(stated_in(replace(BID, facts=long)).model.encode()) <= 256


@given(st.integers(0, 10**9), st.integers(1, 1000), st.integers(0, 10**30))
def test_a_part_never_costs_more_than_its_part_of_price_times_time(elapsed_ms, milli, price_e18):
    paid = cost(elapsed_ms, milli, price_e18)
    assert paid * 1000 * 10**18 <= elapsed_ms * milli * price_e18


def started(milli=500, **changes):
    asks = tender(requirements=needs(clauses=(share_clause(milli),), cores_milli=0))
    gives = replace(bid(asks, facts=(Fact(name="share", value=f"{milli / 1000:g}"),)).document, **changes)
    accepted = award(gives)
    sold = Sale(tender=asks, bid=gives, bid_digest=digest(DOMAIN, gives), grace_ms=10_000)
    for event in (
        AwardArrived(award=accepted, channel=CHANNEL, workload=workload(), at_ms=NOW_MS + 3_000),
        StartOrdered(round=0, checkpoint=None, at_ms=NOW_MS + 10_000),
        RunBegan(at_ms=NOW_MS + 10_000),
    ):
        sold = advance(sold, event).state
    assert (sold.phase, sold.lease) == ("running", digest(DOMAIN, accepted))
    return sold


def worked(sold, running_ms, steps):
    event = ProgressMade(
        steps=steps, rounds=0, checkpoint=bytes(32), running_ms=running_ms, at_ms=NOW_MS + 10_000 + running_ms
    )
    return advance(sold, event).state


@given(st.lists(st.integers(0, 7), min_size=1, max_size=200), st.sampled_from([1, 125, 333, 500, 999]))
def test_however_small_its_steps_a_part_is_metered_to_the_last_whole_millisecond(pauses, milli):
    sold, running_ms = started(milli, max_unpaid=10**9), 0
    for step, pause_ms in enumerate(pauses, start=1):
        running_ms += pause_ms
        sold = worked(sold, running_ms, step)
    assert sold.device_ms == device_ms(running_ms, milli)
    assert sold.accrued == running_ms * milli // 1000


def test_what_may_be_unpaid_runs_up_at_the_parts_pace():
    whole, half = started(999, max_unpaid=3_000), started(500, max_unpaid=3_000)
    assert half.exposed_at_ms == NOW_MS + 10_000 + 6_002
    assert half.unproved_at(NOW_MS + 16_000) == 3_000
    assert whole.exposed_at_ms < half.exposed_at_ms
    assert deadline_ms(half) <= half.exposed_at_ms


def test_a_channel_needs_the_parts_money_to_start_with():
    assert enough_to_start(replace(BID, max_unpaid=0)) == 6 * 500
    assert enough_to_start(replace(BID, max_unpaid=0, facts=())) == 6 * 1_000


def test_a_lease_of_a_part_remembers_it():
    sold = started(250)
    assert sold.terms is not None
    assert (sold.terms.share_milli, sold.terms.width_milli, width_milli(sold.bid)) == (250, 250, 250)
    assert sold.terms.most <= 250 * (sold.terms.ends_ms - sold.terms.begins_ms + CLOCK_SKEW_MS) // 1000


# What a buyer pays for.

PART = terms(share_milli=500)


def charged(device_ms_charged, until_ms, *, agreed=None):
    made = line(device_ms_charged, at_ms=NOW_MS + until_ms)
    return fault_in(statement((made, evidence(1))), last=None, terms=agreed or {LEASE: PART}, now_ms=NOW_MS + until_ms)


def test_no_more_device_time_than_the_part_is_paid_for():
    assert charged(500, 1_000) is None
    assert charged(501, 1_000) == "a line counts more device time than has passed"
    assert charged(500, 1_001) is None
    assert charged(1_000, 1_000, agreed={LEASE: terms()}) is None


def leases(*milli):
    keys = [bytes([65 + number]) * 32 for number in range(len(milli))]
    return {
        key: terms(lease=key, shard=number, share_milli=part)
        for number, (key, part) in enumerate(zip(keys, milli, strict=True))
    }


def receipt_for(agreed, spans, *, steps=1, last=None):
    """Every lease computed all of the time between these two moments."""
    pairs = []
    for (key, of), (begins, ends) in zip(agreed.items(), spans, strict=True):
        used = (ends - begins) * of.share_milli // 1000
        made = line(used, at_ms=NOW_MS + ends, lease=key, shard=of.shard, start_ms=NOW_MS + begins)
        pairs.append((made, evidence(steps, lease=key, shard=of.shard)))
    return statement(*pairs, last=last)


def test_parts_of_one_device_that_make_up_the_whole_are_paid_side_by_side():
    agreed = leases(500, 250, 250)
    made = receipt_for(agreed, [(0, 400_000)] * 3)
    assert fault_in(made, last=None, terms=agreed, now_ms=NOW_MS + 400_000) is None


def test_three_halves_of_one_device_are_not_paid_though_each_two_would_be():
    agreed = leases(500, 500, 500)
    made = receipt_for(agreed, [(0, 400_000)] * 3)
    why = "parts of one device are charged that are more than the whole"
    assert fault_in(made, last=None, terms=agreed, now_ms=NOW_MS + 400_000) == why
    others = {LEASE: PART, OTHER_LEASE: terms(lease=OTHER_LEASE, shard=1, share_milli=600)}
    late = receipt_for(others, [(0, 400_000)] * 2)
    twice = "one device is charged on two leases for the same time"
    assert fault_in(late, last=None, terms=others, now_ms=NOW_MS + 400_000) == twice


def test_of_parts_that_cannot_all_have_run_the_one_that_began_last_gives_way_and_the_others_are_paid():
    """A clock that is set back between leases makes such lines of honest ones; the channel goes on."""
    agreed = leases(500, 500, 500)
    made = receipt_for(agreed, [(0, 400_000), (10_000, 400_000), (5_000, 400_000)])
    first, second, third = made.lines
    payable = payable_lines(made, last=None, terms=agreed, now_ms=NOW_MS + 400_000)
    assert payable == (first, replace(second, end_ms=second.start_ms, device_ms=0, amount=0), third)
    grown = receipt_for(agreed, [(0, 400_000), (10_000, 60_000), (5_000, 60_000)])
    assert fault_in(grown, last=None, terms=agreed, now_ms=NOW_MS + 400_000) is None
    more = receipt_for(agreed, [(0, 400_000), (10_000, 400_000), (5_000, 400_000)], steps=2, last=grown)
    assert fault_in(more, last=grown, terms=agreed, now_ms=NOW_MS + 400_000) == BEYOND
    payable = payable_lines(more, last=grown, terms=agreed, now_ms=NOW_MS + 400_000)
    assert payable[1] == grown.lines[1], "what was vouched for stays"
    twice = {LEASE: PART, OTHER_LEASE: terms(lease=OTHER_LEASE, shard=1, share_milli=600)}
    lie = receipt_for(twice, [(0, 400_000)] * 2)
    assert fault_in(lie, last=None, terms=twice, now_ms=NOW_MS + 400_000) not in OF_CLOCKS


def test_parts_of_which_nothing_new_is_charged_are_not_among_the_few_that_are_tried():
    """Each one tried is a whole receipt looked at, and a stranger wrote it."""
    agreed = leases(500, 500, 500, *[125] * MOST_TRIED)
    before = [(0, 10_000), (2_000, 10_000), (1_000, 10_000)]
    later = [(20_000 + number, 20_100 + number) for number in range(MOST_TRIED)]
    last = receipt_for(agreed, before + later)
    assert fault_in(last, last=None, terms=agreed, now_ms=NOW_MS + 400_000) is None
    beyond = [(begins, 400_000) for begins, _ in before]
    more = receipt_for(agreed, beyond + later, steps=2, last=last)
    assert fault_in(more, last=last, terms=agreed, now_ms=NOW_MS + 400_000) == BEYOND
    payable = payable_lines(more, last=last, terms=agreed, now_ms=NOW_MS + 400_000)
    assert payable == (more.lines[0], last.lines[1], *more.lines[2:])
    grown = [(begins, ends + 100) for begins, ends in later]
    many = receipt_for(agreed, beyond + grown, steps=2, last=last)
    assert payable_lines(many, last=last, terms=agreed, now_ms=NOW_MS + 400_000) == ()


@pytest.mark.parametrize("began_last", [0, 1, 2, 3])
def test_of_four_parts_that_cannot_all_have_run_the_one_that_began_last_alone_gives_way(began_last):
    agreed = leases(250, 250, 250, 500)
    begun = [10_000 + 1_000 * number for number in range(4)]
    begun[began_last] = 20_000
    made = receipt_for(agreed, [(begins, 400_000) for begins in begun])
    payable = payable_lines(made, last=None, terms=agreed, now_ms=NOW_MS + 400_000)
    for number, (said, paid) in enumerate(zip(made.lines, payable, strict=True)):
        assert paid == (replace(said, end_ms=said.start_ms, device_ms=0, amount=0) if number == began_last else said)


@given(
    st.lists(
        st.tuples(st.sampled_from([125, 250, 500, 1000]), st.integers(0, 500_000), st.integers(0, 90_000)), max_size=8
    )
)
def test_who_never_sells_more_than_the_whole_is_never_refused(wishes):
    given_out, spans, parts = [], [], []
    for milli, begins, lasts in wishes:
        ends = begins + lasts
        moments = [begins, *(start for start, _, _ in given_out if begins <= start < ends)]
        used = max(sum(part for start, end, part in given_out if start <= at < end) for at in moments)
        if used + milli <= WHOLE_MILLI:
            given_out.append((begins, ends, milli))
            spans.append((begins, ends))
            parts.append(milli)
    if parts:
        agreed = {key: replace(of, devices=(DEVICE.id,)) for key, of in leases(*parts).items()}
        made = receipt_for(agreed, spans)
        assert fault_in(made, last=None, terms=agreed, now_ms=NOW_MS + 600_000) is None


def test_a_voucher_pays_for_the_part_and_no_more():
    sold = worked(started(500), 2_000, 1)
    assert (sold.lined_amount, sold.accrued) == (1_000, 1_000)
    paid = advance(sold, LineVouched(amount=1_000, ahead=0, at_ms=NOW_MS + 13_000)).state
    assert paid.unpaid == 0
    assert PRICE == 10**18
