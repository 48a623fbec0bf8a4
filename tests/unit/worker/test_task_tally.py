"""Who does which item, and who is blamed when a worker dies."""

from hypothesis import given
from hypothesis import strategies as st

from hansa.worker.task_tally import Tally


def a_tally(count=6, *, done=(), retries=1, window=None):
    return Tally(range(count), done, retries=retries, window=window)


def test_what_is_settled_already_is_given_to_nobody():
    tally = a_tally(4, done=[0, 2])
    assert [tally.give(0), tally.give(1), tally.give(0)] == [1, 3, None]
    assert tally.open == 2
    tally.settle(0, 1)
    tally.settle(1, 3)
    assert tally.open == 0


def test_the_item_that_a_dead_worker_was_at_is_tried_again_and_then_given_up():
    tally = a_tally(2)
    assert tally.give(0) == 0
    assert tally.lose(0, again=True) is None
    assert tally.give(1) == 0
    assert tally.lose(1, again=True) == 0
    assert tally.deaths(0) == 2
    assert tally.give(2) == 1


def test_what_waited_behind_it_is_not_blamed_and_keeps_its_turn():
    tally = a_tally(4, retries=0)
    assert [tally.give(0), tally.give(0), tally.give(0)] == [0, 1, 2]
    assert tally.lose(0, again=True) == 0
    assert [tally.give(1), tally.give(1), tally.give(1)] == [1, 2, 3]
    assert tally.deaths(1) == 0


def test_an_item_that_is_not_to_be_tried_again_is_given_up_at_once():
    tally = a_tally(1, retries=5)
    tally.give(0)
    assert tally.lose(0, again=False) == 0
    assert tally.open == 0


def test_a_worker_that_had_nothing_costs_nobody_anything():
    assert a_tally().lose(7, again=True) is None


def test_where_results_come_in_order_nobody_runs_far_ahead_of_the_slowest():
    tally = a_tally(6, window=2, done=[1])
    assert [tally.give(0), tally.give(1)] == [0, None]
    tally.settle(0, 0)
    assert [tally.give(0), tally.give(1), tally.give(1)] == [2, 3, None]


def test_an_item_that_was_given_up_holds_up_nobody():
    tally = a_tally(3, window=1, retries=0)
    assert [tally.give(0), tally.lose(0, again=True)] == [0, 0]
    assert tally.give(1) == 1


@given(st.data())
def test_whatever_dies_and_in_whatever_order_every_item_is_settled_once(data):
    count, retries = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 2))
    window = data.draw(st.one_of(st.none(), st.integers(1, 4)))
    tally, settled, serial = a_tally(count, retries=retries, window=window), [], 3
    workers = [0, 1, 2]
    while tally.open:
        for worker in workers:
            tally.give(worker)
        worker = data.draw(st.sampled_from(workers))
        held = list(tally.held_by(worker))
        if held and data.draw(st.booleans()):
            tally.settle(worker, held[0])
            settled.append(held[0])
        elif held:
            given_up = tally.lose(worker, again=data.draw(st.booleans()))
            settled += [] if given_up is None else [given_up]
            workers[workers.index(worker)] = serial
            serial += 1
    assert sorted(settled) == list(range(count))
    assert all(tally.deaths(number) <= retries + 1 for number in range(count))
