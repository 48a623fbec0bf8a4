"""Tree heads and proofs of lies, in a file apart from the ledger, so that what shows a rolled-back one is not lost too.

Of its own ledger a node keeps the newest head that it ever signed. Of others' ledgers it keeps the newest head that was
shown to be consistent with all before it, and a few that still have to be. Two heads of one size with two roots become
a proof. Proofs against accounts that were dealt with are kept for ever; others may have to give way to newer ones.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from hansa.market.equivocation import Equivocation, TwoHeads, accused, proof_id
from hansa.node.faults import OperatorError
from hansa.proto.codec import decode, encode
from hansa.proto.documents import TreeHead
from hansa.proto.errors import ProtocolError
from hansa.proto.signing import Signed
from hansa.proto.units import Address

LIMIT_BYTES = 1 << 20
OLDEST = 1
MOST_UNPROVED = 16
"""Heads of one ledger that wait for a consistency proof. Beyond this the oldest of them go."""
MOST_LOGS = 4_096
MOST_OF_ONE = 16
"""Proofs against one account."""
MOST_LOOKED_AT = 64
"""So many proofs are looked at for one that gives way."""
LARGEST_KEPT_SIZE = (1 << 63) - 1
"""SQLite's numbers end here, and a head may say more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptHead:
    """A head of somebody's ledger, and whether it was shown to continue all those before it."""

    head: Signed[TreeHead]
    proved: bool


