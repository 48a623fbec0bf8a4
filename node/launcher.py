"""`hansa launcher`: the small process that makes sandboxes, and the only one that may be root.

It has no network and no keys, runs in one thread, and does what a daemon asks over one socket: start a sandbox, pause
it, end it, tell how it ended. When that socket closes (the daemon was killed, by whatever signal) it ends every sandbox
and itself; when the launcher is killed, the kernel ends its sandboxes through PR_SET_PDEATHSIG, and the launcher's
guard what that misses (`hansa.node.launcher_guard`).

That signal is sent when the *thread* ends that forked. trio forks in worker threads, which end after ten idle seconds,
and so a daemon that started bubblewrap by itself lost its jobs after exactly 10.0 s (measured). Hence this process.
"""

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hansa.node import confine, process_tree
from hansa.node.cgroups import Group, GroupLimits, make_group, remove_leftovers
from hansa.node.disk import IN_MEMORY, ON_DISK, Disk, close_disks, make_disks, scratch_directory
from hansa.node.gvisor import PREFIX, STDIN, Bundle, furnish_gvisor, remove_bundles, run_command, write_bundle
from hansa.node.launcher_guard import TOLD, end_children, serve_guarded, told_later
from hansa.node.launcher_protocol import Ended, Kill, Pause, Refused, Resume, Start, Started, receive, send
from hansa.node.overlay_device import Overlay, can_make_overlay, make_overlay
from hansa.node.sandbox import Places, SandboxSpec, build_command
from hansa.node.sandbox_inventory import Inventory, SandboxUnavailable, take_inventory
from hansa.node.seccomp import open_filter
from hansa.proto.errors import ProtocolError
from hansa.proto.market_documents import TIER_SANDBOX

SEND_PATIENCE_S = 30.0
WATCH_S = 0.5
KEPT_WORDS = 4096

Launch = Callable[[], tuple[subprocess.Popen[bytes] | None, socket.socket]]
"""Gives a launcher's socket, and its process if that is a child of ours. To be called in the main thread."""


