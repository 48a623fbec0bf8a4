"""``hansa ledger``: check what this node's money rests on, and other people's, offline.

Exit codes: 0 everything holds, 1 something does not, 2 it could not be looked at.
"""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hansa.node.commands.cli_options import print_json, with_data, with_json

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
    from hansa.node.ledger.ledger_verify import HEADS_FILE, LEDGER_FILE, heads_of, verify_file

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


@ledger.command()
@with_data
@with_json
def heads(data_dir: Path, as_json: bool) -> None:
    """List the signed tree heads that this node keeps: its own newest, and those of its counterparties.

    Copy heads.sqlite to whoever wants to check one of these ledgers against them: hansa ledger verify --heads.
    """
    from hansa.node.ledger.head_store import HeadStore
    from hansa.node.ledger.ledger_verify import HEADS_FILE
    from hansa.proto.signing import checksum_address

    store = HeadStore(_existing(data_dir / HEADS_FILE), read_only=True)
    found: list[dict[str, Any]] = [
        {
            "ledger": checksum_address(kept.head.document.log_id[12:]),
            "size": kept.head.document.size,
            "root": kept.head.document.root.hex(),
            "at_ms": kept.head.document.timestamp_ms,
            "signature": kept.head.signature.hex(),
            "consistent": kept.proved,
        }
        for kept in store.heads()
    ]
    store.close()
    if as_json:
        print_json({"heads": found})
        return
    for head in found:
        waits = "" if head["consistent"] else "   not yet shown to continue what was known before"
        click.echo(f"{head['ledger']}  {head['size']:>9} records  root {head['root'][:16]}{waits}")
    if not found:
        click.echo("None yet: they come with the first receipts and vouchers.")


@ledger.command()
@click.option(
    "--save",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write each proof into a file of its own here, for others to check.",
)
@with_data
@with_json
def proofs(directory: Path | None, data_dir: Path, as_json: bool) -> None:
    """List the proofs of lies that this node found: two signed objects that contradict each other."""
    from hansa.market.equivocation import in_words, proof_id
    from hansa.node.ledger.head_store import HeadStore
    from hansa.node.ledger.ledger_verify import HEADS_FILE
    from hansa.proto.codec import encode
    from hansa.proto.signing import checksum_address

    store = HeadStore(_existing(data_dir / HEADS_FILE), read_only=True)
    found: list[dict[str, Any]] = []
    for account, proof, found_ms in store.proofs():
        view = {"account": checksum_address(account), "words": in_words(proof), "found_ms": found_ms}
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            file = directory / f"{proof_id(proof).hex()[:24]}.proof"
            file.write_bytes(encode(proof))
            view["file"] = str(file)
        found.append(view)
    store.close()
    if as_json:
        print_json({"proofs": found})
        return
    for view in found:
        click.echo(f"{view['account']} {view['words']}" + (f"   {view['file']}" if "file" in view else ""))
    if not found:
        click.echo("None: nobody was found to have signed two things that contradict each other.")


@ledger.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@with_json
def check(file: Path, as_json: bool) -> int:
    """Check a proof of a lie, from its signatures alone: FILE is what hansa ledger proofs --save wrote.

    Needs no node, no network and no trust in whoever made the file. Exits with 0 if it proves a lie, with 1 if not.
    """
    from hansa.market.equivocation import Equivocation, accused, in_words
    from hansa.node.faults import OperatorError
    from hansa.proto.codec import decode
    from hansa.proto.errors import ProtocolError
    from hansa.proto.signing import checksum_address

    try:
        data = file.read_bytes()
    except OSError as fault:
        raise OperatorError(f"cannot read {file}: {fault.strerror}", "name a file of hansa ledger proofs") from None
    try:
        proof: Equivocation = decode(data, Equivocation, limit_bytes=1 << 20, oldest=1)
        account = checksum_address(accused(proof))
    except ProtocolError as fault:
        if as_json:
            print_json({"proves": False, "why": str(fault)})
        else:
            click.echo(f"It proves nothing: {fault}.")
        return 1
    if as_json:
        print_json({"proves": True, "account": account, "words": in_words(proof)})
    else:
        click.echo(f"It proves that {account} {in_words(proof)}.")
    return 0


