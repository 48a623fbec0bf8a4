"""A newcomer has the whole book within seconds from any peer, and liars among them are bounded."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
import trio
from kit.memory_net import MemoryHub
from kit.memory_party import Party, advert_of, bent, key, now_ms, party

from hansa.node.messaging.book import BOOKS_AT_ONCE, Book
from hansa.node.messaging.book_sync import ASKED_AT_ONCE, PULL_S, BookSync
from hansa.node.network.net import Context, NetError, Refused
from hansa.proto.book_messages import AdvertsWanted, BookCompared, BookDifference, OwnAdvertWanted
from hansa.proto.codec import decode, encode
from hansa.proto.market_documents import Advert
from hansa.proto.messages import BookRequested, BookSent
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import BOOK, BOOK_SYNC, MAX_BOOK_REQUEST_BYTES
from hansa.proto.signing import Signed, sign
from hansa.scheduler import book_comparing
from hansa.scheduler.advert_classes import CLASSES
from hansa.scheduler.book_comparing import compared
from hansa.scheduler.book_digests import packed

pytestmark = pytest.mark.trio


class Reader:
    """A party with a book that it compares."""

    def __init__(self, who: Party, seed: int) -> None:
        self.who = who
        self.book = Book(who.net, now_ms, lambda _advert: None)
        self.book.serve()
        self.sync = BookSync(
            who.net,
            self.book,
            now_ms,
            own=lambda: who.account.address,
            classes=lambda: CLASSES,
            chance=random.Random(seed),
        )
        self.sync.serve()

    @property
    def accounts(self) -> set[bytes]:
        return {known.advert.signer for known in self.book.standing()}


@asynccontextmanager
async def reader(hub: MemoryHub, number: int) -> AsyncIterator[Reader]:
    async with party(hub, number) as who:
        yield Reader(who, number)


def crowd(like: Party, count: int, sequence: int = 1) -> list[Signed[Advert]]:
    """Adverts of so many accounts."""
    sample = advert_of(like, sequence=sequence).document
    return [sign(DOMAIN, replace(sample, signer=some.address), some) for some in (key(5_000 + n) for n in range(count))]


async def test_a_newcomer_has_a_book_of_many_answers_within_seconds(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub(delay_s=0.05)
    async with reader(hub, 1) as one, reader(hub, 2) as late:
        for signed in crowd(one.who, 1_300):
            one.book.take(signed)
        late.who.knows(one.who)
        with trio.fail_after(3):
            assert await late.sync.pull(one.who.peer_id) == 1_300
        assert late.accounts == one.accounts
        assert await late.sync.pull(one.who.peer_id) == 0
        assert late.who.strikes(one.who) == 0


async def test_books_that_are_nearly_equal_exchange_little(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, reader(hub, 2) as two:
        adverts = crowd(one.who, 600)
        for signed in adverts:
            one.book.take(signed)
        for signed in adverts[:-3]:
            two.book.take(signed)
        two.who.knows(one.who)
        sent = 0
        whole = one.sync._answer

        async def counted(context: Context, data: bytes) -> bytes:
            nonlocal sent
            answer = await whole(context, data)
            sent += len(data) + len(answer)
            return answer

        one.who.net.serve(BOOK_SYNC, counted, max_request_bytes=MAX_BOOK_REQUEST_BYTES)
        assert await two.sync.pull(one.who.peer_id) == 3
        assert sent < 10_000, "three adverts of half a kilobyte each, and digests; the book itself is 300 KB"


async def test_a_node_of_the_time_before_digests_gives_what_one_answer_holds() -> None:
    hub = MemoryHub()
    async with party(hub, 1) as old, reader(hub, 2) as late:
        book = Book(old.net, now_ms, lambda _advert: None)
        book.serve()
        for signed in crowd(old, 5):
            book.take(signed)
        late.who.knows(old)
        assert await late.sync.pull(old.peer_id) == 5


async def test_who_is_only_busy_is_not_asked_for_everything_at_once_instead() -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, reader(hub, 2) as other:
        await one.book.publish(advert_of(one.who))

        async def busy(_context: Context, _data: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            raise Refused("busy: more questions about the book than one peer may ask")

        one.who.net.serve(BOOK_SYNC, busy)
        other.who.knows(one.who)
        assert await other.sync.pull(one.who.peer_id) == 0


async def test_a_neighbour_that_has_just_been_met_is_compared_with_once(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, reader(hub, 2) as two:
        two.who.knows(one.who)
        one.book.take(advert_of(one.who))
        assert await two.sync.greet(one.who.peer_id) == 1
        one.book.take(advert_of(one.who, sequence=now_ms() + 1))
        assert await two.sync.greet(one.who.peer_id) == 0
        await trio.sleep(6)
        assert await two.sync.greet(one.who.peer_id) == 1


async def test_books_agree_by_themselves(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, reader(hub, 2) as two, trio.open_nursery() as nursery:
        two.who.knows(one.who)
        await two.who.net.connect(one.who.peer_id)
        for signed in crowd(one.who, 20):
            one.book.take(replace(signed))
        nursery.start_soon(one.sync.run)
        nursery.start_soon(two.sync.run)
        with trio.fail_after(60):
            while not two.accounts:  # noqa: ASYNC110  # a book says nothing when it grows
                await trio.sleep(1)
        assert two.accounts == one.accounts
        nursery.cancel_scope.cancel()


Lie = Callable[[BookCompared | AdvertsWanted | OwnAdvertWanted], bytes]


@asynccontextmanager
async def liar_of(hub: MemoryHub, lie: Lie) -> AsyncIterator[tuple[Party, list[int]]]:
    """Somebody who answers every question about the book with a lie, and how often it was asked."""
    async with party(hub, 66) as liar:
        asked: list[int] = []

        async def answer(_context: Context, data: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            question = decode(data, BookCompared | AdvertsWanted | OwnAdvertWanted, limit_bytes=MAX_BOOK_REQUEST_BYTES)
            asked.append(len(data))
            return lie(question)

        liar.net.serve(BOOK_SYNC, answer, max_request_bytes=MAX_BOOK_REQUEST_BYTES)
        yield liar, asked


ENTRIES = packed([(bytes([number]) * 20, 1 << 50) for number in range(1, 200)])


async def test_a_forged_advert_is_a_strike_and_ends_the_pull() -> None:
    hub = MemoryHub()
    async with party(hub, 3) as seller, reader(hub, 1) as one:
        forged = [replace(signed, signature=bent(signed.signature)) for signed in crowd(seller, 40)]
        told = BookDifference(entries=packed(sorted((signed.document.signer, 1) for signed in forged)), complete=True)

        def lie(question: object) -> bytes:
            if isinstance(question, BookCompared):
                return encode(told)
            assert isinstance(question, AdvertsWanted)
            by_account = {signed.document.signer: signed for signed in forged}
            return encode(BookSent(adverts=tuple(by_account[account] for account in question.accounts)))

        checked = 0
        whole = one.book.take

        def counted(signed: Signed[Advert]) -> object:
            nonlocal checked
            checked += 1
            return whole(signed)

        one.book.take = counted  # type: ignore[method-assign,assignment]
        async with liar_of(hub, lie) as (liar, _):
            one.who.knows(liar)
            assert await one.sync.pull(liar.peer_id) == 0
            assert one.who.strikes(liar) == 1
            assert checked == 1
            assert one.accounts == set()


async def test_an_advert_that_nobody_asked_for_is_a_strike() -> None:
    hub = MemoryHub()
    async with party(hub, 3) as seller, reader(hub, 1) as one:
        other = advert_of(seller)

        def lie(question: object) -> bytes:
            if isinstance(question, BookCompared):
                return encode(BookDifference(entries=ENTRIES, complete=True))
            return encode(BookSent(adverts=(other,)))

        async with liar_of(hub, lie) as (liar, _):
            one.who.knows(liar)
            assert await one.sync.pull(liar.peer_id) == 0
            assert one.who.strikes(liar) == 1
            assert one.accounts == set()


async def test_who_promises_what_it_does_not_have_is_not_asked_again_for_a_while() -> None:
    hub = MemoryHub()

    def lie(question: object) -> bytes:
        if isinstance(question, BookCompared):
            return encode(BookDifference(entries=ENTRIES, complete=True))
        return encode(BookSent(adverts=()))

    async with reader(hub, 1) as one, liar_of(hub, lie) as (liar, asked):
        one.who.knows(liar)
        assert await one.sync.greet(liar.peer_id) == 0
        told = len(asked)
        one.sync._pulled_at.clear()
        assert await one.sync.greet(liar.peer_id) == 0
        assert len(asked) == told


@pytest.mark.parametrize("circle", ["the same page for ever", "nothing, and more to come"])
async def test_a_book_without_an_end_is_a_strike_and_a_few_questions(circle: str) -> None:
    hub = MemoryHub()

    def lie(question: object) -> bytes:
        if isinstance(question, BookCompared):
            return encode(BookDifference(entries=ENTRIES if "page" in circle else b"", complete=False))
        return encode(BookSent(adverts=()))

    async with reader(hub, 1) as one, liar_of(hub, lie) as (liar, asked):
        one.who.knows(liar)
        assert await one.sync.pull(liar.peer_id) == 0
        assert one.who.strikes(liar) == 1
        assert len(asked) < 10


async def test_an_endless_book_of_new_promises_is_cut_off() -> None:
    hub = MemoryHub()
    told = 0

    def lie(question: object) -> bytes:
        nonlocal told
        if isinstance(question, BookCompared):
            told += 1
            after = int.from_bytes(question.after, "big")
            return encode(BookDifference(entries=packed([((after + 1).to_bytes(21, "big")[1:], 1)]), complete=False))
        return encode(BookSent(adverts=()))

    async with reader(hub, 1) as one, liar_of(hub, lie) as (liar, _):
        one.who.knows(liar)
        await one.sync.pull(liar.peer_id)
        assert told <= book_comparing.MOST_PAGES


async def test_one_who_sends_only_what_is_void_is_soon_no_longer_asked() -> None:
    hub = MemoryHub()
    async with party(hub, 3) as seller, reader(hub, 1) as one:
        void = {
            signed.document.signer: signed
            for signed in (replace(each, document=replace(each.document, expires_ms=1)) for each in crowd(seller, 600))
        }

        def lie(question: object) -> bytes:
            if isinstance(question, BookCompared):
                return encode(BookDifference(entries=packed((each, 9) for each in sorted(void)), complete=True))
            assert isinstance(question, AdvertsWanted)
            return encode(BookSent(adverts=(void[question.accounts[0]],)))

        async with liar_of(hub, lie) as (liar, asked):
            one.who.knows(liar)
            assert await one.sync.greet(liar.peer_id) == 0
            assert len(asked) < 10
            one.sync._pulled_at.clear()
            told = len(asked)
            assert await one.sync.greet(liar.peer_id) == 0
            assert len(asked) == told


async def test_one_who_sends_a_single_advert_at_a_time_is_asked_so_often_and_no_more() -> None:
    hub = MemoryHub()
    async with party(hub, 3) as seller, reader(hub, 1) as one:
        sound = {signed.document.signer: signed for signed in crowd(seller, 200)}

        def lie(question: object) -> bytes:
            if isinstance(question, BookCompared):
                return encode(BookDifference(entries=packed((each, 1) for each in sorted(sound)), complete=True))
            assert isinstance(question, AdvertsWanted)
            return encode(BookSent(adverts=(sound[question.accounts[0]],)))

        async with liar_of(hub, lie) as (liar, asked):
            one.who.knows(liar)
            assert await one.sync.greet(liar.peer_id) > 0
            assert len(asked) < 100


async def test_a_pull_that_is_never_over_ends_and_is_an_unkept_promise(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, party(hub, 66) as liar:
        asked = 0

        async def answer(_context: Context, data: bytes) -> bytes:
            nonlocal asked
            asked += 1
            await trio.sleep(9)
            question = decode(data, BookCompared | AdvertsWanted, limit_bytes=MAX_BOOK_REQUEST_BYTES)
            assert isinstance(question, BookCompared)
            after = int.from_bytes(question.after, "big")
            entries = packed([((after + 1).to_bytes(20, "big"), 1)])
            return encode(BookDifference(entries=entries, complete=False))

        liar.net.serve(BOOK_SYNC, answer, max_request_bytes=MAX_BOOK_REQUEST_BYTES)
        one.who.knows(liar)
        began = trio.current_time()
        one.book.adverts.most = 0
        assert await one.sync.greet(liar.peer_id) == 0
        assert trio.current_time() - began <= PULL_S + 1
        one.sync._pulled_at.clear()
        told = asked
        assert await one.sync.greet(liar.peer_id) == 0
        assert asked == told


async def test_many_peers_together_get_only_so_many_answers_and_whole_books() -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, AsyncExitStack() as stack:
        crowd_of = [await stack.enter_async_context(party(hub, 100 + number)) for number in range(8)]
        for protocol, question, most in (
            (BOOK_SYNC, encode(AdvertsWanted(accounts=(bytes(20),))), 130),
            (BOOK, encode(BookRequested(most=2)), 25),
        ):
            served = refused = 0
            for each in crowd_of:
                each.knows(one.who)
                for _ in range(30):
                    try:
                        await each.net.request(one.who.peer_id, protocol, question)
                        served += 1
                    except Refused:
                        refused += 1
            assert 0 < served <= most
            assert refused > 0


async def test_one_peer_gets_the_whole_book_only_so_often() -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, party(hub, 2) as eager, party(hub, 3) as other:
        question = encode(BookRequested(most=2))
        for each in (eager, other):
            each.knows(one.who)
        for _ in range(BOOKS_AT_ONCE):
            await eager.net.request(one.who.peer_id, BOOK, question)
        for _ in range(50):
            with pytest.raises(Refused):
                await eager.net.request(one.who.peer_id, BOOK, question)
        assert await other.net.request(one.who.peer_id, BOOK, question)


async def test_who_withholds_is_made_up_for_by_another_source(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()

    def nothing(question: object) -> bytes:
        return encode(BookDifference(entries=b"", complete=True))

    async with reader(hub, 1) as one, reader(hub, 2) as honest, liar_of(hub, nothing) as (liar, _):
        for signed in crowd(honest.who, 30):
            honest.book.take(signed)
        for other in (honest.who, liar):
            one.who.knows(other)
            await one.who.net.connect(other.peer_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.sync.run)
            with trio.fail_after(180):
                while one.accounts != honest.accounts:  # noqa: ASYNC110  # as above
                    await trio.sleep(1)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", [b"", b"\xff" * 50, encode(BookSent(adverts=())), bytes(2 << 20)])
async def test_garbage_brings_nothing(answer: bytes) -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, liar_of(hub, lambda _question: answer) as (liar, _):
        one.who.knows(liar)
        assert await one.sync.pull(liar.peer_id) == 0
        assert not await one.sync.advert_of(liar.peer_id)
        assert one.accounts == set()


async def test_a_peer_is_asked_for_its_own_advert_and_believed_about_nobody_elses() -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, reader(hub, 2) as two, party(hub, 3) as third:
        one.who.knows(two.who)
        assert not await one.sync.advert_of(two.who.peer_id), "it lends nothing"
        two.book.take(advert_of(two.who))
        assert await one.sync.advert_of(two.who.peer_id)
        assert one.accounts == {two.who.account.address}
        others = encode(BookSent(adverts=(advert_of(third),)))
        async with liar_of(hub, lambda _question: others) as (liar, _):
            one.who.knows(liar)
            assert not await one.sync.advert_of(liar.peer_id)
        assert one.accounts == {two.who.account.address}


async def test_one_peer_may_ask_only_so_much(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, party(hub, 2) as curious:
        curious.knows(one.who)
        question = encode(compared(one.book.adverts, CLASSES))

        async def ask() -> bool:
            try:
                await curious.net.request(one.who.peer_id, BOOK_SYNC, question)
            except Refused:
                return False
            return True

        answered = [await ask() for _ in range(ASKED_AT_ONCE + 10)]
        assert answered == [True] * ASKED_AT_ONCE + [False] * 10
        await trio.sleep(5)
        assert await ask()


async def test_questions_that_are_none_are_struck() -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, party(hub, 2) as junk:
        junk.knows(one.who)
        for data in (b"", b"\xff", encode(BookSent(adverts=()))):
            with pytest.raises(NetError):
                await junk.net.request(one.who.peer_id, BOOK_SYNC, data)
        assert one.who.strikes(junk) == 3