@dataclass(slots=True, kw_only=True)
class Room:
    """One sandbox that runs.

    Attributes:
        pid: bubblewrap's outer process.
        ended_fd: readable when it has ended.
        words_fd: its standard error.
        disk: by which means what it writes is kept.
        bundle_dir: what is to be removed with it, if it is in gVisor.
    """

    run: bytes
    pid: int
    ended_fd: int
    words_fd: int
    group: Group | None
    uid: confine.ClaimedUid | None
    spec: SandboxSpec
    disk: str
    bundle_dir: Path | None = None
    words: bytes = b""
    paused: bool = False
    memory_kills: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a forked process does to itself before it becomes bubblewrap.

    Attributes:
        group: the control group that it enters, if there is one.
        uid: whom it becomes, if it is root.
        sources: paths of the host that the sandbox is furnished with.
        held: what some of these named when they were looked at.
        disks: what is mounted for the job to write on, by the directory's name inside.
        overlay: the network with an interface of its own that it enters, if it is one of a gang.
        bundle: what gVisor is given, if the run is to be in it.
        bundle_dir: where that is written down.
    """

    spec: SandboxSpec
    group: Group | None
    uid: confine.ClaimedUid | None
    sources: Sequence[str]
    held: Mapping[str, int]
    disks: dict[str, Disk]
    overlay: Overlay | None
    bundle: Bundle | None = None
    bundle_dir: Path | None = None

    def enter(self) -> None:
        """Do it. It cannot be undone."""
        if self.overlay is not None:
            self.overlay.enter()
        if self.group is not None:
            self.group.add(os.getpid())
        if self.uid is not None:
            confine.stage(self.sources, self.held)
            for inside, disk in self.disks.items():
                confine.mount_disk(Path(inside).name, disk.device, self.uid.uid)
        if self.bundle is not None and self.bundle_dir is not None:
            if self.uid is None:
                self.bundle_dir.mkdir(mode=0o700)
            else:
                confine.mount_empty(str(self.bundle_dir))
            write_bundle(self.bundle, self.bundle_dir, None if self.uid is None else self.uid.uid)
        spec = self.spec
        # All of a run's memory is one file of gVisor's.
        file_bytes = spec.scratch_bytes if self.bundle is None else None
        confine.set_limits(file_bytes=file_bytes, processes=None if self.group else spec.processes)
        if self.uid is not None:
            confine.drop_to(self.uid.uid)


class Launcher:
    """Serves one daemon until it hangs up."""

    def __init__(
        self,
        control: socket.socket,
        peer_uid: int | None = None,
        group_maker: Callable[[str, GroupLimits], Group | None] = make_group,
    ) -> None:
        """Serve ``control``.

        Args:
            control: the socket to the daemon.
            peer_uid: the daemon's uid if it is another than ours; then what it names must belong to it.
            group_maker: makes a run's control group, or gives ``None`` where this launcher must count for itself.
        """
        self._control = control
        self._peer_uid = peer_uid
        self._group_maker = group_maker
        self._selector = selectors.DefaultSelector()
        self._rooms: dict[bytes, Room] = {}
        self._counter = 0
        self._told = False
        self._makes_overlays = can_make_overlay() is None

    def serve(self, told_fd: int) -> None:
        """Do what is asked; return once the daemon is gone, or ``told_fd`` is readable, and nothing is left."""
        with contextlib.suppress(OSError):
            remove_leftovers()
            remove_bundles(Path(tempfile.gettempdir()))
        # A daemon that has not read for so long is as good as gone, and must not hold us up when we are told to end.
        self._control.settimeout(SEND_PATIENCE_S)
        self._selector.register(self._control, selectors.EVENT_READ, self._take_request)
        self._selector.register(told_fd, selectors.EVENT_READ, self._end)
        next_watch = time.monotonic() + WATCH_S
        try:
            while self._control.fileno() >= 0 and not self._told:
                unwatched = all(room.group is not None for room in self._rooms.values())
                timeout = None if unwatched else max(0.0, next_watch - time.monotonic())
                for key, _events in self._selector.select(timeout):
                    if key.fd in self._selector.get_map():  # the one before may have closed it
                        key.data()
                if not unwatched and time.monotonic() >= next_watch:
                    self._watch()
                    next_watch = time.monotonic() + WATCH_S
        finally:
            for room in list(self._rooms.values()):
                self._kill(room)
                self._bury(room)

    def _end(self) -> None:
        self._told = True

    def _take_request(self) -> None:
        try:
            message, descriptors = receive(self._control)
        except (ProtocolError, OSError):
            message, descriptors = None, []
        for descriptor in descriptors:
            os.close(descriptor)  # nobody has a reason to send us any
        if message is None:
            self._selector.unregister(self._control)
            self._control.close()
            return
        room = self._rooms.get(message.run)
        if isinstance(message, Start):
            self._start(message)
        elif room is None:
            return  # it has ended, and `Ended` is on its way
        elif isinstance(message, Kill):
            self._kill(room)
        elif isinstance(message, (Pause, Resume)):
            self._set_paused(room, paused=isinstance(message, Pause))

    def _start(self, message: Start) -> None:
        try:
            inventory = take_inventory()
            with contextlib.ExitStack() as holding:
                held = self._hold_named(message, inventory)
                for descriptor in held.values():
                    holding.callback(os.close, descriptor)
                overlay = _overlay_for(message.spec)
                if overlay is not None:
                    holding.callback(overlay.close)
                room, runner_end = self._make_room(message, inventory, held, overlay)
                given = (runner_end,) if overlay is None else (runner_end, os.dup(overlay.packets))
        except (OSError, SandboxUnavailable, KeyError) as error:
            self._tell(Refused(run=message.run, reason=f"{type(error).__name__}: {error}"[:500]))
            return
        self._rooms[message.run] = room
        self._selector.register(room.ended_fd, selectors.EVENT_READ, lambda: self._bury(room))
        self._selector.register(room.words_fd, selectors.EVENT_READ, lambda: self._hear(room))
        watched = {"memory": "counting every 0.5 s", "processes": "rlimit and counting", "pause": "signals"}
        limits = {**(room.group.held if room.group else watched), "disk": room.disk, "wall": "the daemon's clock"}
        if self._makes_overlays:
            limits["gangs"] = "interfaces of their own"
        self._tell(Started(run=message.run, pid=room.pid, limits=limits), given)
        for descriptor in given:
            os.close(descriptor)

    def _hold_named(self, message: Start, inventory: Inventory) -> dict[str, int]:
        """Descriptors of what the daemon names: a root launcher opens nothing that the daemon could not by itself."""
        if message.run in self._rooms:
            raise SandboxUnavailable("this run has a sandbox already", "a fault of the daemon's")
        furnished = {host for host, _inside in inventory.binds}  # every sandbox is shown these anyway
        held: dict[str, int] = {}
        try:
            for path in message.spec.paths:
                held[path] = confine.hold(path, None if path in furnished else self._peer_uid)
        except OSError:
            for descriptor in held.values():
                os.close(descriptor)
            raise
        return held

    def _make_room(
        self, message: Start, inventory: Inventory, held: Mapping[str, int], overlay: Overlay | None
    ) -> tuple[Room, int]:
        with contextlib.ExitStack() as done_with, contextlib.ExitStack() as undo:
            way = self._prepare(message.spec, inventory, held, overlay, undo)
            done_with.callback(close_disks, way.disks)  # the run's own process has them open until it has mounted them
            made = self._furnish_and_fork(message, inventory, way, done_with, undo)
            undo.pop_all()
        return made

    def _prepare(
        self,
        spec: SandboxSpec,
        inventory: Inventory,
        held: Mapping[str, int],
        overlay: Overlay | None,
        undo: contextlib.ExitStack,
    ) -> Confinement:
        """Whom the sandbox runs as, and within which limits; ``undo`` takes it back if it cannot be made."""
        is_root = os.getuid() == 0
        uid = confine.ClaimedUid() if is_root else None
        if uid is not None:
            undo.callback(uid.release)
        self._counter += 1
        limits = GroupLimits(memory_bytes=spec.memory_bytes, cpu_millis=spec.cpu_millis, processes=spec.processes)
        group = self._group_maker(f"{os.getpid()}-{self._counter}", limits)
        if group is not None:
            undo.callback(group.remove)
        sources = [path for path, _inside in (*inventory.binds, *inventory.system_binds)]
        sources += [inventory.bwrap_root, *spec.paths]
        disks = make_disks(spec.disk_sizes, scratch_directory()) if is_root else {}
        if spec.tier == "gvisor" and group is None:
            raise SandboxUnavailable(
                "gVisor keeps files in memory that is no process's, and there are no control groups to count it",
                "run the launcher as root, or with a delegated control group",
            )
        return Confinement(spec=spec, group=group, uid=uid, sources=sources, held=held, disks=disks, overlay=overlay)

    def _furnish_and_fork(
        self,
        message: Start,
        inventory: Inventory,
        way: Confinement,
        done_with: contextlib.ExitStack,
        undo: contextlib.ExitStack,
    ) -> tuple[Room, int]:
        """Make a sandbox. ``done_with`` is closed once it is there; ``undo``, too, if it could not be made."""
        spec = message.spec
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        done_with.callback(theirs.close)
        words_out, words_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        undo.callback(os.close, words_out)
        done_with.callback(os.close, words_in)
        os.set_blocking(words_in, True)
        places = Places(
            reach=confine.staged(way.sources) if way.uid is not None else str,
            look=lambda path: f"/proc/self/fd/{way.held[path]}",
            disk={inside: confine.staged_disk(Path(inside).name) for inside in way.disks},
        )
        open_fds = [theirs.fileno()]

        def open_data(name: str, data: bytes) -> int:
            descriptor = os.memfd_create(name.rpartition("/")[2], os.MFD_CLOEXEC)
            done_with.callback(os.close, descriptor)
            os.write(descriptor, data)
            os.lseek(descriptor, 0, os.SEEK_SET)
            open_fds.append(descriptor)
            return descriptor

        stdin = None
        if spec.tier == "gvisor":
            way = self._with_bundle(way, furnish_gvisor(inventory, spec, places))
            command = run_command(str(way.bundle_dir), with_egress=spec.egress is not None)
            stdin = theirs.fileno()
        else:
            command = build_command(inventory, spec, theirs.fileno(), open_data, places)
            open_fds.append(open_filter(uncounted=way.group is not None))
            done_with.callback(os.close, open_fds[-1])
            command[1:1] = ["--seccomp", str(open_fds[-1])]
        us = os.getpid()
        with told_later():
            pid = os.fork()
            if pid == 0:
                _become(command, open_fds, (stdin, words_in), us, way.enter)
        room = Room(
            run=message.run,
            pid=pid,
            ended_fd=os.pidfd_open(pid),
            words_fd=words_out,
            group=way.group,
            uid=way.uid,
            spec=spec,
            disk=ON_DISK if way.disks else IN_MEMORY,
            bundle_dir=way.bundle_dir if way.uid is None else None,  # root's goes with its mount namespace
        )
        return room, ours.detach()

    def _with_bundle(self, way: Confinement, bundle: Bundle) -> Confinement:
        """The same, with a bundle: root's is written where only the run's own processes see it."""
        own = Path(tempfile.gettempdir(), f"{PREFIX}{os.getpid()}-{self._counter}")
        return replace(way, bundle=bundle, bundle_dir=own if way.uid is None else Path(confine.STAGE, "gvisor"))

    def _watch(self) -> None:
        """Count what runs without a cgroup, and end what is over its limits."""
        for room in self._rooms.values():
            if room.group is not None:
                continue
            pids = process_tree.descendants(room.pid)
            used = process_tree.memory_bytes(pids, enough_bytes=room.spec.memory_bytes)
            room.peak_bytes = max(room.peak_bytes, used)
            if used > room.spec.memory_bytes:
                room.memory_kills += 1
                self._kill(room)
            elif process_tree.thread_count(pids) > room.spec.processes:
                room.words += f"\nended for having more than {room.spec.processes} processes and threads".encode()
                self._kill(room)

    def _set_paused(self, room: Room, *, paused: bool) -> None:
        room.paused = paused
        if room.group is not None:
            room.group.freeze(frozen=paused)
        else:
            process_tree.set_paused(room.pid, paused=paused)

    def _kill(self, room: Room) -> None:
        """One signal ends the pid namespace and all in it; the group makes sure, and thaws what is frozen."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(room.pid, signal.SIGKILL)
        if room.group is not None:
            with contextlib.suppress(OSError):
                room.group.kill()

    def _hear(self, room: Room) -> None:
        """Keep the end of what bubblewrap and the runner complain about; the pipe must not fill up and block them."""
        data = os.read(room.words_fd, 65536)
        room.words = (room.words + data)[-KEPT_WORDS:]
        if not data:
            self._selector.unregister(room.words_fd)

    def _bury(self, room: Room) -> None:
        """The outer process has ended (or is about to): see that all did, and tell."""
        self._kill(room)
        _pid, status = os.waitpid(room.pid, 0)
        del self._rooms[room.run]
        # The inner process, if it lives, fell to us before the outer one could be waited for.
        end_children(spared={other.pid for other in self._rooms.values()})
        with contextlib.suppress(BlockingIOError):
            while data := os.read(room.words_fd, 65536):
                room.words = (room.words + data)[-KEPT_WORDS:]
        for descriptor in (room.ended_fd, room.words_fd):
            with contextlib.suppress(KeyError):
                self._selector.unregister(descriptor)
            os.close(descriptor)
        kills, peak = room.memory_kills, room.peak_bytes
        if room.group is not None:
            with contextlib.suppress(OSError):
                kills, peak = room.group.memory_kills(), room.group.peak_bytes()
            room.group.remove()
        if room.bundle_dir is not None:
            shutil.rmtree(room.bundle_dir, ignore_errors=True)
        if room.uid is not None:
            room.uid.release()
        self._tell(
            Ended(
                run=room.run,
                status=os.waitstatus_to_exitcode(status),
                memory_kills=kills,
                peak_bytes=peak,
                words=room.words.decode("utf-8", "replace"),
            )
        )

    def _tell(self, message: Any, descriptors: tuple[int, ...] = ()) -> None:
        with contextlib.suppress(OSError):  # a daemon that is gone need not be told
            send(self._control, message, descriptors)


