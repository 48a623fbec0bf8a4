"""The ledger's entries on disk: append-only, chained, and posted once."""

import sqlite3

import pytest
from kit.trading import CHANNEL_ID, JOB, NOW_MS, PROVIDER

from hansa.market.ledger import Entry, Leg, vouched_by_buyer
from hansa.node.faults import OperatorError
from hansa.node.ledger_store import LedgerStore
from hansa.proto.codec import encode
from hansa.proto.keccak import keccak256


def entry(seq, share=5):
    return vouched_by_buyer(channel_id=CHANNEL_ID, seq=seq, provider=PROVIDER, shares={JOB: share}, at_ms=NOW_MS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path):
    made = LedgerStore(path)
    yield made
    made.close()


def tamper(path, *statements):
    """Somebody edits the file with their own tools, the triggers out of the way."""
    database = sqlite3.connect(path, isolation_level=None)
    for verb in ("update", "delete"):
        database.execute(f"DROP TRIGGER no_{verb}")
    for statement, values in statements:
        database.execute(statement, values)
    database.close()


def test_entries_come_back_in_order_and_sum_up(store):
    assert store.post([entry(1), entry(2, 7)]) == 2
    assert list(store.entries()) == [entry(1), entry(2, 7)]
    assert store.verify().balance(f"spend:{JOB.hex()}") == 12


def test_posting_again_changes_nothing(store):
    store.post([entry(1)])
    assert store.post([entry(1), entry(2), entry(2)]) == 1
    assert store.verify().entries == 2


def test_two_entries_of_one_id_are_our_own_fault_and_nothing_of_the_batch_stays(store):
    store.post([entry(1)])
    with pytest.raises(AssertionError, match="two entries of one id"):
        store.post([entry(2), entry(1, 6)])
    assert store.post([entry(3)]) == 1
    assert [each.id for each in store.entries()] == [entry(1).id, entry(3).id]
    store.verify()


def test_it_survives_its_process_with_the_chain_unbroken(store, path):
    store.post([entry(1)])
    store.close()
    again = LedgerStore(path)
    again.post([entry(1), entry(2)])
    assert again.verify().entries == 2
    again.close()


@pytest.mark.parametrize("statement", ["UPDATE entry SET body = x'00'", "DELETE FROM entry"])
def test_no_row_is_changed_or_deleted(store, statement):
    store.post([entry(1)])
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        store._database.execute(statement)


@pytest.mark.parametrize(
    "statements",
    [
        [("UPDATE entry SET body = ? WHERE position = 2", (encode(entry(2, 50)),))],
        [("DELETE FROM entry WHERE position = 2", ())],
        [("DELETE FROM entry WHERE position = 1", ())],
        [("UPDATE entry SET chain = zeroblob(32) WHERE position = 3", ())],
        [("UPDATE entry SET position = 9 WHERE position = 3", ())],
        [
            ("UPDATE entry SET position = 9 WHERE position = 1", ()),
            ("UPDATE entry SET position = 1 WHERE position = 2", ()),
            ("UPDATE entry SET position = 2 WHERE position = 9", ()),
        ],
    ],
)
def test_a_file_that_was_edited_is_found_out(store, path, statements):
    store.post([entry(1), entry(2), entry(3)])
    store.verify()
    tamper(path, *statements)
    with pytest.raises(OperatorError, match="of the ledger is not what was written"):
        store.verify()


def test_an_entry_smuggled_in_is_found_out(store, path):
    store.post([entry(1)])
    smuggled = Entry(id=b"x" * 32, at_ms=1, memo="m", legs=(Leg(account="a", amount=0), Leg(account="b", amount=0)))
    tamper(path, ("INSERT INTO entry VALUES (2, ?, ?, ?)", (smuggled.id, encode(smuggled), keccak256(b"guess"))))
    with pytest.raises(OperatorError, match="entry 2"):
        store.verify()


def test_what_is_no_ledger_is_refused_with_a_hint(path):
    path.write_bytes(b"no database at all" * 99)
    with pytest.raises(OperatorError, match="cannot open the ledger"):
        LedgerStore(path)
