"""Ledgers on disk as a small market leaves them: every document and entry of a job that was bought, run and paid."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.market.ledger_records import Record
from hansa.node.engine.filing import records_of
from hansa.node.ledger.ledger_store import HeadSigner, LedgerStore
from hansa.proto.documents import TreeHead, log_id_of
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, SigningKey, sign
from hansa.scheduler import run


def traded(*, steps: int = 3) -> SmallMarket:
    """A market in which one job was metered so many times, succeeded and was settled."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1)
    made.submit(BUYER, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,))
    (lease,) = made.engines[PROVIDER].state.sale_of
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    for step in range(1, steps + 1):
        made.now_ms += 2_000
        made.take(PROVIDER, run.RunProgressed(run=lease, step=step, metrics=(), at_ms=made.now_ms))
    made.now_ms += 1_000
    made.take(PROVIDER, run.RunFinished(run=lease, at_ms=made.now_ms))
    return made


def records(market: SmallMarket, key: SigningKey) -> list[Record]:
    """What a node's ledger got, in order."""
    return records_of([effect for of, effect in market.booked if of == key.address], key)


def head_signer(key: SigningKey, at_ms: int = 1) -> HeadSigner:
    """Signs heads of an account's ledger."""

    def sign_head(size: int, root: bytes) -> Signed[TreeHead]:
        return sign(DOMAIN, TreeHead(log_id=log_id_of(key.address), size=size, root=root, timestamp_ms=at_ms), key)

    return sign_head


def ledger_file(path: Path, key: SigningKey, of: Sequence[Record], *, group: int = 3) -> Path:
    """A ledger on disk with these records, posted in groups."""
    store = LedgerStore(path)
    for start in range(0, len(of), group):
        store.post(of[start : start + group], head_signer(key))
    store.close()
    return path


def tamper(path: Path, *statements: tuple[str, tuple[Any, ...]]) -> None:
    """Somebody edits the file with their own tools, the triggers out of the way."""
    database = sqlite3.connect(path, isolation_level=None)
    for table in ("entry", "node", "head"):
        for verb in ("update", "delete"):
            database.execute(f"DROP TRIGGER IF EXISTS {table}_no_{verb}")
    for statement, values in statements:
        database.execute(statement, values)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
