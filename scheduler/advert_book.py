"""The market's book, without a network: the newest sound advert of every provider, found by what is needed.

Adverts come from strangers. Each is checked here, cheap checks first, before it is kept; and nothing that one of them
says can make the others be lost. Times are ms UTC and come from outside.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice, pairwise

from hansa.proto.codec import encode
from hansa.proto.errors import ProtocolError
from hansa.proto.market_documents import Advert, Requirements
from hansa.proto.messages import AdvertPublished
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed
from hansa.proto.signing import check as check_signature
from hansa.proto.typed_data import Domain
from hansa.proto.units import Address
from hansa.scheduler.advert_classes import CLASSES, classes_of
from hansa.scheduler.advert_pace import LONGEST_LIFE_MS
from hansa.scheduler.book_digests import Shelf
from hansa.scheduler.fitting import misfit
from hansa.scheduler.matching import Filter, Wish, expected_costs, shortlist
from hansa.scheduler.matching_columns import Columns

MOST_ADVERTS = 10_000
MOST_INVITED = 64
MOST_FACTS = 64
"""Of an advert and of each of its devices; the vocabulary has about half as many words. As many features, too."""
LONGEST_FEATURE_BYTES = 64
NEWS_AT_ONCE = 20
SWEEP_EVERY_MS = 1_000
"""A full book looks so often for what has expired, however many adverts of strangers come meanwhile."""
NEWS_EVERY_MS = 1_000
"""One account's adverts that are passed on. Its node says one a second at the most, and seldom two in a row."""


Check = Callable[[Domain, Signed[Advert], Address], None]


class Taken(Enum):
    """What came of an advert."""

    NEW = "new"
    KNOWN = "known"
    """This one, or a newer one, stands already."""
    LATE = "late"
    """It is void, or would stand for longer than any should."""
    FULL = "full"
    OFTEN = "often"
    """Its account said too much in too short a time."""
    FORGED = "forged"
    """Not signed by whom it names, or out of order. Whoever handed it on did not look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An advert with its signature, as it may be passed on.

    Attributes:
        size_bytes: of it as it is published: to find that out again for each answer would double what one costs.
        left: how many more of this account may come at once.
        since_ms: when that was so.
    """

    signed: Signed[Advert]
    size_bytes: int
    left: int = NEWS_AT_ONCE
    since_ms: int = 0

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


