"""The commands that show the market and the money: providers, balance."""

from contextlib import closing
from pathlib import Path

import click

from hansa.node.commands.cli_options import print_json, with_data, with_json


@click.command()
@with_data
@with_json
def providers(data_dir: Path, as_json: bool) -> None:
    """List the providers whose adverts stand: what they lend, where, and for how much."""
    from hansa.node.api.cli_client import DaemonClient
    from hansa.node.commands.cli_tables import print_providers

    with closing(DaemonClient(data_dir)) as daemon:
        answer = daemon.get("/v1/providers")
    if as_json:
        print_json(answer)
    else:
        print_providers(answer["providers"])


@click.command()
@click.option("--entries", "with_entries", is_flag=True, help="Show the ledger's entries too.")
@with_data
@with_json
def balance(with_entries: bool, data_dir: Path, as_json: bool) -> None:
    """Show what this node earned and spent, what it owes and is owed, and whether the books balance."""
    from hansa.node.api.cli_client import DaemonClient
    from hansa.node.commands.cli_tables import print_balance, print_entries

    with closing(DaemonClient(data_dir)) as daemon:
        answer = daemon.get("/v1/balance")
        entries = daemon.get("/v1/entries")["entries"] if with_entries else []
    if as_json:
        print_json(answer | {"ledger": entries} if with_entries else answer)
        return
    print_balance(answer)
    if with_entries:
        print_entries(entries)


MONEY_COMMANDS = (providers, balance)
