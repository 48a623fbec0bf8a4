"""What this node ever meant to send to a chain, on disk before any of it is sent.

An intention has a purpose, in words that name what it is for (``open 1f3c…``), and at most one transaction of it is
ever in effect: all that are signed for it have the same nonce, and a chain takes a nonce once. So after a crash, or
when a transaction is lost, it can be sent again without a second thought. Also here: what was seen of the chain.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hansa.market.settlement import Happening
from hansa.node.faults import OperatorError, storage_hint
from hansa.proto.codec import decode, encode

SENT, MINED, FINAL = "sent", "mined", "final"
MAX_HAPPENING_BYTES: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Intention:
    """One thing to be done on the chain.

    Attributes:
        number: its place in the store.
        purpose: what it is for, in words of our own.
        to: the contract.
        content: what it is told.
        gas: how much of it may be used.
        nonce: the account's nonce, which only transactions of this intention have.
        phase: sent (signed, and on its way or about to be), mined (in a block that may be dropped) or final.
        ok: whether the contract did it; known once it is mined.
        begun_ms: when it was written down.
        fee_paid: what it cost; known once it is mined.
        block_number: where it was mined.
    """

    number: int
    purpose: str
    to: bytes
    content: bytes
    gas: int
    nonce: int
    phase: str
    ok: bool
    begun_ms: int
    fee_paid: int
    block_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One signed transaction of an intention.

    Attributes:
        intention: whose it is.
        transaction: its hash.
        raw: the signed bytes.
        most_fee: the most that a unit of gas may cost.
        tip: what of it is for the miner.
        signed_ms: when it was signed. How long it is stuck counts from here, however often it is sent again.
    """

    intention: int
    transaction: bytes
    raw: bytes
    most_fee: int
    tip: int
    signed_ms: int


