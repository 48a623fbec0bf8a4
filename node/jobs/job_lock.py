"""``hansa.lock``: a job's dependencies as exact versions and hashes, made with uv where the developer is.

One lock serves every provider: it is made for all platforms and for every Python that Hansa runs on, from wheels only,
and within what Ray and the runner need, which share the job's packages.
"""

import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from uv import find_uv_bin

from hansa.node.faults import ConfigError
from hansa.node.jobs.job_environment import LOCK_NAME, OLDEST_PYTHON, JobEnvironment
from hansa.node.runs.locks import LARGEST_LOCK_BYTES, PINNED, Locked, parse_lock, requirements_text, without_provided
from hansa.proto.errors import ProtocolError

MADE_S = 600.0
SHARED = frozenset({"msgpack", "numpy", "safetensors"})
"""What the runner imports beside a job's own packages."""
_FIRST_LINE = "# hansa lock "


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLock:
    """A lock that is ready to be sent.

    Attributes:
        text: only what is to be installed, as ``requirements_text`` writes it.
        wheels: those of the job's wheels that it names.
    """

    text: str
    wheels: tuple[Path, ...]


def lock_of(environment: JobEnvironment, directory: Path, say: Callable[[str], None]) -> JobLock | None:
    """The job's lock, made anew if there is none or it is stale.

    Raises:
        ConfigError: it cannot be made, or read.
    """
    if environment.lock is not None:
        return _ready(environment.lock, _read(environment.lock), environment)
    if not environment.dependencies:
        return None
    path = directory / LOCK_NAME
    text = _read(path) if path.is_file() else ""
    if not text.startswith(_FIRST_LINE + _digest(environment)):
        text = write_lock(environment, directory)
        say(f"locked {len(parse_lock(text))} packages in {path}")
    return _ready(path, text, environment)


def write_lock(environment: JobEnvironment, directory: Path) -> str:
    """Resolve the dependencies, write the lock beside the job file, and answer its text.

    Raises:
        ConfigError: they cannot be resolved.
    """
    text = f"{_FIRST_LINE}{_digest(environment)}\n# Made by hansa lock from job.toml. Keep it with the code.\n"
    text += _resolve(environment)
    _ready(directory / LOCK_NAME, text, environment)
    _put_in_place(directory / LOCK_NAME, text)
    return text


def _put_in_place(path: Path, text: str) -> None:
    """Write the lock whole or not at all. A link that stands there is replaced: it may lead to any file of the user."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
        partial.replace(path)
    except OSError as fault:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {fault.strerror}", "check the directory and the disk") from None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_LOCK_BYTES:
            raise ConfigError(f"{path}: is larger than any lock", "name the lock file")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: cannot be read: {fault}", "make it anew: hansa lock") from None


def _ready(path: Path, text: str, environment: JobEnvironment) -> JobLock:
    try:
        kept = without_provided(parse_lock(text), version(PINNED))
    except ProtocolError as fault:
        hint = "a lock holds only name==version with --hash=sha256:…, as `uv pip compile --generate-hashes` writes it"
        raise ConfigError(f"{path}: {fault.where} {fault.why}", hint) from None
    wanted = {digest for package in kept for digest in package.hashes}
    wheels = tuple(wheel for wheel in environment.wheels if _sha256(wheel) in wanted)
    return JobLock(text=requirements_text(_by_name(kept)), wheels=wheels)


def _by_name(locked: tuple[Locked, ...]) -> list[Locked]:
    return sorted(locked, key=lambda package: (package.name, package.version, package.marker))


def _digest(environment: JobEnvironment) -> str:
    """What a lock was made from; another digest means that it is stale."""
    parts = [
        *sorted(environment.dependencies),
        f"python {environment.python}",
        f"{PINNED} {version(PINNED)}",
        *(f"{wheel.name} {_sha256(wheel)}" for wheel in environment.wheels),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _constraints() -> list[str]:
    """What a sandbox's own packages need of those that they share with the job."""
    found = [f"{PINNED}=={version(PINNED)}"]
    for package in (PINNED, "hansa"):
        for text in requires(package) or ():
            wanted = Requirement(text)
            if wanted.marker is None and wanted.specifier and (package == PINNED or wanted.name in SHARED):
                found.append(f"{wanted.name}{wanted.specifier}")
    return found


def _resolve(environment: JobEnvironment) -> str:
    """What uv makes of the dependencies, by the configuration of whoever runs it.

    uv also reads what configures it in the directory where it runs and in all above. One beside the job could have it
    write to any file of the user's, and the job may be somebody else's. So it runs where only root can put one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wanted, constraints = Path(scratch, "wanted.in"), Path(scratch, "constraints.txt")
        wanted.write_text("\n".join(environment.dependencies) + "\n")
        constraints.write_text("\n".join(_constraints()) + "\n")
        command = [
            *(find_uv_bin(), "pip", "compile", str(wanted), "--constraints", str(constraints)),
            *("--universal", "--python-version", environment.python or OLDEST_PYTHON),
            *("--python", sys.executable, "--no-python-downloads"),
            *("--generate-hashes", "--only-binary", ":all:", "--no-header", "--no-annotate"),
            *("--quiet", "--color", "never", "--system-certs"),
        ]
        for folder in dict.fromkeys(wheel.parent for wheel in environment.wheels):
            command += ["--find-links", str(folder)]
        try:
            done = subprocess.run(
                command,
                cwd="/",
                capture_output=True,
                text=True,
                timeout=MADE_S,
                check=False,
                env=dict(os.environ),
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"uv took longer than {MADE_S:.0f} s to find versions", "try again") from None
    if done.returncode != 0:
        words = " ".join(done.stderr.split())
        raise ConfigError(f"the dependencies cannot be locked: {words[:800]}", "correct environment.dependencies")
    return done.stdout
