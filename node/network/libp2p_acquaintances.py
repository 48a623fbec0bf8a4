"""Whom this node knows, what it thinks of them, and whose connections it holds. Outlives the library's parts."""

import random
from collections.abc import Awaitable, Callable
from functools import lru_cache

import trio
from libp2p.peer.id import ID

from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.neighbourhood import Neighbourhood
from hansa.node.network.net import (
    TOLD_EARLIER,
    TOLD_NEARBY,
    Context,
    NetLimits,
    Path,
    PeerStat,
    Timeout,
    Unreachable,
)
from hansa.node.network.peers import (
    MAX_ADDRS,
    AddrsLearnt,
    Barred,
    Connected,
    Disconnected,
    HangUp,
    Peer,
    PeerBook,
    Struck,
)
from hansa.proto.errors import Malformed
from hansa.proto.peer_id import address_of_peer_text

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
LOOK_AT_CLOCK_S = 10.0
AT_A_TIME = 64
ARRIVALS = 64
MOST_GIVEN = 1024
SOMEWHERE_PRIVATE = "192.168.0.1"
"""As if a peer from there had told it: what came by multicast, or was written down when somebody told it."""


REMEMBERED_NAMES = 4096
"""Base58 is read in Python at some fifty microseconds a name, and every look at the peers reads every name."""


@lru_cache(maxsize=REMEMBERED_NAMES)
def id_of(peer_id: str) -> ID:
    """The library's form of a peer id. Raises ``ValueError`` for what is no base58."""
    return ID.from_base58(peer_id)


@lru_cache(maxsize=REMEMBERED_NAMES)
def context_of(peer_id: str, path: Path = "direct") -> Context:
    """The identity behind a peer id. Raises ``Malformed`` if it has no address."""
    return Context(peer_id=peer_id, address=address_of_peer_text(peer_id), path=path)


def author_of(peer_id: str) -> Context | None:
    """As ``context_of``, and None for what is no peer of ours."""
    try:
        return context_of(peer_id)
    except Malformed:
        return None


def now_ms() -> int:
    """Monotonic, so that a set clock neither ends nor prolongs a bar."""
    return int(trio.current_time() * 1000)


