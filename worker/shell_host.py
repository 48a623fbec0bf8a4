"""Programs at terminals of their own, for the run's buyer to look around with: the sandbox's half of a shell.

Each has two threads: one reads what it writes, as far as the daemon's window allows, one writes what was typed, as fast
as the program reads. So neither a flood of output nor a program that never reads holds up anything else.
"""

import contextlib
import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hansa.proto.frames import (
    MAX_SHELL_BYTES,
    SHELL_WINDOW_BYTES,
    CloseShell,
    OpenShell,
    ResizeShell,
    ShellCredit,
    ShellEnded,
    ShellInput,
    ShellOutput,
)

TERMINAL = "xterm-256color"
LOOK_S = 0.1
HANG_UP_S = 0.5


class ShellHost:
    """All shells of one sandbox."""

    def __init__(self, send: Callable[[Any], None], directory: Path) -> None:
        """Send frames through ``send``; programs start in ``directory``."""
        self._send = send
        self._directory = directory
        self._shells: dict[int, Shell] = {}

    def take(self, frame: Any) -> None:
        """What the daemon says about a shell. Never waits for a program."""
        if isinstance(frame, OpenShell):
            self._shells[frame.shell] = Shell(frame, self._send, self._directory, self._forget)
            return
        shell = self._shells.get(frame.shell)
        if shell is None:
            return  # it ended meanwhile
        match frame:
            case ShellInput(data=data):
                shell.type(data)
            case ResizeShell(columns=columns, rows=rows):
                shell.resize(columns, rows)
            case ShellCredit(size_bytes=size_bytes):
                shell.credit(size_bytes)
            case CloseShell():
                shell.hang_up()

    def sessions(self) -> set[int]:
        """The sessions of all that runs at these terminals."""
        return {shell.pid for shell in list(self._shells.values())}

    def _forget(self, number: int) -> None:
        self._shells.pop(number, None)


class Shell:
    """One program at a terminal of its own."""

    def __init__(
        self, order: OpenShell, send: Callable[[Any], None], directory: Path, forget: Callable[[int], None]
    ) -> None:
        """Start it."""
        self._number = order.shell
        self._send = send
        self._forget = forget
        self._changed = threading.Condition()
        self._typed: deque[bytes] = deque()
        self._window_bytes = SHELL_WINDOW_BYTES
        self._over = False
        self._master, slave = pty.openpty()
        self.resize(order.columns, order.rows)
        try:
            self._process = subprocess.Popen(
                # It takes the terminal as its own and becomes the program: between fork and exec, with all the threads
                # that are here, nothing could be done safely.
                [sys.executable, "-P", "-m", "hansa.worker.terminal", *(order.argv or (default_shell(),))],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                cwd=directory,
                env={**os.environ, "TERM": TERMINAL},
                start_new_session=True,
            )
        finally:
            os.close(slave)
        self.pid = self._process.pid
        os.set_blocking(self._master, False)
        self._writer = threading.Thread(target=self._write, daemon=True, name=f"hansa-shell-in-{self._number}")
        self._writer.start()
        threading.Thread(target=self._read, daemon=True, name=f"hansa-shell-out-{self._number}").start()

    def type(self, data: bytes) -> None:
        """Bytes from the keyboard."""
        with self._changed:
            self._typed.append(data)
            self._changed.notify_all()

    def credit(self, size_bytes: int) -> None:
        """The daemon has read so much, and may be sent as much more."""
        with self._changed:
            self._window_bytes += size_bytes
            self._changed.notify_all()

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size now."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """Nobody is at the terminal any more: end the program and all that it started there."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        threading.Thread(target=self._end_session, daemon=True, name=f"hansa-hang-up-{self._number}").start()

    def _read(self) -> None:
        """Pass on what the program writes, and at the end how it ended."""
        with contextlib.suppress(OSError):
            while not self._over:
                with self._changed:
                    self._changed.wait_for(lambda: self._window_bytes > 0 or self._over)
                    most = min(self._window_bytes, MAX_SHELL_BYTES)
                if not select.select([self._master], [], [], LOOK_S)[0]:
                    if self._process.poll() is not None:
                        break  # others may hold the terminal open; the program is what was started
                    continue
                data = os.read(self._master, most)
                if not data:
                    break
                with self._changed:
                    self._window_bytes -= len(data)
                self._send(ShellOutput(shell=self._number, data=data))
        status = self._process.wait()
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._forget(self._number)
        self._writer.join()  # it must not write to whatever gets this descriptor next
        os.close(self._master)
        self._send(ShellEnded(shell=self._number, status=128 - status if status < 0 else status))

    def _write(self) -> None:
        """Type what was sent, as fast as the program reads."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._typed or self._over)
                if self._over:
                    return
                data = self._typed.popleft()
            with contextlib.suppress(OSError):
                view = memoryview(data)
                while view and not self._over:
                    if select.select([], [self._master], [], LOOK_S)[1]:
                        view = view[os.write(self._master, view) :]
            if not self._over:
                self._send(ShellCredit(shell=self._number, size_bytes=len(data)))

    def _end_session(self) -> None:
        for signum in (signal.SIGHUP, signal.SIGCONT, signal.SIGKILL):
            if signum == signal.SIGKILL:
                time.sleep(HANG_UP_S)
            for pid in session_members(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)


def default_shell() -> str:
    """The shell to be had here."""
    return shutil.which("bash") or "/bin/sh"


def session_members(session: int) -> list[int]:
    """The processes of a session."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if session_of(pid) == session]


def session_of(pid: int) -> int | None:
    """The session that a process belongs to."""
    try:
        return os.getsid(pid)
    except OSError:
        return None