class AdvertBook:
    """Adverts by account, in columns for searching, and on one shelf for each class for comparing."""

    def __init__(self, most: int = MOST_ADVERTS, check: Check = check_signature) -> None:
        """``most`` adverts are kept, and no more. ``check`` raises a ``ProtocolError`` for a forged one."""
        self.most = most
        self._check = check
        self.shelves = {name: Shelf() for name in CLASSES}
        self._adverts: dict[Address, Known] = {}
        self._swept_ms = -SWEEP_EVERY_MS
        self._columns = Columns()
        self._filter = Filter(self._columns)

    def __len__(self) -> int:
        """How many adverts there are; some may have expired."""
        return len(self._adverts)

    def get(self, account: Address) -> Known | None:
        """The advert of one account."""
        return self._adverts.get(account)

    def remove(self, account: Address) -> None:
        """Forget an account's advert."""
        if self._adverts.pop(account, None) is not None:
            self._columns.remove(account)
            for shelf in self.shelves.values():
                shelf.remove(account)

    def forget_expired(self, now_ms: int) -> None:
        """Let go of what is void."""
        for account in [key for key, known in self._adverts.items() if known.advert.expires_ms <= now_ms]:
            self.remove(account)

    def keep_only(self, classes: Collection[str]) -> None:
        """Forget adverts that stand in none of these classes."""
        for account, known in list(self._adverts.items()):
            if not set(classes_of(known.advert)) & set(classes):
                self.remove(account)

    def count(self, classes: Iterable[str]) -> int:
        """How many adverts stand in the largest of these classes."""
        return max((len(self.shelves[name]) for name in classes), default=0)

    def take(self, signed: Signed[Advert], now_ms: int) -> Taken:
        """Keep an advert if it is sound and newer than what is known."""
        advert = signed.document
        if not now_ms < advert.expires_ms <= now_ms + LONGEST_LIFE_MS:
            return Taken.LATE
        known = self._adverts.get(advert.signer)
        if known is not None and known.advert.sequence >= advert.sequence:
            return Taken.KNOWN
        if known is None and len(self._adverts) >= self.most:
            # Seldom: it goes through the whole book, for an advert of which not even the signature was looked at.
            if not 0 <= now_ms - self._swept_ms < SWEEP_EVERY_MS:
                self._swept_ms = now_ms
                self.forget_expired(now_ms)
            if len(self._adverts) >= self.most:
                return Taken.FULL
        try:
            self._check(DOMAIN, signed, advert.signer)
        except ProtocolError:
            return Taken.FORGED
        if not is_in_order(advert):
            return Taken.FORGED
        # After the signature: whoever forges an account's adverts must not use up what that account may say.
        left, since_ms = self._news_left(known, now_ms)
        if left < 1:
            return Taken.OFTEN
        size_bytes = len(encode(AdvertPublished(advert=signed)))
        # The columns first: what they could not take must not stand in the book either.
        self._columns.put(advert)
        self._adverts[advert.signer] = Known(
            signed=signed,
            size_bytes=size_bytes,
            left=left - 1,
            since_ms=since_ms,
        )
        self._shelve(advert)
        return Taken.NEW

    @staticmethod
    def _news_left(known: Known | None, now_ms: int) -> tuple[int, int]:
        if known is None:
            return NEWS_AT_ONCE, now_ms
        gained = max(0, now_ms - known.since_ms) // NEWS_EVERY_MS
        return min(NEWS_AT_ONCE, known.left + gained), known.since_ms + gained * NEWS_EVERY_MS

    def _shelve(self, advert: Advert) -> None:
        mine = classes_of(advert)
        for name, shelf in self.shelves.items():
            if name in mine:
                shelf.put(advert.signer, advert.sequence)
            else:
                shelf.remove(advert.signer)

    def standing(self, now_ms: int) -> Iterator[Known]:
        """Every advert that has not expired, the cheapest first."""
        self.forget_expired(now_ms)
        yield from sorted(
            self._adverts.values(), key=lambda known: (known.advert.price_e18_per_device_ms, known.advert.signer)
        )

    def matching(
        self,
        needs: Requirements,
        currency: str,
        ceiling_e18: int,
        *,
        now_ms: int,
        chance: int = 0,
        without: Collection[bytes] = (),
    ) -> tuple[bytes, ...]:
        """Accounts whose adverts could serve a shard, the cheapest first, at most as many as a tender invites.

        Where more could, a quarter of these are the cheapest and ``chance`` picks the others: if everybody asked the
        same few, the rest of the market would stand idle, and these few would know it.
        """
        self.forget_expired(now_ms)

        def serves(advert: Advert) -> bool:
            return advert.signer not in without and (
                misfit(advert, needs, currency=currency, ceiling_e18=ceiling_e18) is None
            )

        wish = Wish(requirements=needs, currency=currency, ceiling_e18=ceiling_e18)
        rows = self._filter.rows(wish, at_ms=now_ms)
        return shortlist(
            self._columns,
            rows,
            expected_costs(self._columns, rows),
            most=MOST_INVITED,
            chance=chance,
            serves=serves,
        )

    def serving(self, needs: Requirements, currency: str, ceiling_e18: int, now_ms: int) -> Iterator[Advert]:
        """Every advert that could serve a shard."""
        self.forget_expired(now_ms)
        wish = Wish(requirements=needs, currency=currency, ceiling_e18=ceiling_e18)
        for row in self._filter.rows(wish, at_ms=now_ms):
            advert = self._columns.adverts[self._columns.account[row]]
            if misfit(advert, needs, currency=currency, ceiling_e18=ceiling_e18) is None:
                yield advert

    def others(self, invited: tuple[bytes, ...], currency: str, now_ms: int) -> tuple[bytes, ...]:
        """Accounts beside those invited already, up to the same number: they will decline, and say why."""
        others = (
            known.advert.signer
            for known in self.standing(now_ms)
            if known.advert.currency == currency and known.advert.signer not in invited
        )
        return tuple(islice(others, max(0, MOST_INVITED - len(invited))))
