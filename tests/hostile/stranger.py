"""A stranger with a connection of its own, who says something on streams and sees what becomes of them."""

import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from kit.peer_frames import PLAIN, bent, framed, hello_of, protobufs, requests
from kit.raw_peer import DATA, FIN, RST, SYN, WINDOW, RawPeer, frame, line, raw_peer
from libp2p.peer.id import ID

from hansa.proto.protocols import HELLO

STEP_BYTES = 60_000
WINDOW_BYTES = 250 << 10
NEIGHBOURS_FROM = 201
"""The last part of an address from here on is an honest neighbour's of those who attack from some networks."""


class Stranger:
    """Who it is, and what it can say."""

    def __init__(self, peer: RawPeer, hello: bytes) -> None:
        """Over a connection that is multiplexed already."""
        self.peer, self._next = peer, 1
        own = ID.from_pubkey(peer.keys.public_key)
        self.bodies = {**requests(hello), **protobufs(own, ID.from_base58(peer.node)), **PLAIN}
        self.hello = hello

    async def say(self, protocol: str, data: bytes, *, ends: bool = True) -> int:
        """Open a stream and say this on it; the window is kept to. Answers the stream's number."""
        stream_id, self._next = self._next, self._next + 2
        said = (line(b"/multistream/1.0.0") + line(protocol.encode()) + data)[:WINDOW_BYTES]
        await self.peer.open(stream_id)
        for start in range(0, len(said), STEP_BYTES):
            part = said[start : start + STEP_BYTES]
            await self.peer.send(frame(DATA, 0, stream_id, len(part)) + part)
        if ends:
            await self.peer.send(frame(WINDOW, FIN, stream_id, 0))
        return stream_id

    async def await_ends(self, streams: Sequence[int], within_s: float) -> dict[int, bytes]:
        """Read until the node has ended these streams or hung up; what the node asks of us is refused."""
        heard = dict.fromkeys(streams, b"")
        open_ones = set(streams)
        with trio.move_on_after(within_s), contextlib.suppress(Exception):
            while open_ones:
                kind, flags, stream_id, _, body = await self.peer.next_frame()
                if stream_id in heard and kind == DATA:
                    heard[stream_id] += body
                if flags & (FIN | RST):
                    open_ones.discard(stream_id)
                if flags & SYN and stream_id % 2 == 0 and stream_id:
                    await self.peer.send(frame(WINDOW, RST, stream_id, 0))
        return heard

    async def prove_account(self) -> None:
        """As an honest node does first, so that what follows is looked into."""
        await self.await_ends([await self.say(HELLO, framed(HELLO, self.hello))], 5)

    def draw(self, protocol: str, chance: random.Random) -> bytes:
        """Something that an honest peer might have said there, with something wrong about it."""
        return framed(protocol, bent(chance.choice(self.bodies[protocol]), chance), chance)


def a_neighbour(chance: random.Random, networks: int = 0) -> str:
    """An address in the network of one of those, and none of them."""
    if not networks:
        return some_address(chance)
    return f"127.{1 + chance.randrange(networks)}.0.{chance.randrange(NEIGHBOURS_FROM, 255)}"


def some_address(chance: random.Random, networks: int = 0) -> str:
    """One of loopback's many: of the first so many networks of 24 bits, each in a region of its own; with 0 any."""
    if networks:
        return f"127.{1 + chance.randrange(networks)}.0.{1 + chance.randrange(NEIGHBOURS_FROM - 1)}"
    return ".".join(("127", *(str(2 + chance.randrange(248)) for _ in range(3))))


@asynccontextmanager
async def a_stranger(addr: str, source: str = "") -> AsyncIterator[Stranger]:
    """A new name each time, and any address if none is given."""
    async with raw_peer(addr, source=source or some_address(random.Random())) as peer:
        with trio.fail_after(10):
            await peer.mux()
        yield Stranger(peer, hello_of(peer.keys.private_key.to_bytes(), time.time_ns() // 1_000_000))
