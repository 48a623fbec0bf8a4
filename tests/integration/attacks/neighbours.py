"""What can be reached of another run on the same machine: its files, sockets, memory, processes, its Ray cluster."""

import ctypes
import os
import socket
import struct
from pathlib import Path

from attempt import attempt, call, libc, outcome
from victim import listening_ports

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@attempt
def neighbours_files(facts):
    places = ("/dev/shm", "/tmp", "/job/work", "/job/outputs", "/run", "/var/tmp")
    return [place for place in places if Path(place, facts["marker"]).exists()]


@attempt
def neighbours_ray_sessions(_facts):
    """Directories of clusters; one is our own."""
    return len([path for path in Path("/tmp/ray").glob("session_*") if not path.is_symlink()])


@attempt
def neighbours_ports(facts):
    """Those that answer although nobody listens on them in here."""
    own = set(listening_ports())
    found = []
    for port in facts["ports"]:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            how = outcome(_connect, family, (address, port))
            if how == "done" and port not in own:
                found.append(port)
    return found


@attempt
def neighbours_abstract_socket(facts):
    return outcome(_connect, socket.AF_UNIX, "\0" + facts["marker"])


@attempt
def neighbours_socket_file(facts):
    return outcome(_connect, socket.AF_UNIX, f"/tmp/{facts['marker']}.sock")


@attempt
def neighbours_shared_memory(facts):
    return outcome(_checked, libc.shmget, facts["key"], 0, 0)


@attempt
def neighbours_message_queue(facts):
    return outcome(_checked, libc.mq_open, f"/{facts['marker']}".encode(), os.O_RDWR)


@attempt
def neighbours_by_name(facts):
    """Processes whose command line holds the marker; the attempts' own do not, it came in by a pipe."""
    there = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [entry.name for entry in there if facts["marker"].encode() in (entry / "cmdline").read_bytes()]


@attempt
def neighbours_signalled(facts):
    return sorted({outcome(os.kill, pid, 0) for pid in facts["pids"]})


@attempt
def neighbours_memory(facts):
    """By the files in /proc, which no filter of calls guards."""
    return sorted({outcome(lambda p: Path(f"/proc/{p}/mem").open("rb").close(), pid) for pid in facts["pids"]})


@attempt
def neighbours_memory_by_call(facts):
    local = (ctypes.c_char * 8)()
    vector = struct.pack("<QQ", ctypes.addressof(local), 0)
    return sorted({outcome(call, 310, pid, vector, 1, vector, 1, 0) for pid in facts["pids"]})


@attempt
def neighbours_traced(facts):
    return sorted({outcome(call, 101, 0x4206, pid, 0, 0) for pid in facts["pids"]})


@attempt
def neighbours_descriptors(facts):
    return sorted({outcome(lambda p: os.close(os.pidfd_open(p)), pid) for pid in facts["pids"]})


@attempt
def neighbours_rooms(facts):
    return sorted({outcome(lambda p: list(Path(f"/proc/{p}/root/job").iterdir()) and None, p) for p in facts["pids"]})


@attempt
def neighbours_limits(facts):
    """Prlimit on a neighbour's process would end it or free it of its limits."""
    return sorted({outcome(call, 302, pid, 7, 0, 0) for pid in facts["pids"]})


@attempt
def neighbours_priorities(facts):
    """By user: without a user namespace of its own, all of a uid's processes would be slowed."""
    return sorted({outcome(os.setpriority, os.PRIO_PROCESS, pid, 19) for pid in facts["pids"]})


def _connect(family, address):
    with socket.socket(family) as line:
        line.settimeout(2)
        line.connect(address)


def _checked(function, *arguments):
    if function(*arguments) == -1:
        raise OSError(ctypes.get_errno(), "")
