"""The ledger's entries on disk: append-only, chained, and posted once."""

import sqlite3

import pytest
from kit.trading import CHANNEL_ID, JOB, NOW_MS, PROVIDER

from hansa.market.ledger import Entry, Leg, vouched_by_buyer
from hansa.node.faults import OperatorError
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.proto.codec import encode
from hansa.proto.documents import TreeHead, log_id_of
from hansa.proto.keccak import keccak256
from hansa.proto.merkle import is_included
from hansa.proto.merkle_log import is_consistent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import SigningKey, check, sign

KEY = SigningKey(b"\x11" * 32)


def sign_head(size, root):
    return sign(DOMAIN, TreeHead(log_id=log_id_of(KEY.address), size=size, root=root, timestamp_ms=NOW_MS), KEY)


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
        database.execute(f"DROP TRIGGER entry_no_{verb}")
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


def test_two_daemons_writing_one_channel_the_second_is_refused_before_it_writes(store, path):
    other = LedgerStore(path)
    store.post([entry(1)])
    with pytest.raises(OperatorError, match="somebody else writes"):
        other.post([entry(1, 6), entry(2)])
    other.close()
    assert [each.legs for each in store.entries()] == [entry(1).legs]
    store.post([entry(2)])
    assert store.verify().entries == 2


def test_every_record_is_proved_and_every_past_is_its_beginning(store, path):
    roots = [store.root]
    for seq in range(1, 30):
        store.post([entry(seq)])
        roots.append(store.root)
    store.close()
    again = LedgerStore(path, read_only=True)
    assert again.root == roots[-1]
    for position, _, body, _ in again.rows():
        proof = again.inclusion(position)
        assert is_included(root=again.root, size=29, leaf=body, index=position - 1, proof=proof)
    for first in range(30):
        assert again.root_at(first) == roots[first]
        proof = again.consistency(first, 29)
        assert is_consistent(first=first, first_root=roots[first], second=29, second_root=roots[29], proof=proof)
    with pytest.raises(IndexError):
        again.consistency(3, 30)
    again.close()


def test_a_batch_ends_with_a_signed_head_in_the_same_transaction(store):
    assert store.newest_head() is None
    store.post([entry(1), entry(2)], sign_head)
    head = store.newest_head()
    check(DOMAIN, head, KEY.address)
    assert (head.document.size, head.document.root) == (2, store.root)
    store.post([entry(1)], sign_head)
    assert store.newest_head() == head

    def fail(size, root):
        raise RuntimeError("the key is gone")

    with pytest.raises(RuntimeError):
        store.post([entry(3)], fail)
    assert (store.size, store.newest_head()) == (2, head)
    store.verify()


def test_a_read_only_ledger_takes_nothing_and_a_copy_is_read_where_nothing_can_be_written(store, path, tmp_path):
    store.post([entry(1)])
    beside = LedgerStore(path, read_only=True)
    assert beside.size == 1
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        beside.post([entry(2)])
    beside.close()
    store.close()
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(path.read_bytes())
    copied = LedgerStore(copy, read_only=True)
    assert copied.verify().entries == 1
    copied.close()


def test_a_file_from_before_there_was_a_tree_gets_one(store, path):
    store.post([entry(1), entry(2), entry(3)])
    root = store.root
    store.close()
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("DROP TRIGGER node_no_delete")
    database.execute("DELETE FROM node")
    database.close()
    again = LedgerStore(path)
    assert again.root == root
    again.verify()
    again.close()


ENDLESS = "WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more) SELECT n"


@pytest.mark.parametrize(
    ("drops", "makes"),
    [
        ("entry", f"CREATE VIEW entry AS {ENDLESS} AS position, x'00' AS id, x'00' AS body, x'00' AS chain FROM more"),
        ("head", f"CREATE VIEW head AS {ENDLESS} AS size, x'00' AS body FROM more"),
        ("node", "CREATE TABLE node (number INTEGER PRIMARY KEY, hash BLOB AS (zeroblob(1 << 30))) STRICT"),
        ("node", "CREATE VIRTUAL TABLE node USING fts5(number, hash)"),
        ("entry", "CREATE TABLE entry (position, id, body, chain)"),
    ],
)
def test_a_strangers_file_whose_tables_are_none_is_no_ledger(store, path, drops, makes):
    """It is read for people who were given a copy: a view over an endless query would never be done."""
    store.close()
    with sqlite3.connect(path) as database:
        database.execute(f"DROP TABLE {drops}")
        try:
            database.execute(makes)
        except sqlite3.OperationalError as fault:
            pytest.skip(str(fault))
    database.close()
    with pytest.raises(OperatorError, match="no ledger"):
        LedgerStore(path, read_only=True)
