"""The best set of bids whose shards wait for each other, beside one found by trying them all."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.market.affordable import Candidate, Headroom, best_affordable
from hansa.market.gang import MOST_WAYS, Company, best_gang, waiting, with_waiting
from hansa.market.scoring import MOST_TERM, Scored
from hansa.proto.units import format_amount

WORK_MS = 10_000
RICH = 1 << 60
ALONE = Company()


def candidate(number, cost, way_ms, *, hourly=100, most=1):
    owner = bytes([number]) * 20
    return Candidate(
        bid=bytes([number]) * 32,
        provider=owner,
        cost=cost,
        most=most,
        parts=Counter({(owner, bytes([number]) * 32): 1_000}),
        hourly=hourly,
        way_ms=way_ms,
    )


def gang_cost(taken, company=ALONE, work_ms=WORK_MS):
    for one in taken:
        company = company.with_member(one.hourly, one.way_ms)
    return sum(one.cost for one in taken) * work_ms + company.hourly * company.way_ms


def numbers(taken):
    return sorted(one.bid[0] for one in taken)


def best(candidates, count, funds=RICH, company=ALONE):
    ordered = sorted(candidates, key=lambda one: (one.cost, one.bid))
    return best_gang(ordered, count, funds, Headroom(), company=company, work_ms=WORK_MS)


def test_one_slow_line_is_passed_by_for_what_it_makes_the_others_wait():
    # The slow one is ten cheaper. Alone it would cost 100 x 1 s / 10 s more: as much. With three others it costs 40.
    fast = [candidate(number, 100, 0) for number in (1, 2, 3, 4)]
    slow = candidate(5, 89, 1_000)
    assert numbers(best([*fast, slow], 1)) == [5]
    assert numbers(best([*fast, slow], 2)) == [1, 2]


def test_where_one_must_be_slow_the_others_may_be_too():
    # Once a slow one is in the gang for want of others, a second slow line costs nothing more than its own price.
    slow = [candidate(1, 50, 5_000), candidate(2, 60, 5_000)]
    assert numbers(best([*slow, candidate(3, 100, 0)], 2)) == [1, 2]
    assert numbers(best([*slow, candidate(3, 70, 0), candidate(4, 70, 0)], 2)) == [3, 4]


def test_a_gang_that_runs_waits_for_who_joins_it():
    fast, slow = candidate(1, 100, 0), candidate(2, 60, 1_000)
    assert numbers(best([slow, fast], 1)) == [2]
    assert numbers(best([slow, fast], 1, company=Company(hourly=700))) == [1]
    # They wait as long already.
    assert numbers(best([slow, fast], 1, company=Company(hourly=700, way_ms=1_000))) == [2]


def test_who_joins_a_slow_gang_is_paid_for_waiting_however_fast_its_own_line_is():
    dear, cheap = candidate(1, 10, 0, hourly=200), candidate(2, 15, 0, hourly=100)
    assert numbers(best([dear, cheap], 1)) == [1]
    assert numbers(best([dear, cheap], 1, company=Company(hourly=0, way_ms=1_000))) == [2]


@st.composite
def markets(draw):
    found = [
        candidate(
            number,
            draw(st.integers(0, 40)),
            draw(st.sampled_from((0, 500, 1_000, 7_000))),
            hourly=draw(st.integers(1, 60)),
            most=draw(st.integers(0, 12)),
        )
        for number in range(draw(st.integers(0, 8)))
    ]
    company = Company(hourly=draw(st.integers(0, 200)), way_ms=draw(st.sampled_from((0, 800))))
    return found, draw(st.integers(1, 4)), draw(st.one_of(st.just(RICH), st.integers(0, 30))), company


@settings(max_examples=400, deadline=None)
@given(markets())
def test_it_is_what_trying_all_sets_finds(market):
    candidates, count, funds, company = market
    sets = [taken for taken in combinations(candidates, count) if sum(one.most for one in taken) <= funds]
    found = best(candidates, count, funds, company)
    if not sets:
        assert found is None
        return
    assert found is not None
    assert len(set(numbers(found))) == count
    assert sum(one.most for one in found) <= funds
    assert gang_cost(found, company) == min(gang_cost(taken, company) for taken in sets)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9_000)), min_size=40, max_size=120), st.integers(1, 6))
def test_with_more_lines_than_are_tried_it_is_never_worse_than_what_ignores_them(drawn, count):
    many = [candidate(number, *each) for number, each in enumerate(drawn)]
    ordered = sorted(many, key=lambda one: (one.cost, one.bid))
    found = best(many, count)
    assert found is not None
    assert gang_cost(found) <= gang_cost(best_affordable(ordered, count, RICH, Headroom()))
    assert gang_cost(found) <= gang_cost(sorted(many, key=lambda one: (one.way_ms, one.cost))[:count]) or (
        len({one.way_ms for one in many}) > MOST_WAYS
    )


def test_where_nothing_is_known_of_rounds_or_lines_it_is_the_best_by_themselves():
    candidates = [candidate(1, 10, 9_000), candidate(2, 20, 0)]
    assert numbers(best_gang(candidates, 1, RICH, Headroom(), company=ALONE, work_ms=0)) == [1]
    level = [replace(one, way_ms=0) for one in candidates]
    assert numbers(best_gang(level, 1, RICH, Headroom(), company=ALONE, work_ms=WORK_MS)) == [1]
    assert best_gang([], 1, RICH, Headroom(), company=ALONE, work_ms=WORK_MS) is None


def entry(one):
    return Scored(
        bid=one.bid,
        provider=one.provider,
        price_per_hour=format_amount(one.hourly),
        reliability_ppm=900_000,
        expected_cost=one.cost,
        excluded="",
        way_ms=one.way_ms,
    )


@settings(max_examples=300, deadline=None)
@given(markets())
def test_the_scores_of_the_chosen_add_up_to_the_gang_and_none_that_was_passed_by_scores_better(market):
    candidates, count, _, company = market
    found = best(candidates, count, RICH, company)
    if found is None:
        return
    taken = {one.bid for one in found}
    hourly = {one.bid: one.hourly for one in candidates}
    table = with_waiting([entry(one) for one in candidates], hourly, taken, company, WORK_MS)
    chosen = [row for row in table if row.bid in taken]
    beside = waiting(company.with_member(0, max(row.way_ms for row in chosen)), WORK_MS)
    whole = gang_cost(found, company) // WORK_MS
    assert abs(sum(row.expected_cost for row in chosen) + beside - whole) <= len(chosen) + 1
    dearest = max(row.expected_cost for row in chosen)
    # Each score is rounded down for itself.
    assert all(row.expected_cost + 1 >= dearest for row in table if row.bid not in taken)
    again = with_waiting(table, hourly, taken, company, WORK_MS)
    assert again == table


def test_whatever_the_lines_are_a_term_fits_where_it_is_written_down():
    one = replace(candidate(1, 10, 1 << 40), hourly=1 << 120)
    (row,) = with_waiting([entry(replace(one, hourly=1))], {one.bid: one.hourly}, [one.bid], ALONE, 1)
    assert row.rounds == MOST_TERM
