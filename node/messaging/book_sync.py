"""Books that agree: pulling what is missing from neighbours, when they come and now and then.

How is in ``hansa.scheduler.book_comparing``; the protocol is ``/hansa/book/2``. Everything that comes is checked as
if it came by gossip; what is asked and answered is bounded in number, size and rate.
"""

import random
from collections.abc import Callable, Collection, Sequence

import trio

from hansa.node.engine.gate import PeerRate
from hansa.node.messaging.book import ALL, Book, in_one_answer
from hansa.node.network.net import Context, Net, NetError, NotSpoken, Refused, Verdict
from hansa.proto.book_messages import MAX_WANTED, AdvertsWanted, BookCompared, BookDifference, OwnAdvertWanted
from hansa.proto.codec import decode, encode
from hansa.proto.errors import ProtocolError
from hansa.proto.market_documents import Advert
from hansa.proto.messages import BookSent
from hansa.proto.protocols import BOOK_SYNC, MAX_BOOK_BYTES, MAX_BOOK_REQUEST_BYTES
from hansa.proto.signing import Signed
from hansa.proto.units import Address
from hansa.scheduler.book_comparing import (
    FEW_PROMISES,
    Brought,
    Lied,
    Promise,
    Sources,
    difference,
    pause_after,
    pull,
)

ASKED_AT_ONCE = 40
ASKED_EVERY_MS = 250
"""What one peer may ask. A newcomer to a market of 10,000 providers asks for about fifteen answers."""
ANSWERS_AT_ONCE = 120
ANSWER_EVERY_MS = 100
"""Answers full of adverts that all peers together get: one costs everybody tens of milliseconds."""
PULLS_AT_ONCE = 3
"""Pulls from newly met neighbours that run beside each other: enough to make up for one that withholds."""
CHECKED_IN_A_ROW = 16
"""So many signatures are looked into before others have a turn: half a thousand would hold up everybody for a
second."""
AGREES_FOR_MS = 5_000
"""Two that compared their books a moment ago have nothing to tell each other."""
MOST_REMEMBERED = 1024
TIMEOUT_MS = 20_000
PULL_S = 60.0
"""For one pull with all of its answers: each may be in time, and there be no end of them."""


