"""Terminals inside a run's sandbox: one `RunShell` for each program that the run's buyer has started there.

What a program writes is a stranger's bytes like all that comes out of a sandbox. Both directions have a window: the
sandbox may send `WINDOW_BYTES` ahead of what was received here, and is sent as much ahead of what its program has read.
So neither a flood of output nor a program that never reads can fill anybody's memory or hold up other frames.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from hansa.proto.errors import Malformed, ProtocolError, TooLarge
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
    encode,
)

WINDOW_BYTES: Final = SHELL_WINDOW_BYTES
MOST_SHELLS: Final = 4
LOST_STATUS: Final = -1
"""The exit status of a program that went with its sandbox, so that nobody saw how it ended."""

Write = Callable[[Any], Awaitable[None]]


class ShellRefused(Exception):
    """No shell can be opened in this run now; the text says why, in words for its buyer."""


class RunShell:
    """One program at a terminal in a run's sandbox. Made by ``Executor.open_shell``.

    One task may receive while another sends.
    """

    def __init__(self, number: int, write: Write) -> None:
        """Speak about the shell of this number through ``write``, which sends a frame to the sandbox."""
        self.number = number
        self.closed = False
        self._write = write
        self._pieces: deque[bytes] = deque()
        self._unread_bytes = 0
        self._credit_bytes = WINDOW_BYTES
        self._status: int | None = None
        self._changed = trio.Event()

    @property
    def ended(self) -> int | None:
        """The exit status once the program has ended and all that it wrote was received; ``None`` before that.

        128 and more stand for a signal, as in a shell; `LOST_STATUS` says that the whole sandbox ended first.
        """
        return None if self._pieces else self._status

    async def send(self, data: bytes) -> None:
        """Type these bytes. Waits while the program does not read; what is sent after its end goes nowhere."""
        while data and self._status is None and not self.closed:
            size = min(self._credit_bytes, len(data), MAX_SHELL_BYTES)
            if size == 0:
                await self._changed.wait()
                continue
            self._credit_bytes -= size
            await self._write(ShellInput(shell=self.number, data=data[:size]))
            data = data[size:]

    async def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size now."""
        if self._status is None and not self.closed:
            await self._write(ResizeShell(shell=self.number, columns=columns, rows=rows))

    async def receive(self, wait_s: float) -> bytes:
        """What the program wrote next, at most `MAX_SHELL_BYTES`; empty after ``wait_s`` without any, or at its end."""
        with trio.move_on_after(wait_s):
            while not self._pieces and self._status is None and not self.closed:
                await self._changed.wait()
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        self._unread_bytes -= len(piece)
        if self._status is None and not self.closed:
            await self._write(ShellCredit(shell=self.number, size_bytes=len(piece)))
        return piece

    async def close(self) -> None:
        """Hang up: the program and whatever it started at this terminal are ended."""
        if not self.closed:
            self.closed = True
            self._pieces.clear()
            still_there = self._status is None
            self._status = LOST_STATUS if self._status is None else self._status
            self._wake()
            if still_there:
                await self._write(CloseShell(shell=self.number))

    # What the sandbox says of it.

    def took_output(self, data: bytes) -> None:
        """The program wrote. Raises ``ProtocolError`` if that is more than was allowed."""
        if self.closed or self._status is not None:
            return
        if self._unread_bytes + len(data) > WINDOW_BYTES:
            raise TooLarge("ShellOutput", "more than the window allows")
        self._pieces.append(data)
        self._unread_bytes += len(data)
        self._wake()

    def took_credit(self, size_bytes: int) -> None:
        """The program read some of what was sent."""
        self._credit_bytes = min(WINDOW_BYTES, self._credit_bytes + size_bytes)
        self._wake()

    def took_end(self, status: int) -> None:
        """The program ended."""
        if self._status is None:
            self._status = status
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class RunShells:
    """The shells of one run."""

    def __init__(self, write: Write) -> None:
        """None is open yet."""
        self._write = write
        self._opened = 0
        self._open: dict[int, RunShell] = {}

    async def open(self, argv: tuple[str, ...], columns: int, rows: int) -> RunShell:
        """Start a program; without ``argv`` it is a shell. Raises ``ShellRefused``."""
        for number in [number for number, shell in self._open.items() if shell.closed or shell.ended is not None]:
            del self._open[number]
        if len(self._open) >= MOST_SHELLS:
            raise ShellRefused(f"{MOST_SHELLS} shells are open in this run, and more there may not be")
        frame = OpenShell(shell=self._opened, argv=argv, columns=columns, rows=rows)
        try:
            encode(frame)
        except ProtocolError as fault:
            raise ShellRefused("the command is too long, or its terminal has an impossible size") from fault
        shell = self._open[frame.shell] = RunShell(frame.shell, self._write)
        self._opened += 1
        await self._write(frame)
        return shell

    def take(self, frame: Any) -> None:
        """What the runner said about one of them. Raises ``ProtocolError`` if it is about none."""
        if frame.shell >= self._opened:
            raise Malformed(type(frame).__name__, "is about a shell that was never opened")
        shell = self._open.get(frame.shell)
        if shell is None:
            return  # closed here, and its last words were on their way
        match frame:
            case ShellOutput(data=data):
                shell.took_output(data)
            case ShellCredit(size_bytes=size_bytes):
                shell.took_credit(size_bytes)
            case ShellEnded(status=status):
                shell.took_end(status)

    def lose(self) -> None:
        """The sandbox is gone, and all of them with it."""
        for shell in self._open.values():
            shell.took_end(LOST_STATUS)
