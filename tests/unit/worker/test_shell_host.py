"""Terminals as the sandbox has them, outside of one."""

import queue
import time
from pathlib import Path

import pytest

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
from hansa.worker.shell_host import ShellHost, session_members

FOR_EVER = 'trap "" HUP; while :; do sleep 0.1; done'


def open_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Room:
    """A host of shells, and everything that it sent."""

    def __init__(self, directory):
        self.sent = queue.Queue()
        self.host = ShellHost(self.sent.put, directory)
        self.told = []

    def open(self, *argv, shell=0):
        self.host.take(OpenShell(shell=shell, argv=argv, columns=80, rows=24))

    def type(self, data, shell=0):
        self.host.take(ShellInput(shell=shell, data=data))

    def wait_for(self, enough, within_s=10):
        deadline = time.monotonic() + within_s
        while not enough():
            self.told.append(self.sent.get(timeout=max(0.01, deadline - time.monotonic())))
        return self.told

    def output(self, shell=0):
        return b"".join(f.data for f in self.told if isinstance(f, ShellOutput) and f.shell == shell)

    def status(self, shell=0):
        return next((f.status for f in self.told if isinstance(f, ShellEnded) and f.shell == shell), None)

    def wait_for_end(self, shell=0):
        self.wait_for(lambda: self.status(shell) is not None)
        return self.status(shell)


@pytest.fixture
def room(tmp_path):
    room = Room(tmp_path)
    yield room
    for shell in list(room.host._shells):
        room.host.take(CloseShell(shell=shell))


def test_a_program_runs_at_a_terminal_of_its_own_in_the_runs_directory(room, tmp_path):
    room.open("sh", "-c", "tty; stty size; pwd; echo $TERM; exec 3</dev/tty && echo controlling; exit 5")
    assert room.wait_for_end() == 5
    tty, size, directory, term, controlling = room.output().decode().split()[:1] + [
        line.strip() for line in room.output().decode().splitlines()[1:]
    ]
    assert tty.startswith("/dev/pts/")
    assert size == "24 80"
    assert Path(directory) == tmp_path
    assert (term, controlling) == ("xterm-256color", "controlling")


def test_without_a_program_it_is_a_shell_that_can_be_spoken_to_and_interrupted(room):
    room.open()
    room.type(b"echo sum=$((40+2)); sleep 60\r")
    room.wait_for(lambda: b"sum=42" in room.output())
    time.sleep(0.3)
    room.type(b"\x03")
    room.host.take(ResizeShell(shell=0, columns=132, rows=50))
    room.type(b"stty size; exit 3\r")
    assert room.wait_for_end() == 3
    assert b"50 132" in room.output()


def test_a_signal_is_told_as_a_shell_would_and_a_program_that_is_not_there_as_well(room):
    room.open("sh", "-c", "kill -9 $$", shell=0)
    room.open("/no/such/program", shell=1)
    assert room.wait_for_end(0) == 128 + 9
    assert room.wait_for_end(1) == 127
    assert b"No such file" in room.output(1)


def test_a_flood_stops_at_the_window_and_goes_on_with_the_credit(room):
    room.open("sh", "-c", "yes | head -c 300000")
    room.wait_for(lambda: len(room.output()) == SHELL_WINDOW_BYTES)
    time.sleep(0.3)
    assert room.sent.empty(), "not a byte more than the window"
    assert room.status() is None
    room.host.take(ShellCredit(shell=0, size_bytes=1000))
    room.wait_for(lambda: len(room.output()) == SHELL_WINDOW_BYTES + 1000)
    for _ in range(20):
        room.host.take(ShellCredit(shell=0, size_bytes=SHELL_WINDOW_BYTES))
    assert room.wait_for_end() == 0
    assert len(room.output()) == 450_000, "the terminal made two bytes of each end of a line"
    assert max(len(f.data) for f in room.told if isinstance(f, ShellOutput)) <= MAX_SHELL_BYTES


def test_what_is_typed_is_credited_when_the_program_has_taken_it_and_never_blocks(room):
    room.open("sh", "-c", "stty raw -echo; echo ready; sleep 60")
    room.wait_for(lambda: b"ready" in room.output())
    before_s = time.monotonic()
    for _ in range(4):
        room.type(bytes(MAX_SHELL_BYTES))
    assert time.monotonic() - before_s < 0.5
    time.sleep(0.5)
    credited = sum(f.size_bytes for f in list(room.sent.queue) if isinstance(f, ShellCredit))
    assert credited < SHELL_WINDOW_BYTES, "nobody has read it"


def test_who_hangs_up_ends_what_was_started_at_the_terminal(room):
    room.open("sh", "-c", f"({FOR_EVER}) & echo started; {FOR_EVER}")
    room.wait_for(lambda: b"started" in room.output())
    (session,) = room.host.sessions()
    assert len(session_members(session)) >= 2
    room.host.take(CloseShell(shell=0))
    room.wait_for_end()
    deadline = time.monotonic() + 5
    while session_members(session) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert session_members(session) == []


def test_a_program_that_ended_is_told_although_another_holds_its_terminal(room):
    room.open("sh", "-c", "(trap '' HUP; sleep 3) & echo over; exit 4")
    before_s = time.monotonic()
    assert room.wait_for_end() == 4
    assert time.monotonic() - before_s < 2.5
    assert b"over" in room.output()


def test_descriptors_are_given_back(room):
    before = open_descriptors()
    for shell in range(5):
        room.open("true", shell=shell)
        room.wait_for_end(shell)
    deadline = time.monotonic() + 5
    while open_descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert open_descriptors() <= before
