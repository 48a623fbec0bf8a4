"""A room for tools that handle strangers' files outside a run: uv, which installs packages, and umoci.

No code of a stranger's runs in it, but a stranger's archives are taken apart, and those have fooled better programs. So
the tool sits in a bubblewrap with a read-only system, one directory to write to, no capabilities, the sandboxes' own
system-call filter, and the network only if it is to download. Its time, its output, the bytes and the files that it
leaves are bounded. As everywhere, bubblewrap is never started by uid 0: a daemon that is root has the room made by a
uid that owns nothing else.

``python -m hansa.node.isolation.build_room`` is the process that becomes bubblewrap; the daemon calls ``run_tool``.
"""

import contextlib
import errno
import json
import os
import resource
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hansa.node.isolation import confine
from hansa.node.isolation.ordinary_turns import take_ordinary_turns
from hansa.node.isolation.sandbox import system_flags
from hansa.node.isolation.sandbox_equipment import find_bwrap
from hansa.node.isolation.seccomp import open_filter

BUILDER_UID = 65_000
"""Who builds where the daemon is root; next to the uids of the sandboxes, and none of them."""
INSIDE_UID = 1000
WORK = "/work"
KEPT_OUTPUT_BYTES = 16 << 10
WATCH_S = 0.25
MOST_MEMORY_BYTES = 2 << 30
"""Of address space: the tools reserve more than they use, umoci and skopeo most."""
OUT_OF_MEMORY = ("memory allocation of", "MemoryError", "out of memory", "Cannot allocate memory")
"""How programs in Rust, Python, Go and C say that there is none left."""
PASSED_ON = (
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "all_proxy", "no_proxy"),
)
"""How this machine reaches the outside, as its owner set it for the daemon."""
NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """What is to be run.

    Attributes:
        command: the program and its arguments, as the room sees them.
        work: the one directory of the host that it may write to, which it sees as ``/work``.
        read: what else of the host it sees, read-only: ``(path on the host, path inside)``.
        variables: its whole environment, beside PATH and HOME. Secrets belong here: arguments can be read by all users.
        network: whether it may use this machine's network.
        most_bytes: what may lie in ``work`` at most, all together.
        most_files: likewise, files and directories.
        most_s: how long it may take.
        most_memory_bytes: how much memory each of its processes may have, reserved or used.
    """

    command: tuple[str, ...]
    work: str
    read: tuple[tuple[str, str], ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    most_bytes: int
    most_files: int = 1_000_000
    most_s: float
    most_memory_bytes: int = MOST_MEMORY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it went.

    Attributes:
        ok: whether it did what it was told.
        words: the end of what it printed, or why it was ended.
        too_much: whether it wanted more than it may have of room or memory: what it was given is at fault.
    """

    ok: bool
    words: str
    too_much: bool = False


def run_tool(tool: Tool, given_up: threading.Event | None = None) -> Outcome:
    """Run a tool to its end. Blocks; the calling thread has to live as long, since its end is the room's end.

    Args:
        tool: what to run.
        given_up: set by another thread when nobody waits for it any more.
    """
    if os.getuid() == 0 and (why := confine.why_not_become(BUILDER_UID)):
        return Outcome(ok=False, words=f"tools need a user of their own, and {why}; {confine.MORE_UIDS}")
    started = time.monotonic()
    # Not as an argument: every user of this machine can read those, and a proxy's or an index's address is a secret.
    order = _memory_file("tool", json.dumps(asdict(tool)).encode())
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hansa.node.isolation.build_room", str(order), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(order,),
            cwd="/",  # Python looks there for modules before anywhere else
            start_new_session=True,
        )
    finally:
        os.close(order)
    with process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        output, why, over = b"", "", ""
        look_at = started + WATCH_S
        while not why:
            select.select([process.stdout], [], [], max(0.0, look_at - time.monotonic()))
            piece = process.stdout.read(1 << 16)
            if piece == b"":
                break
            output = (output + (piece or b""))[-KEPT_OUTPUT_BYTES:]
            if given_up is not None and given_up.is_set():
                why = "nobody waits for it any more"
            elif time.monotonic() > started + tool.most_s:
                why = f"it took longer than {tool.most_s:.0f} s"
            elif time.monotonic() >= look_at:
                why = over = _too_much(tool)
                look_at = time.monotonic() + WATCH_S
        if why:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    if not why:
        why = over = _too_much(tool)
    words = output.decode("utf-8", "replace").strip()
    if not why and status != 0 and any(sign in words for sign in OUT_OF_MEMORY):
        why = over = f"it wanted more than the {tool.most_memory_bytes >> 20} MiB of memory that it may have"
    return Outcome(ok=not why and status == 0, words=why or words, too_much=bool(over))


async def run_in_thread(work: Callable[[threading.Event], None]) -> None:
    """Have something with tools in it done in a thread, which gives up as soon as nobody waits any more."""
    import trio  # noqa: PLC0415 - the process that becomes bubblewrap starts faster without it

    given_up = threading.Event()
    try:
        await trio.to_thread.run_sync(
            work,
            given_up,
            abandon_on_cancel=True,  # type: ignore[call-arg]  # the stubs are older than trio
        )
    finally:
        given_up.set()


def ways_out() -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Variables and certificates for a tool that downloads."""
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    certificates = {variables[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in variables}
    hidden = [path for path in sorted(certificates) if not path.startswith("/etc/ssl/certs")]
    return variables, [(os.path.realpath(path), path) for path in hidden]


def _memory_file(name: str, data: bytes) -> int:
    """A descriptor from which these bytes can be read, by whoever inherits it and nobody else."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _too_much(tool: Tool) -> str:
    try:
        size_bytes, files = tree_size(Path(tool.work), enough_files=tool.most_files)
    except TooDeep:
        return "it left directories that are nested too deeply to be counted"
    if size_bytes > tool.most_bytes:
        return f"it left more than {tool.most_bytes >> 20} MiB"
    return f"it left more than {tool.most_files} files" if files > tool.most_files else ""


class TooDeep(Exception):
    """A directory whose path is longer than any that can be looked at, so that nobody knows what lies in it."""


def tree_size(
    directory: Path, *, enough_files: int = 1 << 62, seen: set[tuple[int, int]] | None = None
) -> tuple[int, int]:
    """Bytes on disk and number of the entries below a directory; a file with several names counts once.

    Args:
        directory: where to look; what vanishes meanwhile is passed over.
        enough_files: stop counting there.
        seen: files that were counted elsewhere, by device and inode; those found here are added.

    Raises:
        TooDeep: what lies there cannot be counted. (A tool's own paths are shorter than ours to the same place.)
    """
    seen = set() if seen is None else seen
    size_bytes = files = 0
    waiting = [str(directory)]
    while waiting and files <= enough_files:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    found = _facts_of(entry)
                    if found is None:
                        continue
                    files += 1
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(entry.path)
                    if found.st_nlink == 1 or stat.S_ISDIR(found.st_mode):
                        size_bytes += found.st_blocks * 512
                    elif (found.st_dev, found.st_ino) not in seen:
                        seen.add((found.st_dev, found.st_ino))
                        size_bytes += found.st_blocks * 512
        except OSError as fault:
            _pass_over(fault)
    return size_bytes, files


def _facts_of(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError as fault:
        _pass_over(fault)
        return None


def _pass_over(fault: OSError) -> None:
    """What vanishes or cannot be looked at does not count, unless its path alone is in the way."""
    if fault.errno == errno.ENAMETOOLONG:
        raise TooDeep from fault


def make_work(directory: Path) -> None:
    """Make a directory that a tool may write to. Where there is no user for tools, `run_tool` says so."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    if os.getuid() == 0 and not confine.why_not_become(BUILDER_UID):
        os.chown(directory, BUILDER_UID, BUILDER_UID)


# From here on in the process of its own.


def main(arguments: list[str]) -> None:
    """Become bubblewrap with the tool in it."""
    # Whoever started this may have ended before now; then its number is not that of our parent, and nobody waits.
    parent = int(arguments[1])
    with os.fdopen(int(arguments[0]), "rb") as order:
        facts = json.load(order)
    facts["command"] = tuple(facts["command"])
    facts["read"] = tuple((host, inside) for host, inside in facts["read"])
    tool = Tool(**facts)
    _set_limits(tool)
    bwrap_root, bwrap = find_bwrap()
    place = str
    if os.getuid() == 0:
        sources = [bwrap_root, tool.work, *(host for host, _ in tool.read)]
        place = confine.staged(sources)  # type: ignore[assignment]  # both give a path for a path
        confine.stage(sources, {}, writable=tool.work)
        confine.drop_to(BUILDER_UID)
    confine.die_with(parent)
    os.umask(0o022)
    filter_fd = open_filter()
    os.set_inheritable(filter_fd, True)
    flags_fd = _memory_file("flags", b"".join(flag.encode() + b"\0" for flag in _flags(tool, place)))
    os.set_inheritable(flags_fd, True)
    command = [place(bwrap), "--seccomp", str(filter_fd), "--args", str(flags_fd), "--", *tool.command]
    os.execve(command[0], command, {})  # noqa: S606 - there is no shell here, on purpose


def _flags(tool: Tool, place: Any) -> list[str]:
    flags = [
        *("--unshare-user", "--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID)),
        *("--disable-userns", "--assert-userns-disabled"),
        *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *([] if tool.network else ["--unshare-net"]),
        # No --new-session: the session is new and without a terminal already, and until bubblewrap's own first process
        # is bound to its parent's life it must be found in the group that is killed (it outlived that, once in 40).
        *("--die-with-parent", "--hostname", "build", "--cap-drop", "ALL"),
        *system_flags(),
    ]
    if tool.network:
        for path in NETWORK_FILES:
            flags += ["--ro-bind-try", os.path.realpath(path), path]
    flags += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    flags += ["--perms", "1777", "--size", str(256 << 20), "--tmpfs", "/tmp"]  # noqa: S108 - the room's own
    for host, inside in tool.read:
        flags += ["--ro-bind", place(host), inside]
    flags += ["--bind", place(tool.work), WORK, "--clearenv"]
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", **tool.variables}  # noqa: S108
    for name, value in variables.items():
        flags += ["--setenv", name, value]
    return [*flags, "--chdir", WORK, "--remount-ro", "/dev", "--remount-ro", "/"]


def _set_limits(tool: Tool) -> None:
    take_ordinary_turns()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (tool.most_bytes, tool.most_bytes))
    resource.setrlimit(resource.RLIMIT_AS, (tool.most_memory_bytes, tool.most_memory_bytes))
    Path("/proc/self/oom_score_adj").write_text(str(confine.OOM_SCORE))


if __name__ == "__main__":
    main(sys.argv[1:])
