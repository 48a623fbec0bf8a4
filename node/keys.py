"""This machine's two keys on disk: the node's own, and the account's in a keystore that a password opens.

The node key is 32 bytes of hex in a 0600 file: the daemon needs it unattended, and what it may do is bounded by the
account's binding. The account's key is a Keystore V3 file, which Foundry's ``cast`` and the common wallets open too.

Secrets come from files or from systemd's credential directory, never from the environment or the command line: both
can be read by other processes, and end up in shell histories and crash reports. Files that others could read are
refused rather than repaired, because by then the secret may be gone.
"""

import json
import os
import re
import secrets
import stat
import sys
from pathlib import Path
from typing import Any, Final, Literal

from hansa.node.faults import ConfigError, WalletLocked
from hansa.proto.errors import ProtocolError
from hansa.proto.signing import SECRET_BYTES, SigningKey, checksum_address, parse_address
from hansa.proto.typed_json import parse_json

FILE_LIMIT_BYTES: Final = 64 << 10
NODE_KEY_CREDENTIAL: Final = "node-key"
PASSWORD_CREDENTIAL: Final = "account-password"  # noqa: S105  # the credential's name

_NODE_KEY_TEXT = re.compile(rb"[0-9a-f]{64}\n?")

# Stretching makes each guess at a password dear, which matters for those that people think up. One of 256 random bits
# cannot be guessed at any price, so few rounds lose nothing, and the daemon need not spend a second and 256 MB of
# memory on scrypt at every start.
GENERATED_PASSWORD_BYTES: Final = 32
GENERATED_PASSWORD_ITERATIONS: Final = 1_000


def ensure_private_directory(directory: Path) -> None:
    """Make a directory that only this user can enter, or make sure that it is one.

    Raises:
        ConfigError: it is no directory, is somebody else's, is open to others, or cannot be made.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        _check_private(directory.lstat(), directory, stat.S_ISDIR, "directory", 0o700)
    except OSError as fault:
        raise ConfigError(
            f"cannot use {directory}: {fault.strerror}", "give a directory that this user may write"
        ) from None


def _check_private(found: os.stat_result, path: Path, is_kind: Any, kind: str, mode: int) -> None:
    if not is_kind(found.st_mode):
        raise ConfigError(f"{path} is not a plain {kind}", f"put a {kind} of this user's own there, no link")
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to another user", f"chown it to the user that runs hansa (uid {os.geteuid()})"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):o})",
            f"chmod {mode:o} {path}, and if others were on this machine treat the secret as known to them",
        )


def _write_new_secret(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 that must not exist yet, whole or not at all."""
    ensure_private_directory(path.parent)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        # The full content lands under a name of its own first; linking it then fails if the name is taken. So a crash
        # leaves no half-written key behind, and no earlier key is ever replaced.
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)
        finally:
            partial.unlink()
        _sync_directory(path.parent)
    except FileExistsError:
        raise ConfigError(
            f"{path} exists already", "keys are never overwritten: move the old file away first"
        ) from None
    except OSError as fault:
        raise ConfigError(
            f"cannot write {path}: {fault.strerror}", "check the directory, the disk and the user"
        ) from None


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_file(path: Path, *, private: bool) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if private else 0))
        with os.fdopen(handle, "rb") as file:
            if private:
                _check_private(os.fstat(file.fileno()), path, stat.S_ISREG, "file", 0o600)
            content = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as fault:
        raise ConfigError(f"cannot read {path}: {fault.strerror}", "check the path, or run hansa init first") from None
    if len(content) > FILE_LIMIT_BYTES:
        raise ConfigError(f"{path} is longer than {FILE_LIMIT_BYTES} bytes", "it is none of hansa's files")
    return content


