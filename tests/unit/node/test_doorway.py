"""Whose handshake begins when."""

import itertools
from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from hansa.node.network.doorway import MOST_ACQUAINTED, WAITING_S, Doorway
from hansa.node.network.net import NetLimits

LIMITS = NetLimits(handshakes_per_s=2, handshakes_at_once=4, network_handshakes_per_s=1, network_handshakes_at_once=3)


@pytest.fixture
def autojump_clock():
    return MockClock(autojump_threshold=0)


class House:
    """A doorway, and who got in after how long."""

    def __init__(self, limits: NetLimits = LIMITS, here: tuple[str, ...] = ()) -> None:
        self.counted: Counter[str] = Counter()
        self.came: list[tuple[str, float]] = []
        self.turned_away: list[str] = []
        self.door = Doorway(limits, lambda reason: self.counted.update([reason]), is_here=lambda who: who in here)

    async def come(self, who: str) -> None:
        began = trio.current_time()
        if await self.door.enter(who):
            self.came.append((who, trio.current_time() - began))
        else:
            self.turned_away.append(who)

    async def all_come(self, *whos: str) -> None:
        async with trio.open_nursery() as nursery:
            for who in whos:
                nursery.start_soon(self.come, who)
                await trio.testing.wait_all_tasks_blocked()


@pytest.mark.trio
async def test_a_crowd_comes_in_at_the_pace_and_what_would_wait_too_long_is_turned_away(autojump_clock):
    house = House()
    await house.all_come(*(f"203.0.{number}.1" for number in range(20)))
    assert [wait < 0.1 for _, wait in house.came] == [True] * 4 + [False] * 6
    assert max(wait for _, wait in house.came) <= WAITING_S + 1
    assert house.counted == {"inbound.too_fast": 10}
    assert [who for who, _ in house.came] == [f"203.0.{number}.1" for number in range(10)], "in a row"
    await trio.sleep(10)
    await house.all_come("203.0.113.1")
    assert house.came[-1] == ("203.0.113.1", 0)


@pytest.mark.trio
async def test_one_network_takes_its_part_and_no_more(autojump_clock):
    house = House()
    await house.all_come(*(f"93.184.216.{number}" for number in range(1, 11)))
    assert [round(wait) for _, wait in house.came] == [0, 0, 0, 1, 2, 3]
    assert house.counted == {"inbound.network_too_fast": 4}
    await house.all_come("198.51.100.1")
    assert house.came[-1] == ("198.51.100.1", 0)


@pytest.mark.trio
async def test_a_network_of_ipv6_takes_no_more_however_many_households_it_has(autojump_clock):
    house = House()
    await house.all_come(*(f"2a01:4f8:1:{number:x}::5" for number in range(10)))
    assert [round(wait) for _, wait in house.came] == [0, 0, 0, 1, 2, 3]
    assert house.counted == {"inbound.network_too_fast": 4}
    await house.all_come("2a01:4f8:2:1::5")
    assert house.came[-1] == ("2a01:4f8:2:1::5", 0)


@pytest.mark.trio
async def test_an_acquaintance_may_come_back_from_another_address_of_its_household(autojump_clock):
    house = House()
    house.door.remember("2a01:4f8:1:2::/64")
    crowd = [f"2a01:4f8:{number:x}:1::1" for number in range(0x10, 0x1A)]
    await house.all_come(*crowd, "2a01:4f8:1:2::7", "2a01:4f8:1:3::7")
    assert house.turned_away == ["2a01:4f8:1:3::7"]


@pytest.mark.trio
@pytest.mark.parametrize("remembered", [True, False])
async def test_a_flood_of_new_names_keeps_no_acquaintance_out(autojump_clock, remembered):
    house = House(here=() if remembered else ("192.0.2.1",))
    if remembered:
        house.door.remember("192.0.2.1")
    await house.all_come(*(f"192.0.{number}.1" for number in range(10, 20)), "192.0.2.1", "192.0.2.2")
    assert house.turned_away == ["192.0.2.2"]


@pytest.mark.trio
async def test_whoever_was_here_does_not_wait_behind_strangers_but_may_not_come_without_end(autojump_clock):
    house = House(here=("203.1.2.1",))
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(house.come, f"203.0.{number}.1")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            await house.come("203.1.2.1")
        assert house.came[-3:] == [("203.1.2.1", 0)] * 3
        await house.come("203.1.2.1")
        assert house.came[-1][1] > 0, "it is one of the crowd again"


