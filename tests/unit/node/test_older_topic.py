"""Adverts pass between nodes that know classes and nodes of the time before, and only as long as there are such."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from kit.memory_net import MemoryHub
from kit.memory_party import Party, advert_of, now_ms, party
from kit.older_peer import OlderReader

from hansa.node.messaging import book as book_module
from hansa.node.messaging import older_topic
from hansa.node.messaging.book import Book
from hansa.node.messaging.discovery import Discovery
from hansa.node.messaging.older_topic import LINGER_S
from hansa.proto.codec import encode
from hansa.proto.messages import AdvertPublished
from hansa.proto.protocols import OLDER_ADVERT_TOPIC, advert_topic
from hansa.scheduler.advert_classes import Interest

pytestmark = pytest.mark.trio


class Member:
    """A node of today."""

    def __init__(self, who: Party) -> None:
        self.who = who
        self.book = Book(who.net, now_ms, lambda advert: who.net.learn(advert.peer_id, advert.addresses))
        self.discovery = Discovery(
            who.net, self.book, now_ms, account=who.account.address, useful=frozenset, chance=random.Random(1)
        )
        self.discovery.serve()

    @property
    def accounts(self) -> set[bytes]:
        return {known.advert.signer for known in self.book.standing()}

    @property
    def joined(self) -> bool:
        return OLDER_ADVERT_TOPIC in self.who.net._topics


@asynccontextmanager
async def member(hub: MemoryHub, number: int) -> AsyncIterator[Member]:
    async with party(hub, number) as who, trio.open_nursery() as nursery:
        made = Member(who)
        nursery.start_soon(made.discovery.run)
        yield made
        nursery.cancel_scope.cancel()


async def meet(one: Party, other: Party) -> None:
    one.knows(other)
    await one.net.connect(other.peer_id)


async def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    with trio.fail_after(seconds):
        while not holds():  # noqa: ASYNC110  # the world changes without saying so
            await trio.sleep(0.5)


async def test_an_advert_is_said_to_older_neighbours_too_as_long_as_there_are_any(autojump_clock):
    hub = MemoryHub(delay_s=0.01)
    async with member(hub, 1) as new, party(hub, 2) as old:
        reader = OlderReader(old.net, now_ms)
        await meet(new.who, old)
        await new.book.publish(advert_of(new.who, sequence=1))
        await until(lambda: new.who.account.address in reader.accounts, 1)


async def test_nothing_is_said_on_the_older_topic_where_nobody_hears_it(autojump_clock):
    hub = MemoryHub(delay_s=0.01)
    async with member(hub, 1) as new, member(hub, 2) as other:
        await meet(new.who, other.who)
        said = []
        publish = new.who.net.publish

        async def noted(topic: str, data: bytes) -> None:
            said.append(topic)
            await publish(topic, data)

        new.who.net.publish = noted
        await new.book.publish(advert_of(new.who))
        await trio.sleep(30)
        assert said == [advert_topic("cpu")]
        assert [each.joined for each in (new, other)] == [False, False]


async def test_what_an_older_node_says_is_heard_and_passed_on_to_another(autojump_clock):
    hub = MemoryHub(delay_s=0.01)
    async with member(hub, 1) as between, party(hub, 2) as old, party(hub, 3) as older:
        one, other = OlderReader(old.net, now_ms), OlderReader(older.net, now_ms)
        await meet(between.who, old)
        await meet(between.who, older)
        await until(lambda: between.joined)
        await one.publish(advert_of(old))
        await until(lambda: old.account.address in between.accounts & other.accounts, 1)


async def test_an_advert_from_farther_away_is_handed_on_to_older_neighbours_once(autojump_clock):
    hub = MemoryHub(delay_s=0.01)
    async with member(hub, 1) as far, member(hub, 2) as middle, member(hub, 4) as between, party(hub, 3) as old:
        reader = OlderReader(old.net, now_ms)
        await meet(far.who, middle.who)
        await meet(middle.who, between.who)
        await meet(between.who, old)
        await until(lambda: between.joined)
        for sequence in (1, 2):
            await far.book.publish(advert_of(far.who, sequence=sequence))
            await until(lambda: far.who.account.address in reader.accounts, 10)
            await trio.sleep(10)
        assert [known.advert.sequence for known in reader.book.standing()] == [2]
        assert between.discovery.older.counters["adverts: handed on to older nodes"] == 2
        assert old.net.peers()[0].strikes == 0
        assert not any(peer.strikes for peer in between.who.net.peers())


async def test_what_its_author_said_there_is_not_said_again(autojump_clock):
    hub = MemoryHub(delay_s=0.01)
    async with member(hub, 1) as one, member(hub, 2) as other, party(hub, 3) as old:
        OlderReader(old.net, now_ms)
        for a, b in ((one.who, old), (other.who, old), (one.who, other.who)):
            await meet(a, b)
        await until(lambda: one.joined and other.joined)
        await trio.sleep(3)
        await one.book.publish(advert_of(one.who))
        await trio.sleep(10)
        assert not other.discovery.older.counters


async def test_the_older_topic_dies_out_with_those_who_need_it(autojump_clock):
    hub = MemoryHub(delay_s=0.01)
    async with member(hub, 1) as one, member(hub, 2) as other:
        await meet(one.who, other.who)
        async with party(hub, 3) as old:
            OlderReader(old.net, now_ms)
            await meet(one.who, old)
            await meet(other.who, old)
            await until(lambda: one.joined and other.joined)
            await trio.sleep(3 * LINGER_S)
            assert one.joined
        await trio.sleep(LINGER_S / 2)
        assert one.joined, "it may be back in a moment"
        await trio.sleep(LINGER_S)
        assert [each.joined for each in (one, other)] == [False, False]
        assert not one.book.hands_on


async def test_who_hears_no_class_does_not_join_or_others_would_take_it_for_an_older_node(autojump_clock, monkeypatch):
    monkeypatch.setattr(Interest, "classes", lambda *_: ())
    hub = MemoryHub(delay_s=0.01)
    async with member(hub, 1) as narrow, party(hub, 2) as old:
        await until(lambda: not narrow.discovery.classes)
        OlderReader(old.net, now_ms)
        await meet(narrow.who, old)
        await trio.sleep(30)
        assert not narrow.joined


async def test_a_forged_advert_on_the_older_topic_is_a_strike_as_on_any_other(autojump_clock):
    hub = MemoryHub(delay_s=0.01)
    async with member(hub, 1) as new, party(hub, 2) as old, party(hub, 3) as liar:
        reader = OlderReader(old.net, now_ms)
        await meet(new.who, old)
        await until(lambda: new.joined)
        forged = advert_of(old)
        forged = type(forged)(document=advert_of(liar).document, signature=forged.signature)
        await old.net.publish(OLDER_ADVERT_TOPIC, encode(AdvertPublished(advert=forged)))
        await trio.sleep(1)
        assert new.who.strikes(old) == 1
        assert reader.accounts == set()


async def test_what_waits_to_be_handed_on_is_bounded_and_goes_when_it_is_not_the_newest_any_more(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(book_module, "MOST_UNSAID", 3)
    hub = MemoryHub()
    async with party(hub, 1) as who, party(hub, 2) as seller:
        book = Book(who.net, now_ms, lambda _advert: None)
        book.hands_on = True
        hear = book.validator("cpu")

        def heard(signed) -> bytes:
            hear(who.net.context, encode(AdvertPublished(advert=signed)))
            return signed.document.signer

        heard(advert_of(seller, sequence=1))
        book.take(advert_of(seller, sequence=2))
        assert book.unsaid(9) == [], "a newer one came another way"
        heard(advert_of(seller, sequence=3, expires_ms=now_ms() + 1_000))
        await trio.sleep(2)
        assert book.unsaid(9) == [], "it has lapsed"
        signers = []
        for number in range(10, 15):
            async with party(hub, number) as other:
                signers.append(heard(advert_of(other)))
        assert [signed.document.signer for signed in book.unsaid(9)] == signers[-3:]


async def test_no_more_is_handed_on_at_a_time_than_others_take(autojump_clock, monkeypatch):
    monkeypatch.setattr(older_topic, "MOST_HANDED_ON", 2)
    hub = MemoryHub(delay_s=0.01)
    async with member(hub, 1) as between, party(hub, 2) as old:
        reader = OlderReader(old.net, now_ms)
        await meet(between.who, old)
        await until(lambda: between.joined)
        await trio.sleep(3)
        sellers = []
        validate = between.book.validator("cpu")
        for number in range(10, 20):
            async with party(hub, number) as seller:
                sellers.append(seller.account.address)
                validate(seller.net.context, encode(AdvertPublished(advert=advert_of(seller))))
        await trio.sleep(4)
        assert 0 < len(reader.accounts) < len(sellers)
        await until(lambda: reader.accounts == set(sellers), 30)