class HeadStore:
    """The heads and the proofs."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the file, or make it.

        Raises:
            OperatorError: the file holds something else.
        """
        self._looked_at = 0
        try:
            if read_only:
                beside = path.with_name(path.name + "-wal").exists()
                uri = f"{path.absolute().as_uri()}?{'mode=ro' if beside else 'immutable=1'}"
                self._database = sqlite3.connect(uri, uri=True, isolation_level=None)
                self._database.execute("SELECT 1 FROM head LIMIT 1")
                return
            self._database = sqlite3.connect(path, isolation_level=None, timeout=5)
            path.chmod(0o600)
            execute = self._database.execute
            execute("PRAGMA journal_mode=WAL")
            # A head that is lost with the power weakens one guard; it misstates nothing.
            execute("PRAGMA synchronous=NORMAL")
            execute(
                "CREATE TABLE IF NOT EXISTS head (log BLOB NOT NULL, size INTEGER NOT NULL, body BLOB NOT NULL,"
                " proved INTEGER NOT NULL, PRIMARY KEY (log, size)) STRICT"
            )
            execute(
                "CREATE TABLE IF NOT EXISTS proof (id BLOB PRIMARY KEY, account BLOB NOT NULL, body BLOB NOT NULL,"
                " found_ms INTEGER NOT NULL) STRICT"
            )
            execute("CREATE INDEX IF NOT EXISTS proof_account ON proof (account)")
        except sqlite3.Error as fault:
            hint = "move it away: it is made anew, and heads that were heard before are then unknown."
            raise OperatorError(f"cannot open the heads in {path}: {fault}", hint) from fault

    # Heads. ``log`` is the 32-byte id of a ledger.

    def keep_own(self, head: Signed[TreeHead]) -> None:
        """Keep the newest head of this node's own ledger, in place of the one before."""
        log, size = head.document.log_id, head.document.size
        self._database.execute("DELETE FROM head WHERE log = ? AND size < ?", (log, size))
        self._database.execute("INSERT OR IGNORE INTO head VALUES (?, ?, ?, 1)", (log, size, encode(head)))

    def hear(self, head: Signed[TreeHead]) -> TwoHeads | None:
        """Keep a head of somebody else's ledger, whose signature was checked. Answers a proof if it contradicts one."""
        log, size = head.document.log_id, head.document.size
        known = self.head(log, size)
        if known is not None:
            if known.head.document.root == head.document.root:
                return None
            return TwoHeads(first=known.head, second=head)
        logs: int = self._database.execute("SELECT count(DISTINCT log) FROM head").fetchone()[0]
        first = self.newest_proved(log) is None
        if first and logs >= MOST_LOGS:
            return None
        # The first that is ever heard of a ledger is where this node's knowledge of it begins.
        self._database.execute("INSERT INTO head VALUES (?, ?, ?, ?)", (log, size, encode(head), int(first)))
        self._database.execute(
            "DELETE FROM head WHERE log = ? AND proved = 0 AND size NOT IN"
            " (SELECT size FROM head WHERE log = ? AND proved = 0 ORDER BY size DESC LIMIT ?)",
            (log, log, MOST_UNPROVED),
        )
        return None

    def prove(self, log: bytes, first: int, second: int) -> None:
        """These two are consistent. The larger is known to continue all before it, and the smaller is not needed."""
        self._database.execute("UPDATE head SET proved = 1 WHERE log = ? AND size IN (?, ?)", (log, first, second))
        self._database.execute(
            "DELETE FROM head WHERE log = ? AND proved = 1 AND size <"
            " (SELECT max(size) FROM head WHERE log = ? AND proved = 1)",
            (log, log),
        )

    def head(self, log: bytes, size: int) -> KeptHead | None:
        """The head of a ledger at a size."""
        row = self._database.execute("SELECT body, proved FROM head WHERE log = ? AND size = ?", (log, size)).fetchone()
        return self._kept(row) if row else None

    def newest_proved(self, log: bytes) -> KeptHead | None:
        """The newest head of a ledger that continues all that was known of it before."""
        row = self._database.execute(
            "SELECT body, proved FROM head WHERE log = ? AND proved = 1 ORDER BY size DESC LIMIT 1", (log,)
        ).fetchone()
        return self._kept(row) if row else None

    def unproved(self, log: bytes) -> list[KeptHead]:
        """Heads of a ledger that wait for a consistency proof, the smallest first."""
        rows = self._database.execute(
            "SELECT body, proved FROM head WHERE log = ? AND proved = 0 ORDER BY size", (log,)
        )
        return [self._kept(row) for row in rows]

    def heads(self) -> Iterator[KeptHead]:
        """All of them, by ledger and size."""
        for row in self._database.execute("SELECT body, proved FROM head ORDER BY log, size"):
            yield self._kept(row)

    def newest_of_others(self, hidden: tuple[bytes, bytes], most: int) -> tuple[Signed[TreeHead], ...]:
        """The heads that were kept last and continue what was known, but for two ledgers."""
        rows = self._database.execute(
            "SELECT body, proved FROM head WHERE proved = 1 AND log NOT IN (?, ?) ORDER BY rowid DESC LIMIT ?",
            (*hidden, most),
        )
        return tuple(self._kept(row).head for row in rows)

    @staticmethod
    def _kept(row: tuple[bytes, int]) -> KeptHead:
        head: Signed[TreeHead] = decode(row[0], Signed[TreeHead], limit_bytes=LIMIT_BYTES, oldest=OLDEST)
        return KeptHead(head=head, proved=bool(row[1]))

    # Proofs.

    def keep_proof(self, proof: Equivocation, found_ms: int) -> Address | None:
        """Keep a proof for ever, if it is one. Answers against whom; None for a known one, or none at all.

        A few are enough for everybody: who lies on every receipt must not fill the disk with it.
        """
        try:
            account = accused(proof)
        except ProtocolError:
            return None
        if self.proofs_against(account) >= MOST_OF_ONE:
            return None
        row = (proof_id(proof), account, encode(proof), found_ms)
        added = self._database.execute("INSERT OR IGNORE INTO proof VALUES (?, ?, ?, ?)", row).rowcount
        return account if added else None

    def proofs(self) -> Iterator[tuple[Address, Equivocation, int]]:
        """All proofs: against whom, the proof, and when it was found."""
        for account, body, found_ms in self._database.execute(
            "SELECT account, body, found_ms FROM proof ORDER BY found_ms"
        ):
            yield account, decode(body, Equivocation, limit_bytes=LIMIT_BYTES, oldest=OLDEST), found_ms

    def has_proof(self, name: bytes) -> bool:
        """Whether a proof of this lie is kept; ``name`` is its ``proof_id``."""
        return self._database.execute("SELECT 1 FROM proof WHERE id = ?", (name,)).fetchone() is not None

    def proofs_against(self, account: bytes, largest_bytes: int = LIMIT_BYTES) -> int:
        """How many proofs against an account are kept, of those that are no larger than this."""
        query = "SELECT count(*) FROM proof WHERE account = ? AND length(body) <= ?"
        return int(self._database.execute(query, (account, largest_bytes)).fetchone()[0])

    def liars(self) -> list[Address]:
        """All accounts against which proofs are kept, in the order in which the first came."""
        rows = self._database.execute("SELECT account FROM proof GROUP BY account ORDER BY min(rowid)")
        return [Address(account) for (account,) in rows]

    def first_proof_against(self, account: bytes) -> Equivocation:
        """The oldest proof against an account of ``liars``."""
        query = "SELECT body FROM proof WHERE account = ? ORDER BY rowid LIMIT 1"
        return self._proof(self._database.execute(query, (account,)).fetchone()[0])

    def proofs_kept(self) -> tuple[int, int]:
        """How many proofs are kept in all, and how large they are together."""
        count, size_bytes = self._database.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM proof"
        ).fetchone()
        return int(count), int(size_bytes)

    def drop_oldest_proof(self, stays: Callable[[Address], bool]) -> Address | None:
        """Forget the oldest proof against an account that may go. Answers against whom; None if none was found.

        Few are looked at, and the next call goes on behind those that stay: however many those are, no call is slow.
        """
        rows = self._database.execute(
            "SELECT rowid, account FROM proof WHERE rowid > ? ORDER BY rowid LIMIT ?", (self._looked_at, MOST_LOOKED_AT)
        ).fetchall()
        for position, account in rows:
            if not stays(account):
                self._database.execute("DELETE FROM proof WHERE rowid = ?", (position,))
                return bytes(account)
            self._looked_at = int(position)
        if len(rows) < MOST_LOOKED_AT:
            self._looked_at = 0
        return None

    def newest_proofs(
        self, most: int, largest_bytes: int, *, hidden: Collection[bytes], first: Collection[bytes]
    ) -> list[tuple[Address, Equivocation]]:
        """The proofs that came last, one of each liar, and against whom.

        Args:
            most: how many.
            largest_bytes: larger ones do not count.
            hidden: accounts of which none is wanted.
            first: accounts whose proofs come before all others: anybody can make others, and lie with them.
        """
        rows = self._database.execute(
            "SELECT account, max(rowid) FROM proof WHERE length(body) <= ? GROUP BY account ORDER BY max(rowid) DESC",
            (largest_bytes,),
        ).fetchall()
        wanted = [row for row in rows if row[0] not in hidden]
        wanted.sort(key=lambda row: row[0] not in first)
        query = "SELECT body FROM proof WHERE rowid = ?"
        return [
            (Address(account), self._proof(self._database.execute(query, (position,)).fetchone()[0]))
            for account, position in wanted[:most]
        ]

    @staticmethod
    def _proof(body: bytes) -> Equivocation:
        proof: Equivocation = decode(body, Equivocation, limit_bytes=LIMIT_BYTES, oldest=OLDEST)
        return proof

    def close(self) -> None:
        """Give the file back."""
        self._database.close()
