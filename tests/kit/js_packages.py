"""What ``tests/interop`` needs from npm: fetched once, as its lock file has it, into a directory of this user's own."""

import hashlib
import os
import shutil
from pathlib import Path

from kit.npm_packages import fetch, said
from kit.one_at_a_time import one_at_a_time

INTEROP = Path(__file__).resolve().parents[1] / "interop"
LEAST_NODE = 20


def find_js_packages() -> tuple[Path | None, str]:
    """The directory ``node_modules``, or why there is none."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return None, "node and npm are not both on the path"
    version = said([node, "--version"])
    number = version.strip().removeprefix("v").partition(".")[0]
    if not number.isdecimal() or int(number) < LEAST_NODE:
        return None, f"node is {version.strip()[:40] or 'not to be started'}, and js-libp2p needs {LEAST_NODE}"
    lock = (INTEROP / "package-lock.json").read_bytes()
    room = _cache() / f"interop-{hashlib.sha256(lock).hexdigest()[:16]}"
    with one_at_a_time(room):
        return _fetched(room)


def _fetched(room: Path) -> tuple[Path | None, str]:
    whole = room / "whole"
    if not whole.exists():
        for name in ("package.json", "package-lock.json"):
            shutil.copy(INTEROP / name, room / name)
        answer = fetch(room, "ci")
        if not (room / "node_modules" / "libp2p" / "package.json").exists():
            return None, f"npm did not bring js-libp2p: {answer[-200:]}"
        whole.touch()
    return room / "node_modules", ""


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hansa-tests"
