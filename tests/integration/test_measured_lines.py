"""Two real providers, one behind a slow line: what the buyer's node measures of both, and whom it chooses then."""

import contextlib
import os
import socket
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, OTHER, OTHER_KEY, PRICE, PROVIDER, PROVIDER_KEY, spec

from hansa.market.bandwidth import BACK, THERE
from hansa.market.scoring import MEASURED_HERE, UNKNOWN
from hansa.node.engine import events
from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import NetConfig
from hansa.node.storage.blob_exchange import BlobExchange
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.bulk import BulkChannels
from hansa.node.storage.bulk_line import BulkLine
from hansa.node.storage.line_meter import LULL_S, LineMeter
from hansa.proto.blob import CHUNK_BYTES

pytestmark = [
    pytest.mark.trio,
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="keys are kept in memory only where files can be, too"),
]
SLOW_BYTES_PER_S = 5_000_000
STATE_BYTES = 24 * CHUNK_BYTES
DEARER = PRICE * 21 // 20


class House:
    """A node that gives its blobs to everybody."""

    def __init__(self, net, folder: Path, meter: LineMeter | None = None) -> None:
        self.net = net
        self.store = BlobStore(folder, quota_bytes=1 << 30)
        self.bulk = BulkChannels(net, self.store, lambda *_: True, meter=meter)
        self.exchange = BlobExchange(net, self.store, lambda *_: True, self.bulk, meter)
        self.exchange.serve()

    async def bring(self, source: "House") -> None:
        """A state of the other's comes here."""
        ref = await trio.to_thread.run_sync(source.store.put_bytes, os.urandom(STATE_BYTES))
        with trio.fail_after(120):
            await self.exchange.fetch(ref, [source.net.peer_id])


class SlowLine:
    """Whoever connects to it reaches the other end, so many bytes in a second each way, all connections together."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free_s = dict.fromkeys((THERE, BACK), 0.0)

    async def serve(self, task_status=trio.TASK_STATUS_IGNORED) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        listener.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 1 << 16)
        task_status.started(listener.socket.getsockname()[1])
        await trio.serve_listeners(self._join, [listener])

    async def _join(self, stream: trio.SocketStream) -> None:
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self._port) as beyond, trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_on, THERE, stream, beyond, nursery.cancel_scope)
                nursery.start_soon(self._pass_on, BACK, beyond, stream, nursery.cancel_scope)
        except OSError:
            pass

    async def _pass_on(self, way, source, sink, scope) -> None:
        try:
            while data := await source.receive_some(16_384):
                self._free_s[way] = max(self._free_s[way], trio.current_time()) + len(data) / SLOW_BYTES_PER_S
                await trio.sleep_until(self._free_s[way])
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


def market() -> SmallMarket:
    """The slow provider is the cheaper one. Both have had a lease, so that there are channels to both."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=3)
    made.add(OTHER_KEY, devices=3, price_e18_per_device_ms=DEARER)
    made.submit(BUYER, of=spec(shards=2, most_each=1))
    made.tender(BUYER, (PROVIDER, OTHER), shards=(0, 1))
    return made


def choose(made: SmallMarket, job: bytes):
    """Whom a job of one shard with rounds goes to: the provider, and the table by provider."""
    made.submit(BUYER, job=job, of=spec(shards=1, round_bytes=STATE_BYTES, round_every_ms=20_000))
    made.tender(BUYER, (PROVIDER, OTHER), job=job, nonce=job)
    bought = next(each for _, each in made.engines[BUYER].state.purchases.all() if each.tender.job == job)
    return bought.placements[0].provider, {entry.provider: entry for entry in bought.ranking}


async def test_what_the_kernel_took_and_the_other_side_did_not_is_not_sent_yet():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as near:
        far, _ = listener.accept()
        near.setblocking(False)
        given = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                given += near.send(bytes(65_536))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        line = BulkLine(near.dup(), context, serving=False)
        with far, trio.fail_after(30):
            assert 0 < line.unsent_bytes < given
            while given:
                given -= len(far.recv(given))
            while line.unsent_bytes:  # noqa: ASYNC110  # the kernel confirms when it likes
                await trio.sleep(0.01)
        line.close()
        assert line.unsent_bytes == 0


async def test_after_it_has_measured_both_lines_the_buyer_takes_the_dearer_provider_with_the_faster_one(tmp_path):
    made = market()
    first, table = choose(made, b"1" * 32)
    assert (first, table[PROVIDER].line_source, table[PROVIDER].rounds) == (PROVIDER, UNKNOWN, 0)
    accounts: dict[str, bytes] = {}
    told = []

    def tell(peer_id: str, way: str, bytes_per_s: int, is_bound: bool) -> None:
        told.append((accounts[peer_id], way))
        event = events.LineMeasured(
            provider=accounts[peer_id], way=way, bytes_per_s=bytes_per_s, is_bound=is_bound, at_ms=made.now_ms
        )
        made.take(BUYER, event)

    meter = LineMeter(tell)
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        houses = []
        for number in range(3):
            net = await stack.enter_async_context(open_net(NetConfig(), os.urandom(32)))
            houses.append(House(net, tmp_path / str(number), meter if not number else None))
            nursery.start_soon(houses[-1].bulk.run)
        buyer, slow, fast = houses
        accounts |= {slow.net.peer_id: PROVIDER, fast.net.peer_id: OTHER}
        port = await nursery.start(SlowLine(int(slow.net.addrs()[0].split("/")[4])).serve)
        buyer.net.learn(slow.net.peer_id, [f"/ip4/127.0.0.1/tcp/{port}"])
        buyer.net.learn(fast.net.peer_id, fast.net.addrs())
        for provider in (slow, fast):
            await buyer.net.connect(provider.net.peer_id, 10_000)
            await buyer.bring(provider)
            await provider.bring(buyer)
            await trio.sleep(2 * LULL_S)
            meter.sweep()
        assert buyer.bulk.counters["bulk.opened"] == 2
        nursery.cancel_scope.cancel()
    assert sorted(told) == sorted((account, way) for account in (PROVIDER, OTHER) for way in (THERE, BACK))
    lines = made.engines[BUYER].state.lines
    for way in (THERE, BACK):
        seen = lines[PROVIDER].bytes_per_s(way, made.now_ms)
        # What the kernels on the way hold for a moment makes the shorter one look a little faster than it is.
        assert SLOW_BYTES_PER_S // 3 < seen < SLOW_BYTES_PER_S * 4 // 3, way
        assert lines[OTHER].bytes_per_s(way, made.now_ms) > 2 * seen, way
    chosen, table = choose(made, b"2" * 32)
    assert chosen == OTHER
    assert table[PROVIDER].line_source == table[OTHER].line_source == MEASURED_HERE
    assert table[PROVIDER].finishing < table[OTHER].finishing
    assert table[PROVIDER].rounds > table[OTHER].rounds
