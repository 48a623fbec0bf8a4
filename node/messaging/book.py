"""The market's book on the network: adverts that come by gossip, and in answer to those who ask.

What an advert must be, and how it is found, is in ``hansa.scheduler.advert_book``. The book is soft: it is not
journaled, and is full again seconds after a restart (``hansa.node.messaging.book_sync``).
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import zip_longest

from hansa.node.engine.gate import PeerRate
from hansa.node.network.net import Context, Net, NetError, Refused, Validator, Verdict
from hansa.proto.codec import decode, encode
from hansa.proto.errors import ProtocolError
from hansa.proto.market_documents import Advert, Device, Requirements
from hansa.proto.messages import MAX_BOOK_ADVERTS, AdvertPublished, BookRequested, BookSent
from hansa.proto.protocols import BOOK, MAX_ADVERT_BYTES, MAX_BOOK_BYTES, OLDER_ADVERT_TOPIC, advert_topic
from hansa.proto.signing import Signed
from hansa.scheduler.advert_book import MOST_ADVERTS, AdvertBook, Known, Taken
from hansa.scheduler.advert_classes import classes_of

ANSWER_BYTES = MAX_BOOK_BYTES - 1024
DEVICES_BYTES = MAX_ADVERT_BYTES - (24 << 10)
"""Of an advert. The rest of it is bounded: sixteen addresses, and each word of the vocabulary once."""
WORDS_AT_ONCE = 40
WORD_EVERY_MS = 250
"""What one node may say by gossip: an advert is said once for each of its classes."""
BOOKS_AT_ONCE = 8
BOOK_EVERY_MS = 5_000
"""What one peer may ask of all that stands: nodes of today compare instead."""
BOOKS_AT_ONCE_OF_ALL = 20
BOOK_OF_ALL_EVERY_MS = 1_000
"""What all peers together may: to sort ten thousand adverts and write an answer of them holds everybody up for a tenth
of a second, and peer ids cost nothing."""
ALL = b""
NO_CLASS = ""
"""In place of a class's name: the one topic of the time before there were classes."""
MOST_UNSAID = 1024

VERDICTS = {
    Taken.NEW: Verdict.ACCEPT,
    Taken.KNOWN: Verdict.IGNORE,
    Taken.LATE: Verdict.IGNORE,
    Taken.FULL: Verdict.IGNORE,
    Taken.OFTEN: Verdict.IGNORE,
    Taken.FORGED: Verdict.REJECT,
}


def in_one_answer(adverts: Iterable[Known], most: int) -> tuple[Signed[Advert], ...]:
    """The first of them, as many as one answer carries."""
    chosen: list[Signed[Advert]] = []
    size_bytes = 0
    for known in adverts:
        size_bytes += known.size_bytes
        if len(chosen) >= most or size_bytes > ANSWER_BYTES:
            break
        chosen.append(known.signed)
    return tuple(chosen)


def in_one_advert(lent: Sequence[Device]) -> tuple[Device, ...]:
    """As many of these devices as one advert carries, some of each sort, in their order.

    A tender is answered with all devices whatever the advert says: it is there to be invited by.
    """
    sorts: dict[tuple[str, str, int], list[int]] = {}
    for number, device in enumerate(lent):
        sorts.setdefault((device.kind, device.model, device.memory_bytes), []).append(number)
    told: list[int] = []
    left_bytes = DEVICES_BYTES
    for number in (one for turn in zip_longest(*sorts.values()) for one in turn if one is not None):
        left_bytes -= len(encode(lent[number]))
        if left_bytes < 0:
            break
        told.append(number)
    return tuple(lent[number] for number in sorted(told))


