"""``hansa node reclaim`` and ``hansa node return``: devices taken back from the market, and lent again."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import click

from hansa.node.commands.cli_options import print_json, with_data, with_json

DIGITS = 12
Command = TypeVar("Command", bound=Callable[..., Any])


def _with_devices(command: Command) -> Command:
    """Give a command ``--device ID`` and ``--all``."""
    one = click.option("--device", "devices", multiple=True, metavar="ID", help="The beginning of an id; repeatable.")
    return one(click.option("--all", "everything", is_flag=True, help="All devices of this node.")(command))


@click.command()
@_with_devices
@click.option("--notice", help="How long runs may still take, as in 90s or 5min. Default: what your bids promise.")
@click.option("--why", default="", help="Your reason, in a few words. Buyers read it.")
@with_data
@with_json
def reclaim(data_dir: Path, as_json: bool, notice: str | None, why: str, **chosen: Any) -> None:
    """Take devices back: nobody gets them any more, and whoever computes on them leaves at the next checkpoint.

    A notice shorter than your bids promise breaks that promise, and buyers count it against you. Devices stay yours,
    also over a restart, until hansa node return.
    """
    from hansa.node.commands.cli_tables import clock

    notice_ms = _notice_ms(notice)
    answer = _order("withdraw", data_dir, {"notice_ms": notice_ms, "why": why}, **chosen)
    if as_json:
        print_json(answer)
        return
    _print_devices(answer)
    for run in answer["leaving"]:
        at = clock(run["by_ms"])
        broken = "; that is less notice than its bid promised" if run["early"] else ""
        click.echo(f"the run of lease {str(run['lease'])[:DIGITS]} leaves by {at}{broken}")


@click.command("return")
@_with_devices
@with_data
@with_json
def give_back(data_dir: Path, as_json: bool, **chosen: Any) -> None:
    """Lend devices again that hansa node reclaim took back. A run that was told to leave still leaves."""
    answer = _order("return", data_dir, {}, **chosen)
    if as_json:
        print_json(answer)
        return
    _print_devices(answer)


def _notice_ms(notice: str | None) -> int | None:
    from hansa.market.value_forms import duration_ms

    if notice is None:
        return None
    try:
        return duration_ms(notice)
    except ValueError as fault:
        raise click.UsageError(f"--notice {fault}") from None


def _order(what: str, data_dir: Path, more: dict[str, Any], *, devices: tuple[str, ...], everything: bool) -> Any:
    if bool(devices) == everything:
        raise click.UsageError("name devices with --device ID, or say --all")
    from hansa.node.api.cli_client import DaemonClient

    with closing(DaemonClient(data_dir)) as daemon:
        return daemon.post(f"/v1/devices/{what}", {"devices": list(devices), **more})


def _print_devices(answer: Any) -> None:
    from hansa.node.plain_text import plain

    for device in answer["devices"]:
        why = f": {plain(device['withheld'], 500)}" if device["withheld"] else ""
        click.echo(f"device {plain(device['id'], 64)[:DIGITS]} is {plain(device['state'], 16)}{why}")


DEVICE_COMMANDS = (reclaim, give_back)