class Acquaintances:
    """The book of peers, and the connections that are held whatever happens."""

    def __init__(
        self,
        own: str,
        limits: NetLimits,
        faults: Faults,
        neighbourhood: Neighbourhood,
        *,
        connect: Callable[[str], Awaitable[object]],
        is_connected: Callable[[str], bool],
        hang_up: Callable[[str], None],
        remote_ip: Callable[[str], str | None],
        path: Callable[[str], Path],
    ) -> None:
        """Nobody is known yet.

        Args:
            own: our own peer id.
            limits: how many may be known.
            faults: where retries and floods are counted.
            neighbourhood: which addresses may be dialled on whose word.
            connect: dials a peer; raises a ``NetError``.
            is_connected: whether a connection stands.
            hang_up: ends a peer's connections, later.
            remote_ip: from where a peer is connected directly.
            path: how it is connected.
        """
        self.own = own
        self.book = PeerBook(limits.known_peers)
        self._faults = faults
        self._neighbourhood = neighbourhood
        self._connect = connect
        self._is_connected = is_connected
        self._hang_up = hang_up
        self._remote_ip = remote_ip
        self._path = path
        self._nursery: trio.Nursery | None = None
        self._given: dict[str, tuple[str, ...]] = {}
        self._gone: dict[str, trio.Event] = {}
        self._holding: set[str] = set()
        self._arrivals: list[trio.MemorySendChannel[str]] = []
        self._jitter = random.Random()  # noqa: S311  # only spreads reconnections out

    async def run(self) -> None:
        """Hold the connections that are to be held, for one life of the library's parts."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for peer_id in sorted(self.book.kept):
                    self.keep(peer_id)
                while True:
                    await trio.sleep(LOOK_AT_CLOCK_S)
                    await self._pass_time()
        finally:
            self._nursery = None
            self._holding.clear()

    async def _pass_time(self) -> None:
        """Let bars end and the long silent be forgotten, a few at a time: others wait while we look at a thousand."""
        waiting = list(self.book)
        while waiting:
            self.book.pass_time(now_ms(), waiting[:AT_A_TIME])
            del waiting[:AT_A_TIME]
            await trio.lowlevel.checkpoint()

    # Addresses.

    def learn(self, peer_id: str, addrs: tuple[str, ...], told_by: str | None) -> None:
        """Put addresses into the book; those that ``told_by`` has no business to name are left out."""
        if peer_id == self.own or author_of(peer_id) is None:
            return
        bare = tuple(addr.removesuffix(f"/p2p/{peer_id}") for addr in addrs)
        if told_by is None:
            self._given[peer_id] = tuple(dict.fromkeys((*bare, *self._given.pop(peer_id, ()))))[:MAX_ADDRS]
            while len(self._given) > MOST_GIVEN:
                del self._given[next(iter(self._given))]
        else:
            is_place = told_by in (TOLD_NEARBY, TOLD_EARLIER)
            sifted = self._neighbourhood.sift(bare, SOMEWHERE_PRIVATE if is_place else self._remote_ip(told_by))
            if len(sifted) < len(bare):
                self._faults.count("addresses.not_theirs_to_name")
            # What the operator said stays first: nobody's talk of a peer crowds it out.
            bare = (*self._given.get(peer_id, ()), *sifted)
        self.apply(peer_id, AddrsLearnt(addrs=bare, now_ms=now_ms()))

    def is_given(self, peer_id: str, addr: str) -> bool:
        """Whether an address of a peer's is the operator's word or another room's, and no stranger's."""
        return addr in self._given.get(peer_id, ())

    def known(self, limit: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Up to ``limit`` peers with addresses, those that live first."""
        order = {"live": 0, "quiet": 1}
        useful = [each for each in self.book if each.addrs and each.phase in order]
        useful.sort(key=lambda each: order[each.phase])
        return tuple((each.peer_id, each.addrs) for each in useful[:limit])

    def addresses(self, peer_id: str) -> tuple[str, ...]:
        """Where a peer may be dialled."""
        peer = self.book.get(peer_id)
        return peer.addrs if peer else ()

    # Connections that are held.

    def keep(self, peer_id: str) -> None:
        """Hold a connection to this peer."""
        self.book.kept.add(peer_id)
        if self._nursery is not None and peer_id not in self._holding:
            self._holding.add(peer_id)
            self._nursery.start_soon(self._hold, peer_id)

    def release(self, peer_id: str) -> None:
        """No longer hold that connection."""
        self.book.kept.discard(peer_id)
        self._gone.pop(peer_id, trio.Event()).set()

    async def _hold(self, peer_id: str) -> None:
        pause_s = FIRST_PAUSE_S
        try:
            while peer_id in self.book.kept:
                try:
                    await self._connect(peer_id)
                    pause_s = FIRST_PAUSE_S
                    if self._is_connected(peer_id):
                        await self._gone.setdefault(peer_id, trio.Event()).wait()
                except (Unreachable, Timeout):
                    self._faults.count("keep.retry")
                await trio.sleep(pause_s * self._jitter.uniform(0.5, 1.5))
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
        finally:
            self._holding.discard(peer_id)

    # What happens to them.

    def connected(self, peer_id: str) -> None:
        """A connection stands, and its peer is proven."""
        self.apply(peer_id, Connected(now_ms=now_ms()))
        for channel in list(self._arrivals):
            try:
                channel.send_nowait(peer_id)
            except trio.WouldBlock:
                self._faults.count("arrivals.queue_full")
            except trio.BrokenResourceError:
                self._arrivals.remove(channel)

    def disconnected(self, peer_id: str) -> None:
        """A peer's last connection is gone."""
        self.apply(peer_id, Disconnected(now_ms=now_ms()))
        self._gone.pop(peer_id, trio.Event()).set()

    def all_gone(self) -> None:
        """The library's parts have fallen, and every connection with them."""
        for peer in self.book:
            if peer.phase == "live":
                self.disconnected(peer.peer_id)

    def struck(self, peer_id: str, why: str) -> None:
        """A wrong is counted against a peer."""
        if peer_id != self.own and author_of(peer_id) is not None:
            self.apply(peer_id, Struck(why=why, now_ms=now_ms()))

    def bar(self, peer_id: str, seconds: int, why: str) -> None:
        """Hang up on a peer and have nothing to do with it for a while."""
        self.apply(peer_id, Barred(why=why, until_ms=now_ms() + seconds * 1000, now_ms=now_ms()))

    def is_barred(self, peer_id: str) -> bool:
        """Whether we have nothing to do with this peer at present."""
        return self.book.is_barred(peer_id, now_ms())

    def apply(self, peer_id: str, event: object) -> None:
        """Advance a peer's machine."""
        for effect in self.book.apply(peer_id, event, now_ms()):
            assert isinstance(effect, HangUp), "a machine gave an order that nobody carries out"
            self._faults.count("peers.hung_up")
            self._hang_up(effect.peer_id)

    def arrivals(self) -> trio.MemoryReceiveChannel[str]:
        """A new channel on which the ids of peers come as they connect."""
        send, receive = trio.open_memory_channel[str](ARRIVALS)
        self._arrivals.append(send)
        return receive

    def stats(self) -> tuple[PeerStat, ...]:
        """Everyone we know of."""
        return tuple(self._stat(peer) for peer in self.book)

    def _stat(self, peer: Peer) -> PeerStat:
        return PeerStat(
            peer_id=peer.peer_id,
            address=context_of(peer.peer_id).address,
            phase=peer.phase,
            path=self._path(peer.peer_id) if peer.phase == "live" else "direct",
            addrs=peer.addrs,
            strikes=peer.counting(now_ms()),
            barred_for_ms=max(0, peer.barred_until_ms - now_ms()),
            why=peer.why,
            whys=peer.whys,
        )
