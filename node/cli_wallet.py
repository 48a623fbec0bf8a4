"""``hansa wallet``: accounts and what they sign. Keys and passwords come from files or a terminal, never as arguments.

Arguments stand in shell histories and in every process list. What a person types is not shown, and a new password is
asked for twice. Nothing here prints a key but ``export --raw-key``, which says what that means.
"""

import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from hansa.node.cli_options import Command, print_json, with_data, with_json

LONGEST_KEY_INPUT_BYTES = 4096
RAW_KEY_WARNING = (
    "this is the bare private key: whoever sees it owns the account, and nobody can ever take it back. Clear the screen"
)
_account = click.option("--account", metavar="NAME", help="A name, an address or a file. Default: the node's own.")
_password = click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Its password, in a file of mode 0600. Default: what opens the node's own, else you are asked.",
)


_signer = click.option(
    "--signer", metavar="URL", help="A signer outside, over JSON-RPC: http://127.0.0.1:8550, or unix:/path/of/its.ipc."
)


def _new_password_option(what: str) -> Callable[[Command], Command]:
    return click.option(
        "--new-password-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help=what
    )


@click.group()
def wallet() -> None:
    """Make and use accounts: keystore files that other wallets open too."""
    from hansa.node.secrecy import keep_memory_private

    keep_memory_private()


def _ask(prompt: str) -> str:
    """Ask on the terminal, hidden. Without one nothing is asked: the answer would be shown, or come from a pipe."""
    from hansa.node.faults import WalletLocked

    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        hint = "give --password-file FILE (mode 0600), or run this on a terminal"
        raise WalletLocked(f"there is no terminal to ask for it: {prompt.lower()}", hint) from None
    return getpass.getpass(f"{prompt}: ")


def _ask_new(prompt: str) -> str:
    from hansa.node.faults import WalletLocked

    first = _ask(prompt)
    if not first:
        raise WalletLocked("an empty password protects nothing", "choose one, or give --password-file FILE")
    if _ask(f"{prompt}, again") != first:
        raise WalletLocked("the two passwords differ", "nothing was changed: try again")
    return first


def _new_password(file: Path | None, prompt: str = "New password") -> str:
    from hansa.node.keys import read_password

    return read_password(file) if file is not None else _ask_new(prompt)


def _opened(data_dir: Path, wanted: str | None, password_file: Path | None) -> tuple[Any, Any, str]:
    """The account that is meant, its key, and the password that opened it."""
    from hansa.node.wallet import Wallet, known_password, open_account

    account = Wallet(data_dir).find(wanted)
    password = known_password(account, password_file)
    if password is None:
        password = _ask(f"Password of {account.name}")
    return account, open_account(account, password), password


def _view(account: Any) -> dict[str, Any]:
    from hansa.proto.signing import checksum_address

    address = None if account.address is None else checksum_address(account.address)
    return {"name": account.name, "address": address, "keystore": str(account.keystore)}


def _tell_made(account: Any, as_json: bool, verb: str) -> None:
    view = _view(account)
    if as_json:
        print_json(view)
        return
    click.echo(f"{verb} {view['address']}")
    click.echo(f"  name      {view['name']}")
    click.echo(f"  keystore  {view['keystore']} (mode 0600)")
    click.echo("Keep a copy of that file and its password, apart from each other: nobody else can restore them.")


@wallet.command()
@with_data
@with_json
@click.option("--account", "name", metavar="NAME", default="main", show_default=True, help="How to call it.")
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Its new password, in a file of mode 0600. Default: you are asked, twice.",
)
def new(data_dir: Path, as_json: bool, name: str, password_file: Path | None) -> None:
    """Make a new account."""
    from hansa.node.wallet import Wallet

    found = Wallet(data_dir)
    found.new_path(name)
    _tell_made(found.create(name, _new_password(password_file)), as_json, "Made")


