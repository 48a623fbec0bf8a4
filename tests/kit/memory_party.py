"""Nodes of a market without sockets: real directories over the network that keeps to memory."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from kit.memory_net import MemoryHub, MemoryNet

from hansa.node.messaging.directory import Directory
from hansa.node.network.net import NetConfig
from hansa.proto.binding import Role, bind
from hansa.proto.market_documents import Advert, Device
from hansa.proto.messages import Hello
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, SigningKey, sign

START_MS = 1_700_000_000_000
LIFE_MS = 1_000_000
DEVICE = Device(id=b"d" * 32, kind="cpu", model="Xeon", memory_bytes=4 << 30, cores_milli=2_000, facts=())


def now_ms() -> int:
    """UTC as trio's clock tells it, so that a mock clock moves it."""
    return START_MS + int(trio.current_time() * 1000)


def key(number: int) -> SigningKey:
    """A key of its own for every number."""
    return SigningKey(number.to_bytes(32, "big"))


class Party:
    """One account, its node, and who it knows.

    Attributes:
        account, node: the two keys.
        net: its network.
        hello: what it says of itself.
        directory: who is who.
    """

    def __init__(self, net: MemoryNet, account: SigningKey, node: SigningKey, hello: Hello) -> None:
        """Stand on a network."""
        self.net, self.account, self.node, self.hello = net, account, node, hello
        self.directory = Directory(net, hello, now_ms)

    @property
    def peer_id(self) -> str:
        """Its name on the network."""
        return self.net.peer_id

    def strikes(self, other: "Party") -> int:
        """How many strikes it counts against another."""
        return sum(peer.strikes for peer in self.net.peers() if peer.peer_id == other.peer_id)

    def knows(self, other: "Party") -> None:
        """Learn where another can be dialled."""
        self.net.learn(other.peer_id, other.net.addrs())


def hello_of(account: SigningKey, node: SigningKey, **changes: Any) -> Hello:
    """A binding that holds now."""
    terms: dict[str, Any] = {
        "roles": Role.BUYER | Role.PROVIDER,
        "spend_limit": 10**9,
        "not_before_ms": now_ms() - 60_000,
        "not_after_ms": now_ms() + LIFE_MS,
        "epoch": 1,
    }
    return bind(account, node, DOMAIN, **(terms | changes))


@asynccontextmanager
async def party(
    hub: MemoryHub,
    number: int,
    *,
    node: int = 0,
    hello: Callable[[SigningKey, SigningKey], Hello] = hello_of,
) -> AsyncIterator[Party]:
    """Somebody on the hub. ``node`` gives the node another key than the usual; ``hello`` makes what it says."""
    account, node_key = key(number), key(node or number + 1000)
    async with hub.open_net(NetConfig(), node_key.secret()) as net:
        made = Party(net, account, node_key, hello(account, node_key))
        made.directory.serve()
        yield made


def advert_of(some: Party, **changes: Any) -> Signed[Advert]:
    """What this party would lend, signed by it."""
    terms: dict[str, Any] = {
        "signer": some.account.address,
        "peer_id": some.peer_id,
        "addresses": some.net.addrs(),
        "devices": (DEVICE,),
        "free": 1,
        "tier": "sandbox",
        "features": (),
        "region": "here",
        "facts": (),
        "currency": "USD",
        "price_e18_per_device_ms": 10**18,
        "sequence": now_ms(),
        "expires_ms": now_ms() + 60_000,
    }
    return sign(DOMAIN, Advert(**(terms | changes)), some.account)


def bent(signature: bytes) -> bytes:
    """A signature with one bit of its middle flipped."""
    return signature[:40] + bytes((signature[40] ^ 1,)) + signature[41:]
