"""The provider's machine when the owner wants devices back: what lapses, what leaves, and which promise it breaks."""

from dataclasses import replace

import pytest
from kit.playbook import Playbook, ignored, some
from kit.trading import BUYER, CHANNEL, NOW_MS, award, bid, tender, workload

from hansa.market import sale
from hansa.market.earning_channel import LineMetered
from hansa.market.effects import Send
from hansa.market.sale import LEAVE_PATIENCE_MS, advance
from hansa.market.sale_events import (
    AwardArrived,
    DeliveryTaken,
    DevicesFreed,
    LeaseMade,
    LeaveWanted,
    ProgressMade,
    ReclaimOrdered,
    RunOver,
    RunUnwanted,
    RunWanted,
    StartOrdered,
    StopOrdered,
    TimePassed,
)
from hansa.market.sale_state import Sale
from hansa.proto.messages import LeaseConfirmed, LeaseReclaimed, LeaseRefused, RunEnded
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest

TENDER = tender()
BID = bid(TENDER, reclaim_notice_ms=60_000).document
START = Sale(tender=TENDER, bid=BID, bid_digest=digest(DOMAIN, BID), grace_ms=10_000)
AWARD = award(BID)
LEASE = digest(DOMAIN, AWARD)
FREED = DevicesFreed(bid=START.bid_digest)
AWARDED = AwardArrived(award=AWARD, channel=CHANNEL, workload=workload(), at_ms=NOW_MS + 3_000)
BEGUN = StartOrdered(round=0, checkpoint=None, at_ms=NOW_MS + 10_000)


def wanted_back(notice_ms, *, at_ms=NOW_MS + 11_000, reason="the owner plays"):
    return ReclaimOrdered(by_ms=at_ms + notice_ms, reason=reason, at_ms=at_ms)


def left(at_ms=NOW_MS + 30_000):
    return RunOver(outcome="failed", kind="reclaimed", reason="the owner plays", outputs=0, at_ms=at_ms)


def told(by_ms):
    return some(Send, to=BUYER, message=LeaseReclaimed(lease=LEASE, by_ms=by_ms, reason="the owner plays"))


def leaves(by_ms):
    return LeaveWanted(lease=LEASE, by_ms=by_ms, why="the owner plays")


def ended(kind):
    return some(Send, to=BUYER, message=some(RunEnded, lease=LEASE, outcome="failed", kind=kind))


def leased():
    confirmed = some(Send, message=LeaseConfirmed(lease=LEASE))
    return Playbook(advance, START) >> AWARDED << some(LeaseMade) << confirmed


def running():
    return leased() >> BEGUN << some(RunWanted)


def test_a_bid_on_devices_that_are_taken_back_lapses_and_an_award_on_it_is_refused_in_words():
    playbook = Playbook(advance, START) >> wanted_back(60_000) << FREED >> AWARDED
    why = "the bid is lapsed: the devices were taken back: the owner plays"
    playbook << some(Send, to=BUYER, message=LeaseRefused(lease=LEASE, kind="reclaimed", reason=why))
    playbook.reaches("lapsed", terms=None)


def test_a_lease_that_has_not_started_is_over_at_once_and_says_so_again_to_who_starts_it():
    playbook = leased() >> wanted_back(60_000) << FREED << ended("reclaimed") >> BEGUN << ended("reclaimed")
    state = playbook.reaches("lapsed", lined_amount=0)
    assert sale.outstanding(state) == (ended("reclaimed"),)


def test_a_run_is_told_to_leave_and_its_buyer_by_when_and_nothing_is_freed_before_it_has_left():
    by_ms = NOW_MS + 71_000
    playbook = running() >> wanted_back(60_000) << told(by_ms) << leaves(by_ms)
    state = playbook.reaches("running", reclaim_by_ms=by_ms, reclaim_early=False)
    assert sale.outstanding(state) == (told(by_ms),), "said again after a restart"
    playbook = Playbook(advance, state) >> left() << FREED << ended("reclaimed")
    (playbook >> DeliveryTaken(at_ms=NOW_MS + 31_000)).reaches("stopped", lined_amount=0)


def test_what_was_delivered_before_it_left_is_charged_and_nothing_beyond():
    playbook = running() >> wanted_back(60_000) << some(Send) << some(LeaveWanted)
    playbook >> ProgressMade(running_ms=700, steps=1, rounds=0, checkpoint=bytes(32), at_ms=NOW_MS + 12_000)
    playbook << some(LineMetered) >> left(NOW_MS + 40_000) << FREED << ended("reclaimed")
    playbook.reaches("delivering", device_ms=700, lined_amount=700)


@pytest.mark.parametrize(("notice_ms", "kind"), [(60_000, "reclaimed"), (59_999, "reclaimed-early")])
def test_less_notice_than_the_bid_promised_is_a_promise_broken_and_the_end_says_so(notice_ms, kind):
    playbook = running() >> wanted_back(notice_ms) << some(Send) << some(LeaveWanted) >> left() << FREED << ended(kind)
    playbook.reaches("delivering", kind=kind)
    (leased() >> wanted_back(notice_ms) << FREED << ended(kind)).reaches("lapsed")


def test_a_second_word_brings_the_moment_nearer_and_never_takes_it_back():
    playbook = running() >> wanted_back(70_000) << some(Send) << some(LeaveWanted)
    playbook >> wanted_back(90_000) << ignored("taken back already") >> wanted_back(1_000) << told(NOW_MS + 12_000)
    (playbook << leaves(NOW_MS + 12_000)).reaches("running", reclaim_early=True)


def test_a_run_that_does_not_leave_in_time_is_stopped():
    playbook = running() >> wanted_back(60_000) << some(Send) << some(LeaveWanted)
    due_ms = NOW_MS + 71_000 + LEAVE_PATIENCE_MS
    assert sale.deadline_ms(playbook.reaches("running")) == due_ms
    playbook = Playbook(advance, playbook.reaches("running")) >> TimePassed(at_ms=due_ms)
    playbook << some(RunUnwanted, reason="its devices were taken back and it did not leave")
    playbook.reaches("running", stopping=True)


def test_what_ends_for_another_reason_while_it_leaves_says_that_reason():
    playbook = running() >> wanted_back(0) << some(Send) << some(LeaveWanted)
    failed = replace(left(), kind="user-exception", reason="division by zero")
    (playbook >> failed << FREED << ended("user-exception")).reaches("delivering")


def test_devices_that_are_free_already_are_not_freed_twice():
    playbook = running() >> left() << FREED << ended("reclaimed")
    playbook >> wanted_back(0) << ignored("ReclaimOrdered while delivering")
    playbook >> StopOrdered(reason="", at_ms=NOW_MS + 99_000)
    playbook >> wanted_back(0) << ignored("ReclaimOrdered while stopped")
