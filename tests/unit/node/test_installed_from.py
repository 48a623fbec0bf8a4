"""``hansa --version`` names the commit where it can be known, and none where it cannot."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hansa import __version__
from hansa.node.commands.installed_from import origin_words

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git(directory: Path, *arguments: str) -> str:
    own = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *own, *arguments], cwd=directory, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def editable(directory: Path) -> str:
    return json.dumps({"url": directory.as_uri(), "dir_info": {"editable": True}})


def test_what_pip_fetched_from_a_repository_has_its_commit() -> None:
    said = json.dumps({"url": "https://example.org/hansa", "vcs_info": {"vcs": "git", "commit_id": COMMIT}})
    assert origin_words(said, Path("/somewhere/hansa")) == f"commit {COMMIT[:12]}"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_checkout_is_named_with_its_commit_and_whether_files_were_changed_since(tmp_path: Path) -> None:
    checkout = tmp_path / "a checkout"
    (checkout / "src" / "hansa").mkdir(parents=True)
    code = checkout / "src" / "hansa" / "__init__.py"
    code.write_text("")
    assert origin_words(editable(checkout), code) == f"from {checkout}", "it is no repository"
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "first")
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    git(checkout, "tag", "v9")
    assert origin_words(editable(checkout), code) == f"commit {commit}, from {checkout}"
    code.write_text("changed\n")
    assert origin_words(editable(checkout), code) == f"commit {commit} with changes, from {checkout}"


def test_a_copy_of_a_directory_has_no_commit_since_the_directory_may_have_gone_on(tmp_path: Path) -> None:
    said = json.dumps({"url": tmp_path.as_uri(), "dir_info": {}})
    assert origin_words(said, Path("/lib/hansa/__init__.py")) == f"a copy of {tmp_path}"


@pytest.mark.parametrize("said", [None, "", "{", "[]", "{}", '{"vcs_info": 1}', '{"url": "file:///x", "dir_info": 3}'])
def test_what_is_not_known_is_not_said(said: str | None) -> None:
    assert origin_words(said, Path("/lib/hansa/__init__.py")) == ""


def test_another_program_than_the_installed_one_is_not_named_by_its_commit(tmp_path: Path) -> None:
    assert origin_words(editable(tmp_path), Path("/elsewhere/src/hansa/__init__.py")) == ""


def test_the_command_says_it_on_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hansa", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert re.fullmatch(rf"hansa, version {re.escape(__version__)}( \(.+\))?\n", done.stdout)