def _refuse_arguments(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> None:
    if value:
        from hansa.node.faults import ConfigError

        hint = (
            "give it on standard input or when asked. If that was a key, it is in your shell's history: use it no more"
        )
        raise ConfigError("a key never stands on the command line, where others can read it", hint)


@wallet.command("import")
@with_data
@with_json
@click.option("--account", "name", metavar="NAME", default="main", show_default=True, help="How to call it.")
@click.option(
    "--keystore",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="Another program's keystore file. Default: a key of 64 hex digits, from standard input or asked for.",
)
@_password
@_new_password_option("The password it gets here, in a file of mode 0600. Default: you are asked, twice.")
@click.argument("nothing", nargs=-1, callback=_refuse_arguments, expose_value=False, metavar="")
def import_(
    *,
    data_dir: Path,
    as_json: bool,
    name: str,
    keystore: Path | None,
    password_file: Path | None,
    new_password_file: Path | None,
) -> None:
    """Take in an account: a key from standard input or the terminal, or another program's keystore."""
    from hansa.node.keys import read_password
    from hansa.node.wallet import Wallet, read_secret, secret_of_keystore

    found = Wallet(data_dir)
    found.new_path(name)
    if keystore is not None:
        password = read_password(password_file) if password_file else _ask(f"Password of {keystore.name}")
        secret = secret_of_keystore(keystore, password)
    else:
        # A single password file is the new account's: there is nothing else that it could open.
        new_password_file = new_password_file or password_file
        secret = read_secret(_key_input())
    _tell_made(found.create(name, _new_password(new_password_file), secret=secret), as_json, "Imported")


def _key_input() -> bytes:
    if sys.stdin.isatty():
        return _ask("Private key (64 hex digits)").encode(errors="replace")
    return sys.stdin.buffer.read(LONGEST_KEY_INPUT_BYTES)


@wallet.command("list")
@with_data
@with_json
@_signer
def list_(data_dir: Path, as_json: bool, signer: str | None) -> None:
    """List the accounts of this data directory, or those of a signer outside."""
    from hansa.node.wallet import Wallet

    if signer is not None:
        _list_outside(signer, as_json)
        return
    views = [_view(account) for account in Wallet(data_dir).accounts()]
    if as_json:
        print_json({"accounts": views})
    elif not views:
        click.echo(f"no accounts in {data_dir} yet: hansa wallet new")
    else:
        from hansa.node.cli_tables import print_table

        unknown = "not said by the file: hansa wallet address asks for its password"
        print_table(
            ("name", "address", "keystore"),
            [(view["name"], view["address"] or unknown, view["keystore"]) for view in views],
        )


def _list_outside(url: str, as_json: bool) -> None:
    import trio

    from hansa.node.external_signer import ExternalSigner
    from hansa.proto.signing import checksum_address

    async def ask() -> list[bytes]:
        outside = ExternalSigner(url, None)
        try:
            return await outside.accounts()
        finally:
            await outside.close()

    found = [checksum_address(each) for each in trio.run(ask)]
    if as_json:
        print_json({"accounts": [{"name": None, "address": each, "keystore": None} for each in found]})
    else:
        click.echo("\n".join(found) or "the signer shows no accounts: unlock one there")


@wallet.command()
@with_data
@with_json
@_account
@_password
def address(data_dir: Path, as_json: bool, account: str | None, password_file: Path | None) -> None:
    """Say an account's address. A file that does not say is opened with its password."""
    from hansa.node.wallet import Wallet
    from hansa.proto.signing import checksum_address

    found = Wallet(data_dir).find(account)
    known = found.address
    if known is None:
        _, key, _ = _opened(data_dir, account, password_file)
        known = key.address
    if as_json:
        print_json(_view(found) | {"address": checksum_address(known)})
    else:
        click.echo(checksum_address(known))


_typed = click.option(
    "--typed", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="EIP-712 typed data as JSON."
)


def _to_sign(text: str | None, typed: Path | None) -> Any:
    from hansa.node.wallet import read_typed, text_to_sign

    if (text is None) == (typed is None):
        raise click.UsageError("give either a TEXT or --typed FILE")
    return read_typed(typed) if typed is not None else text_to_sign(text or "")


@wallet.command()
@click.argument("text", required=False)
@_typed
@with_data
@with_json
@_account
@_password
@_signer
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
    from hansa.node.plain_text import plain
    from hansa.node.wallet import signature_text
    from hansa.proto.signing import checksum_address

    wanted = _to_sign(text, typed)
    if signer is None:
        if by is not None:
            raise click.UsageError("--address goes with --signer; an account here is named by --account")
        found, key, _ = _opened(data_dir, account, password_file)
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

    from hansa.node.external_signer import ExternalSigner
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


@wallet.command()
@click.argument("text", required=False)
@_typed
@click.option("--signature", required=True, metavar="0x...", help="65 bytes in hex.")
@click.option("--address", "wanted", metavar="0x...", help="Who should have signed it. Default: --account's, if given.")
@with_data
@with_json
@_account
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
    from hansa.node.wallet import signer_of_text
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
    from hansa.node.faults import ConfigError
    from hansa.node.wallet import Wallet

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


@wallet.command("change-password")
@with_data
@with_json
@_account
@_password
@_new_password_option("The new password, in a file of mode 0600. Default: you are asked, twice.")
def change_password_(
    *, data_dir: Path, as_json: bool, account: str | None, password_file: Path | None, new_password_file: Path | None
) -> None:
    """Give an account another password."""
    from hansa.node.keystore import change_password

    found, _, old = _opened(data_dir, account, password_file)
    change_password(found.keystore, old, _new_password(new_password_file))
    if as_json:
        print_json(_view(found))
        return
    click.echo(f"The password of {found.name} is another now. Copies of the old file still open with the old one.")
    if found.password_file is not None:
        click.echo(f"{found.password_file} still holds the old one: put the new one there, or the node cannot start.")


@wallet.command()
@with_data
@with_json
@_account
@_password
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="A file that is not there.")
@click.option("--raw-key", is_flag=True, help="The bare key instead of a keystore: to a file, or to a terminal.")
@_new_password_option("The copy's password, in a file of mode 0600. Default: you are asked, twice.")
def export(
    *,
    data_dir: Path,
    as_json: bool,
    account: str | None,
    password_file: Path | None,
    to: Path | None,
    raw_key: bool,
    new_password_file: Path | None,
) -> None:
    """Write an account to a keystore file of its own under a new password."""
    from hansa.node.wallet import export_keystore, export_secret

    if to is None and not (raw_key and sys.stdout.isatty()):
        _refuse_export(raw_key)
    found, key, _ = _opened(data_dir, account, password_file)
    if to is None:
        click.echo(RAW_KEY_WARNING, err=True)
        click.echo("0x" + key.secret().hex())
        return
    if raw_key:
        export_secret(key, to)
    else:
        export_keystore(key, to, _new_password(new_password_file, "Password of the copy"))
    if as_json:
        print_json(_view(found) | {"to": str(to), "raw_key": raw_key})
        return
    click.echo(f"Wrote {found.name} to {to} (mode 0600).")
    if raw_key:
        click.echo(RAW_KEY_WARNING.partition(". ")[0], err=True)


def _refuse_export(raw_key: bool) -> NoReturn:
    from hansa.node.faults import ConfigError

    if raw_key:
        raise ConfigError("a bare key goes to a terminal or to a file, never into a pipe", "give --to FILE")
    raise ConfigError("no file was given to write to", "give --to FILE, which must not exist yet")


WALLET_COMMANDS = (wallet,)
