"""The journal on a real disk: what was acknowledged is there, whatever happened to the process."""

import signal
import sqlite3
import subprocess
import sys
import textwrap

import pytest
from kit.trading import BUYER, NOW_MS, spec

from hansa.market.mutual import Mutual
from hansa.node.engine.engine import Engine
from hansa.node.engine.events import DevicesReturned, DevicesUsed, DevicesWithdrawn, JobSubmitted, Started, TimeCame
from hansa.node.engine.journal import KEPT_SNAPSHOTS, MOST_SET_ASIDE, MemoryJournal, SqliteJournal
from hansa.node.engine.state import NodeState, snapshot
from hansa.node.faults import OperatorError
from hansa.proto.blob import blob_ref
from hansa.proto.errors import ProtocolError
from hansa.scheduler.run import RunKept, RunProgressed


def started(at_ms=NOW_MS):
    return Started(account=BUYER, peer_id="p", terms=None, devices=(), at_ms=at_ms)


def submitted(number):
    return JobSubmitted(job=bytes([number]) * 32, spec=spec(), package=blob_ref(b"p"), at_ms=NOW_MS + number)


@pytest.fixture(params=["memory", "sqlite"])
def journal(request, tmp_path):
    """Both journals keep one contract."""
    if request.param == "memory":
        yield MemoryJournal()
        return
    made = SqliteJournal(tmp_path / "journal.db")
    yield made
    made.close()


def read(journal):
    written, events = journal.read()
    return written, list(events)


def test_events_come_back_in_their_order(journal):
    journal.append([started(), submitted(1)])
    journal.append([submitted(2)])
    assert read(journal) == (None, [started(), submitted(1), submitted(2)])


def test_news_of_devices_comes_back_as_it_was(journal):
    news = [
        DevicesWithdrawn(devices=(b"d" * 32, b"e" * 32), notice_ms=60_000, why="Xid 79 …", at_ms=NOW_MS),
        DevicesReturned(devices=(b"d" * 32,), at_ms=NOW_MS + 1),
        DevicesUsed(lease=b"l" * 32, busy_ms=1 << 40, at_ms=NOW_MS + 2),
        RunKept(run=b"l" * 32, kind="stalled", reason="no progress", until_ms=NOW_MS + 9, at_ms=NOW_MS + 3),
    ]
    journal.append(news)
    assert read(journal) == (None, news)


def test_what_is_set_aside_is_kept_apart_the_newest_of_it(journal, tmp_path):
    journal.append([started()])
    for number in range(MOST_SET_ASIDE + 3):
        journal.set_aside(TimeCame(at_ms=number))
    assert [event.at_ms for event in journal.ones_set_aside()] == list(range(3, MOST_SET_ASIDE + 3))
    assert read(journal)[1] == [started()]
    if isinstance(journal, SqliteJournal):
        journal.close()
        again = SqliteJournal(tmp_path / "journal.db")
        again.set_aside(TimeCame(at_ms=99))
        assert [event.at_ms for event in again.ones_set_aside()][-2:] == [MOST_SET_ASIDE + 2, 99]
        again.close()


def test_a_snapshot_stands_for_everything_before_it(journal):
    engine = Engine(journal)
    engine.take([started(), submitted(1)])
    engine.write_snapshot_if_due(now=True)
    engine.take([submitted(2)])
    written, events = read(journal)
    assert len(written.jobs) == 1
    assert events == [submitted(2)]


def test_an_event_that_could_not_be_read_back_is_never_written(journal):
    journal.append([started()])
    broken = RunProgressed(run=bytes(32), step=1, metrics=(("x" * 257, 1.0),), at_ms=NOW_MS)
    for event in (broken, RunProgressed(run=bytes(32), step=1, metrics=(("a", 1),), at_ms=NOW_MS)):
        with pytest.raises(Exception, match=r"metrics|read back"):
            journal.append([started(), event])
    assert read(journal)[1] == [started()]


def test_a_batch_is_written_whole_or_not_at_all(tmp_path):
    journal = SqliteJournal(tmp_path / "journal.db")
    journal._database.execute(
        "CREATE TRIGGER full BEFORE INSERT ON event WHEN NEW.position = 3 BEGIN SELECT raise(ABORT, 'disk full'); END"
    )
    journal.append([started()])
    with pytest.raises(sqlite3.Error, match="disk full"):
        journal.append([submitted(1), submitted(2)])
    assert read(journal)[1] == [started()]
    journal.close()


def test_it_survives_its_process(tmp_path):
    first = SqliteJournal(tmp_path / "journal.db")
    first.append([started()])
    first.close()
    second = SqliteJournal(tmp_path / "journal.db")
    second.append([submitted(1)])
    assert read(second)[1] == [started(), submitted(1)]
    second.close()


def test_only_its_owner_may_read_it(tmp_path):
    SqliteJournal(tmp_path / "journal.db").close()
    assert (tmp_path / "journal.db").stat().st_mode & 0o777 == 0o600


