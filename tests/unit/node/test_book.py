"""The book keeps the newest sound advert of every provider, and nothing else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from kit.memory_net import MemoryHub
from kit.memory_party import DEVICE, Party, advert_of, bent, key, now_ms, party

from hansa.market.vocabulary import VOCABULARY
from hansa.node.daemon.chores import MOST_ADDRESSES
from hansa.node.messaging import book as book_module
from hansa.node.messaging.book import WORDS_AT_ONCE, Book, in_one_advert
from hansa.node.network.net import Context, Verdict
from hansa.proto.codec import encode
from hansa.proto.market_documents import Advert, DeviceChoice, Fact, Requirements
from hansa.proto.messages import AdvertPublished, BookRequested, BookSent
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import BOOK, MAX_ADVERT_BYTES, advert_topic
from hansa.proto.signing import Signed, sign
from hansa.scheduler.advert_book import MOST_INVITED, NEWS_AT_ONCE
from hansa.scheduler.advert_classes import CLASSES, classes_of
from hansa.scheduler.advert_pace import LONGEST_LIFE_MS
from hansa.scheduler.matching_columns import Columns

pytestmark = pytest.mark.trio
CONTEXT = Context(peer_id="somebody", address=bytes(20))
TOPIC = advert_topic("cpu")


class Reader:
    """A party with a book."""

    def __init__(self, who: Party) -> None:
        self.who = who
        self.learnt: list[Advert] = []
        self.book = Book(who.net, now_ms, self.learnt.append)
        self.book.serve()
        self.validate = self.book.validator("cpu")
        self.gossip = who.net.subscribe(TOPIC, self.validate)

    def hears(self, signed: Signed[Advert]) -> Verdict:
        validate = self.book.validator(classes_of(signed.document)[0])
        author = Context(peer_id=signed.document.peer_id, address=bytes(20))
        return validate(author, encode(AdvertPublished(advert=signed)))

    @property
    def accounts(self) -> list[bytes]:
        return [known.advert.signer for known in self.book.standing()]


@asynccontextmanager
async def reader(hub: MemoryHub, number: int) -> AsyncIterator[Reader]:
    async with party(hub, number) as who:
        yield Reader(who)


def needs(**changes: Any) -> Requirements:
    wanted = Requirements(
        choices=(),
        clauses=(),
        kind="cpu",
        devices=1,
        device_memory_bytes=0,
        cores_milli=1_000,
        memory_bytes=1 << 30,
        scratch_bytes=1 << 20,
        tier="sandbox",
        features=(),
        egress=(),
        wall_ms=600_000,
    )
    return replace(wanted, **changes)


async def test_a_sound_advert_is_kept_and_passed_on() -> None:
    async with reader(MemoryHub(), 1) as one, party(MemoryHub(), 2) as seller:
        assert one.hears(advert_of(seller)) is Verdict.ACCEPT
        assert one.accounts == [seller.account.address]
        assert [advert.peer_id for advert in one.learnt] == [seller.peer_id]


async def test_a_forged_advert_is_rejected_and_teaches_nothing() -> None:
    async with reader(MemoryHub(), 1) as one, party(MemoryHub(), 2) as seller:
        sound = advert_of(seller)
        cheaper = replace(sound, document=replace(sound.document, price_e18_per_device_ms=1))
        for forged in (
            replace(sound, signature=bent(sound.signature)),
            replace(sound, signature=bytes(65)),
            cheaper,
            sign(DOMAIN, sound.document, key(99)),
            replace(sound, document=replace(sound.document, signer=bytes(20))),
        ):
            assert one.hears(forged) is Verdict.REJECT
        assert one.accounts == []
        assert one.learnt == []


async def test_what_is_over_its_limits_or_no_advert_is_rejected() -> None:
    async with reader(MemoryHub(), 1) as one, party(MemoryHub(), 2) as seller:
        sound = encode(AdvertPublished(advert=advert_of(seller)))
        many = tuple(replace(DEVICE, id=number.to_bytes(32, "big")) for number in range(2_000))
        assert len(encode(AdvertPublished(advert=advert_of(seller, devices=many)))) > MAX_ADVERT_BYTES
        assert one.hears(advert_of(seller, devices=many)) is Verdict.REJECT
        signed = advert_of(seller)
        for changes in ({"region": "r" * 257}, {"free": 1 << 32}, {"sequence": -1}, {"addresses": ("x" * 257,)}):
            assert one.hears(replace(signed, document=replace(signed.document, **changes))) is Verdict.REJECT
        for junk in (b"", b"\xff", sound[:-1], sound + b"\x00", encode(BookRequested(most=1)), bytes(100)):
            assert one.validate(CONTEXT, junk) is Verdict.REJECT
        assert one.accounts == []


async def test_one_node_may_say_only_so_much() -> None:
    async with reader(MemoryHub(), 1) as one, party(MemoryHub(), 2) as seller:
        said = [one.hears(advert_of(seller, sequence=number, region="r")) for number in range(1, 60)]
        assert said[:NEWS_AT_ONCE] == [Verdict.ACCEPT] * NEWS_AT_ONCE, "one account's, by whomever they come"
        assert said[NEWS_AT_ONCE + 1 :] == [Verdict.IGNORE] * (58 - NEWS_AT_ONCE)
        words = [encode(AdvertPublished(advert=advert_of(seller, sequence=number))) for number in range(100, 200)]
        other = Context(peer_id="a node that repeats others' adverts", address=bytes(20))
        assert [one.validate(other, word) for word in words[:50]] == [Verdict.IGNORE] * 50
        junk = [one.validate(other, b"junk") for _ in range(WORDS_AT_ONCE)]
        assert set(junk) == {Verdict.IGNORE}, "beyond its rate nothing of it is looked into"


async def test_an_advert_of_two_classes_is_passed_on_once_on_the_topic_of_each_and_on_no_other() -> None:
    async with reader(MemoryHub(), 1) as one, party(MemoryHub(), 2) as seller:
        gpu = replace(DEVICE, id=b"g" * 32, kind="gpu", model="NVIDIA H200", memory_bytes=141 << 30)
        signed = advert_of(seller, devices=(DEVICE, gpu))
        data = encode(AdvertPublished(advert=signed))
        verdicts = {name: [one.book.validator(name)(CONTEXT, data) for _ in range(2)] for name in CLASSES}
        assert verdicts.pop("cpu") == verdicts.pop("gpu-80") == [Verdict.ACCEPT, Verdict.IGNORE]
        assert set(map(tuple, verdicts.values())) == {(Verdict.REJECT, Verdict.REJECT)}
        other = replace(signed, signature=bent(signed.signature))
        assert one.book.validator("gpu-80")(CONTEXT, encode(AdvertPublished(advert=other))) is Verdict.IGNORE


async def test_an_advert_that_is_void_or_stands_too_long_is_ignored() -> None:
    async with reader(MemoryHub(), 1) as one, party(MemoryHub(), 2) as seller:
        now = now_ms()
        for expires_ms in (0, now - 1, now + LONGEST_LIFE_MS + 60_000, (1 << 64) - 1):
            # Clocks differ and messages are late: nobody is to blame for passing these on.
            assert one.hears(advert_of(seller, expires_ms=expires_ms)) is Verdict.IGNORE
        assert one.accounts == []


async def test_an_old_advert_said_again_changes_nothing(autojump_clock: trio.abc.Clock) -> None:
    async with reader(MemoryHub(), 1) as one, party(MemoryHub(), 2) as seller:
        old, new = (advert_of(seller, sequence=number, price_e18_per_device_ms=number) for number in (1, 2))
        assert one.hears(old) is Verdict.ACCEPT
        assert one.hears(new) is Verdict.ACCEPT
        for replayed in (old, new):
            assert one.hears(replayed) is Verdict.IGNORE
        assert [known.advert.sequence for known in one.book.standing()] == [2]
        assert len(one.learnt) == 2
        await trio.sleep(61)
        assert one.accounts == [], "an advert goes when its time is over"


async def test_a_full_book_takes_nobody_new_until_an_advert_ends(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "MOST_ADVERTS", 2)
    hub = MemoryHub()
    async with reader(hub, 1) as one, party(hub, 2) as two, party(hub, 3) as three, party(hub, 4) as four:
        assert one.hears(advert_of(two)) is Verdict.ACCEPT
        assert one.hears(advert_of(three, expires_ms=now_ms() + 10_000)) is Verdict.ACCEPT
        assert one.hears(advert_of(four)) is Verdict.IGNORE
        assert one.hears(advert_of(two, sequence=now_ms() + 1)) is Verdict.ACCEPT, "who is in it may stay"
        await trio.sleep(11)
        assert one.hears(advert_of(four)) is Verdict.ACCEPT


async def test_only_adverts_that_fit_are_invited_and_the_cheapest_first() -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one:
        sellers: dict[str, bytes] = {}
        gpu = replace(DEVICE, kind="gpu", model="NVIDIA H200")
        twice = (DEVICE, replace(DEVICE, id=b"e" * 32))
        for number, (name, price, changes) in enumerate(
            (
                ("dear", 30, {}),
                ("cheap", 10, {}),
                ("middle", 20, {"devices": twice, "free": 0}),
                ("too dear", 31, {}),
                ("euros", 1, {"currency": "EUR"}),
                ("open", 2, {"tier": "none"}),
                ("gpu", 3, {"devices": (gpu,)}),
                ("small", 4, {"devices": (replace(DEVICE, cores_milli=500),)}),
                ("none", 5, {"devices": ()}),
            )
        ):
            async with party(hub, 10 + number) as seller:
                sellers[name] = seller.account.address
                one.hears(advert_of(seller, price_e18_per_device_ms=price, **changes))

        def invited(wanted: Requirements, currency: str = "USD", ceiling: int = 30) -> list[str]:
            accounts = one.book.matching(wanted, currency, ceiling)
            return [next(name for name in sellers if sellers[name] == account) for account in accounts]

        assert invited(needs()) == ["cheap", "middle", "dear"]
        assert invited(needs(), ceiling=20) == ["cheap", "middle"]
        assert invited(needs(), currency="EUR") == ["euros"]
        assert invited(needs(tier="none")) == ["open", "cheap", "middle", "dear"]
        assert invited(needs(kind="gpu", choices=(DeviceChoice(devices=1, model="h200"),))) == ["gpu"]
        assert invited(needs(devices=2)) == ["middle"]
        assert invited(needs(devices=3)) == []
        fitting = one.book.matching(needs(), "USD", 30)
        others = one.book.others(fitting, "USD")
        assert not set(others) & set(fitting)
        assert set(others) == {sellers[name] for name in ("too dear", "open", "gpu", "small", "none")}


async def test_a_tender_invites_only_so_many() -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one:
        for number in range(10, 10 + MOST_INVITED + 5):
            async with party(hub, number) as seller:
                one.hears(advert_of(seller))
        fitting = one.book.matching(needs(), "USD", 10**18)
        assert len(fitting) == MOST_INVITED
        assert one.book.others(fitting, "USD") == ()


async def test_whom_a_tender_invites_beside_the_cheapest_is_left_to_chance() -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one:
        by_price = []
        for number in range(10, 10 + MOST_INVITED + 16):
            async with party(hub, number) as seller:
                one.hears(advert_of(seller, price_e18_per_device_ms=number))
                by_price.append(seller.account.address)
        drawn = [one.book.matching(needs(), "USD", 10**18, chance=chance) for chance in range(20)]
        assert all(accounts[:16] == tuple(by_price[:16]) for accounts in drawn)
        assert len(set(drawn)) == 20
        assert {account for accounts in drawn for account in accounts} == set(by_price)
        unwelcome = set(by_price[:3])
        left = one.book.matching(needs(), "USD", 10**18, without=unwelcome)
        assert len(left) == MOST_INVITED
        assert not unwelcome & set(left)


async def test_what_expired_or_was_replaced_is_found_no_more(autojump_clock: trio.abc.Clock) -> None:
    async with reader(MemoryHub(), 1) as one, party(MemoryHub(), 2) as seller:
        one.hears(advert_of(seller, sequence=1, price_e18_per_device_ms=10))
        one.hears(advert_of(seller, sequence=2, price_e18_per_device_ms=90))
        assert one.book.matching(needs(), "USD", 50) == ()
        assert one.book.matching(needs(), "USD", 90) == (seller.account.address,)
        await trio.sleep(LONGEST_LIFE_MS / 1000 + 60)
        assert one.book.matching(needs(), "USD", 90) == ()


async def test_an_advert_reaches_everybody_and_a_newcomer_copies_the_book() -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, reader(hub, 2) as two, reader(hub, 3) as late:
        one.who.knows(two.who)
        await one.who.net.connect(two.who.peer_id)
        await two.book.publish(advert_of(two.who))
        with trio.fail_after(5):
            await one.gossip.receive()
        assert one.accounts == two.accounts == [two.who.account.address]
        late.who.knows(one.who)
        assert await late.book.copy_from(one.who.peer_id) == 1
        assert late.accounts == one.accounts
        assert await late.book.copy_from(one.who.peer_id) == 0
        assert late.who.strikes(one.who) == 0


async def test_a_forger_is_struck_by_its_neighbour() -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, party(hub, 2) as liar:
        one.who.knows(liar)
        await one.who.net.connect(liar.peer_id)
        forged = advert_of(liar)
        message = AdvertPublished(advert=replace(forged, signature=bent(forged.signature)))
        await liar.net.publish(TOPIC, encode(message))
        await trio.testing.wait_all_tasks_blocked()
        assert one.who.strikes(liar) == 1
        assert one.accounts == []


@pytest.mark.parametrize("lie", ["forged", "garbage", "oversized"])
async def test_a_book_with_lies_in_it_is_a_strike(lie: str) -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, party(hub, 2) as liar, party(hub, 3) as seller:
        good, forged = advert_of(seller), advert_of(liar)
        forged = replace(forged, signature=bent(forged.signature))
        answers = {
            "forged": encode(BookSent(adverts=(forged, good))),
            "garbage": b"\x93garbage",
            "oversized": bytes(2 << 20),
        }

        async def answer(_context: Context, _data: bytes) -> bytes:
            return answers[lie]

        liar.net.serve(BOOK, answer)
        one.who.knows(liar)
        taken = await one.book.copy_from(liar.peer_id)
        # The network itself cuts off what is too long, and for that there is no strike of ours.
        assert one.who.strikes(liar) == (lie != "oversized")
        assert taken == (lie == "forged"), "what is sound in it counts all the same"
        assert one.accounts == ([seller.account.address] if taken else [])


async def test_a_newcomer_is_given_no_more_than_it_asks_for_and_no_more_than_fits() -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, reader(hub, 2) as late:
        for number in range(10, 40):
            async with party(hub, number) as seller:
                devices = tuple(replace(DEVICE, id=bytes([part]) * 32, model="x" * 250) for part in range(150))
                one.hears(advert_of(seller, devices=devices))
        late.who.knows(one.who)
        assert await late.book.copy_from(one.who.peer_id) in range(5, 30), "as many as fit into one answer"
        answer = await late.who.net.request(one.who.peer_id, BOOK, encode(BookRequested(most=2)))
        assert len(answer) < 120_000


@pytest.mark.parametrize(
    "changes",
    [
        {"features": ("image", "image")},
        {"features": ("image", "egress")},
        {"features": tuple(f"f{number:02d}" for number in range(65))},
        {"features": ("f" * 65,)},
        {"facts": (Fact(name="cuda", value="12"), Fact(name="cuda", value="13"))},
        {"facts": (Fact(name="driver", value="550"), Fact(name="cuda", value="12"))},
        {"facts": tuple(Fact(name=f"f{number:02d}", value="1") for number in range(65))},
        {"devices": (replace(DEVICE, facts=(Fact(name="cuda", value="12"),) * 2),)},
    ],
)
async def test_an_advert_whose_words_are_repeated_unsorted_or_too_many_is_rejected(changes: dict[str, Any]) -> None:
    async with reader(MemoryHub(), 1) as one, party(MemoryHub(), 2) as seller:
        assert one.hears(advert_of(seller, **changes)) is Verdict.REJECT
        assert one.accounts == []
        assert one.book.matching(needs(), "USD", 10**18) == ()
        full = tuple(f"f{number:02d}" for number in range(64))
        facts = tuple(Fact(name=name, value="1") for name in full)
        assert one.hears(advert_of(seller, features=full, facts=facts)) is Verdict.ACCEPT
        assert one.book.matching(needs(), "USD", 10**18) == (seller.account.address,)


async def test_an_advert_that_the_index_fails_on_leaves_book_and_index_as_they_were_and_costs_its_bringer_a_strike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = MemoryHub()
    async with reader(hub, 1) as one, party(hub, 2) as liar, party(hub, 3) as seller:
        assert one.hears(advert_of(liar, sequence=1)) is Verdict.ACCEPT
        good = advert_of(seller)
        whole = Columns.bits

        def bits(columns: Columns, features: tuple[str, ...]) -> int:
            return 1 << 64 if features == ("hell",) else whole(columns, features)

        monkeypatch.setattr(Columns, "bits", bits)
        bad = advert_of(liar, sequence=2, features=("hell",))

        async def answer(_context: Context, _data: bytes) -> bytes:
            return encode(BookSent(adverts=(bad, good)))

        liar.net.serve(BOOK, answer)
        one.who.knows(liar)
        assert await one.book.copy_from(liar.peer_id) == 1
        assert one.who.strikes(liar) == 1
        assert [
            known.advert.sequence for known in one.book.standing() if known.advert.signer == liar.account.address
        ] == [1]
        both = {liar.account.address, seller.account.address}
        assert set(one.book.matching(needs(), "USD", 10**18)) == both
        assert {each.signer for each in one.book.serving(needs(), "USD", 10**18)} == both


@pytest.mark.parametrize("model", ["AMD EPYC 9654 96-Core Processor", "m" * 250])
async def test_of_many_devices_an_advert_carries_some_of_each_sort_and_of_few_all(model: str) -> None:
    slots = [replace(DEVICE, id=number.to_bytes(32, "big"), model=model) for number in range(2_000)]
    other = replace(DEVICE, id=b"o" * 32, model="another")
    assert in_one_advert([*slots[:90], other]) == (*slots[:90], other)
    carried = in_one_advert([*slots, other])
    assert carried == (*slots[: len(carried) - 1], other)
    async with party(MemoryHub(), 1) as who:
        most = advert_of(
            who,
            devices=carried,
            # All else that an advert of ours can have at the most.
            addresses=("a" * 256,) * MOST_ADDRESSES,
            facts=tuple(Fact(name=name, value="v" * 256) for name in sorted(VOCABULARY)),
            features=tuple(f"{number:064}" for number in range(16)),
            region="r" * 256,
        )
    assert MAX_ADVERT_BYTES // 2 < len(encode(AdvertPublished(advert=most))) <= MAX_ADVERT_BYTES