class EvmStore:
    """The file. One process has it at a time."""

    def __init__(self, path: Path, *, account: bytes, chain_id: int) -> None:
        """Open the file, or make it.

        Raises:
            OperatorError: another process has it, it is another account's or chain's, or it is no such file.
        """
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=1)
            path.chmod(0o600)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "locking_mode=EXCLUSIVE"):
                self._database.execute(f"PRAGMA {pragma}")
            self._database.execute("BEGIN EXCLUSIVE")
            for statement in _TABLES.split(";"):
                self._database.execute(statement)
            self._database.execute("COMMIT")
        except sqlite3.Error as fault:
            hint = "is another hansa running on this data directory? If not, the file may be damaged: restore a copy."
            raise OperatorError(f"cannot open {path}: {fault}", storage_hint(fault, hint)) from fault
        self._bind(path, f"{chain_id} {account.hex()}")

    def _bind(self, path: Path, whose: str) -> None:
        known = self.word("whose")
        if known is None:
            self.keep_word("whose", whose)
        elif known != whose:
            self.close()
            hint = f"if nothing that it holds still matters, move it away: {path}"
            raise OperatorError("the file of sent transactions is another account's or another chain's", hint)

    def close(self) -> None:
        """Give the file back."""
        self._database.close()

    # Words: small facts by name.

    def word(self, name: str) -> str | None:
        """A fact that was kept."""
        row = self._database.execute("SELECT value FROM word WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def keep_word(self, name: str, value: str) -> None:
        """Keep a fact, in place of what was kept by that name."""
        self._database.execute("INSERT OR REPLACE INTO word VALUES (?, ?)", (name, value))

    def words(self, names: str) -> list[str]:
        """All facts whose names begin like this, in the order of their names."""
        found = self._database.execute(
            "SELECT value FROM word WHERE substr(name, 1, ?) = ? ORDER BY name", (len(names), names)
        )
        return [str(value) for (value,) in found]

    def amounts(self, names: str) -> int:
        """The sum of all facts that are amounts and whose names begin like this."""
        found = self._database.execute("SELECT value FROM word WHERE substr(name, 1, ?) = ?", (len(names), names))
        return sum(int(value) for (value,) in found)

    # Intentions.

    def intend(self, intention: Intention, attempt: Attempt) -> Intention:
        """Write down an intention with its first signed transaction. Durable when this returns."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            row = (
                intention.purpose,
                intention.to,
                intention.content,
                intention.gas,
                intention.nonce,
                intention.begun_ms,
            )
            cursor = self._database.execute(
                "INSERT INTO intention (purpose, receiver, content, gas, nonce, phase, ok, begun_ms, fee_paid, block)"
                " VALUES (?, ?, ?, ?, ?, 'sent', 0, ?, '0', 0)",
                row,
            )
            number = cursor.lastrowid
            assert number is not None
            self._insert_attempt(number, attempt)
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        return self.by_number(number)

    def add_attempt(self, attempt: Attempt) -> None:
        """Write down one more signed transaction of an intention."""
        self._insert_attempt(attempt.intention, attempt)

    def _insert_attempt(self, number: int, attempt: Attempt) -> None:
        values = (attempt.transaction, number, attempt.raw, str(attempt.most_fee), str(attempt.tip), attempt.signed_ms)
        self._database.execute("INSERT INTO attempt VALUES (?, ?, ?, ?, ?, ?)", values)

    def judge(self, number: int, phase: str, *, ok: bool, fee_paid: int, block_number: int) -> None:
        """What became of an intention."""
        self._database.execute(
            "UPDATE intention SET phase = ?, ok = ?, fee_paid = ?, block = ? WHERE number = ?",
            (phase, int(ok), str(fee_paid), block_number, number),
        )

    def forget(self, number: int) -> None:
        """Take back an intention whose nonce somebody else's transaction has for good."""
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute("DELETE FROM attempt WHERE intention = ?", (number,))
        self._database.execute("DELETE FROM intention WHERE number = ?", (number,))
        self._database.execute("COMMIT")

    def by_number(self, number: int) -> Intention:
        """One intention."""
        return self._intentions("WHERE number = ?", number)[0]

    def newest(self, purpose: str) -> Intention | None:
        """The last intention with a purpose."""
        found = self._intentions("WHERE purpose = ? ORDER BY number DESC LIMIT 1", purpose)
        return found[0] if found else None

    def unsettled(self) -> tuple[Intention, ...]:
        """All that are not final, by their nonces."""
        return self._intentions("WHERE phase <> 'final' ORDER BY nonce")

    def finals_since(self, at_ms: int) -> tuple[Intention, ...]:
        """All that are final and were begun since then, by their nonces."""
        return self._intentions("WHERE phase = 'final' AND begun_ms >= ? ORDER BY nonce", at_ms)

    def attempts(self, number: int) -> tuple[Attempt, ...]:
        """All transactions that were signed for an intention, the newest last."""
        cursor = self._database.execute(
            "SELECT intention, tx, raw, most_fee, tip, sent_ms FROM attempt WHERE intention = ? ORDER BY rowid",
            (number,),
        )
        return tuple(
            Attempt(
                intention=row[0],
                transaction=row[1],
                raw=row[2],
                most_fee=int(row[3]),
                tip=int(row[4]),
                # The column has its old name: files of earlier versions are read as they are.
                signed_ms=row[5],
            )
            for row in cursor
        )

    def highest_nonce(self) -> int | None:
        """The highest nonce that was ever used here."""
        row = self._database.execute("SELECT max(nonce) FROM intention").fetchone()
        return None if row[0] is None else int(row[0])

    def nonces_from(self, nonce: int) -> frozenset[int]:
        """All nonces from one on that intentions have."""
        return frozenset(
            row[0] for row in self._database.execute("SELECT nonce FROM intention WHERE nonce >= ?", (nonce,))
        )

    def fees_since(self, at_ms: int, *, without: int = 0) -> int:
        """What was paid, and may still have to be paid, for everything begun since then.

        Args:
            at_ms: since when.
            without: the number of an intention that is left out.
        """
        total = 0
        for intention in self._intentions("WHERE begun_ms >= ? AND number <> ?", at_ms, without):
            if intention.phase == SENT:
                total += intention.gas * max(attempt.most_fee for attempt in self.attempts(intention.number))
            else:
                total += intention.fee_paid
        return total

    def _intentions(self, where: str, *values: Any) -> tuple[Intention, ...]:
        cursor = self._database.execute(f"{_SELECT} {where}", values)
        return tuple(
            Intention(
                number=row[0],
                purpose=row[1],
                to=row[2],
                content=row[3],
                gas=row[4],
                nonce=row[5],
                phase=row[6],
                ok=bool(row[7]),
                begun_ms=row[8],
                fee_paid=int(row[9]),
                block_number=row[10],
            )
            for row in cursor
        )

    # What was seen of the chain: happenings, in the order in which they were told.

    def seen(self, after: int) -> tuple[Happening, ...]:
        """Happenings told after a cursor."""
        cursor = self._database.execute("SELECT body FROM happening WHERE cursor > ? ORDER BY cursor", (after,))
        return tuple(decode(body, Happening, limit_bytes=MAX_HAPPENING_BYTES) for (body,) in cursor)

    def tentative(self) -> dict[tuple[bytes, int], Happening]:
        """What was told of blocks that may still be dropped, by the block's hash and the place in it."""
        cursor = self._database.execute("SELECT block, place, body FROM tentative ORDER BY rowid")
        return {(row[0], row[1]): decode(row[2], Happening, limit_bytes=MAX_HAPPENING_BYTES) for row in cursor}

    def tell(
        self,
        news: Sequence[Happening],
        *,
        tentative: Mapping[tuple[bytes, int], Happening],
        words: Mapping[str, str],
    ) -> None:
        """Write down what is told, what of all that was told may still be dropped, and how far was looked: all or none.

        The cursors in ``news`` are given here; those that the happenings come with do not matter.
        """
        self._database.execute("BEGIN IMMEDIATE")
        try:
            top: int = self._database.execute("SELECT coalesce(max(cursor), 0) FROM happening").fetchone()[0]
            for cursor, happening in enumerate(news, start=top + 1):
                body = encode(replace(happening, cursor=cursor))
                self._database.execute("INSERT INTO happening VALUES (?, ?)", (cursor, body))
            self._database.execute("DELETE FROM tentative")
            self._database.executemany(
                "INSERT INTO tentative VALUES (?, ?, ?)",
                [(block, place, encode(happening)) for (block, place), happening in tentative.items()],
            )
            self._database.executemany("INSERT OR REPLACE INTO word VALUES (?, ?)", list(words.items()))
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise


_SELECT: Final = (
    "SELECT number, purpose, receiver, content, gas, nonce, phase, ok, begun_ms, fee_paid, block FROM intention"
)
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS word (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS intention (
    number INTEGER PRIMARY KEY AUTOINCREMENT, purpose TEXT NOT NULL, receiver BLOB NOT NULL, content BLOB NOT NULL,
    gas INTEGER NOT NULL, nonce INTEGER NOT NULL UNIQUE, phase TEXT NOT NULL, ok INTEGER NOT NULL,
    begun_ms INTEGER NOT NULL, fee_paid TEXT NOT NULL, block INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS intention_purpose ON intention (purpose);
CREATE TABLE IF NOT EXISTS attempt (
    tx BLOB NOT NULL UNIQUE, intention INTEGER NOT NULL, raw BLOB NOT NULL, most_fee TEXT NOT NULL, tip TEXT NOT NULL,
    sent_ms INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS attempt_intention ON attempt (intention);
CREATE TABLE IF NOT EXISTS happening (cursor INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS tentative (block BLOB NOT NULL, place INTEGER NOT NULL, body BLOB NOT NULL) STRICT
"""
