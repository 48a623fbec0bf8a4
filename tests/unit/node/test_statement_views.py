"""Statements of whole markets: they add up to the books, survive what strangers write, and CSV says the same."""

import csv
import errno
import io
import os
from decimal import Decimal
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.served_desk import served
from kit.trading import BUYER, CHANNEL_ID, JOB, NOW_MS, PROVIDER, channel
from simulation.market import Market
from simulation.world import Faults
from starlette.applications import Starlette

from hansa.market.ledger import fold, vouched_by_buyer, vouched_to_provider
from hansa.market.ledger_records import FiledChannel
from hansa.market.statements import SIDES, WAYS
from hansa.node.api.statement_desk import StatementDesk, statement_routes
from hansa.node.api.statements import (
    COLUMNS,
    JOURNAL_NAME,
    LEDGER_NAME,
    Known,
    as_csv,
    known_of,
    offline_statement,
    statement_view,
)
from hansa.node.commands.cli import cli
from hansa.node.commands.first_setup import Wishes, config_text
from hansa.node.engine.events import TimeCame
from hansa.node.engine.journal import SqliteJournal
from hansa.node.engine.state import NodeState
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.node.settings.config import FILE_NAME, load_config
from hansa.proto.signing import checksum_address
from hansa.proto.units import format_amount


@cache
def played(seed: int, *, faults: bool) -> Market:
    market = Market(seed, Faults(loss=0.1, crash=0.01, run_failure=0.3, reclaim=0.3) if faults else Faults())
    market.play()
    return market


def books_of(node):
    return list(node.ledger.entries.values()), node.engine.state


def view(entries, state: NodeState, side="spend", by="job"):
    return statement_view(entries, known_of(state, "USD", side), side=side, by=by)


def total(view, column):
    return sum((Decimal(entry[column]) for entry in view["totals"]), Decimal(0))


@pytest.mark.parametrize(("seed", "faults"), [(3, False), (5, False), (11, True), (12, True)])
def test_in_a_whole_market_every_nodes_statements_are_its_books(seed, faults):
    moved = 0
    for node in played(seed, faults=faults).nodes.values():
        entries, state = books_of(node)
        books = fold(entries)
        for by in WAYS:
            spend, earned = view(entries, state, "spend", by), view(entries, state, "earnings", by)
            assert format_amount(books.total("spend:")) == str(total(spend, "vouched") or "0.000000")
            assert format_amount(-books.total("paid:")) == str(total(spend, "closed") or "0.000000")
            assert format_amount(-books.total("earned:")) == str(total(earned, "vouched") or "0.000000")
            assert format_amount(books.total("settled:")) == str(total(earned, "closed") or "0.000000")
            assert format_amount(books.total("unpaid:")) == str(total(earned, "written_off") or "0.000000")
            moved += bool(spend["rows"]) + bool(earned["rows"])
    assert moved


def test_what_a_lost_lease_cost_is_a_part_of_what_its_job_cost():
    retries = 0
    for seed in range(11, 31):
        for node in played(seed, faults=True).nodes.values():
            entries, state = books_of(node)
            for row in view(entries, state)["rows"]:
                retries += row["retries"]
                assert Decimal(row["lost_cost"]) <= Decimal(row["vouched"])
        if retries:
            return
    pytest.fail("no seed loses a lease")


def test_csv_has_the_rows_and_exact_amounts():
    entries = [
        vouched_by_buyer(channel_id=CHANNEL_ID, seq=1, provider=PROVIDER, shares={JOB: 10**33 + 1}, at_ms=NOW_MS)
    ]
    known = Known(currency="USD", currencies={}, names={JOB.hex(): "=HYPERLINK(1)"}, leases=())
    for by in WAYS:
        made = statement_view(entries, known, side="spend", by=by)
        (row,) = csv.DictReader(io.StringIO(as_csv(made)))
        assert row["vouched"] == row["open"] == "1" + "0" * 27 + ".000001"
        assert list(row) == [by, *(("name",) if by == "job" else ()), *COLUMNS]
        assert row.get("name", "'=HYPERLINK(1)") == "'=HYPERLINK(1)"


def test_a_channels_currency_comes_from_the_ledgers_own_documents():
    config = channel()
    records = [
        FiledChannel(currency="USD", config=config),
        vouched_by_buyer(channel_id=CHANNEL_ID, seq=1, provider=PROVIDER, shares={JOB: 5}, at_ms=NOW_MS),
    ]
    known = Known(currency="EUR", currencies={}, names={}, leases=())
    (row,) = statement_view(records, known, side="spend", by="peer")["rows"]
    assert (row["currency"], row["peer"]) == ("USD", checksum_address(PROVIDER))
    (row,) = statement_view(records[1:], known, side="spend", by="day")["rows"]
    assert (row["currency"], row["day"]) == ("EUR", "2023-11-14")


