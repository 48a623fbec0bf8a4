"""Relays and peers that strangers name do not fill the table of connections."""

import os
from contextlib import AsyncExitStack

import pytest
from kit.memory_party import key
from kit.waiting import until

from hansa.node.network.libp2p_host import Libp2pNet, open_net
from hansa.node.network.net import NetConfig, NetLimits, Unreachable
from hansa.proto.peer_id import peer_id_of_key

pytestmark = pytest.mark.trio


async def opened(stack: AsyncExitStack, count: int, **limits: int) -> list[Libp2pNet]:
    config = NetConfig(limits=NetLimits(**limits))
    return [await stack.enter_async_context(open_net(config, os.urandom(32))) for _ in range(count)]


def standing(net: Libp2pNet) -> int:
    return len(net._stack.swarm.get_connections())


async def test_relays_are_left_when_the_circuit_through_them_comes_to_nothing() -> None:
    async with AsyncExitStack() as stack:
        (teller, one, other, kept), (node,) = await opened(stack, 4), await opened(stack, 1)
        await node.connect(teller.addrs()[0])
        nobody = peer_id_of_key(key(52_500).secret())
        node.learn(nobody, tuple(each.addrs()[0] + "/p2p-circuit" for each in (one, other, kept)), teller.peer_id)
        node._acquaintances.book.kept.add(kept.peer_id)
        with pytest.raises(Unreachable):
            await node.connect(nobody)
        await until(lambda: not node.is_live(one.peer_id) and not node.is_live(other.peer_id))
        assert node.is_live(kept.peer_id)
        assert node.is_live(teller.peer_id)


async def test_who_is_dialled_on_hearsay_takes_a_part_of_the_table_and_no_more() -> None:
    async with AsyncExitStack() as stack:
        named, (teller, guest) = await opened(stack, 7), await opened(stack, 2)
        (node,) = await opened(stack, 1, connections=8)
        await node.connect(teller.addrs()[0])
        for each in named:
            node.learn(each.peer_id, each.addrs(), teller.peer_id)
            await node.connect(each.peer_id)
        await until(lambda: standing(node) <= 7)
        assert node.is_live(named[-1].peer_id)
        assert node.is_live(teller.peer_id)
        # The oldest idle one goes; which are idle hangs on how far each has come with making itself known.
        assert sum(not node.is_live(each.peer_id) for each in named) == 1
        await guest.connect(node.addrs()[0])
        await until(lambda: node.is_live(guest.peer_id))


async def test_relays_of_peers_that_the_operator_gave_count_as_named_by_strangers() -> None:
    async with AsyncExitStack() as stack:
        relays, (guest,), (node,) = (
            await opened(stack, 4),
            await opened(stack, 1),
            await opened(stack, 1, connections=4),
        )
        for number, some in ((52_501, relays[:2]), (52_502, relays[2:])):
            nobody = peer_id_of_key(key(number).secret())
            node.learn(nobody, tuple(each.addrs()[0] + "/p2p-circuit" for each in some))
            with pytest.raises(Unreachable):
                await node.connect(nobody)
        await guest.connect(node.addrs()[0])
        await until(lambda: node.is_live(guest.peer_id) and standing(node) == 1)


async def test_a_relay_that_the_operator_gave_itself_is_not_left() -> None:
    async with AsyncExitStack() as stack:
        (relay, other), (node,) = await opened(stack, 2), await opened(stack, 1)
        nobody = peer_id_of_key(key(52_503).secret())
        node.learn(relay.peer_id, tuple(addr.partition("/p2p/")[0] for addr in relay.addrs()))
        node.learn(nobody, tuple(each.addrs()[0] + "/p2p-circuit" for each in (relay, other)))
        with pytest.raises(Unreachable):
            await node.connect(nobody)
        await until(lambda: not node.is_live(other.peer_id))
        assert node.is_live(relay.peer_id)
