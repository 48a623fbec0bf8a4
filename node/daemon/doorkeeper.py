"""Who stands behind the courier: what peers say is let in, or counted and dropped, before anything is journaled."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hansa.node.engine.events import MessageArrived, NodeEvent
from hansa.node.engine.gate import TenderRate, concerns
from hansa.node.engine.logs import warn
from hansa.proto.messages import TenderSent
from hansa.proto.signing import checksum_address

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon


BARRED_MS = 24 * 3_600_000
"""For how long a peer is not heard on what ended this daemon. It says its word again, and every start would end so."""


class Doorkeeper:
    """One daemon's."""

    def __init__(self, daemon: "Daemon", set_aside: Iterable[NodeEvent]) -> None:
        """Begin with nothing counted. ``set_aside`` are events that this node met a fault of its own by."""
        self._daemon = daemon
        self._barred_until_ms: dict[tuple[bytes, type], int] = {}
        for event in set_aside:
            if isinstance(event, MessageArrived) and daemon.now_ms() < event.at_ms + BARRED_MS:
                self._bar(event)
        self._tender_rate = TenderRate()
        self.counters: Counter[str] = Counter()

    def _bar(self, event: MessageArrived) -> None:
        kind = type(event.message).__name__
        self._barred_until_ms[event.sender, type(event.message)] = event.at_ms + BARRED_MS
        warn(
            f"a {kind} of {checksum_address(event.sender)} met a fault in Hansa and ended this daemon: what happened"
            f" before it stands, and no {kind} is heard from there for a day. Please report it, with that time's log"
        )

    def matters(self, sender: bytes, message: Any) -> bool:
        """Whether a message is about something here; looked at before its signature is, which costs more."""
        if self._daemon.now_ms() < self._barred_until_ms.get((sender, type(message)), 0):
            self.counters[f"gate: {type(message).__name__} of a peer that ended this daemon by one"] += 1
            return False
        if concerns(self._daemon.state, sender, message):
            return True
        self.counters[f"gate: {type(message).__name__} about nothing of the sender's"] += 1
        return False

    async def take(self, event: MessageArrived) -> None:
        """Have the engine take what a peer said: nothing is journaled that cannot mean anything here."""
        if not self.matters(event.sender, event.message):
            return
        if isinstance(event.message, TenderSent) and not self._tender_rate.admits(event.sender, event.at_ms):
            self.counters["gate: more tenders than one buyer may send"] += 1
            self._daemon.figures.turned_away()
            return
        self._daemon.ledger_keeper.head_exchange.watch(self._daemon.state, event)
        await self._daemon.take(event)

    def hear(self, sender: bytes, message: Any) -> None:
        """What peers say of ledgers' histories, and what they prove: it is never journaled."""
        if self.matters(sender, message):
            self._daemon.ledger_keeper.hear(sender, message)
