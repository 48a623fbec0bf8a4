"""Each peer is asked with the newest number that it speaks; who does not speak that is asked with the one before."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from kit.memory_net import MemoryHub, MemoryNet
from kit.memory_party import now_ms

from hansa.node.messaging import spoken as spoken_module
from hansa.node.messaging.spoken import REMEMBERED_MS, NotInOlder, Spoken
from hansa.node.network.net import Context, NetConfig, NotSpoken, Refused, RemoteFault

NEW, OLD = "/hansa/tale/2", "/hansa/tale/1"
Answer = Callable[[Context, bytes], Awaitable[bytes]]
pytestmark = pytest.mark.trio


class Asked(MemoryNet):
    """Writes down what it asks."""

    asked: list[tuple[str, bool]]

    async def request(self, peer_id, protocol_id, data, **limits):
        self.asked.append((protocol_id, limits.get("agree_first", False)))
        return await super().request(peer_id, protocol_id, data, **limits)


@asynccontextmanager
async def asker_and_peer(*protocols: str, answer: Answer | None = None) -> AsyncIterator[tuple[Asked, MemoryNet]]:
    hub = MemoryHub()
    async with hub.open_net(NetConfig(), b"\x01" * 32) as one, hub.open_net(NetConfig(), b"\x02" * 32) as other:
        one.__class__, one.asked = Asked, []
        one.learn(other.peer_id, other.addrs())
        for each in protocols:
            speaks(other, each, answer)
        yield one, other


def speaks(net: MemoryNet, protocol_id: str, answer: Answer | None = None) -> None:
    async def echo(_context: Context, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return data

    net.serve(protocol_id, answer or echo)


def said(protocol_id: str) -> bytes:
    return f"as {protocol_id[-1]}".encode()


async def test_the_newest_number_is_asked_for_and_only_the_first_request_waits_for_a_yes(autojump_clock):
    async with asker_and_peer(NEW, OLD) as (one, other):
        spoken = Spoken(one, (NEW, OLD), now_ms)
        for _ in range(3):
            assert await spoken.request(other.peer_id, said) == b"as 2"
        assert one.asked == [(NEW, True), (NEW, False), (NEW, False)]


async def test_who_speaks_only_the_number_before_is_told_in_its_words_and_remembered(autojump_clock):
    async with asker_and_peer(OLD) as (one, other):
        spoken = Spoken(one, (NEW, OLD), now_ms)
        for _ in range(3):
            assert await spoken.request(other.peer_id, said) == b"as 1"
        assert one.asked == [(NEW, True), (OLD, True), (OLD, False), (OLD, False)]


async def test_who_was_upgraded_is_spoken_to_anew_after_a_while_however_often_it_was_asked_in_between(autojump_clock):
    async with asker_and_peer(OLD) as (one, other):
        spoken = Spoken(one, (NEW, OLD), now_ms)
        await spoken.request(other.peer_id, said)
        speaks(other, NEW)
        await trio.sleep(REMEMBERED_MS / 1000 - 1)
        assert await spoken.request(other.peer_id, said) == b"as 1"
        await trio.sleep(2)
        assert await spoken.request(other.peer_id, said) == b"as 2"


async def test_what_the_number_before_has_no_words_for_is_not_said(autojump_clock):
    def only_new(protocol_id: str) -> bytes | None:
        return b"news" if protocol_id == NEW else None

    async with asker_and_peer(OLD) as (one, other):
        spoken = Spoken(one, (NEW, OLD), now_ms)
        for _ in range(2):
            with pytest.raises(NotInOlder):
                await spoken.request(other.peer_id, only_new)
        assert one.asked == [(NEW, True)], "the second time it is known"
        assert await spoken.request(other.peer_id, said) == b"as 1"
        speaks(other, NEW)
        await trio.sleep(REMEMBERED_MS / 1000 + 1)
        assert await spoken.request(other.peer_id, only_new) == b"news"


async def test_who_speaks_no_number_at_all_refuses(autojump_clock):
    async with asker_and_peer() as (one, other):
        with pytest.raises(NotSpoken):
            await Spoken(one, (NEW, OLD), now_ms).request(other.peer_id, said)


async def test_who_no_longer_speaks_what_it_did_is_asked_with_the_others(autojump_clock):
    async with asker_and_peer(OLD) as (one, other):
        spoken = Spoken(one, (NEW, OLD), now_ms)
        await spoken.request(other.peer_id, said)
        del other._servers[OLD]
        speaks(other, NEW)
        assert await spoken.request(other.peer_id, said) == b"as 2"
        del other._servers[NEW]
        with pytest.raises(NotSpoken):
            await spoken.request(other.peer_id, said)
        speaks(other, OLD)
        one.asked.clear()
        assert await spoken.request(other.peer_id, said) == b"as 1"
        assert one.asked == [(NEW, True), (OLD, True)], "nothing is taken for known"


async def test_after_a_broken_stream_nothing_is_taken_for_known(autojump_clock):
    """Another program may have come up in its place, one that breaks off over what it does not speak."""
    failing = [False]

    async def answer(_context: Context, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        if failing[0]:
            raise ZeroDivisionError
        return data

    async with asker_and_peer(NEW, answer=answer) as (one, other):
        spoken = Spoken(one, (NEW, OLD), now_ms)
        await spoken.request(other.peer_id, said)
        failing[0] = True
        with pytest.raises(RemoteFault):
            await spoken.request(other.peer_id, said)
        failing[0] = False
        await spoken.request(other.peer_id, said)
        assert one.asked == [(NEW, True), (NEW, False), (NEW, True)]


async def test_a_no_is_an_answer_in_the_number_in_which_it_came(autojump_clock):
    async def no(_context: Context, _data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        raise Refused("busy: later")

    async with asker_and_peer(NEW, OLD, answer=no) as (one, other):
        spoken = Spoken(one, (NEW, OLD), now_ms)
        for _ in range(2):
            with pytest.raises(Refused, match="later"):
                await spoken.request(other.peer_id, said)
        assert one.asked == [(NEW, True), (NEW, False)]


async def test_what_is_remembered_has_an_end(autojump_clock, monkeypatch):
    monkeypatch.setattr(spoken_module, "MOST_REMEMBERED", 3)
    hub = MemoryHub()
    async with hub.open_net(NetConfig(), b"\x01" * 32) as one:
        spoken = Spoken(one, (NEW, OLD), now_ms)
        for number in range(2, 9):
            async with hub.open_net(NetConfig(), bytes([number]) * 32) as other:
                speaks(other, NEW)
                one.learn(other.peer_id, other.addrs())
                await spoken.request(other.peer_id, said)
        assert len(spoken._known) == 3
