"""``hansa node price``: what this node's devices cost, and what each part of the owner's rule makes of it."""

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_options import print_json, with_data, with_json

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@click.command()
@click.option("--devices", default=1, show_default=True, help="For a lease of so many devices.")
@click.option("--model", default="", help="Of this model, as in H100. Default: those that would be given first.")
@click.option("--at", default="", metavar="TIME", help='At another time: 19:30, or "2026-12-24 19:30".')
@click.option(
    "--lease", type=click.Choice(["spot", "firm"]), default="spot", show_default=True, help="For a lease of this kind."
)
@with_data
@with_json
def price(data_dir: Path, as_json: bool, devices: int, **wish: str) -> None:
    """Show what the pricing rule says, factor by factor, and what your program says if you have one.

    A running daemon is asked, since what is leased makes a part of the price. Nothing is held or bid.
    """
    from hansa.node.api.cli_client import DaemonClient

    with closing(DaemonClient(data_dir)) as daemon:
        view = daemon.get("/v1/price", devices=str(devices), **wish)
    if as_json:
        print_json(view)
        return
    for line in price_lines(view):
        click.echo(line)


def price_lines(view: Any) -> list[str]:
    """The view for people."""
    from hansa.node.plain_text import plain

    minute = int(view["minute_of_week"])
    clock = f"{DAYS[minute // 1440]} {minute // 60 % 24:02}:{minute % 60:02}"
    lines = [f"{plain(view['price_per_hour'], 48)} {plain(view['currency'], 64)} for one device and one hour"]
    lines += [
        f"  rate         {plain(rate['rate_per_hour'], 48)}  {plain(rate['model'], 64)}" for rate in view["rates"]
    ]
    if len(view["rates"]) > 1:
        lines.append("               their mean is the price before all factors")
    lines += [
        f"  hour         x {_factor(view['hours_ppm'])}  at {clock} of your clock",
        f"  utilisation  x {_factor(view['utilisation_ppm'])}  with {int(view['leased_ppm']) / 10_000:g} % leased",
        f"  lease        x {_factor(view['lease_ppm'])}  {plain(view['lease'], 16)}",
    ]
    if view["at_floor"]:
        lines.append(f"  floor        {plain(view['floor_per_hour'], 48)}  is above what that comes to")
    program = view["program"]
    if program is not None:
        said = program["price_per_hour"] and f"{plain(program['price_per_hour'], 48)}, which is what would be bid"
        refused = f"declines: {plain(program['decline'], 200)}"
        said = said or (refused if program["decline"] else f"failed: {plain(program['fault'], 300)}")
        lines.append(f"  program      {said}")
        lines += [f"               {count} x {plain(name, 300)}" for name, count in sorted(program["counted"].items())]
    return lines


def _factor(ppm: int) -> str:
    return f"{int(ppm) / 1_000_000:g}"
