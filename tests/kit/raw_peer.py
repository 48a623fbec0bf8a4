"""A peer that keeps to no rule: every layer of a connection by hand, to send what no honest library would."""

import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p.crypto import ed25519, secp256k1, x25519
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as NoiseTransport

HEADER = struct.Struct(">BBHII")
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def line(text: bytes) -> bytes:
    """A line of multistream-select."""
    return bytes((len(text) + 1,)) + text + b"\n"


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    """A yamux frame, whether it makes sense or not."""
    return HEADER.pack(0, kind, flags, stream_id, length) + body


class RawPeer:
    """One connection to a node."""

    def __init__(self, stream: trio.SocketStream, node: str) -> None:
        self.stream = stream
        self.node = node
        self.keys = secp256k1.create_new_key_pair(os.urandom(32))
        self.secured = None
        self._buffer = b""

    async def send_raw(self, data: bytes) -> None:
        """Bytes before any encryption."""
        await self.stream.send_all(data)

    async def is_hung_up_on(self, within_s: float = 2.0) -> bool:
        """Whether the node closes the connection, reading what it still sends."""
        with trio.move_on_after(within_s):
            try:
                while await self.stream.receive_some(65536):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            return True
        return False

    async def read_lines(self, count: int) -> list[bytes]:
        """Lines of multistream-select before encryption."""
        found = []
        for _ in range(count):
            size = (await self.stream.receive_some(1))[0]
            text = b""
            while len(text) < size:
                text += await self.stream.receive_some(size - len(text))
            found.append(text[:-1])
        return found

    async def secure(self, *, ed25519_key: bool = False) -> "RawPeer":
        """Negotiate noise and prove an identity."""
        if ed25519_key:
            self.keys = ed25519.create_new_key_pair()
        raw = RawConnection(TrioTCPStream(self.stream), True)
        await self.send_raw(line(b"/multistream/1.0.0") + line(b"/noise"))
        await self.read_lines(2)
        noise = NoiseTransport(self.keys, noise_privkey=x25519.create_new_key_pair().private_key)
        self.secured = await noise.secure_outbound(raw, ID.from_base58(self.node))
        return self

    async def mux(self) -> "RawPeer":
        """Negotiate yamux; from here on ``send`` takes frames."""
        await self.secure()
        await self.send(line(b"/multistream/1.0.0") + line(b"/yamux/1.0.0"))
        wanted = len(line(b"/multistream/1.0.0") + line(b"/yamux/1.0.0"))
        while wanted > 0:
            wanted -= len(await self.secured.read(wanted))
        return self

    async def send(self, data: bytes) -> None:
        """Bytes under encryption."""
        await self.secured.write(data)

    async def open(self, stream_id: int, first: bytes = b"") -> None:
        """Open a stream and send something on it."""
        await self.send(
            frame(WINDOW, SYN, stream_id, 0) + (frame(DATA, 0, stream_id, len(first), first) if first else b"")
        )

    async def next_frame(self) -> tuple[int, int, int, int, bytes]:
        """What the node sends, frame by frame; raises when it hangs up."""
        while True:
            if len(self._buffer) >= HEADER.size:
                _, kind, flags, stream_id, length = HEADER.unpack_from(self._buffer)
                body = length if kind == DATA else 0
                if len(self._buffer) >= HEADER.size + body:
                    content = self._buffer[HEADER.size : HEADER.size + body]
                    self._buffer = self._buffer[HEADER.size + body :]
                    return kind, flags, stream_id, length, content
            self._buffer += await self.secured.read(None)


@asynccontextmanager
async def raw_peer(addr: str, *, source: str = "127.0.0.1") -> AsyncIterator[RawPeer]:
    """A TCP connection to a node's full multiaddr, from the given loopback address."""
    _, _, host, _, port, _, node = addr.split("/")
    with trio.socket.socket() as sock:
        await sock.bind((source, 0))
        await sock.connect((host, int(port)))
        yield RawPeer(trio.SocketStream(sock), node)
