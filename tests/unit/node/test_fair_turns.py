"""Whose turn it is among strangers, and who is one too many."""

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from hansa.node.network.fair_turns import MOST_REMEMBERED, Turns
from hansa.node.network.neighbourhood import circles_of


@dataclass(frozen=True)
class One:
    host: str
    number: int

    @property
    def circles(self) -> tuple[str, ...]:
        return circles_of(self.host)


def some(*hosts: str) -> list[One]:
    return [One(host, number) for number, host in enumerate(hosts)]


def order(*hosts: str) -> list[str]:
    """In which order these have their turns."""
    turns, row = Turns(), some(*hosts)
    given = []
    while row:
        called = turns.next_of(row)
        row.remove(called)
        turns.note(called.circles)
        given.append(called.host)
    return given


def test_turns_go_round_among_families_then_regions_then_networks_then_households():
    assert order("203.0.113.1", "203.0.113.1", "203.0.113.2", "203.0.114.1", "198.51.100.1", "2a01:4f8::1") == [
        "203.0.113.1",
        "2a01:4f8::1",
        "198.51.100.1",
        "203.0.114.1",
        "203.0.113.2",
        "203.0.113.1",
    ]


def test_ipv6_is_divided_as_ipv4_is_and_has_no_more_turns_for_its_many_networks():
    six = [f"2a01:{number:x}::1" for number in range(1, 7)]
    assert order(*six, "203.0.113.1", "198.51.100.1", "192.0.2.1")[1:6:2] == [
        "203.0.113.1",
        "198.51.100.1",
        "192.0.2.1",
    ]


def test_who_is_one_too_many_is_of_the_largest_crowd_and_in_it_who_had_a_turn_last_or_came_last():
    turns = Turns()
    assert turns.dispensable(some("203.0.113.1", "203.0.113.2", "198.51.100.1")).host == "203.0.113.2"
    turns.note(circles_of("203.0.113.1"))
    assert turns.dispensable(some("203.0.113.1", "203.0.113.2", "198.51.100.1")).host == "203.0.113.1"
    assert turns.dispensable(some("203.0.113.1", "198.51.100.1", "2a01:4f8::1")).host == "203.0.113.1"
    twice = some("203.0.113.1", "203.0.113.2", "203.0.113.2", "198.51.100.1")
    assert turns.dispensable(twice) == twice[2]
    turns.note(circles_of("2a01:4f8::1"))
    mixed = some("relay", "203.0.113.1", "2a01:4f8::1", "192.0.2.1", "2a01:4f9::1")
    assert turns.dispensable(mixed).host == "2a01:4f8::1"
    assert turns.dispensable(some("203.0.113.1", "relay", "relay")).host == "relay"


def test_what_is_remembered_has_an_end_whatever_addresses_somebody_has():
    turns = Turns()
    for number in range(3 * MOST_REMEMBERED):
        turns.note(circles_of(f"2a01:{number:x}:{number:x}:{number:x}::1"))
    turns.note(circles_of("203.0.113.1"))
    assert max(len(had) for had in turns._last.values()) == MOST_REMEMBERED
    assert len(turns._last) == 7
    assert turns._last_of(circles_of("203.0.113.1")) == [3 * MOST_REMEMBERED + 1] * 4, "no other family puts it out"


def test_asking_whose_turn_it_is_remembers_nobody():
    turns = Turns()
    for number in range(100):
        turns.next_of(some(f"2a01:{number:x}::1"))
        turns.dispensable(some(f"2a01:{number:x}::1"))
    assert sum(len(had) for had in turns._last.values()) == 0


HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.sampled_from(["203.0.113.1", "relay 16Uiu2", "", "?"]),
)


@given(st.lists(HOSTS, min_size=1, max_size=30))
def test_among_any_strangers_each_has_a_turn_and_no_family_two_before_another_that_waits_has_one(hosts):
    given_turns = order(*hosts)
    assert sorted(given_turns) == sorted(hosts)
    families = [circles_of(host)[0] for host in given_turns]
    for at, (family, after) in enumerate(itertools.pairwise(families)):
        assert family != after or set(families[at:]) == {family}