def read_credential(name: str) -> bytes | None:
    """A secret that systemd handed to this service (``LoadCredential=``), or nothing.

    The environment only says where the directory is. systemd guards it itself, at times with access lists instead of
    modes, so its modes are not looked at.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory or not (Path(directory) / name).is_file():
        return None
    return _read_file(Path(directory) / name, private=False)


def create_node_key(path: Path) -> SigningKey:
    """Make a new node key and write it to a file that must not exist yet.

    Raises:
        ConfigError: the file exists, or its directory is not private or not writable.
    """
    secret = secrets.token_bytes(SECRET_BYTES)
    key = SigningKey(secret)
    _write_new_secret(path, secret.hex().encode() + b"\n")
    return key


def load_node_key(path: Path) -> SigningKey:
    """Read the node key from systemd's credential ``node-key``, else from its file.

    Raises:
        ConfigError: there is none, it is open to others, or it holds no key.
    """
    content = read_credential(NODE_KEY_CREDENTIAL)
    if content is None:
        content = _read_file(path, private=True)
    if _NODE_KEY_TEXT.fullmatch(content) is not None:
        try:
            return SigningKey(bytes.fromhex(content.decode()))
        except ValueError:
            pass  # 32 bytes, but zero or beyond the curve's order
    raise ConfigError(f"{path} holds no node key", "it must be 64 hex digits: restore it, or remove it and hansa init")


def create_password_file(path: Path) -> str:
    """Make a random password of 256 bits and write it to a file that must not exist yet."""
    password = secrets.token_hex(GENERATED_PASSWORD_BYTES)
    _write_new_secret(path, password.encode() + b"\n")
    return password


def read_password(password_file: Path | None) -> str:
    """The account's password: from the file if one is given, else from systemd's credential ``account-password``.

    Raises:
        ConfigError: the file cannot be read or is open to others.
        WalletLocked: there is neither, or what there is is empty or no text.
    """
    content = read_credential(PASSWORD_CREDENTIAL) if password_file is None else _read_file(password_file, private=True)
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
        raise WalletLocked("the password file holds no password", "put the password in its first line")
    return password


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


def create_account(keystore: Path, password: str, *, secret: bytes | None = None) -> SigningKey:
    """Write a new account, or the one of an imported secret, to a keystore under a password that a person chose.

    Takes about a second and 256 MB: scrypt with the parameters that all wallets use.

    Raises:
        ConfigError: the file exists, or its directory is not private or not writable.
        ValueError: the secret is no key.
    """
    key = SigningKey(secrets.token_bytes(SECRET_BYTES) if secret is None else secret)
    _write_new_secret(keystore, _encrypt(key.secret(), password, "scrypt", None))
    return key


def create_account_unattended(keystore: Path, password_file: Path) -> SigningKey:
    """Write a new account to a keystore, and the random password that opens it to a file of its own.

    So the daemon can start by itself, and the two files can be kept apart: a backup of one of them gives nothing away.

    Raises:
        ConfigError: a file exists, or a directory is not private or not writable.
    """
    key = SigningKey(secrets.token_bytes(SECRET_BYTES))
    password = create_password_file(password_file)
    _write_new_secret(keystore, _encrypt(key.secret(), password, "pbkdf2", GENERATED_PASSWORD_ITERATIONS))
    return key


def _read_keystore(keystore: Path) -> dict[str, Any]:
    try:
        table = parse_json(_read_file(keystore, private=True))
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


def load_account(keystore: Path, password: str) -> SigningKey:
    """Open the account in a keystore.

    Raises:
        ConfigError: the file cannot be read, is open to others or is no keystore.
        WalletLocked: the password is not the right one.
    """
    table = _read_keystore(keystore)
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


def change_password(keystore: Path, old_password: str, new_password: str) -> None:
    """Encrypt an account anew under a password that a person chose, and put it in the old file's place.

    Raises:
        ConfigError: the file cannot be read or written.
        WalletLocked: the old password is not the right one.
    """
    key = load_account(keystore, old_password)
    renewed = keystore.with_name(f".{keystore.name}.{secrets.token_hex(8)}.new")
    _write_new_secret(renewed, _encrypt(key.secret(), new_password, "scrypt", None))
    try:
        renewed.replace(keystore)
        _sync_directory(keystore.parent)
    except OSError as fault:
        raise ConfigError(f"cannot replace {keystore}: {fault.strerror}", f"the new file is {renewed}") from None
