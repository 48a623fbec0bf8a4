"""``hansa earnings`` and ``hansa spend``: statements as tables, JSON or CSV, with or without a running daemon."""

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_options import Command, print_json, with_data, with_json

WORDS = (
    "vouched = signed for; closed = both signed the channel's final sum; paid = acknowledged, cancelled out, or by the"
    " escrow contract; the rest is still owed"
)
PEERS = {"earnings": "buyer", "spend": "provider"}
ALWAYS = ("vouched", "closed", "paid", "open")
COLUMNS: dict[str, dict[str, str]] = {
    "earnings": {
        "vouched": "vouched",
        "closed": "closed",
        "paid": "paid",
        "open": "due",
        "unvouched": "not vouched yet",
        "written_off": "written off",
    },
    "spend": {
        "vouched": "vouched",
        "closed": "closed",
        "paid": "paid",
        "open": "owed",
        "retries": "retries",
        "lost_cost": "lost leases cost",
        "written_off": "taken",
    },
}
"""What is shown of a statement, and under which words."""
HEADS = {"job": "job", "day": "day (UTC)"}


def _options(command: Command) -> Command:
    for option in (
        with_json,
        with_data,
        click.option("--csv", "as_csv", is_flag=True, help="Print CSV: one line for each row, a header first."),
        click.option(
            "--by",
            type=click.Choice(["job", "peer", "day"]),
            default="job",
            show_default=True,
            help="What a row stands for; a peer is the account on the other side.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@_options
def earnings(by: str, data_dir: Path, as_json: bool, as_csv: bool) -> None:
    """Show what this node earned as a provider: vouched, closed, paid, still due, written off."""
    _show("earnings", by, data_dir, as_json=as_json, as_csv=as_csv)


@click.command()
@_options
def spend(by: str, data_dir: Path, as_json: bool, as_csv: bool) -> None:
    """Show what this node spent as a buyer: vouched, closed, paid, still owed, and what lost leases cost."""
    _show("spend", by, data_dir, as_json=as_json, as_csv=as_csv)


def _show(side: Any, by: Any, data_dir: Path, *, as_json: bool, as_csv: bool) -> None:
    if as_json and as_csv:
        raise click.UsageError("--json and --csv are two forms: choose one")
    view = _statement(side, by, data_dir)
    if as_json:
        print_json(view)
    elif as_csv:
        from hansa.node.api.statements import as_csv as csv_of

        click.echo(csv_of(view), nl=False)
    else:
        _print(view)


def _statement(side: Any, by: Any, data_dir: Path) -> dict[str, Any]:
    from hansa.node.api.cli_client import DaemonAway, DaemonClient

    try:
        with closing(DaemonClient(data_dir)) as daemon:
            return daemon.get(f"/v1/statements/{side}", by=by)
    except DaemonAway:
        if not (data_dir / "config.toml").exists():
            raise
    # The daemon does not run: its files say the same.
    from hansa.node.api.statements import offline_statement
    from hansa.node.settings.config import load_config

    return offline_statement(load_config(data_dir), side=side, by=by)


def _moves(value: object) -> bool:
    """Whether there is anything in a cell."""
    return bool(str(value).strip("0.-"))


def _print(view: dict[str, Any]) -> None:
    from hansa.node.commands.cli_tables import print_table
    from hansa.node.plain_text import plain, short_account

    side, by = view["side"], view["by"]
    if not view["rows"]:
        click.echo(
            "nothing was vouched for yet: " + ("no lease has earned" if side == "earnings" else "no job has cost")
        )
        return
    head = PEERS[side] if by == "peer" else HEADS[by]
    # A terminal is narrow: what nothing stands in is left out, and one currency is named once.
    columns = [
        column for column in COLUMNS[side] if column in ALWAYS or any(_moves(row[column]) for row in view["rows"])
    ]
    currencies = {row["currency"] for row in view["rows"]}
    several = len(currencies) > 1
    rows = []
    for row in view["rows"]:
        key = plain(row[by], 64)
        shown = short_account(key) if by == "peer" else key[:12] if by == "job" else key
        name = (plain(row["name"], 40),) if by == "job" else ()
        rows.append(
            (shown or "(no job)", *name, *(row[column] for column in columns), row["currency"] if several else "")
        )
    blank = ("",) if by == "job" else ()
    rows += [
        ("total", *blank, *(total[column] for column in columns), total["currency"] if several else "")
        for total in view["totals"]
    ]
    if not several:
        click.echo(f"amounts in {plain(min(currencies), 160)}")
    heads = tuple(COLUMNS[side][column] for column in columns)
    print_table((head, *(("name",) if by == "job" else ()), *heads, "currency" if several else ""), rows)
    click.echo(WORDS)
    if side == "spend" and any(row["retries"] for row in view["rows"]):
        click.echo("lost leases cost = vouched for on leases whose shard then ran elsewhere; a part of vouched")
    click.echo(plain(view.get("promise", ""), 400))


STATEMENT_COMMANDS = (earnings, spend)
