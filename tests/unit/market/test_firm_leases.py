"""Firm leases: what is withheld, until when, and what becomes of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.playbook import Playbook, ignored, some
from kit.trading import (
    BUYER,
    CHANNEL,
    CHANNEL_ID,
    LEASE,
    NOW_MS,
    PRICE,
    PROVIDER,
    award,
    bid,
    evidence,
    line,
    statement,
    tender,
    terms,
    workload,
)

from hansa.market import paying_channel
from hansa.market.earning_channel import LineMetered
from hansa.market.effects import Send
from hansa.market.firm_leases import (
    JOBS_OWN,
    RELEASE_MS,
    is_believed,
    is_due,
    is_due_for_success,
    is_forfeited,
    rests_on_word,
)
from hansa.market.paying_channel import LeaseOpened, PayingChannel, releases
from hansa.market.receipts import CLOCK_SKEW_MS, fault_in
from hansa.market.sale import DELIVERY_MS, advance, deadline_ms
from hansa.market.sale_events import (
    AwardArrived,
    DeliveryTaken,
    LineVouched,
    PenaltyLifted,
    ProgressMade,
    ReclaimOrdered,
    ResumeWanted,
    RunBegan,
    RunOver,
    StartOrdered,
    StopOrdered,
    TimePassed,
)
from hansa.market.sale_funding import UNFUNDED
from hansa.market.sale_state import Sale
from hansa.market.track_record import Record
from hansa.proto.messages import PenaltyReleased
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest

PENALTY = 2_000
TENDER = tender(lease="firm")
BID = bid(TENDER, lease="firm", penalty=PENALTY).document
START = Sale(tender=TENDER, bid=BID, bid_digest=digest(DOMAIN, BID), grace_ms=10_000)
BEGUN = (
    AwardArrived(award=award(BID), channel=CHANNEL, workload=workload(), at_ms=NOW_MS),
    StartOrdered(round=0, checkpoint=None, at_ms=NOW_MS),
    RunBegan(at_ms=NOW_MS),
)


def progress(running_ms, steps):
    return ProgressMade(running_ms=running_ms, steps=steps, rounds=0, checkpoint=bytes(32), at_ms=NOW_MS + running_ms)


def over(outcome="succeeded", kind="", at_ms=NOW_MS + 20_000):
    return RunOver(outcome=outcome, kind=kind, reason="", outputs=0, at_ms=at_ms)


def play(*events, state=START):
    """The state after these events, and every total that went to the channel."""
    totals = []
    for event in events:
        step = advance(state, event)
        state = step.state
        totals += [effect.line.amount for effect in step.effects if isinstance(effect, LineMetered)]
    return state, totals


def vouched(amount, at_ms=NOW_MS + 21_000):
    return LineVouched(amount=amount, at_ms=at_ms)


def test_the_penalty_is_withheld_from_every_line_of_a_lease_that_lives():
    state, totals = play(*BEGUN, progress(1_500, 1), progress(2_700, 2), progress(4_700, 3))
    assert totals == [0, 700, 2_700]
    assert (state.accrued, state.withheld, state.chargeable) == (4_700, PENALTY, 2_700)


def test_what_was_withheld_is_charged_once_the_buyer_says_that_it_ended_well():
    state, totals = play(*BEGUN, progress(5_000, 1), over(), vouched(3_000), DeliveryTaken(at_ms=NOW_MS + 22_000))
    assert (state.phase, totals[-1]) == ("settling", 3_000)
    state, totals = play(PenaltyLifted(at_ms=NOW_MS + 23_000), state=state)
    assert (state.phase, totals) == ("settling", [5_000])
    state, totals = play(vouched(5_000), state=state)
    assert (state.phase, totals) == ("settled", [])
    assert advance(state, PenaltyLifted(at_ms=NOW_MS + 24_000)).ignored


@pytest.mark.parametrize("early", [0, 1, 2])
def test_the_word_may_come_before_the_run_is_over_or_its_delivery_taken(early):
    course = [progress(5_000, 1), over("stopped", "stopped"), DeliveryTaken(at_ms=NOW_MS + 22_000)]
    course.insert(early, PenaltyLifted(at_ms=NOW_MS + 4_000))
    state, totals = play(*BEGUN, StopOrdered(reason="enough", at_ms=NOW_MS + 4_000), *course, vouched(5_000))
    assert (state.phase, totals[-1]) == ("stopped", 5_000)


def test_without_that_word_its_provider_waits_for_a_while_and_ends_without_it():
    state, _ = play(*BEGUN, progress(5_000, 1), over(), vouched(3_000), DeliveryTaken(at_ms=NOW_MS + 22_000))
    last_ms = NOW_MS + 20_000 + DELIVERY_MS + START.grace_ms + RELEASE_MS
    assert deadline_ms(state) == last_ms
    state, totals = play(TimePassed(at_ms=last_ms), state=state)
    assert (state.phase, totals, state.written_off) == ("settled", [], 0)


@pytest.mark.parametrize(
    "events",
    [
        (ReclaimOrdered(by_ms=NOW_MS + 60_000, reason="mine", at_ms=NOW_MS + 6_000), over("failed", "reclaimed")),
        (ReclaimOrdered(by_ms=NOW_MS + 60_000, reason="mine", at_ms=NOW_MS + 6_000), over("failed", "user-exception")),
        (over("failed", "sandbox-lost"),),
    ],
)
def test_a_provider_that_knows_that_it_lost_the_penalty_waits_for_nothing(events):
    state, totals = play(
        *BEGUN, progress(5_000, 1), *events, vouched(3_000), StopOrdered(reason="lost", at_ms=NOW_MS + 22_000)
    )
    assert (state.phase, totals) == ("stopped", [3_000])


def test_a_run_that_succeeds_after_its_devices_were_taken_back_has_ended_well():
    back = ReclaimOrdered(by_ms=NOW_MS + 60_000, reason="mine", at_ms=NOW_MS + 6_000)
    state, _ = play(*BEGUN, progress(5_000, 1), back, over(), DeliveryTaken(at_ms=NOW_MS + 22_000))
    _, totals = play(vouched(3_000), PenaltyLifted(at_ms=NOW_MS + 23_000), state=state)
    assert totals == [5_000]


def test_a_lease_that_earned_nothing_waits_for_nothing():
    state, _ = play(*BEGUN, over("failed", "user-exception"), DeliveryTaken(at_ms=NOW_MS + 22_000))
    assert state.phase == "stopped"


def test_a_spot_lease_withholds_nothing_and_knows_no_such_word():
    spot = replace(START, bid=bid(TENDER).document)
    playbook = Playbook(advance, replace(spot, phase="running", terms=terms()))
    playbook >> PenaltyLifted(at_ms=NOW_MS) << ignored("a penalty that is not withheld")


def test_what_may_be_unpaid_is_counted_beyond_the_penalty():
    state, _ = play(*BEGUN, progress(PENALTY + BID.max_unpaid, 1))
    assert (state.unpaid, state.paused_ms) == (BID.max_unpaid, 0)
    state, _ = play(progress(PENALTY + BID.max_unpaid + 1, 2), state=state)
    assert state.paused_ms
    step = advance(state, vouched(state.lined_amount))
    assert some(ResumeWanted) in step.effects


EVENTS = st.one_of(
    st.tuples(st.just("work"), st.integers(1, 4_000)),
    st.tuples(st.just("word"), st.just(0)),
    st.tuples(st.just("voucher"), st.just(0)),
    st.tuples(st.just("back"), st.just(0)),
    st.tuples(st.just("over"), st.sampled_from((0, 1, 2))),
    st.tuples(st.just("taken"), st.just(0)),
    st.tuples(st.just("time"), st.integers(1, 2 * RELEASE_MS)),
)


@given(st.integers(0, 700_000), st.lists(EVENTS, max_size=25))
def test_no_line_charges_more_than_was_worked_less_the_penalty_before_the_word_nor_ever_more_than_was_worked(
    penalty, course
):
    made = bid(TENDER, lease="firm", penalty=min(penalty, BID.max_total)).document
    state = replace(START, bid=made, bid_digest=digest(DOMAIN, made))
    begun = AwardArrived(award=award(made), channel=CHANNEL, workload=workload(), at_ms=NOW_MS)
    state, _ = play(begun, *BEGUN[1:], state=state)
    at_ms, worked, steps, said, last = NOW_MS, 0, 0, False, 0
    for kind, value in course:
        at_ms += value if kind in ("work", "time") else 1
        running = state.phase == "running"
        match kind:
            case "work":
                worked, steps = worked + value, steps + 1
                event = ProgressMade(running_ms=worked, steps=steps, rounds=0, checkpoint=bytes(32), at_ms=at_ms)
            case "word":
                said, event = said or state.phase in ("running", "delivering", "settling"), PenaltyLifted(at_ms=at_ms)
            case "voucher":
                event = vouched(state.lined_amount, at_ms)
            case "back":
                event = ReclaimOrdered(by_ms=at_ms + 1_000, reason="mine", at_ms=at_ms)
            case "over":
                outcome, end = (("succeeded", ""), ("failed", "sandbox-lost"), ("stopped", "stopped"))[value]
                event = over(outcome, end, at_ms)
            case "taken":
                event = DeliveryTaken(at_ms=at_ms)
            case "time":
                event = TimePassed(at_ms=at_ms)
        step = advance(state, event)
        state = step.state
        for effect in step.effects:
            if isinstance(effect, LineMetered):
                whole = min(worked, made.max_total)
                assert last <= effect.line.amount <= (whole if said else max(0, whole - made.penalty))
                last = effect.line.amount
        assert running or kind != "work" or not step.effects
    assert state.vouched <= last


# What the buyer lets through.


def fault(amount, device_ms=5_000, **changes):
    made = statement((line(device_ms, amount=amount), evidence(1)))
    agreed = terms(penalty=PENALTY, **changes)
    return fault_in(made, last=None, terms={LEASE: agreed}, now_ms=NOW_MS + 10_000)


def test_a_receipt_that_charges_the_penalty_of_a_lease_that_has_not_ended_well_is_refused():
    assert fault(3_000) is None
    for amount in (3_001, 4_999, 5_000):
        assert fault(amount) == "a line charges what a firm lease pays only once it has ended well"
    assert "agreed price" in fault(5_001)
    assert "agreed price" in fault(2_999)
    assert fault(0, 1_999) is None
    assert fault(1, 1_999) is not None


def test_once_it_has_all_of_it_or_what_was_written_before_passes_and_nothing_else():
    assert fault(5_000, released=True) is None
    assert fault(3_000, released=True) is None
    for amount in (2_999, 3_001, 4_999, 5_001):
        assert "agreed price" in fault(amount, released=True) or "ended well" in fault(amount, released=True)


@given(
    penalty=st.integers(0, 10_000),
    device_ms=st.integers(0, 10_000),
    amount=st.integers(0, 12_000),
    released=st.booleans(),
)
def test_no_line_passes_that_charges_more_than_worked_less_the_penalty_before_a_good_end(
    penalty, device_ms, amount, released
):
    made = statement((line(device_ms, amount=amount), evidence(1)))
    agreed = terms(penalty=penalty, released=released)
    passes = fault_in(made, last=None, terms={LEASE: agreed}, now_ms=NOW_MS + 20_000) is None
    assert passes == (amount == max(0, device_ms - penalty) or (released and amount == device_ms))


def test_the_word_is_said_once_when_the_lease_ends_well_and_again_after_a_restart():
    agreed = terms(penalty=PENALTY)
    channel = PayingChannel(phase="open", config=CHANNEL, channel_id=CHANNEL_ID, currency="USD", terms={LEASE: agreed})
    word = some(Send, to=PROVIDER, message=PenaltyReleased(lease=LEASE))
    assert releases(channel) == ()
    ended = LeaseOpened(terms=replace(agreed, released=True))
    step = paying_channel.advance(channel, ended)
    assert step.effects == (word,)
    assert paying_channel.advance(step.state, ended).effects == ()
    assert releases(step.state) == (word,)
    assert releases(replace(step.state, phase="closed")) == ()


# Who ended it.


@pytest.mark.parametrize("kind", sorted(JOBS_OWN))
def test_what_the_job_brought_about_itself_is_no_fault_of_its_providers(kind):
    assert not is_forfeited(outcome="failed", kind=kind, taken_back=False)
    assert is_due(kind, taken_back=False, is_silent=False, ends_ms=NOW_MS, at_ms=0, borne_out=True)
    assert is_forfeited(outcome="failed", kind=kind, taken_back=True)
    assert not is_due(kind, taken_back=True, is_silent=False, ends_ms=NOW_MS, at_ms=0, borne_out=True)


def test_what_a_providers_own_software_says_of_the_sandbox_counts_only_where_another_met_with_it_too():
    kinds = {kind for kind in JOBS_OWN if is_due(kind, taken_back=False, is_silent=False, ends_ms=NOW_MS, at_ms=0)}
    assert {"protocol"} == JOBS_OWN - kinds


@pytest.mark.parametrize("kind", sorted(JOBS_OWN))
def test_what_the_buyer_sees_itself_is_no_mere_word(kind):
    assert rests_on_word(kind, borne_out=False) == (kind not in ("wall-limit", UNFUNDED))
    assert not rests_on_word(kind, borne_out=True)


@pytest.mark.parametrize(
    ("good", "bad", "told_ppm", "believed"),
    [
        (0, 0, 0, True),
        (0, 1, 0, False),
        (0, 1, 1_000_000, False),
        (2, 1, 0, False),
        (5, 1, 0, True),
        (3, 2, 0, False),
        (40, 5, 0, True),
    ],
)
def test_a_mere_word_counts_of_those_whose_leases_ended_no_worse_here_than_a_strangers(good, bad, told_ppm, believed):
    assert is_believed(Record(good=good, bad=bad, told_ppm=told_ppm)) == believed


@pytest.mark.parametrize(
    ("taken_back", "results", "borne_out", "due"),
    [
        (False, 0, False, True),
        (True, 0, False, False),
        (True, 1, False, True),
        (True, 0, True, True),
    ],
)
def test_success_after_a_notice_has_to_have_brought_something(taken_back, results, borne_out, due):
    assert is_due_for_success(taken_back=taken_back, results=results, borne_out=borne_out) == due


def test_the_word_may_be_said_on_a_channel_that_is_closing_and_no_lease_comes_on_it():
    agreed = terms(penalty=PENALTY)
    closing = PayingChannel(
        phase="closing", config=CHANNEL, channel_id=CHANNEL_ID, currency="USD", terms={LEASE: agreed}
    )
    step = paying_channel.advance(closing, LeaseOpened(terms=replace(agreed, released=True)))
    assert step.effects == (some(Send, to=PROVIDER, message=PenaltyReleased(lease=LEASE)),)
    assert paying_channel.advance(closing, LeaseOpened(terms=replace(agreed, lease=bytes(32)))).ignored


@pytest.mark.parametrize("kind", ["sandbox-lost", "ray-lost", "reclaimed", "reclaimed-early", "silent", "refused", "x"])
def test_what_its_provider_lost_is_not_paid_for(kind):
    assert is_forfeited(outcome="failed", kind=kind, taken_back=False)
    assert not is_due(kind, taken_back=False, is_silent=False, ends_ms=NOW_MS, at_ms=2 * NOW_MS)


@pytest.mark.parametrize(("at_ms", "due"), [(NOW_MS - CLOCK_SKEW_MS - 1, False), (NOW_MS - CLOCK_SKEW_MS, True)])
def test_a_lease_that_came_to_its_end_has_ended_well_and_one_that_its_provider_stopped_has_not(at_ms, due):
    for kind in ("stopped", "lost"):
        assert is_due(kind, taken_back=False, is_silent=False, ends_ms=NOW_MS, at_ms=at_ms) == due
    assert not is_due("lost", taken_back=False, is_silent=True, ends_ms=NOW_MS, at_ms=at_ms)


def test_the_price_is_of_the_smallest_unit_here():
    assert (PRICE, BID.price_e18_per_device_ms) == (10**18, 10**18)
    assert BID.signer == PROVIDER
    assert TENDER.signer == BUYER
