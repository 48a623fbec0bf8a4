"""Who stands behind the courier: what peers say is let in, or counted and dropped, before anything is journaled."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from hansa.node.engine.events import MessageArrived
from hansa.node.engine.gate import TenderRate, concerns
from hansa.proto.messages import TenderSent

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon


class Doorkeeper:
    """One daemon's."""

    def __init__(self, daemon: "Daemon") -> None:
        """Begin with nothing counted."""
        self._daemon = daemon
        self._tender_rate = TenderRate()
        self.counters: Counter[str] = Counter()

    def matters(self, sender: bytes, message: Any) -> bool:
        """Whether a message is about something here; looked at before its signature is, which costs more."""
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
