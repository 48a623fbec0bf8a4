"""Which mistake of the operator's brought tasks down, and what to do about a disk that is full."""

import errno
import sqlite3
from pathlib import Path

import pytest

from hansa.node.faults import ConfigError, PortInUse, operator_error_in, storage_hint


def test_a_mistake_is_found_however_deep_in_nurseries_it_happened():
    fault = PortInUse("port 4001 is taken", "use another")
    assert operator_error_in(ExceptionGroup("a", [ExceptionGroup("b", [fault])])) is fault


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
    told = operator_error_in(ExceptionGroup("a", [full.value, OSError(errno.ENOSPC, "No space left on device")]))
    assert told is not None
    assert "full" in told.what
    assert "room" in told.hint
    assert operator_error_in(OSError(errno.EIO, "broken")) is None
    assert "room" in storage_hint(full.value, "restore a copy")
    assert storage_hint(sqlite3.DatabaseError("broken"), "restore a copy") == "restore a copy"
