"""Shells of a run without its sandbox: the real two halves of a shell, joined by calls in place of a socket."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from hansa.node.runs.run_shell import RunShell, RunShells, ShellRefused
from hansa.worker.shell_host import ShellHost

ROOT = Path(__file__).resolve().parents[2]
SEEN_INSIDE = ":".join([str(ROOT / "src"), *(path for path in sys.path if path.endswith("site-packages"))])
"""For PYTHONPATH: a sandbox's interpreter finds packages by it, and so must one that is started by the same name."""


class LocalRuns:
    """Starts programs on this very machine, as an executor would in its runs' sandboxes."""

    def __init__(self, *runs: bytes, directory: Path) -> None:
        """These runs run. To be made inside trio."""
        self._token = trio.lowlevel.current_trio_token()
        self.runs = {run: RunShells(self._write_to(run)) for run in runs}
        self._hosts = {run: ShellHost(self._send_from(run), directory) for run in runs}
        self.opened = 0

    def _write_to(self, run: bytes) -> Any:
        async def write(frame: Any) -> None:
            await trio.lowlevel.checkpoint()
            self._hosts[run].take(frame)

        return write

    def _send_from(self, run: bytes) -> Any:
        def send(frame: Any) -> None:
            with suppress(trio.RunFinishedError):  # the test is over, and a program's last words come late
                self._token.run_sync_soon(self._take, run, frame)

        return send

    def _take(self, run: bytes, frame: Any) -> None:
        if run in self.runs:
            self.runs[run].take(frame)

    def end(self, run: bytes) -> None:
        """The run's sandbox is gone."""
        self.runs.pop(run).lose()

    async def open_shell(self, run: bytes, argv: tuple[str, ...], columns: int, rows: int) -> RunShell:
        """As ``Executor.open_shell``."""
        if run not in self.runs:
            raise ShellRefused("the run is not there, or has ended")
        self.opened += 1
        return await self.runs[run].open(argv, columns, rows)
