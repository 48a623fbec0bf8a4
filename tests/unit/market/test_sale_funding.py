"""A run starts, pauses and ends within what its channel can pay: nothing is charged beyond that."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.playbook import Playbook, ignored, some
from kit.trading import BUYER, CHANNEL, NOW_MS, award, bid, tender, workload

from hansa.market import sale
from hansa.market.earning_channel import LineMetered
from hansa.market.effects import Send
from hansa.market.funding import shares_of_funds
from hansa.market.sale import advance
from hansa.market.sale_events import (
    AwardArrived,
    DevicesFreed,
    FundsShared,
    LeaseMade,
    LineVouched,
    PauseWanted,
    ProgressMade,
    ResumeWanted,
    RunBegan,
    RunOver,
    RunUnwanted,
    RunWanted,
    StartOrdered,
    StopOrdered,
    TimePassed,
)
from hansa.market.sale_funding import STARVING_MS, UNFUNDED, enough_to_start
from hansa.market.sale_state import Sale
from hansa.proto.messages import LeaseConfirmed, RunEnded
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest

TENDER = tender()
BID = bid(TENDER, max_unpaid=10**9).document
START = Sale(tender=TENDER, bid=BID, bid_digest=digest(DOMAIN, BID), grace_ms=10_000)
LEASE = digest(DOMAIN, award(BID))
BEGAN_MS = NOW_MS + 10_000
ENOUGH = 600_001
"""With so much that may be unpaid, only the whole lease's cost is enough to start."""
ORDER = StartOrdered(round=3, checkpoint=None, at_ms=NOW_MS + 9_000)
ENDED = some(Send, to=BUYER, message=some(RunEnded, outcome="failed", kind=UNFUNDED))


def leased(answered=BID):
    start = replace(START, bid=answered, bid_digest=digest(DOMAIN, answered))
    made = AwardArrived(award=award(answered), channel=CHANNEL, workload=workload(), at_ms=NOW_MS + 3_000)
    playbook = Playbook(advance, start) >> made << some(LeaseMade)
    return playbook << some(Send, message=LeaseConfirmed(lease=digest(DOMAIN, award(answered))))


def share(ceiling, at_ms=NOW_MS + 12_000):
    return FundsShared(ceiling=ceiling, at_ms=at_ms)


def step(number, running_ms):
    at_ms = BEGAN_MS + running_ms
    return ProgressMade(running_ms=running_ms, steps=number, rounds=0, checkpoint=bytes(32), at_ms=at_ms)


def running(ceiling):
    """A run whose share was enough when it began, and is this now."""
    playbook = leased() >> share(ENOUGH) >> ORDER << some(RunWanted, round=3) >> RunBegan(at_ms=BEGAN_MS)
    return playbook >> share(ceiling)


def test_nothing_limits_a_run_whose_channel_is_not_limited():
    (leased() >> ORDER << some(RunWanted, round=3)).reaches("running")


def test_a_run_waits_for_its_money_and_starts_where_it_was_ordered_to_once_it_is_there():
    playbook = leased() >> share(0) >> ORDER
    playbook >> share(ENOUGH - 1)
    playbook.reaches("funding")
    (playbook >> share(ENOUGH) << some(RunWanted, round=3)).reaches("running")


def test_several_intervals_and_what_may_be_unpaid_are_enough_of_a_long_lease():
    assert enough_to_start(replace(BID, max_unpaid=3_000)) == 3_000 + 6 * BID.meter_interval_ms
    assert enough_to_start(BID) == BID.max_total


def test_a_lease_whose_money_does_not_come_lapses_and_its_buyer_is_told_why():
    playbook = leased() >> share(0) >> ORDER
    deadline_ms = sale.deadline_ms(playbook.reaches("funding"))
    assert deadline_ms == award(BID).start_by_ms
    playbook >> TimePassed(at_ms=deadline_ms) << some(DevicesFreed) << ENDED
    playbook.reaches("lapsed", kind=UNFUNDED, reason="its channel was not funded in time")


def test_a_lease_that_waits_for_money_can_still_be_called_off_and_is_confirmed_again():
    playbook = leased() >> share(0) >> ORDER
    again = AwardArrived(award=award(BID), channel=CHANNEL, workload=workload(), at_ms=NOW_MS + 3_500)
    playbook >> again << some(Send, message=LeaseConfirmed(lease=LEASE))
    (playbook >> StopOrdered(reason="no", at_ms=NOW_MS + 20_000) << some(DevicesFreed)).reaches("lapsed")


def test_a_prepaid_run_waits_until_it_is_paid_ahead():
    prepaid = replace(BID, prepay=2_000, max_unpaid=0)
    playbook = leased(prepaid) >> ORDER
    playbook >> LineVouched(amount=0, ahead=1_999, at_ms=NOW_MS + 9_500)
    playbook.reaches("funding")
    playbook >> LineVouched(amount=0, ahead=2_000, at_ms=NOW_MS + 9_600) << some(RunWanted)
    late = leased(prepaid) >> ORDER
    late >> TimePassed(at_ms=award(BID).start_by_ms) << some(DevicesFreed) << ENDED
    late.reaches("lapsed", reason="what is paid ahead did not come in time")


def test_a_voucher_that_overtakes_the_order_to_start_counts():
    prepaid = replace(BID, prepay=2_000, max_unpaid=0)
    playbook = leased(prepaid) >> LineVouched(amount=0, ahead=2_000, at_ms=NOW_MS + 8_000) >> ORDER << some(RunWanted)
    playbook.reaches("running", ahead=2_000)


