"""What the local network says, and what an earlier life wrote down, never counts as the operator's word."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import trio
import trio.testing
from kit.memory_party import key

from hansa.node.messaging.book import Book
from hansa.node.messaging.discovery import Discovery
from hansa.node.messaging.lan_discovery import Believing, answer
from hansa.node.messaging.remembered_peers import save_peers
from hansa.node.network.libp2p_host import Libp2pNet, open_net
from hansa.node.network.net import NetConfig
from hansa.proto.peer_id import peer_id_of_key

pytestmark = pytest.mark.trio

PEER = peer_id_of_key(key(52_001).secret())
OPERATORS = "/ip4/8.8.4.4/tcp/4077"


@asynccontextmanager
async def a_node(data_dir: Path | None = None) -> AsyncIterator[tuple[Libp2pNet, Discovery]]:
    config = NetConfig(listen=("/ip4/0.0.0.0/tcp/0",))
    async with open_net(config, key(52_000).secret()) as net:
        book = Book(net, lambda: 1_000, lambda _advert: None)
        yield (
            net,
            Discovery(net, book, lambda: 1_000, account=key(52_002).address, useful=frozenset, data_dir=data_dir),
        )


def addrs_of(net: Libp2pNet) -> tuple[str, ...]:
    return net._acquaintances.addresses(PEER)


async def test_the_local_network_does_not_push_out_what_the_operator_gave() -> None:
    async with a_node() as (net, discovery):
        net.learn(PEER, (OPERATORS,))
        believing = Believing(net.peer_id, [IPv4Network("192.168.0.0/24")], discovery._near)
        for first in (1, 5):
            told = [f"/ip4/192.168.0.66/tcp/{port}/p2p/{PEER}" for port in range(first, first + 4)]
            believing.hears("192.168.0.66", answer("q" * 32, told), 1_000)
        assert addrs_of(net)[0] == OPERATORS
        assert "/ip4/192.168.0.66/tcp/8" in addrs_of(net)
        assert not any(net._acquaintances.is_given(PEER, addr) for addr in addrs_of(net) if addr != OPERATORS)


async def test_names_of_the_local_network_do_not_make_the_operators_be_forgotten() -> None:
    async with a_node() as (net, discovery):
        net.learn(PEER, (OPERATORS,))
        for number in range(1_100):
            discovery._near(peer_id_of_key(key(60_000 + number).secret()), "/ip4/192.168.0.9/tcp/1")
        assert net._acquaintances.is_given(PEER, OPERATORS)


async def test_what_was_hearsay_before_a_restart_is_hearsay_after_it(tmp_path: Path) -> None:
    name, inside, near = "/dns4/localhost/tcp/8080", "/ip4/127.0.0.1/tcp/1", "/ip4/192.168.0.9/tcp/1"
    save_peers(tmp_path, ((PEER, (name, inside, near)),))
    async with a_node(tmp_path) as (net, discovery), trio.open_nursery() as nursery:
        net.learn(PEER, (OPERATORS,))
        nursery.start_soon(discovery._come_back)
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
        assert addrs_of(net) == (OPERATORS, name, near)
        assert not net._acquaintances.is_given(PEER, name)
