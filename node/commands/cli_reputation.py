"""The commands about whom to deal with: reputation, block, unblock, blocked."""

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_options import print_json, with_data, with_json
from hansa.node.faults import OperatorError


@click.command()
@click.argument("account", required=False)
@click.option("--explain", is_flag=True, help="Show the whole arithmetic.")
@click.option("--ask", is_flag=True, help="First ask the account, and those whom this node dealt with.")
@click.option(
    "--check",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Work the figures of a file (made with --json) out again, from its signatures alone. Needs no daemon.",
)
@with_data
@with_json
def reputation(
    account: str | None, file: Path | None, data_dir: Path, *, explain: bool, ask: bool, as_json: bool
) -> int:
    """Show what both sides' signatures say of an account, as provider and as buyer, in this node's eyes."""
    if (account is None) == (file is None):
        raise click.UsageError("name an account, or a file with --check")
    if file is not None:
        return _check(file, as_json=as_json)
    from hansa.node.api.cli_client import DaemonClient

    assert account is not None
    with closing(DaemonClient(data_dir)) as daemon:
        answer = daemon.get(f"/v1/reputation/{_address(account)}", ask="1" if ask else "0")
    if as_json:
        print_json(answer)
        return 0
    from hansa.node.plain_text import plain

    for figure in answer["figures"]:
        _print_figure(figure, explain=explain)
    if answer.get("blocked") is not None:
        click.echo(f"blocked here: {plain(answer['blocked'], 256) or 'no reason given'}")
    return 0


def _address(text: str) -> str:
    """An account as the API wants it; a wrong checksum is a typing error, found before anything is asked."""
    from hansa.proto.errors import Malformed
    from hansa.proto.signing import checksum_address, parse_address

    try:
        return checksum_address(parse_address(text))
    except Malformed as fault:
        raise OperatorError(
            f"the account {fault.why}", "copy it from hansa providers --json, or hansa balance"
        ) from None


def _print_figure(figure: dict[str, Any], *, explain: bool) -> None:
    from hansa.node.commands.cli_tables import print_table
    from hansa.node.engine.standings import percent
    from hansa.node.plain_text import plain, short_account

    role, ppm = plain(figure.get("role"), 16), figure.get("ppm")
    shown = percent(ppm) if type(ppm) is int else "?"
    terms = figure.get("terms", [])
    if figure.get("proven_false"):
        click.echo(f"as {role:8} {shown}   it signed two documents that contradict each other")
        return
    own, others = sum(bool(term.get("own")) for term in terms), sum(not term.get("own") for term in terms)
    words = [f"by {others} whom this node knows"] if others else []
    words = ["by this node's own dealings", *words] if own else words
    click.echo(f"as {role:8} {shown}   {' and '.join(words) or 'nobody whom this node knows has dealt with it'}")
    if not explain:
        return
    rows = [
        (
            "this node" if term.get("own") else short_account(term.get("teller")),
            len(term.get("dealings", [])),
            term.get("told_good"),
            term.get("told_bad"),
            "all" if term.get("own") else f"half, of at most {term.get('known')}",
            term.get("good"),
            term.get("bad"),
        )
        for term in terms
    ]
    if rows:
        print_table(("dealt with", "channels", "vouched, faded", "unpaid, faded", "counts", "good", "bad"), rows)
    good, bad, currency = (plain(figure.get(key), 120) for key in ("good", "bad", "currency"))
    click.echo(f"  good / (good + bad + 1.00) = {good} / ({good} + {bad} + 1.000000) = {shown}   in {currency}")


def _check(file: Path, *, as_json: bool) -> int:
    from hansa.node.commands.reputation_check import check_file
    from hansa.node.plain_text import plain

    findings = check_file(file)
    if as_json:
        print_json({"figures": [{"role": role, "holds": holds, "what": what} for role, holds, what in findings]})
    else:
        for role, holds, what in findings:
            click.echo(f"{'holds' if holds else 'FALSE'}  as {plain(role, 16):8} {plain(what, 400)}")
    return 0 if all(holds for _, holds, _ in findings) else 1


@click.command()
@click.argument("account")
@click.option("--reason", default="", help="For your own eyes: nobody else is told.")
@with_data
def block(account: str, reason: str, data_dir: Path) -> None:
    """Have nothing more to do with an account: no bids to it, no tenders for it. What runs already goes on."""
    from hansa.node.api.cli_client import DaemonClient

    with closing(DaemonClient(data_dir)) as daemon:
        answer = daemon.post("/v1/blocked", {"account": _address(account), "reason": reason})
    click.echo(f"{answer['account']} is blocked. hansa unblock takes that back.")


@click.command()
@click.argument("account")
@with_data
def unblock(account: str, data_dir: Path) -> None:
    """Deal with an account again."""
    from hansa.node.api.cli_client import DaemonClient

    with closing(DaemonClient(data_dir)) as daemon:
        answer = daemon.post("/v1/blocked/remove", {"account": _address(account)})
    click.echo(f"{answer['account']} is not blocked any more.")


@click.command()
@with_data
@with_json
def blocked(data_dir: Path, as_json: bool) -> None:
    """List the accounts that this node has nothing to do with."""
    from hansa.node.api.cli_client import DaemonClient
    from hansa.node.commands.cli_tables import print_table

    with closing(DaemonClient(data_dir)) as daemon:
        answer = daemon.get("/v1/blocked")
    if as_json:
        print_json(answer)
    elif not answer["blocked"]:
        click.echo("nobody is blocked")
    else:
        print_table(("account", "reason"), [(entry.get("account"), entry.get("reason")) for entry in answer["blocked"]])


REPUTATION_COMMANDS = (reputation, block, unblock, blocked)
