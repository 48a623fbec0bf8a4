"""Removing what strangers' archives became, however deep: ``shutil.rmtree`` calls itself for every level.

A wheel or an image of a few kilobytes can hold directories two thousand deep. Python gives up on those with an
exception that is no ``OSError``, so what was to be thrown away stayed, and took the daemon with it at every start.
"""

import contextlib
import os
import secrets
import stat
from pathlib import Path


def remove_tree(directory: Path) -> None:
    """Remove whatever a tool left: a file, a link, or a directory, also if its own user may not enter it.

    Nothing follows a link. What cannot be removed stays, in silence; nobody else may be changing it meanwhile.
    """
    try:
        mode = directory.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        directory.unlink(missing_ok=True)
        return
    with contextlib.suppress(OSError):
        directory.chmod(0o700)
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _empty(top)
        finally:
            os.close(top)
        directory.rmdir()


def _empty(top: int) -> None:
    """Every directory is moved up to the top before it is looked into, so no depth matters and no long path arises."""
    waiting = _clear(top, top)
    while waiting:
        name = waiting.pop()
        with contextlib.suppress(OSError):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            try:
                waiting += _clear(below, top)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=top)


def _clear(here: int, top: int) -> list[str]:
    """Remove the files of a directory and move its directories to the top; answers what these are called there."""
    moved = []
    with os.scandir(here) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        with contextlib.suppress(OSError):
            if not is_directory:
                os.unlink(name, dir_fd=here)
                continue
            os.chmod(name, 0o700, dir_fd=here)  # whoever moves or enters a directory must be let in
            own = name if here == top else secrets.token_hex(16)
            if here != top:
                os.rename(name, own, src_dir_fd=here, dst_dir_fd=top)
            moved.append(own)
    return moved
