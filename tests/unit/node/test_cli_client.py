"""The command line's end of the local API, against daemons that do what the real one does rarely."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from hansa.node.api import cli_client
from hansa.node.api.cli_client import LONGEST_PAUSE_S, DaemonClient
from hansa.node.faults import OperatorError
from hansa.node.settings.config import SOCKET_NAME

ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n{"is": "ok"}'


class HangsUp:
    """Answers the first request on each connection, and hangs up when a second one comes that is late."""

    def __init__(self, data_dir: Path, patience_s: float) -> None:
        self.patience_s, self.answered = patience_s, 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(data_dir / SOCKET_NAME))
        self.socket.listen(8)

    def serve(self, after_s: float = 0.0) -> None:
        threading.Thread(target=self._serve, args=(after_s,), daemon=True).start()

    def _serve(self, after_s: float) -> None:
        time.sleep(after_s)
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            last = None
            while connection.recv(65_536):
                if last is not None and time.monotonic() - last > self.patience_s:
                    return
                self.answered += 1  # before whoever asked can look at it
                connection.sendall(ANSWER)
                last = time.monotonic()


@pytest.fixture
def hangs_up(tmp_path: Path) -> Iterator[HangsUp]:
    server = HangsUp(tmp_path, patience_s=LONGEST_PAUSE_S)
    yield server
    server.socket.close()


def test_a_request_after_a_pause_does_not_meet_a_daemon_that_is_hanging_up(tmp_path: Path, hangs_up: HangsUp) -> None:
    hangs_up.serve()
    with closing(DaemonClient(tmp_path)) as daemon:
        for pause_s in (0.0, LONGEST_PAUSE_S + 0.2, 0.0):
            time.sleep(pause_s)
            assert daemon.get("/v1/node") == {"is": "ok"}
    assert hangs_up.answered == 3


@contextmanager
def a_crowd(data_dir: Path) -> Iterator[None]:
    """As many as may wait for a daemon."""
    with ExitStack() as waiting:
        with suppress(BlockingIOError):
            while True:
                other = waiting.enter_context(socket.socket(socket.AF_UNIX))
                other.setblocking(False)
                other.connect(str(data_dir / SOCKET_NAME))
        yield


def test_a_daemon_whom_many_ask_at_once_is_not_said_to_be_away(tmp_path: Path, hangs_up: HangsUp) -> None:
    with a_crowd(tmp_path), closing(DaemonClient(tmp_path)) as daemon:
        hangs_up.serve(after_s=1.0)
        assert daemon.get("/v1/node") == {"is": "ok"}


def test_a_daemon_that_takes_nobody_in_is_given_up(
    tmp_path: Path, hangs_up: HangsUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_client, "ANSWER_TIMEOUT_S", 0.2)
    with a_crowd(tmp_path), closing(DaemonClient(tmp_path)) as daemon:
        with pytest.raises(OperatorError, match="takes no more connections"):
            daemon.get("/v1/node")
        assert hangs_up.answered == 0
