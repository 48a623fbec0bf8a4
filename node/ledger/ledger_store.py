"""The ledger on disk: documents and entries, append-only, chained by hashes, and the leaves of a Merkle log, for ever.

What is there already is left alone, so the engine may post it again after a crash. Every batch is one transaction with
one fsync, and ends with a signed tree head: this node's word on what its whole history is, to be handed to others.
What all this proves, and what not, is ``hansa.market.ledger_check``'s to say.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hansa.market.ledger import Entry, Ledger, fold
from hansa.market.ledger_records import Record
from hansa.node.faults import OperatorError, storage_hint
from hansa.proto.codec import decode, encode
from hansa.proto.documents import TreeHead
from hansa.proto.keccak import keccak256
from hansa.proto.merkle_log import EMPTY_ROOT, Edge, consistency, inclusion, nodes_after, root_at
from hansa.proto.signing import Signed

MAX_RECORD_BYTES = 1 << 20
OLDEST = 1
"""A ledger is kept for ever: what any version wrote is read."""
START = bytes(32)
TABLES = ("entry", "node", "head")

HeadSigner = Callable[[int, bytes], Signed[TreeHead]]
"""Signs the word that the log has this size and this root."""
Row = tuple[int, bytes, bytes, bytes]
"""Position, id, body and chain of a record, as written."""


COLUMNS = {
    "entry": ("position", "id", "body", "chain"),
    "node": ("number", "hash"),
    "head": ("size", "body"),
}


class LedgerDamaged(OperatorError):
    """The file was a ledger and is broken: bytes of it are changed or gone."""


class LedgerStore:
    """The records, in the order in which they were first posted."""

    def __init__(self, path: Path, *, read_only: bool = False, kinds: Any = Record) -> None:
        """Open the file, or make it.

        Args:
            path: the file.
            kinds: what its records are: a dataclass, or a union of them, with an ``id``.
            read_only: change nothing, whatever the file's state: for copies, and beside a daemon that writes.

        Raises:
            OperatorError: the file is no ledger.
        """
        self._path = path
        self._kinds = kinds
        try:
            if read_only:
                # A copy without its write-ahead log beside it is complete, and may lie where nothing can be written.
                beside = path.with_name(path.name + "-wal").exists()
                mode = "mode=ro" if beside else "immutable=1"
                self._database = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
                self._check_tables()
            else:
                self._database = sqlite3.connect(path, isolation_level=None, timeout=5)
                path.chmod(0o600)
                self._make_tables()
            self._catch_up(read_only=read_only)
        except sqlite3.Error as fault:
            is_ledger = fault.sqlite_errorname != "SQLITE_NOTADB" and isinstance(fault, sqlite3.DatabaseError)
            kind = LedgerDamaged if is_ledger else OperatorError
            hint = storage_hint(fault, "restore a copy of the file.")
            raise kind(f"cannot open the ledger {path}: {fault}", hint) from fault

    def _make_tables(self) -> None:
        execute = self._database.execute
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=FULL")
        execute(
            "CREATE TABLE IF NOT EXISTS entry (position INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,"
            " body BLOB NOT NULL, chain BLOB NOT NULL) STRICT"
        )
        execute("CREATE TABLE IF NOT EXISTS node (number INTEGER PRIMARY KEY, hash BLOB NOT NULL) STRICT")
        execute("CREATE TABLE IF NOT EXISTS head (size INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT")
        for table in TABLES:
            for verb in ("UPDATE", "DELETE"):
                execute(
                    f"CREATE TRIGGER IF NOT EXISTS {table}_no_{verb.lower()} BEFORE {verb} ON {table}"
                    " BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END"
                )

    def _check_tables(self) -> None:
        """Read only from tables as `_make_tables` makes them: a view or a column that is worked out may never end."""
        self._database.execute("PRAGMA trusted_schema=OFF")
        for name, columns in COLUMNS.items():
            found = self._database.execute("SELECT type, rootpage, sql FROM sqlite_schema WHERE name = ?", (name,))
            rows = found.fetchall()
            is_table = len(rows) == 1 and rows[0][0] == "table" and rows[0][1] > 0 and rows[0][2].endswith("STRICT")
            # Cheap for a table, and hidden ones and those that are worked out are told apart in it.
            if not is_table or self._columns_of(name) != columns:
                hint = "give the ledger.sqlite of a node, or a copy that was made while the node was stopped"
                raise OperatorError(f"{self._path} is no ledger", hint)

    def _columns_of(self, name: str) -> tuple[str, ...]:
        found = self._database.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0", (name,))
        everything = self._database.execute("SELECT count(*) FROM pragma_table_xinfo(?)", (name,)).fetchone()[0]
        names = tuple(row[0] for row in found)
        return names if len(names) == everything else ()

    def _catch_up(self, *, read_only: bool) -> None:
        """Find where the file ends. A file from before there was a tree gets its nodes."""
        row = self._database.execute("SELECT position, chain FROM entry ORDER BY position DESC LIMIT 1").fetchone()
        self._position: int = row[0] if row else 0
        self._chain: bytes = row[1] if row else START
        nodes: int = self._database.execute("SELECT count(*) FROM node").fetchone()[0]
        if nodes == 0 and self._position and not read_only:
            edge, fresh = Edge(), []
            for (body,) in self._database.execute("SELECT body FROM entry ORDER BY position"):
                fresh += edge.append(body)
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT INTO node VALUES (?, ?)", enumerate(fresh, start=1))
            self._database.execute("COMMIT")
        # In a file that somebody cut, nodes are missing; who checks it has to be able to open it.
        self._edge = Edge()
        with suppress(TypeError):
            self._edge = Edge(self._position, self._node)

    # Appending.

    def post(self, records: Sequence[Record], sign_head: HeadSigner | None = None) -> int:
        """Append what is not there yet, in one transaction, with a head over it. Answers how many that were."""
        position, chain, edge = self._position, self._chain, self._edge.copy()
        rows: list[Row] = []
        nodes: list[tuple[int, bytes]] = []
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._refuse_another_writer()
            fresh: dict[bytes, Record] = {}
            for record in records:
                if self._is_known(record, fresh):
                    continue
                fresh[record.id] = record
                body = encode(record)
                position += 1
                chain = keccak256(chain + body)
                nodes += enumerate(edge.append(body), start=nodes_after(position - 1) + 1)
                rows.append((position, record.id, body, chain))
            self._database.executemany("INSERT INTO entry VALUES (?, ?, ?, ?)", rows)
            self._database.executemany("INSERT INTO node VALUES (?, ?)", nodes)
            if rows and sign_head is not None:
                head = sign_head(position, edge.root)
                self._database.execute("INSERT INTO head VALUES (?, ?)", (position, encode(head)))
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        self._position, self._chain, self._edge = position, chain, edge
        return len(rows)

    def _refuse_another_writer(self) -> None:
        """One writer: compare the file's end with the end that is known here, under the lock, and only then append."""
        row = self._database.execute("SELECT position, chain FROM entry ORDER BY position DESC LIMIT 1").fetchone()
        if (row or (0, START)) != (self._position, self._chain):
            hint = "stop the other daemon: one account's books have one writer."
            raise OperatorError(f"somebody else writes to the ledger {self._path}", hint)

    def _is_known(self, record: Record, fresh: dict[bytes, Record]) -> bool:
        known = fresh.get(record.id) or self.find(record.id)
        if known is None:
            return False
        if isinstance(record, Entry):
            assert isinstance(known, Entry), "an entry has the id of a document"
            assert known.legs == record.legs, f"two entries of one id: {record.memo!r}"
        return True

    # Reading.

    @property
    def size(self) -> int:
        """How many records there are."""
        return self._position

    @property
    def root(self) -> bytes:
        """The log's root over all of them."""
        return self._edge.root

    def find(self, record_id: bytes) -> Record | None:
        """The record of that id."""
        row = self._database.execute("SELECT body FROM entry WHERE id = ?", (record_id,)).fetchone()
        return self._read(row[0]) if row else None

    def records(self) -> Iterator[Record]:
        """All records, in order."""
        for (body,) in self._database.execute("SELECT body FROM entry ORDER BY position"):
            yield self._read(body)

    def entries(self) -> Iterator[Entry]:
        """The entries among them, in order."""
        return (record for record in self.records() if isinstance(record, Entry))

    def _read(self, body: bytes) -> Record:
        record: Record = decode(body, self._kinds, limit_bytes=MAX_RECORD_BYTES, oldest=OLDEST)
        return record

    def rows(self) -> Iterator[Row]:
        """All records as they are written, in order, whatever they are: for whoever checks the file."""
        yield from self._each("SELECT position, id, body, chain FROM entry ORDER BY position")

    def nodes(self) -> Iterator[tuple[int, bytes]]:
        """All stored nodes of the tree as they are written, in order."""
        yield from self._each("SELECT number, hash FROM node ORDER BY number")

    def heads(self) -> Iterator[tuple[int, bytes]]:
        """All heads that this ledger signed, as they are written: the size and the encoded head."""
        yield from self._each("SELECT size, body FROM head ORDER BY size")

    def _each(self, query: str) -> Iterator[Any]:
        try:
            yield from self._database.execute(query)
        except sqlite3.DatabaseError as fault:
            raise LedgerDamaged(f"the ledger {self._path} is damaged: {fault}", "restore a copy of it.") from fault

    def newest_head(self) -> Signed[TreeHead] | None:
        """The head over everything, or nothing where none was signed."""
        row = self._database.execute("SELECT body FROM head ORDER BY size DESC LIMIT 1").fetchone()
        if row is None:
            return None
        head: Signed[TreeHead] = decode(row[0], Signed[TreeHead], limit_bytes=MAX_RECORD_BYTES, oldest=OLDEST)
        return head

    # Proofs.

    def _node(self, number: int) -> bytes:
        row: tuple[bytes] = self._database.execute("SELECT hash FROM node WHERE number = ?", (number,)).fetchone()
        return row[0]

    def root_at(self, size: int) -> bytes:
        """The root that the log had at a size."""
        return root_at(size, self._node) if size else EMPTY_ROOT

    def inclusion(self, position: int, size: int | None = None) -> tuple[bytes, ...]:
        """The proof that the record at a position (from 1) is in the log of a size."""
        return inclusion(position - 1, self._position if size is None else size, self._node)

    def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        """The proof that the log of one size is the beginning of the log of another.

        Raises:
            IndexError: the log never had these sizes in this order.
        """
        if second > self._position:
            raise IndexError("the log is shorter than that")
        return consistency(first, second, self._node)

    def verify(self) -> Ledger:
        """Recompute the chain, the tree and the balances from the rows alone.

        Raises:
            OperatorError: a row was changed, removed or put in between.
        """
        chain, edge = START, Edge()
        for expected, (position, _, body, written) in enumerate(self.rows(), start=1):
            chain = keccak256(chain + body)
            edge.append(body)
            if position != expected or chain != written:
                raise OperatorError(f"entry {expected} of the ledger is not what was written", "restore a copy of it.")
        if edge.root != self.root_at(edge.size):
            raise OperatorError("the tree over the ledger is not that of its entries", "restore a copy of it.")
        return fold(self.entries())

    def close(self) -> None:
        """Give the file back."""
        self._database.close()
