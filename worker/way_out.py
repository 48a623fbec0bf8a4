"""The way out of a sandbox that has one: a port on the loopback, and behind it a unix socket of the provider's.

What is behind that socket is an HTTP proxy, which decides who may be spoken to and counts the bytes. Here nothing is
decided: bytes go to and fro, a bounded number of connections at a time, a bounded number of bytes of each in memory.
"""

import asyncio
import contextlib
import socket
import threading
from pathlib import Path

WAY_OUT = Path("/run/hansa/egress.sock")
HOST, PORT = "127.0.0.1", 3128
PROXY = f"http://{HOST}:{PORT}"
MOST_CONNECTIONS = 128
PIECE_BYTES = 64 << 10


def start_way_out(target: Path = WAY_OUT, port: int = PORT) -> int:
    """Listen and forward in a thread of its own, until the process ends; gives the port."""
    listener = socket.create_server((HOST, port), backlog=MOST_CONNECTIONS)
    threading.Thread(target=lambda: asyncio.run(_serve(listener, target)), daemon=True, name="hansa-way-out").start()
    return int(listener.getsockname()[1])


async def _serve(listener: socket.socket, target: Path) -> None:
    room = asyncio.Semaphore(MOST_CONNECTIONS)
    living: set[asyncio.Task[None] | None] = set()

    async def forward(near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        # asyncio holds a connection whose other side is done too weakly to keep it from being collected as garbage.
        living.add(task)
        try:
            async with room:
                with contextlib.suppress(OSError):
                    far_reader, far_writer = await asyncio.open_unix_connection(str(target), limit=PIECE_BYTES)
                    await asyncio.gather(_pump(near_reader, far_writer), _pump(far_reader, near_writer))
                    far_writer.close()
                near_writer.close()
        finally:
            living.discard(task)

    server = await asyncio.start_server(forward, sock=listener, limit=PIECE_BYTES)
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until one side ends; the other may go on in its own direction."""
    try:
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()
