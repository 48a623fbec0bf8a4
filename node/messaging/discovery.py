"""Finding each other with no server: which adverts are heard, and the ways back to peers that were lost.

A node hears the topics of the classes that it has a use for, compares its book with its neighbours'
(``book_sync.py``), and dials lost peers again now and then. That is what brings two halves of a network together when
the cut between them heals.
"""

import contextlib
import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path

import trio

from hansa.node.messaging.book import Book
from hansa.node.messaging.book_sync import BookSync
from hansa.node.messaging.lan_discovery import LanDiscovery
from hansa.node.messaging.older_topic import OlderTopic
from hansa.node.messaging.remembered_peers import MOST_PEERS, load_peers, save_peers
from hansa.node.network.net import TOLD_EARLIER, TOLD_NEARBY, Gossip, Net, NetError
from hansa.proto.protocols import advert_topic
from hansa.proto.units import Address
from hansa.scheduler.advert_classes import CLASSES, Interest, wanted_names
from hansa.scheduler.matching import Wish

LOOK_EVERY_S = 2.0
CALL_EVERY_S = 12.0
"""How often one peer that was lost is dialled again."""
ALONE_EVERY_S = 1.0
ALONE_LONGEST_S = 60.0
ALONE_CALLS = 4
SAVE_EVERY_S = 60.0
FIRST_SAVE_S = 5.0
NEAR = 32
LOOK_FOR_EVERY_S = 60.0
MOST_WISHES = 16
MOST_NAMES_ASKED = 8
ENOUGH_PROVIDERS = 8
"""With so many adverts that fit, nobody is looked for in the network's table."""
ASKED_BESIDE_EACH_OTHER = 4
ASKED_REST_MS = 60_000
MOST_ASKED = 1024
ENOUGH_PEERS = 64
"""With so many connections nobody who was lost is looked for."""


