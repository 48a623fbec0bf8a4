"""How a daemon comes by its launcher: it starts one as its child, or connects to one that runs as a unit of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Launch = Callable[[], tuple[subprocess.Popen[bytes] | None, socket.socket]]
"""Gives a launcher's socket, and its process if that is a child of ours. To be called in the main thread."""


def start_launcher() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a launcher as our child; gives it and our end of its socket. To be called in the main thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "hansa.node.isolation.launcher", str(theirs.fileno())],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        cwd="/",
        # A terminal's Ctrl-C goes to the whole process group; sandboxes end when the daemon says so.
        start_new_session=True,
    )
    theirs.close()
    return process, ours


def connect_launcher(path: str) -> socket.socket:
    """The socket of a launcher that runs as a unit of its own."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        control.connect(path)
    except OSError as error:
        control.close()
        raise OSError(error.errno, f"no launcher answers: {os.strerror(error.errno or 0)}", path) from error
    return control


def launch_with(path: Path | None) -> Launch:
    """How a node comes by its launcher: it connects to the one at ``path``, or starts one of its own."""
    return start_launcher if path is None else lambda: (None, connect_launcher(str(path)))
