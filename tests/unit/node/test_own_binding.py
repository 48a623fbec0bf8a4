"""A node that runs for longer than its binding holds, or whose clock is set, is known to its peers all the same."""

import pytest
import trio
from kit.memory_net import MemoryHub
from kit.memory_party import Party, key, now_ms, party

from hansa.node.messaging.directory import Directory
from hansa.node.messaging.own_binding import BEFORE_MS, LIFE_MS, OwnBinding
from hansa.node.network.net import Refused
from hansa.proto.binding import Role, holds_at
from hansa.proto.codec import encode
from hansa.proto.protocols import HELLO

pytestmark = pytest.mark.trio

DAY_S = 24 * 3_600
HOUR_MS = 3_600_000


class Clock:
    """UTC by trio's clock, and wrong by as much as somebody set it."""

    off_ms = 0

    def __call__(self) -> int:
        return now_ms() + self.off_ms


def own_binding(some: Party, clock: Clock) -> OwnBinding:
    return OwnBinding(some.account, some.node, roles=Role.BUYER, spend_limit=1, now_ms=clock)


def lives_long(some: Party, clock: Clock) -> OwnBinding:
    """Give a party a binding as a daemon has one."""
    own = own_binding(some, clock)
    some.directory = Directory(some.net, own.hello, clock)
    some.directory.serve()
    return own


async def renew(some: Party, own: OwnBinding) -> bool:
    """What the daemon's chore does."""
    if not own.renew_if_due():
        return False
    await some.directory.introduce(own.hello, some.net.phases())
    return True


@pytest.mark.parametrize("days", [(16, 31), (14, 28, 42, 56, 70)])
async def test_after_more_days_than_a_binding_holds_two_nodes_know_each_other(
    days: tuple[int, ...], autojump_clock: trio.abc.Clock
) -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2) as two:
        clock = Clock()
        owns = [(each, lives_long(each, clock)) for each in (one, two)]
        one.knows(two)
        two.knows(one)
        await one.directory.meet(two.peer_id)
        begin_s = trio.current_time()
        for day in days:
            await trio.sleep_until(begin_s + day * DAY_S)
            for each, own in owns:
                await renew(each, own)
                assert holds_at(own.hello.binding, clock())
            assert one.directory.account_of(two.peer_id) == two.account.address, "no request fails meanwhile"
            assert await two.directory.meet(one.peer_id) == one.account.address
        assert one.strikes(two) == two.strikes(one) == 0


async def test_it_is_signed_anew_at_half_its_life_and_whenever_it_lies_in_the_future() -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one:
        clock = Clock()
        own = own_binding(one, clock)
        first = own.hello
        for off_ms, due in ((0, False), (LIFE_MS // 2 - 1_000, False), (-29_000, False), (-HOUR_MS, True)):
            clock.off_ms = off_ms
            assert own.renew_if_due() is due, off_ms
        assert own.hello.binding.not_before <= clock() - BEFORE_MS + 1_000
        clock.off_ms += LIFE_MS // 2 + 1_000
        assert own.renew_if_due()
        assert own.hello.binding.epoch > first.binding.epoch
        assert own.hello.account_signature != first.account_signature


@pytest.mark.parametrize("off_ms", [HOUR_MS, -LIFE_MS - HOUR_MS])
async def test_a_wrong_clock_is_no_strike_and_once_it_is_right_all_is_well(off_ms: int) -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one, party(hub, 2) as two:
        clock = Clock()
        clock.off_ms = off_ms
        own = lives_long(two, clock)
        one.knows(two)
        two.knows(one)
        with pytest.raises(Refused, match="clocks differ"):
            await two.net.request(one.peer_id, HELLO, encode(own.hello))
        assert one.strikes(two) == two.strikes(one) == 0
        assert sum(one.directory.counters.values()) > 0
        clock.off_ms = 0
        await renew(two, own)
        assert await two.directory.meet(one.peer_id) == one.account.address
        assert await one.directory.meet(two.peer_id) == two.account.address
        assert one.strikes(two) == two.strikes(one) == 0


async def test_the_keys_are_the_same_and_only_the_dates_are_new() -> None:
    hub = MemoryHub()
    async with party(hub, 1) as one:
        clock = Clock()
        own = own_binding(one, clock)
        clock.off_ms = LIFE_MS
        before = own.hello.binding
        assert own.renew_if_due()
        after = own.hello.binding
        assert (after.account, after.peer_id, after.roles) == (before.account, before.peer_id, before.roles)
        assert after.account == key(1).address