def test_a_second_daemon_on_the_same_file_is_refused(tmp_path):
    first = SqliteJournal(tmp_path / "journal.db")
    first.append([started()])
    program = f"""
        from pathlib import Path
        from hansa.node.faults import OperatorError
        from hansa.node.engine.journal import SqliteJournal
        try:
            SqliteJournal(Path({str(tmp_path / "journal.db")!r}))
        except OperatorError as fault:
            print("refused:", fault.hint)
    """
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout.startswith("refused: is another daemon running")
    first.close()


def test_what_is_no_journal_is_refused_with_a_hint(tmp_path):
    (tmp_path / "journal.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(OperatorError, match="cannot open the journal") as found:
        SqliteJournal(tmp_path / "journal.db")
    assert "restore" in found.value.hint


def test_an_unreadable_snapshot_gives_way_to_the_one_before_it(tmp_path):
    journal = SqliteJournal(tmp_path / "journal.db")
    engine = Engine(journal)
    for number in range(1, 4):
        engine.take([submitted(number)])
        engine.write_snapshot_if_due(now=True)
    whole = snapshot(engine.state)
    journal._database.execute("UPDATE snapshot SET body = x'00' WHERE position = 3")
    written, events = read(journal)
    assert (len(written.jobs), events) == (2, [submitted(3)])
    assert snapshot(Engine(journal).state) == whole
    journal.close()


def test_when_every_snapshot_is_unreadable_the_operator_is_told(tmp_path):
    journal = SqliteJournal(tmp_path / "journal.db")
    engine = Engine(journal)
    for number in range(1, 4):
        engine.take([submitted(number)])
        engine.write_snapshot_if_due(now=True)
    journal._database.execute("UPDATE snapshot SET body = x'00'")
    with pytest.raises(OperatorError, match="no snapshot") as found:
        read(journal)
    assert "the version that wrote it" in found.value.hint
    journal.close()


def test_an_unreadable_event_is_named_and_not_passed_over(tmp_path):
    journal = SqliteJournal(tmp_path / "journal.db")
    journal.append([started(), submitted(1)])
    journal._database.execute("UPDATE event SET body = x'00' WHERE position = 2")
    with pytest.raises(OperatorError, match="event 2") as found:
        read(journal)
    assert "the version that wrote it" in found.value.hint
    assert "the whole directory" in found.value.hint, "an old journal beside newer books is a second history"
    journal.close()


def test_what_only_older_snapshots_need_is_dropped(tmp_path):
    journal = SqliteJournal(tmp_path / "journal.db")
    for number in range(1, 8):
        journal.append([TimeCame(at_ms=NOW_MS + number)])
        journal.write_snapshot(snapshot(NodeState()))
    (snapshots,) = journal._database.execute("SELECT count(*) FROM snapshot").fetchone()
    (oldest,) = journal._database.execute("SELECT min(position) FROM event").fetchone()
    assert (snapshots, oldest) == (KEPT_SNAPSHOTS, 7)
    journal.append([TimeCame(at_ms=NOW_MS)])
    journal.close()
    again = SqliteJournal(tmp_path / "journal.db")
    assert read(again)[1] == [TimeCame(at_ms=NOW_MS)]
    again.close()


@pytest.mark.parametrize("moment", range(3))
def test_kill_in_mid_append_loses_nothing_that_was_acknowledged(tmp_path, moment):
    """A child appends and says so after each; it is killed at some instant while it does."""
    path = tmp_path / "journal.db"
    program = f"""
        import sys
        from pathlib import Path
        from hansa.node.engine.events import TimeCame
        from hansa.node.engine.journal import SqliteJournal
        journal = SqliteJournal(Path({str(path)!r}))
        for number in range(1, 100_000):
            journal.append([TimeCame(at_ms=number * 10), TimeCame(at_ms=number * 10 + 1)])
            print(number, flush=True)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    acknowledged = 0
    for _ in range(5 + 40 * moment):
        acknowledged = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    acknowledged = max([acknowledged, *(int(each) for each in child.stdout.read().split("\n")[:-1])])
    child.wait()
    child.stdout.close()
    journal = SqliteJournal(path)
    times = [event.at_ms for event in read(journal)[1]]
    assert len(times) % 2 == 0, "half a batch is there"
    assert len(times) // 2 >= acknowledged
    assert times == [number * 10 + half for number in range(1, len(times) // 2 + 1) for half in (0, 1)]
    journal.close()


def test_a_state_that_could_not_be_read_back_is_not_written(tmp_path):
    """A daemon that has written one cannot start again; one that ends before can."""
    big = NodeState(mutual={bytes(20): Mutual(limit=2**128)})
    journal = SqliteJournal(tmp_path / "journal")
    for kept in (journal, MemoryJournal()):
        with pytest.raises((ProtocolError, AssertionError)):
            kept.write_snapshot(snapshot(big))
        assert kept.read()[0] is None
    journal.close()
