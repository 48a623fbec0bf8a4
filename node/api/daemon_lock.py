"""Who runs on a data directory: known from a daemon's first moment, long before it answers.

A provider tries its sandbox before it opens its journal, which takes seconds. The lock is the kernel's and is gone with
the process, however that ends; the file itself stays, and says nothing.
"""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hansa.node.faults import OperatorError

LOCK_NAME: Final = "daemon.lock"
_FLOCK: Final = struct.Struct("hhqqi4x")
"""The kernel's ``struct flock``: kind, from where, start, length, whose."""


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Be the daemon of a data directory, for as long as the context lasts.

    Raises:
        OperatorError: another process is, or the directory cannot be used.
    """
    path = data_dir / LOCK_NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as fault:
        raise OperatorError(
            f"cannot use {path}: {fault.strerror}", "check the directory, the disk and the user"
        ) from None
    try:
        # Where the file system knows no locks, two daemons still meet at the journal's own.
        with contextlib.suppress(OSError):
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                other = whose_lock(data_dir)
                named = f" (process {other})" if other else ""
                hint = "stop that one first, or use another --data DIR"
                raise OperatorError(f"another daemon{named} runs on {data_dir}", hint) from None
        yield
    finally:
        os.close(handle)


def whose_lock(data_dir: Path) -> int | None:
    """The process that is the daemon of a data directory, 0 where its number cannot be told; ``None`` if there is none.

    Never ask from the daemon's own process: to close the file again would give its lock away.
    """
    try:
        handle = os.open(data_dir / LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = fcntl.fcntl(handle, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        return None
    finally:
        os.close(handle)
    kind, _, _, _, process = _FLOCK.unpack(found)
    return None if kind == fcntl.F_UNLCK else max(0, process)
