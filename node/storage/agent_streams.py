"""Bytes between a local socket and a connection to another machine, both ways, until either side is at its end."""

import contextlib
import socket
from typing import Final

import trio

PIECE_BYTES: Final = 64 << 10
CLOSE_S: Final = 5.0
BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


async def bridge(local: socket.socket, remote: trio.abc.Stream) -> None:
    """Carry bytes both ways. When one side has ended, what it said before is delivered, and both are closed."""
    local.setblocking(False)
    near = trio.SocketStream(trio.socket.from_stdlib_socket(local))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump, near, remote, nursery.cancel_scope)
            nursery.start_soon(_pump, remote, near, nursery.cancel_scope)
    finally:
        near.socket.close()
    with contextlib.suppress(*BROKEN), trio.move_on_after(CLOSE_S):
        await remote.aclose()


async def _pump(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream, scope: trio.CancelScope) -> None:
    with contextlib.suppress(*BROKEN):
        while data := await source.receive_some(PIECE_BYTES):
            await sink.send_all(data)
    scope.cancel()
