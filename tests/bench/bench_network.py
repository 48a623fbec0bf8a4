"""How much slower than a bare trio socket the network is: ``python tests/bench/bench_network.py``.

Both sides run in one process and on one core, as they do in the baseline, so the ratios compare work and not machines.
"""

import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from hansa.node.blob_exchange import BlobExchange
from hansa.node.blobs import BlobStore
from hansa.node.libp2p_host import open_net
from hansa.node.net import Context, NetConfig

ECHO = "/hansa/echo/1"
REQUESTS = 1500
PAYLOAD = bytes(512)
BLOB_BYTES = 64 << 20


async def echo(_context: Context, data: bytes) -> bytes:
    """Give back what came."""
    return data


async def time_each(call: Callable[[], Awaitable[object]]) -> list[float]:
    """Sorted seconds of so many calls, after a warm-up."""
    for _ in range(50):
        await call()
    took = []
    for _ in range(REQUESTS):
        start = time.perf_counter()
        await call()
        took.append(time.perf_counter() - start)
    return sorted(took)


async def bare_socket() -> tuple[list[float], float]:
    """Round trips of the payload, and bytes a second, over a trio TCP stream with nothing on top."""

    async def serve(stream: trio.SocketStream) -> None:
        with_payload = True
        while with_payload:
            data = await stream.receive_some(65536)
            if not data:
                return
            if data == b"blob!":
                await stream.send_all(blob)
            else:
                await stream.send_all(data)

    blob = os.urandom(BLOB_BYTES)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        stream = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
        async with stream:

            async def ask() -> None:
                await stream.send_all(PAYLOAD)
                got = 0
                while got < len(PAYLOAD):
                    got += len(await stream.receive_some(65536))

            latency = await time_each(ask)
            start = time.perf_counter()
            await stream.send_all(b"blob!")
            got = 0
            while got < BLOB_BYTES:
                got += len(await stream.receive_some(1 << 20))
            speed = BLOB_BYTES / (time.perf_counter() - start)
        nursery.cancel_scope.cancel()
    return latency, speed


async def our_network() -> tuple[list[float], float, float]:
    """The same through ``Net.request`` and ``BlobExchange.fetch`` (which also hashes, checks and writes)."""
    with tempfile.TemporaryDirectory() as folder:
        async with open_net(NetConfig(), os.urandom(32)) as one, open_net(NetConfig(), os.urandom(32)) as other:
            other.serve(ECHO, echo)
            one.learn(other.peer_id, other.addrs())
            latency = await time_each(lambda: one.request(other.peer_id, ECHO, PAYLOAD))
            start = time.perf_counter()
            async with trio.open_nursery() as nursery:

                async def many() -> None:
                    for _ in range(50):
                        await one.request(other.peer_id, ECHO, PAYLOAD)

                for _ in range(8):
                    nursery.start_soon(many)
            rate = 400 / (time.perf_counter() - start)
            stores = [BlobStore(Path(folder) / name, quota_bytes=1 << 30) for name in ("one", "other")]
            BlobExchange(other, stores[1], lambda _context, _ref: True).serve()
            ref = stores[1].put_bytes(os.urandom(BLOB_BYTES))
            fetcher = BlobExchange(one, stores[0], lambda _context, _ref: False)
            start = time.perf_counter()
            await fetcher.fetch(ref, [other.peer_id])
            return latency, rate, BLOB_BYTES / (time.perf_counter() - start)


async def main() -> None:
    """Measure both and print the ratios."""
    bare, bare_speed = await bare_socket()
    ours, rate, speed = await our_network()
    print(f"{'':24}{'bare socket':>14}{'hansa':>14}{'ratio':>9}")
    for name, at in (("request p50", 0.5), ("request p99", 0.99)):
        base, mine = bare[int(len(bare) * at)] * 1e3, ours[int(len(ours) * at)] * 1e3
        print(f"{name:24}{base:11.3f} ms{mine:11.3f} ms{mine / base:9.1f}")
    print(f"{'blob fetch':24}{bare_speed / 2**20:8.0f} MiB/s{speed / 2**20:8.0f} MiB/s{speed / bare_speed:9.2f}")
    print(f"{'requests, 8 at once':24}{'':14}{rate:12.0f}/s")


if __name__ == "__main__":
    trio.run(main)
