"""`hansa launcher`: the small process that makes sandboxes, and the only one that may be root.

It has no network and no keys, runs in one thread, and does what a daemon asks over one socket: start a sandbox, pause
it, end it, tell how it ended. When that socket closes (the daemon was killed, by whatever signal) it ends every sandbox
and itself; when the launcher is killed, the kernel ends its sandboxes through PR_SET_PDEATHSIG, and what that misses is
ended, too (`hansa.node.isolation.launcher_guard`).

That signal is sent when the *thread* ends that forked. trio forks in worker threads, which end after ten idle seconds,
and so a daemon that started bubblewrap by itself lost its jobs after exactly 10.0 s (measured). Hence this process.
"""

import contextlib
import os
import select
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from hansa.node.devices.device_use import read_cpu_ms
from hansa.node.devices.disk import Disk, make_disks, scratch_directory
from hansa.node.isolation import confine, process_tree
from hansa.node.isolation.cgroups import Group, GroupLimits, make_group, remove_leftovers
from hansa.node.isolation.gvisor import remove_bundles
from hansa.node.isolation.launcher_adoption import check_fits, furnish_later, hand_over
from hansa.node.isolation.launcher_errand import Errand
from hansa.node.isolation.launcher_guard import END_S, end_children, serve_guarded
from hansa.node.isolation.launcher_protocol import (
    MOST_PIDS,
    Adopt,
    Count,
    Counted,
    Ended,
    ImpossibleOrder,
    Kill,
    Pause,
    Refused,
    Resume,
    Start,
    Started,
    receive,
    send,
)
from hansa.node.isolation.launcher_room import Room, RoomMaker
from hansa.node.isolation.launcher_socket import listen
from hansa.node.isolation.overlay_device import Overlay, make_overlay, why_no_overlay
from hansa.node.isolation.sandbox import SandboxSpec
from hansa.node.isolation.sandbox_equipment import Equipment, SandboxUnavailable, find_equipment
from hansa.proto.errors import ProtocolError
from hansa.proto.market_documents import TIER_SANDBOX

SEND_PATIENCE_S = 30.0
WATCH_S = 0.5
KEPT_WORDS = 4096

REFUSALS = (OSError, SandboxUnavailable, KeyError, MemoryError)
"""Why a sandbox cannot be made, as far as that is no fault of ours."""