class Discovery:
    """Topics, comparing of books, and finding the way back."""

    def __init__(
        self,
        net: Net,
        book: Book,
        now_ms: Callable[[], int],
        *,
        account: Address,
        useful: Callable[[], Collection[str]],
        wishes: Callable[[], Sequence[Wish]] = tuple,
        data_dir: Path | None = None,
        lan: bool = False,
        chance: random.Random | None = None,
    ) -> None:
        """``useful`` names the classes that this node lends in or looks for now, and ``wishes`` what its jobs need.

        With ``lan`` it looks for others in the networks of its private addresses.
        """
        self._net, self._book, self._now_ms = net, book, now_ms
        self._useful, self._wishes, self._data_dir = useful, wishes, data_dir
        self._lan = LanDiscovery(net.peer_id, net.addrs, self._near) if lan else None
        self._near_send, self._near_receive = trio.open_memory_channel[str](NEAR)
        self._wanted = trio.Event()
        self._asked_at: OrderedDict[str, int] = OrderedDict()
        self._chance = chance or random.Random()  # noqa: S311  # only spreads dials out
        self._interest = Interest()
        self._channels: dict[str, Gossip] = {}
        self._remembered = load_peers(data_dir) if data_dir is not None else ()
        self.classes: tuple[str, ...] = ()
        self.older = OlderTopic(net, book, lambda: self.classes, self._chance)
        self.sync = BookSync(net, book, now_ms, own=lambda: account, classes=lambda: self.classes, chance=self._chance)

    def serve(self) -> None:
        """Answer others, and hear every class until there are too many adverts for that."""
        self._book.serve()
        self.sync.serve()
        self._hear(CLASSES)

    async def run(self) -> None:
        """Hear, compare, and look for those who were lost, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                for channel in self._channels.values():
                    nursery.start_soon(_drain, channel)
                nursery.start_soon(self._follow_interest, nursery)
                nursery.start_soon(self.older.run)
                nursery.start_soon(self.sync.run)
                nursery.start_soon(self._look_for_providers)
                nursery.start_soon(self._call_the_lost)
                if self._lan is not None:
                    nursery.start_soon(self._lan.run)
                    nursery.start_soon(self._meet_the_near)
                nursery.start_soon(self._come_back)
                nursery.start_soon(self._remember)
        finally:
            self._save()

    # Topics.

    def _hear(self, classes: tuple[str, ...]) -> list[Gossip]:
        """Subscribe to what is new among these, and unsubscribe from the rest."""
        for name in self._channels.keys() - set(classes):
            self._net.unsubscribe(advert_topic(name))
            del self._channels[name]
        new = [name for name in classes if name not in self._channels]
        for name in new:
            self._channels[name] = self._net.subscribe(advert_topic(name), self._book.validator(name))
        self.classes = classes
        return [self._channels[name] for name in new]

    async def _follow_interest(self, nursery: trio.Nursery) -> None:
        while True:
            adverts = self._book.adverts
            classes = self._interest.classes(len(adverts), self._useful(), self._now_ms())
            if classes != self.classes:
                gone = set(self.classes) - set(classes)
                for channel in self._hear(classes):
                    nursery.start_soon(_drain, channel)
                    # What was said before we listened is in the neighbours' books.
                    nursery.start_soon(self.catch_up)
                if gone:
                    adverts.keep_only(classes)
            await trio.sleep(LOOK_EVERY_S)

    async def catch_up(self) -> None:
        """Pull from a neighbour now."""
        live = self._live()
        if live:
            await self.sync.pull(self._chance.choice(live))

    # Providers that neither gossip nor neighbours have told of.

    def look_soon(self) -> None:
        """A job needs somebody: look for providers in the network's table now, if the book has too few."""
        self._wanted.set()
        self._wanted = trio.Event()

    async def _look_for_providers(self) -> None:
        while True:
            wanted = self._wanted
            for wish in self._wishes()[:MOST_WISHES]:
                await self._look_for(wish)
            with trio.move_on_after(LOOK_FOR_EVERY_S):
                await wanted.wait()

    async def _look_for(self, wish: Wish) -> None:
        for name in wanted_names(wish.requirements)[:MOST_NAMES_ASKED]:
            if self._has_enough(wish):
                return
            room = trio.CapacityLimiter(ASKED_BESIDE_EACH_OTHER)
            async with trio.open_nursery() as nursery:
                for peer_id in await self._net.find(name):
                    nursery.start_soon(self._ask, peer_id, room)

    def _has_enough(self, wish: Wish) -> bool:
        serving = self._book.serving(wish.requirements, wish.currency, wish.ceiling_e18)
        return sum(1 for _ in islice(serving, ENOUGH_PROVIDERS)) >= ENOUGH_PROVIDERS

    async def _ask(self, peer_id: str, room: trio.CapacityLimiter) -> None:
        """Whoever is found is asked for its own advert, whose signature is all that counts."""
        now_ms = self._now_ms()
        if now_ms < self._asked_at.get(peer_id, -ASKED_REST_MS) + ASKED_REST_MS:
            return
        self._asked_at[peer_id] = now_ms
        self._asked_at.move_to_end(peer_id)
        while len(self._asked_at) > MOST_ASKED:
            self._asked_at.popitem(last=False)
        async with room:
            await self.sync.advert_of(peer_id)

    # Peers.

    def _live(self) -> list[str]:
        return [peer_id for peer_id, phase in self._net.phases().items() if phase == "live"]

    async def _call_the_lost(self) -> None:
        """Dial somebody we were connected with: after a cut nobody else would bring the two halves together."""
        while True:
            await trio.sleep(CALL_EVERY_S * self._chance.uniform(0.5, 1.5))
            peers = self._net.peers()
            lost = [peer.peer_id for peer in peers if peer.phase == "quiet" and peer.addrs]
            if lost and sum(peer.phase == "live" for peer in peers) < ENOUGH_PEERS:
                await self._dial(self._chance.choice(lost))

    def _near(self, peer_id: str, addr: str) -> None:
        """Somebody of this network said where it is. That may be a lie, and costs one dial."""
        self._net.learn(peer_id, (addr,), TOLD_NEARBY)
        with contextlib.suppress(trio.WouldBlock):
            self._near_send.send_nowait(peer_id)

    async def _meet_the_near(self) -> None:
        async for peer_id in self._near_receive:
            live = self._live()
            if peer_id not in live and len(live) < ENOUGH_PEERS:
                await self._dial(peer_id)

    async def _come_back(self) -> None:
        """While nobody is there, dial those whom an earlier life of this node knew."""
        for peer_id, addrs in self._remembered:
            self._net.learn(peer_id, addrs, TOLD_EARLIER)
        pause_s = ALONE_EVERY_S
        while self._remembered:
            await trio.sleep(pause_s * self._chance.uniform(0.5, 1.5))
            pause_s = min(ALONE_LONGEST_S, 2 * pause_s)
            if self._live():
                pause_s = ALONE_EVERY_S
                continue
            some = self._chance.sample(self._remembered, min(ALONE_CALLS, len(self._remembered)))
            async with trio.open_nursery() as nursery:
                for peer_id, _ in some:
                    nursery.start_soon(self._dial, peer_id)

    async def _dial(self, peer_id: str) -> None:
        try:
            await self._net.connect(peer_id)
        except NetError:
            return

    async def _remember(self) -> None:
        await trio.sleep(FIRST_SAVE_S)
        while True:
            self._save()
            await trio.sleep(SAVE_EVERY_S)

    def _save(self) -> None:
        if self._data_dir is not None:
            save_peers(self._data_dir, self._net.known(MOST_PEERS))


async def _drain(channel: Gossip) -> None:
    # The book took what it wanted from each message while it validated it.
    async for _ in channel:
        pass
