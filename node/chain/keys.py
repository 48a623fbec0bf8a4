"""The node's own key, and the password that opens its account's keystore (``hansa.node.chain.keystore``).

The node key is 32 bytes of hex in a 0600 file: the daemon needs it unattended, and what it may do is bounded by the
account's binding.

Secrets come from files or from systemd's credential directory, never from the environment or the command line: both
can be read by other processes, and end up in shell histories and crash reports.
"""

import re
import secrets
from pathlib import Path
from typing import Final

from hansa.node.faults import ConfigError, WalletLocked
from hansa.node.secret_files import read_credential, read_file, write_new_secret
from hansa.proto.signing import SECRET_BYTES, SigningKey

NODE_KEY_CREDENTIAL: Final = "node-key"
PASSWORD_CREDENTIAL: Final = "account-password"  # noqa: S105  # the credential's name

_NODE_KEY_TEXT = re.compile(rb"[0-9a-f]{64}\n?")

GENERATED_PASSWORD_BYTES: Final = 32


def create_node_key(path: Path) -> SigningKey:
    """Make a new node key and write it to a file that must not exist yet.

    Raises:
        ConfigError: the file exists, or its directory is not private or not writable.
    """
    secret = secrets.token_bytes(SECRET_BYTES)
    key = SigningKey(secret)
    write_new_secret(path, secret.hex().encode() + b"\n")
    return key


def load_node_key(path: Path) -> SigningKey:
    """Read the node key from systemd's credential ``node-key``, else from its file.

    Raises:
        ConfigError: there is none, it is open to others, or it holds no key.
    """
    content = read_credential(NODE_KEY_CREDENTIAL)
    if content is None:
        content = read_file(path, private=True)
    if _NODE_KEY_TEXT.fullmatch(content) is not None:
        try:
            return SigningKey(bytes.fromhex(content.decode()))
        except ValueError:
            pass  # 32 bytes, but zero or beyond the curve's order
    raise ConfigError(f"{path} holds no node key", "it must be 64 hex digits: restore it, or remove it and hansa init")


def create_password_file(path: Path) -> str:
    """Make a random password of 256 bits and write it to a file that must not exist yet."""
    password = secrets.token_hex(GENERATED_PASSWORD_BYTES)
    write_new_secret(path, password.encode() + b"\n")
    return password


def read_password(password_file: Path | None) -> str:
    """The account's password: from the file if one is given, else from systemd's credential ``account-password``.

    Raises:
        ConfigError: the file cannot be read or is open to others.
        WalletLocked: there is neither, or what there is is empty or no text.
    """
    content = read_credential(PASSWORD_CREDENTIAL) if password_file is None else read_file(password_file, private=True)
    if content is None:
        raise WalletLocked(
            "the account is locked and no password was given",
            f"give --password-file, or LoadCredential={PASSWORD_CREDENTIAL}:PATH in the unit",
        )
    try:
        password = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        password = ""
    if not password:
        place = password_file or f"the credential {PASSWORD_CREDENTIAL}"
        raise WalletLocked(f"{place} holds no password", "put the password in its first line")
    return password
