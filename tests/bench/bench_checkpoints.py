"""What a second checkpoint costs on the wire and on the disk, when some of it has changed since the one before.

Run with the environment's Python, from anywhere: ``python tests/bench/bench_checkpoints.py [MEBIBYTES [DIRECTORY]]``.
Two nodes over real libp2p on loopback, with their stores in the directory; the state is one of a network of so many MiB
in 64 layers, with a step and a growing list of losses beside them.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import trio

from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import Context, NetConfig
from hansa.node.storage.blob_exchange import BlobExchange
from hansa.node.storage.blobs import BlobStore
from hansa.proto.blob import BlobRef
from hansa.proto.protocols import BLOB
from hansa.proto.tensors import encode_state

SIZE_MIB = int(sys.argv[1]) if len(sys.argv) > 1 else 256
LAYERS = 64
State = dict[str, Any]


def first_state() -> State:
    """Layers of random weights."""
    random = np.random.default_rng(1)
    rows = (SIZE_MIB << 20) // LAYERS // 4 // 1024
    layers = {f"layer{number}": random.normal(size=(rows, 1024)).astype("<f4") for number in range(LAYERS)}
    return {"step": 9, "losses": np.zeros(9), "layers": layers}


def later(state: State, change: Callable[[dict[str, Any]], None]) -> State:
    """A hundred steps later, with some of the weights changed."""
    layers = {name: array.copy() for name, array in state["layers"].items()}
    change(layers)
    return {"step": 109, "losses": np.zeros(109), "layers": layers}


def nothing(layers: dict[str, Any]) -> None:
    """All layers are frozen."""


def one_in_place(layers: dict[str, Any]) -> None:
    """1 % of the weights, in one piece, as where an adapter or the last layer is trained."""
    rows = max(1, LAYERS * len(layers["layer63"]) // 100)
    for number in range(LAYERS - 1, -1, -1):
        layer = layers[f"layer{number}"]
        layer[-rows:] += 1
        rows -= len(layer)
        if rows <= 0:
            return


def one_in_rows(layers: dict[str, Any]) -> None:
    """1 % of the weights, in whole rows that lie anywhere, as where an embedding is trained."""
    random = np.random.default_rng(2)
    for layer in layers.values():
        layer[random.random(len(layer)) < 0.01] += 1


def all_of_it(layers: dict[str, Any]) -> None:
    """Every weight, as after a step of plain training."""
    for layer in layers.values():
        layer[:] += 1


class House:
    """A node with a store, which counts what it sends."""

    def __init__(self, net: Any, directory: Path) -> None:
        """Serve on this network."""
        self.net, self.store = net, BlobStore(directory, quota_bytes=1 << 40)
        self.exchange = BlobExchange(net, self.store, lambda _context, _ref: True)
        self.exchange.serve()
        self.sent_bytes = 0
        answer = self.exchange._answer

        async def counting(context: Context, data: bytes) -> bytes:
            found = await answer(context, data)
            self.sent_bytes += len(found)
            return found

        net.serve(BLOB, counting)


def used_bytes(directory: Path) -> int:
    """What of the file system is used; others may use it too."""
    os.sync()
    found = os.statvfs(directory)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def put(store: BlobStore, data: bytes, like: list[BlobRef]) -> tuple[BlobRef, float]:
    """Write a state as it comes out of a sandbox; answers how long that took."""
    since = time.perf_counter()
    writer = store.writer(len(data), like)
    for at in range(0, len(data), 512 << 10):
        writer.write(data[at : at + (512 << 10)])
    return writer.finish(), time.perf_counter() - since


async def measure(directory: Path) -> None:
    """Print a line for each kind of change."""
    async with open_net(NetConfig(), os.urandom(32)) as one, open_net(NetConfig(), os.urandom(32)) as other:
        provider, buyer = House(one, directory / "provider"), House(other, directory / "buyer")
        other.learn(one.peer_id, one.addrs())
        before = first_state()
        data = encode_state(before)
        old, seconds = put(provider.store, data, [])
        since = time.perf_counter()
        await buyer.exchange.fetch(old, [one.peer_id])
        print(f"the first checkpoint: {len(data) / 2**20:.1f} MiB; {provider.sent_bytes / len(data):.4f} of that sent")
        print(f"  written in {seconds:.2f} s, fetched in {time.perf_counter() - since:.2f} s")
        for change in (nothing, one_in_place, one_in_rows, all_of_it):
            data = encode_state(later(before, change))
            provider.sent_bytes, used = 0, used_bytes(directory)
            new, seconds = put(provider.store, data, [old])
            since = time.perf_counter()
            await buyer.exchange.fetch(new, [one.peer_id], like=[old])
            fetched_s = time.perf_counter() - since
            what = (change.__doc__ or "").rstrip(".")
            print(f"{provider.sent_bytes / len(data):8.4f} of a whole checkpoint sent   {what}")
            disk_mib = (used_bytes(directory) - used) / 2**20
            sent_mib = provider.sent_bytes / 2**20
            print(f"         {sent_mib:.1f} MiB; written in {seconds:.2f} s, fetched in {fetched_s:.2f} s")
            print(f"         {disk_mib:.1f} MiB more of the disk used by both")
            for house in (provider, buyer):
                house.store.delete(new)


if __name__ == "__main__":
    print(f"load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as place:
        trio.run(measure, Path(place))
    print(f"load {os.getloadavg()[0]:.1f}")
