"""How tests ask npm for packages: what was fetched once does, and an absent registry is soon given up, and only once.

By itself npm asks the registry anew, and where that cannot be reached it waits for ten seconds and then for a minute.
"""

import fcntl
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

FLAGS = (
    "--prefer-offline", "--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000",
    "--ignore-scripts", "--no-audit", "--no-fund",
)  # fmt: skip
TIMEOUT_S = 300


@cache
def fetch(room: Path, *words: str) -> str:
    """Have npm do something in a directory, as ``install``, and answer all that it said.

    It is asked once a process, and by one process at a time: two that install into one directory spoil it.
    """
    npm = shutil.which("npm")
    if npm is None:
        return "npm is not on the path"
    # Told of a place by ``--prefix``, npm passes over the machine's own settings, as the certificates of a proxy.
    if not (room / "package.json").exists():
        (room / "package.json").write_text('{"private": true}\n')
    one_at_a_time = os.open(room, os.O_RDONLY)
    try:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        return said([npm, words[0], *FLAGS, *words[1:]], room)
    finally:
        os.close(one_at_a_time)


def said(command: list[str], room: Path | None = None) -> str:
    """What a command says, or why it says nothing."""
    try:
        done = subprocess.run(command, cwd=room, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as fault:
        return str(fault)
    return done.stdout + done.stderr
