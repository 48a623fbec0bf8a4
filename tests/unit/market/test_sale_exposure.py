"""What a buyer that gives no evidence can cost a provider: never more than ``max_unpaid`` and one unit."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.playbook import Playbook, some
from kit.trading import BUYER, CHANNEL, NOW_MS, award, bid, tender, workload

from hansa.market import sale, sale_award
from hansa.market.earning_channel import LineMetered
from hansa.market.effects import Send
from hansa.market.pricing import LONGEST_BIDDING_MS, ProviderTerms, objection
from hansa.market.sale import advance
from hansa.market.sale_award import is_possible
from hansa.market.sale_events import (
    AwardArrived,
    FundsShared,
    LeaseMade,
    LineVouched,
    PauseWanted,
    ProgressMade,
    ResumeWanted,
    RunBegan,
    RunInterrupted,
    RunUnwanted,
    RunWanted,
    StartOrdered,
    TimePassed,
)
from hansa.market.sale_state import Sale
from hansa.proto.messages import LeaseConfirmed, LeaseRefused
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest
from hansa.proto.units import amount_for

TENDER = tender()
BID = bid(TENDER).document
START = Sale(tender=TENDER, bid=BID, bid_digest=digest(DOMAIN, BID), grace_ms=10_000)
OWNER = ProviderTerms(
    account=BID.signer,
    currency="USD",
    tier="sandbox",
    price_e18_per_device_ms=BID.price_e18_per_device_ms,
    voucher_timeout_ms=5_000,
    max_unpaid=3_000,
    grace_ms=10_000,
    credit_limit=10**6,
    bid_ms=10_000,
    reclaim_notice_ms=0,
)
LEASE = digest(DOMAIN, award(BID))
BEGAN_MS = NOW_MS + 10_000
RATE_E18 = BID.price_e18_per_device_ms * len(BID.devices)
ALLOWED_MS = -(-(BID.max_unpaid + 1) * 10**18 // RATE_E18)


def running() -> Playbook:
    made = AwardArrived(award=award(BID), channel=CHANNEL, workload=workload(), at_ms=NOW_MS + 3_000)
    playbook = Playbook(advance, START) >> made << some(LeaseMade)
    playbook << some(Send, to=BUYER, message=LeaseConfirmed(lease=LEASE))
    playbook >> StartOrdered(round=0, checkpoint=None, at_ms=NOW_MS + 9_000) << some(RunWanted)
    return playbook >> RunBegan(at_ms=BEGAN_MS)


def step(number: int, running_ms: int) -> ProgressMade:
    at_ms = BEGAN_MS + running_ms
    return ProgressMade(running_ms=running_ms, steps=number, rounds=0, checkpoint=bytes(32), at_ms=at_ms)


def test_a_run_that_never_reports_a_step_is_stopped_before_it_costs_more_than_may_be_unpaid() -> None:
    playbook = running()
    assert sale.deadline_ms(playbook.reaches("running")) == BEGAN_MS + ALLOWED_MS
    assert amount_for(ALLOWED_MS * len(BID.devices), BID.price_e18_per_device_ms) <= BID.max_unpaid + 1
    playbook >> TimePassed(at_ms=BEGAN_MS + ALLOWED_MS - 1)
    assert not playbook.reaches("running").stopping
    playbook >> TimePassed(at_ms=BEGAN_MS + ALLOWED_MS) << some(RunUnwanted, lease=LEASE)
    assert sale.deadline_ms(playbook.reaches("running")) is None


def test_a_step_starts_the_clock_anew_and_what_it_is_worth_counts_until_it_is_vouched_for() -> None:
    playbook = running() >> step(1, 1_500) << some(LineMetered)
    worth = playbook.reaches("running").accrued
    left_ms = -(-(BID.max_unpaid - worth + 1) * 10**18 // RATE_E18)
    assert playbook.reaches("running").exposed_at_ms == BEGAN_MS + 1_500 + left_ms
    playbook >> LineVouched(amount=worth, at_ms=BEGAN_MS + 1_600)
    assert playbook.reaches("running").exposed_at_ms == BEGAN_MS + 1_500 + ALLOWED_MS


def test_a_run_whose_buyer_owes_a_voucher_is_paused_and_not_stopped() -> None:
    playbook = running() >> step(1, 1_500) << some(LineMetered)
    exposed_at_ms = playbook.reaches("running").exposed_at_ms
    assert exposed_at_ms is not None
    playbook >> TimePassed(at_ms=exposed_at_ms) << PauseWanted(lease=LEASE)
    assert playbook.reaches("running").exposed_at_ms is None, "what does not compute runs nothing up"
    vouched = LineVouched(amount=playbook.reaches("running").lined_amount, at_ms=exposed_at_ms + 50)
    playbook >> vouched << ResumeWanted(lease=LEASE)
    unproved = playbook.reaches("running").unproved
    left_ms = -(-(BID.max_unpaid - unproved + 1) * 10**18 // RATE_E18)
    assert playbook.reaches("running").exposed_at_ms == exposed_at_ms + 50 + left_ms


def test_work_done_again_is_no_new_evidence_and_a_lost_sandbox_runs_nothing_up() -> None:
    playbook = running() >> step(5, 1_500) << some(LineMetered)
    before = playbook.reaches("running").exposed_at_ms
    playbook >> step(3, 1_800)
    assert playbook.reaches("running").exposed_at_ms == before
    playbook >> RunInterrupted(at_ms=BEGAN_MS + 1_900)
    assert playbook.reaches("running").exposed_at_ms is None
    playbook >> RunBegan(at_ms=BEGAN_MS + 60_000)
    assert playbook.reaches("running").exposed_at_ms is not None


def test_a_paused_run_that_begins_anew_is_paused_again_and_runs_nothing_up() -> None:
    playbook = running() >> step(1, ALLOWED_MS) << some(LineMetered) << PauseWanted(lease=LEASE)
    (
        playbook
        >> RunInterrupted(at_ms=BEGAN_MS + 2 * ALLOWED_MS)
        >> RunBegan(at_ms=BEGAN_MS + 60_000)
        << PauseWanted(lease=LEASE)
    )
    state = playbook.reaches("running")
    assert state.exposed_at_ms is None
    assert sale.deadline_ms(state) == state.paused_ms + state.grace_ms


@given(st.integers(0, 10**24), st.integers(0, 10**9))
def test_whatever_the_price_the_time_allowed_costs_at_most_one_unit_more_than_may_be_unpaid(
    price: int, max_unpaid: int
) -> None:
    dear = replace(BID, price_e18_per_device_ms=price, max_unpaid=max_unpaid)
    state = replace(START, bid=dear, phase="running", unproved_since_ms=BEGAN_MS)
    at_ms = state.exposed_at_ms
    if price == 0:
        assert at_ms is None
    else:
        assert at_ms is not None
        allowed_ms = at_ms - BEGAN_MS
        assert amount_for((allowed_ms - 1) * len(dear.devices), price) <= max_unpaid
        assert amount_for(allowed_ms * len(dear.devices), price) > max_unpaid


@pytest.mark.parametrize(
    "changes",
    [
        {"package_bytes": sale_award.LARGEST_PACKAGE_BYTES + 1},
        {"state_bytes": sale_award.LARGEST_STATE_BYTES + 1},
        {"output_bytes": sale_award.LARGEST_OUTPUT_BYTES + 1},
        {"workers": sale_award.MOST_WORKERS + 1},
    ],
)
def test_a_workload_that_would_fill_the_provider_outside_the_sandbox_is_refused(changes: dict[str, int]) -> None:
    large = workload(**changes)
    accepted = replace(award(BID), workload=digest(DOMAIN, large))
    playbook = Playbook(advance, START)
    playbook >> AwardArrived(award=accepted, channel=CHANNEL, workload=large, at_ms=NOW_MS + 3_000)
    playbook << some(
        Send, message=some(LeaseRefused, kind="too-large", reason="the workload is larger than providers take")
    )
    playbook.reaches("bid")


@pytest.mark.parametrize("name", ["memory_bytes", "shared_memory_bytes", "scratch_bytes", "output_bytes", "workers"])
@pytest.mark.parametrize("size", [0, 1 << 50, 1 << 63, (1 << 64) - 1])
def test_a_workload_that_no_sandbox_can_have_is_refused(name: str, size: int) -> None:
    """One such award ended the launcher, and with it everybody's runs."""
    size = min(size, (1 << 32) - 1) if name == "workers" else size
    odd = workload(**{name: size})
    accepted = replace(award(BID), workload=digest(DOMAIN, odd))
    playbook = Playbook(advance, START)
    playbook >> AwardArrived(award=accepted, channel=CHANNEL, workload=odd, at_ms=NOW_MS + 3_000)
    playbook << some(Send, message=some(LeaseRefused, kind="too-large"))
    playbook.reaches("bid")


