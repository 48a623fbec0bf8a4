"""Foundry's programs, which come as npm packages: found, or fetched once into a directory of this user's own."""

import os
import shutil
from pathlib import Path

from kit.npm_packages import fetch, said
from kit.one_at_a_time import one_at_a_time

VERSION = "1.7.1"


def find_cast() -> tuple[Path | None, str]:
    """Where ``cast`` is, or why it is nowhere. On the path, else from npm, for Linux on x86-64."""
    there = shutil.which("cast")
    if there is not None and "cast Version" in said([there, "--version"]):
        return Path(there), ""
    directory = _directory()
    with one_at_a_time(directory):
        return _fetched_cast(directory)


def _fetched_cast(directory: Path) -> tuple[Path | None, str]:
    program = directory / "node_modules" / "@foundry-rs" / "cast-linux-amd64" / "bin" / "cast"
    if not program.exists():
        if os.uname().machine != "x86_64":
            return None, f"no cast is fetched for {os.uname().machine}"
        wanted = f"@foundry-rs/cast-linux-amd64@{VERSION}"
        answer = fetch(directory, "install", "--no-save", wanted)
        if not program.exists():
            return None, f"npm did not bring {wanted}: {answer[-200:]}"
    if "cast Version" not in said([str(program), "--version"]):
        return None, "cast does not run on this machine"
    return program, ""


def _directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hansa-tests" / f"foundry-{VERSION}"