class Book:
    """Adverts by account."""

    def __init__(self, net: Net, now_ms: Callable[[], int], learnt: Callable[[Advert], None]) -> None:
        """``learnt`` is told of every new advert, so that its addresses can be used."""
        self._net = net
        self._now_ms = now_ms
        self._learnt = learnt
        self._rate = PeerRate(WORDS_AT_ONCE, WORD_EVERY_MS)
        self._books = PeerRate(BOOKS_AT_ONCE, BOOK_EVERY_MS)
        self._books_of_all = PeerRate(BOOKS_AT_ONCE_OF_ALL, BOOK_OF_ALL_EVERY_MS)
        self._said: OrderedDict[bytes, tuple[int, frozenset[str]]] = OrderedDict()
        self._unsaid: OrderedDict[bytes, Signed[Advert]] = OrderedDict()
        self.adverts = AdvertBook(MOST_ADVERTS)
        self.hands_on = False
        """Whether older nodes are to be told what comes on the classes' topics
        (``hansa.node.messaging.older_topic``)."""

    def serve(self) -> None:
        """Answer those who ask for everything at once, as nodes did before there were digests."""
        self._net.serve(BOOK, self._answer, max_request_bytes=256)

    def standing(self) -> Iterator[Known]:
        """Every advert that has not expired, the cheapest first."""
        return self.adverts.standing(self._now_ms())

    def matching(
        self,
        needs: Requirements,
        currency: str,
        ceiling_e18: int,
        *,
        chance: int = 0,
        without: Collection[bytes] = (),
    ) -> tuple[bytes, ...]:
        """Whom to invite to bid on a shard; see ``AdvertBook.matching``."""
        return self.adverts.matching(
            needs, currency, ceiling_e18, now_ms=self._now_ms(), chance=chance, without=without
        )

    def serving(self, needs: Requirements, currency: str, ceiling_e18: int) -> Iterator[Advert]:
        """Every advert that could serve a shard."""
        return self.adverts.serving(needs, currency, ceiling_e18, self._now_ms())

    def others(self, invited: tuple[bytes, ...], currency: str) -> tuple[bytes, ...]:
        """Accounts beside those invited already, up to the same number: they will decline, and say why."""
        return self.adverts.others(invited, currency, self._now_ms())

    def take(self, signed: Signed[Advert]) -> Verdict:
        """Keep an advert if it is sound and newer than what is known."""
        taken = self.adverts.take(signed, self._now_ms())
        if taken is Taken.NEW:
            self._learnt(signed.document)
        return VERDICTS[taken]

    def take_brought(self, signed: Signed[Advert]) -> Verdict:
        """The same for one of many adverts that a peer sent: whatever is wrong with it is wrong with this one only."""
        try:
            return self.take(signed)
        except Exception:  # noqa: BLE001  # one advert that nobody thought of must neither end the node nor hide the rest
            return Verdict.REJECT

    def validator(self, name: str | None) -> Validator:
        """Gossip's question whether a message on the topic of one class may be kept and passed on.

        Without a name it is of the topic of the time before classes.
        """

        def validate(context: Context, data: bytes) -> Verdict:
            if not self._rate.admits(context.peer_id.encode(), self._now_ms()):
                return Verdict.IGNORE
            try:
                message: AdvertPublished = decode(data, AdvertPublished, limit_bytes=MAX_ADVERT_BYTES)
            except ProtocolError:
                return Verdict.REJECT
            if name is not None and name not in classes_of(message.advert.document):
                return Verdict.REJECT
            return self._hear(name or NO_CLASS, message.advert)

        return validate

    def _hear(self, name: str, signed: Signed[Advert]) -> Verdict:
        """An advert of several classes comes once on the topic of each, and is passed on once on each."""
        account, verdict = signed.document.signer, self.take(signed)
        if verdict is Verdict.REJECT:
            return verdict
        known = self.adverts.get(account)
        if known is None or known.signed != signed or known.advert.expires_ms <= self._now_ms():
            return verdict
        sequence, said = self._said.pop(account, (0, frozenset[str]()))
        said = said if sequence == signed.document.sequence else frozenset()
        self._said[account] = (signed.document.sequence, said | {name})
        while len(self._said) > MOST_ADVERTS:
            self._said.popitem(last=False)
        if name == NO_CLASS:
            self._unsaid.pop(account, None)
        elif self.hands_on and NO_CLASS not in said:
            self._unsaid[account] = signed
            while len(self._unsaid) > MOST_UNSAID:
                self._unsaid.popitem(last=False)
        return Verdict.IGNORE if name in said else Verdict.ACCEPT

    def unsaid(self, most: int) -> list[Signed[Advert]]:
        """Up to so many adverts that came on a class's topic and not on the one before: they count as said now."""
        found = []
        for account in list(self._unsaid)[:most]:
            signed = self._unsaid.pop(account)
            known = self.adverts.get(account)
            if known is not None and known.signed == signed and known.advert.expires_ms > self._now_ms():
                found.append(signed)
                sequence, said = self._said.get(account, (0, frozenset()))
                if sequence == signed.document.sequence:
                    self._said[account] = (sequence, said | {NO_CLASS})
        return found

    async def publish(self, signed: Signed[Advert]) -> None:
        """Take our own advert in and tell everyone who looks for its classes."""
        self.take(signed)
        data = encode(AdvertPublished(advert=signed))
        for name in classes_of(signed.document):
            await self._net.publish(advert_topic(name), data)
        if self._net.listeners(OLDER_ADVERT_TOPIC):
            await self._net.publish(OLDER_ADVERT_TOPIC, data)

    async def _answer(self, context: Context, data: bytes) -> bytes:
        now_ms = self._now_ms()
        # One peer's first: whoever asks too much must not use up what others may ask.
        if not (self._books.admits(context.peer_id.encode(), now_ms) and self._books_of_all.admits(ALL, now_ms)):
            raise Refused("busy: more questions for the whole book than are answered")
        wanted: BookRequested = decode(data, BookRequested, limit_bytes=256)
        return encode(BookSent(adverts=in_one_answer(self.standing(), min(wanted.most, MAX_BOOK_ADVERTS))))

    async def copy_from(self, peer_id: str) -> int:
        """Get what one answer of a peer holds of its book. Answers how many adverts were new here."""
        request = encode(BookRequested(most=MAX_BOOK_ADVERTS))
        try:
            answer = await self._net.request(peer_id, BOOK, request, max_response_bytes=MAX_BOOK_BYTES)
            book: BookSent = decode(answer, BookSent, limit_bytes=MAX_BOOK_BYTES)
        except NetError:
            return 0
        except ProtocolError:
            self._net.strike(peer_id, "a book that is none")
            return 0
        verdicts = [self.take_brought(signed) for signed in book.adverts]
        if Verdict.REJECT in verdicts:
            self._net.strike(peer_id, "a forged advert in its book")
        return verdicts.count(Verdict.ACCEPT)
