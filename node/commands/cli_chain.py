"""The commands for chains: ``hansa chain dev``, ``hansa chain export-vouchers``, ``hansa watchtower``."""

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_options import print_json, with_data, with_json

TOKENS = "10000.00"


@click.group()
def chain() -> None:
    """Settle on a chain. The escrow contract is experimental and unaudited."""


@chain.command()
@click.option("--state", "room", type=click.Path(path_type=Path, file_okay=False), help="Where the chain is kept.")
@click.option("--port", default=8545, show_default=True, help="On 127.0.0.1.")
@click.option("--give", "accounts", multiple=True, metavar="ACCOUNT", help="Give an account tokens and coins for fees.")
@click.option(
    "--write",
    "nodes",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Put the node of a data directory on this chain, and give its account tokens and coins.",
)
@click.option("--tokens", default=TOKENS, show_default=True, help="How many tokens each account gets.")
@click.option("--block-time", default=1, show_default=True, help="Seconds between blocks.")
@click.option("--once", is_flag=True, help="Stop when all is set up: for scripts that start it again.")
@with_json
def dev(room: Path | None, as_json: bool, **wishes: Any) -> None:
    """Run a local chain with a token and the escrow on it, until Ctrl-C. Nothing on it is worth anything."""
    from hansa.node.chain.chain_room import Wishes, run_chain
    from hansa.node.settings.config import default_data_dir

    room = (room or default_data_dir() / "dev-chain").absolute()
    run_chain(room, Wishes(**wishes), say=print_json if as_json else _print_chain)


def _print_chain(facts: dict[str, Any]) -> None:
    click.echo(f"A local chain runs at {facts['url']} (chain {facts['chain_id']}); its state is in {facts['state']}.")
    click.echo(f"  token   {facts['token']}   TEST, 6 decimals; anybody may mint it")
    click.echo(f"  escrow  {facts['escrow']}   experimental and unaudited, here as everywhere")
    for account in facts["given"]:
        click.echo(f"  gave    {account}   {facts['tokens']} TEST and coins for fees")
    for data_dir in facts["written"]:
        click.echo(f"  put     {data_dir}   on this chain; start its node again")
    click.echo("For other nodes, into config.toml:\n")
    click.echo(facts["config"])


@chain.command("export-vouchers")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@with_data
@with_json
def export_vouchers(file: Path, data_dir: Path, as_json: bool) -> None:
    """Write the vouchers that this node holds to FILE, for a watchtower. There are no keys in it."""
    from hansa.node.api.cli_client import DaemonClient
    from hansa.node.chain.voucher_file import write_vouchers

    with closing(DaemonClient(data_dir)) as daemon:
        vouchers = daemon.get("/v1/vouchers")["vouchers"]
    write_vouchers(file, vouchers)
    if as_json:
        print_json({"file": str(file), "vouchers": len(vouchers)})
    else:
        click.echo(
            f"{len(vouchers)} vouchers are in {file}. Export again when there are newer ones: only these are claimed."
        )


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--rpc",
    "urls",
    multiple=True,
    required=True,
    metavar="URL",
    envvar="HANSA_WATCHTOWER_RPC",
    help="A node of the chain; or several. Everybody on the machine can read arguments: an address with a key in it "
    "belongs into the environment variable HANSA_WATCHTOWER_RPC (several with spaces between them).",
)
@click.option("--account", "keystore", type=click.Path(path_type=Path), help="A keystore whose account pays the fees.")
@click.option("--password-file", type=click.Path(path_type=Path), help="What opens the keystore.")
@click.option("--room", type=click.Path(path_type=Path), help="Where it writes down what it sends.")
@click.option("--dry-run", is_flag=True, help="Claim nothing, only say what it would claim.")
@click.option("--once", is_flag=True, help="Look once and end.")
@click.option("--poll-s", default=15.0, show_default=True, help="How often to look.")
@with_json
def watchtower(as_json: bool, **wishes: Any) -> None:
    """Claim the vouchers in FILES when somebody ends their channel: for providers that may be off for long.

    A FILE may be a directory: all of its *.vouchers are watched, new ones too. It needs no key of anybody it watches
    for, since a claim can pay only the payee. With a keystore, that account pays the fees.
    """
    from hansa.node.chain.watchtower import Watch, run_watchtower

    run_watchtower(Watch(**wishes), say=print_json if as_json else lambda facts: click.echo(facts["words"]))


CHAIN_COMMANDS = (chain, watchtower)
