"""A launcher none of whose sandboxes is ever furnished: bubblewrap waits for what somebody is to write.

Either in its outer process, which is alone yet, and dies with the launcher because it asked to before it became
bubblewrap; or in the inner one, which does not ask to die with the outer one before it has furnished the sandbox.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

from hansa.node.isolation import launcher_room
from hansa.node.isolation.launcher import Launcher
from hansa.node.isolation.launcher_guard import serve_guarded


def start_unfurnished_launcher(where):
    """The launcher's process, our end of its socket, and a descriptor: its sandboxes wait until that is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    awaited, awaiting = os.pipe()
    process = subprocess.Popen(
        # The last word is how the harness tells a launcher.
        [
            sys.executable,
            *(str(Path(__file__)), str(theirs.fileno()), str(awaited), where),
            "hansa.node.isolation.launcher",
        ],
        pass_fds=(theirs.fileno(), awaited),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    theirs.close()
    os.close(awaited)
    return process, ours, awaiting


def waits_for(descriptor, where, build_command):
    """Builds commands that wait in the ``"outer"`` or in the ``"inner"`` process."""

    def build(*arguments):
        program, *flags = build_command(*arguments)
        if where == "outer":
            return [program, "--args", str(descriptor), *flags]
        end = flags.index("--chdir")  # after that nothing can be made any more
        return [program, *flags[:end], "--ro-bind-data", str(descriptor), "/etc/awaited", *flags[end:]]

    return build


if __name__ == "__main__":
    control, awaited = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    launcher_room.build_command = waits_for(awaited, sys.argv[3], launcher_room.build_command)
    serve_guarded(control, Launcher(control).serve)