def _overlay_for(spec: SandboxSpec) -> Overlay | None:
    """The network of a gang's sandbox; every other's has none that is made here."""
    if spec.gang is None:
        return None
    if spec.tier != TIER_SANDBOX:
        raise SandboxUnavailable(f"runs on several machines cannot be had in {spec.tier}", "lend them one by one")
    return make_overlay(spec.gang.place)


def _become(
    command: list[str],
    descriptors: list[int],
    standard: tuple[int | None, int],
    parent: int,
    confine_us: Callable[[], None],
) -> None:
    """In the forked process: turn into the sandbox, or say why not and leave. Never returns.

    Args:
        command: what to turn into.
        descriptors: what it inherits.
        standard: its standard input, if it has any, and its standard error.
        parent: the launcher.
        confine_us: what is done before.
    """
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        stdin, words = standard
        os.dup2(nothing if stdin is None else stdin, STDIN)
        os.dup2(nothing, 1)
        os.dup2(words, 2)
        for number in (*TOLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
        confine_us()
        confine.die_with(parent)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.execve(command[0], command, {})  # noqa: S606 - there is no shell here, on purpose
    except BaseException as error:  # noqa: BLE001 - whatever it is, this process must not go on as a second launcher
        os.write(2, f"before the sandbox: {type(error).__name__}: {error}\n".encode())
    os._exit(126)


def start_launcher() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a launcher as our child; gives it and our end of its socket. To be called in the main thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "hansa.node.launcher", str(theirs.fileno())],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        cwd="/",
        # A terminal's Ctrl-C goes to the whole process group; sandboxes end when the daemon says so.
        start_new_session=True,
    )
    theirs.close()
    return process, ours


