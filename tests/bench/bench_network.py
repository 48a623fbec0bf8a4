"""How fast the network is against the bare thing: ``python tests/bench/bench_network.py [--short]``.

Blobs are held against a TLS socket of Python's own, requests against a trio socket with nothing on top. Each has its
server in a process of its own, as nodes have, and they take turns in one run, so that a busy machine harms both.
"""

import argparse
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio

from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import Context, NetConfig
from hansa.node.storage.blob_exchange import BlobExchange
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.bulk import BulkChannels
from hansa.node.storage.pinned_tls import certificate_in, dialling_context, make_pem, serving_context
from hansa.proto.blob import BlobRef, chunk_hash

ECHO = "/hansa/echo/1"
PAYLOAD = bytes(512)
MIB = 1 << 20
PIECE = MIB


# The servers, each a process.


def serve_tls(folder: Path) -> None:
    """Whoever connects says how many bytes it wants, and gets them."""
    context = serving_context(folder / "server.pem", [certificate_in((folder / "client.pem").read_bytes())])
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    piece = memoryview(os.urandom(PIECE))
    while True:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as stream:
            left = int.from_bytes(stream.recv(8), "big")
            while left:
                stream.sendall(piece[: min(left, PIECE)])
                left -= min(left, PIECE)


async def serve_bare() -> None:
    """Echo, on a trio socket."""

    async def echo(stream: trio.SocketStream) -> None:
        while data := await stream.receive_some(65536):
            await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, echo, 0)
        print(json.dumps({"port": listeners[0].socket.getsockname()[1]}), flush=True)


async def serve_node(folder: Path, sizes: list[int]) -> None:
    """A node that echoes and gives blobs."""

    async def echo(_context: Context, data: bytes) -> bytes:
        return data

    store = BlobStore(folder / "source", quota_bytes=1 << 40)
    async with open_net(NetConfig(), os.urandom(32)) as net, trio.open_nursery() as nursery:
        net.serve(ECHO, echo, per_peer=64)
        BlobExchange(net, store, lambda _context, _ref: True).serve()
        nursery.start_soon(BulkChannels(net, store, lambda _context, _ref: True).run)
        refs = []
        for size in sizes:
            writer = store.writer(size)
            for at in range(0, size, PIECE):
                writer.write(os.urandom(min(PIECE, size - at)))
            refs.append(writer.finish())
        said = {"addrs": net.addrs(), "peer_id": net.peer_id, "refs": [[str(ref), ref.size_bytes] for ref in refs]}
        print(json.dumps(said), flush=True)


@contextmanager
def served(*arguments: str) -> Iterator[dict]:
    """A server in a process of its own, and what it said of itself."""
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE)
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# Blobs.


def fetch_tls(folder: Path, port: int, size: int, *, keeps: bool = False) -> float:
    """Bytes a second over a TLS socket of Python's own; they are read and forgotten, or hashed, written and synced."""
    context = dialling_context(folder / "client.pem", [certificate_in((folder / "server.pem").read_bytes())])
    buffer = memoryview(bytearray(PIECE))
    path = folder / "kept"
    with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw) as stream:
        start = time.perf_counter()
        stream.sendall(size.to_bytes(8, "big"))
        if keeps:
            with path.open("wb", buffering=0) as file:
                for _ in range(0, size, PIECE):
                    got = 0
                    while got < PIECE:
                        got += stream.recv_into(buffer[got:])
                    chunk_hash(buffer)
                    file.write(buffer)
                os.fsync(file.fileno())
        else:
            left = size
            while left:
                left -= stream.recv_into(buffer)
        speed = size / (time.perf_counter() - start)
    path.unlink(missing_ok=True)
    return speed


class Fetcher:
    """A node that fetches, anew each time."""

    def __init__(self, folder: Path, net, source: str) -> None:
        self.net = net
        self.source = source
        self.store = BlobStore(folder / "fetched", quota_bytes=1 << 40)
        self.bulk = BulkChannels(net, self.store, lambda _context, _ref: False)

    async def fetch(self, ref: BlobRef, *, over_channel: bool) -> float:
        """Bytes a second until every chunk is checked and the file is on the disk."""
        exchange = BlobExchange(self.net, self.store, lambda _c, _r: False, self.bulk if over_channel else None)
        start = time.perf_counter()
        await exchange.fetch(ref, [self.source])
        speed = ref.size_bytes / (time.perf_counter() - start)
        self.store.delete(ref)
        return speed


def write_and_sync(folder: Path, size: int) -> float:
    """Bytes a second that the disk takes: what no fetch can be faster than."""
    piece = os.urandom(PIECE)
    path = folder / "disk"
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    took_s = time.perf_counter() - start
    path.unlink()
    return size / took_s


