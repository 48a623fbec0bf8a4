"""A stranger's bytes at every layer of a connection to a whole daemon: random ones, and sound ones with something bent.

At each layer it is seen that they came that far and were judged there, that nothing of ours fell over them, and that a
newcomer is served afterwards. What is said on a stream of each protocol is fuzzed more thoroughly in
``test_fuzz_protocols.py``.
"""

import contextlib
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hostile.stranger import Stranger, a_stranger, some_address
from hostile.verdicts import fallen_over, serves_the_honest
from kit.peer_frames import bent, framed, msgpack_bent
from kit.raw_peer import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW, frame, line, raw_peer
from kit.whole_daemon import a_whole_daemon

from hansa.node.daemon.daemon import Daemon
from hansa.proto.codec import decode
from hansa.proto.errors import ProtocolError
from hansa.proto.history import HISTORY
from hansa.proto.messages import Direct
from hansa.proto.protocols import BLOB, BOOK, HELLO, MARKET, PEERS

CONNECTIONS = 16
"""At each layer."""
AT_ONCE = 6
STREAMS = 8
"""On each connection, at the layers above the multiplexer."""
PATIENCE_S = 1.5
NEGOTIATION = line(b"/multistream/1.0.0")
ASKED = (HELLO, BOOK, PEERS, BLOB, HISTORY)

Attack = Callable[[str, random.Random], Awaitable[None]]


def client_hello() -> bytes:
    """What a client of TLS says first."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="node").do_handshake()
    return outgoing.read()


class Bending:
    """A socket on which one piece of what is sent, the ``which``-th, comes out bent."""

    def __init__(self, stream: trio.SocketStream, which: int, chance: random.Random) -> None:
        """Around the real one."""
        self._stream, self._left, self._chance = stream, which, chance

    async def send_all(self, data: bytes) -> None:
        """All of it, or what is made of it."""
        self._left -= 1
        await self._stream.send_all(bent(data, self._chance) if self._left == 0 else data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


async def _before_noise(addr: str, said: bytes, chance: random.Random) -> None:
    async with raw_peer(addr, source=some_address(chance)) as peer:
        with contextlib.suppress(trio.BrokenResourceError):
            await peer.send_raw(said)
        await peer.is_hung_up_on(0.2)


async def at_tcp(addr: str, chance: random.Random) -> None:
    """The very first bytes: a negotiation, and the first message of noise behind it."""
    opening = NEGOTIATION + line(b"/noise") + (32).to_bytes(2, "big") + chance.randbytes(32)
    await _before_noise(addr, bent(opening, chance), chance)


async def at_tls(addr: str, chance: random.Random) -> None:
    """Who begins with TLS's first byte is another room's guest."""
    await _before_noise(addr, b"\x16" + bent(client_hello()[1:], chance), chance)


async def at_noise(addr: str, chance: random.Random) -> None:
    """One message of noise's handshake is bent, or one of the first records under its keys."""
    async with raw_peer(addr, source=some_address(chance)) as peer:
        peer.stream = Bending(peer.stream, chance.randint(2, 6), chance)  # type: ignore[assignment]
        with contextlib.suppress(Exception), trio.fail_after(PATIENCE_S):
            await peer.mux()
            for _ in range(3):
                await peer.send(frame(PING, SYN, 0, 1))
        await peer.is_hung_up_on(0.2)


async def at_negotiation(addr: str, chance: random.Random) -> None:
    """Behind noise, where a multiplexer is agreed on."""
    async with raw_peer(addr, source=some_address(chance)) as peer:
        with trio.fail_after(30):
            await peer.secure()
        with contextlib.suppress(Exception):
            await peer.send(bent(NEGOTIATION + line(b"/yamux/1.0.0"), chance))
        await peer.is_hung_up_on(0.2)


