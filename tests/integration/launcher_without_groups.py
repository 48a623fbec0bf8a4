"""A launcher that counts memory and processes by itself, as every ordinary user's does, also where the test is root."""

import socket
import subprocess
import sys
from pathlib import Path

from hansa.node.isolation.launcher import Launcher
from hansa.node.isolation.launcher_guard import serve_guarded


def start_launcher_without_groups():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            # The last word is how the harness tells a launcher.
            [sys.executable, str(Path(__file__)), str(theirs.fileno()), "hansa.node.isolation.launcher"],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return process, ours


if __name__ == "__main__":
    control = socket.socket(fileno=int(sys.argv[1]))
    serve_guarded(control, Launcher(control, group_maker=lambda _name, _limits: None).serve)
