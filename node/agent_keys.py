"""Which machines belong to one provider: a key for each, pinned on both sides, and invitations that admit one more.

A machine proves itself with a self-signed certificate, and the other side knows that very certificate: there is no
authority whose loss would matter, and no name that could be forged. An invitation is a key, too. It is derived from the
secret in the line that the owner carries from one machine to the other, so even to enrol one must get through a mutual
TLS handshake: nobody without an enrolled key or an open invitation ever gets to say a word.

Each enrolled machine and each invitation is a file of its own, so that adding is a rename and removing an unlink.
"""

import base64
import datetime as dt
import hashlib
import json
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from hansa.node.faults import ConfigError
from hansa.proto.errors import Malformed

KEY_FILE = "machine.pem"
MOST_MACHINES = 256
LARGEST_ENTRY_BYTES = 16 << 10
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", re.ASCII)
_LINE = re.compile(
    r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]{1,253}):(?P<port>[0-9]{1,5})"
    r"/(?P<pin>[a-z2-7]{52})/(?P<secret>[a-z2-7]{52})"
)
_BEGINNING = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_NEVER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
"""RFC 5280's date for a certificate without an end: a pinned key ends when it is removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A machine's key and certificate.

    Attributes:
        file: both as PEM, mode 0600.
        certificate: DER.
    """

    file: Path
    certificate: bytes

    @property
    def pin(self) -> bytes:
        """What others know it by."""
        return pin_of(self.certificate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """A machine that may connect."""

    name: str
    certificate: bytes
    since_ms: int

    @property
    def pin(self) -> bytes:
        """What it is known by."""
        return pin_of(self.certificate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What a join line says.

    Attributes:
        pin: what the daemon's machine is known by.
        secret: 32 bytes; the invitation's key is derived from it.
    """

    host: str
    port: int
    pin: bytes
    secret: bytes

    @property
    def line(self) -> str:
        """As the owner carries it to the other machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{_base32(self.pin)}/{_base32(self.secret)}"


def pin_of(certificate: bytes) -> bytes:
    """SHA-256 of a certificate."""
    return hashlib.sha256(certificate).digest()


def check_name(name: str) -> str:
    """A machine's name, if it can be one.

    Raises:
        ConfigError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "a machine's name is 1 to 32 small letters, digits and hyphens, with no hyphen at its ends",
            "for example --name rack-2",
        )
    return name


def parse_line(line: str) -> Invitation:
    """What a join line says.

    Raises:
        ConfigError: it is none.
    """
    found = _LINE.fullmatch(line.strip())
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ConfigError("that is no join line", "copy the whole line that `hansa agent invite` printed")
    host = found["host"].strip("[]")
    return Invitation(
        host=host, port=int(found["port"]), pin=_unbase32(found["pin"]), secret=_unbase32(found["secret"])
    )


def load_identity(directory: Path) -> Identity:
    """The key of this machine, made when there is none."""
    file = directory / KEY_FILE
    if not file.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(file, _pem(Ed25519PrivateKey.generate()))
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"{file} is open to other users", f"chmod 600 {file}")
    return Identity(file=file, certificate=_certificate_in(file.read_bytes()))


def write_invitation_key(secret: bytes, file: Path) -> Identity:
    """Write the key that a join line's secret stands for, so that ``ssl`` can read it. The caller removes it."""
    write_private(file, _pem(Ed25519PrivateKey.from_private_bytes(secret)))
    return Identity(file=file, certificate=_certificate_in(file.read_bytes()))


def check_certificate(data: bytes) -> bytes:
    """A machine's certificate as we make them ourselves.

    Raises:
        Malformed: it is anything else; so what is trusted later has one form only.
    """
    try:
        certificate = x509.load_der_x509_certificate(data)
        key = certificate.public_key()
        certificate.verify_directly_issued_by(certificate)
    except Exception as error:
        raise Malformed("certificate", "is none that a machine makes") from error
    if not isinstance(key, Ed25519PublicKey) or certificate.subject != _name_for(key):
        raise Malformed("certificate", "is none that a machine makes")
    return data


class Register:
    """The enrolled machines and open invitations of one provider, below a directory of its data."""

    def __init__(self, directory: Path) -> None:
        """Make the directories where they are missing."""
        self._machines, self._invitations = directory / "machines", directory / "invitations"
        for path in (directory, self._machines, self._invitations):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def machines(self) -> dict[bytes, Enrolled]:
        """Who may connect, by pin."""
        found = {}
        for path in sorted(self._machines.glob("*.json"))[:MOST_MACHINES]:
            value = _read_json(path)
            if value is not None:
                machine = Enrolled(
                    name=str(value["name"]),
                    certificate=base64.b64decode(value["certificate"]),
                    since_ms=int(value["since_ms"]),
                )
                found[machine.pin] = machine
        return found

    def invitations(self, now_ms: int) -> dict[bytes, bytes]:
        """Certificates of the invitations that are open, by pin; those that have expired are removed."""
        found = {}
        for path in sorted(self._invitations.glob("*.json")):
            value = _read_json(path)
            if value is None:
                continue
            if int(value["expires_ms"]) <= now_ms:
                path.unlink(missing_ok=True)
                continue
            certificate = base64.b64decode(value["certificate"])
            found[pin_of(certificate)] = certificate
        return found

    def invite(self, secret: bytes, expires_ms: int) -> None:
        """Open an invitation. Only the certificate is kept: who reads the file cannot use it."""
        certificate = _certificate_in(_pem(Ed25519PrivateKey.from_private_bytes(secret)))
        entry = {"certificate": base64.b64encode(certificate).decode(), "expires_ms": expires_ms}
        _write_json(self._invitations / f"{pin_of(certificate).hex()}.json", entry)

    def enrol(self, invitation: bytes, machine: Enrolled) -> str | None:
        """Use an invitation up for this machine. Answers why not, in words, if it cannot be."""
        known = self.machines()
        if any(other.name == machine.name and other.pin != machine.pin for other in known.values()):
            return f"another machine is called {machine.name}"
        if len(known) >= MOST_MACHINES:
            return f"{MOST_MACHINES} machines are enrolled, and there is no room for more"
        try:
            (self._invitations / f"{invitation.hex()}.json").unlink()
        except FileNotFoundError:
            return "the invitation was used already"
        entry = {
            "name": machine.name,
            "certificate": base64.b64encode(machine.certificate).decode(),
            "since_ms": machine.since_ms,
        }
        _write_json(self._machines / f"{machine.pin.hex()}.json", entry)
        return None

    def remove(self, name: str) -> bool:
        """Admit a machine no longer. Answers whether it was there."""
        found = [machine for machine in self.machines().values() if machine.name == name]
        for machine in found:
            (self._machines / f"{machine.pin.hex()}.json").unlink(missing_ok=True)
        return bool(found)


def serving_context(own: Identity, trusted: list[bytes]) -> ssl.SSLContext:
    """What the daemon listens with: these certificates and no others get through."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, own)
    context.num_tickets = 0  # a resumed session would not show its certificate again
    context.load_verify_locations(cadata="".join(ssl.DER_cert_to_PEM_cert(one) for one in trusted))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def dialling_context(own: Identity) -> ssl.SSLContext:
    """What a machine dials with. Whom it reached is known by the pin, which the caller must compare."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, own)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the handshake proves the key; which key it must be, the pin says
    return context


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _context(protocol: int, own: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(own.file)
    return context


def _pem(key: Ed25519PrivateKey) -> bytes:
    """Key and certificate. The same key always gives the same bytes: nothing in them is chance or the time of day."""
    name = _name_for(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_BEGINNING)
        .not_valid_after(_NEVER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + certificate.public_bytes(Encoding.PEM)


def _name_for(key: Ed25519PublicKey) -> x509.Name:
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hansa {raw.hex()[:32]}")])


def _certificate_in(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _unbase32(text: str) -> bytes:
    try:
        return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except ValueError:
        raise ConfigError("that is no join line", "copy the whole line that `hansa agent invite` printed") from None


def _read_json(path: Path) -> dict[str, Any] | None:
    """One entry; nothing if it was just removed or is none of ours."""
    try:
        if path.stat().st_size > LARGEST_ENTRY_BYTES:
            return None
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write_json(path: Path, entry: dict[str, Any]) -> None:
    write_private(path, json.dumps(entry).encode())
