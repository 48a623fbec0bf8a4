"""Notices the end of processes that are not children of this one, and says how they ended.

The kernel tells by a pidfd that a process has ended, and from Linux 6.15 on with which status, even if its parent has
reaped it. On older kernels the status is known only while nobody has reaped it; then `faulthandler` in the worker may
have left word. Where there are no pidfds the processes are looked at every second.
"""

import fcntl
import os
import select
import signal
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

PIDFD_INFO_BYTES = 64
PIDFD_GET_INFO = (3 << 30) | (PIDFD_INFO_BYTES << 16) | (0xFF << 8) | 11
PIDFD_INFO_EXIT = 1 << 3
EXIT_CODE_AT = 60
LOOK_S = 1.0
REAPED_WITHIN_S = 0.3
UNKNOWN = "ended"
CRASH_CHARS = 2000


class Deaths:
    """Watches processes by name, in a thread of its own."""

    def __init__(self, on_death: Callable[[str, str], None]) -> None:
        """Call ``on_death(name, how)`` in that thread for each process that ends."""
        self._on_death = on_death
        self._lock = threading.Lock()
        self._watched: dict[str, tuple[int, int | None]] = {}
        self._how: dict[str, str] = {}
        self._wake_reading, self._wake_writing = os.pipe()
        threading.Thread(target=self._serve, daemon=True, name="hansa-deaths").start()

    def watch(self, name: str, pid: int) -> None:
        """Watch a process from now on."""
        try:
            descriptor: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._ended(name, UNKNOWN)
            return
        except OSError:
            descriptor = None  # no such system call here
        with self._lock:
            self._watched[name] = (pid, descriptor)
        os.write(self._wake_writing, b"x")

    def pids(self) -> set[int]:
        """The processes that are being watched and live."""
        with self._lock:
            return {pid for pid, _descriptor in self._watched.values()}

    def how(self, name: str, within_s: float = 1.0) -> str | None:
        """How a process ended, e.g. ``"was killed by SIGKILL"``; ``None`` if it lives on."""
        deadline = time.monotonic() + within_s
        while name not in self._how and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._how.get(name)

    def _serve(self) -> None:
        while True:
            poll = select.poll()
            poll.register(self._wake_reading, select.POLLIN)
            with self._lock:
                watched = dict(self._watched)
            for _pid, descriptor in watched.values():
                if descriptor is not None:
                    poll.register(descriptor, select.POLLIN)
            ready = {descriptor for descriptor, _events in poll.poll(LOOK_S * 1000)}
            if self._wake_reading in ready:
                os.read(self._wake_reading, 4096)
            for name, (pid, descriptor) in watched.items():
                if descriptor in ready or (descriptor is None and not _lives(pid)):
                    with self._lock:
                        del self._watched[name]
                    self._ended(name, _how_ended(pid, descriptor))
                    if descriptor is not None:
                        os.close(descriptor)

    def _ended(self, name: str, how: str) -> None:
        self._how[name] = how
        self._on_death(name, how)


def crash_path(pid: int) -> Path:
    """Where a worker leaves word of a signal that ends it."""
    return Path(f"/tmp/hansa-crash-{pid}")  # noqa: S108 - the sandbox's own


def read_crash(pid: int) -> str:
    """What a worker that a signal ended could still say, as far as it is the job's own lines."""
    try:
        # The job could have put anything there; a pipe that nobody writes to must not hold up the news of its end.
        descriptor = os.open(crash_path(pid), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
            return file.read(CRASH_CHARS).strip()
    except OSError:
        return ""


def words_for(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    return f"exited with status {os.WEXITSTATUS(status)}"


def _how_ended(pid: int, descriptor: int | None) -> str:
    """Its status, from its remains or from its pidfd; whoever is its parent may be about to reap it."""
    deadline = time.monotonic() + REAPED_WITHIN_S
    while True:
        status = _status_of_remains(pid)
        if status is None and descriptor is not None:
            status = _status_of_pidfd(descriptor)
        if status is not None:
            return words_for(status)
        if time.monotonic() > deadline:
            return UNKNOWN
        time.sleep(0.01)


def _status_of_remains(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[49]) if fields and fields[0] == "Z" else None


def _status_of_pidfd(descriptor: int) -> int | None:
    info = bytearray(PIDFD_INFO_BYTES)
    struct.pack_into("=Q", info, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(descriptor, PIDFD_GET_INFO, info)
    except OSError:
        return None  # an older kernel, or it has not been reaped
    (mask,) = struct.unpack_from("=Q", info, 0)
    if not mask & PIDFD_INFO_EXIT:
        return None
    (status,) = struct.unpack_from("=i", info, EXIT_CODE_AT)
    return int(status)


def _lives(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX"


def _stat(pid: int) -> list[str]:
    """What /proc says of a process, from its state on; nothing if it is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
