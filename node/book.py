"""The market's book: the newest advert of every provider that this node has heard of, checked before it is kept.

Adverts come by gossip, and to a newcomer all at once from whomever it meets. The book is soft: it is not journaled, and
is full again seconds after a restart.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from hansa.node.net import Context, Net, NetError, Verdict
from hansa.proto.codec import decode, encode
from hansa.proto.errors import ProtocolError
from hansa.proto.market_documents import Advert, Requirements
from hansa.proto.messages import MAX_BOOK_ADVERTS, AdvertPublished, BookRequested, BookSent
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import ADVERT_TOPIC, BOOK, MAX_ADVERT_BYTES, MAX_BOOK_BYTES
from hansa.proto.signing import Signed, check
from hansa.scheduler.fitting import misfit
from hansa.scheduler.matching import Filter, Wish, expected_costs, shortlist
from hansa.scheduler.matching_columns import Columns

LONGEST_LIFE_MS = 10 * 60_000
"""An advert that claims to stand for longer is not kept: it could not be taken back."""
MOST_ADVERTS = 10_000
MOST_INVITED = 64
MOST_FACTS = 64
"""Of an advert and of each of its devices; the vocabulary has about half as many words. As many features, too."""
LONGEST_FEATURE_BYTES = 64
ANSWER_BYTES = MAX_BOOK_BYTES - 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An advert with its signature, as it may be passed on."""

    signed: Signed[Advert]

    @property
    def advert(self) -> Advert:
        """What it says."""
        return self.signed.document


def _in_order(names: Sequence[str]) -> bool:
    return len(names) <= MOST_FACTS and all(one < next_one for one, next_one in pairwise(names))


def is_in_order(advert: Advert) -> bool:
    """Whether features and facts are sorted, each once, and no more than anybody has a use for."""
    told = (advert.facts, *(device.facts for device in advert.devices))
    return (
        _in_order(advert.features)
        and all(len(feature.encode()) <= LONGEST_FEATURE_BYTES for feature in advert.features)
        and all(_in_order([fact.name for fact in facts]) for facts in told)
    )