def yamux_frames(chance: random.Random) -> bytes:
    """Frames of a session, some of them with one field that is something else."""
    said = b""
    for number in range(chance.randint(3, 12)):
        stream_id, body = 2 * (number // 3) + 1, chance.randbytes(chance.choice((0, 1, 50)))
        kind, flags, value, rest = chance.choice(
            (
                (WINDOW, SYN, 0, b""),
                (DATA, SYN, len(body), body),
                (DATA, chance.choice((0, FIN)), len(body), body),
                (WINDOW, chance.choice((0, ACK, FIN, RST)), 1 << 16, b""),
                (PING, SYN, number, b""),
            )
        )
        whole = bytearray(frame(kind, flags, stream_id if kind != PING else 0, value, rest))
        match chance.randrange(8):
            case 0:
                whole[chance.choice((0, 1, 2, 3))] = chance.randrange(256)
            case 1:
                whole[4:8] = chance.choice((0, 2, stream_id + 2, 1 << 31)).to_bytes(4, "big")
            case 2:
                whole[8:12] = chance.choice((0, 1, 1 << 18, (1 << 32) - 1)).to_bytes(4, "big")
            case 3:
                whole = bytearray(bent(bytes(whole), chance))
        said += whole
    return said


async def at_yamux(addr: str, chance: random.Random) -> None:
    """Frames of the multiplexer. Whoever is not hung up on still gets an answer to its ping."""
    async with raw_peer(addr, source=some_address(chance)) as peer:
        with trio.fail_after(30):
            await peer.mux()
        with contextlib.suppress(Exception):
            await peer.send(yamux_frames(chance))
            await peer.send(frame(PING, SYN, 0, 4_242))
            with trio.fail_after(PATIENCE_S):
                while (answer := await peer.next_frame())[:2] != (PING, ACK) or answer[3] != 4_242:
                    if answer[0] == GO_AWAY:
                        break


async def _say_all(addr: str, draw: Callable[[Stranger], bytes]) -> None:
    """Say so much on streams of one connection whose account is proven."""
    async with a_stranger(addr) as stranger:
        await stranger.prove_account()
        with contextlib.suppress(Exception):
            streams = []
            for _ in range(STREAMS):
                number, stranger._next = stranger._next, stranger._next + 2
                await stranger.peer.open(number, draw(stranger))
                await stranger.peer.send(frame(WINDOW, FIN, number, 0))
                streams.append(number)
            await stranger.await_ends(streams, PATIENCE_S)


async def at_stream(addr: str, chance: random.Random) -> None:
    """The negotiation on a stream."""

    def draw(stranger: Stranger) -> bytes:
        said = NEGOTIATION + line(chance.choice(ASKED).encode())
        return bent(said, chance)[:60_000] + framed(HELLO, stranger.hello)

    await _say_all(addr, draw)


def _asked(protocol: str) -> bytes:
    return NEGOTIATION + line(protocol.encode())


async def at_frame(addr: str, chance: random.Random) -> None:
    """The length before a request."""

    def draw(stranger: Stranger) -> bytes:
        protocol = chance.choice(ASKED)
        body = chance.choice(stranger.bodies[protocol])
        said = chance.choice((0, 1, len(body) - 1, len(body) + 1, 1 << 20, (1 << 32) - 1)).to_bytes(4, "big")
        return _asked(protocol) + chance.choice((said[:1], said[:3], said, said + body, said + body + body))

    await _say_all(addr, draw)


async def at_msgpack(addr: str, chance: random.Random) -> None:
    """The encoding of a request, in a frame that is sound."""

    def draw(stranger: Stranger) -> bytes:
        protocol = chance.choice((*ASKED, MARKET))
        body = bent(chance.choice(stranger.bodies[protocol]), chance)[:60_000]
        return _asked(protocol) + framed(protocol, body)

    await _say_all(addr, draw)


async def at_gate(addr: str, chance: random.Random) -> None:
    """Messages of the market that are messages, with other values in them than anybody meant."""

    def draw(stranger: Stranger) -> bytes:
        for _ in range(200):
            body = msgpack_bent(chance.choice(stranger.bodies[MARKET]), chance)
            with contextlib.suppress(ProtocolError):
                decode(body, Direct, limit_bytes=1 << 20)
                return _asked(MARKET) + framed(MARKET, body)
        raise AssertionError("nothing that is bent is a message any more")

    await _say_all(addr, draw)


def counted(daemon: Daemon, *marks: str) -> int:
    return sum(n for reason, n in daemon.counters().items() if reason.startswith(marks))


LAYERS: dict[str, tuple[Attack, tuple[str, ...]]] = {
    "tcp": (at_tcp, ("inbound.handshake_failed",)),
    "tls": (at_tls, ("bulk.handshake_failed",)),
    "noise": (at_noise, ("inbound.handshake_failed", "mux.")),
    "negotiation": (at_negotiation, ("inbound.handshake_failed",)),
    "yamux": (at_yamux, ("mux.",)),
    "stream": (at_stream, ("serve.",)),
    "frame": (at_frame, ("serve.too_big", "serve.cut_short", "serve.protocol_error")),
    "msgpack": (at_msgpack, ("serve.protocol_error",)),
    "gate": (at_gate, ("gate: ",)),
}
"""What attacks a layer, and the counters that tell of what was judged there."""


@pytest.mark.trio
@pytest.mark.parametrize("layer", LAYERS)
async def test_random_and_bent_bytes_at_every_layer_are_judged_there_and_end_nothing(layer: str) -> None:
    attack, marks = LAYERS[layer]
    async with a_whole_daemon() as daemon:
        addr = daemon.net.addrs()[0]
        # Who begins with TLS is listened to only while somebody is expected.
        assert daemon.bulk is not None
        assert daemon.bulk._grants.give("somebody", daemon.bulk._identity.certificate, "fetch", time.monotonic())
        limit = trio.CapacityLimiter(AT_ONCE)

        async def one(seed: int) -> None:
            async with limit:
                # The seeds are fixed, so that what fails once fails again.
                try:
                    await attack(addr, random.Random(f"{layer} {seed}"))
                except AssertionError:
                    raise
                except Exception:  # noqa: BLE001  # hung up on: that is its right, and below it is seen who came so far
                    return

        async with trio.open_nursery() as nursery:
            for seed in range(CONNECTIONS):
                nursery.start_soon(one, seed)
        with trio.move_on_after(15):
            while counted(daemon, *marks) < CONNECTIONS // 4:  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert counted(daemon, *marks) >= CONNECTIONS // 4, "too few came as far as that: nothing is proved"
        assert fallen_over(daemon) == {}
        assert await serves_the_honest(daemon)
