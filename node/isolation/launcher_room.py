"""One sandbox, from what a daemon asks for to a process that has become it.

What is to be opened, claimed and limited is prepared in the launcher; then it forks, and the child does to itself what
`Confinement` says and turns into bubblewrap or runsc. Whatever fails before that is undone.
"""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from hansa.node.devices.disk import IN_MEMORY, ON_DISK, Disk, close_disks
from hansa.node.isolation import confine
from hansa.node.isolation.cgroups import Group, GroupLimits
from hansa.node.isolation.gvisor import PREFIX, STDIN, Bundle, furnish_gvisor, run_command, write_bundle
from hansa.node.isolation.launcher_guard import TOLD, told_later
from hansa.node.isolation.launcher_protocol import Start
from hansa.node.isolation.overlay_device import Overlay
from hansa.node.isolation.sandbox import Places, SandboxSpec, build_command
from hansa.node.isolation.sandbox_equipment import Equipment, SandboxUnavailable
from hansa.node.isolation.seccomp import open_filter
from hansa.node.isolation.unix_sockets import take_no_descriptors
from hansa.proto.market_documents import TIER_SANDBOX


@dataclass(slots=True, kw_only=True)
class Room:
    """One sandbox that runs.

    Attributes:
        pid: bubblewrap's outer process.
        ended_fd: readable when it has ended.
        words_fd: its standard error.
        disk: by which means what it writes is kept.
        bundle_dir: what is to be removed with it, if it is in gVisor.
        adopted: whether it was prepared and is a run's by now, or is becoming one's.
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
    adopted: bool = False


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

    def enter(self, *, own: bool) -> None:
        """Do it. It cannot be undone. ``own`` says whether this process is the first in a process namespace."""
        if self.overlay is not None:
            self.overlay.enter()
        if self.group is not None:
            self.group.add(os.getpid())  # the kernel reads the number as one of our own process namespace
        if self.uid is not None:
            confine.stage(self.sources, self.held)
            for inside, disk in self.disks.items():
                confine.mount_disk(Path(inside).name, disk.device, self.uid.uid)
        if self.bundle is not None and self.bundle_dir is not None:
            if self.uid is not None:
                confine.mount_empty(str(self.bundle_dir))
            write_bundle(self.bundle, self.bundle_dir, None if self.uid is None else self.uid.uid)
        spec = self.spec
        # All of a run's memory is one file of gVisor's. What is prepared is limited when its run is known.
        file_bytes = spec.scratch_bytes if self.bundle is None and spec.code is not None else None
        confine.set_limits(
            file_bytes=file_bytes,
            processes=None if self.group else spec.processes,
            # What was only prepared is the first to go: no lease may fail for its sake.
            oom_score=confine.OOM_SCORE if spec.code is not None else confine.OOM_SCORE_PREPARED,
        )
        if self.uid is not None:
            if own:
                confine.show_processes()  # bubblewrap and runsc look there for their children, by the numbers they know
            confine.drop_to(self.uid.uid)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomMaker:
    """Makes one sandbox.

    Attributes:
        name: of this sandbox among all of this machine; it begins with the launcher's pid.
        message: what the daemon asks for.
        equipment: what it is furnished with.
        held: what the named paths were when they were looked at.
        overlay: its network, if it is one of a gang.
        group_maker: makes its control group, or gives ``None`` where the launcher must count for itself.
    """

    name: str
    message: Start
    equipment: Equipment
    held: Mapping[str, int]
    overlay: Overlay | None
    group_maker: Callable[[str, GroupLimits], Group | None]

    def make(self, disks: dict[str, Disk]) -> tuple[Room, int]:
        """The sandbox, and the daemon's end of its runner's socket.

        Args:
            disks: what was made for the job to write on, by the directory's name inside; they are closed in any case.

        Raises:
            OSError: something of the machine's could not be had.
            SandboxUnavailable: the run asks for what cannot be had here.
        """
        with contextlib.ExitStack() as done_with, contextlib.ExitStack() as undo:
            done_with.callback(close_disks, disks)  # the run's own process has them open until it has mounted them
            way = self._prepare(undo, disks)
            made = self._furnish_and_fork(way, done_with, undo)
            undo.pop_all()
        return made

    def _prepare(self, undo: contextlib.ExitStack, disks: dict[str, Disk]) -> Confinement:
        """Whom the sandbox runs as, and within which limits; ``undo`` takes it back if it cannot be made."""
        spec, is_root = self.message.spec, os.getuid() == 0
        if is_root and (why := confine.why_not_become(confine.FIRST_UID, confine.LAST_UID)):
            # A refusal travels without its hint.
            raise SandboxUnavailable(f"sandboxes need users of their own, and {why}; {confine.MORE_UIDS}", "see there")
        uid = confine.ClaimedUid() if is_root else None
        if uid is not None:
            undo.callback(uid.release)
        limits = GroupLimits(memory_bytes=spec.memory_bytes, cpu_millis=spec.cpu_millis, processes=spec.processes)
        group = self.group_maker(self.name, limits)
        if group is not None:
            undo.callback(group.remove)
        if spec.code is None:
            if uid is None or group is None or spec.tier != TIER_SANDBOX:
                raise SandboxUnavailable(
                    "a sandbox is prepared only by a launcher that is root and makes control groups",
                    "run the launcher as root, or set sandbox.warm = 0",
                )
            group.favour(little=True)
        if spec.tier == "gvisor" and group is None:
            raise SandboxUnavailable(
                "gVisor keeps files in memory that is no process's, and there are no control groups to count it",
                "run the launcher as root, or with a delegated control group",
            )
        sources = [path for path, _inside in (*self.equipment.binds, *self.equipment.system_binds)]
        return Confinement(
            spec=spec,
            group=group,
            uid=uid,
            sources=[*sources, self.equipment.bwrap_root, *spec.paths],
            held=self.held,
            disks=disks,
            overlay=self.overlay,
        )

    def _furnish_and_fork(
        self, way: Confinement, done_with: contextlib.ExitStack, undo: contextlib.ExitStack
    ) -> tuple[Room, int]:
        """Make a sandbox. ``done_with`` is closed once it is there; ``undo``, too, if it could not be made."""
        spec = self.message.spec
        ours, theirs = socket.socketpair()
        take_no_descriptors(ours)
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
            way = self._with_bundle(way, furnish_gvisor(self.equipment, spec, places), undo)
            command = run_command(str(way.bundle_dir), with_egress=spec.egress is not None)
            stdin = theirs.fileno()
        else:
            command = build_command(self.equipment, spec, theirs.fileno(), open_data, places)
            open_fds.append(open_filter(uncounted=way.group is not None))
            done_with.callback(os.close, open_fds[-1])
            command[1:1] = ["--seccomp", str(open_fds[-1])]
        us = confine.own_number()
        namespace = confine.own_processes() if way.uid is not None else contextlib.nullcontext(enter_result=False)
        with told_later(), namespace as own:
            pid = os.fork()
            if pid == 0:
                _become(command, open_fds, (stdin, words_in), us, lambda: way.enter(own=own))
            undo.callback(_end, pid)
        room = Room(
            run=self.message.run,
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

    def _with_bundle(self, way: Confinement, bundle: Bundle, undo: contextlib.ExitStack) -> Confinement:
        """The same, with a bundle: root's is written where only the run's own processes see it.

        An ordinary user's is a directory whose name nobody could know beforehand, and occupy.
        """
        if way.uid is not None:
            return replace(way, bundle=bundle, bundle_dir=Path(confine.STAGE, "gvisor"))
        own = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{self.name}-"))
        undo.callback(shutil.rmtree, own, ignore_errors=True)
        return replace(way, bundle=bundle, bundle_dir=own)


def _end(pid: int) -> None:
    """End what nobody will ever know of, before another gets its uid."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


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
        descriptors: what it inherits; nothing else that the launcher has open does it ever see.
        standard: its standard input, if it has any, and its standard error.
        parent: the launcher's number.
        confine_us: what is done before.
    """
    try:
        most = os.sysconf("SC_OPEN_MAX")
        nothing = os.open(os.devnull, os.O_RDWR)
        stdin, words = standard
        os.dup2(nothing if stdin is None else stdin, STDIN)
        os.dup2(nothing, 1)
        os.dup2(words, 2)
        for number in (*TOLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
        stat_fd = confine.open_stat()
        confine_us()
        confine.die_with(parent, stat_fd=stat_fd)
        for before, descriptor in pairwise((2, *sorted(descriptors))):
            os.closerange(before + 1, descriptor)
            os.set_inheritable(descriptor, True)
        os.closerange(max(descriptors) + 1, most)
        os.execve(command[0], command, {})  # noqa: S606 - there is no shell here, on purpose
    except BaseException as error:  # noqa: BLE001 - whatever it is, this process must not go on as a second launcher
        os.write(2, f"before the sandbox: {type(error).__name__}: {error}\n".encode())
    os._exit(126)