def test_a_prepaid_run_pauses_when_what_was_paid_ahead_is_used_up():
    prepaid = replace(BID, prepay=2_000, max_unpaid=0, meter_interval_ms=500)
    playbook = leased(prepaid) >> LineVouched(amount=0, ahead=2_000, at_ms=NOW_MS + 8_000) >> ORDER << some(RunWanted)
    playbook >> RunBegan(at_ms=BEGAN_MS) >> step(1, 1_900) << some(LineMetered)
    assert sale.deadline_ms(playbook.reaches("running")) == BEGAN_MS + 1_900 + 101
    playbook >> TimePassed(at_ms=BEGAN_MS + 1_900 + 101) << some(PauseWanted)
    playbook >> LineVouched(amount=1_900, ahead=2_000, at_ms=BEGAN_MS + 2_100) << some(ResumeWanted)
    playbook.reaches("running", paused_ms=0)


def test_a_run_pauses_before_it_runs_up_more_than_its_share_and_goes_on_when_there_is_more():
    playbook = running(5_000)
    assert sale.deadline_ms(playbook.reaches("running")) == BEGAN_MS + 5_000
    playbook >> TimePassed(at_ms=BEGAN_MS + 5_000) << some(PauseWanted)
    assert playbook.reaches("running", starved=True).paused_ms
    playbook >> share(5_500, BEGAN_MS + 9_000)
    assert playbook.reaches("running").starved, "half an interval is not worth going on for"
    playbook >> share(7_000, BEGAN_MS + 10_000) << some(ResumeWanted)
    state = playbook.reaches("running", starved=False, paused_ms=0, unproved_since_ms=BEGAN_MS + 10_000)
    assert sale.deadline_ms(state) == BEGAN_MS + 12_000, "what it worked before the pause is still to be charged"


def test_a_voucher_does_not_wake_a_run_whose_channel_can_pay_no_more():
    playbook = running(5_000) >> step(1, 4_000) << some(LineMetered)
    playbook >> TimePassed(at_ms=BEGAN_MS + 5_000) << some(PauseWanted)
    playbook >> LineVouched(amount=4_000, at_ms=BEGAN_MS + 6_000)
    assert playbook.reaches("running").starved


def test_a_run_that_starves_for_too_long_is_stopped_and_its_buyer_is_told_why():
    playbook = running(5_000) >> TimePassed(at_ms=BEGAN_MS + 5_000) << some(PauseWanted)
    deadline_ms = BEGAN_MS + 5_000 + STARVING_MS
    playbook.reaches("running")
    playbook >> TimePassed(at_ms=min(deadline_ms, award(BID).ends_ms)) << some(RunUnwanted)
    over = RunOver(outcome="stopped", kind="stopped", reason="told to", outputs=0, at_ms=deadline_ms + 1_000)
    playbook >> over << some(DevicesFreed) << some(Send, message=some(RunEnded, kind=UNFUNDED))
    playbook.reaches("delivering", kind=UNFUNDED)


def test_work_beyond_the_share_is_never_charged():
    playbook = running(5_000) >> step(1, 7_000) << some(LineMetered, line=some(object, amount=5_000))
    playbook.reaches("running", accrued=5_000)


def test_the_same_share_again_is_nothing_new():
    (running(5_000) >> share(5_000) << ignored("a share that is known")).reaches("running")


@given(
    st.lists(
        st.tuples(st.integers(1, 4_000), st.integers(0, 30_000) | st.none(), st.booleans()), min_size=1, max_size=20
    )
)
def test_whatever_comes_when_what_is_charged_never_passes_what_the_channel_could_pay_by_then(course):
    """Steps late and early, shares that rise and fall back to what ran up; pauses that nobody obeys."""
    state = running(2_000).reaches("running")
    most, ran_ms = 2_000, 0
    for number, (more_ms, ceiling, tick) in enumerate(course, start=1):
        ran_ms += more_ms
        at_ms = BEGAN_MS + ran_ms
        if tick:
            state = sale.advance(state, TimePassed(at_ms=at_ms)).state
        state = sale.advance(state, step(number, ran_ms)).state
        assert state.accrued <= most
        if ceiling is not None:
            # As the channel shares: what ran up already is in it.
            state = sale.advance(state, share(max(ceiling, state.accrued), at_ms)).state
            most = max(ceiling, state.accrued)
    assert state.lined_amount <= most


AMOUNTS = st.integers(0, 10_000)


@given(
    AMOUNTS,
    st.dictionaries(st.binary(min_size=1, max_size=1), st.tuples(AMOUNTS, AMOUNTS), max_size=6),
    st.lists(AMOUNTS, max_size=3),
)
def test_shares_never_sum_to_more_than_the_channel_can_pay_and_waste_nothing(most, leases, ended):
    used = {lease: ran for lease, (ran, _) in leases.items()}
    live = {lease: ran + rest for lease, (ran, rest) in leases.items()}
    before = sum(used.values()) + sum(ended)
    gone = {b"ended" + bytes([number]): amount for number, amount in enumerate(ended)}
    shares = shares_of_funds(most, {**used, **gone}, live)
    assert set(shares) == set(live)
    assert all(used[lease] <= shares[lease] <= live[lease] for lease in live)
    assert sum(shares.values()) + sum(ended) <= max(most, before)
    if most >= sum(live.values()) + sum(ended):
        assert shares == live


@pytest.mark.parametrize(("most", "shares"), [(0, (0, 0)), (100, (50, 50)), (3_000, (1_000, 2_000))])
def test_what_one_lease_cannot_use_is_the_others(most, shares):
    found = shares_of_funds(most, {}, {b"a": 1_000, b"b": 5_000})
    assert (found[b"a"], found[b"b"]) == shares
