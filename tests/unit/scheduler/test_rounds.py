"""Rounds: who counts, how long others are waited for, and that nobody can stall or poison one."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.playbook import Playbook, ignored, some
from kit.trading import JOB, NOW_MS, OTHER, PROVIDER, THIRD

from hansa.market.effects import Send
from hansa.proto.blob import blob_ref
from hansa.proto.messages import RoundPublished
from hansa.scheduler import rounds
from hansa.scheduler.rounds import (
    ContributionArrived,
    JobEnded,
    Member,
    MemberJoined,
    MemberLeft,
    Reduced,
    ReductionFailed,
    ReductionWanted,
    Rejected,
    Rounds,
    TimePassed,
    advance,
)

WHO = (PROVIDER, OTHER, THIRD)
STATE = blob_ref(b"average")


def lease(shard):
    return bytes([shard + 1]) * 32


def joined(shard, provider=None):
    return MemberJoined(member=Member(shard=shard, lease=lease(shard), provider=provider or WHO[shard]))


def gives(shard, number=1, *, state=b"", at_ms=NOW_MS):
    blob = blob_ref(bytes([shard]) + state)
    return ContributionArrived(lease=lease(shard), round=number, weight_milli=1_000, state=blob, at_ms=at_ms)


def left(shard, *, finished=False):
    return MemberLeft(lease=lease(shard), finished=finished, at_ms=NOW_MS)


def reduced(number=1, accepted=(0, 1, 2)):
    return Reduced(round=number, state=STATE, accepted=accepted, rejected=(), at_ms=NOW_MS + 9)


def of(shards):
    start = Rounds(job=JOB, shards=shards, timeout_ms=5_000)
    playbook = Playbook(advance, start)
    for shard in range(shards):
        playbook >> joined(shard)
    return playbook


def wanted(*shards):
    return some(ReductionWanted, round=1) if not shards else Reduces(shards)


class Reduces(some):
    """A reduction of exactly these shards."""

    def __init__(self, shards):
        super().__init__(ReductionWanted)
        self.shards = shards

    def __eq__(self, other):
        return isinstance(other, ReductionWanted) and tuple(c.shard for c in other.contributions) == self.shards

    __hash__ = some.__hash__


def told(shard):
    return some(Send, to=WHO[shard], message=some(RoundPublished, lease=lease(shard), state=STATE))


def test_a_round_is_reduced_when_all_gave_and_published_to_all():
    playbook = of(3) >> gives(0) >> gives(2) >> gives(1) << Reduces((0, 1, 2))
    playbook >> reduced() << told(0) << told(1) << told(2)
    playbook.reaches("collecting", published=1, contributions={}, deadline=0)


def test_after_the_first_the_others_are_waited_for_and_then_half_is_enough():
    playbook = of(3) >> gives(0) >> gives(1, at_ms=NOW_MS + 4_000)
    assert rounds.deadline_ms(playbook.reaches("collecting")) == NOW_MS + 5_000
    playbook >> TimePassed(at_ms=NOW_MS + 5_000) << Reduces((0, 1))


def test_fewer_than_half_leave_the_round_open():
    playbook = of(3) >> gives(0) >> TimePassed(at_ms=NOW_MS + 5_000)
    state = playbook.reaches("collecting")
    assert rounds.deadline_ms(state) == NOW_MS + 10_000
    playbook >> gives(1) >> TimePassed(at_ms=NOW_MS + 10_000) << Reduces((0, 1))


def test_a_lost_shard_still_counts_for_the_quorum():
    playbook = of(3) >> gives(0) >> left(1) >> left(2)
    playbook.reaches("collecting")
    playbook >> joined(1) >> gives(1) << Reduces((0, 1))


def test_when_all_are_lost_nothing_is_published_until_enough_come_back():
    playbook = of(2) >> left(0) >> left(1)
    playbook.reaches("collecting", members={})
    playbook >> joined(0) >> gives(0) << Reduces((0,))


def test_a_shard_that_finished_and_whose_results_were_lost_counts_again_until_it_has_finished_again():
    """However often its results are lost: a shard that finished four times of two shards once made less than none."""
    playbook = of(2)
    for _ in range(4):
        playbook >> left(1, finished=True)
        playbook.reaches("collecting", shards=1)
        playbook >> joined(1)
        playbook.reaches("collecting", shards=2)
    (playbook >> gives(0) >> left(1, finished=True) << Reduces((0,))).reaches("reducing", shards=1)


def test_a_finished_shard_is_not_waited_for():
    (of(2) >> gives(0) >> left(1, finished=True) << Reduces((0,))).reaches("reducing", shards=1)


def test_a_member_lost_while_reducing_changes_nothing_until_the_next_round():
    playbook = of(2) >> gives(0) >> gives(1) << Reduces((0, 1)) >> left(1) >> reduced() << told(0)
    playbook.reaches("collecting", published=1)


def test_a_member_that_joins_while_reducing_gets_the_result():
    playbook = of(2) >> gives(0) >> gives(1) << Reduces((0, 1)) >> left(1) >> joined(1) >> gives(1)
    playbook << ignored("a contribution that is known, or comes while") >> reduced() << told(0) << told(1)


def test_the_same_contribution_again_counts_once_and_a_newer_one_takes_its_place():
    playbook = of(2) >> gives(0) >> gives(0) << ignored("a contribution that is known") >> gives(0, state=b"new")
    state = playbook.reaches("collecting")
    assert state.contributions[0].state == blob_ref(b"\x00new")
    assert len(state.contributions) == 1


def test_a_contribution_does_not_put_the_deadline_off():
    state = (of(3) >> gives(0) >> gives(0, state=b"x", at_ms=NOW_MS + 4_999)).reaches("collecting")
    assert rounds.deadline_ms(state) == NOW_MS + 5_000


def test_a_run_that_began_again_after_its_round_was_published_gets_the_newest_state():
    playbook = of(2) >> gives(0) >> gives(1) << Reduces((0, 1)) >> reduced() << told(0) << told(1)
    (playbook >> gives(1, number=1) << told(1)).reaches("collecting", contributions={})


def test_nobody_contributes_ahead_or_for_somebody_else():
    playbook = of(2) >> gives(0, number=2) << ignored("a contribution to a round that has not begun")
    stranger = replace(gives(0), lease=b"x" * 32)
    (playbook >> stranger << ignored("a contribution of no member")).reaches("collecting", contributions={})


def test_the_outcome_of_another_round_is_not_taken():
    playbook = of(1) >> gives(0) << Reduces((0,)) >> reduced(number=2) << ignored("the outcome of another round")
    playbook >> ReductionFailed(round=2, rejected=(), at_ms=NOW_MS) << ignored("the outcome of another round")
    playbook.reaches("reducing", published=0)


def test_a_reduction_that_failed_keeps_what_was_sound_and_tries_again_later():
    playbook = of(3) >> gives(0) >> gives(1) >> gives(2) << Reduces((0, 1, 2))
    bad = (Rejected(shard=1, reason="not finite"),)
    playbook >> ReductionFailed(round=1, rejected=bad, at_ms=NOW_MS + 9)
    assert rounds.deadline_ms(playbook.reaches("collecting")) == NOW_MS + 5_009
    playbook >> TimePassed(at_ms=NOW_MS + 5_009) << Reduces((0, 2))


def test_a_shard_whose_contribution_was_rejected_may_give_another():
    playbook = of(1) >> gives(0) << Reduces((0,))
    playbook >> ReductionFailed(round=1, rejected=(Rejected(shard=0, reason="no"),), at_ms=NOW_MS)
    playbook.reaches("collecting", contributions={})
    playbook >> gives(0) << Reduces((0,))


def test_after_the_job_no_round_is_made():
    playbook = of(1) >> JobEnded() >> gives(0) << ignored("ContributionArrived while published")
    playbook.reaches("published")


@pytest.mark.parametrize("timeout_ms", [0, 1, 5_000])
def test_a_deadline_that_came_is_never_due_again_at_once(timeout_ms):
    start = Rounds(job=JOB, shards=3, timeout_ms=timeout_ms)
    state = (Playbook(advance, start) >> joined(0) >> gives(0)).reaches("collecting")
    for _ in range(3):
        due_ms = rounds.deadline_ms(state) or NOW_MS
        state = advance(state, TimePassed(at_ms=due_ms)).state
        assert rounds.deadline_ms(state) > due_ms


def test_a_restart_orders_the_reduction_again_and_tells_who_is_behind():
    reducing = (of(2) >> gives(0) >> gives(1) << Reduces((0, 1))).reaches("reducing")
    assert rounds.outstanding(reducing, NOW_MS) == (Reduces((0, 1)),)
    open_again = advance(reducing, reduced()).state
    assert rounds.outstanding(open_again, NOW_MS) == (told(0), told(1))
    assert rounds.outstanding(advance(open_again, gives(0, number=2)).state, NOW_MS) == (told(1),)


@given(st.data())
def test_the_usual_course_with_strays_dropped_in_anywhere(data):
    shards = data.draw(st.integers(1, 3))
    state = Rounds(job=JOB, shards=shards, timeout_ms=5_000)
    for shard in range(shards):
        state = advance(state, joined(shard)).state
    stray = st.one_of(
        st.builds(left, st.integers(0, 2)),
        st.builds(joined, st.integers(0, 2)),
        st.builds(gives, st.integers(0, 2), st.integers(0, 4), state=st.binary(max_size=1)),
        st.builds(reduced, st.integers(0, 4)),
        st.builds(lambda number: ReductionFailed(round=number, rejected=(), at_ms=NOW_MS), st.integers(0, 4)),
        st.just(TimePassed(at_ms=NOW_MS + 5_000)),
    )
    for _ in range(6):
        number = state.published + 1
        usual = [*(gives(shard, number) for shard in range(shards)), reduced(number)]
        for event in (each for one in usual for each in (*data.draw(st.lists(stray, max_size=2)), one)):
            before = state
            step = advance(state, event)
            state = step.state
            assert before.published <= state.published <= before.published + 1
            assert len(state.contributions) <= 3
            for effect in step.effects:
                if isinstance(effect, ReductionWanted):
                    assert len(effect.contributions) >= state.quorum
                    assert effect.round == state.published + 1
