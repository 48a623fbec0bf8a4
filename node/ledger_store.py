"""The ledger's entries on disk: append-only, each chained to the one before it by a hash, for ever.

An entry that is there already is left alone, so the engine may post it again after a crash. ``verify`` recomputes the
chain and the balances from the rows alone.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from hansa.market.ledger import Entry, Ledger, fold
from hansa.node.faults import OperatorError
from hansa.proto.codec import decode, encode
from hansa.proto.keccak import keccak256

MAX_ENTRY_BYTES = 1 << 20
START = bytes(32)


class LedgerStore:
    """The entries, in the order in which they were first posted."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            OperatorError: the file is no ledger.
        """
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=5)
            path.chmod(0o600)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS entry (position INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,"
                " body BLOB NOT NULL, chain BLOB NOT NULL) STRICT"
            )
            for verb in ("UPDATE", "DELETE"):
                self._database.execute(
                    f"CREATE TRIGGER IF NOT EXISTS no_{verb.lower()} BEFORE {verb} ON entry"
                    " BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END"
                )
        except sqlite3.Error as fault:
            raise OperatorError(f"cannot open the ledger {path}: {fault}", "restore a copy of the file.") from fault
        row = self._database.execute("SELECT position, chain FROM entry ORDER BY position DESC LIMIT 1").fetchone()
        self._position: int = row[0] if row else 0
        self._chain: bytes = row[1] if row else START

    def post(self, entries: Sequence[Entry]) -> int:
        """Append what is not there yet, in one transaction. Answers how many that were."""
        position, chain, added = self._position, self._chain, 0
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for entry in entries:
                known = self._database.execute("SELECT body FROM entry WHERE id = ?", (entry.id,)).fetchone()
                if known is not None:
                    earlier: Entry = decode(known[0], Entry, limit_bytes=MAX_ENTRY_BYTES)
                    assert earlier.legs == entry.legs, f"two entries of one id: {entry.memo!r}"
                    continue
                body = encode(entry)
                position += 1
                chain = keccak256(chain + body)
                row = (position, entry.id, body, chain)
                self._database.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", row)
                added += 1
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        self._position, self._chain = position, chain
        return added

    def entries(self) -> Iterator[Entry]:
        """All entries, in order."""
        for (body,) in self._database.execute("SELECT body FROM entry ORDER BY position"):
            yield decode(body, Entry, limit_bytes=MAX_ENTRY_BYTES)

    def verify(self) -> Ledger:
        """Recompute the chain and the balances from the rows alone.

        Raises:
            OperatorError: a row was changed, removed or put in between.
        """
        chain = START
        rows = self._database.execute("SELECT position, body, chain FROM entry ORDER BY position")
        for expected, (position, body, written) in enumerate(rows, start=1):
            chain = keccak256(chain + body)
            if position != expected or chain != written:
                raise OperatorError(f"entry {expected} of the ledger is not what was written", "restore a copy of it.")
        return fold(self.entries())

    def close(self) -> None:
        """Give the file back."""
        self._database.close()
