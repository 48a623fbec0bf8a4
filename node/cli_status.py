"""``hansa node status``: what the running node is, what it lends, and which rule or fault holds what back."""

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from hansa.node.cli_options import print_json, with_data, with_json


@click.command()
@with_data
@with_json
def status(data_dir: Path, as_json: bool) -> None:
    """Show the running node: devices, who has them, and why one is not lent."""
    from hansa.node.cli_client import Daemon
    from hansa.node.cli_tables import print_chain, print_devices, print_leases
    from hansa.node.plain_text import fields_of, plain

    with closing(Daemon(data_dir)) as daemon:
        view: dict[str, Any] = daemon.get("/v1/node")
    if as_json:
        print_json(view)
        return
    sandbox = fields_of(view.get("sandbox"))
    click.echo(f"account    {plain(view.get('account'), 64)}")
    click.echo(f"peers      {len(view.get('peers', []))}")
    click.echo(f"lends      {_lends(view)}")
    click.echo(
        f"sandbox    {plain(sandbox.get('tier'), 32)}: {plain(sandbox.get('reason'), 200) or 'tested and sound'}"
    )
    click.echo(f"devices    {plain(view.get('inventory_note'), 500)}")
    if view.get("chain"):
        print_chain(fields_of(view["chain"]))
    for waiting in view.get("waiting_for_money", []):
        click.echo(f"MONEY      job {plain(waiting.get('job'), 64)[:12]}: {plain(waiting.get('warning'), 300)}")
    if view.get("devices"):
        print_devices(view["devices"])
    if view.get("leases"):
        click.echo()
        print_leases(view["leases"])


def _lends(view: dict[str, Any]) -> str:
    """Whether it lends. A provider without a device is none to anybody, whatever its config says."""
    if not view.get("provides"):
        return "nothing"
    return "yes" if view.get("devices") else "nothing: it has no device"
