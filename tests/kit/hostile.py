"""A provider that keeps to the wire and to nothing else: a raw client with keys of its own, driven by a test."""

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from hansa.market.effects import sealed, unsigned
from hansa.market.pricing import ProviderTerms, bid_for
from hansa.market.receipts import LeaseTerms, Statement, next_statement
from hansa.node.messaging.book import Book
from hansa.node.messaging.directory import Directory
from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import Context, Net, NetConfig, NetError
from hansa.proto.binding import Role, bind
from hansa.proto.codec import decode, encode
from hansa.proto.documents import MeterLine
from hansa.proto.market_documents import Advert, Bid, Device, Evidence
from hansa.proto.messages import AwardSent, BidSent, Direct, LeaseConfirmed, ReceiptSent, TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import MARKET, MAX_MARKET_BYTES
from hansa.proto.signing import SigningKey, sign
from hansa.proto.typed_data import digest
from hansa.proto.units import amount_for, price_per_hour_to_e18

ADVERT_LIFE_MS = 20_000


def now_ms() -> int:
    """UTC."""
    return time.time_ns() // 1_000_000


class HostileProvider:
    """Advertises the cheapest device there is, and does with what it is told whatever ``react`` does.

    Attributes:
        account: the key that would be paid.
        heard: every message of the buyer's.
        react: called with each message, beside the answer.
    """

    def __init__(self, net: Net, nursery: trio.Nursery, buyer: str, price_per_hour: str) -> None:
        """``buyer`` is the peer id of the buyer's node."""
        self.net, self.buyer, self._nursery = net, buyer, nursery
        self.account = SigningKey(os.urandom(32))
        self.heard: list[Any] = []
        self.react: Callable[[Any], Awaitable[None]] | None = None
        self.device = Device(
            id=os.urandom(32), kind="cpu", model="Xeon", memory_bytes=8 << 30, cores_milli=4_000, facts=()
        )
        self.terms = ProviderTerms(
            account=self.account.address,
            currency="USD",
            tier="sandbox",
            price_e18_per_device_ms=price_per_hour_to_e18(price_per_hour),
            voucher_timeout_ms=60_000,
            max_unpaid=10**6,
            grace_ms=60_000,
            credit_limit=10**9,
            bid_ms=10_000,
            reclaim_notice_ms=1_000,
        )
        self.bid: Bid | None = None
        self._news = trio.Event()

    def furnish(self, node: SigningKey) -> None:
        """Prove an account, show an advert, and listen."""
        hello = bind(
            self.account,
            node,
            DOMAIN,
            roles=Role.PROVIDER,
            spend_limit=0,
            not_before_ms=now_ms() - 60_000,
            not_after_ms=now_ms() + 3_600_000,
            epoch=1,
        )
        Directory(self.net, hello, now_ms).serve()
        book = Book(self.net, now_ms, lambda _: None)
        book.serve()
        advert = Advert(
            facts=(),
            signer=self.account.address,
            peer_id=self.net.peer_id,
            addresses=self.net.addrs(),
            devices=(self.device,),
            free=1,
            tier="sandbox",
            features=(),
            region="nowhere",
            currency="USD",
            price_e18_per_device_ms=self.terms.price_e18_per_device_ms,
            sequence=now_ms(),
            expires_ms=now_ms() + ADVERT_LIFE_MS,
        )
        # The buyer asks everybody who connects for their book, and finds this in it.
        book.take(sign(DOMAIN, advert, self.account))
        self.net.serve(MARKET, self._hear, max_request_bytes=MAX_MARKET_BYTES)

    async def _hear(self, _context: Context, data: bytes) -> bytes:
        message: Any = decode(data, Direct, limit_bytes=MAX_MARKET_BYTES)
        self.heard.append(message)
        self._news.set()
        self._news = trio.Event()
        if self.react is not None:
            self._nursery.start_soon(self.react, message)
        return b""

    async def until_heard(self, kind: type, patience_s: float = 20.0) -> Any:
        """The first message of a kind."""
        with trio.fail_after(patience_s):
            while True:
                for message in self.heard:
                    if isinstance(message, kind):
                        return message
                await self._news.wait()

    async def say(self, message: Any) -> None:
        """Bring a message to the buyer, with our own signature where one is missing."""
        await self.send(encode(sealed(message, self.account)))

    async def send(self, data: bytes) -> None:
        """Bring bytes to the buyer's market."""
        await self.net.request(self.buyer, MARKET, data, max_response_bytes=1)

    async def answer_with_bid(self, message: TenderSent) -> None:
        """The cheapest bid."""
        tender = message.tender.document
        self.bid = bid_for(
            tender,
            digest(DOMAIN, tender),
            (self.device,),
            self.terms,
            price_e18=self.terms.price_e18_per_device_ms,
            number=0,
            at_ms=now_ms(),
        )
        await self.say(BidSent(bid=unsigned(self.bid)))

    async def bid_and_confirm(self, message: Any) -> None:
        """A reaction: win by being cheapest, and confirm."""
        if isinstance(message, TenderSent):
            await self.answer_with_bid(message)
        elif isinstance(message, AwardSent):
            await self.say(LeaseConfirmed(lease=digest(DOMAIN, message.award.document)))

    def statement(self, award: AwardSent, *, since_ms: int, device_ms: int, factor: int = 1) -> Statement:
        """A receipt that is consistent in itself. ``factor`` multiplies what is charged."""
        assert self.bid is not None
        lease = digest(DOMAIN, award.award.document)
        price = self.bid.price_e18_per_device_ms
        line = MeterLine(
            lease=lease,
            shard=award.award.document.shard,
            device=self.device.id,
            start_ms=since_ms,
            end_ms=since_ms + device_ms,
            device_ms=device_ms,
            amount=amount_for(device_ms, price) * factor,
        )
        proof = Evidence(
            lease=lease, shard=line.shard, steps=1_000, rounds=0, checkpoint=bytes(32), tier="sandbox", busy_ms=0
        )
        return next_statement(
            channel_id=award.award.document.channel_id, last=None, lines={lease: line}, evidence={lease: proof}
        )

    def receipt(self, statement: Statement, key: SigningKey | None = None) -> ReceiptSent:
        """A statement as a message, signed by us or by whatever key."""
        return ReceiptSent(
            receipt=sign(DOMAIN, statement.receipt, key or self.account),
            lines=statement.lines,
            evidence=statement.evidence,
        )

    def agreed(self, award: AwardSent) -> LeaseTerms:
        """What the lease would pay at the most."""
        assert self.bid is not None
        return LeaseTerms(
            lease=digest(DOMAIN, award.award.document),
            job=bytes(32),
            shard=award.award.document.shard,
            devices=self.bid.devices,
            tier=self.bid.tier,
            price_e18_per_device_ms=self.bid.price_e18_per_device_ms,
            max_total=self.bid.max_total,
            begins_ms=now_ms(),
            ends_ms=award.award.document.ends_ms,
        )


@asynccontextmanager
async def hostile_provider(buyer_address: str, *, price_per_hour: str = "0.01") -> AsyncIterator[HostileProvider]:
    """A hostile provider that has just connected to the buyer."""
    node = SigningKey(os.urandom(32))
    async with open_net(NetConfig(), node.secret()) as net, trio.open_nursery() as nursery:
        made = HostileProvider(net, nursery, buyer_address.rpartition("/p2p/")[2], price_per_hour)
        made.furnish(node)
        await net.connect(buyer_address)
        yield made
        nursery.cancel_scope.cancel()


async def what_it_got(attempt: Awaitable[None]) -> str:
    """The name of the network's error that an attempt ended with, or ``"taken"``."""
    try:
        await attempt
    except NetError as fault:
        return type(fault).__name__
    return "taken"