class Book:
    """Adverts by account."""

    def __init__(self, net: Net, now_ms: Callable[[], int], learnt: Callable[[Advert], None]) -> None:
        """``learnt`` is told of every new advert, so that its addresses can be used."""
        self._net = net
        self._now_ms = now_ms
        self._learnt = learnt
        self._adverts: dict[bytes, Known] = {}
        self._columns = Columns()
        self._filter = Filter(self._columns)

    def serve(self) -> None:
        """Answer newcomers."""
        self._net.serve(BOOK, self._answer, max_request_bytes=256)

    def _forget_expired(self) -> None:
        now_ms = self._now_ms()
        for account in [key for key, known in self._adverts.items() if known.advert.expires_ms <= now_ms]:
            del self._adverts[account]
            self._columns.remove(account)

    def standing(self) -> Iterator[Known]:
        """Every advert that has not expired, the cheapest first."""
        self._forget_expired()
        yield from sorted(
            self._adverts.values(), key=lambda known: (known.advert.price_e18_per_device_ms, known.advert.signer)
        )

    def matching(
        self,
        needs: Requirements,
        currency: str,
        ceiling_e18: int,
        *,
        chance: int = 0,
        without: Collection[bytes] = (),
    ) -> tuple[bytes, ...]:
        """Accounts whose adverts could serve a shard, the cheapest first, at most as many as a tender invites.

        Where more could, a quarter of these are the cheapest and ``chance`` picks the others: if everybody asked the
        same few, the rest of the market would stand idle, and these few would know it.
        """
        self._forget_expired()

        def serves(advert: Advert) -> bool:
            return advert.signer not in without and (
                misfit(advert, needs, currency=currency, ceiling_e18=ceiling_e18) is None
            )

        wish = Wish(requirements=needs, currency=currency, ceiling_e18=ceiling_e18)
        rows = self._filter.rows(wish, at_ms=self._now_ms())
        return shortlist(
            self._columns,
            rows,
            expected_costs(self._columns, rows),
            most=MOST_INVITED,
            chance=chance,
            serves=serves,
        )

    def serving(self, needs: Requirements, currency: str, ceiling_e18: int) -> Iterator[Advert]:
        """Every advert that could serve a shard."""
        self._forget_expired()
        wish = Wish(requirements=needs, currency=currency, ceiling_e18=ceiling_e18)
        for row in self._filter.rows(wish, at_ms=self._now_ms()):
            advert = self._columns.adverts[self._columns.account[row]]
            if misfit(advert, needs, currency=currency, ceiling_e18=ceiling_e18) is None:
                yield advert

    def others(self, invited: tuple[bytes, ...], currency: str) -> tuple[bytes, ...]:
        """Accounts beside those invited already, up to the same number: they will decline, and say why."""
        others = (
            known.advert.signer
            for known in self.standing()
            if known.advert.currency == currency and known.advert.signer not in invited
        )
        return tuple(islice(others, max(0, MOST_INVITED - len(invited))))

    def take(self, signed: Signed[Advert]) -> Verdict:
        """Keep an advert if it is sound and newer than what is known. Cheap checks come before the signature."""
        advert, now_ms = signed.document, self._now_ms()
        if not now_ms < advert.expires_ms <= now_ms + LONGEST_LIFE_MS:
            return Verdict.IGNORE
        known = self._adverts.get(advert.signer)
        if known is not None and known.advert.sequence >= advert.sequence:
            return Verdict.IGNORE
        if known is None and len(self._adverts) >= MOST_ADVERTS:
            self._forget_expired()
            if len(self._adverts) >= MOST_ADVERTS:
                return Verdict.IGNORE
        try:
            check(DOMAIN, signed, advert.signer)
        except ProtocolError:
            return Verdict.REJECT
        if not is_in_order(advert):
            return Verdict.REJECT
        # The columns first: what they could not take must not stand in the book either.
        self._columns.put(advert)
        self._adverts[advert.signer] = Known(signed=signed)
        self._learnt(advert)
        return Verdict.ACCEPT

    def validate(self, _context: Context, data: bytes) -> Verdict:
        """Gossip's question whether a message may be kept and passed on."""
        try:
            message: AdvertPublished = decode(data, AdvertPublished, limit_bytes=MAX_ADVERT_BYTES)
        except ProtocolError:
            return Verdict.REJECT
        return self.take(message.advert)

    async def publish(self, signed: Signed[Advert]) -> None:
        """Take our own advert in and tell everyone."""
        self.take(signed)
        await self._net.publish(ADVERT_TOPIC, encode(AdvertPublished(advert=signed)))

    async def _answer(self, _context: Context, data: bytes) -> bytes:
        wanted: BookRequested = decode(data, BookRequested, limit_bytes=256)
        chosen: list[Signed[Advert]] = []
        size_bytes = 0
        for known in self.standing():
            size_bytes += len(encode(AdvertPublished(advert=known.signed)))
            if len(chosen) >= min(wanted.most, MAX_BOOK_ADVERTS) or size_bytes > ANSWER_BYTES:
                break
            chosen.append(known.signed)
        return encode(BookSent(adverts=tuple(chosen)))

    async def copy_from(self, peer_id: str) -> int:
        """Get a peer's book and check every advert in it. Answers how many were new here."""
        request = encode(BookRequested(most=MAX_BOOK_ADVERTS))
        try:
            answer = await self._net.request(peer_id, BOOK, request, max_response_bytes=MAX_BOOK_BYTES)
            book: BookSent = decode(answer, BookSent, limit_bytes=MAX_BOOK_BYTES)
        except NetError:
            return 0
        except ProtocolError:
            self._net.strike(peer_id, "a book that is none")
            return 0
        verdicts = [self._take_copied(signed) for signed in book.adverts]
        if Verdict.REJECT in verdicts:
            self._net.strike(peer_id, "a forged advert in its book")
        return verdicts.count(Verdict.ACCEPT)

    def _take_copied(self, signed: Signed[Advert]) -> Verdict:
        try:
            return self.take(signed)
        except Exception:  # noqa: BLE001  # one advert that nobody thought of must neither end the node nor hide the rest
            return Verdict.REJECT