@ledger.command()
@with_data
@with_json
def debts(data_dir: Path, as_json: bool) -> None:
    """Show who owes this node and whom it owes, within which credit lines, and what was paid and netted."""
    from hansa.node.api.cli_client import DaemonClient
    from hansa.node.plain_text import plain

    with closing(DaemonClient(data_dir)) as daemon:
        answer = daemon.get("/v1/debts")
    if as_json:
        print_json(answer)
        return
    for view in answer["debts"]:
        _print_debt(view, view.get("currency", answer["currency"]))
    click.echo(plain(answer["promise"], 600) if answer["debts"] else "Nobody owes anything, either way.")


@ledger.command()
@click.argument("account")
@click.argument("amount")
@click.option("--how", required=True, help="By what means you were paid, and a reference: the debtor sees it.")
@click.option("--ahead", is_flag=True, help="It paid more than it owes.")
@with_data
@with_json
def paid(account: str, amount: str, how: str, data_dir: Path, *, ahead: bool, as_json: bool) -> None:
    """Say that ACCOUNT has paid AMOUNT of what it owes this node, outside of Hansa. It cannot be taken back.

    Hansa moves no money on the ledger. You sign what reached you, the debtor is told, and both books take it off.
    """
    from hansa.node.api.cli_client import DaemonClient

    body = {"account": account, "amount": amount, "how": how, "ahead": ahead}
    with closing(DaemonClient(data_dir)) as daemon:
        answer = daemon.post("/v1/debts/paid", body)
    if as_json:
        print_json(answer)
    else:
        click.echo(f"Signed. {answer['account']} paid {answer['paid_to_us']} in all, and owes {answer['owes_us']} now.")


@ledger.command()
@click.argument("account")
@click.argument("limit", required=False)
@with_data
@with_json
def credit(account: str, limit: str | None, data_dir: Path, as_json: bool) -> None:
    """Let ACCOUNT owe this node up to LIMIT; without LIMIT as much as everybody (settlement.credit_limit).

    A lower limit bounds what comes. Where leases live, the buyer relied on the larger one: if one of them now ends for
    want of credit, that is this node's fault, and of a firm one it loses the penalty.
    """
    from hansa.node.api.cli_client import DaemonClient

    with closing(DaemonClient(data_dir)) as daemon:
        answer = daemon.post("/v1/debts/credit", {"account": account, "limit": limit})
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{answer['account']} may owe {answer['may_owe_us']}, and owes {answer['owes_us']} now.")


def _existing(path: Path) -> Path:
    from hansa.node.faults import OperatorError

    if not path.is_file():
        raise OperatorError(f"there is no {path}", "has this node run? name its directory with --data")
    return path


def _print_debt(view: dict[str, Any], currency: str) -> None:
    from hansa.node.plain_text import plain

    click.echo(view["account"])
    if {view["owes_us"], view["may_owe_us"], view["paid_to_us"]} - {NOTHING, None}:
        limit = f" of at most {view['may_owe_us']}" if view["may_owe_us"] is not None else ""
        click.echo(f"  owes us {view['owes_us']} {currency}{limit}, paid {view['paid_to_us']} so far")
    most = f" of at most {view['we_may_owe']}" if view["we_may_owe"] is not None else ""
    click.echo(
        f"  we owe  {view['we_owe']} {currency}{most}, paid {view['paid_by_us']} so far, netted {view['netted']}"
    )
    if view["last_paid_how"]:
        click.echo(f"  last payment: {plain(view['last_paid_how'], 256)}")
    if view["proven"]:
        click.echo(f"  PROVEN: {plain(view['proven'], 256)}; refused")


NOTHING = "0.000000"
LEDGER_COMMANDS = (ledger,)
