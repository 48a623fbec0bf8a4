"""What the daemon and its launcher say: one message a packet, file descriptors beside it.

Both are ours, but the launcher may be root while the daemon is not, so requests are checked like a stranger's: types,
ranges and absolute paths; and so are answers, which may come from another machine. (Whether the daemon may read what it
names is checked where the paths are opened.)
"""

import array
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import msgpack

from hansa.node.devices.sandbox_devices import devices_fault
from hansa.node.isolation.sandbox import SandboxSpec
from hansa.proto.errors import Malformed
from hansa.proto.gang import read_gang

MAX_PACKET_BYTES = 64 << 10
LARGEST = 1 << 62
NO_PROCESS = 0
MOST_PIDS = 8192
"""As many as fit into a packet with room to spare; a run may have half of that."""
PROGRAMS = frozenset({"hansa.worker.runner", "hansa.worker.member", "hansa.worker.probe"})
TIERS = ("sandbox", "gvisor")
"""The walls that a launcher can make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Daemon → launcher: make a sandbox for this run."""

    run: bytes
    spec: SandboxSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Daemon → launcher: a sandbox that was prepared is this run's from now on, within the limits of its spec.

    It is answered with `Started` and no socket, since the daemon has that already, or `Refused`; then the prepared one
    is being ended.
    """

    run: bytes
    prepared: bytes
    spec: SandboxSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Daemon → launcher: tell what the run used until now. It is answered with `Counted`, unless it has ended."""

    run: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Daemon → launcher: end everything in the run's sandbox at once."""

    run: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Daemon → launcher: let no process of the run compute."""

    run: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Daemon → launcher: let them compute again."""

    run: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Launcher → daemon: it is there. The daemon's end of the runner's socket comes with the packet.

    Attributes:
        pid: the one process whose end is the sandbox's end; ``NO_PROCESS`` if it is on another machine.
        limits: by which means each limit is held.
    """

    run: bytes
    pid: int
    limits: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Launcher → daemon: it could not be made."""

    run: bytes
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Launcher → daemon: what a run used until now.

    Attributes:
        cpu_ms: processor time of all that ran in it.
        memory_kills: how often something was killed for want of memory.
        pids: its processes as this machine numbers them.
    """

    run: bytes
    cpu_ms: int
    memory_kills: int
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Launcher → daemon: nothing of the sandbox is left.

    Attributes:
        status: its exit status, negative for a signal.
        memory_kills: how often something was killed for want of memory.
        peak_bytes: the most memory it ever had, 0 if nobody counted; where there are no control groups, a figure that
            it did not exceed, looked at twice a second.
        words: the end of what it wrote to its standard error, for the owner's log only.
    """

    run: bytes
    status: int
    memory_kills: int
    peak_bytes: int
    words: str


Message = Start | Adopt | Count | Kill | Pause | Resume | Started | Refused | Counted | Ended
_KINDS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(Message)}


def pack(message: Message) -> bytes:
    """The packet of a message."""
    packed: bytes = msgpack.packb({"message": type(message).__name__, **asdict(message)})
    return packed


class ImpossibleOrder(Malformed):
    """A sandbox is asked for that cannot be, under a name that can be answered.

    Attributes:
        run: the name.
    """

    def __init__(self, run: bytes, fault: Malformed) -> None:
        """What else it is: the fault."""
        super().__init__(fault.where, fault.why)
        self.run = run


def unpack(packet: bytes) -> Message:
    """The message in a packet.

    Raises:
        ImpossibleOrder: it asks for a sandbox that cannot be.
        Malformed: it is none.
    """
    try:
        value = msgpack.unpackb(packet, use_list=False, max_map_len=32, max_array_len=MOST_PIDS, max_ext_len=0)
        kind = _KINDS[value.pop("message")]
        if set(value) != {field.name for field in fields(kind)}:
            raise Malformed("launcher packet", "other fields than it has")
        for name in ("run", "prepared") if kind is Adopt else ("run",):
            if type(value[name]) is not bytes or not 0 < len(value[name]) <= 64:
                raise Malformed("launcher packet", "a run without a name")
        if kind in (Start, Adopt):
            try:
                value["spec"] = _spec(value["spec"])
            except Malformed as fault:
                raise ImpossibleOrder(value["run"], fault) from fault
        message: Message = kind(**value)
        _check_answer(message)
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as error:
        raise Malformed("launcher packet", "no message") from error
    return message


def _spec(value: Any) -> SandboxSpec:
    gang = value.pop("gang")
    spec = SandboxSpec(**value, gang=None if gang is None else read_gang(gang))
    numbers = (
        spec.memory_bytes,
        spec.shared_memory_bytes,
        spec.cpu_millis,
        spec.processes,
        spec.scratch_bytes,
        spec.output_bytes,
    )
    if not all(type(number) is int and 0 < number < 1 << 50 for number in numbers):
        raise Malformed("launcher packet", "a limit out of range")
    if not all(_is_plain(path) for path in spec.paths):
        raise Malformed("launcher packet", "a path that is not absolute")
    if spec.tier not in TIERS:
        raise Malformed("launcher packet", "an unknown tier")
    if spec.program not in PROGRAMS:
        raise Malformed("launcher packet", "an unknown program")
    fault = devices_fault(spec.gpu_minors, spec.device_nodes, spec.cuda_devices, spec.rocm_devices)
    if fault is not None:
        raise Malformed("launcher packet", fault)
    return spec


def _check_answer(message: Message) -> None:
    """Answers come from another machine of the provider's, too, which may have been taken over."""
    match message:
        case Started(pid=pid, limits=limits):
            numbers: tuple[object, ...] = (pid,)
            texts: tuple[object, ...] = (*limits, *limits.values()) if isinstance(limits, dict) else (None,)
        case Refused(reason=reason):
            numbers, texts = (), (reason,)
        case Counted(cpu_ms=cpu_ms, memory_kills=kills, pids=pids):
            numbers, texts = (cpu_ms, kills, *pids), ()
        case Ended():
            numbers = (message.memory_kills, message.peak_bytes, abs(message.status))
            texts = (message.words,)
        case _:
            return
    if not all(type(number) is int and 0 <= number < LARGEST for number in numbers):
        raise Malformed("launcher packet", "a number out of range")
    if not all(type(text) is str for text in texts):
        raise Malformed("launcher packet", "something in the place of words")


def _is_plain(path: object) -> bool:
    """Whether a path is absolute and means what it says: nothing is cut off, and no part leads upwards."""
    return type(path) is str and path.startswith("/") and "\0" not in path and ".." not in path.split("/")


def send(connection: socket.socket, message: Message, descriptors: tuple[int, ...] = ()) -> None:
    """Send a message with file descriptors beside it."""
    socket.send_fds(connection, [pack(message)], list(descriptors))


def receive(connection: socket.socket) -> tuple[Message | None, list[int]]:
    """The next message and its file descriptors; no message when the other side is gone.

    Raises:
        ImpossibleOrder: it asks for a sandbox that cannot be.
        Malformed: it is none. Either way what came with it is closed.
    """
    packet, descriptors, _flags, _address = socket.recv_fds(connection, MAX_PACKET_BYTES, 4)
    return (unpack_beside(packet, descriptors) if packet else None), descriptors


def unpack_beside(packet: bytes, descriptors: Iterable[int]) -> Message:
    """The message in a packet, which owns the descriptors that came with it: without one they are closed.

    Raises:
        ImpossibleOrder: it asks for a sandbox that cannot be.
        Malformed: it is none.
    """
    try:
        return unpack(packet)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The file descriptors in what ``recvmsg`` gave beside the bytes."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
