"""No device is promised twice in one instant."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import DEVICE, NOW_MS

from hansa.scheduler.capacity import Capacity, Freed, HoldAccepted, advance, hold, with_inventory

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
