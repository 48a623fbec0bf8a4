"""Where the installed program comes from: a version alone does not name it as long as there are no releases."""

import json
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import hansa
from hansa.node.plain_text import fields_of, plain

DIGITS: Final = 12
PATIENCE_S: Final = 5.0


def version_words() -> str:
    """The version, and behind it in brackets the commit or the directory, where that is known."""
    try:
        said = distribution("hansa").read_text("direct_url.json")
    except PackageNotFoundError:
        said = None
    words = origin_words(said, Path(str(hansa.__file__)))
    return f"{hansa.__version__} ({plain(words)})" if words else hansa.__version__


def origin_words(said: str | None, module: Path) -> str:
    """What is known of where it was installed from; nothing if nothing is.

    Args:
        said: pip's record of it (``direct_url.json``, PEP 610).
        module: where the program that runs lies.
    """
    record = _record(said)
    commit = fields_of(record.get("vcs_info")).get("commit_id")
    if isinstance(commit, str):
        return f"commit {commit[:DIGITS]}"
    url, about = urlsplit(str(record.get("url"))), record.get("dir_info")
    if url.scheme != "file" or not isinstance(about, dict):
        return ""
    directory = Path(unquote(url.path))
    if about.get("editable") is not True:
        return f"a copy of {directory}"
    if not module.resolve().is_relative_to(directory.resolve()):
        return ""
    commit = _commit_of(directory)
    return f"commit {commit}, from {directory}" if commit else f"from {directory}"


def _record(said: str | None) -> Mapping[str, Any]:
    try:
        return fields_of(json.loads(said or ""))
    except ValueError:
        return {}


def _commit_of(directory: Path) -> str:
    """What git says of a checkout; nothing where it is none, or there is no git."""
    describe = [
        "git",
        "--no-optional-locks",
        "-C",
        str(directory),
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
        f"--abbrev={DIGITS}",
    ]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().replace("-dirty", " with changes")
