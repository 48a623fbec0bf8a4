"""No device is promised twice in one instant."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import DEVICE, NOW_MS

from hansa.proto.market_documents import Fact
from hansa.scheduler.capacity import (
    Capacity,
    Freed,
    HoldAccepted,
    Withdrawal,
    advance,
    give_back,
    hold,
    with_inventory,
    withdraw,
)

DEVICES = tuple(replace(DEVICE, id=bytes([number]) * 32) for number in range(4))
START = with_inventory(Capacity(), DEVICES)
BID, OTHER_BID = b"1" * 32, b"2" * 32


def test_a_device_is_held_leased_and_free_again():
    held = hold(START, BID, DEVICES[:1], NOW_MS)
    assert [held.phase_of(device.id) for device in DEVICES[:2]] == ["held", "free"]
    leased, ignored = advance(held, BID, HoldAccepted())
    assert (leased.phase_of(DEVICES[0].id), ignored) == ("leased", None)
    freed, ignored = advance(leased, BID, Freed())
    assert (freed, ignored) == (START, None)


def test_a_device_is_never_promised_twice():
    held = hold(START, BID, DEVICES[:2], NOW_MS)
    with pytest.raises(AssertionError, match="promised twice"):
        hold(held, OTHER_BID, DEVICES[1:3], NOW_MS)
    with pytest.raises(AssertionError, match="hold devices twice"):
        hold(held, BID, DEVICES[2:3], NOW_MS)


def test_to_free_what_is_free_is_ignored():
    assert advance(START, BID, Freed()) == (START, "Freed of no allotment")


def test_an_acceptance_counts_once():
    leased, _ = advance(hold(START, BID, DEVICES[:1], NOW_MS), BID, HoldAccepted())
    assert advance(leased, BID, HoldAccepted()) == (leased, "HoldAccepted while lease")


def test_a_promise_outlives_the_device_that_went():
    held = hold(START, BID, DEVICES[:1], NOW_MS)
    gone = with_inventory(held, DEVICES[1:])
    assert gone.promised == {DEVICES[0].id}
    assert advance(gone, BID, Freed())[0].allotments == {}


def test_parts_of_one_device_may_be_promised_up_to_the_whole_and_not_beyond():
    half = hold(START, BID, DEVICES[:1], NOW_MS, share_milli=500)
    with pytest.raises(AssertionError, match="promised twice"):
        hold(half, OTHER_BID, DEVICES[:1], NOW_MS, share_milli=501)
    with pytest.raises(AssertionError, match="promised twice"):
        hold(half, OTHER_BID, DEVICES[:1], NOW_MS)
    full = hold(half, OTHER_BID, DEVICES[:1], NOW_MS, share_milli=500)
    assert full.taken_milli(DEVICES[0].id) == 1_000
    assert full.free == half.free == DEVICES[1:]
    freed, _ = advance(advance(full, BID, Freed())[0], OTHER_BID, Freed())
    assert freed == START


@pytest.mark.parametrize(("devices", "share_milli"), [(2, 500), (1, 0), (1, 1_001)])
def test_there_is_no_part_of_several_devices_and_none_of_nothing(devices, share_milli):
    with pytest.raises(AssertionError, match="part"):
        hold(START, BID, DEVICES[:devices], NOW_MS, share_milli=share_milli)


PARTED = with_inventory(
    Capacity(), [replace(device, facts=(Fact(name="share", value="0.125"),)) for device in DEVICES[:2]]
)


def test_what_is_left_for_parts_is_what_nobody_has_of_devices_that_are_lent_so():
    first, second = PARTED.devices
    assert START.spare(4) == {}, "lent whole"
    assert PARTED.spare(4) == {first.id: 1_000, second.id: 1_000}
    some = hold(hold(PARTED, BID, [first], NOW_MS, share_milli=300), OTHER_BID, [second], NOW_MS)
    assert some.spare(4) == {first.id: 700}
    assert some.spare(1) == {}, "one tenant is all that the owner allows"
    assert withdrawn(some, first).spare(4) == {}
    assert PARTED.spare(0) == {}


def test_what_is_leased_counts_by_its_parts():
    half = hold(START, BID, DEVICES[:1], NOW_MS, share_milli=500)
    assert half.leased_ppm == 0
    leased, _ = advance(half, BID, HoldAccepted())
    assert leased.leased_ppm == 125_000
    both = hold(leased, OTHER_BID, DEVICES[:1], NOW_MS, share_milli=250)
    assert both.phase_of(DEVICES[0].id) == "leased", "what is leased goes before what is held"


PART = st.sampled_from([125, 250, 333, 500, 667, 1_000])
STEPS = st.lists(st.tuples(st.sampled_from(["hold", "accept", "free"]), st.integers(0, 9), st.integers(0, 3), PART))


@given(STEPS, st.integers(1, 4))
def test_whatever_is_held_of_whatever_is_left_no_device_is_ever_more_than_whole(story, tenants):
    state = with_inventory(Capacity(), [replace(device, facts=PARTED.devices[0].facts) for device in DEVICES])
    given_out: dict[bytes, tuple[bytes, int]] = {}
    for what, number, at, milli in story:
        bid, device = bytes([number]) * 32, state.devices[at]
        if what == "hold" and bid not in given_out:
            room = 1_000 * (device in state.free) if milli == 1_000 else state.spare(tenants).get(device.id, 0)
            if room >= milli:
                state = hold(state, bid, [device], NOW_MS, share_milli=milli)
                given_out[bid] = device.id, milli
        elif what != "hold":
            state, _ = advance(state, bid, HoldAccepted() if what == "accept" else Freed())
            if what == "free":
                given_out.pop(bid, None)
        for each in state.devices:
            has = [part for owned, part in given_out.values() if owned == each.id]
            assert state.taken_milli(each.id) == sum(has) <= 1_000
            assert len(has) <= max(tenants, 1)
            assert (each in state.free) == (not has)
    held = [part for _, part in given_out.values()]
    assert sum(held) <= 1_000 * len(DEVICES)


@given(st.lists(st.tuples(st.sampled_from(["hold", "accept", "free"]), st.integers(0, 3), st.integers(1, 2))))
def test_free_and_promised_never_overlap_and_make_up_the_whole(story):
    state = START
    for what, number, count in story:
        bid = bytes([number]) * 32
        if what == "hold" and bid not in state.allotments and len(state.free) >= count:
            state = hold(state, bid, state.free[:count], NOW_MS)
        elif what != "hold":
            state, _ = advance(state, bid, HoldAccepted() if what == "accept" else Freed())
        promised = [device for entry in state.allotments.values() for device in entry.devices]
        assert len(promised) == len(set(promised))
        assert {device.id for device in state.free} | set(promised) == {device.id for device in DEVICES}
        assert not {device.id for device in state.free} & set(promised)


def withdrawn(state, *devices, by_ms=NOW_MS + 60_000, why="the owner plays"):
    return withdraw(state, [device.id for device in devices], by_ms=by_ms, why=why, at_ms=NOW_MS)


def test_a_withdrawn_device_is_neither_free_nor_lent():
    less = withdrawn(START, DEVICES[0])
    assert less.free == less.lent == DEVICES[1:]
    assert less.phase_of(DEVICES[0].id) == "withdrawn"
    with pytest.raises(AssertionError, match="withdrawn"):
        hold(less, BID, DEVICES[:1], NOW_MS)


def test_a_withdrawn_device_whose_run_has_not_left_is_still_leased_and_free_to_nobody():
    leased, _ = advance(hold(START, BID, DEVICES[:1], NOW_MS), BID, HoldAccepted())
    less = withdrawn(leased, DEVICES[0])
    assert less.phase_of(DEVICES[0].id) == "leased"
    left, _ = advance(less, BID, Freed())
    assert left.phase_of(DEVICES[0].id) == "withdrawn"
    assert give_back(left, [DEVICES[0].id]) == START


def test_a_second_withdrawal_can_only_bring_the_moment_nearer():
    twice = withdrawn(withdrawn(START, DEVICES[0], by_ms=NOW_MS + 5), DEVICES[0], by_ms=NOW_MS + 9, why="it smokes")
    assert twice.withdrawn == {DEVICES[0].id: Withdrawal(by_ms=NOW_MS + 5, why="it smokes", since_ms=NOW_MS)}


def test_the_node_and_its_owner_each_take_back_only_their_own_word():
    owner = {"by_ms": NOW_MS + 9, "why": "mine", "at_ms": NOW_MS, "by_owner": True}
    both = withdraw(withdrawn(START, DEVICES[0], by_ms=NOW_MS + 5, why="it smokes"), [DEVICES[0].id], **owner)
    assert both.withheld[DEVICES[0].id] == Withdrawal(by_ms=NOW_MS + 5, why="mine; it smokes", since_ms=NOW_MS)
    cooled = give_back(both, [DEVICES[0].id])
    assert cooled.withheld[DEVICES[0].id].why == "mine"
    assert cooled.free == DEVICES[1:]
    assert cooled.phase_of(DEVICES[0].id) == "withdrawn"
    with pytest.raises(AssertionError, match="withdrawn"):
        hold(cooled, BID, DEVICES[:1], NOW_MS)
    assert give_back(cooled, [DEVICES[0].id], by_owner=True) == START
    assert give_back(both, [DEVICES[0].id], by_owner=True).withheld[DEVICES[0].id].why == "it smokes"


def test_what_is_not_a_device_here_is_passed_over():
    assert withdraw(START, [b"?" * 32], by_ms=1, why="", at_ms=1) == START
    assert give_back(START, [b"?" * 32]) == START


def test_a_device_stays_withdrawn_when_the_daemon_begins_again():
    assert with_inventory(withdrawn(START, DEVICES[0]), DEVICES).free == DEVICES[1:]
