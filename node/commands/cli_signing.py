"""``hansa wallet sign`` and ``verify``: texts and typed data, by an account here or by a signer outside."""

from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_options import print_json, with_data, with_json
from hansa.node.commands.cli_passwords import account_option, opened_account, password_option, signer_option

_typed = click.option(
    "--typed", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="EIP-712 typed data as JSON."
)


def _to_sign(text: str | None, typed: Path | None) -> Any:
    from hansa.node.chain.wallet import read_typed, text_to_sign

    if (text is None) == (typed is None):
        raise click.UsageError("give either a TEXT or --typed FILE")
    return read_typed(typed) if typed is not None else text_to_sign(text or "")


@click.command()
@click.argument("text", required=False)
@_typed
@with_data
@with_json
@account_option
@password_option
@signer_option
@click.option("--address", "by", metavar="0x...", help="Which of the signer's accounts. Default: its only one.")
def sign(
    *,
    text: str | None,
    typed: Path | None,
    data_dir: Path,
    as_json: bool,
    account: str | None,
    password_file: Path | None,
    signer: str | None,
    by: str | None,
) -> None:
    """Sign a TEXT as wallets do (EIP-191), or typed data (EIP-712). Prints the signature."""
    from hansa.node.chain.wallet import signature_text
    from hansa.node.plain_text import plain
    from hansa.proto.signing import checksum_address

    wanted = _to_sign(text, typed)
    if signer is None:
        if by is not None:
            raise click.UsageError("--address goes with --signer; an account here is named by --account")
        found, key, _ = opened_account(data_dir, account, password_file)
        name, owner, signature = found.name, key.address, key.sign_digest(wanted.digest)
    else:
        if account is not None or password_file is not None:
            raise click.UsageError("--signer signs with a key that is not here: name its account with --address")
        name = "the signer"
        owner, signature = _signed_outside(signer, _address(by), wanted)
    if as_json:
        print_json(
            {
                "account": checksum_address(owner),
                "kind": wanted.kind,
                "digest": "0x" + wanted.digest.hex(),
                "signature": signature_text(signature),
            }
        )
        return
    click.echo(f"signed by {name} ({checksum_address(owner)}): {plain(wanted.what, 300)}", err=True)
    click.echo(signature_text(signature))


def _signed_outside(url: str, account: bytes | None, wanted: Any) -> tuple[bytes, bytes]:
    """The account and its signature, from a signer outside."""
    import trio

    from hansa.node.chain.external_signer import ExternalSigner
    from hansa.node.plain_text import plain

    async def ask() -> tuple[bytes, bytes]:
        outside = ExternalSigner(url, account)
        try:
            owner = await outside.account()
            click.echo(f"asking the signer: {plain(wanted.what, 300)}. It may want you to confirm.", err=True)
            return owner, await outside.sign(wanted)
        finally:
            await outside.close()

    return trio.run(ask)


@click.command()
@click.argument("text", required=False)
@_typed
@click.option("--signature", required=True, metavar="0x...", help="65 bytes in hex.")
@click.option("--address", "wanted", metavar="0x...", help="Who should have signed it. Default: --account's, if given.")
@with_data
@with_json
@account_option
def verify(
    *,
    text: str | None,
    typed: Path | None,
    signature: str,
    wanted: str | None,
    data_dir: Path,
    as_json: bool,
    account: str | None,
) -> int:
    """Say who signed a TEXT or typed data; with an address, exit code 1 if it was somebody else."""
    from hansa.node.chain.wallet import signer_of_text
    from hansa.proto.signing import checksum_address

    to_sign = _to_sign(text, typed)
    expected = _expected_signer(data_dir, wanted, account)
    signer = signer_of_text(to_sign, signature)
    is_right = expected is None or signer == expected
    if as_json:
        print_json({"signer": checksum_address(signer), "as_expected": None if expected is None else is_right})
    else:
        click.echo(f"signed by {checksum_address(signer)}" + ("" if is_right else ", NOT by the one who should have"))
    return 0 if is_right else 1


def _expected_signer(data_dir: Path, wanted: str | None, account: str | None) -> bytes | None:
    from hansa.node.chain.wallet import Wallet
    from hansa.node.faults import ConfigError

    if wanted is not None or account is None:
        return _address(wanted)
    found = Wallet(data_dir).find(account)
    if found.address is None:
        raise ConfigError(f"{found.keystore} does not say its address", "give --address 0x...")
    return found.address


def _address(wanted: str | None) -> bytes | None:
    from hansa.node.faults import ConfigError
    from hansa.proto.errors import Malformed
    from hansa.proto.signing import parse_address

    if wanted is None:
        return None
    try:
        return parse_address(wanted)
    except Malformed as fault:
        raise ConfigError(f"--address {fault.why}", "give 0x and 40 hex digits") from None


SIGNING_COMMANDS = (sign, verify)
