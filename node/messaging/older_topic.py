"""The gossip topic of the time before classes: heard, and spoken on, as long as a neighbour hears no other.

Nodes of today hear a topic for each class of adverts. One of an earlier time hears one topic for all, and would see the
adverts of its new neighbours lapse. So a node that has such a neighbour joins that topic, checks what is said there as
on any other, and hands on what it hears on the classes' topics and nobody has said there. When the last such neighbour
is gone it leaves; nobody who hears a class's topic keeps anybody in it, so it dies out with the nodes that need it.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection

import trio

from hansa.node.messaging.book import Book
from hansa.node.network.net import Gossip, Net
from hansa.proto.codec import encode
from hansa.proto.messages import AdvertPublished
from hansa.proto.protocols import OLDER_ADVERT_TOPIC, advert_topic
from hansa.scheduler.advert_classes import CLASSES

LOOK_EVERY_S = 2.0
LINGER_S = 60.0
"""For so long it is heard after the last neighbour that needs it was seen: connections come and go."""
MOST_HANDED_ON = 4
"""At a look. Others take no more than twice as much of one publisher, and it has adverts of its own to say."""


class OlderTopic:
    """This node's part in it."""

    def __init__(self, net: Net, book: Book, classes: Callable[[], Collection[str]], chance: random.Random) -> None:
        """``classes`` are those whose topics this node hears."""
        self._net, self._book, self._classes, self._chance = net, book, classes, chance
        self._channel: Gossip | None = None
        self._until_s = 0.0
        self.counters: Counter[str] = Counter()

    def needed_by(self) -> frozenset[str]:
        """Neighbours that hear this topic and that of no class."""
        older = self._net.listeners(OLDER_ADVERT_TOPIC)
        return older.difference(*(self._net.listeners(advert_topic(name)) for name in CLASSES)) if older else older

    async def run(self) -> None:
        """Join, hand on and leave, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                if self.needed_by():
                    self._until_s = trio.current_time() + LINGER_S
                # Whoever hears no class itself would look to others like one that needs it.
                is_wanted = bool(self._classes()) and trio.current_time() < self._until_s
                if is_wanted and self._channel is None:
                    self._channel = self._net.subscribe(OLDER_ADVERT_TOPIC, self._book.validator(None))
                    nursery.start_soon(_drain, self._channel)
                elif not is_wanted and self._channel is not None:
                    self._net.unsubscribe(OLDER_ADVERT_TOPIC)
                    self._channel = None
                self._book.hands_on = self._channel is not None
                if self._channel is not None:
                    await self._hand_on()
                await trio.sleep(LOOK_EVERY_S * self._chance.uniform(0.8, 1.2))

    async def _hand_on(self) -> None:
        """Say what was heard before this look and not said there since, most often by its own author."""
        for signed in self._book.unsaid(MOST_HANDED_ON):
            self.counters["adverts: handed on to older nodes"] += 1
            await self._net.publish(OLDER_ADVERT_TOPIC, encode(AdvertPublished(advert=signed)))


async def _drain(channel: Gossip) -> None:
    # The book took what it wanted from each message while it validated it.
    async for _ in channel:
        pass
