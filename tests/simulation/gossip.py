"""A market's books on one seed: hundreds of nodes that gossip, compare and forget, in virtual time.

The books, their checks, the pace of adverts and the pulls are the real ones (``hansa.scheduler``). What stands in for
the network: a mesh of a few neighbours in which every node passes on what its book accepts, as gossipsub does, and
lines with a delay and a rate. Signatures are real; each advert's is looked into once for all nodes, because a
thousand nodes on one processor would do little else.
"""

import heapq
import random
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace
from itertools import count

from kit.memory_party import DEVICE, START_MS, key

from hansa.proto.book_messages import AdvertsWanted, BookCompared, BookDifference
from hansa.proto.codec import encode
from hansa.proto.market_documents import Advert
from hansa.proto.messages import AdvertPublished, BookSent
from hansa.proto.network import DOMAIN
from hansa.proto.peer_id import peer_id_of_key
from hansa.proto.signing import Signed, SigningKey, check, sign
from hansa.proto.typed_data import Domain
from hansa.proto.units import Address
from hansa.scheduler.advert_book import AdvertBook, Taken
from hansa.scheduler.advert_pace import every_ms, life_ms
from hansa.scheduler.book_comparing import Brought, Lied, Promise, Sources, difference, pause_after, pull

MESH = 6
MOST_IN_MESH = 12
PEERS = 12
GREETED = 3
ANSWER_BYTES = 1 << 20
GOSSIP_EXTRA_BYTES = 150
"""Around an advert: the author's signature and key, the topic, and the frames below."""
REQUEST_EXTRA_BYTES = 200
CHECK_S = 0.0006
"""What looking into one advert takes, as measured on one core: its signature and its fields."""
CLASSES = ("cpu",)

Steps = Generator[float, None, None]


@dataclass(slots=True)
class Said:
    """One advert on its way."""

    signed: Signed[Advert]
    size_bytes: int
    seen: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Node:
    """One node: its book, whom it is connected with, and what it has sent and received."""

    number: int
    key: SigningKey
    book: AdvertBook
    provides: bool
    sources: Sources = field(default_factory=Sources)
    mesh: set[int] = field(default_factory=set)
    peers: set[int] = field(default_factory=set)
    gossip_bytes: int = 0
    sync_bytes: int = 0
    alive: bool = True
    pulls: int = 0
    withholds: bool = False


