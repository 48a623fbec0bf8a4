"""Job code that tries what it must not be able to do, and writes down what came of it. Runs inside a sandbox."""

import ctypes
import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

AF_VSOCK = 40


def outcome(attempt, *arguments):
    """``"done"`` if the attempt succeeded, else the name of its error."""
    try:
        result = attempt(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno)) if error.errno else type(error).__name__
    return "done" if result is None else result


def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments)) == -1:
        raise OSError(ctypes.get_errno(), "")


def read(path):
    Path(path).read_bytes() if not Path(path).is_dir() else list(Path(path).iterdir())


def write(path):
    Path(path).open("ab").close()


def connect(address, family=socket.AF_INET):
    with socket.socket(family) as line:
        line.settimeout(2)
        line.connect(address)


def fill(directory):
    """How many MiB could be written before it was full."""
    written = 0
    try:
        with Path(directory, "filler").open("wb") as file:
            while written < 2048:
                file.write(bytes(1 << 20))
                file.flush()
                written += 1
    except OSError as error:
        return [written, errno.errorcode[error.errno]]
    finally:
        Path(directory, "filler").unlink()
    return [written, "done"]


def fork_bomb():
    """How many processes could be made, and what stopped it."""
    pids = []
    try:
        while len(pids) < 5000:
            pids.append(os.posix_spawn("/usr/bin/sleep", ["sleep", "1000"], {}))
    except OSError as error:
        return [len(pids), errno.errorcode[error.errno]]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
    return [len(pids), "done"]


def linger():
    """How long a socket of ours keeps whoever closes it last, after we asked for a minute; and another option."""
    with socket.socket() as lingers:
        lingers.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        lingers.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        asked = lingers.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        return [*struct.unpack("ii", asked), lingers.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]


def su():
    return subprocess.run(["/usr/bin/su", "-c", "id"], stdin=subprocess.DEVNULL, check=False).returncode


def look(ctx):
    p = ctx.parameters
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    unshare_user, mount_nothing = (272, 0x10000000), (165, 0, 0, 0, 0, 0)
    found = {
        "uid": os.getuid(),
        "status": {name: status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")},
        "read": {path: outcome(read, path) for path in p["secrets"]},
        "write": {path: outcome(write, path) for path in p["targets"]},
        "loopback": outcome(connect, ("127.0.0.1", p["port"])),
        "outside": outcome(connect, ("192.0.2.1", 80)),
        "abstract": outcome(connect, "\0" + p["abstract"], socket.AF_UNIX),
        "vsock": outcome(lambda: socket.socket(AF_VSOCK, socket.SOCK_STREAM).close()),
        "packets": outcome(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
        "signal": outcome(os.kill, p["host_pid"], 0),
        "linger": linger(),
        "pids": sum(entry.name.isdigit() for entry in Path("/proc").iterdir()),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "unshare": outcome(call, *unshare_user),
        "mount": outcome(call, *mount_nothing),
        "keyctl": outcome(call, 250, 0, -3),
        "io_uring": outcome(call, 425, 8, 0),
        "ptrace": outcome(call, 101, 16, os.getppid(), 0, 0),
        "setuid": outcome(os.setuid, 0),
        "modules": [name for name in ("hansa.node.engine.engine", "hansa.market.machine") if importable(name)],
        "su": outcome(su),
        "environment": sorted(os.environ),
    }
    found["work"], found["outputs"], found["tmp"] = fill(Path.cwd()), fill(ctx.outputs), fill("/tmp")
    found["shm"] = fill("/dev/shm")
    found["fork"] = fork_bomb()
    (ctx.outputs / "found.json").write_text(json.dumps(found))
    (ctx.outputs / "link").symlink_to("/etc/passwd")
    print("\x1b]0;owned\x07plain")


def importable(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def eat(ctx):
    """Take memory until somebody stops it."""
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20)) * 16)


def spread(ctx):
    """Leave processes in every way there is, then wait."""
    for _ in range(3):
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                signal.pause()
        os._exit(0)
    ctx.report(step=1)
    while True:
        signal.pause()


def shout(ctx):
    """Print without end."""
    while True:
        sys.stdout.write("x" * 65536 + "\n")
