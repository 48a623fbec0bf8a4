"""The engine: one loop owns all state. Take a batch of events, advance, write them down, and only then act.

This is the part without any waiting in it, so the daemon (``hansa.node.daemon.daemon``) and the simulation drive the
very same code. A restart folds the journal with effects discarded, all but money's, which the ledger's store may not
have yet; then the event ``Started`` makes every machine say again what is outstanding.
"""

from collections.abc import Sequence
from typing import Any

from hansa.market.ledger import Post
from hansa.market.ledger_records import File
from hansa.node.engine.events import NodeEvent
from hansa.node.engine.journal import Journal
from hansa.node.engine.routing import advance, deadline_ms
from hansa.node.engine.state import NodeState, restored, snapshot

EVENTS_PER_SNAPSHOT = 20_000


class Engine:
    """The owner of a node's state.

    Attributes:
        state: everything the node must not forget. Read it freely, change it never.
        events: how many events it took since it was made.
        recovered: what the fold of the journal posted and filed; the ledger's store takes what it lacks of it.
    """

    def __init__(self, journal: Journal) -> None:
        """Fold the journal."""
        self._journal = journal
        written, events = journal.read()
        self.state = restored(written) if written is not None else NodeState()
        self.events = 0
        self.recovered: list[Post | File] = []
        for event in events:
            effects = advance(self.state, event)
            self.recovered += [effect for effect in effects if isinstance(effect, Post | File)]
            self.events += 1
        self._since_snapshot = self.events

    def take(self, batch: Sequence[NodeEvent]) -> list[Any]:
        """Let the batch happen, write it down, and answer what the world is ordered to do, in order.

        When this returns, the batch is durable. When it raises, nothing of it is, as if the node had been killed before
        it heard of it; the daemon must end, since what is in memory may differ. So the journal never holds an event
        that cannot be folded: by a fault of ours, whoever finds the word that meets it would lock a node out for good.
        """
        if not batch:
            return []
        effects: list[Any] = []
        for event in batch:
            try:
                effects += advance(self.state, event)
            except Exception:
                self._journal.set_aside(event)
                raise
        self._journal.append(batch)
        self.events += len(batch)
        self._since_snapshot += len(batch)
        return effects

    def deadline_ms(self) -> int | None:
        """When the engine wants a ``TimeCame``, if nothing else happens before."""
        return deadline_ms(self.state)

    def write_snapshot_if_due(self, *, now: bool = False) -> bool:
        """Write the state down whole when enough has happened since the last time. Call it after effects are done."""
        if not now and self._since_snapshot < EVENTS_PER_SNAPSHOT:
            return False
        # At the same event in every life of this journal, so a fold that starts from the snapshot finds the same.
        self.state.reindex()
        self._journal.write_snapshot(snapshot(self.state))
        self._since_snapshot = 0
        return True
