"""What a node hears is known to whoever is connected, whenever the one and the other began."""

import os

import pytest
from kit.waiting import until

from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import NetConfig, Verdict

pytestmark = pytest.mark.trio
LEFT, JOINED = "/hansa/left/1", "/hansa/joined/1"


async def test_who_connects_while_we_begin_and_cease_to_hear_learns_of_both():
    """What the library writes as it opens its stream to a neighbour may be old before the stream counts."""
    async with open_net(NetConfig(), os.urandom(32)) as node, open_net(NetConfig(), os.urandom(32)) as other:
        new_stream = node._host.new_stream

        async def changing_stream(*arguments):
            stream = await new_stream(*arguments)
            write = stream.write

            async def write_and_change(data: bytes) -> None:
                stream.write = write
                await write(data)
                node.unsubscribe(LEFT)
                node.subscribe(JOINED, lambda _context, _data: Verdict.ACCEPT)
                await until(lambda: set(node._pubsub.topic_ids) == {JOINED})

            stream.write = write_and_change
            return stream

        node.subscribe(LEFT, lambda _context, _data: Verdict.ACCEPT)
        await until(lambda: LEFT in node._pubsub.topic_ids)
        node._host.new_stream = changing_stream
        await other.connect(node.addrs()[0])
        await until(lambda: node.peer_id in other.listeners(JOINED), 20)
        await until(lambda: node.peer_id not in other.listeners(LEFT), 20)