def connect_launcher(path: str) -> socket.socket:
    """The socket of a launcher that runs as a unit of its own."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        control.connect(path)
    except OSError as error:
        control.close()
        raise OSError(error.errno, f"no launcher answers: {os.strerror(error.errno or 0)}", path) from error
    return control


def launch_with(path: Path | None) -> Launch:
    """How a node comes by its launcher: it connects to the one at ``path``, or starts one of its own."""
    return start_launcher if path is None else lambda: (None, connect_launcher(str(path)))


def listen(path: str) -> None:
    """Serve every daemon that connects to this path, each in a process of its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        listener.bind(path)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
        us = os.getpid()
        while True:
            control, _address = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                confine.die_with(us, signal.SIGTERM)
                _pid, uid, _gid = _credentials(control)
                launcher = Launcher(control, peer_uid=None if uid == os.getuid() else uid)
                serve_guarded(control, launcher.serve)
                os._exit(0)
            control.close()


def _credentials(control: socket.socket) -> tuple[int, int, int]:
    raw = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = (int.from_bytes(raw[at : at + 4], sys.byteorder, signed=True) for at in (0, 4, 8))
    return pid, uid, gid


def main(arguments: list[str]) -> None:
    """``hansa launcher FD`` serves an inherited socket, ``hansa launcher PATH`` listens."""
    if arguments[0].isdigit():
        control = socket.socket(fileno=int(arguments[0]))
        serve_guarded(control, Launcher(control).serve)
    else:
        listen(arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
