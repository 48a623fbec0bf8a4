"""Which machines belong to one provider: a key for each, pinned on both sides, and invitations that admit one more.

A machine proves itself with a self-signed certificate, and the other side knows that very certificate: there is no
authority whose loss would matter, and no name that could be forged. An invitation is a key, too. It is derived from the
secret in the line that the owner carries from one machine to the other, so even to enrol one must get through a mutual
TLS handshake: nobody without an enrolled key or an open invitation ever gets to say a word.

Each enrolled machine and each invitation is a file of its own, so that adding is a rename and removing an unlink.
"""

import base64
import contextlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hansa.node.faults import ConfigError
from hansa.node.storage.pinned_tls import SECRET_BYTES, certificate_in, make_pem, pin_of

KEY_FILE = "machine.pem"
MOST_MACHINES = 256
LARGEST_ENTRY_BYTES = 16 << 10
DAMAGED = (KeyError, TypeError, ValueError, OverflowError)
"""What comes of reading an entry that is not whole: that machine has to be enrolled anew."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", re.ASCII)
_LINE = re.compile(
    r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]{1,253}):(?P<port>[0-9]{1,5})"
    r"/(?P<pin>[a-z2-7]{52})/(?P<secret>[a-z2-7]{52})"
)


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


def machine_naming(key: bytes) -> str:
    """What the certificate of a machine is called, by its public key."""
    return f"hansa {key.hex()[:32]}"


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
    """What a join line says; it may stand among other lines, as `hansa agent invite` prints it.

    Raises:
        ConfigError: there is none, or several that differ.
    """
    lines = {each.strip() for each in line.splitlines()}
    matches = [match for each in lines if (match := _LINE.fullmatch(each))]
    found = matches[0] if len(matches) == 1 else None
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
        write_private(file, make_pem(secrets.token_bytes(SECRET_BYTES), machine_naming))
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"{file} is open to other users", f"chmod 600 {file}")
    return Identity(file=file, certificate=certificate_in(file.read_bytes()))


def write_invitation_key(secret: bytes, file: Path) -> Identity:
    """Write the key that a join line's secret stands for, so that ``ssl`` can read it. The caller removes it."""
    write_private(file, make_pem(secret, machine_naming))
    return Identity(file=file, certificate=certificate_in(file.read_bytes()))


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
            if value is None:
                continue
            with contextlib.suppress(*DAMAGED):
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
            with contextlib.suppress(*DAMAGED):
                if int(value["expires_ms"]) <= now_ms:
                    path.unlink(missing_ok=True)
                    continue
                certificate = base64.b64decode(value["certificate"])
                found[pin_of(certificate)] = certificate
        return found

    def invite(self, secret: bytes, expires_ms: int) -> None:
        """Open an invitation. Only the certificate is kept: who reads the file cannot use it."""
        certificate = certificate_in(make_pem(secret, machine_naming))
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


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


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
