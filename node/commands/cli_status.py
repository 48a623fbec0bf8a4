"""``hansa node status``: what the running node is, what it lends, and which rule or fault holds what back."""

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_options import print_json, with_data, with_json


@click.command()
@with_data
@with_json
def status(data_dir: Path, as_json: bool) -> None:
    """Show the running node: devices, who has them, and why one is not lent."""
    from hansa.node.api.cli_client import DaemonClient
    from hansa.node.commands.cli_tables import print_chain, print_devices, print_leases
    from hansa.node.plain_text import fields_of, plain

    with closing(DaemonClient(data_dir)) as daemon:
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
    if told := clock_fault(view):
        click.echo(f"CLOCK      {told}")
    if view.get("chain"):
        print_chain(fields_of(view["chain"]))
    for waiting in view.get("waiting_for_money", []):
        click.echo(f"MONEY      job {plain(waiting.get('job'), 64)[:12]}: {plain(waiting.get('warning'), 300)}")
    if view.get("devices"):
        print_devices(view["devices"])
    if view.get("leases"):
        click.echo()
        print_leases(view["leases"])


def clock_fault(view: dict[str, Any]) -> str:
    """What is wrong with the machine's clock, in words; nothing if nothing is known to be."""
    from hansa.node.engine.steady_clock import CLOCK_ADVICE, JUMP_MS, KEEP_TIME
    from hansa.node.plain_text import fields_of

    clock = fields_of(view.get("clock"))
    ahead_ms, future_ms = (clock.get(name) for name in ("ahead_ms", "journal_in_future_ms"))
    if isinstance(ahead_ms, int) and ahead_ms > JUMP_MS:
        return f"it was set back by {ahead_ms // 1000} s while something runs. {KEEP_TIME}"
    if isinstance(future_ms, int) and future_ms > JUMP_MS:
        return f"the newest record of this node lies {future_ms // 1000} s in the future. {KEEP_TIME}"
    return f"{CLOCK_ADVICE} {KEEP_TIME}" if clock.get("peers_differ") is True else ""


def _lends(view: dict[str, Any]) -> str:
    """Whether it lends. A provider without a device is none to anybody, whatever its config says."""
    if not view.get("provides"):
        return "nothing"
    return "yes" if view.get("devices") else "nothing: it has no device"