@dataclass(slots=True, kw_only=True, eq=False)
class Making:
    """A run whose sandbox is not there yet, since something slow is being done for it.

    Attributes:
        errand: who does it.
        holding: what is held for it meanwhile.
        finish: what is done then.
        paused: whether it is to be paused once it is there.
    """

    run: bytes
    errand: Errand
    holding: contextlib.ExitStack
    finish: Callable[[bytes, list[int]], None]
    paused: bool = False


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
        self._makings: dict[bytes, Making] = {}
        self._counter = 0
        self._told = False
        self._makes_overlays = why_no_overlay() is None

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
                self._do_what_is_ready(timeout)
                if not unwatched and time.monotonic() >= next_watch:
                    self._watch()
                    next_watch = time.monotonic() + WATCH_S
        finally:
            for making in list(self._makings.values()):
                self._forget(making)
            for room in self._rooms.values():
                self._kill(room)
            deadline = time.monotonic() + END_S
            for room in list(self._rooms.values()):
                # What waits in a driver dies when that is done with it; we may not wait for that as long as it takes.
                ended = select.poll()
                ended.register(room.ended_fd, select.POLLIN)
                if ended.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    self._bury(room)

    def _do_what_is_ready(self, timeout: float | None) -> None:
        for key, _events in self._selector.select(timeout):
            # The one before may have closed it, and opened something else under its number.
            if self._selector.get_map().get(key.fd) is key:
                key.data()

    def _end(self) -> None:
        self._told = True

    def _take_request(self) -> None:
        try:
            message, descriptors = receive(self._control)
        except ImpossibleOrder as fault:
            # What a stranger's job names is no reason to end everybody's.
            self._tell(Refused(run=fault.run, reason=f"no sandbox can be so: {fault.why}"))
            return
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
        elif isinstance(message, Adopt):
            self._adopt(message)
        elif room is None:
            making = self._makings.get(message.run)  # else it has ended, and `Ended` is on its way
            if isinstance(message, Kill) and making is not None:
                self._forget(making)
                self._tell(Refused(run=message.run, reason="it was ended before it had begun"))
            elif isinstance(message, (Pause, Resume)) and making is not None:
                making.paused = isinstance(message, Pause)
        elif isinstance(message, Count):
            self._count(room)
        elif isinstance(message, Kill):
            self._kill(room)
        elif isinstance(message, (Pause, Resume)):
            self._set_paused(room, paused=isinstance(message, Pause))

    def _start(self, message: Start) -> None:
        spec = message.spec
        with contextlib.ExitStack() as holding:
            try:
                equipment = find_equipment()
                held = self._hold_named(message.run, spec, holding, equipment)
                overlay = _overlay_for(spec)
                if overlay is not None:
                    holding.callback(overlay.close)
                self._counter += 1
                maker = RoomMaker(
                    name=f"{os.getpid()}-{self._counter}",
                    message=message,
                    equipment=equipment,
                    held=held,
                    overlay=overlay,
                    group_maker=self._group_maker,
                )

                def finish(devices: bytes, descriptors: list[int]) -> None:
                    disks = zip(msgpack.unpackb(devices).items(), descriptors, strict=True) if devices else ()
                    self._open(
                        maker, {name: Disk(device=device, descriptor=one) for (name, device), one in disks}, overlay
                    )

                if os.getuid() == 0 and spec.code is not None:
                    errand = Errand(lambda: _make_disks(spec))
                    self._await(Making(run=message.run, errand=errand, holding=holding.pop_all(), finish=finish))
                else:
                    finish(b"", [])
            except REFUSALS as error:
                self._refuse(message.run, error)

    def _open(self, maker: RoomMaker, disks: dict[str, Disk], overlay: Overlay | None) -> None:
        """Make a sandbox, now that its disks are there, and tell."""
        room, runner_end = maker.make(disks)
        self._rooms[room.run] = room
        self._selector.register(room.ended_fd, selectors.EVENT_READ, lambda: self._bury(room))
        self._selector.register(room.words_fd, selectors.EVENT_READ, lambda: self._hear(room))
        self._tell_started(room, (runner_end,) if overlay is None else (runner_end, overlay.packets))
        os.close(runner_end)

    def _adopt(self, message: Adopt) -> None:
        """Make a prepared sandbox a run's. Whatever fails on the way, it is never used after that."""
        room = self._rooms.get(message.prepared)
        with contextlib.ExitStack() as holding:
            try:
                if room is None or room.adopted:
                    raise SandboxUnavailable("no such sandbox is prepared", "start it cold")
                check_fits(room, message.spec)
                room.adopted = True
                held = self._hold_named(message.run, message.spec, holding)
                work = furnish_later(room, message.spec, held, holding)

                def finish(disk: bytes, _descriptors: list[int]) -> None:
                    self._settle(room, message, disk.decode())

                making = Making(run=message.run, errand=Errand(work), holding=holding.pop_all(), finish=finish)
                making.holding.callback(self._kill_if_unsettled, room)
                self._await(making)
            except REFUSALS as error:
                if room is not None and room.adopted and room.spec.code is None:
                    self._kill(room)
                self._refuse(message.run, error)

    def _settle(self, room: Room, message: Adopt, disk: str) -> None:
        """A run's own things are in the sandbox: now its limits, its name, and word to the daemon."""
        if self._rooms.get(message.prepared) is not room:
            raise SandboxUnavailable("the prepared sandbox has ended", "start it cold")
        hand_over(room, message.spec)
        del self._rooms[message.prepared]
        room.run, room.spec, room.disk, room.paused = message.run, message.spec, disk, False
        self._rooms[message.run] = room
        self._tell_started(room, ())

    def _kill_if_unsettled(self, room: Room) -> None:
        if room.spec.code is None and self._rooms.get(room.run) is room:
            self._kill(room)

    def _await(self, making: Making) -> None:
        """Go on with a run when what is done for it is done."""
        self._makings[making.run] = making
        self._selector.register(making.errand.fd, selectors.EVENT_READ, lambda: self._finish(making))

    def _finish(self, making: Making) -> None:
        with making.holding:
            del self._makings[making.run]
            self._selector.unregister(making.errand.fd)
            try:
                making.finish(*making.errand.result())
            except REFUSALS as error:
                self._refuse(making.run, error)
        room = self._rooms.get(making.run)
        if room is not None and making.paused:
            self._set_paused(room, paused=True)

    def _forget(self, making: Making) -> None:
        """What is being made is not wanted any more."""
        del self._makings[making.run]
        self._selector.unregister(making.errand.fd)
        making.errand.drop()
        making.holding.close()

    def _refuse(self, run: bytes, error: Exception) -> None:
        self._tell(Refused(run=run, reason=f"{type(error).__name__}: {error}"[:500]))

    def _tell_started(self, room: Room, descriptors: tuple[int, ...]) -> None:
        watched = {"memory": "counting every 0.5 s", "processes": "rlimit and counting", "pause": "signals"}
        limits = {**(room.group.held if room.group else watched), "disk": room.disk, "wall": "the daemon's clock"}
        if self._makes_overlays:
            limits["gangs"] = "interfaces of their own"
        self._tell(Started(run=room.run, pid=room.pid, limits=limits), descriptors)

    def _count(self, room: Room) -> None:
        """Tell what a run used: the daemon may not be allowed to see its processes."""
        pids, kills = [], room.memory_kills
        with contextlib.suppress(OSError):
            pids = room.group.pids() if room.group is not None else process_tree.descendants(room.pid)
            kills = room.group.memory_kills() if room.group is not None else kills
        self._tell(
            Counted(
                run=room.run,
                cpu_ms=read_cpu_ms([room.pid]).get(room.pid, 0),
                memory_kills=kills,
                pids=tuple(pids[:MOST_PIDS]),
            )
        )

    def _hold_named(
        self, run: bytes, spec: SandboxSpec, holding: contextlib.ExitStack, equipment: Equipment | None = None
    ) -> dict[str, int]:
        """Descriptors of what the daemon names: a root launcher opens nothing that the daemon could not by itself."""
        if run in self._rooms or run in self._makings:
            raise SandboxUnavailable("this run has a sandbox already", "a fault of the daemon's")
        # Every sandbox is shown these anyway.
        furnished = {host for host, _inside in equipment.binds} if equipment is not None else set[str]()
        held: dict[str, int] = {}
        for path in spec.paths:
            held[path] = confine.hold(path, None if path in furnished else self._peer_uid)
            holding.callback(os.close, held[path])
        return held

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
        try:
            data = os.read(room.words_fd, 65536)
        except BlockingIOError:
            return  # where we are its user, a job can open its end for reading, and take its words back
        room.words = (room.words + data)[-KEPT_WORDS:]
        if not data:
            self._selector.unregister(room.words_fd)

    def _bury(self, room: Room) -> None:
        """The outer process has ended (or is about to): see that all did, and tell."""
        self._kill(room)
        _pid, status = os.waitpid(room.pid, 0)
        del self._rooms[room.run]
        # The inner process, if it lives, fell to us before the outer one could be waited for.
        others = {other.pid for other in self._rooms.values()}
        end_children(spared=others | {making.errand.pid for making in self._makings.values()})
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


def _make_disks(spec: SandboxSpec) -> tuple[bytes, list[int]]:
    """A run's disks: their devices by the directory's name inside, and what keeps each from going."""
    disks = make_disks(spec.disk_sizes, scratch_directory())
    devices: bytes = msgpack.packb({name: disk.device for name, disk in disks.items()})
    return devices, [disk.descriptor for disk in disks.values()]


def _overlay_for(spec: SandboxSpec) -> Overlay | None:
    """The network of a gang's sandbox; every other's has none that is made here."""
    if spec.gang is None:
        return None
    if spec.tier != TIER_SANDBOX:
        raise SandboxUnavailable(f"runs on several machines cannot be had in {spec.tier}", "lend them one by one")
    return make_overlay(spec.gang.place)


def main(arguments: list[str]) -> None:
    """``hansa launcher FD`` serves an inherited socket, ``hansa launcher PATH`` listens."""
    if arguments[0].isdigit():
        control = socket.socket(fileno=int(arguments[0]))
        serve_guarded(control, Launcher(control).serve)
    else:
        listen(arguments[0], lambda control, uid: Launcher(control, peer_uid=uid).serve)


if __name__ == "__main__":
    main(sys.argv[1:])
