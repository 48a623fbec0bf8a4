"""Our own reading and writing of noise records says to the library's, and hears from it, exactly what was said."""

import os

import pytest
import trio
from libp2p.crypto import secp256k1, x25519
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport
from noise.exceptions import NoiseInvalidMessage
from trio.testing import memory_stream_pair

from hansa.node.network.libp2p_guards import BufferedSocket
from hansa.node.network.libp2p_noise import NoiseRecords, records_of

pytestmark = pytest.mark.trio


class Wire:
    """One end of a line in memory, as the library's sockets look. It gives a few bytes at a time."""

    def __init__(self, stream, piece: int) -> None:
        self.stream_in_memory = stream
        self.piece = piece
        self.change = lambda data: data

    async def read(self, n: int | None = None) -> bytes:
        return await self.stream_in_memory.receive_some(min(n or self.piece, self.piece))

    async def write(self, data: bytes) -> None:
        await self.stream_in_memory.send_all(self.change(data))

    async def close(self) -> None:
        await self.stream_in_memory.aclose()

    def get_remote_address(self) -> None:
        return None


async def sessions(piece: int):
    """Both ends of a session after its handshake, and the wire of each."""
    wires = [Wire(stream, piece) for stream in memory_stream_pair()]
    keys = [secp256k1.create_new_key_pair(os.urandom(32)) for _ in range(2)]
    transports = [Transport(pair, noise_privkey=x25519.create_new_key_pair().private_key) for pair in keys]
    found = {}

    async def dial() -> None:
        raw = RawConnection(BufferedSocket(wires[0]), True)
        found[0] = await transports[0].secure_outbound(raw, ID.from_pubkey(keys[1].public_key))

    async def answer() -> None:
        found[1] = await transports[1].secure_inbound(RawConnection(BufferedSocket(wires[1]), False))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        nursery.start_soon(answer)
    return found[0], found[1], wires


async def read_exactly(reader, size: int) -> bytes:
    data = b""
    with trio.fail_after(20):
        while len(data) < size:
            piece = await reader.read(None)
            assert piece, "the end came early"
            data += piece
    return data


@pytest.mark.parametrize("piece", [1, 7, 65536])
async def test_the_library_and_we_understand_each_other_wherever_the_wire_cuts(piece):
    library, other, _ = await sessions(piece)
    ours = records_of(other)
    assert isinstance(ours, NoiseRecords)
    said = [b"x", os.urandom(300), os.urandom(2000)] if piece < 100 else [os.urandom(200_000), b"y", bytes(65_519)]
    for data in said:
        await library.write(data)
        assert await read_exactly(ours, len(data)) == data
        await ours.write(data)
        assert await read_exactly(library, len(data)) == data


async def test_records_that_came_together_are_given_together():
    library, other, _ = await sessions(65536)
    ours = records_of(other)
    for data in (b"one ", b"two ", b"three"):
        await library.write(data)
    assert await ours.read(None) == b"one two three"


async def test_what_the_session_had_decrypted_already_is_not_lost():
    library, other, _ = await sessions(65536)
    await library.write(b"first second")
    assert await other.read(5) == b"first"
    ours = records_of(other)
    await library.write(b" third")
    assert await read_exactly(ours, len(" second third")) == b" second third"


@pytest.mark.parametrize("at", [2, 5, -1])
async def test_a_record_that_was_touched_ends_the_connection(at):
    library, other, wires = await sessions(65536)
    ours = records_of(other)

    def touched(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[at] ^= 1
        return bytes(changed)

    wires[0].change = touched
    await library.write(b"hello")
    with pytest.raises(NoiseInvalidMessage):
        await ours.read(None)


async def test_the_end_of_the_wire_is_the_end_also_in_the_middle_of_a_record():
    library, other, wires = await sessions(65536)
    ours = records_of(other)
    wires[0].change = lambda data: data[:-3]
    await library.write(b"hello")
    await library.close()
    assert await ours.read(None) == b""


async def test_what_is_no_such_session_is_left_as_it_is():
    anything = object()
    assert records_of(anything) is anything
