"""The buyer's machine for one tender: who is awarded what, and who is told."""

from dataclasses import replace
from typing import get_args

import pytest
from kit.playbook import Playbook, ignored, some
from kit.trading import (
    BUYER,
    CHANNEL,
    NOW_MS,
    OTHER,
    OTHER_KEY,
    PRICE,
    PROVIDER,
    PROVIDER_KEY,
    THIRD,
    THIRD_KEY,
    award,
    bid,
    decline,
    needs,
    tender,
    workload,
)

from hansa.market import purchase
from hansa.market.effects import MOST_CHANNELS, Send, channel_salt
from hansa.market.purchase import advance, open_purchase
from hansa.market.purchase_awards import CONFIRM_MS, placement_for
from hansa.market.purchase_events import (
    BidArrived,
    BidsShown,
    ConfirmationArrived,
    DeclineArrived,
    Gathered,
    LeaseEnded,
    RefusalOfLeaseArrived,
    TimePassed,
    Unfilled,
    Withdrawn,
)
from hansa.market.purchase_state import Purchase
from hansa.market.refusals import is_own_fault
from hansa.market.track_record import Record
from hansa.proto.documents import channel_id
from hansa.proto.market_documents import Clause, Fact
from hansa.proto.messages import AwardSent, BidReleased, LeaseCancelled, RefusalKind, TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest

ONE = tender()
TWO = tender(shards=(0, 1))


def start(of=ONE, **changes):
    made = Purchase(
        tender=of,
        tender_digest=digest(DOMAIN, of),
        workload=workload(),
        funds=10_000_000,
        invited=(PROVIDER, OTHER, THIRD),
    )
    return replace(made, **changes)


def bid_of(of, key, price=PRICE, **changes):
    changes.setdefault("devices", (key.address + bytes(12),))
    signed = bid(of, key=key, price_e18_per_device_ms=price, **changes)
    return BidArrived(bid=signed, at_ms=NOW_MS + 500)


def sent(to, kind, **fields):
    return some(Send, to=to, message=some(kind, **fields))


def passed(after_ms):
    return TimePassed(at_ms=NOW_MS + after_ms)


def confirmed(placement):
    return ConfirmationArrived(lease=placement.lease, at_ms=NOW_MS + 3_000)


