"""``hansa net``: how others reach this node, and what it thinks of each peer."""

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_options import print_json, with_data, with_json

SHORT = 10


@click.group()
def net() -> None:
    """Show how this node stands in the network."""


@net.command("status")
@with_data
@with_json
def net_status(data_dir: Path, as_json: bool) -> None:
    """Show how others reach this node, by whose word, and what could be done."""
    from hansa.node.api.cli_client import DaemonClient
    from hansa.node.plain_text import plain

    with closing(DaemonClient(data_dir)) as daemon:
        view: dict[str, Any] = daemon.get("/v1/net")
    if as_json:
        print_json(view)
        return
    click.echo(f"reached    {plain(view.get('reached'), 32)}")
    click.echo(f"peers      {view.get('live_direct', 0)} direct, {view.get('live_relayed', 0)} through relays")
    click.echo(f"AutoNAT    {plain(view.get('autonat'), 32)}")
    for each in view.get("opinions", []):
        click.echo(f"  {plain(each.get('peer_id'), 64)[-SHORT:]} of {plain(each.get('network'), 64)}: {_opinion(each)}")
    for each in view.get("relays", []):
        click.echo(
            f"relay      {plain(each.get('peer_id'), 64)}: a place for {int(each.get('left_s', 0)) // 60} more minutes"
        )
    click.echo(f"UPnP       {plain(view['upnp'], 300) if view.get('upnp') else 'not asked'}")
    if view.get("relaying"):
        here = view["relaying"]
        click.echo(f"relaying   {here['places']} places, {here['circuits']} circuits, {here['bytes']:,} bytes so far")
    for address in view.get("addresses", []):
        click.echo(f"told       {plain(address, 300)}")
    for words in view.get("advice", []):
        click.echo(f"note       {plain(words, 300)}")


def _opinion(view: dict[str, Any]) -> str:
    from hansa.node.plain_text import plain

    seen = plain(view["seen_at"], 80) if view.get("seen_at") else "an address that it does not say"
    if not view.get("dialled"):
        return f"sees us at {seen}, did not dial back"
    if not view.get("reached_at"):
        return f"sees us at {seen}, could not reach us"
    return f"sees us at {seen}, reached us at {plain(view['reached_at'], 120)}"


@net.command("peers")
@with_data
@with_json
def net_peers(data_dir: Path, as_json: bool) -> None:
    """Show what this node thinks of each peer: phase, path, strikes and their reasons, addresses."""
    from hansa.node.api.cli_client import DaemonClient
    from hansa.node.plain_text import plain

    with closing(DaemonClient(data_dir)) as daemon:
        view: dict[str, Any] = daemon.get("/v1/net/peers")
    if as_json:
        print_json(view)
        return
    order = {"live": 0, "quiet": 1, "new": 2, "barred": 3}
    for peer in sorted(view.get("peers", []), key=lambda peer: (order.get(peer.get("phase"), 9), peer.get("peer_id"))):
        path = f" {plain(peer['path'], 16)}" if peer.get("path") else ""
        account = plain(peer["account"], 64) if peer.get("account") else ""
        click.echo(f"{plain(peer.get('peer_id'), 64)}  {plain(peer.get('phase'), 16)}{path}  {account}".rstrip())
        if peer.get("barred_for_ms"):
            click.echo(f"  barred for {peer['barred_for_ms'] // 1000} s more: {plain(peer.get('why'), 200)}")
        elif peer.get("strikes"):
            click.echo(f"  {peer['strikes']} strikes that count")
        if peer.get("whys"):
            click.echo(f"  strikes were for: {', '.join(plain(why, 100) for why in peer['whys'])}")
        for address in peer.get("addresses", []):
            click.echo(f"  {plain(address, 300)}")
