"""Takes as much as there is, of everything that can be taken. What ends the run is in `bombs`; the rest is survived."""

import ctypes
import errno
import os
import resource
import socket
import struct
import time
from pathlib import Path

from attempt import attempt, outcome

OWN = ("/job/work", "/job/outputs", "/tmp", "/dev/shm")


@attempt
def sparse_files(_facts):
    """A file that says it is a terabyte, in each of the directories."""
    return {place: outcome(_grow, Path(place, "sparse"), 1 << 40) for place in OWN}


@attempt
def empty_files(_facts):
    """How many fit into each directory in a second; their names and inodes are memory, too."""
    return {place: _touch_for(Path(place, "many"), 1.0) for place in OWN}


@attempt
def deep_directories(_facts):
    """As deep as it goes; whoever walks them outside by recursion would not come back."""
    os.chdir("/job/outputs")
    depth = 0
    try:
        while depth < 3000:
            Path("d").mkdir()
            os.chdir("d")
            depth += 1
    except OSError as error:
        return [depth, errno.errorcode[error.errno]]
    return [depth, "done"]


@attempt
def odd_files_among_the_results(_facts):
    """Whatever is no file, and names that no file should have."""
    os.chdir("/job/outputs")
    os.mkfifo("pipe")
    socket.socket(socket.AF_UNIX).bind("socket")
    for name, target in (("link", "/etc/passwd"), ("up", ".."), ("loop", "loop")):
        Path(name).symlink_to(target)
    Path("file").write_text("sound")
    os.link("file", "hard")
    for name in (b"new\nline", b"\xff\xfe", b"\x1b[31m", b"-rf", b"back\\slash", "\u202egnp.exe".encode(), b"a" * 255):
        Path(os.fsdecode(name)).write_text("odd")
    return outcome(os.link, "/job/code/job.py", "code")


@attempt
def open_files(_facts):
    kept = []
    try:
        while len(kept) < 200_000:
            kept.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        return [len(kept), errno.errorcode[error.errno]]
    return [len(kept), "done"]


@attempt
def limits_raised(_facts):
    """A limit that was set outside cannot be raised inside."""
    found = {}
    for name in ("RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE"):
        kind = getattr(resource, name)
        _soft, hard = resource.getrlimit(kind)
        try:
            resource.setrlimit(kind, (hard + 1, hard + 1))
            found[name] = "done"
        except (ValueError, OSError) as error:
            found[name] = type(error).__name__
    return found


def _grow(path, size_bytes):
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with path.open("wb") as file:
            file.truncate(size_bytes)
    finally:
        path.unlink(missing_ok=True)


def _touch_for(folder, seconds):
    folder.mkdir()
    count, deadline = 0, time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            (folder / str(count)).touch()
            count += 1
    except OSError as error:
        return [count, errno.errorcode[error.errno]]
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    return [count, "done"]


# Bombs: each is the whole of a run's code. The memory belongs to no process, and most of it to no file. They end at a
# size that the machine can bear, where nothing else ends them.

MOST_MIB = 3072


def inodes(_ctx):
    folder = Path("/tmp/many")
    folder.mkdir()
    for number in range(MOST_MIB << 10):
        os.close(os.open(folder / f"{number:0200}", os.O_CREAT | os.O_WRONLY))


def nameless_files(_ctx):
    kept = []
    for _ in range(MOST_MIB // 16):
        kept.append(os.memfd_create("bomb"))
        os.write(kept[-1], bytes(16 << 20))


def shared_segments(_ctx):
    """System V: written to, then let go; nobody has them mapped."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    for _ in range(MOST_MIB // 16):
        segment = libc.shmget(0, 16 << 20, 0o1600)
        if segment == -1:
            raise OSError(ctypes.get_errno(), "no segment")
        place = libc.shmat(segment, None, 0)
        ctypes.memset(place, 1, 16 << 20)
        libc.shmdt(ctypes.c_void_p(place))


def message_queues(_ctx):
    """System V: as many as there may be, each as full as it may be. A new namespace allows half a gibibyte of them."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.msgsnd.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    text = struct.pack("l", 1) + bytes(8000)
    for number in range(MOST_MIB << 6):
        queue = libc.msgget(0, 0o1600)
        if queue == -1:
            if number and ctypes.get_errno() == errno.ENOSPC:
                return
            raise OSError(ctypes.get_errno(), "no queue")
        while libc.msgsnd(queue, text, 8000, 0o4000) == 0:
            pass


def semaphore_sets(_ctx):
    """System V: two mebibytes each, and a new namespace allows 32,000 of them. A few show whether they can be had."""
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(32):
        if libc.semget(0, 32_000, 0o1600) == -1:
            raise OSError(ctypes.get_errno(), "no set")


def full_sockets(_ctx):
    kept, sent_bytes = [], 0
    while sent_bytes < MOST_MIB << 20:
        one, other = socket.socketpair()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        one.setblocking(False)
        kept.append((one, other))
        try:
            while True:
                sent_bytes += one.send(bytes(60_000))
        except BlockingIOError:
            continue
