"""``hansa receipt``: a receipt with its whole proof, and the check of one that somebody else hands over."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_options import with_data, with_json

LONGEST_BUNDLE_BYTES = 1 << 20


@click.command()
@click.argument("wanted", metavar="[ID]", required=False)
@click.option(
    "--verify",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True),
    metavar="FILE",
    help="Check a bundle that somebody hands you (- is standard input). Needs no node and no network.",
)
@with_data
@with_json
def receipt(wanted: str | None, file: Path | None, data_dir: Path, as_json: bool) -> int:
    """Show the newest receipt of a channel, lease or job (ID: its first digits), with its whole proof.

    With --json it is a bundle that anybody can check: hansa receipt --verify FILE.
    """
    if (wanted is None) == (file is None):
        raise click.UsageError("give either an ID or --verify FILE")
    bundle = _find(data_dir, wanted) if wanted is not None else _read(file)
    from hansa.market.receipt_proof import findings, not_proved

    found = findings(bundle)
    is_sound = all(each.holds for each in found)
    if as_json and wanted is not None:
        from hansa.node.ledger.receipt_files import bundle_json

        click.echo(json.dumps(bundle_json(bundle), indent=1))
    elif as_json:
        view = [{"holds": each.holds, "what": each.words} for each in found]
        click.echo(json.dumps({"holds": is_sound, "findings": view, "not_proved": not_proved(bundle)}))
    else:
        _print(bundle)
        _print_findings(found, not_proved(bundle))
    return 0 if is_sound else 1


def _find(data_dir: Path, wanted: str) -> Any:
    from hansa.node.api.statements import LEDGER_NAME
    from hansa.node.ledger.receipt_files import find_receipt

    return find_receipt(data_dir / LEDGER_NAME, wanted)


def _read(file: Path | None) -> Any:
    from hansa.node.faults import ConfigError
    from hansa.node.ledger.receipt_files import read_bundle
    from hansa.proto.errors import ProtocolError

    with click.open_file(str(file), "rb") as stream:
        content = stream.read(LONGEST_BUNDLE_BYTES + 1)
    try:
        return read_bundle(content)
    except ProtocolError as fault:
        hint = "a bundle is what hansa receipt ID --json prints, unchanged"
        raise ConfigError(f"{file} is no receipt's bundle: {fault}", hint) from None


def _print(bundle: Any) -> None:
    from hansa.node.commands.cli_tables import print_table
    from hansa.node.plain_text import plain
    from hansa.proto.signing import checksum_address
    from hansa.proto.units import format_amount

    said, currency = bundle.receipt.document, plain(bundle.currency, 160)
    click.echo(f"receipt {said.seq} of channel {said.channel_id.hex()}")
    click.echo(f"  buyer     {checksum_address(bundle.config.payer)}")
    click.echo(f"  provider  {checksum_address(bundle.config.payee)}")
    click.echo(f"  period    {_time(said.period_start_ms)} to {_time(said.period_end_ms)}")
    click.echo(f"  total     {format_amount(said.amount_total)} {currency} since the channel began")
    click.echo(f"  signed    0x{bundle.receipt.signature.hex()}")
    for voucher in bundle.voucher:
        click.echo(f"  voucher   {format_amount(voucher.document.cumulative)}, signed 0x{voucher.signature.hex()}")
    for close in bundle.close:
        click.echo(f"  close     {format_amount(close.by_payer.document.cumulative)}, signed by both")
    for logged in bundle.logged:
        head = logged.head.document
        click.echo(f"  ledger    record {logged.position} of {head.size}, root 0x{head.root.hex()}")
    rows = [
        (
            leaf.line.lease.hex()[:12],
            leaf.line.shard,
            f"{leaf.line.device_ms / 1000:.1f}",
            format_amount(leaf.line.amount),
            leaf.evidence.steps,
            leaf.evidence.rounds,
            leaf.evidence.checkpoint.hex()[:12] if any(leaf.evidence.checkpoint) else "",
            plain(leaf.evidence.tier, 16),
        )
        for leaf in bundle.leaves
    ]
    print_table(("lease", "shard", "device seconds", "amount", "steps", "rounds", "checkpoint", "isolation"), rows)
    if rows:
        click.echo("steps: as the job reported them, and one more for a run that ended well or left at a checkpoint")


def _time(at_ms: int) -> str:
    if at_ms >= 1 << 47:
        return f"{at_ms} ms"
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _print_findings(found: list[Any], lacking: list[str]) -> None:
    from hansa.node.plain_text import plain

    click.echo("what the signatures prove:")
    for each in found:
        click.echo(f"  {'ok ' if each.holds else 'BAD'} {plain(each.words, 300)}")
    click.echo("what they do not prove:")
    for words in lacking:
        click.echo(f"  -   {words}")


RECEIPT_COMMANDS = (receipt,)
