"""A node of today and one of the time before, on real connections: messages and adverts pass, and nobody strikes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kit.memory_party import Party, advert_of, hello_of, key, now_ms
from kit.older_peer import LeaseRefused as OlderRefusal
from kit.older_peer import OlderPeer, OlderReader
from kit.raw_peer import ACK, DATA, FIN, RST, SYN, WINDOW, RawPeer, frame, line, raw_peer
from kit.waiting import until
from libp2p.peer.id import ID

from hansa.market.effects import Send
from hansa.node.messaging.book import Book
from hansa.node.messaging.book_sync import BookSync
from hansa.node.messaging.discovery import Discovery
from hansa.node.messaging.outbox import Outbox
from hansa.node.messaging.spoken import Spoken
from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import NetConfig, NotSpoken, RemoteFault
from hansa.proto.codec import encode
from hansa.proto.messages import LeaseConfirmed, LeaseRefused, ProofSent
from hansa.proto.protocols import BOOK, OLDER_ADVERT_TOPIC, OLDER_MARKET
from hansa.scheduler.advert_classes import CLASSES

pytestmark = pytest.mark.trio
LEASE = b"\x01" * 32
NEW, OLD = "/hansa/tale/2", "/hansa/tale/1"


@asynccontextmanager
async def node(number: int) -> AsyncIterator[Party]:
    account, secret = key(number), key(number + 1000)
    async with open_net(NetConfig(), secret.secret()) as net:
        made: Any = Party(net, account, secret, hello_of(account, secret))  # type: ignore[arg-type]
        made.directory.serve()
        yield made


async def test_an_older_node_is_told_in_its_own_words(nursery):
    async with node(1) as new, node(2) as old:
        older = OlderPeer(old.net)
        await new.net.connect(old.net.addrs()[0])
        new.directory.hint(old.account.address, old.peer_id)
        outbox = Outbox(new.net, new.directory, new.account, now_ms)
        await nursery.start(outbox.serve)
        for message in (
            LeaseRefused(lease=LEASE, kind="mismatch", reason="x" * 500),
            ProofSent(proof=bytes(50_000)),
            LeaseConfirmed(lease=LEASE),
        ):
            outbox.put(Send(to=old.account.address, message=message, keep_until_ms=now_ms() + 60_000))
        await until(lambda: len(older.heard) == 2)
        assert older.heard == [OlderRefusal(lease=LEASE, reason="x" * 500), LeaseConfirmed(lease=LEASE)]
        assert older.strikes_against(new.peer_id) == 0
        assert outbox.counters == {"outbox: an older node knows no ProofSent": 1}


async def test_what_would_be_a_strike_is_one():
    """What a node did that did not ask first: the older one counts a wrong for each of today's words."""
    async with node(1) as new, node(2) as old:
        older = OlderPeer(old.net)
        await new.net.connect(old.net.addrs()[0])
        for message in (LeaseRefused(lease=LEASE, kind="mismatch", reason="no"), ProofSent(proof=b"")):
            with pytest.raises(RemoteFault):
                await new.net.request(old.peer_id, OLDER_MARKET, encode(message))
        assert older.strikes_against(new.peer_id) == 2


