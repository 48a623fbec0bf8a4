"""System calls and sockets by which a process could leave its room, each asked for in a way that tells who refused.

Where rights alone would refuse with the same error as the filter, the call is made with arguments that the kernel
rejects first with another error: so the outcome ``EPERM`` is the filter's.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

from attempt import ATTEMPTS, attempt, call, libc, outcome
from door_list import CALLS, FAMILIES, NEW

for _name, _arguments in CALLS.items():
    ATTEMPTS[f"call_{_name}"] = lambda _facts, arguments=_arguments: outcome(call, *arguments)
for _name, _family in FAMILIES.items():
    ATTEMPTS[f"socket_{_name}"] = lambda _facts, family=_family: outcome(_sockets, family)
    ATTEMPTS[f"pair_{_name}"] = lambda _facts, family=_family: outcome(_pairs, family)


def _sockets(family):
    """The first kind of socket that can be had, or the last error."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW, socket.SOCK_RDM):
        result = outcome(call, 41, family, kind, 0)
        if result not in ("ESOCKTNOSUPPORT", "EPROTONOSUPPORT"):
            break
    return result


def _pairs(family):
    return outcome(call, 53, family, socket.SOCK_STREAM, 0, (ctypes.c_int * 2)())


@attempt
def clone3_user(_facts):
    """Its flags hide behind a pointer, where no filter can look."""
    arguments = (ctypes.c_uint64 * 8)(NEW["user"], 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    return outcome(call, 435, arguments, 64)


@attempt
def raw_socket(_facts):
    return outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())


@attempt
def new_interface(_facts):
    """RTM_NEWLINK for a dummy device in the sandbox's own network."""
    line = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    kind = struct.pack("<HH", 4 + 6, 1) + b"dummy\0\0\0"
    body = struct.pack("<BBHiII", 0, 0, 0, 0, 0, 0) + struct.pack("<HH", 4 + len(kind), 18) + kind
    line.send(struct.pack("<IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
    return errno.errorcode.get(-struct.unpack_from("<i", line.recv(4096), 16)[0], "done")


def _the_other():
    """A process of the same user, whose memory and descriptors are to be had."""
    other = subprocess.Popen(["/usr/bin/sleep", "60"], stdin=subprocess.PIPE)
    time.sleep(0.2)
    return other


@attempt
def trace_another(_facts):
    return outcome(call, 101, 0x4206, _the_other().pid, 0, 0)


@attempt
def read_anothers_memory(_facts):
    local = (ctypes.c_char * 8)()
    vector = struct.pack("<QQ", ctypes.addressof(local), 0)
    return outcome(call, 310, _the_other().pid, vector, 1, vector, 1, 0)


@attempt
def write_anothers_memory(_facts):
    local = (ctypes.c_char * 8)()
    vector = struct.pack("<QQ", ctypes.addressof(local), 0)
    return outcome(call, 311, _the_other().pid, vector, 1, vector, 1, 0)


@attempt
def take_anothers_descriptor(_facts):
    return outcome(call, 438, os.pidfd_open(_the_other().pid), 0, 0)


@attempt
def compare_with_another(_facts):
    return outcome(call, 312, os.getpid(), _the_other().pid, 2, 0, 0)


@attempt
def type_into_a_terminal(_facts):
    """TIOCSTI and TIOCLINUX put characters into a terminal as if somebody had typed them."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, 0x540E, 0)
    return [outcome(fcntl.ioctl, theirs, 0x5412, b"x"), outcome(fcntl.ioctl, ours, 0x541C, b"\x03")]


@attempt
def legacy_call(_facts):
    """The call getpid by the 32-bit gate: ``mov eax, 20; int 0x80; ret``."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    gate = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    return "done" if gate() == os.getpid() else "EFAULT"


@attempt
def programs_with_more_rights(_facts):
    """Whether any setuid program starts with an effective uid of its own."""
    for name in ("su", "mount", "umount", "passwd", "chsh", "newgrp", "sudo"):
        path = Path("/usr/bin", name)
        if path.exists() and path.stat().st_mode & 0o4000:
            done = subprocess.run([str(path), "-c", "id"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
            if b"uid=0" in done.stdout:
                return name
    return "none"


@attempt
def real_time_priority(_facts):
    return outcome(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))


@attempt
def higher_priority(_facts):
    return outcome(os.setpriority, os.PRIO_PROCESS, 0, -5)


@attempt
def lock_much_memory(_facts):
    return outcome(lambda: _check(libc.mlockall(3)))


@attempt
def never_to_be_chosen_when_memory_ends(_facts):
    """-1000 would spare this process and have the host's killed in its place."""
    return outcome(Path("/proc/self/oom_score_adj").write_text, "-1000")


@attempt
def dump_core(_facts):
    """core_pattern is the host's: a dump may be piped to a program there, as root, with this process's name."""
    pid = os.fork()
    if pid == 0:
        os.abort()
    return "dumped" if os.WCOREDUMP(os.waitpid(pid, 0)[1]) else "no core"


def _check(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), "")
