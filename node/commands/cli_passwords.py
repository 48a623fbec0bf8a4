"""What opens an account: which one is meant, and its password from a file or from a terminal, never as an argument.

Arguments stand in shell histories and in every process list. What a person types is not shown, and a new password is
asked for twice.
"""

import getpass
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_options import Command

account_option = click.option(
    "--account", metavar="NAME", help="A name, an address or a file. Default: the node's own."
)
password_option = click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Its password, in a file of mode 0600. Default: what opens the node's own, else you are asked.",
)
signer_option = click.option(
    "--signer", metavar="URL", help="A signer outside, over JSON-RPC: http://127.0.0.1:8550, or unix:/path/of/its.ipc."
)


def new_password_option(what: str) -> Callable[[Command], Command]:
    """The file of a password that an account or a copy of it gets."""
    return click.option(
        "--new-password-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help=what
    )


def ask_hidden(prompt: str) -> str:
    """Ask on the terminal, hidden. Without one nothing is asked: the answer would be shown, or come from a pipe."""
    from hansa.node.faults import WalletLocked

    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        hint = "give --password-file FILE (mode 0600), or run this on a terminal"
        raise WalletLocked(f"there is no terminal to ask for it: {prompt.lower()}", hint) from None
    return getpass.getpass(f"{prompt}: ")


def ask_new_password(prompt: str) -> str:
    """Ask for a password that is to be, twice."""
    from hansa.node.faults import WalletLocked

    first = ask_hidden(prompt)
    if not first:
        raise WalletLocked("an empty password protects nothing", "choose one, or give --password-file FILE")
    if ask_hidden(f"{prompt}, again") != first:
        raise WalletLocked("the two passwords differ", "nothing was changed: try again")
    return first


def new_password(file: Path | None, prompt: str = "New password") -> str:
    """A password that is to be, from a file if there is one."""
    from hansa.node.chain.keys import read_password

    return read_password(file) if file is not None else ask_new_password(prompt)


def opened_account(data_dir: Path, wanted: str | None, password_file: Path | None) -> tuple[Any, Any, str]:
    """The account that is meant, its key, and the password that opened it."""
    from hansa.node.chain.wallet import Wallet, known_password, open_account

    account = Wallet(data_dir).find(wanted)
    password = known_password(account, password_file)
    if password is None:
        password = ask_hidden(f"Password of {account.name}")
    return account, open_account(account, password), password
