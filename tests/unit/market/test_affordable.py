"""The best set of bids that the money is enough for, beside one found by trying them all."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.market.affordable import MOST_STEPS, Candidate, Headroom, best_affordable, cheapest


def candidate(number, cost, most, *, provider=None, device=None, milli=1_000):
    owner = bytes([provider if provider is not None else number]) * 20
    parts = Counter({(owner, bytes([device if device is not None else number]) * 32): milli})
    return Candidate(bid=bytes([number]) * 32, provider=owner, cost=cost, most=most, parts=parts)


def in_order(candidates):
    return sorted(candidates, key=lambda one: (one.cost, one.bid))


def stands(taken, room):
    sold, had = Counter(room.sold), Counter(room.had)
    for one in taken:
        sold.update(one.parts)
        had[one.provider] += 1
    each = not room.most_each or all(count <= room.most_each for count in had.values())
    return each and all(milli <= 1_000 for milli in sold.values())


def brute(candidates, count, funds, room):
    sets = [
        taken
        for taken in combinations(candidates, count)
        if stands(taken, room) and sum(one.most for one in taken) <= funds
    ]
    return min((sum(one.cost for one in taken) for taken in sets), default=None)


@st.composite
def markets(draw):
    size = draw(st.integers(0, 9))
    found = [
        candidate(
            number,
            draw(st.integers(0, 12)),
            draw(st.integers(0, 12)),
            provider=draw(st.integers(0, 3)),
            device=draw(st.integers(0, 4)),
            milli=draw(st.sampled_from((250, 500, 1_000))),
        )
        for number in range(size)
    ]
    room = Headroom(
        sold=Counter({(bytes([draw(st.integers(0, 3))]) * 20, bytes([draw(st.integers(0, 4))]) * 32): 500}),
        had={bytes([draw(st.integers(0, 3))]) * 20: 1},
        most_each=draw(st.integers(0, 3)),
    )
    return in_order(found), draw(st.integers(1, 5)), draw(st.integers(0, 40)), room


@settings(max_examples=400, deadline=None)
@given(markets())
def test_it_is_what_trying_all_sets_finds_unless_the_best_ones_can_be_paid_as_they_come(market):
    candidates, count, funds, room = market
    found = best_affordable(candidates, count, funds, room)
    best = brute(candidates, count, funds, room)
    if found is None:
        assert best is None
        return
    assert stands(found, room)
    assert len({one.bid for one in found}) == count
    assert sum(one.most for one in found) <= funds
    assert best is not None
    simple = all(one.parts.total() == 1_000 for one in candidates) and not room.most_each
    apart = len({device for one in candidates for device in one.parts}) == len(candidates)
    if simple and apart:
        assert sum(one.cost for one in found) == best
    else:
        # The best bids, one after the other, are taken where they can be paid: what stands in each other's way is not
        # weighed then, as it never was.
        taken = brute_first(candidates, count, room)
        assert sum(one.cost for one in found) == best or list(found) == taken


def brute_first(candidates, count, room):
    taken = []
    for one in candidates:
        if len(taken) < count and stands((*taken, one), room):
            taken.append(one)
    return taken


def test_a_larger_set_that_scores_better_and_is_too_dear_does_not_keep_another_from_winning():
    eight, two = candidate(1, 90, 800), candidate(2, 100, 200)
    assert best_affordable([eight, two], 1, 799, Headroom()) == (two,)
    assert best_affordable([eight, two], 1, 800, Headroom()) == (eight,)
    assert best_affordable([eight, two], 1, 199, Headroom()) is None


def test_of_those_that_can_be_paid_it_is_the_best_and_not_the_cheapest():
    ones = [
        candidate(1, 10, 100),
        candidate(2, 11, 60),
        candidate(3, 12, 50),
        candidate(4, 50, 10),
        candidate(5, 60, 5),
    ]
    assert [one.cost for one in best_affordable(ones, 2, 150, Headroom())] == [10, 12]
    assert [one.cost for one in best_affordable(ones, 2, 115, Headroom())] == [11, 12]


@pytest.mark.parametrize("shards", [8, 32])
def test_a_flood_of_bids_takes_bounded_steps_and_a_set_that_can_be_paid_is_found(shards):
    ones = in_order(
        [
            Candidate(
                bid=number.to_bytes(32, "big"),
                provider=number.to_bytes(20, "big"),
                cost=1_000_000 - 997 * number + number * number % 101,
                most=500_000 + 1_013 * number + number * number % 97,
                parts=Counter({(b"", number.to_bytes(32, "big")): 1_000}),
            )
            for number in range(500)
        ]
    )
    least = sum(one.most for one in cheapest(ones, shards, Headroom()))
    assert best_affordable(ones, shards, least - 1, Headroom()) is None
    assert best_affordable(ones, shards, least, Headroom()) is not None
    found = best_affordable(ones, shards, least * 5 // 4, Headroom())
    assert sum(one.most for one in found) <= least * 5 // 4
    assert sum(one.cost for one in found) < sum(one.cost for one in cheapest(ones, shards, Headroom()))
    assert MOST_STEPS == 20_000


class Counted(Sequence):
    """The bids, and how often one of them was looked at by its place."""

    def __init__(self, ones):
        self.ones, self.looks = ones, 0

    def __len__(self):
        return len(self.ones)

    def __getitem__(self, at):
        self.looks += isinstance(at, int)
        return self.ones[at]


def test_bids_that_stand_in_each_others_way_are_steps_too():
    """A few accounts bid the same device many times: no two can be taken together, and each must still be counted."""
    same = [candidate(number % 7, 1_000 + number, 1, device=9) for number in range(56)]
    dear = [candidate(100 + number % 8, 1_100 + number, 10**9, provider=number % 150) for number in range(320)]
    honest = [candidate(200 + number, 9_000 + number, 100) for number in range(8)]
    ones = Counted(in_order([*same, *dear, *honest]))
    found = best_affordable(ones, 8, 880, Headroom())
    assert found is not None
    assert len(found) == 8
    assert ones.looks <= MOST_STEPS + 30 * len(ones)


def test_a_job_of_a_thousand_shards_is_filled_where_its_best_bids_are_a_little_too_dear():
    ones = [
        Candidate(
            bid=number.to_bytes(32, "big"),
            provider=bytes([number % 50]) * 20,
            cost=1_000 + number,
            most=2_000 - number,
            parts=Counter({(b"", number.to_bytes(32, "big")): 1_000}),
        )
        for number in range(1_000)
    ]
    for shards in (300, 980):
        funds = sum(one.most for one in ones[:shards]) - 1
        found = best_affordable(ones, shards, funds, Headroom())
        assert len(found) == shards
        assert sum(one.most for one in found) <= funds


def test_no_provider_gets_more_shards_than_a_job_lets_it_have():
    ones = [candidate(number, number, 1, provider=number // 3) for number in range(9)]
    found = best_affordable(ones, 3, 100, Headroom(most_each=1))
    assert [one.cost for one in found] == [0, 3, 6]
    assert best_affordable(ones, 4, 100, Headroom(most_each=1)) is None
    assert [one.cost for one in best_affordable(ones, 4, 100, Headroom(most_each=2))] == [0, 1, 3, 4]
    held = Headroom(most_each=1, had={bytes(20): 1})
    assert [one.cost for one in best_affordable(ones, 2, 100, held)] == [3, 6]
