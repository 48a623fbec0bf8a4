"""One's own terminal while a shell far away has it: raw mode that is always undone, its size, and the way back.

Everything typed goes to the far side, Ctrl-C too. The way back is ``~.`` at the beginning of a line, as in ssh, or
Ctrl-].
"""

import fcntl
import os
import signal
import struct
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

HANG_UP_KEY = 0x1D
DEFAULT_SIZE = (80, 24)
LARGEST_SIDE = 1000


class Keys:
    """What is typed, with the way back taken out of it."""

    def __init__(self) -> None:
        """As at the beginning of a line."""
        self._at_start = True
        self._tilde = False

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What to send of these bytes, and whether to hang up; what stands behind that is dropped.

        ``~~`` at the beginning of a line sends one ``~``.
        """
        sent = bytearray()
        for byte in data:
            if byte == HANG_UP_KEY:
                return bytes(sent), True
            if self._tilde:
                self._tilde = False
                if byte == ord("."):
                    return bytes(sent), True
                if byte != ord("~"):
                    sent.append(ord("~"))
            elif self._at_start and byte == ord("~"):
                self._tilde = True
                self._at_start = False
                continue
            sent.append(byte)
            self._at_start = byte in b"\r\n"
        return bytes(sent), False


def terminal_size(descriptor: int) -> tuple[int, int]:
    """Columns and rows of a terminal; something usual where it does not say."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        return DEFAULT_SIZE
    if not columns or not rows:
        return DEFAULT_SIZE
    return min(columns, LARGEST_SIDE), min(rows, LARGEST_SIDE)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def raw_terminal(descriptor: int) -> Iterator[int]:
    """The terminal in raw mode, restored however this is left, by a signal too.

    Gives a descriptor that becomes readable each time the terminal's size changes.
    """
    before = termios.tcgetattr(descriptor)
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    os.set_blocking(readable, False)

    def resized(_number: int, _frame: FrameType | None) -> None:
        with suppress(BlockingIOError):  # then it is readable as it is
            os.write(writable, b"x")

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handlers = {signal.SIGWINCH: resized, signal.SIGTERM: leave, signal.SIGHUP: leave}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield readable
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(readable)
        os.close(writable)
