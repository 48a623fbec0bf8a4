"""A forged message takes nothing from its author: neither its number nor its voice."""

import os

import pytest
import trio
from kit.memory_party import key
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import NetConfig, Verdict
from hansa.proto.peer_id import peer_id_of_key

pytestmark = pytest.mark.trio
TOPIC = "/hansa/topic/1"


async def test_who_forges_an_authors_next_number_does_not_silence_it() -> None:
    async with open_net(NetConfig(), os.urandom(32)) as author, open_net(NetConfig(), os.urandom(32)) as node:
        author.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        heard = node.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        await node.connect(author.addrs()[0])
        with trio.fail_after(30):
            while True:
                await author.publish(TOPIC, b"are you there?")
                with trio.move_on_after(1):
                    await heard.receive()
                    break
        number = (author._stack.pubsub.counter + 1).to_bytes(8, "big")
        forged = rpc_pb2.Message(
            from_id=ID.from_base58(author.peer_id).to_bytes(),
            seqno=number,
            topicIDs=[TOPIC],
            data=b"what it never said",
            signature=bytes(70),
        )
        forger = peer_id_of_key(key(52_600).secret())
        await node._stack.pubsub.push_msg(ID.from_base58(forger), forged)
        await author.publish(TOPIC, b"what it says")
        with trio.fail_after(20):
            said = b"are you there?"
            while said == b"are you there?":
                _, said = await heard.receive()
        assert said == b"what it says"