@pytest.mark.parametrize("name", ["memory_bytes", "shared_memory_bytes", "scratch_bytes", "output_bytes"])
def test_what_no_sandbox_can_have_is_told_before_it_is_compared(name: str) -> None:
    assert is_possible(workload())
    for size in (0, 1 << 50):
        assert not is_possible(workload(**{name: size}))
    assert is_possible(workload(**{name: (1 << 50) - 1}))
    assert not is_possible(workload(workers=0))


def test_bidding_may_not_hold_devices_for_longer_than_a_minute() -> None:
    at_ms = TENDER.bids_close_ms - LONGEST_BIDDING_MS
    assert objection(TENDER, OWNER, owed=0, at_ms=at_ms) is None
    why = objection(TENDER, OWNER, owed=0, at_ms=at_ms - 1)
    assert why is not None
    assert why[0] == "the tender would stay open for too long"


def after(*news: Any) -> Sale:
    """A run that heard all of this, whatever came of it outside."""
    state = running().reaches("running")
    for event in news:
        state = advance(state, event).state
    return state


def worth(worked_ms: int) -> int:
    return amount_for(worked_ms * len(BID.devices), BID.price_e18_per_device_ms)


def test_an_old_step_between_two_new_ones_makes_no_time_free() -> None:
    news = [step(1, 100)]
    for number in range(1, 8):
        news += [step(number, number * 400 - 10), step(number + 1, number * 400)]
    assert after(*news).accrued == worth(2_800)


