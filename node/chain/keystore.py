"""Accounts on disk: Keystore V3 files that a password opens, here and in Foundry's ``cast`` and the common wallets."""

import json
import secrets
import sys
from pathlib import Path
from typing import Any, Final, Literal

from hansa.node.chain.keys import PASSWORD_CREDENTIAL, create_password_file, read_password
from hansa.node.faults import ConfigError, WalletLocked
from hansa.node.secret_files import read_file, sync_directory, write_new_secret
from hansa.proto.errors import ProtocolError
from hansa.proto.signing import SECRET_BYTES, SigningKey, checksum_address, parse_address
from hansa.proto.typed_json import parse_json

# Stretching makes each guess at a password dear, which matters for those that people think up. One of 256 random bits
# cannot be guessed at any price, so few rounds lose nothing, and the daemon need not spend a second and 256 MB of
# memory on scrypt at every start.
GENERATED_PASSWORD_ITERATIONS: Final = 1_000


def _eth_account() -> Any:
    """eth-account's ``Account``, imported late (over half a second) and without its side effect.

    It imports py_ecc, which raises the recursion limit to 100,000. At that depth Python no longer stops in time: a
    peer's or a browser's deeply nested JSON would overflow the stack and kill the daemon.
    """
    limit = sys.getrecursionlimit()
    try:
        from eth_account import Account  # noqa: PLC0415
    finally:
        sys.setrecursionlimit(limit)
    return Account


def _encrypt(secret: bytes, password: str, kdf: Literal["pbkdf2", "scrypt"], iterations: int | None) -> bytes:
    return json.dumps(_eth_account().encrypt(secret, password, kdf=kdf, iterations=iterations)).encode() + b"\n"


def create_account(keystore: Path, password: str, *, secret: bytes | None = None, is_copy: bool = False) -> SigningKey:
    """Write a new account, or the one of an imported secret, to a keystore under a password that a person chose.

    Takes about a second and 256 MB: scrypt with the parameters that all wallets use.

    Raises:
        ConfigError: the file exists, or its directory is not private or not writable.
        ValueError: the secret is no key.
    """
    key = SigningKey(secrets.token_bytes(SECRET_BYTES) if secret is None else secret)
    write_new_secret(keystore, _encrypt(key.secret(), password, "scrypt", None), is_copy=is_copy)
    return key


def create_account_unattended(keystore: Path, password_file: Path) -> SigningKey:
    """Write a new account to a keystore, and the random password that opens it to a file of its own.

    So the daemon can start by itself, and the two files can be kept apart: a backup of one of them gives nothing away.

    Raises:
        ConfigError: a file exists, or a directory is not private or not writable.
    """
    key = SigningKey(secrets.token_bytes(SECRET_BYTES))
    password = create_password_file(password_file)
    write_new_secret(keystore, _encrypt(key.secret(), password, "pbkdf2", GENERATED_PASSWORD_ITERATIONS))
    return key


def _read_keystore(keystore: Path, *, private: bool = True) -> dict[str, Any]:
    try:
        table = parse_json(read_file(keystore, private=private))
    except ProtocolError as fault:
        raise ConfigError(f"{keystore} is no keystore: it {fault.why}", "restore it from a backup") from None
    if type(table) is not dict or table.get("version") != 3:
        raise ConfigError(f"{keystore} is no Keystore V3", "restore a copy of it, or hansa init another node")
    return table


def account_address(keystore: Path) -> bytes:
    """The address that a keystore says it holds, without opening it.

    Raises:
        ConfigError: the file cannot be read, is open to others, is no keystore, or does not say.
    """
    stated = _read_keystore(keystore).get("address")
    try:
        return parse_address("0x" + str(stated).removeprefix("0x"))
    except ProtocolError:
        raise ConfigError(f"{keystore} does not name its address", "open it with its password") from None


def load_account(keystore: Path, password: str, *, private: bool = True) -> SigningKey:
    """Open the account in a keystore.

    Args:
        keystore: the file.
        password: what opens it.
        private: refuse a file that others may open; not so for another program's file that is to be imported.

    Raises:
        ConfigError: the file cannot be read, is open to others or is no keystore.
        WalletLocked: the password is not the right one.
    """
    table = _read_keystore(keystore, private=private)
    try:
        key = SigningKey(bytes(_eth_account().decrypt(table, password)))
    except ValueError:
        # The file's own check sum failed, which a wrong password and a damaged file have in common.
        raise WalletLocked(
            f"the password does not open {keystore}", "give the right password, or restore a damaged keystore"
        ) from None
    except (TypeError, KeyError, AttributeError):
        raise ConfigError(f"{keystore} is of an unknown form", "restore it from a backup") from None
    stated = table.get("address")
    if stated is not None and str(stated).removeprefix("0x").lower() != key.address.hex():
        raise ConfigError(
            f"{keystore} holds {checksum_address(key.address)} and says that it is another account",
            "restore it from a backup: somebody changed it",
        )
    return key


def open_unattended(keystore: Path, password_file: Path) -> SigningKey:
    """The account of a node, opened as its daemon opens it: by the password in its file, else by systemd's credential.

    Raises:
        OperatorError: it cannot be opened; the hint says what its owner has to bring back.
    """
    if not keystore.exists():
        hint = (
            "put your copy of it back; without one that account is lost, and hansa init --data DIR makes another node"
        )
        raise ConfigError(f"the account's key is not here: {keystore}", hint)
    if password_file.exists():
        return load_account(keystore, read_password(password_file))
    try:
        return load_account(keystore, read_password(None))
    except WalletLocked as locked:
        hint = f"write the account's password into it (mode 0600), or pass the credential {PASSWORD_CREDENTIAL}"
        raise WalletLocked(f"{locked.what}: {password_file} is not here", hint) from None


def change_password(keystore: Path, old_password: str, new_password: str) -> None:
    """Encrypt an account anew under a password that a person chose, and put it in the old file's place.

    Raises:
        ConfigError: the file cannot be read or written.
        WalletLocked: the old password is not the right one.
    """
    key = load_account(keystore, old_password)
    renewed = keystore.with_name(f".{keystore.name}.{secrets.token_hex(8)}.new")
    write_new_secret(renewed, _encrypt(key.secret(), new_password, "scrypt", None))
    try:
        renewed.replace(keystore)
        sync_directory(keystore.parent)
    except OSError as fault:
        raise ConfigError(f"cannot replace {keystore}: {fault.strerror}", f"the new file is {renewed}") from None
