"""In which order the launcher does what has become ready at once, and for whom it waits when it ends."""

import os
import selectors
import socket
import subprocess
from types import SimpleNamespace

from hansa.node.isolation import launcher as launcher_module
from hansa.node.isolation import launcher_guard
from hansa.node.isolation.launcher import Launcher


def test_what_was_closed_meanwhile_is_not_heard_under_a_number_that_is_anothers_now():
    """A read from the other one blocks, and nobody else is paused, ended or killed for so long."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    launcher = Launcher(theirs)
    selector, done = launcher._selector, []
    first, second = os.pipe(), os.pipe()

    def take_the_place_of(pipe, name):
        def act():
            done.append(name)
            selector.unregister(pipe[0])
            os.dup2(ours.fileno(), pipe[0])
            selector.register(pipe[0], selectors.EVENT_READ, lambda: done.append("the new one"))

        return act

    # Whichever of the two comes first replaces the other.
    selector.register(first[0], selectors.EVENT_READ, take_the_place_of(second, "first"))
    selector.register(second[0], selectors.EVENT_READ, take_the_place_of(first, "second"))
    for _, end in (first, second):
        os.write(end, b"x")
    launcher._do_what_is_ready(10)
    assert done in (["first"], ["second"])
    for descriptor in (*first, *second):
        os.close(descriptor)
    ours.close()
    theirs.close()


def test_words_that_somebody_took_back_are_nobodys_end():
    """Where the launcher is an ordinary user, a job may open the pipe of its own standard error for reading."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe2(os.O_NONBLOCK)
    room = SimpleNamespace(words_fd=reading, words=b"before")
    Launcher(theirs)._hear(room)
    assert room.words == b"before"
    for descriptor in (reading, writing):
        os.close(descriptor)
    ours.close()
    theirs.close()


def test_a_launcher_ends_even_if_its_children_cannot_be_found(monkeypatch, capfd):
    def fail():
        raise RuntimeError("no /proc")

    monkeypatch.setattr(launcher_guard, "end_children", fail)
    us = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            launcher_guard._live(us, lambda _told: None)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_sandbox_that_does_not_die_does_not_keep_the_launcher_from_ending(monkeypatch):
    """One whose process waits in a driver dies when that is done with it."""
    monkeypatch.setattr(launcher_module, "END_S", 0.05)
    for name in ("remove_leftovers", "remove_bundles"):
        monkeypatch.setattr(launcher_module, name, lambda *_: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    launcher = Launcher(theirs)
    monkeypatch.setattr(launcher, "_kill", lambda _room: None)
    with subprocess.Popen(["/bin/sleep", "20"]) as undying:
        try:
            ended_fd = os.pidfd_open(undying.pid)
            launcher._rooms[b"run"] = SimpleNamespace(pid=undying.pid, ended_fd=ended_fd, group=object())
            told, tell = os.pipe()
            os.write(tell, b"!")
            launcher.serve(told)
            assert undying.poll() is None, "the launcher waited for it"
        finally:
            undying.kill()
    for descriptor in (ended_fd, told, tell):
        os.close(descriptor)
    ours.close()
    theirs.close()