def test_an_old_step_moves_no_time_and_takes_nothing_from_what_is_unproved() -> None:
    before, later = after(step(5, 1_500)), after(step(5, 1_500), step(3, 1_800))
    assert (later.seen_ms, later.exposed_at_ms) == (before.seen_ms, before.exposed_at_ms)


def test_work_that_a_lost_sandbox_has_done_again_is_not_charged_again() -> None:
    lost = (step(5, 1_500), RunInterrupted(at_ms=BEGAN_MS + 1_600), RunBegan(at_ms=BEGAN_MS + 5_000))
    again = (step(4, 2_000), step(5, 2_400), step(6, 2_600))
    assert after(*lost, *again).accrued == worth(1_700)
    assert after(*lost, *again, step(6, 2_700), step(7, 2_900)).accrued == worth(2_000)


def test_what_no_step_proved_before_a_lost_sandbox_counts_after_it() -> None:
    state = after(RunInterrupted(at_ms=BEGAN_MS + 1_000), RunBegan(at_ms=BEGAN_MS + 60_000))
    assert state.exposed_at_ms == BEGAN_MS + 60_000 + ALLOWED_MS - 1_000


def test_pauses_for_want_of_money_give_nothing_away_to_a_run_that_proves_nothing() -> None:
    state, at_ms = after(FundsShared(ceiling=2_500, at_ms=BEGAN_MS)), BEGAN_MS
    for more in range(2, 10):
        due_ms = sale.deadline_ms(state)
        if due_ms is None:
            break
        at_ms = due_ms
        state = advance(state, TimePassed(at_ms=at_ms)).state
        state = advance(state, FundsShared(ceiling=2_500 * more, at_ms=at_ms)).state
    assert state.stopping
    assert state.unproved_at(at_ms) <= BID.max_unpaid + 1
    assert amount_for((at_ms - BEGAN_MS) * len(BID.devices), BID.price_e18_per_device_ms) <= BID.max_unpaid + 1