async def blobs(folder: Path, sizes: list[int], repeats: int) -> None:
    """Print each size's ratio."""
    for number, name in enumerate(("server", "client")):
        (folder / f"{name}.pem").write_bytes(make_pem(bytes((number,)) * 32, lambda _key: "hansa bench"))
    print("\nA bare TLS socket reads and forgets; one that keeps hashes, writes and syncs, as a fetch does.")
    print("Ratios are to the first; the second of the channel is to the other. MiB a second:")
    names = ("blob", "bare TLS", "keeps", "channel", "ratio", "ratio", "libp2p", "ratio", "disk")
    print("".join(f"{name:>10}" for name in names))
    with (
        served("--serve-tls", str(folder)) as bare,
        served("--serve-node", str(folder), *map(str, sizes)) as source,
    ):
        async with open_net(NetConfig(), os.urandom(32)) as net, trio.open_nursery() as nursery:
            net.learn(source["peer_id"], tuple(source["addrs"]))
            fetcher = Fetcher(folder, net, source["peer_id"])
            nursery.start_soon(fetcher.bulk.run)
            for root, size in source["refs"]:
                ref = BlobRef(root=bytes.fromhex(root), size_bytes=size)
                rows = [
                    (
                        await trio.to_thread.run_sync(fetch_tls, folder, bare["port"], size),
                        await fetcher.fetch(ref, over_channel=True),
                        await fetcher.fetch(ref, over_channel=False),
                        await trio.to_thread.run_sync(partial(fetch_tls, folder, bare["port"], size, keeps=True)),
                        await trio.to_thread.run_sync(write_and_sync, folder, size),
                    )
                    for _ in range(repeats)
                ]
                medians = (statistics.median(column) / MIB for column in zip(*rows, strict=True))
                bare_tls, channel, libp2p, keeps, disk = (f"{speed:10.0f}" for speed in medians)
                ratios = ((1, 0), (1, 3), (2, 0))
                to_bare, to_keeps, of_libp2p = (
                    f"{statistics.median(row[one] / row[other] for row in rows):10.2f}" for one, other in ratios
                )
                size_text = f"{size // MIB:6} MiB"
                print(size_text + bare_tls + keeps + channel + to_bare + to_keeps + libp2p + of_libp2p + disk)
            print(f"channels: {dict(fetcher.bulk.counters)}")
            nursery.cancel_scope.cancel()


# Requests.


async def time_each(call: Callable[[], Awaitable[object]], count: int, at_once: int) -> list[float]:
    """Sorted seconds of so many calls, so many of them at the same time, after a warm-up."""
    took: list[float] = []

    async def one_after_the_other(share: int, keep: bool) -> None:
        for _ in range(share):
            start = time.perf_counter()
            await call()
            if keep:
                took.append(time.perf_counter() - start)

    for share, keep in ((20, False), (count // at_once, True)):
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(one_after_the_other, share, keep)
    return sorted(took)


class BareSockets:
    """As many connections as there are callers: a bare socket carries one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[trio.SocketStream] = []

    async def ask(self) -> None:
        """One round trip."""
        stream = self._free.pop() if self._free else await trio.open_tcp_stream("127.0.0.1", self._port)
        await stream.send_all(PAYLOAD)
        got = 0
        while got < len(PAYLOAD):
            got += len(await stream.receive_some(65536))
        self._free.append(stream)


async def requests(folder: Path, count: int, repeats: int) -> None:
    """Print p50 and p99, alone and with 32 at once."""
    with served("--serve-bare") as bare, served("--serve-node", str(folder)) as node:
        async with open_net(NetConfig(), os.urandom(32)) as net:
            net.learn(node["peer_id"], tuple(node["addrs"]))
            sockets = BareSockets(bare["port"])
            print(f"\n{'request of 512 B':22}{'bare socket':>14}{'hansa':>14}{'ratio':>8}")
            for at_once in (1, 32):
                rows = []
                for _ in range(repeats):
                    base = await time_each(sockets.ask, count, at_once)
                    ours = await time_each(lambda: net.request(node["peer_id"], ECHO, PAYLOAD), count, at_once)
                    rows.append((base, ours))
                for name, part in (("p50", 0.5), ("p99", 0.99)):
                    pairs = [(base[int(len(base) * part)], ours[int(len(ours) * part)]) for base, ours in rows]
                    base_ms, ours_ms = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
                    ratio = statistics.median(mine / theirs for theirs, mine in pairs)
                    print(f"{name + f', {at_once} at once':22}{base_ms:11.3f} ms{ours_ms:11.3f} ms{ratio:8.1f}")
                rate = statistics.median(at_once * len(ours) / sum(ours) for _, ours in rows)
                print(f"{'':36}{rate:12.0f}/s")
            for stream in sockets._free:
                await stream.aclose()


def main() -> None:
    """Measure, or serve for another process that does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="small blobs, few repeats")
    parser.add_argument("--no-gibibyte", action="store_true", help="leave the largest blob out")
    parser.add_argument("--folder", type=Path, help="where the blobs lie, e.g. on a disk of memory")
    parser.add_argument("--serve-tls", type=Path)
    parser.add_argument("--serve-bare", action="store_true")
    parser.add_argument("--serve-node", nargs="+")
    options = parser.parse_args()
    if options.serve_tls:
        serve_tls(options.serve_tls)
    elif options.serve_bare:
        trio.run(serve_bare)
    elif options.serve_node:
        folder, *sizes = options.serve_node
        trio.run(serve_node, Path(folder), [int(size) for size in sizes])
    else:
        sizes = [16 * MIB, 128 * MIB] + ([] if options.short or options.no_gibibyte else [1024 * MIB])
        repeats = 1 if options.short else 3
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {ssl.OPENSSL_VERSION}")
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            trio.run(requests, Path(folder), 400 if options.short else 1600, repeats)
            trio.run(blobs, Path(folder), sizes, repeats)
        print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