@pytest.fixture
def stopped(tmp_path):
    """The data directory of a node whose daemon does not run."""
    data = tmp_path / "node"
    data.mkdir(mode=0o700)
    (data / FILE_NAME).write_text(config_text(Wishes(metrics_port=0)))
    store = LedgerStore(data / LEDGER_NAME)
    store.post(
        [
            vouched_by_buyer(channel_id=CHANNEL_ID, seq=1, provider=PROVIDER, shares={JOB: 1_500_000}, at_ms=NOW_MS),
            vouched_to_provider(channel_id=CHANNEL_ID, seq=1, buyer=BUYER, shares={JOB: 70}, at_ms=NOW_MS),
        ]
    )
    store.close()
    return data


def run(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli, [str(argument) for argument in arguments])


def test_without_a_daemon_the_files_are_read_and_not_changed(stopped):
    before = (stopped / LEDGER_NAME).read_bytes()
    found = offline_statement(load_config(stopped), side="spend", by="job")
    assert [row["vouched"] for row in found["rows"]] == ["1.500000"]
    shown = run("spend", "--data", stopped)
    assert shown.exit_code == 0, shown.stderr
    assert "1.500000" in shown.stdout
    assert JOB.hex()[:12] in shown.stdout
    assert "IOU" in shown.stdout
    assert "0.000070" in run("earnings", "--by", "peer", "--data", stopped).stdout
    assert run("earnings", "--csv", "--by", "day", "--data", stopped).stdout.startswith("day,currency,vouched")
    assert (stopped / LEDGER_NAME).read_bytes() == before


def test_a_journal_that_a_power_cut_damaged_is_said_without_a_trace(stopped):
    file = stopped / JOURNAL_NAME
    journal = SqliteJournal(file)
    journal.append([TimeCame(at_ms=NOW_MS + number) for number in range(2_000)])
    journal.close()
    content = file.read_bytes()
    file.write_bytes(content[:4096] + bytes(len(content) - 4096))
    shown = run("earnings", "--data", stopped)
    assert shown.exit_code == 2
    assert "damaged" in shown.stderr or "malformed" in shown.stderr
    assert "the whole directory" in shown.stderr


def test_files_where_nobody_may_write_are_said_to_need_a_copy(stopped, monkeypatch):
    SqliteJournal(stopped / JOURNAL_NAME).close()

    def refuse(self, mode):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "chmod", refuse)
    shown = run("earnings", "--data", stopped)
    assert shown.exit_code == 2
    assert str(stopped / JOURNAL_NAME) in shown.stderr
    assert "--data COPY" in shown.stderr


def test_a_directory_without_a_node_and_a_contradiction_are_said(tmp_path, stopped):
    for arguments in (("spend", "--data", tmp_path / "none"), ("spend", "--json", "--csv", "--data", stopped)):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "hint:" in result.stderr


def test_a_running_daemon_answers_by_every_way_of_grouping(tmp_path):
    hub = MemoryHub()
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def application():
        async with a_daemon(tmp_path, hub, 1) as daemon:
            entry = vouched_by_buyer(channel_id=CHANNEL_ID, seq=1, provider=PROVIDER, shares={JOB: 42}, at_ms=NOW_MS)
            daemon.ledger_keeper.store.post([entry])
            yield Starlette(routes=statement_routes(StatementDesk(daemon)))

    with served(tmp_path / "api", application) as data:
        for by in WAYS:
            shown = run("spend", "--by", by, "--data", data)
            assert "0.000042" in shown.stdout, shown.stderr
        assert "nothing was vouched for" in run("earnings", "--data", data).stdout


def test_every_side_and_grouping_has_the_same_columns():
    for side in SIDES:
        for by in WAYS:
            made = view([], NodeState(), side, by)
            assert (made["rows"], made["totals"], made["by"]) == ([], [], by)


def test_a_table_of_two_currencies_names_them_and_shows_strangers_words_as_plain_text(capsys):
    from hansa.node.commands.cli_statements import _print

    hostile = "\x1b[2J[red]EUR"
    entries = [
        vouched_by_buyer(channel_id=CHANNEL_ID, seq=1, provider=PROVIDER, shares={JOB: 5}, at_ms=NOW_MS),
        vouched_by_buyer(channel_id=bytes(32), seq=1, provider=PROVIDER, shares={JOB: 7}, at_ms=NOW_MS),
    ]
    known = Known(currency=hostile, currencies={CHANNEL_ID: "USD"}, names={JOB.hex(): hostile}, leases=())
    for by in WAYS:
        _print(statement_view(entries, known, side="spend", by=by))
        shown = capsys.readouterr().out
        assert "\x1b" not in shown
        assert "USD" in shown
        assert "[red]EUR" in shown
        assert shown.count("total") == 2