DEARER = bid_of(ONE, PROVIDER_KEY, PRICE * 3 // 2, max_total=900_001)
FAIR = bid_of(ONE, OTHER_KEY, PRICE, max_total=600_001)
CHEAP, DEAR = bid_of(ONE, PROVIDER_KEY, PRICE), bid_of(ONE, OTHER_KEY, 2 * PRICE)
CLOSE = 2_000


def awarding(state=None):
    """Two bids, the cheap one awarded."""
    playbook = Playbook(advance, state or start()) >> CHEAP >> DEAR >> passed(CLOSE)
    return playbook << sent(PROVIDER, AwardSent)


def test_everybody_invited_hears_the_tender():
    step = open_purchase(start(), NOW_MS)
    assert step.effects == tuple(sent(to, TenderSent) for to in (PROVIDER, OTHER, THIRD))


def test_without_anybody_to_invite_it_is_unfilled_at_once():
    step = open_purchase(start(invited=()), NOW_MS)
    assert (step.state.phase, step.effects) == ("unfilled", (some(Unfilled),))


def test_bidding_closes_when_all_have_answered_and_the_losers_are_free_at_once():
    playbook = Playbook(advance, start()) >> CHEAP >> DEAR
    playbook >> DeclineArrived(decline=decline(ONE, key=THIRD_KEY), at_ms=NOW_MS) << sent(PROVIDER, AwardSent)
    (placed,) = playbook.reaches("awarding").placements
    playbook >> confirmed(placed) << sent(OTHER, BidReleased) << some(Gathered)
    playbook.reaches("running")


def test_a_provider_with_room_for_several_shards_is_heard_out():
    first, second = (bid_of(TWO, PROVIDER_KEY, nonce=bytes([n]) * 32, devices=(bytes([n]) * 32,)) for n in (1, 2))
    both = Playbook(advance, start(TWO, invited=(PROVIDER,))) >> first
    both.reaches("tendering")
    (both >> second << sent(PROVIDER, AwardSent) << sent(PROVIDER, AwardSent)).reaches("awarding")
    no_more = DeclineArrived(decline=decline(TWO), at_ms=NOW_MS)
    less = Playbook(advance, start(TWO, invited=(PROVIDER,))) >> first >> no_more
    (less << sent(PROVIDER, BidReleased) << some(Unfilled)).reaches("unfilled")


def test_one_silent_provider_is_not_waited_for():
    assert purchase.deadline_ms(start()) == ONE.bids_close_ms
    awarding().reaches("awarding")


def test_the_award_says_what_was_bid_for():
    (placed,) = awarding().reaches("awarding").placements
    assert placed.award.bid == digest(DOMAIN, CHEAP.bid.document)
    assert placed.award.channel_id == channel_id(DOMAIN, placed.channel)
    assert (placed.channel.payer, placed.channel.payee) == (BUYER, PROVIDER)
    assert placed.award.workload == digest(DOMAIN, workload())


def test_an_open_channel_is_used_again_if_it_pays_as_the_bid_says():
    known = start(channels={PROVIDER: CHANNEL})
    assert awarding(known).reaches("awarding").placements[0].channel == CHANNEL
    other = start(channels={PROVIDER: replace(CHANNEL, splits_hash=b"x" * 32)})
    assert awarding(other).reaches("awarding").placements[0].channel != other.channels[PROVIDER]


def test_who_was_not_invited_is_not_heard():
    playbook = Playbook(advance, start(invited=(PROVIDER,))) >> DEAR
    playbook << ignored("a bid of somebody who was not invited")
    playbook >> DeclineArrived(decline=decline(ONE, key=OTHER_KEY), at_ms=NOW_MS)
    playbook << ignored("a decline of somebody who was not invited")
    playbook.reaches("tendering", bids={}, declines={})


def test_a_provider_gets_no_more_bids_in_than_there_are_shards():
    playbook = Playbook(advance, start()) >> CHEAP >> bid_of(ONE, PROVIDER_KEY, nonce=b"2" * 32)
    (playbook << ignored("more bids of one provider")).reaches("tendering")


def test_a_bid_counts_once():
    (Playbook(advance, start()) >> CHEAP >> CHEAP << ignored("a bid that is known")).reaches("tendering")


def test_a_bid_that_comes_too_late_is_let_go_at_once():
    late = bid_of(ONE, THIRD_KEY)
    (awarding() >> late << sent(THIRD, BidReleased)).reaches("awarding")


def test_a_winner_that_does_not_confirm_is_replaced_and_told_so():
    playbook = awarding()
    assert purchase.deadline_ms(playbook.reaches("awarding")) == NOW_MS + CLOSE + CONFIRM_MS
    playbook >> passed(CLOSE + CONFIRM_MS) << sent(PROVIDER, LeaseCancelled) << sent(OTHER, AwardSent)
    first, second = playbook.reaches("awarding").placements
    assert (first.phase, second.phase) == ("failed", "awarded")
    # It confirms after all: it hears once more that nobody waits for it.
    playbook >> confirmed(first) << sent(PROVIDER, LeaseCancelled, lease=first.lease)
    playbook >> confirmed(second) << some(Gathered, placements=(replace(second, phase="confirmed"),))
    (
        playbook
        >> confirmed(first)
        << sent(PROVIDER, LeaseCancelled)
        >> confirmed(second)
        << ignored("a confirmation that")
    )
    playbook.reaches("running")


def test_a_winner_that_refuses_is_replaced():
    playbook = awarding()
    (first,) = playbook.reaches("awarding").placements
    refusal = RefusalOfLeaseArrived(lease=first.lease, kind="channel-closed", reason="busy", at_ms=NOW_MS)
    playbook >> refusal << sent(OTHER, AwardSent) >> refusal << ignored("a refusal of no award that waits")
    playbook.reaches("awarding")


def test_a_provider_that_stayed_silent_once_gets_no_second_award():
    cheap = bid_of(TWO, OTHER_KEY, PRICE // 2, max_total=300_000)
    middle = [bid_of(TWO, PROVIDER_KEY, PRICE, nonce=bytes([n]) * 32, devices=(bytes([n]) * 32,)) for n in (1, 2)]
    dear = bid_of(TWO, THIRD_KEY, 2 * PRICE)
    playbook = Playbook(advance, start(TWO)) >> cheap >> middle[0] >> middle[1] >> dear >> passed(CLOSE)
    playbook << sent(OTHER, AwardSent) << sent(PROVIDER, AwardSent)
    kept, _ = playbook.reaches("awarding").placements
    playbook >> confirmed(kept) >> passed(CLOSE + CONFIRM_MS) << sent(PROVIDER, LeaseCancelled)
    playbook << sent(THIRD, AwardSent)
    playbook.reaches("awarding")


def test_a_gang_whose_winners_all_stay_silent_was_deserted():
    playbook = Playbook(advance, start(ONE)) >> bid_of(ONE, OTHER_KEY) >> passed(CLOSE) << sent(OTHER, AwardSent)
    playbook >> passed(CLOSE + CONFIRM_MS)
    playbook << sent(OTHER, LeaseCancelled) << some(Unfilled, deserted=True)
    playbook.reaches("unfilled", deserters=frozenset({OTHER}))


@pytest.mark.parametrize(("part", "sold"), [("0.5", 2), ("0.6", 1)])
def test_parts_of_one_device_are_bought_side_by_side_up_to_the_whole(part, sold):
    wish = needs(clauses=(Clause(name="share", operator="<=", values=(part,)),))
    two = tender(shards=(0, 1), requirements=wish)
    gives = (Fact(name="share", value=part),)
    most = 600_000 * int(part[2]) // 10 + 1
    same = [bid_of(two, PROVIDER_KEY, facts=gives, nonce=bytes([n]) * 32, max_total=most) for n in (1, 2)]
    playbook = Playbook(advance, start(two)) >> same[0] >> same[1] >> passed(CLOSE)
    message = AwardSent if sold == 2 else BidReleased
    playbook << sent(PROVIDER, message) << sent(PROVIDER, message)
    if sold == 2:
        assert len(playbook.reaches("awarding").placements) == 2
    else:
        playbook << some(Unfilled)
        playbook.reaches("unfilled")


def test_one_device_is_not_bought_twice():
    same = [bid_of(TWO, PROVIDER_KEY, PRICE, nonce=bytes([n]) * 32) for n in (1, 2)]
    playbook = Playbook(advance, start(TWO)) >> same[0] >> same[1] >> passed(CLOSE)
    playbook << sent(PROVIDER, BidReleased) << sent(PROVIDER, BidReleased) << some(Unfilled)
    playbook.reaches("unfilled")


def test_the_gang_is_all_or_none():
    playbook = Playbook(advance, start(TWO)) >> bid_of(TWO, PROVIDER_KEY) >> passed(CLOSE)
    unfilled = some(Unfilled, reason="it takes 2 bids at once, and 1 could win", deserted=False)
    playbook << sent(PROVIDER, BidReleased) << unfilled
    playbook.reaches("unfilled")


def test_a_gang_that_breaks_half_way_frees_those_who_confirmed():
    playbook = Playbook(advance, start(TWO)) >> bid_of(TWO, PROVIDER_KEY) >> bid_of(TWO, OTHER_KEY) >> passed(CLOSE)
    playbook << some(Send) << some(Send)
    one, two = playbook.reaches("awarding").placements
    (
        playbook
        >> confirmed(one)
        >> RefusalOfLeaseArrived(lease=two.lease, kind="channel-closed", reason="no", at_ms=NOW_MS)
    )
    playbook << sent(one.provider, LeaseCancelled) << some(Unfilled)
    playbook.reaches("unfilled", live=())


@pytest.mark.parametrize(("funds", "phase"), [(600_001, "awarding"), (600_000, "unfilled")])
def test_never_more_is_promised_than_there_are_funds(funds, phase):
    playbook = Playbook(advance, start(funds=funds)) >> CHEAP >> passed(CLOSE)
    if phase == "awarding":
        playbook << sent(PROVIDER, AwardSent)
    else:
        playbook << sent(PROVIDER, BidReleased) << some(Unfilled)
    playbook.reaches(phase)


def test_funds_bound_all_leases_of_the_gang_together():
    playbook = Playbook(advance, start(TWO, funds=1_200_001)) >> bid_of(TWO, PROVIDER_KEY) >> bid_of(TWO, OTHER_KEY)
    playbook >> passed(CLOSE) << some(Send) << some(Send)
    less = Playbook(advance, start(TWO, funds=1_200_000)) >> bid_of(TWO, PROVIDER_KEY) >> bid_of(TWO, OTHER_KEY)
    less >> passed(CLOSE) << some(Send) << some(Send) << some(Unfilled)
    less.reaches("unfilled")


def test_what_scores_better_and_is_too_dear_for_the_budget_does_not_keep_another_bid_from_winning():
    good = {PROVIDER: Record(good=500)}
    both = lambda funds: Playbook(advance, start(funds=funds, records=good)) >> DEARER >> FAIR >> passed(CLOSE)  # noqa: E731
    (both(900_001) << sent(PROVIDER, AwardSent)).reaches("awarding")
    playbook = both(900_000) << sent(OTHER, AwardSent)
    (placed,) = playbook.reaches("awarding").placements
    playbook >> confirmed(placed) << sent(PROVIDER, BidReleased) << some(Gathered)
    short = both(600_000) << sent(PROVIDER, BidReleased) << sent(OTHER, BidReleased) << some(Unfilled, missing=1)
    assert "to cost 0.600001, and 0.600000 is left" in short.reaches("unfilled").reason


@pytest.mark.parametrize(("funds", "phase"), [(1_500_002, "awarding"), (1_500_001, "unfilled")])
def test_what_replaces_a_winner_has_to_be_paid_beside_those_who_confirmed(funds, phase):
    third = bid_of(TWO, THIRD_KEY, PRICE * 3 // 2, max_total=900_001)
    playbook = Playbook(advance, start(TWO, funds=funds)) >> bid_of(TWO, PROVIDER_KEY) >> bid_of(TWO, OTHER_KEY)
    playbook >> third >> passed(CLOSE) << some(Send) << some(Send)
    one, two = playbook.reaches("awarding").placements
    (
        playbook
        >> confirmed(one)
        >> RefusalOfLeaseArrived(lease=two.lease, kind="channel-closed", reason="no", at_ms=NOW_MS)
    )
    if phase == "awarding":
        playbook << sent(THIRD, AwardSent)
    else:
        playbook << sent(one.provider, LeaseCancelled) << sent(THIRD, BidReleased) << some(Unfilled, missing=1)
    playbook.reaches(phase)


def test_where_only_bids_are_wanted_everybody_is_free_when_bidding_closes_and_the_table_stays():
    playbook = Playbook(advance, start(only_bids=True, invited=(PROVIDER, OTHER))) >> CHEAP >> DEAR
    why = "bids were asked for, and nothing was to be awarded"
    playbook << sent(PROVIDER, BidReleased, reason=why) << sent(OTHER, BidReleased, reason=why) << some(BidsShown)
    state = playbook.reaches("cancelled", reason=why, placements=())
    assert [entry.excluded for entry in state.ranking] == ["", ""]
    late = bid_of(ONE, THIRD_KEY)
    (Playbook(advance, state) >> late << sent(THIRD, BidReleased)).reaches("cancelled")


def test_where_only_bids_are_wanted_and_too_few_come_it_is_unfilled_like_any_tender_and_nothing_is_awarded():
    playbook = Playbook(advance, start(TWO, only_bids=True, invited=(PROVIDER, OTHER))) >> bid_of(TWO, PROVIDER_KEY)
    playbook >> passed(CLOSE) << sent(PROVIDER, BidReleased) << some(Unfilled)
    playbook.reaches("unfilled", reason="it takes 2 bids at once, and 1 could win", placements=())


def refused(placement, kind, at_ms=NOW_MS + 3_000):
    return RefusalOfLeaseArrived(lease=placement.lease, kind=kind, reason="no", at_ms=at_ms)


KINDS = get_args(RefusalKind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_winner_that_refuses_for_what_its_buyer_does_not_see_has_deserted(kind):
    playbook = awarding()
    (placed,) = playbook.reaches("awarding").placements
    playbook >> refused(placed, kind) << sent(OTHER, AwardSent)
    state = playbook.reaches("awarding")
    assert (state.deserters, state.placements[0].why) == (frozenset({PROVIDER}), "no")


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_buyer_can_see_itself_excuses_a_refusal_of_just_that_kind(kind):
    heavy = workload(fetch_bytes=1)
    short = bid_of(ONE, PROVIDER_KEY, expires_ms=NOW_MS + 5_000)
    playbook = Playbook(advance, start(channels={PROVIDER: CHANNEL}, workload=heavy)) >> short >> DEAR >> passed(CLOSE)
    playbook << sent(PROVIDER, AwardSent)
    (placed,) = playbook.reaches("awarding").placements
    playbook >> refused(placed, kind) << sent(OTHER, AwardSent)
    excused = kind in ("channel-closed", "expired", "too-large")
    assert playbook.reaches("awarding").deserters == (frozenset() if excused else frozenset({PROVIDER}))


@pytest.mark.parametrize("changes", [{"scratch_bytes": 0}, {"output_bytes": 1 << 50}, {"workers": 0}])
def test_a_workload_that_no_sandbox_can_have_is_its_buyers_own_fault(changes):
    odd, sound = workload(**changes), workload()
    promised = bid(ONE).document
    facts = {"award": award(promised), "bid": promised, "is_old_channel": False, "at_ms": NOW_MS}
    assert not is_own_fault("too-large", workload=odd, **facts)
    assert is_own_fault("too-large", workload=sound, **facts)


def test_an_older_channel_excuses_a_refusal_also_when_the_word_of_its_end_came_first():
    """The provider says that the channel ended, then that it is closed: by then the purchase gathers without it."""
    playbook = Playbook(advance, start(channels={PROVIDER: CHANNEL})) >> CHEAP >> DEAR >> passed(CLOSE)
    playbook << sent(PROVIDER, AwardSent)
    (placed,) = playbook.reaches("awarding").placements
    assert placed.channel == CHANNEL
    without = replace(playbook.reaches("awarding"), channels={})
    assert not advance(without, refused(placed, "channel-closed")).state.deserters


def test_a_channel_of_the_tender_itself_is_no_older_one_whichever_of_them_it_is():
    playbook = Playbook(advance, start()) >> CHEAP >> DEAR >> passed(CLOSE)
    playbook << sent(PROVIDER, AwardSent)
    begun = playbook.reaches("awarding")
    (placed,) = begun.placements
    for failed in (0, 1, MOST_CHANNELS - 1, MOST_CHANNELS, 40):
        salt = channel_salt(begun.tender_digest, PROVIDER, failed)
        awarded = replace(placed, channel=replace(placed.channel, salt=salt))
        state = advance(replace(begun, placements=(awarded,)), refused(awarded, "channel-closed")).state
        assert state.deserters == {PROVIDER}


def test_a_gang_that_a_winner_deserted_is_tried_again():
    playbook = Playbook(advance, start()) >> CHEAP >> passed(CLOSE) << sent(PROVIDER, AwardSent)
    (placed,) = playbook.reaches("awarding").placements
    playbook >> refused(placed, "reclaimed") << some(Unfilled, deserted=True)
    playbook.reaches("unfilled")


def silent(last_heard_ms, confirms_ms):
    """The first winner says nothing; the second confirms so long after its award."""
    playbook = awarding()
    (first,) = playbook.reaches("awarding").placements
    late_ms = first.award.confirm_by_ms
    playbook >> TimePassed(at_ms=late_ms, last_heard_ms=last_heard_ms)
    playbook << sent(PROVIDER, LeaseCancelled) << sent(OTHER, AwardSent)
    state = playbook.reaches("awarding")
    before = state.deserters
    playbook >> ConfirmationArrived(lease=state.placements[1].lease, at_ms=late_ms + confirms_ms)
    playbook << some(Gathered)
    return before, playbook.reaches("running").deserters


@pytest.mark.parametrize(
    ("heard_after_ms", "confirms_ms", "before", "after"),
    [
        (1, 3_000, {PROVIDER}, {PROVIDER}),
        (0, 3_000, set(), set()),
        (0, 1_001, set(), set()),
        (0, 1_000, set(), {PROVIDER}),
    ],
)
def test_a_silent_winner_is_blamed_if_anybody_was_heard_meanwhile_or_the_next_one_answered_at_once(
    heard_after_ms, confirms_ms, before, after
):
    found = silent(NOW_MS + CLOSE + heard_after_ms, confirms_ms)
    assert found == (frozenset(before), frozenset(after))


def test_a_word_that_comes_too_late_undoes_no_desertion():
    playbook = awarding()
    (first,) = playbook.reaches("awarding").placements
    playbook >> TimePassed(at_ms=first.award.confirm_by_ms, last_heard_ms=first.award.confirm_by_ms - 1)
    playbook << sent(PROVIDER, LeaseCancelled) << sent(OTHER, AwardSent)
    playbook >> refused(first, "channel-closed") << ignored("a refusal of no award that waits")
    playbook >> confirmed(first) << sent(PROVIDER, LeaseCancelled)
    assert playbook.reaches("awarding").deserters == {PROVIDER}


def test_who_lost_since_the_budget_was_too_small_for_the_best_is_not_told_that_it_was_number_one_and_no_more():
    good = {PROVIDER: Record(good=500)}
    playbook = Playbook(advance, start(funds=900_000, records=good)) >> DEARER >> FAIR >> passed(CLOSE)
    playbook << sent(OTHER, AwardSent)
    (placed,) = playbook.reaches("awarding").placements
    why = "another bid won: by expected cost it was number 1 of 2; reliability counted: 99 %"
    (
        playbook
        >> confirmed(placed)
        << sent(PROVIDER, BidReleased, reason=f"{why}; the best could not all be taken together")
    )


@pytest.mark.parametrize(("most_each", "elsewhere", "winners"), [(0, {}, {PROVIDER}), (1, {}, {PROVIDER, OTHER})])
def test_a_job_may_say_how_many_of_its_shards_one_provider_gets(most_each, elsewhere, winners):
    playbook = Playbook(advance, start(TWO, most_each=most_each, elsewhere=elsewhere))
    for number in (1, 2):
        playbook >> bid_of(TWO, PROVIDER_KEY, nonce=bytes([number]) * 32, devices=(bytes([number]) * 32,))
    playbook >> bid_of(TWO, OTHER_KEY, 2 * PRICE) >> passed(CLOSE) << some(Send) << some(Send)
    assert {entry.provider for entry in playbook.reaches("awarding").placements} == winners


def test_who_has_as_many_shards_of_the_job_as_it_may_gets_none_that_moves_and_the_reason_says_so():
    full = start(most_each=1, elsewhere={PROVIDER: 1})
    (Playbook(advance, full) >> CHEAP >> DEAR >> passed(CLOSE) << sent(OTHER, AwardSent)).reaches("awarding")
    playbook = Playbook(advance, full) >> CHEAP >> passed(CLOSE) << sent(PROVIDER, BidReleased) << some(Unfilled)
    assert playbook.reaches("unfilled").reason.startswith("no provider may have more than 1 shard of the job")


def test_a_provider_with_a_bad_record_needs_a_better_price():
    records = {PROVIDER: Record(good=0, bad=8)}
    playbook = Playbook(advance, start(records=records)) >> CHEAP >> DEAR >> passed(CLOSE) << sent(OTHER, AwardSent)
    playbook.reaches("awarding")


@pytest.mark.parametrize("confirm", [False, True])
def test_a_purchase_that_is_withdrawn_frees_everybody(confirm):
    playbook = awarding()
    (first,) = playbook.reaches("awarding").placements
    gone = Withdrawn(reason="no", at_ms=NOW_MS)
    if confirm:
        playbook >> confirmed(first) << some(Send) << some(Gathered) >> gone
        playbook.reaches("settling")
        playbook >> LeaseEnded(lease=first.lease, well=False, at_ms=NOW_MS)
        playbook.reaches("settled")
    else:
        playbook >> gone << sent(PROVIDER, LeaseCancelled, reason="no") << sent(OTHER, BidReleased)
        playbook.reaches("cancelled")
        playbook >> confirmed(first) << sent(PROVIDER, LeaseCancelled)


def test_it_is_settled_with_the_end_of_its_last_lease():
    playbook = awarding()
    (first,) = playbook.reaches("awarding").placements
    ended = LeaseEnded(lease=first.lease, well=True, at_ms=NOW_MS)
    playbook >> confirmed(first) << some(Send) << some(Gathered) >> ended
    playbook.reaches("settled")
    playbook >> ended << ignored("LeaseEnded while settled")


def test_a_reason_of_any_length_fits_into_the_message():
    playbook = awarding() >> Withdrawn(reason="é" * 8_000, at_ms=NOW_MS)
    (cancel, _), state = playbook._pending, playbook._state
    assert len(cancel.message.reason.encode()) <= 2_048
    assert purchase.outstanding(state, NOW_MS)[0].message == cancel.message


def test_a_restart_says_again_what_waits():
    assert len(purchase.outstanding(start(), NOW_MS)) == 3
    assert purchase.outstanding(awarding().reaches("awarding"), NOW_MS) == (sent(PROVIDER, AwardSent),)


def test_after_an_award_that_came_to_nothing_the_same_provider_is_paid_on_another_channel():
    """The first may be closed by then: the lease that was called off was the last thing on it."""
    bids = [bid_of(TWO, PROVIDER_KEY, nonce=bytes([n]) * 32, devices=(bytes([n]) * 32,)) for n in (1, 2)]
    more = bid_of(TWO, OTHER_KEY, 2 * PRICE)
    state = start(TWO, invited=(PROVIDER, OTHER))
    for event in (*bids, more, passed(CLOSE)):
        state = advance(state, event).state
    first, second = state.placements
    assert first.channel == second.channel
    state = replace(state, placements=(replace(first, phase="failed"), second), ranking=state.ranking)
    third = placement_for(state, first.shard, digest(DOMAIN, bids[0].bid.document), NOW_MS + 3_000)
    assert third.channel != first.channel
    assert third.channel.salt in [channel_salt(state.tender_digest, PROVIDER, n) for n in range(MOST_CHANNELS)]
    known = replace(state, channels={PROVIDER: first.channel})
    assert placement_for(known, first.shard, third.bid, NOW_MS + 3_000).channel == third.channel