class GossipWorld:
    """All nodes, the lines between them, and the clock."""

    def __init__(
        self, seed: int, *, delay_s: tuple[float, float] = (0.01, 0.15), rate_bytes_per_s: float = 2.5e6
    ) -> None:
        self.chance = random.Random(seed)
        self.delay_s, self.rate = delay_s, rate_bytes_per_s
        self.nodes: dict[int, Node] = {}
        self.now_s = 0.0
        self.cut: Callable[[int, int], bool] = lambda _one, _other: False
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._numbers = count()
        self._checked: set[int] = set()
        self._sizes: dict[int, int] = {}
        self._kept_alive: dict[int, Signed[Advert]] = {}
        self.peer_ids = [peer_id_of_key(key(9_000 + number).secret()) for number in range(64)]
        self.published = 0

    @property
    def now_ms(self) -> int:
        ms: int = START_MS + int(self.now_s * 1000)
        return ms

    # The clock.

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now_s + seconds, next(self._order), act))

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        until = self.now_s + seconds
        while self._queue and self._queue[0][0] <= until:
            self.now_s, _, act = heapq.heappop(self._queue)
            act()
        self.now_s = until

    def go(self, steps: Steps) -> None:
        """Play a story that says how long it waits before it goes on."""

        def on() -> None:
            try:
                pause_s = next(steps)
            except StopIteration:
                return
            self.after(pause_s, on)

        on()

    # Nodes.

    def check_once(self, domain: Domain, signed: Signed[Advert], signer: Address) -> None:
        """Look into an advert's signature; what was found sound needs no second look."""
        if id(signed) not in self._checked:
            check(domain, signed, signer)
            self._checked.add(id(signed))
            self._kept_alive[id(signed)] = signed

    def forget_old(self) -> None:
        """So that a day of adverts does not stay in memory."""
        old = [name for name, signed in self._kept_alive.items() if signed.document.expires_ms < self.now_ms]
        for name in old:
            del self._kept_alive[name]
            self._checked.discard(name)
            self._sizes.pop(name, None)

    def join(self, *, provides: bool = True, knows: Iterable[int] = ()) -> Node:
        """A node comes and meets some of those who are there."""
        number = next(self._numbers)
        node = Node(
            number=number, key=key(100_000 + number), book=AdvertBook(20_000, self.check_once), provides=provides
        )
        others = [other for other in self.nodes if not self.cut(node.number, other)]
        known = list(knows) or self.chance.sample(others, min(PEERS, len(others)))
        self.nodes[node.number] = node
        for other in known:
            self.connect(node.number, other)
        for other in self.chance.sample(known, min(GREETED, len(known))):
            self.after(self._delay() * 2, lambda other=other: self.go(self._pull(node, other)))  # type: ignore[misc]
        self.go(self._compare_now_and_then(node))
        if provides:
            self.go(self._advertise(node))
        return node

    def connect(self, one: int, other: int) -> None:
        for mine, theirs in ((one, other), (other, one)):
            node = self.nodes[mine]
            node.peers.add(theirs)
            if len(node.mesh) < MESH or len(self.nodes[theirs].mesh) < MESH // 2:
                node.mesh.add(theirs)
                self.nodes[theirs].mesh.add(mine)
        for number in (one, other):
            node = self.nodes[number]
            if len(node.mesh) > MOST_IN_MESH:
                for pruned in self.chance.sample(sorted(node.mesh), len(node.mesh) - MESH):
                    node.mesh.discard(pruned)
                    self.nodes[pruned].mesh.discard(number)

    def leave(self, number: int) -> None:
        """A node is gone without a word; its neighbours find others in its place."""
        node = self.nodes.pop(number)
        node.alive = False
        for other in node.peers:
            left = self.nodes.get(other)
            if left is None:
                continue
            left.peers.discard(number)
            left.mesh.discard(number)
            strangers = [each for each in self.nodes if each not in left.peers and each != other]
            if strangers and len(left.peers) < PEERS:
                self.connect(other, self.chance.choice(strangers))

    def _delay(self) -> float:
        return self.chance.uniform(*self.delay_s)

    # Adverts.

    def advert(self, node: Node) -> Signed[Advert]:
        of_class = node.book.count(CLASSES)
        peer_id = self.peer_ids[node.number % len(self.peer_ids)]
        document = Advert(
            signer=node.key.address,
            peer_id=peer_id,
            addresses=(f"/ip4/203.0.113.7/tcp/4001/p2p/{peer_id}",),
            devices=(replace(DEVICE, id=node.key.address + bytes(12)),),
            free=1,
            tier="sandbox",
            features=("dependencies", "image"),
            region="eu-west",
            facts=(),
            currency="USD",
            price_e18_per_device_ms=10**15 + node.number,
            sequence=self.now_ms,
            expires_ms=self.now_ms + life_ms(of_class),
        )
        return sign(DOMAIN, document, node.key)

    def _size(self, signed: Signed[Advert]) -> int:
        size_bytes = self._sizes.get(id(signed))
        if size_bytes is None:
            size_bytes = self._sizes[id(signed)] = len(encode(AdvertPublished(advert=signed)))
            self._kept_alive[id(signed)] = signed
        return size_bytes

    def _advertise(self, node: Node) -> Steps:
        yield self.chance.uniform(0, 2)
        while node.alive:
            signed = self.advert(node)
            self.published += 1
            said = Said(signed, self._size(signed) + GOSSIP_EXTRA_BYTES)
            self._heard(node, said)
            # A little early or late, as clocks and changes have it.
            yield every_ms(node.book.count(CLASSES)) / 1000 * self.chance.uniform(0.95, 1.05)

    def _heard(self, node: Node, said: Said) -> None:
        """The book decides; what it takes goes on to everybody in the mesh who is not known to have it."""
        if not node.alive or node.number in said.seen:
            return
        said.seen.add(node.number)
        if node.book.take(said.signed, self.now_ms) is not Taken.NEW:
            return
        for other in node.mesh:
            if self.cut(node.number, other):
                continue
            receiver = self.nodes[other]
            node.gossip_bytes += said.size_bytes
            receiver.gossip_bytes += said.size_bytes
            if other not in said.seen:
                self.after(self._delay(), lambda receiver=receiver: self._heard(receiver, said))  # type: ignore[misc]

    # Pulls.

    def _compare_now_and_then(self, node: Node) -> Steps:
        brought = 0
        while node.alive:
            yield pause_after(brought, self.chance.random()) / 1000
            reachable = [str(each) for each in node.peers if not self.cut(node.number, each)]
            good = node.sources.good(sorted(reachable), self.now_ms)
            if good:
                before = len(node.book)
                yield from self._pull(node, int(self.chance.choice(good)))
                brought = len(node.book) - before

    def _pull(self, node: Node, other: int) -> Steps:
        """The real pull, over a line with a delay and a rate."""
        node.pulls += 1
        pulling = pull(node.book, lambda: CLASSES, Address(self.chance.randbytes(20)))
        answer: BookDifference | BookSent | None = None
        while node.alive:
            there = self.nodes.get(other)
            if there is None or self.cut(node.number, other):
                return
            try:
                step = pulling.send(answer)
            except (StopIteration, Lied):
                return
            answer = None
            if isinstance(step, Brought):
                for signed in step.adverts:
                    node.book.take(signed, self.now_ms)
                yield CHECK_S * len(step.adverts)
            elif isinstance(step, Promise):
                node.sources.heard(str(other), promised=step.promised, delivered=step.delivered, now_ms=self.now_ms)
            else:
                answer, size_bytes = self._answer(there, step)
                node.sync_bytes += size_bytes
                there.sync_bytes += size_bytes
                yield 2 * self._delay() + size_bytes / self.rate

    def _answer(self, there: Node, asked: BookCompared | AdvertsWanted) -> tuple[BookDifference | BookSent, int]:
        asked_bytes = REQUEST_EXTRA_BYTES + len(encode(asked))
        if isinstance(asked, BookCompared):
            told = difference(there.book if not there.withholds else AdvertBook(), asked, self.now_ms)
            return told, asked_bytes + len(told.entries)
        size_bytes, sent = 0, []
        for account in asked.accounts:
            known = there.book.get(account)
            if known is not None and known.advert.expires_ms > self.now_ms:
                size_bytes += self._size(known.signed)
                if size_bytes > ANSWER_BYTES:
                    break
                sent.append(known.signed)
        return BookSent(adverts=tuple(sent)), asked_bytes + size_bytes

    # What is to be seen.

    def providers(self) -> int:
        return sum(node.provides for node in self.nodes.values())

    def known_share(self, node: Node) -> float:
        """Which part of those who provide now stand in a node's book."""
        there = [each.key.address for each in self.nodes.values() if each.provides]
        return sum(node.book.get(account) is not None for account in there) / max(1, len(there))

    def until_known(self, nodes: list[Node], share: float, most_s: float, every_s: float = 0.25) -> list[float]:
        """How long it takes each of these nodes to know so much, from now on."""
        began_s, took, left = self.now_s, dict[int, float](), list(nodes)
        while left and self.now_s - began_s < most_s:
            self.run(every_s)
            for node in list(left):
                if self.known_share(node) >= share:
                    took[node.number] = self.now_s - began_s
                    left.remove(node)
        return [took.get(node.number, float("inf")) for node in nodes]

    def sizes(self) -> dict[str, int]:
        """What could grow."""
        books = [node.book for node in self.nodes.values()]
        return {
            "nodes": len(self.nodes),
            "adverts": sum(map(len, books)),
            "shelved": sum(len(shelf) for book in books for shelf in book.shelves.values()),
            "events": len(self._queue),
            "looked into": len(self._checked),
        }
