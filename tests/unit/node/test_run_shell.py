"""Shells without a sandbox: windows, ends, and a runner that says what it must not."""

import pytest
import trio

from hansa.node.runs.run_shell import LOST_STATUS, MOST_SHELLS, WINDOW_BYTES, RunShells, ShellRefused
from hansa.proto.errors import ProtocolError
from hansa.proto.frames import (
    MAX_SHELL_BYTES,
    CloseShell,
    OpenShell,
    ResizeShell,
    ShellCredit,
    ShellEnded,
    ShellInput,
    ShellOutput,
)

pytestmark = pytest.mark.trio


class Sent(list):
    """Every frame that was sent to the sandbox."""

    async def write(self, frame):
        await trio.lowlevel.checkpoint()
        self.append(frame)


async def a_shell(argv=()):
    sent = Sent()
    shells = RunShells(sent.write)
    shell = await shells.open(argv, 80, 24)
    return shells, shell, sent


async def test_what_is_typed_goes_out_and_what_is_written_comes_in():
    shells, shell, sent = await a_shell(("ls", "-l"))
    await shell.send(b"x\r")
    await shell.resize(100, 30)
    shells.take(ShellOutput(shell=0, data=b"total 0"))
    shells.take(ShellEnded(shell=0, status=2))
    assert shell.ended is None, "not everything was received"
    assert await shell.receive(1) == b"total 0"
    assert shell.ended == 2
    assert await shell.receive(1) == b""
    await shell.send(b"too late")
    assert sent == [
        OpenShell(shell=0, argv=("ls", "-l"), columns=80, rows=24),
        ShellInput(shell=0, data=b"x\r"),
        ResizeShell(shell=0, columns=100, rows=30),
    ]


async def test_receiving_gives_up_after_its_time(autojump_clock):
    _shells, shell, _sent = await a_shell()
    before_s = trio.current_time()
    assert await shell.receive(3) == b""
    assert trio.current_time() - before_s == 3
    assert shell.ended is None


async def test_output_is_credited_as_it_is_received_and_never_before():
    shells, shell, sent = await a_shell()
    for _ in range(WINDOW_BYTES // MAX_SHELL_BYTES):
        shells.take(ShellOutput(shell=0, data=bytes(MAX_SHELL_BYTES)))
    assert not any(isinstance(frame, ShellCredit) for frame in sent)
    with pytest.raises(ProtocolError):
        shells.take(ShellOutput(shell=0, data=b"x"))
    await shell.receive(1)
    assert sent[-1] == ShellCredit(shell=0, size_bytes=MAX_SHELL_BYTES)
    shells.take(ShellOutput(shell=0, data=b"x"))


async def test_a_program_that_does_not_read_is_not_sent_more_than_the_window(autojump_clock):
    shells, shell, sent = await a_shell()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shell.send, bytes(WINDOW_BYTES + 10))
        await trio.sleep(1)
        assert sum(len(frame.data) for frame in sent[1:]) == WINDOW_BYTES
        shells.take(ShellCredit(shell=0, size_bytes=4))
        await trio.sleep(1)
        assert sum(len(frame.data) for frame in sent[1:]) == WINDOW_BYTES + 4
        shells.take(ShellEnded(shell=0, status=0))  # and the rest goes nowhere


async def test_a_credit_beyond_the_window_changes_nothing(autojump_clock):
    shells, shell, sent = await a_shell()
    for _ in range(5):
        shells.take(ShellCredit(shell=0, size_bytes=WINDOW_BYTES))
    with trio.move_on_after(1):
        await shell.send(bytes(3 * WINDOW_BYTES))
    assert sum(len(frame.data) for frame in sent[1:]) == WINDOW_BYTES


async def test_who_hangs_up_hears_no_more_and_makes_room_for_another():
    shells, shell, sent = await a_shell()
    for _ in range(MOST_SHELLS - 1):
        await shells.open((), 80, 24)
    with pytest.raises(ShellRefused):
        await shells.open((), 80, 24)
    await shell.close()
    await shell.close()
    assert sent.count(CloseShell(shell=0)) == 1
    assert shell.ended == LOST_STATUS
    another = await shells.open((), 80, 24)
    assert another.number == MOST_SHELLS
    shells.take(ShellOutput(shell=0, data=b"last words"))
    shells.take(ShellEnded(shell=0, status=0))
    assert await shell.receive(1) == b""


async def test_a_shell_that_was_never_opened_says_nothing():
    shells, _shell, _sent = await a_shell()
    with pytest.raises(ProtocolError):
        shells.take(ShellOutput(shell=1, data=b"x"))


async def test_all_shells_end_with_their_sandbox():
    shells, shell, _sent = await a_shell()
    shells.take(ShellOutput(shell=0, data=b"x"))
    shells.lose()
    assert await shell.receive(1) == b"x"
    assert shell.ended == LOST_STATUS


async def test_what_no_terminal_can_take_is_refused_before_it_is_sent():
    sent = Sent()
    for argv, columns in ((("a\0",), 80), (("ls",) * 65, 80), ((), 0)):
        with pytest.raises(ShellRefused):
            await RunShells(sent.write).open(argv, columns, 24)
    assert sent == []
