"""The provider's machine for one bid: what it agrees to, what it works for, and when it stops."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.playbook import Playbook, ignored, some
from kit.trading import BUYER, CHANNEL, DEVICE, NOW_MS, OTHER, award, bid, needs, tender, workload

from hansa.market import sale, sale_state
from hansa.market.earning_channel import LineMetered
from hansa.market.effects import Send
from hansa.market.ledger import Entry, Leg, Post
from hansa.market.receipts import CLOCK_SKEW_MS
from hansa.market.sale import advance
from hansa.market.sale_events import (
    AwardArrived,
    BidLost,
    DeliveryTaken,
    DevicesFreed,
    LeaseCalledOff,
    LeaseMade,
    LineRefused,
    LineVouched,
    PauseWanted,
    ProgressMade,
    ReclaimOrdered,
    ResumeWanted,
    RunInterrupted,
    RunOver,
    RunUnwanted,
    RunWanted,
    StartOrdered,
    StopOrdered,
    TimePassed,
    UseSampled,
)
from hansa.market.sale_state import Sale
from hansa.proto.currency import currency_id
from hansa.proto.documents import channel_id
from hansa.proto.messages import BidSent, LeaseConfirmed, LeaseRefused, RunEnded
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest

TENDER = tender()
BID = bid(TENDER).document
START = Sale(tender=TENDER, bid=BID, bid_digest=digest(DOMAIN, BID), grace_ms=10_000)
AWARD = award(BID)
LEASE = digest(DOMAIN, AWARD)
FREED = DevicesFreed(bid=START.bid_digest)


def awarded(**changes):
    made = AwardArrived(award=AWARD, channel=CHANNEL, workload=workload(), at_ms=NOW_MS + 3_000)
    return replace(made, **changes)


def progress(running_ms, steps, *, at_ms=None):
    at_ms = NOW_MS + 10_000 + running_ms if at_ms is None else at_ms
    return ProgressMade(running_ms=running_ms, steps=steps, rounds=0, checkpoint=bytes(32), at_ms=at_ms)


def passed(after_ms):
    return TimePassed(at_ms=NOW_MS + after_ms)


def over(outcome="succeeded", *, at_ms=NOW_MS + 60_000):
    return RunOver(outcome=outcome, kind="", reason="", outputs=1, at_ms=at_ms)


def vouched(amount):
    return LineVouched(amount=amount, at_ms=NOW_MS + 20_000)


CONFIRMED = some(Send, to=BUYER, message=LeaseConfirmed(lease=LEASE))
ENDED = some(Send, to=BUYER, message=some(RunEnded))
METERED = some(LineMetered)


def leased():
    return Playbook(advance, START) >> awarded() << some(LeaseMade) << CONFIRMED


def running():
    playbook = leased() >> StartOrdered(round=0, checkpoint=None, at_ms=NOW_MS + 10_000)
    return playbook << RunWanted(lease=LEASE, round=0, checkpoint=None)


def test_a_sale_from_the_bid_to_the_last_voucher():
    playbook = Playbook(advance, START, begin=sale.open_sale(START)) << some(Send, to=BUYER, message=some(BidSent))
    playbook >> awarded() << some(LeaseMade) << CONFIRMED
    playbook >> StartOrdered(round=3, checkpoint=None, at_ms=NOW_MS + 10_000)
    playbook << RunWanted(lease=LEASE, round=3, checkpoint=None)
    playbook >> progress(500, 1) >> progress(1_000, 2) << METERED >> vouched(1_000)
    playbook >> progress(1_500, 3) >> over() << METERED << FREED << ENDED
    playbook >> DeliveryTaken(at_ms=NOW_MS + 61_000) >> vouched(1_500)
    playbook.reaches("settled", vouched=1_500)


# What it agrees to.

OBJECTIONS = {
    "the award is not by the buyer who tendered": {"award": replace(AWARD, signer=OTHER)},
    "the bid or the award has expired": {"at_ms": AWARD.confirm_by_ms + CLOCK_SKEW_MS + 1},
    "the devices would wait too long for their start": {"award": replace(AWARD, start_by_ms=NOW_MS + 10**9)},
    "the channel is closed": {"channel_closed": True},
    "the award names a shard that was not tendered": {"award": replace(AWARD, shard=1)},
    "the workload is not the one that the award names": {"workload": workload(entry="other.py:main")},
    "the channel is not the one that the award names": {"channel": replace(CHANNEL, salt=b"x" * 32)},
    "the lease is longer than was tendered": {"award": replace(AWARD, ends_ms=AWARD.ends_ms + 1)},
}


@pytest.mark.parametrize("reason", OBJECTIONS)
def test_an_award_that_is_not_as_agreed_is_refused_with_the_reason(reason):
    start = replace(START, bid=replace(BID, expires_ms=NOW_MS + 10**6)) if "expired" in reason else START
    playbook = Playbook(advance, start) >> awarded(**OBJECTIONS[reason])
    kind = {"expired": "expired", "closed": "channel-closed"}.get(reason.rsplit(" ", 1)[-1], "mismatch")
    playbook << some(Send, to=BUYER, message=some(LeaseRefused, kind=kind, reason=reason))
    playbook.reaches("bid")


def test_a_bid_that_lapsed_is_not_leased_even_if_the_award_came_before_its_own_limit():
    start = replace(START, bid=replace(BID, expires_ms=NOW_MS + 1_000))
    playbook = Playbook(advance, start) >> awarded()
    playbook << some(Send, message=some(LeaseRefused, reason="the bid or the award has expired"))
    playbook.reaches("bid")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"job": b"x" * 32}, "the workload is not the one that was tendered"),
        ({"wall_ms": 600_001}, "the workload is not the one that was tendered"),
        ({"memory_bytes": (1 << 30) + 1}, "the workload asks for more than was tendered"),
        ({"scratch_bytes": (1 << 20) + 1}, "the workload asks for more than was tendered"),
    ],
)
def test_a_workload_that_was_not_tendered_is_refused(changes, reason):
    other = workload(**changes)
    consistent = replace(AWARD, workload=digest(DOMAIN, other))
    playbook = Playbook(advance, START) >> awarded(award=consistent, workload=other)
    playbook << some(Send, message=some(LeaseRefused, reason=reason))
    playbook.reaches("bid")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"payer": OTHER}, "the channel is paid by another account than the buyer's, and only one on a chain may be"),
        ({"payer_signer": OTHER}, "the channel is not between this buyer and this provider"),
        ({"payee": OTHER}, "the channel is not between this buyer and this provider"),
        ({"payee_signer": OTHER}, "the channel is not between this buyer and this provider"),
        ({"splits_hash": b"x" * 32}, "the channel pays in another way than the bid says"),
        ({"token": currency_id("EUR")}, "the channel pays in another way than the bid says"),
    ],
)
def test_a_channel_that_would_pay_somebody_else_is_refused(changes, reason):
    other = replace(CHANNEL, **changes)
    consistent = replace(AWARD, channel_id=channel_id(DOMAIN, other))
    playbook = Playbook(advance, START) >> awarded(award=consistent, channel=other)
    playbook << some(Send, message=some(LeaseRefused, reason=reason))
    playbook.reaches("bid")


def test_the_same_award_again_is_confirmed_again_and_another_one_refused():
    twice = awarded(award=replace(AWARD, nonce=b"2" * 32))
    playbook = leased() >> awarded() << CONFIRMED >> twice
    playbook << some(Send, message=some(LeaseRefused, kind="not-held", reason="the bid is leased"))
    playbook.reaches("leased", lease=LEASE)
    running_too = running() >> awarded() << ignored("an award that is known")
    running_too.reaches("running")


# Devices are freed the moment they are not needed.


@pytest.mark.parametrize(
    ("begin", "event", "phase"),
    [
        (lambda: Playbook(advance, START), BidLost(at_ms=NOW_MS), "declined"),
        (lambda: Playbook(advance, START), passed(12_000), "lapsed"),
        (leased, passed(34_000), "lapsed"),
        (leased, LeaseCalledOff(reason="no gang", at_ms=NOW_MS), "lapsed"),
        (leased, StopOrdered(reason="a stop may overtake the start", at_ms=NOW_MS), "lapsed"),
    ],
)
def test_devices_are_free_at_once_when_there_is_no_lease_after_all(begin, event, phase):
    (begin() >> event << FREED).reaches(phase)


def test_a_start_that_comes_too_late_starts_nothing():
    playbook = leased() >> passed(34_000) << FREED
    playbook >> StartOrdered(round=0, checkpoint=None, at_ms=NOW_MS) << ignored("a start that comes too late")


def test_a_lost_bid_does_not_end_a_lease():
    (leased() >> BidLost(at_ms=NOW_MS) << ignored("BidLost while leased")).reaches("leased")


# What is charged.


def test_time_is_charged_when_it_led_to_a_new_step():
    playbook = running() >> progress(500, 1) >> progress(900, 1)
    assert playbook.reaches("running").device_ms == 500
    # The run was started again from an older checkpoint: what is done a second time is not paid a second time.
    again = Playbook(advance, playbook.reaches("running")) >> RunInterrupted(at_ms=NOW_MS + 10_900)
    again >> progress(1_400, 1) << METERED
    assert again.reaches("running").device_ms == 500
    playbook = Playbook(advance, again.reaches("running")) >> progress(1_500, 2)
    assert playbook.reaches("running").device_ms == 600


def test_a_line_ends_when_its_work_did_however_late_it_is_written():
    (metered,) = advance((running() >> progress(700, 1)).reaches("running"), passed(99_000)).effects
    assert metered.line.end_ms == NOW_MS + 10_700
    assert metered.line.device == DEVICE.id
    assert metered.line.amount == 700


def test_use_is_told_as_far_as_it_is_metered_and_never_goes_back():
    playbook = running() >> UseSampled(busy_ms=900) >> UseSampled(busy_ms=400)
    (metered,) = advance((playbook >> progress(700, 1)).reaches("running", busy_ms=900), passed(99_000)).effects
    assert (metered.evidence.busy_ms, metered.evidence.tier) == (700, BID.tier)
    (later,) = advance(playbook.reaches("running"), progress(1_500, 2)).effects
    assert later.evidence.busy_ms == 900


def test_nothing_is_charged_for_a_run_that_made_no_step():
    playbook = running() >> over("failed") << FREED << ENDED >> DeliveryTaken(at_ms=NOW_MS + 61_000)
    playbook.reaches("stopped", lined_amount=0)


def moved(amount):
    """The entry that writes so much off, or back."""
    legs = (
        Leg(account=f"unpaid:{BUYER.hex()}", amount=amount),
        Leg(account=f"written-off:{TENDER.job.hex()}", amount=-amount),
    )
    return some(Post, entry=some(Entry, legs=legs))


WRITTEN_OFF = moved(1_000)

# Exposure.


def test_more_unpaid_than_the_owner_allows_pauses_and_a_voucher_resumes():
    playbook = running() >> progress(1_000, 1) << METERED >> progress(1_900, 2) >> progress(3_001, 3) << METERED
    playbook << PauseWanted(lease=LEASE) >> vouched(1_000) << ResumeWanted(lease=LEASE)
    playbook.reaches("running", paused_ms=0)


def test_a_voucher_that_leaves_too_much_unpaid_does_not_resume():
    playbook = running() >> progress(1_000, 1) << METERED >> progress(4_500, 2) << METERED << PauseWanted(lease=LEASE)
    playbook >> vouched(1_000) >> vouched(4_500) << ResumeWanted(lease=LEASE)
    playbook.reaches("running")


def test_a_voucher_that_stays_away_pauses_and_then_ends_the_run():
    playbook = running() >> progress(1_000, 1) << METERED
    assert sale.deadline_ms(playbook.reaches("running")) == NOW_MS + 11_000 + BID.voucher_timeout_ms
    playbook >> passed(16_000) << PauseWanted(lease=LEASE)
    assert sale.deadline_ms(playbook.reaches("running")) == NOW_MS + 26_000
    playbook >> passed(26_000) << RunUnwanted(lease=LEASE, reason="no voucher within the grace period")
    playbook >> over("stopped") << FREED << ENDED >> DeliveryTaken(at_ms=NOW_MS + 61_000)
    playbook >> passed(60_000 + sale.DELIVERY_MS + 10_000) << WRITTEN_OFF
    playbook.reaches("unpaid", vouched=0, lined_amount=1_000, written_off=1_000)


def test_a_buyer_that_refuses_to_pay_ends_the_run():
    playbook = running() >> progress(1_000, 1) << METERED >> LineRefused(reason="no", at_ms=NOW_MS)
    playbook << RunUnwanted(lease=LEASE, reason="the buyer refuses to pay") >> over("stopped") << FREED << ENDED
    playbook >> StopOrdered(reason="over", at_ms=NOW_MS + 61_000) << WRITTEN_OFF
    playbook.reaches("unpaid")


def test_a_buyer_that_comes_back_may_still_pay():
    playbook = running() >> progress(1_000, 1) << METERED >> over() << FREED << ENDED
    playbook >> passed(60_000 + sale.DELIVERY_MS) >> passed(70_000 + sale.DELIVERY_MS) << WRITTEN_OFF
    playbook.reaches("unpaid")
    playbook >> vouched(400) << moved(-400)
    playbook.reaches("unpaid", written_off=600)
    playbook >> vouched(1_000) << moved(-600)
    playbook.reaches("settled", written_off=0)


def test_a_voucher_for_more_than_was_metered_is_our_own_fault():
    with pytest.raises(AssertionError, match="vouched for more than was metered"):
        advance((running() >> progress(1_000, 1) << METERED).reaches("running"), vouched(1_001))


def test_a_known_voucher_changes_nothing():
    playbook = running() >> progress(1_000, 1) << METERED >> vouched(1_000) >> vouched(1_000)
    (playbook << ignored("a voucher that is known")).reaches("running", vouched=1_000)


# The end.


def test_the_lease_ends_when_it_said_it_would():
    playbook = running() >> passed(634_000) << RunUnwanted(lease=LEASE, reason="the lease is over")
    assert sale.deadline_ms(playbook.reaches("running", stopping=True)) is None


@pytest.mark.parametrize(
    "event", [StopOrdered(reason="é" * 256, at_ms=NOW_MS), LeaseCalledOff(reason="x", at_ms=NOW_MS)]
)
def test_the_buyer_may_stop_the_run(event):
    playbook = running() >> event << some(RunUnwanted, lease=LEASE)
    playbook.reaches("running", stopping=True)


def test_devices_are_free_before_the_buyer_has_fetched_anything():
    playbook = running() >> over() << FREED << ENDED
    assert sale.deadline_ms(playbook.reaches("delivering")) == NOW_MS + 60_000 + sale.DELIVERY_MS


def test_a_restart_says_again_what_the_buyer_may_not_have():
    assert isinstance(sale.outstanding(START)[0].message, BidSent)
    assert sale.outstanding(leased().reaches("leased")) == (CONFIRMED,)
    assert sale.outstanding(running().reaches("running")) == ()
    assert sale.outstanding((running() >> over() << FREED << ENDED).reaches("delivering")) == (ENDED,)


def test_a_reason_of_any_length_and_script_fits_into_the_message():
    state = replace((running() >> over() << FREED << ENDED).reaches("delivering"), reason="€" * 8_192)
    assert len(sale.outstanding(state)[0].message.reason.encode()) <= 8_192


@given(st.data())
def test_the_usual_course_with_strays_dropped_in_anywhere(data):
    """A run with steps and vouchers, between them anything at any time: the totals only rise, within the limits."""
    times = st.integers(0, 700_000)
    stray = st.one_of(
        st.just(awarded()),
        st.just(awarded(award=replace(AWARD, nonce=b"2" * 32))),
        st.just(BidLost(at_ms=NOW_MS)),
        st.builds(passed, times),
        st.just(LeaseCalledOff(reason="no", at_ms=NOW_MS)),
        st.just(StopOrdered(reason="no", at_ms=NOW_MS)),
        st.just(StartOrdered(round=0, checkpoint=None, at_ms=NOW_MS + 10_000)),
        st.just(LineRefused(reason="no", at_ms=NOW_MS)),
        st.just(DeliveryTaken(at_ms=NOW_MS + 61_000)),
        st.builds(over, st.sampled_from(["succeeded", "failed", "stopped"])),
        st.builds(lambda by_ms: ReclaimOrdered(by_ms=NOW_MS + by_ms, reason="mine", at_ms=NOW_MS), times),
    )
    state, worked, steps, freed = START, 0, 0, 0
    for _ in range(data.draw(st.integers(1, 12))):
        worked, steps = worked + data.draw(st.integers(1, 2_500)), steps + 1
        usual = [awarded(), StartOrdered(round=0, checkpoint=None, at_ms=NOW_MS + 10_000), progress(worked, steps)]
        if state.lined_amount > state.vouched and data.draw(st.booleans()):
            usual.append(vouched(state.lined_amount))
        for event in (*usual, *data.draw(st.lists(stray, max_size=2))):
            before = state
            step = advance(state, event)
            state = step.state
            freed += FREED in step.effects
            assert state.vouched >= before.vouched
            assert state.lined_amount >= before.lined_amount
            assert state.vouched <= state.lined_amount <= BID.max_total
            assert state.device_ms <= worked * len(BID.devices)
            assert state.phase not in sale_state.ENDED or state.phase == before.phase or freed == 1
            if (due_ms := sale.deadline_ms(state)) is not None:
                assert advance(state, TimePassed(at_ms=due_ms)).state != state, "a deadline came and nothing moved"
    assert freed <= 1


def test_the_requirements_of_the_tender_bound_the_lease():
    short = replace(START, tender=tender(requirements=needs(wall_ms=1_000)))
    playbook = Playbook(advance, short) >> awarded(
        workload=workload(wall_ms=1_000), award=replace(AWARD, workload=digest(DOMAIN, workload(wall_ms=1_000)))
    )
    playbook << some(Send, message=some(LeaseRefused, reason="the lease is longer than was tendered"))