class BookSync:
    """Answers who compares books with us, and compares ours with others'."""

    def __init__(
        self,
        net: Net,
        book: Book,
        now_ms: Callable[[], int],
        *,
        own: Callable[[], Address],
        classes: Callable[[], Collection[str]],
        chance: random.Random | None = None,
    ) -> None:
        """``own`` is this node's account; ``classes`` are those whose adverts it wants."""
        self._net, self._book, self._now_ms = net, book, now_ms
        self._own, self._classes = own, classes
        self._chance = chance or random.Random()  # noqa: S311  # only spreads questions over neighbours
        self._rate = PeerRate(ASKED_AT_ONCE, ASKED_EVERY_MS)
        self._answers = PeerRate(ANSWERS_AT_ONCE, ANSWER_EVERY_MS)
        self._sources = Sources()
        self._pulled_at: dict[str, int] = {}
        self._room = trio.CapacityLimiter(PULLS_AT_ONCE)
        self.pulled = 0
        """Adverts that came this way."""

    def serve(self) -> None:
        """Answer."""
        self._net.serve(
            BOOK_SYNC,
            self._answer,
            max_request_bytes=MAX_BOOK_REQUEST_BYTES,
            per_peer=2,
            total=16,
            timeout_ms=TIMEOUT_MS,
        )

    async def _answer(self, context: Context, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._rate.admits(context.peer_id.encode(), self._now_ms()):
            raise Refused("busy: more questions about the book than one peer may ask")
        asked = decode(data, BookCompared | AdvertsWanted | OwnAdvertWanted, limit_bytes=MAX_BOOK_REQUEST_BYTES)
        book = self._book.adverts
        if isinstance(asked, BookCompared):
            return encode(difference(book, asked, self._now_ms()))
        if isinstance(asked, AdvertsWanted) and not self._answers.admits(ALL, self._now_ms()):
            raise Refused("busy: more adverts than are handed out at a time")
        accounts = asked.accounts if isinstance(asked, AdvertsWanted) else (self._own(),)
        known = (book.get(account) for account in accounts)
        now_ms = self._now_ms()
        return encode(
            BookSent(
                adverts=in_one_answer((one for one in known if one and one.advert.expires_ms > now_ms), MAX_WANTED)
            )
        )

    async def run(self) -> None:
        """Pull from a neighbour now and then, until cancelled."""
        brought = 0
        while True:
            await trio.sleep(pause_after(brought, self._chance.random()) / 1000)
            live = [peer_id for peer_id, phase in self._net.phases().items() if phase == "live"]
            good = self._sources.good(live, self._now_ms())
            brought = await self.pull(self._chance.choice(good)) if good else 0

    async def greet(self, peer_id: str) -> int:
        """Pull from a neighbour that has just come, unless it was compared with a moment ago."""
        async with self._room:
            now_ms = self._now_ms()
            if now_ms < self._pulled_at.get(peer_id, -AGREES_FOR_MS) + AGREES_FOR_MS:
                return 0
            return await self.pull(peer_id) if self._sources.good([peer_id], now_ms) else 0

    async def pull(self, peer_id: str) -> int:
        """Fetch what a peer has and this node lacks. Answers how many adverts were news."""
        self._pulled_at[peer_id] = self._now_ms()
        while len(self._pulled_at) > MOST_REMEMBERED:
            del self._pulled_at[next(iter(self._pulled_at))]
        before = self.pulled
        try:
            with trio.move_on_after(PULL_S) as deadline:
                await self._pull(peer_id)
            if deadline.cancelled_caught:
                # What came is kept; the rest is as good as promised and not delivered.
                self._sources.heard(peer_id, promised=FEW_PROMISES, delivered=0, now_ms=self._now_ms())
        except NotSpoken:
            # A node of the time before there were digests.
            self.pulled += await self._book.copy_from(peer_id)
        except NetError:
            pass
        except ProtocolError:
            self._net.strike(peer_id, "a book that is none")
        except Lied as lie:
            self._net.strike(peer_id, str(lie))
        return self.pulled - before

    async def _pull(self, peer_id: str) -> None:
        pulling = pull(self._book.adverts, self._classes, Address(self._chance.randbytes(20)))
        answer: BookDifference | BookSent | None = None
        while True:
            try:
                step = pulling.send(answer)
            except StopIteration:
                return
            answer = None
            match step:
                case BookCompared():
                    answer = await self._ask(peer_id, step, BookDifference)
                case AdvertsWanted():
                    answer = await self._ask(peer_id, step, BookSent)
                case Brought():
                    await self._take_all(step.adverts)
                case Promise():
                    self._sources.heard(
                        peer_id, promised=step.promised, delivered=step.delivered, now_ms=self._now_ms()
                    )

    async def _take_all(self, adverts: Sequence[Signed[Advert]]) -> None:
        for number, signed in enumerate(adverts):
            if number % CHECKED_IN_A_ROW == CHECKED_IN_A_ROW - 1:
                await trio.lowlevel.checkpoint()
            verdict = self._book.take_brought(signed)
            if verdict is Verdict.REJECT:
                # One is enough: whoever hands on what it has not checked is not worth another signature.
                raise Lied("a forged advert in its book")
            self.pulled += verdict is Verdict.ACCEPT

    async def advert_of(self, peer_id: str) -> bool:
        """Ask a peer for its own advert. Answers whether one that stands is known now."""
        try:
            sent = await self._ask(peer_id, OwnAdvertWanted(), BookSent)
        except NetError:
            return False
        except ProtocolError:
            self._net.strike(peer_id, "an advert that is none")
            return False
        assert isinstance(sent, BookSent)
        if len(sent.adverts) != 1 or sent.adverts[0].document.peer_id != peer_id:
            return False
        verdict = self._book.take_brought(sent.adverts[0])
        if verdict is Verdict.REJECT:
            self._net.strike(peer_id, "a forged advert")
        known = self._book.adverts.get(sent.adverts[0].document.signer)
        return known is not None and known.advert.peer_id == peer_id

    async def _ask(
        self, peer_id: str, asked: BookCompared | AdvertsWanted | OwnAdvertWanted, kind: type[BookDifference | BookSent]
    ) -> BookDifference | BookSent:
        answer = await self._net.request(
            peer_id,
            BOOK_SYNC,
            encode(asked),
            timeout_ms=TIMEOUT_MS,
            max_response_bytes=MAX_BOOK_BYTES,
            # A pull's first words: whoever speaks only the number before must be able to say so.
            agree_first=isinstance(asked, BookCompared),
        )
        told: BookDifference | BookSent = decode(answer, kind, limit_bytes=MAX_BOOK_BYTES)
        return told
