"""What can be seen, opened, read and written in a sandbox: files, devices, mounts, processes, descriptors."""

import contextlib
import os
import socket
import stat
import time
from pathlib import Path

from attempt import attempt, outcome


def _read(path):
    target = Path(path)
    if target.is_dir():
        list(target.iterdir())
    else:
        with target.open("rb") as file:
            file.read(64)


def _open_to_write(path):
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))


@attempt
def reads(facts):
    return {path: outcome(_read, path) for path in facts["secrets"]}


@attempt
def writes(facts):
    return {path: outcome(_open_to_write, path) for path in facts["switches"]}


@attempt
def creates(facts):
    """A new file in each directory that is not the job's own."""
    return {path: outcome(lambda p: Path(p, "hansa-was-here").touch(exist_ok=False), path) for path in facts["places"]}


@attempt
def kernel_settings_that_can_be_written(_facts):
    found = []
    for top in ("/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/scsi", "/proc/acpi"):
        for directory, _, names in os.walk(top):
            for name in names:
                path = str(Path(directory, name))
                if outcome(_open_to_write, path) == "done":
                    found.append(path)
    return found


@attempt
def files_of_proc_that_can_be_written(_facts):
    """Outside of the processes' own directories."""
    files = [str(entry) for entry in Path("/proc").iterdir() if not entry.name.isdigit() and entry.is_file()]
    return [path for path in files if outcome(_open_to_write, path) == "done"]


@attempt
def mounts(_facts):
    """Where, of which type, and with which options."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        _number, _parent, _device, _root, where, options, *_ = before.split()
        found.append([where, after.split()[0], options.split(",")])
    return found


@attempt
def devices(_facts):
    """Every device node that there is, and whether it opens."""
    found = {}
    for directory, _, names in os.walk("/dev"):
        for name in names:
            path = str(Path(directory, name))
            mode = os.lstat(path).st_mode
            if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
                found[path] = "block" if stat.S_ISBLK(mode) else "char"
    return found


@attempt
def makes_devices(facts):
    """/dev/mem, the first disk and a loop device, wherever something can be written."""
    found = {}
    for place in facts["own"]:
        for name, kind, device in (
            ("mem", stat.S_IFCHR, os.makedev(1, 1)),
            ("disk", stat.S_IFBLK, os.makedev(254, 0)),
            ("loop", stat.S_IFBLK, os.makedev(7, 0)),
        ):
            path = f"{place}/{name}"
            found[path] = outcome(os.mknod, path, kind | 0o666, device)
    return found


@attempt
def processes(_facts):
    """Each one's name, owner, session and terminal."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            _state, _parent, _group, session, terminal, *_ = rest.split()
            found.append([name, entry.stat().st_uid, int(session), int(terminal)])
    return found


@attempt
def signals_the_host(facts):
    return {str(pid): outcome(os.kill, pid, 0) for pid in facts["host_pids"]}


@attempt
def ways_out_by_proc(facts):
    """Through other processes' root, working directory and descriptors."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for way in ("root", "cwd"):
                for secret in facts["secrets"]:
                    if outcome(_read, f"/proc/{entry.name}/{way}{secret}") == "done":
                        found[f"{entry.name}/{way}{secret}"] = "done"
    return found


@attempt
def open_descriptors(_facts):
    """What every process in here has open."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                for link in (entry / "fd").iterdir():
                    found.add(str(link.readlink()))
    return sorted(found)


@attempt
def namespaces(_facts):
    return {path.name: str(path.readlink()) for path in Path("/proc/self/ns").iterdir()}


@attempt
def loopback_servers(facts):
    return {str(port): outcome(_connect, socket.AF_INET, ("127.0.0.1", port)) for port in facts["ports"]}


@attempt
def the_hosts_own_address(facts):
    return {address: outcome(_connect, socket.AF_INET, (address, 22)) for address in facts["addresses"]}


@attempt
def the_metadata_service(_facts):
    return outcome(_connect, socket.AF_INET, ("169.254.169.254", 80))


@attempt
def datagrams(_facts):
    line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    return outcome(lambda: line.sendto(b"x", ("192.0.2.1", 53)) and None)


@attempt
def broadcast(_facts):
    line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return outcome(lambda: line.sendto(b"x", ("255.255.255.255", 9)) and None)


@attempt
def other_addresses(_facts):
    return outcome(_connect, socket.AF_INET6, ("2001:db8::1", 80))


@attempt
def abstract_sockets(facts):
    return {name: outcome(_connect, socket.AF_UNIX, "\0" + name) for name in facts["abstract"]}


@attempt
def sockets_by_path(facts):
    return {path: outcome(_connect, socket.AF_UNIX, path) for path in facts["sockets"]}


@attempt
def names_of_this_machine(_facts):
    return {"host": socket.gethostname(), "interfaces": [name for _, name in socket.if_nameindex()]}


@attempt
def names_of_users(_facts):
    return sorted(line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines())


@attempt
def environment(_facts):
    """Of every process."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            found |= {word.split(b"=")[0].decode("utf-8", "replace") for word in words if b"=" in word}
    return sorted(found)


@attempt
def clock_went_on(_facts):
    """Nothing that was tried before moved it."""
    return abs(time.time() - time.clock_gettime(time.CLOCK_REALTIME)) < 1


def _connect(family, address):
    with socket.socket(family) as line:
        line.settimeout(2)
        line.connect(address)
