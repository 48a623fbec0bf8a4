"""One's own terminal: the way back is always open, and raw mode never stays behind."""

import fcntl
import os
import pty
import select
import signal
import struct
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.node.commands.cli_piped import PipedOutput
from hansa.node.commands.cli_terminal import DEFAULT_SIZE, Keys, raw_terminal, terminal_size
from hansa.node.faults import OperatorError
from hansa.proto.pipes import GREETING, STDERR, STDOUT, pack_piped


@pytest.mark.parametrize(
    ("typed", "sent", "hangs_up"),
    [
        (b"ls -l\r", b"ls -l\r", False),
        (b"~.", b"", True),
        (b"ls\r~.rest", b"ls\r", True),
        (b"ls\n~.", b"ls\n", True),
        (b"a~.", b"a~.", False),
        (b"~~.", b"~.", False),
        (b"~x~.", b"~x~.", False),
        (b"~\r~.", b"~\r", True),
        (b"\x03", b"\x03", False),
        (b"abc\x1ddef", b"abc", True),
        (b"~\x1d", b"", True),
        (b"~", b"", False),
    ],
)
def test_everything_is_sent_but_the_way_back(typed: bytes, sent: bytes, hangs_up: bool) -> None:
    assert Keys().take(typed) == (sent, hangs_up)
    keys, one_by_one = Keys(), b""
    for byte in typed:
        piece, over = keys.take(bytes([byte]))
        one_by_one += piece
        if over:
            break
    assert (one_by_one, over) == (sent, hangs_up)


@given(st.binary().filter(lambda data: b"~" not in data and b"\x1d" not in data))
def test_what_holds_no_sign_of_the_way_back_is_sent_as_it_is(data: bytes) -> None:
    assert Keys().take(data) == (data, False)


@given(st.lists(st.binary(max_size=6), max_size=6))
def test_keys_mean_the_same_in_whatever_pieces_they_come(pieces: list[bytes]) -> None:
    keys, sent, over = Keys(), b"", False
    for piece in pieces:
        if not over:
            more, over = keys.take(piece)
            sent += more
    assert (sent, over) == Keys().take(b"".join(pieces))


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def is_raw(descriptor: int) -> bool:
    return not termios.tcgetattr(descriptor)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)


class Stumbled(Exception):
    pass


SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)


@pytest.mark.parametrize("fault", [None, Stumbled(), KeyboardInterrupt()])
def test_the_terminal_is_restored_however_the_shell_ends(
    terminal: tuple[int, int], fault: BaseException | None
) -> None:
    _, theirs = terminal
    before = termios.tcgetattr(theirs)
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with suppress(Stumbled, KeyboardInterrupt), raw_terminal(theirs):
        assert is_raw(theirs)
        if fault is not None:
            raise fault
    assert termios.tcgetattr(theirs) == before
    assert handlers == [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_command_restores_the_terminal_too(terminal: tuple[int, int], number: int) -> None:
    _, theirs = terminal
    before = termios.tcgetattr(theirs)
    with pytest.raises(SystemExit, match=str(128 + number)), raw_terminal(theirs):
        os.kill(os.getpid(), number)
    assert termios.tcgetattr(theirs) == before


def test_a_new_size_is_noticed_and_read(terminal: tuple[int, int]) -> None:
    _, theirs = terminal
    with raw_terminal(theirs) as resized:
        assert not select.select([resized], [], [], 0)[0]
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
        os.kill(os.getpid(), signal.SIGWINCH)
        assert select.select([resized], [], [], 5)[0]
        assert terminal_size(theirs) == (132, 50)


def test_a_terminal_without_a_size_has_the_usual_one(terminal: tuple[int, int], tmp_path: Path) -> None:
    assert terminal_size(terminal[1]) == DEFAULT_SIZE
    with (tmp_path / "file").open("w") as file:
        assert terminal_size(file.fileno()) == DEFAULT_SIZE


def test_a_piped_programs_output_is_sorted_and_nothing_is_added(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output = PipedOutput()
    assert not output.take(b"noise\r\n" + GREETING[:5])
    assert output.take(GREETING[5:] + pack_piped(STDOUT, b"\x1b[31mraw\x00") + pack_piped(STDERR, b"wrong")[:3])
    assert not output.take(pack_piped(STDERR, b"wrong")[3:])
    output.finish()
    assert capfdbinary.readouterr() == (b"\x1b[31mraw\x00", b"wrong")


def test_what_comes_instead_of_a_greeting_is_shown_made_plain(capfd: pytest.CaptureFixture[str]) -> None:
    output = PipedOutput()
    assert not output.take(b"python3: \x1b]0;title\x07 not found\r\n")
    output.finish()
    shown = capfd.readouterr()
    assert "not found" in shown.err
    assert "\x1b" not in shown.err
    assert shown.out == ""


def test_a_line_that_is_no_piped_programs_is_refused() -> None:
    with pytest.raises(OperatorError, match="not understood"):
        PipedOutput().take(GREETING + b"\x09garbage")
