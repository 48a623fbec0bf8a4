"""A launcher none of whose sandboxes is ever furnished: bubblewrap waits for what somebody is to write.

Either in its outer process, which is alone yet, and dies with the launcher because it asked to before it became
bubblewrap; or in the inner one, which does not ask to die with the outer one before it has furnished the sandbox. Or
the launcher gets no descriptor by which it would see the outer one's end, as where too many are open.
"""

import errno
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


def waits_for(awaited, where, build_command):
    """Builds commands that wait in the outer process, or in the ``"inner"`` one."""

    def build(equipment, spec, runner_fd, open_data, places):
        program, *flags = build_command(equipment, spec, runner_fd, open_data, places)
        # It inherits nothing but what it is made with.
        os.dup2(awaited, descriptor := open_data("awaited", b""), inheritable=False)
        if where != "inner":
            return [program, "--args", str(descriptor), *flags]
        end = flags.index("--chdir")  # after that nothing can be made any more
        return [program, *flags[:end], "--ro-bind-data", str(descriptor), "/etc/awaited", *flags[end:]]

    return build


def too_many(_pid):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


if __name__ == "__main__":
    control, awaited = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    launcher_room.build_command = waits_for(awaited, sys.argv[3], launcher_room.build_command)
    if sys.argv[3] == "unwatched":
        os.pidfd_open = too_many
        # A control group would be removed with all that is in it.
        serve_guarded(control, Launcher(control, group_maker=lambda _name, _limits: None).serve)
    else:
        serve_guarded(control, Launcher(control).serve)