class Abrupt:
    """Speaks one number, and ends a stream over anything that stands behind a protocol which it does not speak."""

    def __init__(self, peer: RawPeer, speaks: str) -> None:
        self._peer, self._speaks = peer, speaks.encode()
        self._read: dict[int, bytes] = {}
        self._agreed: dict[int, bytes] = {}
        self.cut = self.answered = 0

    async def serve(self) -> None:
        while True:
            kind, flags, stream_id, _, content = await self._peer.next_frame()
            if kind in (DATA, WINDOW) and stream_id and not stream_id % 2:
                if flags & SYN:
                    await self._peer.send(frame(WINDOW, ACK, stream_id, 0))
                    self._read[stream_id] = b""
                if kind == DATA and stream_id in self._read:
                    self._read[stream_id] += content
                    await self._answer(stream_id)

    async def _answer(self, stream_id: int) -> None:
        data = self._read[stream_id]
        start = line(b"/multistream/1.0.0")
        size = data[len(start)] if len(data) > len(start) else 0
        if not data.startswith(start) or len(data) < len(start) + 1 + size or not size:
            return
        asked, rest = data[len(start) + 1 : len(start) + size], data[len(start) + 1 + size :]
        if asked == self._speaks:
            if len(rest) >= 4 and len(rest) == 4 + int.from_bytes(rest[:4], "big"):
                await self._send(stream_id, start + line(asked) + b"\x00" + rest, FIN)
                self.answered += 1
            elif not rest:
                await self._send(stream_id, start + line(asked), 0)
                self._agreed[stream_id] = start + line(asked)
        elif rest:
            self.cut += 1
            await self._peer.send(frame(WINDOW, RST, stream_id, 0))
            del self._read[stream_id]
        else:
            await self._send(stream_id, start + line(b"na"), 0)

    async def _send(self, stream_id: int, data: bytes, flags: int) -> None:
        data = data.removeprefix(self._agreed.get(stream_id, b""))
        await self._peer.send(frame(DATA, flags, stream_id, len(data), data))


async def test_a_no_is_heard_though_the_other_side_breaks_off_over_what_comes_behind_its_protocol(nursery):
    async with node(1) as new, raw_peer(new.net.addrs()[0]) as raw:
        await raw.mux()
        abrupt = Abrupt(raw, OLD)
        nursery.start_soon(abrupt.serve)
        name = ID.from_pubkey(raw.keys.public_key).to_base58()
        await until(lambda: new.net.is_live(name))
        with pytest.raises(RemoteFault):
            await new.net.request(name, NEW, b"tale")
        assert abrupt.cut == 1
        with pytest.raises(NotSpoken):
            await new.net.request(name, NEW, b"tale", agree_first=True)
        spoken = Spoken(new.net, (NEW, OLD), now_ms)
        for _ in range(2):
            assert await spoken.request(name, lambda number: b"as " + number[-1:].encode()) == b"as 1"
        assert abrupt.cut == 1, "nothing was broken off any more"
        nursery.cancel_scope.cancel()


async def test_a_pull_of_the_book_hears_the_no_as_well(nursery):
    async with node(1) as new, raw_peer(new.net.addrs()[0]) as raw:
        await raw.mux()
        abrupt = Abrupt(raw, BOOK)
        nursery.start_soon(abrupt.serve)
        name = ID.from_pubkey(raw.keys.public_key).to_base58()
        await until(lambda: new.net.is_live(name))
        book = Book(new.net, now_ms, lambda _advert: None)
        sync = BookSync(new.net, book, now_ms, own=lambda: new.account.address, classes=lambda: CLASSES)
        assert await sync.pull(name) == 0
        assert abrupt.cut == 0
        assert abrupt.answered == 1, "it was asked as nodes of its time were"
        nursery.cancel_scope.cancel()


async def test_adverts_pass_both_ways_and_go_on_passing(nursery):
    async with node(1) as new, node(2) as old:
        book = Book(new.net, now_ms, lambda advert: new.net.learn(advert.peer_id, advert.addresses))
        discovery = Discovery(new.net, book, now_ms, account=new.account.address, useful=frozenset)
        discovery.serve()
        nursery.start_soon(discovery.run)
        reader = OlderReader(old.net, now_ms)
        await new.net.connect(old.net.addrs()[0])
        await until(lambda: bool(new.net.listeners(OLDER_ADVERT_TOPIC)) and bool(old.net.listeners(OLDER_ADVERT_TOPIC)))
        for sequence in (1, 2):
            await book.publish(advert_of(new, sequence=sequence))
            await reader.publish(advert_of(old, sequence=sequence))
            await until(lambda: new.account.address in reader.accounts)
            await until(lambda: old.account.address in {known.advert.signer for known in book.standing()})
        assert [peer.strikes for net in (new.net, old.net) for peer in net.peers()] == [0, 0]
        assert await discovery.sync.pull(old.peer_id) == 0
        assert [peer.strikes for net in (new.net, old.net) for peer in net.peers()] == [0, 0]
        nursery.cancel_scope.cancel()
