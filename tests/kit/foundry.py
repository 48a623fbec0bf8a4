"""Foundry's programs, which come as npm packages: found, or fetched once into a directory of this user's own."""

import os
import shutil
import subprocess
from pathlib import Path

from kit.npm_packages import NPM_FLAGS
from kit.one_at_a_time import one_at_a_time

VERSION = "1.7.1"
FETCH_TIMEOUT_S = 120


def find_cast() -> tuple[Path | None, str]:
    """Where ``cast`` is, or why it is nowhere. On the path, else from npm, for Linux on x86-64."""
    there = shutil.which("cast")
    if there is not None and "cast Version" in _said([there, "--version"]):
        return Path(there), ""
    directory = _directory()
    with one_at_a_time(directory):
        return _fetched_cast(directory)


def _fetched_cast(directory: Path) -> tuple[Path | None, str]:
    program = directory / "node_modules" / "@foundry-rs" / "cast-linux-amd64" / "bin" / "cast"
    if not program.exists():
        npm = shutil.which("npm")
        if npm is None:
            return None, "neither cast nor npm is on the path"
        if os.uname().machine != "x86_64":
            return None, f"no cast is fetched for {os.uname().machine}"
        wanted = f"@foundry-rs/cast-linux-amd64@{VERSION}"
        flags = [*NPM_FLAGS, "--prefix", str(directory), "--no-save"]
        said = _said([npm, "install", *flags, wanted])
        if not program.exists():
            return None, f"npm did not bring {wanted}: {said[-200:]}"
    if "cast Version" not in _said([str(program), "--version"]):
        return None, "cast does not run on this machine"
    return program, ""


def _directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hansa-tests" / f"foundry-{VERSION}"


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as fault:
        return str(fault)
    return done.stdout + done.stderr
