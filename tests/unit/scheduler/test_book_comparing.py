"""Two books become one by comparing, whatever stands in them, a page at a time; and liars cost little."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.memory_party import DEVICE, key

from hansa.proto.book_messages import MAX_BITS, BookDifference, ShelfDigests
from hansa.proto.market_documents import Advert
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, sign
from hansa.scheduler import book_comparing
from hansa.scheduler.advert_book import AdvertBook, Taken
from hansa.scheduler.advert_classes import CLASSES
from hansa.scheduler.book_comparing import (
    AVOIDED_MS,
    EVERY_MS,
    MOST_AVOIDED,
    MUCH,
    NOBODY,
    SOON_MS,
    Sources,
    compared,
    difference,
    in_batches,
    last_of,
    newer,
    pause_after,
)
from hansa.scheduler.book_digests import packed

NOW_MS = 1_700_000_000_000
GPU = replace(DEVICE, id=b"g" * 32, kind="gpu", model="NVIDIA H200", memory_bytes=141 << 30)


def signed(number: int, sequence: int) -> Signed[Advert]:
    account = key(number + 1)
    advert = Advert(
        signer=account.address,
        peer_id="peer",
        addresses=(),
        devices=((DEVICE,), (GPU,), (DEVICE, GPU))[number % 3],
        free=1,
        tier="sandbox",
        features=(),
        region="here",
        facts=(),
        currency="USD",
        price_e18_per_device_ms=number,
        sequence=sequence,
        expires_ms=NOW_MS + 60_000,
    )
    return sign(DOMAIN, advert, account)


ADVERTS = {(number, sequence): signed(number, sequence) for number in range(24) for sequence in (1, 2)}
HOLDINGS = st.dictionaries(st.integers(0, 23), st.sampled_from([1, 2]), max_size=24)


def book(holdings: dict[int, int], most: int = 100) -> AdvertBook:
    made = AdvertBook(most)
    for number, sequence in holdings.items():
        made.take(ADVERTS[number, sequence], NOW_MS)
    return made


def pull(mine: AdvertBook, theirs: AdvertBook, classes=CLASSES) -> int:
    """A whole pull, page by page."""
    after, pages = NOBODY, 0
    while True:
        told = difference(theirs, compared(mine, classes, after), NOW_MS)
        for account in newer(mine, told):
            assert mine.take(theirs.get(account).signed, NOW_MS) is Taken.NEW
        pages += 1
        if told.complete:
            return pages
        assert last_of(told) > after
        after = last_of(told)


def content(made: AdvertBook) -> dict[bytes, int]:
    return {known.advert.signer: known.advert.sequence for known in made.standing(NOW_MS)}


@settings(max_examples=60, deadline=None)
@given(HOLDINGS, HOLDINGS)
def test_after_a_pull_each_way_two_books_are_the_same_and_hold_the_newest_of_both(one, other):
    mine, theirs = book(one), book(other)
    pull(mine, theirs)
    pull(theirs, mine)
    assert content(mine) == content(theirs)
    newest = {number: max(one.get(number, 0), other.get(number, 0)) for number in one.keys() | other.keys()}
    assert content(mine) == {key(number + 1).address: sequence for number, sequence in newest.items()}
    assert difference(theirs, compared(mine, CLASSES), NOW_MS).entries == b""


def test_a_book_of_many_pages_comes_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(book_comparing, "MAX_ENTRIES", 5)
    mine, theirs = book({}), book(dict.fromkeys(range(24), 1))
    assert pull(mine, theirs) == 5
    assert content(mine) == content(theirs)


def test_only_the_classes_that_are_asked_for_come():
    mine, theirs = book({}), book({0: 1, 1: 1, 2: 1})
    pull(mine, theirs, ("gpu-80",))
    assert content(mine) == {key(number + 1).address: 1 for number in (1, 2)}
    unknown = compared(mine, ("gpu-80",))
    odd = replace(unknown, shelves=(replace(unknown.shelves[0], name="no such class"),))
    assert difference(theirs, odd, NOW_MS) == BookDifference(entries=b"", complete=True)


def test_what_is_void_is_not_told():
    theirs = book({0: 1})
    assert difference(theirs, compared(book({}), CLASSES), NOW_MS + 60_000).entries == b""


def test_a_full_book_asks_for_news_of_those_in_it_only():
    mine = book({0: 1, 1: 1}, most=2)
    theirs = book(dict.fromkeys(range(10), 2))
    told = difference(theirs, compared(mine, CLASSES), NOW_MS)
    assert set(newer(mine, told)) == {key(1).address, key(2).address}


def test_a_full_book_is_not_gone_through_for_each_unknown_advert():
    full = book(dict.fromkeys(range(4), 1), most=4)
    swept: list[int] = []
    whole = full.forget_expired

    def counted(now_ms: int) -> None:
        swept.append(now_ms)
        whole(now_ms)

    full.forget_expired = counted
    for number in range(4, 24):
        assert full.take(ADVERTS[number, 1], NOW_MS + number) is Taken.FULL
    assert len(swept) == 1
    later = replace(ADVERTS[5, 1], document=replace(ADVERTS[5, 1].document, expires_ms=NOW_MS + 120_000))
    assert full.take(later, NOW_MS + 60_000) is Taken.FORGED
    assert len(full) == 0


def test_an_account_that_is_named_twice_is_asked_for_once():
    entries = packed([(b"a" * 20, 1), (b"a" * 20, 1)])
    assert newer(book({}), BookDifference(entries=entries, complete=True)) == (b"a" * 20,)


@pytest.mark.parametrize(("bits", "size"), [(0, 7), (0, 16), (MAX_BITS, 8), (MAX_BITS + 1, 8 << (MAX_BITS + 1))])
def test_digests_must_be_as_many_as_their_ranges(bits: int, size: int):
    with pytest.raises(ValueError, match="digests"):
        ShelfDigests(name="cpu", bits=bits, digests=bytes(size))


def test_who_does_not_keep_a_promise_is_left_alone_for_a_while():
    sources = Sources()
    assert not sources.heard("few", promised=7, delivered=0, now_ms=0)
    assert not sources.heard("half", promised=8, delivered=4, now_ms=0)
    assert sources.heard("liar", promised=8, delivered=3, now_ms=0)
    assert sources.good(["few", "half", "liar"], AVOIDED_MS - 1) == ["few", "half"]
    assert sources.good(["liar"], AVOIDED_MS) == ["liar"]
    for number in range(MOST_AVOIDED):
        sources.heard(str(number), promised=8, delivered=0, now_ms=1)
    assert sources.good(["liar"], 2) == ["liar"], "no more than so many are remembered"
    sources.heard("5", promised=100, delivered=100, now_ms=2)
    assert sources.good(["5"], 2) == ["5"]


def test_after_much_news_the_next_pull_comes_soon():
    assert pause_after(MUCH, 0.5) == SOON_MS
    assert pause_after(MUCH - 1, 0.5) == EVERY_MS
    assert pause_after(0, 0.0) == EVERY_MS // 2


def test_batches_hold_everything_once():
    accounts = tuple(bytes([number]) * 20 for number in range(10))
    assert list(in_batches(accounts, 4)) == [accounts[:4], accounts[4:8], accounts[8:]]
