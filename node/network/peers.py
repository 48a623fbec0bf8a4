"""What this node thinks of each peer: new, live, quiet, gone or barred.

One machine for each peer, and a book that bounds how many there are. Five strikes within a minute bar a peer; the bar
ends by itself, twice as late each time, up to an hour.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from hansa.market.machine import Step, Table, ignore, rows

STRIKE_LIFE_MS = 60_000
STRIKES = 5
BAR_MS = 300_000
MAX_BAR_MS = 3_600_000
MAX_ADDRS = 8
MAX_ADDR_CHARS = 256
NEVER_MET_MS = 6 * 3_600_000
"""How long an address that led nowhere is remembered."""
MET_MS = 7 * 86_400_000
"""How long a peer that we once spoke with is remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One peer as we know it. Times are ms by whichever clock the events use.

    Attributes:
        strikes_ms: when each strike that may still count was given, oldest first.
        whys: what the newest strikes were for, oldest first.
        bars: how often it was barred; the next bar is that much longer.
    """

    peer_id: str
    phase: str = "new"
    addrs: tuple[str, ...] = ()
    strikes_ms: tuple[int, ...] = ()
    whys: tuple[str, ...] = ()
    bars: int = 0
    barred_until_ms: int = 0
    why: str = ""
    first_ms: int = 0
    last_ms: int = 0

    def counting(self, now_ms: int) -> int:
        """How many strikes still count."""
        return sum(at > now_ms - STRIKE_LIFE_MS for at in self.strikes_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddrsLearnt:
    """Somebody, perhaps the peer itself, told where it can be dialled."""

    addrs: tuple[str, ...]
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """Its first connection stands, and its identity is proven."""

    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """Its last connection is gone."""

    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """It did something that the protocol does not allow."""

    why: str
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Barred:
    """The operator or another room wants nothing to do with it."""

    why: str
    until_ms: int
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """The clock was looked at."""

    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HangUp:
    """Close every connection to the peer."""

    peer_id: str
    why: str


TABLE: Table[Peer] = Table(
    name="node.peers",
    start="new",
    terminal=frozenset({"gone"}),
    allowed=rows(
        (("new", "live", "quiet"), Struck, ("new", "live", "quiet", "barred")),
        (("new", "live", "quiet"), Barred, "barred"),
        ("new", AddrsLearnt, "new"),
        ("live", AddrsLearnt, "live"),
        ("quiet", AddrsLearnt, "quiet"),
        (("new", "live", "quiet"), Connected, "live"),
        ("live", Disconnected, "quiet"),
        (("new", "quiet"), TimePassed, ("new", "quiet", "gone")),
        ("live", TimePassed, "live"),
        ("barred", (AddrsLearnt, Connected, Disconnected, Barred), "barred"),
        ("barred", TimePassed, ("barred", "quiet")),
    ),
)


def advance(peer: Peer, event: object) -> Step[Peer]:
    """What this event makes of the peer."""
    return TABLE.advance(peer, event, _react)


def _react(peer: Peer, event: object) -> Step[Peer]:
    match event:
        case AddrsLearnt(addrs=addrs):
            return _learn(peer, addrs)
        case Connected(now_ms=now_ms) if peer.phase == "barred":
            return Step(state=replace(peer, last_ms=now_ms), effects=(HangUp(peer_id=peer.peer_id, why=peer.why),))
        case Connected(now_ms=now_ms):
            return Step(state=replace(peer, phase="live", last_ms=now_ms))
        case Disconnected(now_ms=now_ms):
            return Step(state=replace(peer, phase="barred" if peer.phase == "barred" else "quiet", last_ms=now_ms))
        case Struck(why=why, now_ms=now_ms):
            return _strike(peer, why, now_ms)
        case Barred(why=why, until_ms=until_ms, now_ms=now_ms):
            return _bar(peer, why, max(until_ms, peer.barred_until_ms), now_ms)
        case TimePassed(now_ms=now_ms):
            return _pass_time(peer, now_ms)
        case _:
            raise AssertionError("the table names an event that nothing answers")


def _learn(peer: Peer, addrs: tuple[str, ...]) -> Step[Peer]:
    # The newest addresses go first: a peer that moved is found at once, and eight are kept, so lies push out little.
    sound = tuple(dict.fromkeys(addr for addr in addrs if 0 < len(addr) <= MAX_ADDR_CHARS))[:MAX_ADDRS]
    merged = (sound + tuple(addr for addr in peer.addrs if addr not in sound))[:MAX_ADDRS]
    if merged == peer.addrs:
        return ignore(peer, "nothing new in the addresses")
    return Step(state=replace(peer, addrs=merged))


def _strike(peer: Peer, why: str, now_ms: int) -> Step[Peer]:
    counted = (*(at for at in peer.strikes_ms if at > now_ms - STRIKE_LIFE_MS), now_ms)
    whys = (*peer.whys, why)[-STRIKES:]
    if len(counted) < STRIKES:
        return Step(state=replace(peer, strikes_ms=counted, whys=whys, why=why))
    until_ms = now_ms + min(MAX_BAR_MS, BAR_MS << min(peer.bars, 8))
    return _bar(replace(peer, strikes_ms=(), whys=whys), why, until_ms, now_ms)


def _bar(peer: Peer, why: str, until_ms: int, now_ms: int) -> Step[Peer]:
    bars = peer.bars + (peer.phase != "barred")
    state = replace(peer, phase="barred", why=why, barred_until_ms=until_ms, bars=bars, last_ms=now_ms)
    return Step(state=state, effects=(HangUp(peer_id=peer.peer_id, why=why),))


def _pass_time(peer: Peer, now_ms: int) -> Step[Peer]:
    if peer.phase == "barred":
        if now_ms < peer.barred_until_ms:
            return Step(state=peer)
        return Step(state=replace(peer, phase="quiet", barred_until_ms=0))
    if peer.phase == "live":
        return Step(state=peer)
    life_ms = NEVER_MET_MS if peer.phase == "new" else MET_MS
    since_ms = max(peer.last_ms, peer.first_ms)
    return Step(state=replace(peer, phase="gone") if now_ms - since_ms > life_ms else peer)


class PeerBook:
    """At most ``limit`` peers, each by its machine. Who must go first: never met, then longest quiet, then barred.

    Live and kept peers are never put out, so the limit must be above what the node will be connected to.
    """

    def __init__(self, limit: int) -> None:
        """An empty book."""
        self.limit = limit
        self.evicted = 0
        self.ignored = 0
        self.kept: set[str] = set()
        self._peers: dict[str, Peer] = {}

    def __len__(self) -> int:
        """How many peers are known."""
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        """Everyone known, in the order in which they were met."""
        return iter(tuple(self._peers.values()))

    def get(self, peer_id: str) -> Peer | None:
        """One peer, or None if it is unknown or forgotten."""
        return self._peers.get(peer_id)

    def is_barred(self, peer_id: str, now_ms: int) -> bool:
        """Whether we have nothing to do with this peer at present."""
        peer = self._peers.get(peer_id)
        return peer is not None and peer.phase == "barred" and now_ms < peer.barred_until_ms

    def apply(self, peer_id: str, event: object, now_ms: int) -> tuple[HangUp, ...]:
        """Advance one peer, making its entry (and room for it) if there is none."""
        peer = self._peers.get(peer_id) or Peer(peer_id=peer_id, first_ms=now_ms, last_ms=now_ms)
        if peer.phase == "barred" and now_ms >= peer.barred_until_ms:
            peer = advance(peer, TimePassed(now_ms=now_ms)).state
        step = advance(peer, event)
        self.ignored += step.ignored is not None
        if step.state.phase == "gone":
            self._peers.pop(peer_id, None)
            return step.effects
        if peer_id not in self._peers:
            self._make_room()
        self._peers[peer_id] = step.state
        return step.effects

    def pass_time(self, now_ms: int, among: Iterable[Peer] | None = None) -> None:
        """Let bars end and the long silent be forgotten, of all or of these."""
        for peer in self if among is None else among:
            if peer.peer_id in self._peers:
                self.apply(peer.peer_id, TimePassed(now_ms=now_ms), now_ms)

    def _make_room(self) -> None:
        while len(self._peers) >= self.limit:
            candidates = [peer for peer in self if peer.phase != "live" and peer.peer_id not in self.kept]
            if not candidates:
                return
            rank = {"new": 0, "quiet": 1, "barred": 2}
            out = min(candidates, key=lambda peer: (rank[peer.phase], peer.last_ms))
            del self._peers[out.peer_id]
            self.evicted += 1
