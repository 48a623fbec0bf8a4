"""A launcher that is a unit of its own listens at a path; whoever connects there is looked at before anything is done.

The socket's mode keeps out all but its owner and its group. That is not enough of a lock for a process that is root:
a mode is changed by a hand that slipped, and a group may have more members than the daemon. So the kernel is asked who
connected, and served are root, the launcher's own user, whom the socket was given to, and whose own group is the
socket's, which is how the units say it.
"""

import contextlib
import os
import pwd
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from hansa.node.isolation import confine
from hansa.node.isolation.launcher_guard import serve_guarded
from hansa.node.isolation.launcher_protocol import MAX_PACKET_BYTES, Refused, send

REFUSED_NAME = b"connection"
"""In the place of a run's, to one that is not served."""

Serve = Callable[[socket.socket, int | None], Callable[[int], None]]
"""Given a connection and the uid behind it, if that is not ours: a launcher's whole life."""


def listen(path: str, serve: Serve) -> None:
    """Serve every daemon that connects to this path and may, each in a process of its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        before = os.umask(0o007)  # whoever may connect has sandboxes made: the owner and the group, whoever starts this
        listener.bind(path)
        os.umask(before)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
        us = os.getpid()
        while True:
            control, _address = listener.accept()
            uid = peer_uid(control)
            if not is_served(uid, path):
                turn_away(control, uid)
            elif os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                confine.die_with(us, signal.SIGTERM)
                serve_guarded(control, serve(control, None if uid == os.getuid() else uid))
                os._exit(0)
            control.close()


def peer_uid(control: socket.socket) -> int:
    """Who connected, as the kernel knows it."""
    raw = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(raw[4:8], sys.byteorder, signed=True)


def is_served(uid: int, path: str) -> bool:
    """Whether this user may have sandboxes made by who listens at a path."""
    if uid in (0, os.getuid()):
        return True
    try:
        given_to = Path(path).lstat()
    except OSError:
        return False
    if uid == given_to.st_uid:
        return True
    try:
        return given_to.st_gid != 0 and pwd.getpwuid(uid).pw_gid == given_to.st_gid
    except KeyError:
        return False


def turn_away(control: socket.socket, uid: int) -> None:
    """Say why to whoever connected, as far as that is listened to, and to the owner."""
    why = f"the launcher does not serve uid {uid}: neither its socket nor the socket's group is that user's own"
    sys.stderr.write(f"{why}\n")
    with contextlib.suppress(OSError):
        control.settimeout(0)
        control.shutdown(socket.SHUT_RD)
        while control.recv(MAX_PACKET_BYTES):  # a socket that is closed with something unread takes our words with it
            pass
        send(control, Refused(run=REFUSED_NAME, reason=why))
