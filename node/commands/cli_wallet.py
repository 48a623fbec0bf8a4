"""``hansa wallet``: accounts. Keys and passwords come from files or a terminal, never as arguments.

Nothing here prints a key but ``export --raw-key``, which says what that means.
"""

import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from hansa.node.commands.cli_deposit import DEPOSIT_COMMANDS
from hansa.node.commands.cli_options import print_json, with_data, with_json
from hansa.node.commands.cli_passwords import (
    account_option,
    ask_hidden,
    new_password,
    new_password_option,
    opened_account,
    password_option,
    signer_option,
)
from hansa.node.commands.cli_signing import SIGNING_COMMANDS

LONGEST_KEY_INPUT_BYTES = 4096
RAW_KEY_WARNING = (
    "this is the bare private key: whoever sees it owns the account, and nobody can ever take it back. Clear the screen"
)


@click.group()
def wallet() -> None:
    """Make and use accounts: keystore files that other wallets open too."""
    from hansa.node.chain.secrecy import keep_memory_private

    keep_memory_private()


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
    from hansa.node.chain.wallet import Wallet

    found = Wallet(data_dir)
    found.new_path(name)
    _tell_made(found.create(name, new_password(password_file)), as_json, "Made")


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
@password_option
@new_password_option("The password it gets here, in a file of mode 0600. Default: you are asked, twice.")
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
    from hansa.node.chain.keys import read_password
    from hansa.node.chain.wallet import Wallet, read_secret, secret_of_keystore

    found = Wallet(data_dir)
    found.new_path(name)
    if keystore is not None:
        password = read_password(password_file) if password_file else ask_hidden(f"Password of {keystore.name}")
        secret = secret_of_keystore(keystore, password)
    else:
        # A single password file is the new account's: there is nothing else that it could open.
        new_password_file = new_password_file or password_file
        secret = read_secret(_key_input())
    _tell_made(found.create(name, new_password(new_password_file), secret=secret), as_json, "Imported")


def _key_input() -> bytes:
    if sys.stdin.isatty():
        return ask_hidden("Private key (64 hex digits)").encode(errors="replace")
    return sys.stdin.buffer.read(LONGEST_KEY_INPUT_BYTES)


@wallet.command("list")
@with_data
@with_json
@signer_option
def list_(data_dir: Path, as_json: bool, signer: str | None) -> None:
    """List the accounts of this data directory, or those of a signer outside."""
    from hansa.node.chain.wallet import Wallet

    if signer is not None:
        _list_outside(signer, as_json)
        return
    views = [_view(account) for account in Wallet(data_dir).accounts()]
    if as_json:
        print_json({"accounts": views})
    elif not views:
        click.echo(f"no accounts in {data_dir} yet: hansa wallet new")
    else:
        from hansa.node.commands.cli_tables import print_table

        unknown = "not said by the file: hansa wallet address asks for its password"
        print_table(
            ("name", "address", "keystore"),
            [(view["name"], view["address"] or unknown, view["keystore"]) for view in views],
            whole=("address",),
        )


def _list_outside(url: str, as_json: bool) -> None:
    import trio

    from hansa.node.chain.external_signer import ExternalSigner
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
@account_option
@password_option
def address(data_dir: Path, as_json: bool, account: str | None, password_file: Path | None) -> None:
    """Say an account's address. A file that does not say is opened with its password."""
    from hansa.node.chain.wallet import Wallet
    from hansa.proto.signing import checksum_address

    found = Wallet(data_dir).find(account)
    known = found.address
    if known is None:
        _, key, _ = opened_account(data_dir, account, password_file)
        known = key.address
    if as_json:
        print_json(_view(found) | {"address": checksum_address(known)})
    else:
        click.echo(checksum_address(known))


@wallet.command("change-password")
@with_data
@with_json
@account_option
@password_option
@new_password_option("The new password, in a file of mode 0600. Default: you are asked, twice.")
def change_password_(
    *, data_dir: Path, as_json: bool, account: str | None, password_file: Path | None, new_password_file: Path | None
) -> None:
    """Give an account another password."""
    from hansa.node.chain.keystore import change_password

    found, _, old = opened_account(data_dir, account, password_file)
    change_password(found.keystore, old, new_password(new_password_file))
    if as_json:
        print_json(_view(found))
        return
    click.echo(f"The password of {found.name} is another now. Copies of the old file still open with the old one.")
    if found.password_file is not None:
        click.echo(f"{found.password_file} still holds the old one: put the new one there, or the node cannot start.")


@wallet.command()
@with_data
@with_json
@account_option
@password_option
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="A file that is not there.")
@click.option("--raw-key", is_flag=True, help="The bare key instead of a keystore: to a file, or to a terminal.")
@new_password_option("The copy's password, in a file of mode 0600. Default: you are asked, twice.")
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
    from hansa.node.chain.wallet import export_keystore, export_secret

    if to is None and not (raw_key and sys.stdout.isatty()):
        _refuse_export(raw_key)
    found, key, _ = opened_account(data_dir, account, password_file)
    if to is None:
        click.echo(RAW_KEY_WARNING, err=True)
        click.echo("0x" + key.secret().hex())
        return
    if raw_key:
        export_secret(key, to)
    else:
        export_keystore(key, to, new_password(new_password_file, "Password of the copy"))
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


for command in (*SIGNING_COMMANDS, *DEPOSIT_COMMANDS):
    wallet.add_command(command)

WALLET_COMMANDS = (wallet,)
