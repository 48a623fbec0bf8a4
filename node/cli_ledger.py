"""``hansa ledger``: check what this node's money rests on, and other people's, offline.

Exit codes: 0 everything holds, 1 something does not, 2 it could not be looked at.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hansa.node.cli_options import print_json, with_data, with_json

if TYPE_CHECKING:
    from hansa.market.ledger_check import Report

IOU = (
    "The ledger is a list of signed debts: an IOU within a credit limit that the provider signed."
    " Nobody guarantees that it is ever paid."
)


@click.group()
def ledger() -> None:
    """Check the books from signatures alone; record payments; show proofs of lies.

    The ledger is an IOU within a signed credit limit: what is proved is what somebody owes, not that they pay.
    """


@ledger.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--heads",
    "heads_files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Heads that somebody else keeps: another node's heads.sqlite, or a copy. May be given again.",
)
@with_data
@with_json
def verify(file: Path | None, heads_files: tuple[Path, ...], data_dir: Path, as_json: bool) -> int:
    """Replay a ledger from its signatures and say what holds: this node's, or FILE, a copy of anybody's.

    Needs no daemon and no network, and changes nothing. Exits with 0 if everything holds, with 1 if something does
    not, and with 2 if it is no ledger. A file that was rolled back to an older state as a whole is only found out by
    heads from elsewhere: the node's own last one, which lies beside its ledger, and those that other nodes keep.
    """
    from hansa.node.ledger_verify import HEADS_FILE, LEDGER_FILE, heads_of, verify_file

    path = data_dir / LEDGER_FILE if file is None else file
    own_heads = data_dir / HEADS_FILE
    files = [*heads_files, *([own_heads] if file is None and own_heads.is_file() else [])]
    report = verify_file(path, heads=heads_of(files))
    if as_json:
        print_json(_report_json(path, report))
    else:
        _print_report(path, report)
    return 0 if report.holds else 1


def _report_json(path: Path, report: "Report") -> dict[str, Any]:
    fault = report.first_fault
    return {
        "file": str(path),
        "holds": report.holds,
        "owner": "0x" + report.owner.hex() if report.owner else None,
        "records": report.records,
        "documents": report.documents,
        "signatures": report.signatures,
        "root": report.root.hex(),
        "first_fault": fault.position if fault is not None else None,
        "findings": [
            {"name": found.name, "holds": found.holds, "words": found.words, "record": found.position}
            for found in report.findings
        ],
        "promise": IOU,
    }


def _print_report(path: Path, report: "Report") -> None:
    from hansa.node.plain_text import plain
    from hansa.proto.signing import checksum_address

    whose = f" of {checksum_address(report.owner)}" if report.owner else ""
    click.echo(f"{path}: the ledger{whose}, {report.records} records, {report.documents} of them signed documents")
    for found in report.findings:
        click.echo(f"{'ok ' if found.holds else 'BAD'}  {found.name:10} {plain(found.words)}")
    fault = report.first_fault
    if fault is None:
        click.echo("Everything holds. " + IOU)
    elif fault.position:
        click.echo(f"It does not hold. The first place that is wrong is record {fault.position}.")
    else:
        click.echo("It does not hold.")


LEDGER_COMMANDS = (ledger,)
