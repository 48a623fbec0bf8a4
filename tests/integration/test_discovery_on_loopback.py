"""Real connections: a network lives on without its bootstrap node, and a large book comes within seconds."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from kit.memory_party import DEVICE, key
from kit.waiting import until

from hansa.node.messaging.book import Book
from hansa.node.messaging.discovery import Discovery
from hansa.node.messaging.peer_exchange import PeerExchange
from hansa.node.network.libp2p_host import Libp2pNet, open_net
from hansa.node.network.net import NetConfig
from hansa.proto.market_documents import Advert
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, sign

pytestmark = pytest.mark.trio


def now_ms() -> int:
    return int(time.time() * 1000)


def advert_of(number: int, peer_id: str, addresses: tuple[str, ...]) -> Signed[Advert]:
    account = key(50_000 + number)
    advert = Advert(
        signer=account.address,
        peer_id=peer_id,
        addresses=addresses,
        devices=(replace(DEVICE, id=account.address + bytes(12)),),
        free=1,
        tier="sandbox",
        features=(),
        region="here",
        facts=(),
        currency="USD",
        price_e18_per_device_ms=10**15 + number,
        sequence=now_ms(),
        expires_ms=now_ms() + 600_000,
    )
    return sign(DOMAIN, advert, account)


class Member:
    def __init__(self, net: Libp2pNet, number: int, data_dir: Path) -> None:
        self.net, self.number = net, number
        self.book = Book(net, now_ms, lambda advert: net.learn(advert.peer_id, advert.addresses, advert.peer_id))
        self.discovery = Discovery(
            net, self.book, now_ms, account=key(50_000 + number).address, useful=frozenset, data_dir=data_dir
        )
        self.discovery.serve()

    async def greet(self) -> None:
        async for peer_id in self.net.arrivals():
            await self.discovery.sync.greet(peer_id)

    async def publish(self) -> None:
        await self.book.publish(advert_of(self.number, self.net.peer_id, self.net.addrs()))

    def knows(self, *numbers: int) -> bool:
        there = {known.advert.signer for known in self.book.standing()}
        return all(key(50_000 + number).address in there for number in numbers)


@asynccontextmanager
async def member(number: int, directory: Path, *bootstrap: str) -> AsyncIterator[Member]:
    data_dir = directory / str(number)
    data_dir.mkdir(exist_ok=True)
    config = NetConfig(bootstrap=bootstrap)
    async with open_net(config, key(51_000 + number).secret()) as net, trio.open_nursery() as nursery:
        made = Member(net, number, data_dir)
        for task in (made.discovery.run, made.greet, PeerExchange(net).run):
            nursery.start_soon(task)
        yield made
        nursery.cancel_scope.cancel()


async def test_a_network_lives_on_without_its_bootstrap_node_and_a_node_that_restarts_finds_it(tmp_path: Path) -> None:
    async with member(0, tmp_path) as first:
        addr = first.net.addrs()[0]
        async with trio.open_nursery() as nursery:
            ready, gone = [trio.Event(), trio.Event()], trio.Event()

            async def others() -> None:
                async with member(1, tmp_path, addr) as one, member(2, tmp_path, addr) as two:
                    await until(lambda: one.net.is_live(two.net.peer_id))
                    await one.publish()
                    await until(lambda: two.knows(1))
                    ready[0].set()
                    await gone.wait()
                    await until(lambda: not one.net.is_live(first.net.peer_id))
                    await two.publish()
                    await until(lambda: one.knows(2))
                    ready[1].set()
                    async with member(3, tmp_path, two.net.addrs()[0]) as three:
                        await until(lambda: three.knows(1, 2))
                    # The same node again, with no list to start from but what it remembers.
                    async with member(3, tmp_path) as three:
                        await until(lambda: three.knows(1, 2))

            nursery.start_soon(others)
            await ready[0].wait()
            for peer_id in [peer.peer_id for peer in first.net.peers()]:
                first.net.bar(peer_id, 600, "this node is gone")
            gone.set()
            await ready[1].wait()


async def test_a_newcomer_has_a_book_of_two_thousand_within_seconds(tmp_path: Path) -> None:
    async with member(1, tmp_path) as one:
        for number in range(100, 2_100):
            one.book.take(advert_of(number, one.net.peer_id, one.net.addrs()))
        assert len(one.book.adverts) == 2_000
        async with member(2, tmp_path, one.net.addrs()[0]) as two:
            await until(lambda: len(two.book.adverts) == 2_000)
            assert two.net.counters().get("gossip.queue_full", 0) == 0
