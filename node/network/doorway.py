"""How fast strangers come in: a handshake costs milliseconds of the one thread, and names and addresses cost nothing.

So many at once and so many a second are let in, of one network and in all; a few wait for their turn in a row, the
others are turned away before any cryptography. Who was connected for a while and is not barred has a share of its own,
so that a flood of new names keeps no acquaintance out.
"""

from collections import OrderedDict
from collections.abc import Callable

import trio

from hansa.node.network.allowance import Allowances
from hansa.node.network.neighbourhood import group_of, household_of
from hansa.node.network.net import NetLimits

ACQUAINTED_S = 60.0
"""Who was connected for so long is let in as an acquaintance: a flood that wants to be that must hold its places."""
MOST_ACQUAINTED = 1024
WAITING_S = 3.0
"""Nobody waits longer than this for a turn. Who dials gives up after eight seconds."""
_ALL = ""


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
        self._count, self._is_here = count, is_here
        self._all = Allowances(limits.handshakes_per_s, limits.handshakes_at_once, now_s)
        self._networks = Allowances(limits.network_handshakes_per_s, limits.network_handshakes_at_once, now_s)
        self._acquainted = Allowances(limits.network_handshakes_per_s, limits.network_handshakes_at_once, now_s)
        self._pause_s = 1 / limits.handshakes_per_s
        self._most_waiting = int(WAITING_S * limits.handshakes_per_s)
        self._waiting = 0
        self._turns = trio.StrictFIFOLock()
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

    async def enter(self, host: str) -> bool:
        """Wait for a turn, if it comes soon; False if it does not. Of a host both its network and household count."""
        household = household_of(host)
        if (household in self._remembered or self._is_here(household)) and self._acquainted.take(household):
            return True
        if not self._networks.take(group_of(host)):
            self._count("inbound.network_too_fast")
            return False
        if self._waiting == 0 and self._all.take(_ALL):
            return True
        if self._waiting >= self._most_waiting:
            self._count("inbound.too_fast")
            return False
        self._waiting += 1
        try:
            async with self._turns:
                while not self._all.take(_ALL):  # noqa: ASYNC110  # a turn comes with time alone
                    await trio.sleep(self._pause_s)
        finally:
            self._waiting -= 1
        return True
