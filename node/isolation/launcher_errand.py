"""Something slow that the launcher has done in a process of its own, so that no other run waits for it.

The launcher has one thread and one loop: while it made a file system on a slow disk, nobody else's run could be paused
or ended. An errand is a fork of the launcher that does one thing as whom the launcher is, sends back what came of it,
and ends. It dies with the launcher, and what it has open goes with it.
"""

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable
from typing import Final, NoReturn

import msgpack

from hansa.node.isolation import confine
from hansa.node.isolation.launcher_guard import TOLD, told_later

MAX_ANSWER_BYTES: Final = 16 << 10
MOST_DESCRIPTORS: Final = 16
WORDS: Final = 300

Work = Callable[[], tuple[bytes, list[int]]]
"""What is to be done; gives bytes and descriptors. What fails, fails as ``OSError``."""


class Errand:
    """One thing that is being done.

    Attributes:
        fd: readable once it is done, one way or the other.
        pid: who does it.
    """

    def __init__(self, work: Work) -> None:
        """Begin."""
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        us = os.getpid()
        with told_later():
            self.pid = os.fork()
            if self.pid == 0:
                _run(work, theirs, us)
        theirs.close()
        self.fd = self._ours.fileno()

    def result(self) -> tuple[bytes, list[int]]:
        """What came of it, once `fd` is readable. The descriptors are the caller's.

        Raises:
            OSError: it failed, or whoever did it was killed.
        """
        try:
            packet, descriptors, _flags, _address = socket.recv_fds(self._ours, MAX_ANSWER_BYTES, MOST_DESCRIPTORS)
            for descriptor in descriptors:
                # No sandbox may inherit what comes. (Not by a flag of the call: Python 3.11 does not pass that on.)
                os.set_inheritable(descriptor, False)
        finally:
            self.drop()
        if not packet:
            raise OSError(errno.EIO, "whoever was to do it ended without a word")
        number, words, answer = msgpack.unpackb(packet)
        if words:
            raise OSError(number, words)
        return answer, descriptors

    def drop(self) -> None:
        """It is not wanted any more, or is done."""
        self._ours.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _run(work: Work, theirs: socket.socket, parent: int) -> NoReturn:
    """In the forked process: do it, say what came of it, and leave."""
    try:
        for number in TOLD:
            signal.signal(number, signal.SIG_DFL)  # the launcher's own would tell the launcher to end
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
        confine.die_with(parent)
        answer, descriptors = work()
        socket.send_fds(theirs, [msgpack.packb((0, "", answer))], descriptors)
    except OSError as error:
        words = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        _say(theirs, error.errno or errno.EIO, words)
    except BaseException as error:  # noqa: BLE001 - this process must not go on as a second launcher
        _say(theirs, errno.EIO, f"{type(error).__name__}: {error}")
    os._exit(0)


def _say(theirs: socket.socket, number: int, words: str) -> None:
    with contextlib.suppress(OSError):
        theirs.send(msgpack.packb((number, words[:WORDS] or "it failed", b"")))
