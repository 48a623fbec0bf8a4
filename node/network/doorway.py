"""How fast strangers come in: a handshake costs milliseconds of the one thread, and names and addresses cost nothing.

So many at once and so many a second are let in, of one network and in all; a few wait for their turn in a row, the
others are turned away before any cryptography. Turns go round among networks (``fair_turns.py``), and who puts whom out
of a full row goes by the same rule, so that a flood from some networks keeps nobody out who comes from another. Who was
connected for a while and is not barred has a share of its own, so that a flood of new names keeps no acquaintance out.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from hansa.node.network.allowance import Allowances
from hansa.node.network.fair_turns import Circles, Turns
from hansa.node.network.neighbourhood import circles_of, place_of
from hansa.node.network.net import NetLimits

ACQUAINTED_S = 60.0
"""Who was connected for so long is let in as an acquaintance: a flood that wants to be that must hold its places."""
MOST_ACQUAINTED = 1024
WAITING_S = 3.0
"""Nobody waits much longer than this for a turn. Who dials gives up after eight seconds."""
_ALL = ""


@dataclass(slots=True, eq=False)
class _Waiting:
    """Somebody in the row."""

    circles: Circles
    network: str
    number: int
    over: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_called: bool = False


class Doorway:
    """Whose handshake begins when."""

    def __init__(
        self,
        limits: NetLimits,
        count: Callable[[str], None],
        *,
        is_here: Callable[[str], bool] = lambda _household: False,
        now_s: Callable[[], float] = trio.current_time,
    ) -> None:
        """Everybody is a stranger yet.

        Args:
            limits: the pace.
            count: told of whom is turned away.
            is_here: whether somebody of a household has been connected for ``ACQUAINTED_S``.
            now_s: the clock.
        """
        self._count, self._is_here, self._now_s = count, is_here, now_s
        self._all = Allowances(limits.handshakes_per_s, limits.handshakes_at_once, now_s)
        self._networks = Allowances(limits.network_handshakes_per_s, limits.network_handshakes_at_once, now_s)
        self._acquainted = Allowances(limits.network_handshakes_per_s, limits.network_handshakes_at_once, now_s)
        self._pause_s = 1 / limits.handshakes_per_s
        self._most_waiting = int(WAITING_S * limits.handshakes_per_s)
        self._most_of_a_network = int(WAITING_S * limits.network_handshakes_per_s)
        self._row: list[_Waiting] = []
        self._numbers = itertools.count()
        self._usher = trio.Lock()
        self.turns = Turns()
        self._remembered: OrderedDict[str, None] = OrderedDict()

    def remember(self, household: str) -> None:
        """Somebody of this household was connected for long enough, and went."""
        self._remembered[household] = None
        self._remembered.move_to_end(household)
        while len(self._remembered) > MOST_ACQUAINTED:
            self._remembered.popitem(last=False)

    def forget(self, household: str) -> None:
        """Somebody of this household did wrong."""
        self._remembered.pop(household, None)

    def knows(self, household: str) -> bool:
        """Whether somebody of this household is an acquaintance."""
        return household in self._remembered or self._is_here(household)

    async def enter(self, host: str, *, is_known: bool | None = None) -> bool:
        """Wait for a turn, if it comes soon; False if it does not.

        ``is_known`` says whether it is an acquaintance who comes, where that shows otherwise than by its household.
        """
        circles = circles_of(host)
        household = circles[-1]
        if (self.knows(household) if is_known is None else is_known) and self._acquainted.take(household):
            return True
        network = circles[-2] if place_of(host) == "public" else host
        me = _Waiting(circles, network, next(self._numbers))
        self._row.append(me)
        try:
            self._call()
            self._put_out(me.network)
            if me in self._row:
                me.over.deadline = trio.current_time() + WAITING_S + self._pause_s
                with me.over:
                    # Whoever waits first calls the others as well.
                    async with self._usher:
                        while True:
                            await trio.sleep(self._pause_s)
                            self._call()
        finally:
            if me in self._row:
                self._row.remove(me)
        if not me.is_called:
            self._count("inbound.too_fast" if self._networks.has(me.network) else "inbound.network_too_fast")
        return me.is_called

    def _call(self) -> None:
        """Give the turns that there are."""
        while self._row and self._all.has(_ALL):
            ready = [each for each in self._row if self._networks.has(each.network)]
            if not ready:
                return
            called = self.turns.next_of(ready)
            self._all.take(_ALL)
            self._networks.take(called.network)
            self.turns.note(called.circles)
            self._row.remove(called)
            called.is_called = True
            called.over.cancel()

    def _put_out(self, network: str) -> None:
        """Keep the row as short as it may be, after somebody of this network has joined it."""
        some = [each for each in self._row if each.network == network]
        if len(some) <= self._most_of_a_network:
            some = self._row if len(self._row) > self._most_waiting else []
        if some:
            out = self.turns.dispensable(some)
            self._row.remove(out)
            out.over.cancel()
