"""Which mistake of the operator's brought tasks down, and what to do about a disk that is full."""

import errno
import resource
import sqlite3
from pathlib import Path

import pytest

from hansa.node.faults import ConfigError, PortInUse, operator_error_in, storage_hint


def test_a_mistake_is_found_however_deep_in_nurseries_it_happened():
    fault = PortInUse("port 4001 is taken", "use another")
    assert operator_error_in(ExceptionGroup("a", [ExceptionGroup("b", [fault])])) is fault


def test_a_disk_that_takes_nothing_more_is_named_also_where_sqlite_does_not_know_that_it_is_full(tmp_path: Path):
    database = sqlite3.connect(tmp_path / "short.sqlite")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(sqlite3.OperationalError) as failed:
            database.execute("CREATE TABLE event (body BLOB)")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        database.close()
    assert failed.value.sqlite_errorname.startswith("SQLITE_IOERR")
    told = operator_error_in(ExceptionGroup("a", [failed.value]), tmp_path)
    assert told is not None
    assert f"the disk of {tmp_path} " in told.what
    assert f"df {tmp_path}" in told.hint
    assert "full" in storage_hint(failed.value, "restore a copy")


def test_of_two_mistakes_the_first_is_told():
    first, second = ConfigError("one", ""), ConfigError("two", "")
    assert operator_error_in(ExceptionGroup("a", [first, ExceptionGroup("b", [second])])) is first


def test_a_fault_of_ours_beside_it_is_never_hidden():
    assert operator_error_in(ExceptionGroup("a", [ConfigError("one", ""), ValueError("ours")])) is None
    assert operator_error_in(ExceptionGroup("a", [ValueError("ours")])) is None


def test_a_full_disk_is_not_taken_for_a_broken_file(tmp_path: Path):
    database = sqlite3.connect(tmp_path / "full.sqlite")
    database.execute("PRAGMA max_page_count=1")
    with pytest.raises(sqlite3.OperationalError) as full:
        database.execute("CREATE TABLE event (body BLOB)")
    database.close()
    both = ExceptionGroup("a", [full.value, OSError(errno.ENOSPC, "No space left on device")])
    told = operator_error_in(both, tmp_path)
    assert told is not None
    assert f"the disk of {tmp_path} is full" in told.what
    assert "room" in told.hint
    assert f"df {tmp_path}" in told.hint
    assert operator_error_in(OSError(errno.EIO, "broken")) is None
    assert "room" in storage_hint(full.value, "restore a copy")
    assert storage_hint(sqlite3.DatabaseError("broken"), "restore a copy") == "restore a copy"


def test_a_database_that_a_power_cut_damaged_is_said_and_no_copy_of_one_file_is_advised(tmp_path: Path):
    file = tmp_path / "torn.sqlite"
    database = sqlite3.connect(file)
    database.execute("CREATE TABLE event (body BLOB)")
    database.executemany("INSERT INTO event VALUES (?)", [(bytes(1000),)] * 40)
    database.commit()
    database.close()
    content = file.read_bytes()
    file.write_bytes(content[:4096] + bytes(len(content) - 4096))
    database = sqlite3.connect(file)
    with pytest.raises(sqlite3.DatabaseError) as torn:
        database.execute("SELECT * FROM event").fetchall()
    database.close()
    told = operator_error_in(ExceptionGroup("a", [torn.value]), tmp_path)
    assert told is not None
    assert f"a database of {tmp_path} is damaged" in told.what
    assert "the whole directory" in told.hint
    assert storage_hint(torn.value, "restore a copy") == told.hint
