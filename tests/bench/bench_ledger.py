"""How fast the ledger takes entries durably and proves them, next to bare SQLite and to a plain tree in the same run.

A machine's speed is not ours to promise; the ratios on the same machine are. Takes about 15 seconds:
``python tests/bench/bench_ledger.py``.
"""

import itertools
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hansa.market.ledger import vouched_by_buyer
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.proto.codec import encode
from hansa.proto.documents import TreeHead, log_id_of
from hansa.proto.merkle import inclusion_proof, is_included
from hansa.proto.merkle_log import is_consistent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, SigningKey, sign

KEY = SigningKey(b"\x42" * 32)
GROUP = 100
SECONDS = 1.5
ROUNDS = 3
SEQ = itertools.count(1)


def rate(call: Callable[[], object]) -> float:
    """Calls per second: the best of three rounds, because a busy machine only ever makes it slower."""
    best = 0.0
    for _ in range(ROUNDS):
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < SECONDS / ROUNDS:
            call()
            count += 1
        best = max(best, count / spent)
    return best


def _entries(count: int) -> list:
    return [
        vouched_by_buyer(channel_id=b"\1" * 32, seq=next(SEQ), provider=b"\2" * 20, shares={b"\3" * 32: 5}, at_ms=1)
        for _ in range(count)
    ]


def _signed_head(size: int, root: bytes) -> Signed[TreeHead]:
    return sign(DOMAIN, TreeHead(log_id=log_id_of(KEY.address), size=size, root=root, timestamp_ms=1), KEY)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as directory:
        ledger = LedgerStore(Path(directory) / "ledger.sqlite")
        bare = sqlite3.connect(Path(directory) / "bare.sqlite", isolation_level=None)
        bare.execute("PRAGMA journal_mode=WAL")
        bare.execute("PRAGMA synchronous=FULL")
        bare.execute("CREATE TABLE entry (position INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT")

        def append_bare() -> None:
            bare.execute("BEGIN IMMEDIATE")
            bare.executemany("INSERT INTO entry VALUES (NULL, ?)", [(body,) for body in bodies])
            bare.execute("COMMIT")

        alone = rate(lambda: ledger.post(_entries(1), _signed_head))
        groups = iter([_entries(GROUP) for _ in range(1_000)])
        grouped = rate(lambda: ledger.post(next(groups), _signed_head)) * GROUP
        bodies = [encode(entry) for entry in _entries(GROUP)]
        least = rate(append_bare) * GROUP
        print(f"{'durable, one by one':<24}{alone:>10,.0f} entries/s")
        print(f"{'durable, groups of 100':<24}{grouped:>10,.0f} entries/s   floor 7,000, ratio {grouped / 7000:.1f}")
        print(f"{'  bare SQLite':<24}{least:>10,.0f} entries/s   ours is {grouped / least:.2f} of it")

        size = ledger.size
        bodies = [body for _, _, body, _ in ledger.rows()]
        position = size // 3
        proof = ledger.inclusion(position + 1)
        assert is_included(root=ledger.root, size=size, leaf=bodies[position], index=position, proof=proof)
        made = rate(lambda: ledger.inclusion(position + 1))
        checked = rate(
            lambda: is_included(root=ledger.root, size=size, leaf=bodies[position], index=position, proof=proof)
        )
        start = time.perf_counter()
        assert inclusion_proof(bodies, position) == proof
        plain_s = time.perf_counter() - start
        plain = f"a plain tree takes {plain_s * 1e3:,.0f} ms"
        print(f"{'inclusion proof made':<24}{1e3 / made:>10.3f} ms among {size:,}; {plain}")
        print(f"{'inclusion proof checked':<24}{1e6 / checked:>10.1f} µs")
        half = size // 2
        first, path = ledger.root_at(half), ledger.consistency(half, size)
        made = rate(lambda: ledger.consistency(half, size))
        checked = rate(
            lambda: is_consistent(first=half, first_root=first, second=size, second_root=ledger.root, proof=path)
        )
        print(f"{'consistency made':<24}{1e3 / made:>10.3f} ms, checked {1e6 / checked:.1f} µs")
        bare.close()
        ledger.close()


if __name__ == "__main__":
    main()
