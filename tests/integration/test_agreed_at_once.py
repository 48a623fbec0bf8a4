"""Requests in one piece are agreed on without the library; whatever comes otherwise is still left to it."""

import os

import pytest
import trio
from libp2p.peer.id import ID

from hansa.node.network.libp2p_host import open_net
from hansa.node.network.libp2p_requests import MULTISTREAM, header_line
from hansa.node.network.net import NetConfig, NotSpoken

pytestmark = pytest.mark.trio
ECHO = "/hansa/echo/1"
OLDER = "/hansa/echo/0"
REQUEST = b"\0\0\0\5hello"
ANSWER = b"\0\0\0\0\5hello"


async def echo(_context, data: bytes) -> bytes:
    return data


class Pair:
    """A node that asks and one that answers, which counts what it leaves to the library."""

    def __init__(self, asking, answering) -> None:
        self.asking, self.answering = asking, answering
        self.left = 0
        answering.serve(ECHO, echo, older=(OLDER,))
        library = answering._swarm.common_stream_handler

        async def counted(stream) -> None:
            self.left += 1
            await library(stream)

        answering._swarm.common_stream_handler = counted

    async def say(self, *pieces: bytes, until: bytes) -> bytes:
        """On a stream of its own, one frame after the other; gives what came up to what is waited for."""
        muxed = self.asking._swarm.live_connections(ID.from_base58(self.answering.peer_id))[0].muxed_conn
        stream = await muxed.open_stream()
        heard = b""
        with trio.fail_after(20):
            for piece in pieces:
                await stream.write(piece)
                await trio.sleep(0.2)
            while not heard.endswith(until):
                heard += await stream.read(1_000)
        stream.abort()
        return heard


@pytest.fixture
async def pair():
    async with open_net(NetConfig(), os.urandom(32)) as asking, open_net(NetConfig(), os.urandom(32)) as answering:
        made = Pair(asking, answering)
        await asking.connect(answering.addrs()[0])
        with trio.fail_after(20):
            while not answering.is_live(asking.peer_id):  # noqa: ASYNC110
                await trio.sleep(0.01)
        await trio.sleep(0.3)  # gossip opens its streams
        made.left = 0
        yield made


async def test_a_request_in_one_piece_is_answered_without_the_library(pair):
    for data in (b"", b"hello", bytes(50_000)):
        assert await pair.asking.request(pair.answering.peer_id, ECHO, data) == data
    assert await pair.asking.request(pair.answering.peer_id, OLDER, b"old") == b"old"
    assert pair.left == 0
    connection = pair.answering._swarm.live_connections(ID.from_base58(pair.asking.peer_id))[0].muxed_conn
    assert connection.budget.held_bytes == 0
    assert pair.answering.counters()[f"serve.older {ECHO}"] == 1


async def test_both_ways_say_the_same_on_the_wire(pair):
    greeting, proposal = header_line(MULTISTREAM), header_line(ECHO)
    ways = [(greeting + proposal + REQUEST,), (greeting, proposal, REQUEST), (greeting + proposal, REQUEST)]
    heard = [await pair.say(*pieces, until=ANSWER) for pieces in ways]
    assert heard == [greeting + proposal + ANSWER] * 3
    assert pair.left == 1  # where the greeting came alone


async def test_what_is_proposed_otherwise_is_left_to_the_library(pair):
    greeting, proposal = header_line(MULTISTREAM), header_line(ECHO)
    with pytest.raises(NotSpoken):
        await pair.asking.request(pair.answering.peer_id, "/hansa/unknown/1", b"")
    assert pair.left == 1
    said = await pair.say(greeting + header_line("/hansa/unknown/1") + proposal + REQUEST, until=ANSWER)
    assert said == greeting + header_line("na") + proposal + ANSWER
    # A length that is no line's, one that goes on, and a greeting without anything behind it.
    for odd in (greeting + b"\0", greeting + b"\xff\xff\xff", greeting + b"\x0e/hansa/echo/1", b"\x13nonsense"):
        muxed = pair.asking._swarm.live_connections(ID.from_base58(pair.answering.peer_id))[0].muxed_conn
        stream = await muxed.open_stream()
        await stream.write(odd)
        stream.finish()
    with trio.fail_after(20):
        while pair.left < 6:  # noqa: ASYNC110
            await trio.sleep(0.02)
    assert await pair.asking.request(pair.answering.peer_id, ECHO, b"still here") == b"still here"


async def test_a_handler_that_fails_costs_its_own_stream_only(pair):
    async def fail(_context, _data: bytes) -> bytes:
        raise ValueError("nobody thought of this")

    pair.answering.serve("/hansa/fails/1", fail)
    with pytest.raises(Exception, match="broke before"):
        await pair.asking.request(pair.answering.peer_id, "/hansa/fails/1", b"")
    assert await pair.asking.request(pair.answering.peer_id, ECHO, b"on") == b"on"
    assert pair.answering.counters()["serve.handler_failed /hansa/fails/1"] == 1
    connection = pair.answering._swarm.live_connections(ID.from_base58(pair.asking.peer_id))[0].muxed_conn
    with trio.fail_after(20):
        while connection._inbound > 1:  # noqa: ASYNC110  # gossip's
            await trio.sleep(0.02)
