"""Nodes with one common acquaintance find each other."""

import os
from contextlib import AsyncExitStack

import pytest
import trio
from kit.memory_net import MemoryHub

from hansa.node.messaging.peer_exchange import TOLD_PEERS, KnownPeer, PeerExchange, PeersKnown
from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import Context, NetConfig, Verdict
from hansa.proto.codec import encode
from hansa.proto.peer_id import peer_id_of_key
from hansa.proto.protocols import PEERS

pytestmark = pytest.mark.trio
TOPIC = "/hansa/topic/1"


@pytest.fixture(params=["libp2p", "memory"])
def opener(request):
    return open_net if request.param == "libp2p" else MemoryHub().open_net


def live(net) -> set[str]:
    return {peer.peer_id for peer in net.peers() if peer.phase == "live"}


async def test_nodes_that_share_only_a_bootstrap_node_are_all_connected_within_seconds(opener, nursery):
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(opener(NetConfig(), os.urandom(32)))
        nursery.start_soon(PeerExchange(first).run)
        nets = [first]
        for _ in range(5):
            net = await stack.enter_async_context(opener(NetConfig(bootstrap=first.addrs()), os.urandom(32)))
            nursery.start_soon(PeerExchange(net).run)
            nets.append(net)
        heard = [net.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT) for net in nets]
        with trio.fail_after(10):
            while any(len(live(net)) < 5 for net in nets):  # noqa: ASYNC110
                await trio.sleep(0.02)
        # They dialled each other at the same time, so that some pairs have two connections: gossip must not mind.
        await trio.sleep(1.2)
        await nets[1].publish(TOPIC, b"to all")
        with trio.fail_after(4):
            for channel in heard[:1] + heard[2:]:
                assert (await channel.receive())[1] == b"to all"
        nursery.cancel_scope.cancel()


async def test_a_liar_who_names_many_peers_causes_few_dials_and_no_connection(opener, nursery):
    async with opener(NetConfig(), os.urandom(32)) as liar:
        lies = tuple(
            KnownPeer(peer_id=peer_id_of_key(os.urandom(32)), addrs=("/ip4/127.0.0.1/tcp/1",))
            for _ in range(TOLD_PEERS)
        )
        answer = encode(PeersKnown(peers=lies))

        async def lie(_context: Context, _data: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            return answer

        liar.serve(PEERS, lie)
        async with opener(NetConfig(bootstrap=liar.addrs()), os.urandom(32)) as net:
            nursery.start_soon(PeerExchange(net, connections=8).run)
            await trio.sleep(0.7)
            assert live(net) == {liar.peer_id}
            assert len(net.peers()) <= 8
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", [b"", b"garbage", encode(KnownPeer(peer_id="x", addrs=()))])
async def test_an_answer_that_is_none_is_a_strike(opener, nursery, answer):
    async def wrong(_context: Context, _data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return answer

    async with opener(NetConfig(), os.urandom(32)) as liar:
        liar.serve(PEERS, wrong)
        async with opener(NetConfig(bootstrap=liar.addrs()), os.urandom(32)) as net:
            nursery.start_soon(PeerExchange(net).run)
            with trio.fail_after(3):
                while net.counters().get("peers.malformed") != 1:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
