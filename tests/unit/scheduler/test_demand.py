"""What a provider was asked for: bounded, the newest counting most, and the same whenever it is folded again."""

from hypothesis import given
from hypothesis import strategies as st
from kit.trading import NOW_MS, needs

from hansa.market.shares import share_clause
from hansa.proto.market_documents import DeviceChoice
from hansa.scheduler.demand import HALF_LIFE_MS, MOST_KINDS, ONE, Demand, Kind, kinds_of, noted

SETS = (DeviceChoice(devices=8, model="H100"), DeviceChoice(devices=4, model="A100-80GB"))


def weights(demand):
    return {(one.kind.devices, one.kind.model): one.weight for one in demand.seen}


def test_a_tender_counts_once_whatever_it_asks_for():
    one = noted(Demand(), needs(devices=2), at_ms=NOW_MS)
    assert weights(one) == {(2, ""): ONE}
    two = noted(one, needs(choices=SETS, devices=8), at_ms=NOW_MS)
    assert weights(two) == {(2, ""): ONE, (8, "H100"): ONE // 2, (4, "A100-80GB"): ONE // 2}


def test_a_kind_knows_the_part_and_the_memory_that_was_asked_for():
    asked = needs(kind="gpu", clauses=(share_clause(250),), device_memory_bytes=1 << 30)
    assert kinds_of(asked) == (Kind(devices=1, share_milli=250, kind="gpu", memory_bytes=1 << 30),)


def test_what_was_asked_for_longer_ago_counts_less_and_then_nothing():
    old = noted(Demand(), needs(devices=1), at_ms=NOW_MS)
    later = noted(old, needs(devices=2), at_ms=NOW_MS + 2 * HALF_LIFE_MS)
    assert weights(later) == {(2, ""): ONE, (1, ""): ONE // 4}
    gone = noted(later, needs(devices=3), at_ms=NOW_MS + 10**9 * HALF_LIFE_MS)
    assert weights(gone) == {(3, ""): ONE}


def test_a_clock_that_went_back_makes_nothing_young_or_old():
    old = noted(Demand(), needs(devices=1), at_ms=NOW_MS)
    assert weights(noted(old, needs(devices=2), at_ms=1)) == {(1, ""): ONE, (2, ""): ONE}


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, HALF_LIFE_MS)), max_size=120))
def test_however_many_kinds_strangers_think_of_few_are_kept_and_the_newest_is_among_them(tenders):
    demand, at_ms = Demand(), NOW_MS
    for devices, pause_ms in tenders:
        at_ms += pause_ms
        demand = noted(demand, needs(devices=devices), at_ms=at_ms)
        assert len(demand.seen) <= MOST_KINDS
        assert (devices, "") in weights(demand)
        assert [one.weight for one in demand.seen] == sorted((one.weight for one in demand.seen), reverse=True)
        assert all(one.weight > 0 for one in demand.seen)
    assert sum(weights(demand).values()) <= 2 * len(tenders) * ONE


def test_a_new_kind_is_heard_of_beside_many_that_were_asked_for_often():
    demand = Demand()
    for devices in [*range(1, MOST_KINDS + 1)] * 3:
        demand = noted(demand, needs(devices=devices), at_ms=NOW_MS)
    assert (64, "") in weights(noted(demand, needs(devices=64), at_ms=NOW_MS))
