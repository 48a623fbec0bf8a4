"""Files that hold secrets: private from the first byte, written whole or not at all, never over another.

Files that others could read are refused rather than repaired, because by then the secret may be gone.
"""

import os
import pwd
import secrets
import stat
from pathlib import Path
from typing import Any, Final

from hansa.node.faults import ConfigError, storage_hint

FILE_LIMIT_BYTES: Final = 64 << 10


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
        hint = storage_hint(fault, "give a directory that this user may write")
        raise ConfigError(f"cannot use {directory}: {fault.strerror}", hint) from None


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"{uid}"


def _check_private(found: os.stat_result, path: Path, is_kind: Any, kind: str, mode: int) -> None:
    if not is_kind(found.st_mode):
        raise ConfigError(f"{path} is not a plain {kind}", f"put a {kind} of this user's own there, no link")
    if found.st_uid != os.geteuid():
        # Root looks at a service's directory, as a rule; had it taken the file, the service would not start again.
        raise ConfigError(
            f"{path} belongs to another user ({_name_of(found.st_uid)})",
            f"run hansa as that user, as root with runuser -u {_name_of(found.st_uid)} -- hansa …; only if it is to run"
            f" as this one (uid {os.geteuid()}) from now on, chown it",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):o})",
            f"chmod {mode:o} {path}, and if others were on this machine treat the secret as known to them",
        )


def _ensure_nobody_else_writes(directory: Path) -> None:
    """Make a directory of this user's own, or make sure that nobody else can put other files in place of ours there."""
    if not directory.exists():
        ensure_private_directory(directory)
    mode = directory.stat().st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise ConfigError(
            f"other users may write to {directory} (mode {stat.S_IMODE(mode):o})",
            "give a path in a directory that nobody else may write to",
        )


def write_new_secret(path: Path, content: bytes, *, is_copy: bool = False) -> None:
    """Write a file of mode 0600 that must not exist yet, whole or not at all.

    A copy goes wherever its owner says, among files that others may read; what the node lives on lies where nobody
    else even looks.
    """
    if is_copy:
        _ensure_nobody_else_writes(path.parent)
    else:
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
        sync_directory(path.parent)
    except FileExistsError:
        raise ConfigError(
            f"{path} exists already", "keys are never overwritten: move the old file away first"
        ) from None
    except OSError as fault:
        hint = storage_hint(fault, "check the directory, the disk and the user")
        raise ConfigError(f"cannot write {path}: {fault.strerror}", hint) from None


def sync_directory(directory: Path) -> None:
    """Have a directory's entries on disk, so that a file that was put there or renamed stays."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_file(path: Path, *, private: bool) -> bytes:
    """Read a small file; ``private`` refuses links, and what others may open.

    Raises:
        ConfigError: it cannot be read, is too long, or is open to others.
    """
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
    return read_file(Path(directory) / name, private=False)
