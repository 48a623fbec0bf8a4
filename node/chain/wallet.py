"""The accounts of one data directory: the node's own, and those that its owner keeps beside it.

The node's own is called ``node`` (``account.json``, as ``hansa init`` made it). Others lie in ``wallets/NAME.json``.
All are Keystore V3 files of mode 0600 in directories of mode 0700. What is signed here is either a text, as wallets
sign texts (EIP-191), or typed data that brings its own types (EIP-712).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hansa.node.chain.keys import read_password
from hansa.node.chain.keystore import account_address, create_account, load_account
from hansa.node.faults import ConfigError, WalletLocked
from hansa.node.secret_files import ensure_private_directory, read_credential, read_file, write_new_secret
from hansa.proto.errors import Malformed, ProtocolError
from hansa.proto.foreign_typed_data import foreign_digest
from hansa.proto.keccak import keccak256
from hansa.proto.signing import SIGNATURE_BYTES, SigningKey, parse_address, recover
from hansa.proto.typed_json import parse_json

NODE_ACCOUNT: Final = "node"
DIRECTORY: Final = "wallets"
KEYSTORE_NAME: Final = "account.json"
PASSWORD_NAME: Final = "account.password"  # noqa: S105  # a file's name
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
_SECRET_TEXT = re.compile(rb"(?:0x)?[0-9a-fA-F]{64}\s*", re.ASCII)
_SIGNATURE_TEXT = re.compile(r"0x[0-9a-fA-F]{130}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One keystore file.

    Attributes:
        name: how its owner calls it.
        keystore: the file.
        address: what the file says that it holds; None where it does not say (``cast`` writes such files).
        password_file: what opens it unattended, where there is such a file.
    """

    name: str
    keystore: Path
    address: bytes | None
    password_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToSign:
    """Something to be signed.

    Attributes:
        digest: the 32 bytes that the key signs.
        kind: ``text`` or ``typed data``.
        what: in words, for whoever is to sign.
        text: the text's bytes.
        typed: the typed data, if it is none.
    """

    digest: bytes
    kind: str
    what: str
    text: bytes = b""
    typed: dict[str, Any] | None = None


class Wallet:
    """The accounts below one data directory."""

    def __init__(self, data_dir: Path) -> None:
        """Nothing is read or made yet."""
        self.data_dir = data_dir
        self.directory = data_dir / DIRECTORY

    def accounts(self) -> list[Account]:
        """All accounts, the node's own first."""
        found = [self._node_account()] if (self.data_dir / KEYSTORE_NAME).exists() else []
        names = sorted(path.stem for path in self.directory.glob("*.json")) if self.directory.is_dir() else []
        return found + [self._account(name) for name in names if _NAME.fullmatch(name)]

    def find(self, wanted: str | None) -> Account:
        """The account of a name, an address or a path; with nothing given the node's own, or else the only one.

        Raises:
            ConfigError: there is none, or more than one that could be meant.
        """
        if wanted is not None and "/" in wanted:
            path = Path(wanted)
            return Account(name=path.name, keystore=path, address=_stated_address(path))
        known = self.accounts()
        if wanted is None:
            if known and (known[0].name == NODE_ACCOUNT or len(known) == 1):
                return known[0]
            what = "there is no account yet" if not known else "there are several accounts"
            hint = "hansa wallet new" if not known else "name one with --account; hansa wallet list shows them"
            raise ConfigError(f"{what} in {self.data_dir}", hint)
        for account in known:
            if account.name == wanted or (account.address is not None and _is_address(wanted, account.address)):
                return account
        raise ConfigError("there is no such account here", "hansa wallet list shows them; a file is named by its path")

    def new_path(self, name: str) -> Path:
        """Where a new account of this name goes.

        Raises:
            ConfigError: it is no name, or there is one already.
        """
        if _NAME.fullmatch(name) is None or name == NODE_ACCOUNT:
            hint = f"lower-case letters, digits, - and _; {NODE_ACCOUNT} is the node's own, which hansa init makes"
            raise ConfigError("that is no name for a new account", hint)
        ensure_private_directory(self.data_dir)
        path = self.directory / f"{name}.json"
        if path.exists():
            raise ConfigError(f"{path} exists already", "choose another name: keys are never overwritten")
        return path

    def create(self, name: str, password: str, *, secret: bytes | None = None) -> Account:
        """Make a new account, or take in the one of a secret.

        Raises:
            ConfigError: the name is taken or is none, or the directory cannot be used.
            ValueError: the secret is no key.
        """
        path = self.new_path(name)
        key = create_account(path, password, secret=secret)
        return Account(name=name, keystore=path, address=key.address)

    def _node_account(self) -> Account:
        keystore, password_file = self.data_dir / KEYSTORE_NAME, self.data_dir / PASSWORD_NAME
        return Account(
            name=NODE_ACCOUNT,
            keystore=keystore,
            address=_stated_address(keystore),
            password_file=password_file if password_file.exists() else None,
        )

    def _account(self, name: str) -> Account:
        path = self.directory / f"{name}.json"
        return Account(name=name, keystore=path, address=_stated_address(path))


