"""A node of js-libp2p, written by docs/protocol.md alone, among nodes of ours: its advert, its tender, its search."""

import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from kit import trading
from kit.js_packages import INTEROP, find_js_packages
from kit.memory_party import key

from hansa.market.effects import Send, unsigned
from hansa.node.engine.events import MessageArrived
from hansa.node.messaging.book import Book
from hansa.node.messaging.courier import Courier
from hansa.node.messaging.directory import Directory
from hansa.node.messaging.discovery import Discovery
from hansa.node.messaging.outbox import Outbox
from hansa.node.network.libp2p_host import Libp2pNet, open_net
from hansa.node.network.net import NetConfig
from hansa.proto.binding import Role, bind
from hansa.proto.market_documents import Advert
from hansa.proto.messages import BidSent, TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import BOOK_SYNC, HELLO, MARKET
from hansa.proto.signing import parse_address, sign
from hansa.proto.typed_data import digest

pytestmark = [pytest.mark.trio, pytest.mark.slow]

VECTORS = INTEROP.parent / "vectors" / "protocol.json"
TIMEOUT_S = 120
FORGED = "gossip.rejected /hansa/adverts/1/gpu-80"
OURS, OUR_NODE, TABLE_NODE = key(60_001), key(60_002), key(60_003)


def now_ms() -> int:
    return int(time.time() * 1000)


class Node:
    """One of ours: it greets, hears adverts, takes tenders and answers each with a bid."""

    def __init__(self, net: Libp2pNet) -> None:
        self.net = net
        self.taken: list[Any] = []
        hello = bind(
            OURS, OUR_NODE, DOMAIN,
            roles=Role.BUYER | Role.PROVIDER, spend_limit=0,
            not_before_ms=now_ms() - 60_000, not_after_ms=now_ms() + 3_600_000, epoch=1,
        )  # fmt: skip
        self.directory = Directory(net, hello, now_ms)
        self.book = Book(net, now_ms, lambda _advert: None)
        self.discovery = Discovery(net, self.book, now_ms, account=OURS.address, useful=frozenset)
        self.outbox = Outbox(net, self.directory, OURS, now_ms)
        self.courier = Courier(net, self.directory, take=self.take, log=lambda _sender, _log: None, now_ms=now_ms)
        for room in (self.directory, self.discovery, self.courier):
            room.serve()

    async def take(self, event: MessageArrived) -> None:
        self.taken.append(event)
        if isinstance(event.message, TenderSent):
            bid = trading.bid(event.message.tender.document, key=OURS, expires_ms=now_ms() + 60_000).document
            self.outbox.put(Send(to=event.sender, message=BidSent(bid=unsigned(bid)), keep_until_ms=now_ms() + 60_000))

    async def publish(self) -> None:
        """Our own advert, again and again, on the topic that the other one hears."""
        gpu = replace(trading.DEVICE, id=b"g" * 32, kind="gpu", model="H100", memory_bytes=80 << 30)
        while True:
            advert = Advert(
                signer=OURS.address,
                peer_id=self.net.peer_id,
                addresses=self.net.addrs(),
                devices=(gpu,),
                free=1,
                tier="sandbox",
                features=(),
                region="here",
                facts=(),
                currency="USD",
                price_e18_per_device_ms=1,
                sequence=now_ms(),
                expires_ms=now_ms() + 60_000,
            )
            await self.book.publish(sign(DOMAIN, advert, OURS))
            await trio.sleep(1.5)


@asynccontextmanager
async def nodes() -> AsyncIterator[tuple[Node, Libp2pNet]]:
    """The node that is dialled, and one that stands in its part of the network's table."""
    async with open_net(NetConfig(), OUR_NODE.secret()) as net, trio.open_nursery() as nursery:
        made = Node(net)
        await nursery.start(made.outbox.serve)
        nursery.start_soon(made.discovery.run)
        nursery.start_soon(made.publish)
        async with open_net(NetConfig(bootstrap=net.addrs()[:1]), TABLE_NODE.secret()) as other:
            other.advertise(("gpu-80/*",))
            yield made, other
            nursery.cancel_scope.cancel()


async def steps_of(addr: str, room: Path, packages: Path) -> list[dict[str, Any]]:
    """Run the node of JavaScript to its end; what came of each step."""
    for name in ("hansa.mjs", "node.mjs", "polyfill.cjs"):
        shutil.copy(INTEROP / name, room / name)
    (room / "node_modules").symlink_to(packages)
    wanted = json.dumps({"addr": addr, "vectors": str(VECTORS)})
    command = ["node", "--require", "./polyfill.cjs", "node.mjs", wanted]
    with trio.move_on_after(TIMEOUT_S):
        done = await trio.run_process(
            command, cwd=room, capture_stdout=True, capture_stderr=True, check=False, stdin=subprocess.DEVNULL
        )
        said = done.stderr.decode(errors="replace")
        assert done.returncode == 0, said[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]
    pytest.fail(f"the node of JavaScript was not done within {TIMEOUT_S} s")


@pytest.fixture
def packages() -> Path:
    """The directory with what npm brought."""
    found, why = find_js_packages()
    if found is None:
        pytest.skip(why)
    return found


async def test_a_node_in_javascript_trades_by_the_documentation_alone(tmp_path, packages):
    js = json.loads(VECTORS.read_text())["keys"]
    account, peer_id = parse_address(js["provider"]["address"]), js["provider's node"]["peer_id"]
    async with nodes() as (ours, other):
        steps = await steps_of(ours.net.addrs()[0], tmp_path, packages)
        with trio.move_on_after(30):
            while not ours.net.counters().get(FORGED):  # noqa: ASYNC110
                await trio.sleep(0.1)
        counters = ours.net.counters()
    found = {step["did"]: step for step in steps}

    assert found["checked"]["documents"] >= 14
    assert found["identified"]["peer"] == ours.net.peer_id
    assert {HELLO, MARKET, BOOK_SYNC, "/hansa/kad/1.0.0", "/meshsub/1.1.0"} <= set(found["identified"]["protocols"])
    assert found["met"]["account"] == OURS.address.hex()
    assert found["heard"] == {"did": "heard", "signer": OURS.address.hex(), "topic": "/hansa/adverts/1/gpu-80"}

    known = ours.book.adverts.get(account)
    assert known is not None, "its advert is in our book"
    assert known.advert.peer_id == peer_id
    assert known.advert.free == 1, "and the one that it did not sign is not"
    assert counters.get(FORGED) == 1

    (event,) = ours.taken
    assert (event.sender, event.message.tender.document.peer_id) == (account, peer_id)
    tender = digest(DOMAIN, event.message.tender.document).hex()
    assert found["tendered"]["tender"] == tender
    assert found["bid"] == {
        "did": "bid",
        "name": "BidSent",
        "signer": OURS.address.hex(),
        "named": OURS.address.hex(),
        "tender": tender,
    }
    assert found["found"]["providers"] == [other.peer_id]
    assert found["wrong"] == {"did": "wrong", "taken": False}
    assert counters[f"serve.protocol_error {MARKET}"] == 1
