"""Nodes hear what they have a use for, find each other again after a cut, and come back without any bootstrap node."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from kit.memory_net import MemoryHub
from kit.memory_party import DEVICE, Party, advert_of, now_ms, party

from hansa.node.messaging.book import Book
from hansa.node.messaging.discovery import Discovery
from hansa.node.messaging.remembered_peers import load_peers, save_peers
from hansa.proto.market_documents import DeviceChoice, Requirements
from hansa.proto.protocols import BOOK_SYNC
from hansa.scheduler import advert_classes
from hansa.scheduler.advert_classes import CLASSES
from hansa.scheduler.matching import Wish

pytestmark = pytest.mark.trio
GPU = replace(DEVICE, id=b"g" * 32, kind="gpu", model="NVIDIA H200", memory_bytes=141 << 30)


class Member:
    """A party that takes part in the market."""

    def __init__(self, who: Party, number: int, useful: frozenset[str], data_dir: Path | None) -> None:
        self.who = who
        self.book = Book(who.net, now_ms, lambda advert: who.net.learn(advert.peer_id, advert.addresses))
        self.discovery = Discovery(
            who.net,
            self.book,
            now_ms,
            account=who.account.address,
            useful=lambda: useful,
            data_dir=data_dir,
            chance=random.Random(number),
        )
        self.discovery.serve()

    @property
    def accounts(self) -> set[bytes]:
        return {known.advert.signer for known in self.book.standing()}

    async def greet(self) -> None:
        async for peer_id in self.who.net.arrivals():
            await self.discovery.sync.greet(peer_id)

    async def meet(self, *others: "Member") -> None:
        for other in others:
            self.who.knows(other.who)
            await self.who.net.connect(other.who.peer_id)


@asynccontextmanager
async def member(
    hub: MemoryHub, number: int, *, useful: frozenset[str] = frozenset(), data_dir: Path | None = None
) -> AsyncIterator[Member]:
    async with party(hub, number) as who, trio.open_nursery() as nursery:
        made = Member(who, number, useful, data_dir)
        nursery.start_soon(made.discovery.run)
        nursery.start_soon(made.greet)
        yield made
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    with trio.fail_after(seconds):
        while not holds():  # noqa: ASYNC110  # the world changes without saying so
            await trio.sleep(0.5)


async def test_of_a_large_market_a_node_hears_only_what_it_has_a_use_for(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advert_classes, "MANY_ADVERTS", 3)
    monkeypatch.setattr(advert_classes, "NARROW_FOR_MS", 600_000)
    hub = MemoryHub()
    async with AsyncExitStack() as stack:
        buyer = await stack.enter_async_context(member(hub, 1, useful=frozenset({"gpu-80"})))
        sellers = [await stack.enter_async_context(party(hub, number)) for number in range(10, 16)]
        for number, seller in enumerate(sellers):
            seller.knows(buyer.who)
            await seller.net.connect(buyer.who.peer_id)
            devices = (GPU,) if number % 2 else (DEVICE,)
            book = Book(seller.net, now_ms, lambda _advert: None)
            await book.publish(advert_of(seller, devices=devices, expires_ms=now_ms() + 3_600_000))
        assert buyer.discovery.classes == CLASSES
        await until(lambda: buyer.discovery.classes == ("gpu-80",))
        gpus = {seller.account.address for seller in sellers[1::2]}
        assert buyer.accounts == gpus
        first = sellers[0]
        await Book(first.net, now_ms, lambda _advert: None).publish(advert_of(first))
        await trio.sleep(5)
        assert buyer.accounts == gpus, "what it has no use for it neither keeps nor passes on"
        await trio.sleep(600)
        assert buyer.discovery.classes == CLASSES, "now and then it looks whether there are still so many"


async def test_when_a_cut_heals_both_halves_books_agree_within_a_minute(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub(delay_s=0.02)
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(member(hub, number)) for number in range(1, 13)]
        for number, one in enumerate(members):
            await one.meet(*members[:number])
        left, right = members[:6], members[6:]
        for one in left:
            for other in right:
                hub.link_cut(one.who.peer_id, other.who.peer_id)
        lasting = {"expires_ms": now_ms() + 3_600_000}
        for half in (left, right):
            for one in half:
                await one.book.publish(advert_of(one.who, **lasting))
        await until(lambda: all(len(one.accounts) == 6 for one in members))
        await trio.sleep(300)
        assert all(len(one.accounts) == 6 for one in members)
        for one in left:
            for other in right:
                hub.link_healed(one.who.peer_id, other.who.peer_id)
        await until(lambda: all(len(one.accounts) == 12 for one in members), 60)


async def test_a_node_comes_back_though_every_bootstrap_node_is_gone(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    hub = MemoryHub()
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(member(hub, number)) for number in (2, 3)]
        await others[0].meet(others[1])
        await others[0].book.publish(advert_of(others[0].who, expires_ms=now_ms() + 3_600_000))
        async with member(hub, 9) as gone:
            async with member(hub, 1, data_dir=tmp_path) as one:
                await one.meet(gone, *others)
                await until(lambda: bool(one.accounts))
            remembered = {peer_id for peer_id, _ in load_peers(tmp_path)}
            assert {other.who.peer_id for other in others} <= remembered
        hub.kill(gone.who.peer_id)
        async with member(hub, 1, data_dir=tmp_path) as again:
            assert again.accounts == set()
            await until(lambda: bool(again.accounts), 20)


async def test_who_remembers_nobody_that_lives_goes_on_trying_and_harms_nobody(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    hub = MemoryHub()
    async with party(hub, 5) as dead:
        save_peers(tmp_path, ((dead.peer_id, ("/ip4/10.0.0.9/tcp/1",)),))
    async with member(hub, 1, data_dir=tmp_path) as one:
        await trio.sleep(600)
        assert one.accounts == set()
        assert load_peers(tmp_path) != (), "it does not forget its way back"


async def test_a_lost_peer_is_dialled_again(autojump_clock: trio.abc.Clock) -> None:
    hub = MemoryHub()
    async with member(hub, 1) as one, member(hub, 2) as two:
        await one.meet(two)
        await one.who.net.disconnect(two.who.peer_id)
        await until(lambda: two.who.peer_id in one.who.net.linked, 60)


async def test_a_buyer_whose_book_has_too_few_asks_those_whom_the_table_names_for_their_own_adverts(
    autojump_clock: trio.abc.Clock,
) -> None:
    hub = MemoryHub()
    wishes: list[Wish] = []
    async with party(hub, 1) as who, member(hub, 2) as seller, party(hub, 3) as liar, trio.open_nursery() as nursery:
        book = Book(who.net, now_ms, lambda _advert: None)
        discovery = Discovery(
            who.net, book, now_ms, account=who.account.address, useful=frozenset, wishes=lambda: wishes
        )
        discovery.serve()
        nursery.start_soon(discovery.run)
        await seller.book.publish(advert_of(seller.who, devices=(GPU,), expires_ms=now_ms() + 600_000))
        for net in (seller.who.net, liar.net):
            net.advertise(("h200/*",))
        await trio.sleep(5)
        assert list(book.standing()) == []
        needs = Requirements(
            kind="gpu",
            choices=(DeviceChoice(devices=1, model="H200"),),
            devices=1,
            device_memory_bytes=0,
            cores_milli=1,
            memory_bytes=0,
            scratch_bytes=0,
            tier="sandbox",
            features=(),
            egress=(),
            wall_ms=1,
            clauses=(),
        )
        wishes.append(Wish(requirements=needs, currency="USD", ceiling_e18=10**18))
        discovery.look_soon()
        await trio.sleep(2)
        assert [known.advert.peer_id for known in book.standing()] == [seller.who.peer_id]
        asked = who.net.counters().get(f"request.timeout {BOOK_SYNC}", 0)
        discovery.look_soon()
        await trio.sleep(2)
        assert who.net.counters().get(f"request.timeout {BOOK_SYNC}", 0) == asked, "nobody is asked twice in a minute"
        nursery.cancel_scope.cancel()
