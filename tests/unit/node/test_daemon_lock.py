"""Whoever asks a data directory for its daemon is told the truth, also before the daemon can answer itself."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from hansa.node.api.cli_client import DaemonAway, DaemonClient
from hansa.node.api.daemon_lock import LOCK_NAME, locked, whose_lock
from hansa.node.faults import OperatorError
from hansa.node.settings.config import SOCKET_NAME

HOLDER = """
import sys, time
from pathlib import Path
from hansa.node.api.daemon_lock import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is the daemon of the directory, and does not answer."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_daemon_that_is_starting_is_not_said_to_be_none(tmp_path: Path) -> None:
    with closing(DaemonClient(tmp_path)) as daemon:
        with pytest.raises(DaemonAway, match="no daemon is running"):
            daemon.get("/v1/node")
        with another_process(tmp_path) as process, pytest.raises(DaemonAway, match="it is starting") as caught:
            daemon.get("/v1/node")
        assert f"process {process.pid}" in caught.value.what
        assert "try again" in caught.value.hint
        with pytest.raises(DaemonAway, match="no daemon is running"):
            daemon.get("/v1/node")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a moment")
def test_a_daemon_of_another_user_is_not_said_to_be_none(tmp_path: Path) -> None:
    with closing(DaemonClient(tmp_path)) as daemon, socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(tmp_path / SOCKET_NAME))
        theirs.listen()
        os.seteuid(65_534)
        try:
            with pytest.raises(OperatorError, match="no right to talk") as caught:
                daemon.get("/v1/node")
        finally:
            os.seteuid(0)
    assert "as the user that the daemon runs as" in caught.value.hint


def test_a_second_daemon_is_refused_at_once_and_told_whose_the_directory_is(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        assert whose_lock(tmp_path) == process.pid
        with pytest.raises(OperatorError, match=f"another daemon .process {process.pid}. runs on"), locked(tmp_path):
            pass
        assert whose_lock(tmp_path) == process.pid, "asking and failing took nothing away"
    assert whose_lock(tmp_path) is None, "gone with its process, though that was killed"
    with locked(tmp_path):
        pass
    assert stat.S_IMODE((tmp_path / LOCK_NAME).stat().st_mode) == 0o600


def test_a_directory_that_cannot_be_used_is_said_and_a_link_is_not_followed(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="cannot use"), locked(tmp_path / "nowhere"):
        pass
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OperatorError, match="cannot use"), locked(tmp_path):
        pass
    assert whose_lock(tmp_path) is None
    assert not os.path.lexists(tmp_path / "elsewhere")
