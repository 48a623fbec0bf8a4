"""Whose turn it is to ask a relay for a circuit: fewer than it answers, of which hearsay takes only a part."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import trio

from hansa.node.network.allowance import Allowances

LOOK_AGAIN_S = 0.5
WAITING = 4
"""For one relay. More would not have their turn within a dial's time, and keep others from dialling until then."""
WAITING_ON_HEARSAY = 2
OURS_OF_FOUR = 1
"""Of four turns that time brings, so many are for those alone who are named by the operator, or kept."""
OURS_AT_ONCE = 2


@dataclass(slots=True, eq=False)
class _Place:
    on_hearsay: bool


class RelayTurns:
    """Turns at each of many relays. Of those who wait, hearsay comes last, and all others as they came."""

    def __init__(self, per_s: float, at_once: int, count: Callable[[str], None]) -> None:
        """``per_s`` and ``at_once`` are never passed by at any relay; ``count`` is told who waits and who may not."""
        ours_per_s = per_s * OURS_OF_FOUR / 4
        self._ours = Allowances(ours_per_s, OURS_AT_ONCE, trio.current_time)
        self._common = Allowances(per_s - ours_per_s, at_once - OURS_AT_ONCE, trio.current_time)
        self._waiting: dict[Hashable, list[_Place]] = {}
        self._count = count

    @property
    def waiting(self) -> int:
        """How many wait, at all relays together."""
        return sum(map(len, self._waiting.values()))

    async def enter(self, relay: Hashable, *, on_hearsay: bool) -> bool:
        """Wait until this relay may be asked again; False where too many wait. The caller's deadline ends a wait."""
        place = _Place(on_hearsay)
        row = self._waiting.setdefault(relay, [])
        row.append(place)
        try:
            if self._take(relay, place):
                return True
            if len(row) > WAITING or (on_hearsay and sum(each.on_hearsay for each in row) > WAITING_ON_HEARSAY):
                self._count("dial.too_many_wait_for_relay")
                return False
            self._count("dial.waits_for_relay")
            while not self._take(relay, place):  # noqa: ASYNC110  # time alone brings the turn
                await trio.sleep(LOOK_AGAIN_S)
            return True
        finally:
            row.remove(place)
            if not row:
                del self._waiting[relay]

    def _take(self, relay: Hashable, place: _Place) -> bool:
        """A turn for this place, if none of those that wait comes before it."""
        first = min(self._waiting[relay], key=lambda each: each.on_hearsay)
        if first is not place:
            return False
        return (not place.on_hearsay and self._ours.take(relay)) or self._common.take(relay)