def _stated_address(keystore: Path) -> bytes | None:
    try:
        return account_address(keystore)
    except ConfigError:
        return None


def _is_address(wanted: str, address: bytes) -> bool:
    try:
        return parse_address(wanted) == address
    except Malformed:
        return False


def known_password(account: Account, password_file: Path | None) -> str | None:
    """The password where no person needs to be asked: from the file given, systemd, or the file beside the node's own.

    Raises:
        ConfigError: a file cannot be read or is open to others.
        WalletLocked: it holds no password.
    """
    if password_file is not None:
        return read_password(password_file)
    if account.name == NODE_ACCOUNT and read_credential("account-password") is not None:
        return read_password(None)
    return read_password(account.password_file) if account.password_file is not None else None


def open_account(account: Account, password: str) -> SigningKey:
    """The account's key.

    Raises:
        ConfigError: the file cannot be read, is open to others or is no keystore.
        WalletLocked: the password is not the right one.
    """
    return load_account(account.keystore, password)


def read_secret(content: bytes) -> bytes:
    """A private key as text: 64 hex digits, with or without 0x.

    Raises:
        WalletLocked: it is none. What was read is not repeated.
    """
    if _SECRET_TEXT.fullmatch(content) is not None:
        secret = bytes.fromhex(content.strip().removeprefix(b"0x").decode())
        try:
            SigningKey(secret)
        except ValueError:
            pass
        else:
            return secret
    raise WalletLocked("that is no private key", "give 64 hex digits, or another program's file with --keystore FILE")


def secret_of_keystore(keystore: Path, password: str) -> bytes:
    """The key in another program's keystore, which may be open to others: it is encrypted.

    Raises:
        ConfigError: the file cannot be read or is no keystore.
        WalletLocked: the password is not the right one.
    """
    return load_account(keystore, password, private=False).secret()


def export_keystore(key: SigningKey, to: Path, password: str) -> None:
    """Write a key to a new keystore file under a password.

    Raises:
        ConfigError: the file exists, or its directory is not writable, or is so for others too.
    """
    create_account(to, password, secret=key.secret(), is_copy=True)


def export_secret(key: SigningKey, to: Path) -> None:
    """Write a bare key to a new file of mode 0600.

    Raises:
        ConfigError: the file exists, or its directory is not writable, or is so for others too.
    """
    write_new_secret(to, b"0x" + key.secret().hex().encode() + b"\n", is_copy=True)


def text_to_sign(text: str) -> ToSign:
    """A text as wallets sign it (EIP-191, ``personal_sign``).

    Raises:
        ConfigError: it is no Unicode text.
    """
    try:
        message = text.encode()
    except UnicodeEncodeError:
        raise ConfigError("the text is no UTF-8", "sign a text, or typed data with --typed FILE") from None
    prefixed = b"\x19Ethereum Signed Message:\n" + str(len(message)).encode() + message
    return ToSign(digest=keccak256(prefixed), kind="text", what=f"a text of {len(message)} bytes", text=message)


def typed_to_sign(content: bytes, where: str) -> ToSign:
    """Typed data from a file: ``{types, primaryType, domain, message}``.

    Raises:
        ConfigError: it is no exact typed data.
    """
    try:
        raw = parse_json(content)
        digest = foreign_digest(raw)
    except ProtocolError as fault:
        hint = "typed data is one JSON object with types, primaryType, domain and message, and nothing more"
        raise ConfigError(f"{where} is no typed data: {fault}", hint) from None
    return ToSign(digest=digest, kind="typed data", what=_in_words(raw), typed=raw)


def _in_words(raw: dict[str, Any]) -> str:
    domain = raw["domain"]
    parts = [
        f"{name} {json.dumps(domain[name])}" for name in ("name", "chainId", "verifyingContract") if name in domain
    ]
    return f"{raw['primaryType']} for " + (", ".join(parts) or "a domain that names nothing")


def read_typed(path: Path) -> ToSign:
    """As ``typed_to_sign``, from a file of at most 64 KiB."""
    return typed_to_sign(read_file(path, private=False), str(path))


def signature_text(signature: bytes) -> str:
    """A signature as wallets write it."""
    return "0x" + signature.hex()


def signer_of_text(to_sign: ToSign, signature: str) -> bytes:
    """Who signed it.

    Raises:
        ConfigError: the signature is none, or is not in the one form that a contract accepts too.
    """
    if _SIGNATURE_TEXT.fullmatch(signature) is None:
        raise ConfigError("that is no signature", f"0x and {2 * SIGNATURE_BYTES} hex digits: r, s and v")
    try:
        return recover(to_sign.digest, bytes.fromhex(signature[2:]))
    except ProtocolError as fault:
        raise ConfigError(f"the signature is not valid: {fault.why}", "it may have been changed on its way") from None
