"""What ``tests/interop`` needs from npm: fetched once, as its lock file has it, into a directory of this user's own."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from kit.npm_packages import NPM_FLAGS
from kit.one_at_a_time import one_at_a_time

INTEROP = Path(__file__).resolve().parents[1] / "interop"
LEAST_NODE = 20
FETCH_TIMEOUT_S = 300


def find_js_packages() -> tuple[Path | None, str]:
    """The directory ``node_modules``, or why there is none."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None, "node and npm are not both on the path"
    said = _said([node, "--version"])
    number = said.strip().removeprefix("v").partition(".")[0]
    if not number.isdecimal() or int(number) < LEAST_NODE:
        return None, f"node is {said.strip()[:40] or 'not to be started'}, and js-libp2p needs {LEAST_NODE}"
    lock = (INTEROP / "package-lock.json").read_bytes()
    room = _cache() / f"interop-{hashlib.sha256(lock).hexdigest()[:16]}"
    with one_at_a_time(room):
        return _fetched(room, npm)


def _fetched(room: Path, npm: str) -> tuple[Path | None, str]:
    whole = room / "whole"
    if not whole.exists():
        for name in ("package.json", "package-lock.json"):
            shutil.copy(INTEROP / name, room / name)
        said = _said([npm, "ci", *NPM_FLAGS, "--prefix", str(room)])
        if not (room / "node_modules" / "libp2p" / "package.json").exists():
            return None, f"npm did not bring js-libp2p: {said[-200:]}"
        whole.touch()
    return room / "node_modules", ""


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hansa-tests"


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as fault:
        return str(fault)
    return done.stdout + done.stderr
