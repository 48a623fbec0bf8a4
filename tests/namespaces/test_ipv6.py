"""Two public hosts that speak IPv6 and nothing else with each other, in network namespaces."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from kit.namespaces import Internet, NodeThread, internet

from hansa.node.network.net import NetConfig
from hansa.node.storage.blob_exchange import BlobExchange
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.bulk import BulkChannels
from hansa.proto.blob import CHUNK_BYTES

__all__ = ["internet"]
CHUNKS = 16


class House:
    """A node with a store, whose blobs everybody may have."""

    def __init__(self, node: NodeThread, folder: Path) -> None:
        self.node, self.store = node, BlobStore(folder, quota_bytes=1 << 30)
        node.ask(self._furnish)

    def _furnish(self) -> None:
        self.bulk = BulkChannels(self.node.net, self.store, lambda _context, _ref: True)
        self.exchange = BlobExchange(self.node.net, self.store, lambda _context, _ref: True, self.bulk)
        self.exchange.serve()
        self.node.nursery.start_soon(self.bulk.run)


@pytest.mark.parametrize("who", ["dials", "is dialled"])
def test_a_blob_comes_over_a_channel_of_its_own(internet: Internet, tmp_path: Path, who: str) -> None:
    sites = internet.public_host(), internet.public_host()
    try:
        addresses = [internet.give_ipv6(site) for site in sites]
    except OSError as fault:
        pytest.skip(f"no IPv6 in namespaces here: {fault}")
    with ExitStack() as stack:
        houses = []
        for site in sites:
            node = NodeThread(site, NetConfig(listen=("/ip6/::/tcp/4077",)), exchange=False)
            stack.callback(node.stop)
            houses.append(House(node, tmp_path / str(site.number)))
        one, other = houses
        assert any(addresses[1] in addr for addr in other.node.addrs)
        path = one.node.call(one.node.net.connect, f"/ip6/{addresses[1]}/tcp/4077/p2p/{other.node.peer_id}")
        assert path == "direct"
        other.node.until(lambda net: net.is_live(one.node.peer_id))
        fetcher, source = (one, other) if who == "dials" else (other, one)
        data = os.urandom(CHUNKS * CHUNK_BYTES)
        ref = source.store.put_bytes(data)
        came = fetcher.node.call(fetcher.exchange.fetch, ref, [source.node.peer_id])
        assert came.read_bytes() == data
        assert fetcher.bulk.counters["bulk.opened"] == 1
        assert source.bulk.counters["bulk.chunks_sent"] > 0
