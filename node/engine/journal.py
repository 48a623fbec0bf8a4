"""The journal: every event that ever changed this node, in order, on disk before any order is given for it.

SQLite in WAL mode with ``synchronous=FULL``: one transaction, so one fsync, for a whole batch. A snapshot of the state
is written from time to time, so a restart folds only what came after it; events older than the last two snapshots are
dropped, since the money they moved stands in the ledger's store.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from hansa.node.engine.events import NodeEvent
from hansa.node.engine.state import Snapshot
from hansa.node.faults import OperatorError, storage_hint
from hansa.proto.codec import decode, encode
from hansa.proto.errors import ProtocolError

MAX_EVENT_BYTES = 4 << 20
MAX_SNAPSHOT_BYTES = 1 << 30
KEPT_SNAPSHOTS = 2
MOST_SET_ASIDE = 64

# An older copy of this file alone, beside newer books, would have the account sign a second history of its dealings.
UNREADABLE = (
    "this version cannot read it: start the version that wrote it. Where that one says the same, the file is damaged:"
    " put back the newest copy of the whole directory, as docs/running-a-node.md says under Backups."
)


def _written(event: NodeEvent) -> bytes:
    """The event as bytes that are sure to be read back as the same event.

    What the journal holds is all that a restart has. An event that could not be read would lock the daemon out for
    good, so it must end before such a thing is written and not after.
    """
    body = encode(event)
    assert decode(body, NodeEvent, limit_bytes=MAX_EVENT_BYTES) == event, "an event would not be read back as it was"
    return body


def _written_whole(value: Snapshot) -> bytes:
    """The state as bytes that are sure to be read back as the same state, for the same reason."""
    body = encode(value)
    assert decode(body, Snapshot, limit_bytes=MAX_SNAPSHOT_BYTES) == value, "a state would not be read back as it was"
    return body


class Journal(Protocol):
    """Where an engine writes its events before it acts on them."""

    def append(self, events: Sequence[NodeEvent]) -> None:
        """Make the events durable, all or none, in this order."""

    def set_aside(self, event: NodeEvent) -> None:
        """Keep an event that a fault of ours kept from happening, apart from what happened; of many the newest."""

    def ones_set_aside(self) -> list[NodeEvent]:
        """These events, the oldest first."""

    def write_snapshot(self, value: Snapshot) -> None:
        """Keep the state as it is after the newest event."""

    def read(self) -> tuple[Snapshot | None, Iterator[NodeEvent]]:
        """The newest snapshot, and the events after it."""


class MemoryJournal:
    """A journal that outlives its engine but not the program: for simulations. It writes bytes like the real one."""

    def __init__(self) -> None:
        """Begin empty."""
        self._events: list[bytes] = []
        self._aside: list[NodeEvent] = []
        self._snapshot: tuple[int, bytes] | None = None

    def append(self, events: Sequence[NodeEvent]) -> None:
        """See ``Journal``."""
        self._events += [_written(event) for event in events]

    def set_aside(self, event: NodeEvent) -> None:
        """See ``Journal``."""
        self._aside = [*self._aside, event][-MOST_SET_ASIDE:]

    def ones_set_aside(self) -> list[NodeEvent]:
        """See ``Journal``."""
        return list(self._aside)

    def write_snapshot(self, value: Snapshot) -> None:
        """See ``Journal``."""
        self._snapshot = (len(self._events), _written_whole(value))

    def read(self) -> tuple[Snapshot | None, Iterator[NodeEvent]]:
        """See ``Journal``."""
        start, written = self._snapshot or (0, b"")
        value = decode(written, Snapshot, limit_bytes=MAX_SNAPSHOT_BYTES) if written else None
        return value, (decode(data, NodeEvent, limit_bytes=MAX_EVENT_BYTES) for data in self._events[start:])


class SqliteJournal:
    """The journal of a real daemon, in one file of its data directory."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            OperatorError: the file is no journal, or another daemon has it.
        """
        self._path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=1)
            path.chmod(0o600)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            # One writer for ever: the lock is taken here and kept until the daemon ends.
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._database.execute("BEGIN EXCLUSIVE")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS event (position INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT"
            )
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS snapshot (position INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT"
            )
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS aside (number INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL) STRICT"
            )
            self._database.execute("COMMIT")
        except sqlite3.Error as fault:
            hint = "is another daemon running on this data directory? If not, the file may be damaged: restore a copy."
            raise OperatorError(f"cannot open the journal {path}: {fault}", storage_hint(fault, hint)) from fault
        row = self._database.execute(
            "SELECT max(coalesce((SELECT max(position) FROM event), 0),"
            " coalesce((SELECT max(position) FROM snapshot), 0))"
        ).fetchone()
        self._position: int = row[0]

    def append(self, events: Sequence[NodeEvent]) -> None:
        """See ``Journal``: one transaction, one fsync."""
        rows = [(self._position + number, _written(event)) for number, event in enumerate(events, start=1)]
        with self._transaction():
            self._database.executemany("INSERT INTO event VALUES (?, ?)", rows)
        self._position += len(rows)

    def set_aside(self, event: NodeEvent) -> None:
        """See ``Journal``."""
        with self._transaction():
            self._database.execute("INSERT INTO aside (body) VALUES (?)", (encode(event),))
            self._database.execute(
                "DELETE FROM aside WHERE number <= (SELECT max(number) FROM aside) - ?", (MOST_SET_ASIDE,)
            )

    def ones_set_aside(self) -> list[NodeEvent]:
        """See ``Journal``. What another version wrote and this one cannot read is passed over."""
        found: list[NodeEvent] = []
        for (body,) in self._database.execute("SELECT body FROM aside ORDER BY number"):
            with suppress(ProtocolError):
                found.append(decode(body, NodeEvent, limit_bytes=MAX_EVENT_BYTES))
        return found

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of what is written inside, or nothing."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def write_snapshot(self, value: Snapshot) -> None:
        """See ``Journal``. What only older snapshots need is dropped in the same transaction."""
        body = _written_whole(value)
        with self._transaction():
            self._database.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?)", (self._position, body))
            self._database.execute(
                "DELETE FROM snapshot"
                " WHERE position NOT IN (SELECT position FROM snapshot ORDER BY position DESC LIMIT ?)",
                (KEPT_SNAPSHOTS,),
            )
            self._database.execute("DELETE FROM event WHERE position <= (SELECT min(position) FROM snapshot)")

    def read(self) -> tuple[Snapshot | None, Iterator[NodeEvent]]:
        """See ``Journal``. A snapshot that an older version wrote and this one cannot read gives way to an older."""
        for position, body in self._database.execute("SELECT position, body FROM snapshot ORDER BY position DESC"):
            try:
                return decode(body, Snapshot, limit_bytes=MAX_SNAPSHOT_BYTES), self._events_after(position)
            except ProtocolError:
                continue
        first: int = self._database.execute("SELECT coalesce(min(position), 1) FROM event").fetchone()[0]
        if first != 1 or (self._position and not self._has_events()):
            raise OperatorError(f"no snapshot in {self._path} is readable, and what came before it is gone", UNREADABLE)
        return None, self._events_after(0)

    def _has_events(self) -> bool:
        return bool(self._database.execute("SELECT EXISTS (SELECT 1 FROM event)").fetchone()[0])

    def _events_after(self, position: int) -> Iterator[NodeEvent]:
        rows = self._database.execute(
            "SELECT position, body FROM event WHERE position > ? ORDER BY position", (position,)
        )
        for at, body in rows:
            try:
                yield decode(body, NodeEvent, limit_bytes=MAX_EVENT_BYTES)
            except ProtocolError as fault:
                raise OperatorError(f"event {at} of {self._path} is unreadable: {fault}", UNREADABLE) from fault

    def close(self) -> None:
        """Give the file back."""
        self._database.close()
