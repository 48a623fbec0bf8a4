"""What a choice cost or saved is what the money says: nothing is made better than it is."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from hansa.market.affordable import Headroom
from hansa.market.choice import compare, in_words
from hansa.market.gang import Company, waiting
from hansa.market.scoring import MOST_TERM, Scored
from hansa.proto.units import format_amount


def scored(number, price, expected, *, devices=1, excluded=""):
    return Scored(
        bid=bytes([number]) * 32,
        provider=bytes([number]) * 20,
        price_per_hour=format_amount(price),
        reliability_ppm=900_000,
        expected_cost=expected,
        excluded=excluded,
        devices=devices,
    )


def bid(number):
    return bytes([number]) * 32


def test_a_dearer_hour_that_is_expected_to_finish_sooner_says_so():
    ranking = (scored(1, 500_000, 600_000), scored(2, 400_000, 900_000), scored(3, 1_000_000, 1_200_000))
    found = compare(ranking, {bid(1)})
    assert (found.extra_hourly, found.saved, found.saved_against_mean) == (100_000, 300_000, 300_000)
    assert in_words(found, "USD") == (
        "0.50 USD an hour for 1 shard: 0.10 USD an hour more than the cheapest, and is expected to save 0.30 USD on as"
        " much work as an hour does; its expected cost is 0.30 USD below the mean of 3 bids."
    )


def test_what_cannot_win_is_no_cheaper_choice():
    ranking = (scored(1, 500_000, 600_000), scored(2, 100_000, 100_000, excluded="above the price ceiling"))
    found = compare(ranking, {bid(1)})
    assert (found.extra_hourly, found.eligible) == (0, 1)
    assert "there was no other bid" in in_words(found, "USD")
    assert compare(ranking, set()) is None


def test_the_hour_of_a_bid_is_that_of_all_its_devices():
    ranking = (scored(1, 100_000, 800_000, devices=8), scored(2, 300_000, 900_000, devices=2))
    found = compare(ranking, {bid(1)})
    assert (found.hourly, found.cheapest_hourly) == (800_000, 600_000)


def test_of_a_gang_that_waits_for_its_states_each_choice_is_reckoned_with_its_own_slowest_line():
    # 1 s of way to 10 s of work: a tenth of all that is paid for the hour.
    slow, fast, other = scored(1, 400_000, 400_000), scored(2, 500_000, 500_000), scored(3, 500_000, 510_000)
    slow = replace(slow, way_ms=1_000, rounds=90_000, expected_cost=490_000)
    found = compare((slow, fast, other), {bid(2), bid(3)}, work_ms=10_000)
    assert (found.expected, found.cheapest_expected) == (1_010_000, 400_000 + 500_000 + 90_000)
    # In two of the three sets the slow line is waited for.
    assert found.mean_expected == ((400_000 + 500_000 + 510_000) * 2 + 2 * 90_000) // 3
    beside = Company(hourly=1_000_000, way_ms=2_000)
    with_others = compare((slow, fast, other), {bid(2), bid(3)}, company=beside, work_ms=10_000)
    assert with_others.expected - found.expected == (1_000_000 + 1_000_000) // 5


def test_who_is_like_all_others_costs_what_the_mean_does_whoever_runs_beside_it():
    ranking = tuple(replace(scored(number, 10**6, 10**6), way_ms=60_000) for number in range(1, 5))
    for company in (Company(), Company(hourly=7_000_000, way_ms=60_000), Company(hourly=1 << 127, way_ms=1 << 63)):
        for count in range(1, 5):
            taken = {bid(number) for number in range(1, count + 1)}
            found = compare(ranking, taken, company=company, work_ms=600_000)
            assert (found.saved_against_mean, found.saved) == (0, 0)
            assert found.expected <= count * 10**6 + MOST_TERM


def test_who_costs_more_than_the_cheapest_in_the_end_says_so():
    ranking = (scored(1, 1_000_000, 1_000_000), scored(2, 1_100_000, 900_000), scored(3, 2_000_000, 1_500_000))
    found = compare(ranking, {bid(1), bid(3)})
    assert found.saved == -600_000
    assert "0.90 USD an hour more than the cheapest, and is expected to cost 0.60 USD more on as much" in in_words(
        found, "USD"
    )


def test_the_cheapest_is_a_set_that_could_have_been_taken():
    ranking = (scored(1, 1_000_000, 1_000_000), scored(2, 1_100_000, 900_000), scored(3, 2_000_000, 1_500_000))
    same = {bid(number): Counter({(b"p", b"d"): 1_000}) for number in (1, 2)}
    found = compare(ranking, {bid(1), bid(3)}, parts=same)
    assert (found.extra_hourly, found.saved) == (0, 0)
    of_one = tuple(replace(entry, provider=entry.provider if entry.bid == bid(3) else b"p" * 20) for entry in ranking)
    assert compare(of_one, {bid(1), bid(3)}, room=Headroom(most_each=1)).extra_hourly == 0
    # Where no such set is found there is nothing to compare with.
    assert compare(of_one, {bid(1), bid(2)}, room=Headroom(most_each=1), parts=same).extra_hourly <= 0


lines = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**5)), min_size=1, max_size=6)


@given(lines, st.integers(1, 6), st.integers(1, 10**5), st.builds(Company, hourly=st.just(777), way_ms=st.just(99)))
def test_the_mean_is_that_of_all_sets_of_as_many_bids(drawn, count, work_ms, company):
    ranking = [replace(scored(number, price, own), way_ms=way_ms) for number, (price, own, way_ms) in enumerate(drawn)]
    count = min(count, len(ranking))
    found = compare(ranking, {entry.bid for entry in ranking[:count]}, company=company, work_ms=work_ms)
    totals = []
    for gang in combinations(drawn, count):
        whole = company
        for price, _, way_ms in gang:
            whole = whole.with_member(price, way_ms)
        totals.append(sum(own for _, own, _ in gang) + waiting(whole, work_ms))
    # Each of those was rounded down by itself.
    assert sum(totals) // len(totals) <= found.mean_expected <= sum(totals) // len(totals) + 1


rows = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), st.booleans()), min_size=1, max_size=12)


@given(rows, st.data())
def test_whoever_takes_the_best_by_expected_cost_never_does_worse_than_the_mean(drawn, data):
    ranking = tuple(
        scored(number, price, expected, excluded="no" if excluded else "")
        for number, (price, expected, excluded) in enumerate(drawn)
    )
    eligible = sorted((entry for entry in ranking if not entry.excluded), key=lambda entry: entry.expected_cost)
    taken = {entry.bid for entry in eligible[: data.draw(st.integers(0, len(ranking)))]}
    found = compare(ranking, taken)
    assert (found is None) == (not taken)
    if found is not None:
        assert found.saved_against_mean >= 0
        assert found.saved >= 0
        assert found.extra_hourly >= 0
        assert in_words(found, "USD")
