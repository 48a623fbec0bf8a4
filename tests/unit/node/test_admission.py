"""Who has a place, and who makes room for whom."""

from collections import Counter

from hansa.node.network.admission import LEAST_PART, Admission, Ticket
from hansa.node.network.fair_turns import Turns
from hansa.node.network.neighbourhood import circles_of
from hansa.node.network.net import NetLimits


def test_admission_counts_each_place_once_and_gives_it_back():
    counted: Counter[str] = Counter()
    limits = NetLimits(connections=4, connections_per_ip=2, pending_handshakes=2, pending_handshakes_per_ip=1)
    door = Admission(limits, lambda reason: counted.update([reason]), Turns())
    first = door.enter("a")
    assert first is not None
    assert door.enter("a") is None
    door.admit(first)
    second, third = door.enter("a"), door.enter("b")
    assert second is not None
    assert third is not None
    assert door.enter("c") is None
    door.admit(second)
    door.leave(third)
    assert door.enter("a") is None
    fourth = door.enter("b")
    assert fourth is not None
    door.admit(fourth)
    fifth = door.enter("c")
    assert fifth is not None
    assert door.enter("d") is None
    assert counted == {
        "inbound.ip_pending_full": 1,
        "inbound.pending_full": 1,
        "inbound.ip_full": 1,
        "inbound.full": 1,
    }
    for ticket in (first, second, fourth, fifth):
        door.leave(ticket)
    assert not door._standing
    assert not door._pending


class House:
    """Places, and who was put out of them."""

    def __init__(self, *, others: int = 0, **limits: int) -> None:
        self.counted: Counter[str] = Counter()
        self.turns = Turns()
        self.out: list[str] = []
        self.places = Admission(
            NetLimits(connections_per_ip=1000, pending_handshakes_per_ip=1000, **limits),
            lambda reason: self.counted.update([reason]),
            self.turns,
            lambda: others,
        )

    def come(self, host: str, *, proven: bool = False, kept: bool = False) -> Ticket | None:
        ticket = self.places.enter(host)
        if ticket is not None:

            def put_out() -> None:
                self.out.append(host)
                self.places.leave(ticket)

            ticket.put_out, ticket.is_kept = put_out, lambda: kept
            if proven:
                self.places.admit(ticket)
        return ticket


def test_a_crowd_that_proves_nothing_leaves_who_comes_from_another_network_a_place():
    house = House(pending_handshakes=4)
    for number in range(4):
        house.come(f"127.0.0.{number}")
    assert house.come("127.0.0.9") is None, "of the crowd who came last"
    assert house.come("127.9.0.1") is not None
    assert house.come("2a01:4f8::1") is not None
    assert house.out == ["127.0.0.3", "127.0.0.2"]
    assert house.counted == {"inbound.pending_full": 1, "inbound.pending_put_out": 2}
    assert house.places._pending.total() == 4


def test_in_a_crowd_who_had_no_turn_takes_the_place_of_who_had_one():
    house = House(pending_handshakes=2)
    for host in ("127.0.0.1", "127.0.0.2"):
        house.turns.note(circles_of(host))
        house.come(host)
    assert house.come("127.0.0.3") is not None
    assert house.out == ["127.0.0.2"]


def test_whoever_goes_in_this_very_turn_is_put_out_once():
    house = House(pending_handshakes=4)
    tickets = [house.places.enter("127.0.0.1") for _ in range(4)]
    for each in ("127.9.0.1", "127.10.0.1", "127.11.0.1"):
        assert house.places.enter(each) is not None
    assert [each.is_out for each in tickets if each is not None] == [False, True, True, True]


def test_a_full_house_makes_room_for_a_network_that_has_less_than_half_of_the_largest():
    house = House(connections=16)
    for number in range(16):
        house.come(f"127.0.0.{number}", proven=True)
    for number in range(1, 7):
        assert house.come(f"127.9.0.{number}", proven=True) is not None
    assert house.out == [f"127.0.0.{number}" for number in range(15, 9, -1)], "the newest first"
    assert house.come("127.9.0.9") is None
    assert house.counted["inbound.full"] == 1
    assert house.places._standing.total() == 16


def test_a_house_that_is_full_of_many_small_networks_stays_as_it_is():
    house = House(connections=2 * LEAST_PART)
    for number in range(2 * LEAST_PART):
        house.come(f"127.0.{number % 2}.{number}", proven=True)
    assert house.come("127.9.0.1") is None
    assert not house.out


def test_who_proves_nothing_puts_nobody_out_who_has_and_who_is_kept_stays():
    house = House(connections=16)
    for number in range(16):
        house.come(f"127.0.0.{number}", proven=True, kept=number > 2)
    first = house.come("127.9.0.1")
    assert first is not None
    assert not house.out
    house.places.admit(first)
    assert house.out == ["127.0.0.2"]


def test_connections_that_we_made_count_for_a_full_house():
    house = House(connections=16, others=5)
    for number in range(11):
        house.come(f"127.0.0.{number}", proven=True)
    assert not house.out
    house.come("127.9.0.1", proven=True)
    assert house.out == ["127.0.0.10"]
