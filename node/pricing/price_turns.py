"""Whose tender the owner's pricing program is asked about next: fair between buyers, however many tenders one sends.

Each buyer has waiting places and a rate of its own, and buyers take turns: whoever has waited longest goes, and then
goes to the end of the row. Buyers who have paid here before have a row of their own, which goes first, but lets one
stranger through after a few of its own. A full row makes room for a newcomer by sending away the newest tender of
whoever has most, so that a flood of one is no flood for the others. Pure: time comes in as an argument.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass

from hansa.node.engine.gate import PeerRate

PLACES_EACH = 8
"""Tenders of one buyer that wait."""
PLACES_IN_ALL = 16
"""Tenders that wait in each of the two rows: as many buyers at least are heard beside each other."""
KNOWN_IN_A_ROW = 3
"""So many of buyers who have paid here go first, and then one of a stranger, if one waits."""
AT_ONCE_EACH, EVERY_MS_EACH = 10, 3_000
"""Tenders of one buyer that are asked about: so many at once, and in the long run one in this time."""
CROWDED = "too many tenders wait for it"
TOO_OFTEN = "its buyer tenders too often"
SENT_AWAY = "its place was needed for another buyer"


@dataclass(slots=True, kw_only=True, eq=False)
class Place:
    """One tender that waits.

    Attributes:
        buyer: whose it is.
        is_known: whether this buyer has paid here before.
        refused: why it waits no more, without a turn.
    """

    buyer: bytes
    is_known: bool
    refused: str = ""


class _Row:
    """Buyers in the order of their turns, each with its tenders, the oldest first."""

    def __init__(self) -> None:
        self.buyers: OrderedDict[bytes, deque[Place]] = OrderedDict()
        self.size = 0

    def add(self, place: Place) -> None:
        self.buyers.setdefault(place.buyer, deque()).append(place)
        self.size += 1

    def remove(self, place: Place) -> None:
        waiting = self.buyers.get(place.buyer)
        if waiting is not None and place in waiting:
            waiting.remove(place)
            self.size -= 1
            if not waiting:
                del self.buyers[place.buyer]

    def next(self) -> Place:
        buyer, waiting = next(iter(self.buyers.items()))
        place = waiting[0]
        self.remove(place)
        if buyer in self.buyers:
            self.buyers.move_to_end(buyer)
        return place

    def make_room_for(self, buyer: bytes) -> Place | None:
        """The newest tender of whoever has most, if that is more than this buyer would have with one more."""
        own = len(self.buyers.get(buyer, ()))
        most = max(self.buyers.values(), key=len)
        return most[-1] if len(most) > own + 1 else None


class PriceTurns:
    """Everybody who waits."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._known, self._strangers = _Row(), _Row()
        self._rate = PeerRate(AT_ONCE_EACH, EVERY_MS_EACH)
        self._known_in_a_row = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._known.size + self._strangers.size

    def join(self, place: Place, now_ms: int) -> Place | None:
        """Let one more wait. Answers who does not for that, with the reason in it: itself, another, or nobody."""
        row = self._row(place)
        if len(row.buyers.get(place.buyer, ())) >= PLACES_EACH:
            place.refused = CROWDED
            return place
        leaves = row.make_room_for(place.buyer) if row.size >= PLACES_IN_ALL else None
        if row.size >= PLACES_IN_ALL and leaves is None:
            place.refused = CROWDED
            return place
        if not self._rate.admits(place.buyer, now_ms):
            place.refused = TOO_OFTEN
            return place
        if leaves is not None:
            row.remove(leaves)
            leaves.refused = SENT_AWAY
        row.add(place)
        return leaves

    def leave(self, place: Place) -> None:
        """It waits no more. Nothing happens if it does not."""
        self._row(place).remove(place)

    def next(self) -> Place | None:
        """Whose turn it is; it waits no more. None where nobody waits."""
        if self._known.size and (self._known_in_a_row < KNOWN_IN_A_ROW or not self._strangers.size):
            self._known_in_a_row += 1
            return self._known.next()
        self._known_in_a_row = 0
        return self._strangers.next() if self._strangers.size else None

    def _row(self, place: Place) -> _Row:
        return self._known if place.is_known else self._strangers
