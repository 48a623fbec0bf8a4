"""The room in which an owner's pricing program runs: a read-only system, no network, only the files that it was given.

The program is the owner's own, but what it reads are strangers' words, and those have fooled better programs. So it has
nothing to lose: not the node's keys, journal or data, no other process, no network; little memory and time.

``python -m hansa.node.pricing.price_room`` is the process that becomes bubblewrap, as in
``hansa.node.isolation.build_room``; as everywhere bubblewrap is never started by uid 0. Its standard input and output
are the program's.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from hansa.node.isolation import confine
from hansa.node.isolation.sandbox import system_flags
from hansa.node.isolation.sandbox_equipment import find_bwrap
from hansa.node.isolation.seccomp import open_filter

PRICING_UID = 65_001
"""Who prices where the daemon is root; next to who builds, and nobody else."""
INSIDE_UID = 1000
MEMORY_BYTES = 512 << 20
"""Of address space for each of its processes, and of memory for all of them together, looked at while it runs."""
FILE_BYTES = 8 << 20
PROCESSES = 32
OPEN_FILES = 256
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/nix/store")
"""What is in the room anyway."""


def mounted(command: tuple[str, ...], files: tuple[str, ...]) -> tuple[str, ...]:
    """What of the host the room shows beside the system: the program, arguments that are files, and what is listed."""
    named = [*files, command[0], *(word for word in command[1:] if word.startswith("/") and Path(word).exists())]
    beside = (path for path in named if not any(Path(path).is_relative_to(place) for place in SYSTEM))
    return tuple(dict.fromkeys(os.path.normpath(path) for path in beside))


def main(arguments: list[str]) -> None:
    """Become bubblewrap with the program in it.

    Args:
        arguments: a descriptor with the order as JSON, and one that closes when bubblewrap begins.
    """
    with os.fdopen(int(arguments[0]), "rb") as order:
        wanted = json.load(order)
    # Whoever started this may have ended before now; then its number is not that of our parent, and nobody waits.
    parent = wanted["parent"]
    os.set_inheritable(int(arguments[1]), False)
    command, shown = tuple(wanted["command"]), tuple(wanted["shown"])
    bwrap_root, bwrap = find_bwrap()
    confine.set_limits(file_bytes=None, processes=PROCESSES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (wanted["cpu_s"], wanted["cpu_s"]))
    place: Callable[[str], str] = str
    if os.getuid() == 0:
        sources = [bwrap_root, *shown]
        place = confine.staged(sources)
        confine.stage(sources, {})
        resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
        confine.drop_to(PRICING_UID)
    confine.die_with(parent)
    # Nobody but us counts this room's memory: none may be had that belongs to no process (2 GiB in one were, by memfd).
    filter_fd = open_filter(uncounted=False)
    os.set_inheritable(filter_fd, True)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    line = [place(bwrap), "--seccomp", str(filter_fd), *_flags(shown, place), "--", *command]
    os.execve(line[0], line, {})  # noqa: S606 - there is no shell here, on purpose


def _flags(shown: tuple[str, ...], place: Callable[[str], str]) -> list[str]:
    flags = [
        *("--unshare-user", "--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID)),
        *("--disable-userns", "--assert-userns-disabled"),
        *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--unshare-net"),
        # No --new-session: the session is new and without a terminal already, and until bubblewrap's own first process
        # is bound to its parent's life it must be found in the group that is killed (it outlived that, once in 40).
        *("--die-with-parent", "--hostname", "price", "--cap-drop", "ALL"),
        *system_flags(),
        *("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"),
        *("--perms", "1777", "--size", str(FILE_BYTES), "--tmpfs", "/tmp"),  # noqa: S108 - the room's own
    ]
    for path in shown:
        flags += ["--ro-bind", place(path), path]
    flags.append("--clearenv")
    for name, value in {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}.items():  # noqa: S108
        flags += ["--setenv", name, value]
    return [*flags, "--chdir", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/"]  # noqa: S108


if __name__ == "__main__":
    main(sys.argv[1:])
