"""``hansa exec``: a shell, or one command, in one's own run on somebody else's machine."""

import base64
import os
import select
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_jobs import job_path_part
from hansa.node.commands.cli_options import with_data
from hansa.node.faults import OperatorError

EXIT_HUNG_UP = 255
PIECE_BYTES = 16_000
"""With the head of its frame it has to fit into one request."""


@click.command("exec")
@click.argument("job")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--shard", type=click.IntRange(min=0), help="In this shard's run; default: the first that runs.")
@with_data
def exec_command(job: str, command: tuple[str, ...], shard: int | None, data_dir: Path) -> int:
    """Run COMMAND, or a shell, in a run of one of your jobs. Write -- before a command with options of its own.

    At a terminal, everything typed goes to the far side, Ctrl-C too; "~." at the beginning of a line or Ctrl-] hangs
    up. Without one (hansa exec JOB -- cat model.bin > model.bin) bytes pass as they are, and input may be piped in.

    What the far side prints comes to your terminal as it is, escape sequences included: it is somebody else's machine,
    so open a shell only where you would trust its answers. The exit code is the command's, or 255 after hanging up.
    """
    from hansa.node.api.cli_client import DaemonClient

    with closing(DaemonClient(data_dir)) as daemon, closing(DaemonClient(data_dir)) as typist:
        found = str(daemon.get(f"/v1/jobs/{job_path_part(job)}")["job"])
        session = _Session(daemon, typist, found, shard, command)
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        return session.run_at_terminal() if is_terminal else session.run_piped()


class _Session:
    """One shell: what it writes comes in this thread, and what is typed goes out in another."""

    def __init__(self, daemon: Any, typist: Any, job: str, shard: int | None, command: tuple[str, ...]) -> None:
        self._daemon = daemon
        self._typist = typist
        self._wanted = {"job": job, "shard": shard, "argv": list(command)}
        self._shell = ""
        self._hung_up = False

    def run_at_terminal(self) -> int:
        """With one's own terminal in raw mode."""
        from hansa.node.commands.cli_terminal import raw_terminal, terminal_size, write_all

        columns, rows = terminal_size(1)
        lines = self._open(piped=False, columns=columns, rows=rows)
        with closing(lines), raw_terminal(0) as resized:
            self._in_background(lambda: self._type_keys(resized))
            return self._show(lines, lambda data: write_all(1, data))

    def run_piped(self) -> int:
        """Without a terminal: bytes as they are."""
        from hansa.node.commands.cli_piped import PipedOutput

        output = PipedOutput()
        lines = self._open(piped=True, columns=80, rows=24)

        def take(data: bytes) -> None:
            if output.take(data):
                self._in_background(self._type_input)

        with closing(lines):
            try:
                status = self._show(lines, take)
            except KeyboardInterrupt:
                self._hang_up()
                raise
        output.finish()
        return status

    def _open(self, *, piped: bool, columns: int, rows: int) -> Any:
        lines = self._daemon.post_lines(
            "/v1/shells", {**self._wanted, "piped": piped, "columns": columns, "rows": rows}
        )
        self._shell = str(next(lines)["shell"])
        return lines

    def _show(self, lines: Any, show: Callable[[bytes], None]) -> int:
        """Pass on what the program writes until it has ended; gives its exit status."""
        for line in lines:
            if "output" in line:
                show(base64.b64decode(str(line["output"])))
            elif "ended" in line:
                status = int(line["ended"])
                if status < 0:
                    raise OperatorError("the run ended, and the shell with it", "hansa watch shows how it ended")
                return status
            elif self._hung_up:
                return EXIT_HUNG_UP
            else:
                raise OperatorError(str(line.get("error")), str(line.get("hint", "")))
        return EXIT_HUNG_UP

    def _in_background(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            # The shell has ended meanwhile; what there is to say of that, the other thread says.
            with suppress(OperatorError, OSError):
                work()

        threading.Thread(target=guarded, daemon=True).start()

    def _send(self, data: bytes, columns: int, rows: int) -> None:
        self._typist.post_bytes(f"/v1/shells/{self._shell}/input", data, columns=str(columns), rows=str(rows))

    def _hang_up(self) -> None:
        self._hung_up = True
        with suppress(OperatorError):
            self._typist.post(f"/v1/shells/{self._shell}/close")

    def _type_keys(self, resized: int) -> None:
        from hansa.node.commands.cli_terminal import Keys, terminal_size

        keys = Keys()
        while True:
            ready, _, _ = select.select([0, resized], [], [])
            data = b""
            if resized in ready:
                os.read(resized, 4096)
            if 0 in ready:
                typed = os.read(0, PIECE_BYTES)
                data, wants_back = keys.take(typed)
                if wants_back or not typed:
                    self._hang_up()
                    return
            self._send(data, *terminal_size(1))

    def _type_input(self) -> None:
        from hansa.proto.pipes import STDIN, pack_piped

        with suppress(OSError):
            while data := os.read(0, PIECE_BYTES):
                self._send(pack_piped(STDIN, data), 80, 24)
        self._send(pack_piped(STDIN, b""), 80, 24)


SHELL_COMMANDS = (exec_command,)
