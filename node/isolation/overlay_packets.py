"""IP packets between the machines of one run: a small switch in the daemon, and the lines that lead to it.

A sandbox of a gang has one interface beside its loopback, whose other end is a file descriptor: what a process inside
sends can be read there, whole packets at a time. On the daemon's machine the switch reads it itself; on another machine
the agent carries the packets over a connection of its own, each after its length. The switch looks at two addresses and
nothing else: a packet must come from whom it says and go to a member of the same run, or it is dropped. So the machines
of a run reach each other, and nothing else.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import Final, Protocol

import trio

from hansa.node.storage.agent_streams import BROKEN
from hansa.proto.gang import MOST_MEMBERS

MTU_BYTES: Final = 32 << 10
LARGEST_PACKET_BYTES: Final = MTU_BYTES
BATCH_BYTES: Final = 256 << 10
HEADER_BYTES: Final = 20
NETWORK: Final = bytes((10, 77, 0))


class PacketLine(Protocol):
    """Where packets come from and go to."""

    async def receive(self) -> list[bytes]:
        """Some packets; none when it is at its end."""

    async def send(self, packets: Sequence[bytes]) -> None:
        """Send these; what there is no room for is lost, as on any network."""


class Interface:
    """The outer end of a sandbox's interface on this machine."""

    def __init__(self, descriptor: int) -> None:
        """Use an open file descriptor, which stays the caller's."""
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor

    async def receive(self) -> list[bytes]:
        """Everything that waits, up to a batch."""
        packets: list[bytes] = []
        size_bytes = 0
        while size_bytes < BATCH_BYTES:
            try:
                packet = os.read(self._descriptor, LARGEST_PACKET_BYTES)
            except BlockingIOError:
                if packets:
                    return packets
                await trio.lowlevel.wait_readable(self._descriptor)
                continue
            except OSError:
                return packets
            packets.append(packet)
            size_bytes += len(packet)
        await trio.lowlevel.checkpoint()
        return packets

    async def send(self, packets: Sequence[bytes]) -> None:
        """Put them in; the kernel drops what the sandbox does not take."""
        for packet in packets:
            with contextlib.suppress(OSError):  # the kernel refuses what is no packet
                os.write(self._descriptor, packet)
        await trio.lowlevel.checkpoint()


class Afar:
    """A stream to a machine, with packets on it one after another."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        """Use a stream, which stays the caller's."""
        self._stream = stream
        self._sending = trio.Lock()
        self._read = bytearray()

    async def receive(self) -> list[bytes]:
        """What came with the last bytes; nothing if the stream is at its end, or is not one of packets."""
        while True:
            packets, used = _cut(self._read)
            if packets is None:
                return []
            if packets:
                del self._read[:used]
                return packets
            data = await self._stream.receive_some(BATCH_BYTES)
            if not data:
                return []
            self._read += data

    async def send(self, packets: Sequence[bytes]) -> None:
        """One write for all of them."""
        data = b"".join(part for packet in packets for part in (len(packet).to_bytes(2, "big"), packet))
        async with self._sending:
            await self._stream.send_all(data)


async def carry_packets(descriptor: int, stream: trio.abc.Stream) -> None:
    """Be the line between a sandbox's interface and the switch, until either ends."""
    near, far = Interface(descriptor), Afar(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pump, near, far, nursery.cancel_scope)
        nursery.start_soon(_pump, far, near, nursery.cancel_scope)


class Switch:
    """Brings the packets of one run to where they belong."""

    def __init__(self, lines: Sequence[PacketLine]) -> None:
        """The line of each member, in the order of their places."""
        assert 1 < len(lines) <= MOST_MEMBERS, "a gang"
        self._lines = lines
        self.dropped = 0

    async def serve(self) -> None:
        """Until cancelled, or until a line ends."""
        async with trio.open_nursery() as nursery:
            for place in range(len(self._lines)):
                nursery.start_soon(self._serve_line, place, nursery.cancel_scope)

    async def _serve_line(self, place: int, scope: trio.CancelScope) -> None:
        with contextlib.suppress(*BROKEN):
            while packets := await self._lines[place].receive():
                for target, theirs in self._sorted(place, packets).items():
                    await self._lines[target].send(theirs)
        scope.cancel()

    def _sorted(self, place: int, packets: Sequence[bytes]) -> dict[int, list[bytes]]:
        """By the place where they go, without those that may not go anywhere."""
        own = NETWORK + bytes((place + 1,))
        found: dict[int, list[bytes]] = {}
        for packet in packets:
            target = packet[19] - 1 if len(packet) >= HEADER_BYTES else -1
            sound = len(packet) >= HEADER_BYTES and packet[0] >> 4 == 4 and packet[12:16] == own
            if sound and packet[16:19] == NETWORK and 0 <= target < len(self._lines) and target != place:
                found.setdefault(target, []).append(packet)
            else:
                self.dropped += 1
        return found


async def _pump(source: PacketLine, sink: PacketLine, scope: trio.CancelScope) -> None:
    with contextlib.suppress(*BROKEN):
        while packets := await source.receive():
            await sink.send(packets)
    scope.cancel()


def _cut(data: bytearray) -> tuple[list[bytes] | None, int]:
    """The whole packets at the beginning, and how many bytes they take; ``None`` if it cannot be packets."""
    packets: list[bytes] = []
    start = 0
    while len(data) - start >= 2:
        size_bytes = int.from_bytes(data[start : start + 2], "big")
        if not 0 < size_bytes <= LARGEST_PACKET_BYTES:
            return None, 0
        if len(data) - start - 2 < size_bytes:
            break
        packets.append(bytes(data[start + 2 : start + 2 + size_bytes]))
        start += 2 + size_bytes
    return packets, start
