"""Anti-entropy: how a node makes its book as full as its neighbours', from whom and how often.

A pull is: send digests, be told which entries differ, fetch the adverts that are newer than one's own, check each.
Whoever answers may lie. A forged advert is a wrong that is counted against it; one that promises adverts and does not
have them is left alone for a while; one that withholds what it has is made up for by the next neighbour, who is
another one.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice

from hansa.proto.book_messages import MAX_ENTRIES, AdvertsWanted, BookCompared, BookDifference, ShelfDigests
from hansa.proto.market_documents import Advert
from hansa.proto.messages import BookSent
from hansa.proto.signing import Signed
from hansa.proto.units import Address
from hansa.scheduler.advert_book import AdvertBook
from hansa.scheduler.book_digests import bits_for, packed, unpacked

NOBODY = Address(bytes(20))
EVERY_MS = 20_000
"""From one pull to the next, while they bring little."""
SOON_MS = 1_000
"""After one that brought much: others may lack it as well, and what is here may be only a part."""
MUCH = 16
AVOIDED_MS = 10 * 60_000
MOST_AVOIDED = 256
FEW_PROMISES = 8
BATCH = 512
ANSWERS_PER_BATCH = 40
"""One answer holds fifteen of the largest adverts. Who needs more answers than this does not want to come to an end."""
MOST_PAGES = 12
"""Of differences in one pull; each may name ``MAX_ENTRIES`` adverts."""


def compared(book: AdvertBook, classes: Iterable[str], after: Address = NOBODY) -> BookCompared:
    """The question to a neighbour: this is what I have of these classes."""
    shelves = [(name, book.shelves[name]) for name in classes]
    told = tuple(
        ShelfDigests(name=name, bits=(bits := bits_for(len(shelf))), digests=shelf.digests(bits))
        for name, shelf in shelves
    )
    return BookCompared(shelves=told, after=after)


def difference(book: AdvertBook, asked: BookCompared, now_ms: int) -> BookDifference:
    """The answer: one page of what stands here in the ranges that differ."""
    shelves = {told.name: told for told in asked.shelves if told.name in book.shelves}
    found: dict[Address, int] = {}
    differing = merge(
        *(book.shelves[name].differing(told.bits, told.digests, asked.after) for name, told in shelves.items())
    )
    for account in differing:
        known = book.get(account)
        if known is None or known.advert.expires_ms <= now_ms:
            continue
        if len(found) == MAX_ENTRIES and account not in found:
            return BookDifference(entries=packed(found.items()), complete=False)
        found[account] = known.advert.sequence
    return BookDifference(entries=packed(found.items()), complete=True)


def newer(book: AdvertBook, told: BookDifference) -> tuple[Address, ...]:
    """The accounts of whom the neighbour has an advert that is news here, and for which there is room."""
    wanted: dict[Address, None] = {}
    room = book.most - len(book)
    for account, sequence in unpacked(told.entries):
        known = book.get(account)
        if known is None and account not in wanted and room > 0:
            room -= 1
            wanted[account] = None
        elif known is not None and known.advert.sequence < sequence:
            wanted[account] = None
    return tuple(wanted)


def last_of(told: BookDifference) -> Address:
    """Beyond whom the next page begins."""
    return max((account for account, _ in unpacked(told.entries)), default=NOBODY)


def pause_after(brought: int, chance: float) -> int:
    """How long to wait for the next pull after one that brought so much; ``chance`` from 0 to 1 spreads nodes out."""
    usual_ms = SOON_MS if brought >= MUCH else EVERY_MS
    return int(usual_ms * (0.5 + chance))


class Lied(Exception):
    """A peer's answer cannot come from an honest book; nothing more is asked of it now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """Adverts that came: check and keep them, then go on with the pull. A forged one ends it."""

    adverts: tuple[Signed[Advert], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What a peer said that it has and we lack, and how much of that could be kept in the end."""

    promised: int
    delivered: int


Pull = Generator[BookCompared | AdvertsWanted | Brought | Promise, BookDifference | BookSent | None, None]


def pull(book: AdvertBook, classes: Callable[[], Iterable[str]], start: Address) -> Pull:
    """One pull, without a network: yields questions, is sent their answers, and yields what is to be done with these.

    It goes once around the circle of accounts, from ``start``: several neighbours that are asked at once bring
    different parts first.
    """
    after, turned = start, False
    for _ in range(MOST_PAGES):
        told = yield compared(book, classes(), after)
        assert isinstance(told, BookDifference)
        yield from _fetch(book, newer(book, told))
        last = last_of(told)
        if not told.complete and last <= after:
            raise Lied("a book that goes in circles")
        if told.complete and turned:
            return
        turned, after = turned or told.complete, NOBODY if told.complete else last
        if turned and after > start:
            return


def _fetch(book: AdvertBook, wanted: tuple[Address, ...]) -> Pull:
    delivered, fruitless = 0, False
    for batch in in_batches(wanted, BATCH):
        missing = list(batch)
        had = {account: known.advert.sequence for account in batch if (known := book.get(account)) is not None}
        for _ in range(ANSWERS_PER_BATCH):
            if not missing or fruitless:
                break
            sent = yield AdvertsWanted(accounts=tuple(missing))
            assert isinstance(sent, BookSent)
            if not sent.adverts:
                break
            came = {signed.document.signer for signed in sent.adverts}
            if not came <= set(missing):
                raise Lied("an advert that nobody asked for")
            yield Brought(adverts=sent.adverts)
            # What could not be kept, for whichever reason, would be fetched again and again.
            news = sum(
                (known := book.get(account)) is not None and known.advert.sequence > had.get(account, -1)
                for account in came
            )
            delivered += news
            # Whoever has sent only what nobody can keep would go on so for as long as it is asked.
            fruitless = not news
            missing = [account for account in missing if account not in came]
        if fruitless:
            break
    yield Promise(promised=len(wanted), delivered=delivered)


class Sources:
    """Whom to pull from: anybody, but for those who promised and did not keep it."""

    def __init__(self) -> None:
        """Nobody is avoided yet."""
        self._avoided_until: OrderedDict[str, int] = OrderedDict()

    def heard(self, peer_id: str, *, promised: int, delivered: int, now_ms: int) -> bool:
        """What a pull came to: adverts that could be kept. Answers whether the source is avoided from now on."""
        if promised < FEW_PROMISES or 2 * delivered >= promised:
            self._avoided_until.pop(peer_id, None)
            return False
        self._avoided_until[peer_id] = now_ms + AVOIDED_MS
        self._avoided_until.move_to_end(peer_id)
        while len(self._avoided_until) > MOST_AVOIDED:
            self._avoided_until.popitem(last=False)
        return True

    def good(self, peers: Collection[str], now_ms: int) -> list[str]:
        """Those who may be asked now."""
        return [peer_id for peer_id in peers if self._avoided_until.get(peer_id, 0) <= now_ms]


def in_batches(accounts: Sequence[Address], most: int) -> Iterator[tuple[Address, ...]]:
    """Accounts, so many at a time."""
    rest = iter(accounts)
    while batch := tuple(islice(rest, most)):
        yield batch
