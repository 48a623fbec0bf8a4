"""A stream of ours on a connection that notes what would go out: to be fed with a peer's bytes, one at a time."""

from typing import Any

import trio

from hansa.node.network.libp2p_stream import BoundedStream


class NotingCarrier:
    """A connection as a stream sees it. There is always room, and nothing leaves it."""

    round_trip_s = 0.0
    has_room = True

    def __init__(self) -> None:
        """Nothing has gone out yet."""
        self.budget = self
        self.written: list[bytes] = []

    def take(self, _holder: Any, size: int) -> None:
        """Memory is not counted here."""

    def give_back(self, _holder: Any, size: int) -> None:
        """Nor is it here."""

    def queue_control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """A frame without a body."""

    def queue_data(self, _stream_id: int, data: bytes, _flags: int = 0) -> None:
        """A frame with a body."""
        self.written.append(bytes(data))

    async def queue_has_room(self) -> None:
        """There always is."""
        await trio.lowlevel.checkpoint()

    def forget(self, stream: Any) -> None:
        """Both directions are over."""

    def get_remote_address(self) -> tuple[str, int] | None:
        """Nobody is there."""
        return None


def noted_stream(*came: bytes) -> tuple[BoundedStream, NotingCarrier]:
    """A stream on which these bytes of the peer's have come, and what notes our own."""
    carrier = NotingCarrier()
    stream = BoundedStream(carrier, 1)
    for data in came:
        stream.take(data)
    return stream, carrier