@pytest.mark.trio
async def test_whoever_did_wrong_is_an_acquaintance_no_more_and_few_are_remembered(autojump_clock):
    house = House()
    for number in range(MOST_ACQUAINTED + 5):
        house.door.remember(f"2001:db8:{number:x}::/64")
    assert len(house.door._remembered) == MOST_ACQUAINTED
    house.door.remember("192.0.2.1")
    house.door.forget("192.0.2.1")
    await house.all_come(*(f"192.0.{number}.1" for number in range(10, 20)), "192.0.2.1")
    assert house.turned_away == ["192.0.2.1"]


@pytest.mark.trio
async def test_somebody_who_gives_up_waiting_leaves_the_row(autojump_clock):
    house = House()
    await house.all_come(*(f"203.0.{number}.1" for number in range(4)))
    for number in range(30):
        with trio.move_on_after(0.01):
            await house.come(f"198.51.{number}.1")
    assert not house.counted
    assert not house.door._row


@pytest.mark.trio
async def test_a_newcomer_takes_no_turn_of_one_who_waits(autojump_clock):
    house = House()
    await house.all_come(*(f"203.0.{number}.1" for number in range(4)))
    async with trio.open_nursery() as nursery:
        await trio.sleep(0.3)
        nursery.start_soon(house.come, "198.51.100.1")
        await trio.sleep(0.25)
        nursery.start_soon(house.come, "198.51.101.1")
    assert [who for who, _ in house.came[4:]] == ["198.51.100.1", "198.51.101.1"]


FLOODS = {
    "a network": ("93.184.216.1", *(f"93.184.216.{number}" for number in range(2, 255))),
    "a region": tuple(f"93.184.{number}.{number}" for number in range(1, 255)),
    "regions of IPv6": tuple(f"2a01:{number:x}:1:1::5" for number in range(1, 255)),
    "loopback": tuple(f"127.0.0.{number}" for number in range(1, 255)),
    "a relay": ("relay 16Uiu2HAmOne",),
    "two families": ("93.184.216.1", "2a01:4f8:1:1::5"),
}


@pytest.mark.trio
@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("newcomer", ["198.51.100.7", "127.9.4.7", "2a02:8:1:1::5", "relay 16Uiu2HAmOther"])
async def test_a_flood_of_some_networks_leaves_who_comes_from_another_the_next_turn(autojump_clock, flood, newcomer):
    """Which of IPv4 and IPv6 it has makes no difference, nor how many addresses and networks the flood has of one."""
    if flood == "regions of IPv6" and newcomer == "2a02:8:1:1::5":
        newcomer = "93.184.216.34"
    house = House(NetLimits(handshakes_per_s=10, handshakes_at_once=64))
    async with trio.open_nursery() as nursery:

        async def besiege() -> None:
            for who in itertools.cycle(FLOODS[flood]):
                nursery.start_soon(house.come, who)
                await trio.sleep(1 / 100)

        nursery.start_soon(besiege)
        await trio.sleep(10)
        for _ in range(3):
            had = len(house.came)
            await house.come(newcomer)
            assert newcomer not in house.turned_away
            took_s = next(took for who, took in house.came[had:] if who == newcomer)
            assert took_s < 0.35, "a turn of the other parties each, at most"
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert sum(who != newcomer for who, _ in house.came) <= 64 + 10 * 16, "and the pace is kept"


@pytest.mark.trio
@pytest.mark.parametrize("flood", ["a network", "loopback"])
async def test_in_a_network_that_floods_it_is_the_turn_of_those_who_had_none(autojump_clock, flood):
    house = House(NetLimits(handshakes_per_s=10, handshakes_at_once=64))
    *crowd, newcomer = FLOODS[flood][:60]
    async with trio.open_nursery() as nursery:

        async def besiege() -> None:
            for who in itertools.cycle(crowd):
                nursery.start_soon(house.come, who)
                await trio.sleep(1 / 100)

        nursery.start_soon(besiege)
        await trio.sleep(25)
        await house.come(newcomer)
        assert newcomer not in house.turned_away
        nursery.cancel_scope.cancel()
    assert [round(took, 1) <= 0.5 for who, took in house.came if who == newcomer] == [True]


@pytest.mark.trio
async def test_nobody_waits_for_long_even_where_others_always_go_first(autojump_clock):
    house = House(NetLimits(handshakes_per_s=10, handshakes_at_once=1))
    with trio.move_on_after(20):
        async with trio.open_nursery() as nursery:
            for number in itertools.count():
                nursery.start_soon(house.come, f"2a01:{number:x}:1:1::5")
                if number % 20 == 0:
                    nursery.start_soon(house.come, "2a01:0:1:1::5")
                await trio.sleep(1 / 100)
    assert max(took for _, took in house.came) <= WAITING_S + 0.2
    assert not house.door._row
