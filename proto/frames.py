"""What a provider's daemon and the runner inside a sandbox say to each other over an inherited socket.

A frame is a big-endian u32 length and a msgpack map of at most 1 MiB. Whatever is larger (the arrays of a model, a file
of results) travels as a header frame that declares ``size_bytes`` and as many `Chunk` frames as it takes; the receiver
holds the declared size against the limits of the run before it keeps a single byte.

The runner shares its uid and its pid namespace with a stranger's code, so the daemon treats everything from this socket
as hostile: any bytes give a frame or a `ProtocolError`, and after an error the sandbox is ended.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, get_args

import msgpack

from hansa.proto.errors import Malformed, TooLarge
from hansa.proto.units import AtMost

MAX_FRAME_BYTES: Final = 1 << 20
MAX_CHUNK_BYTES: Final = 512 << 10
MAX_LOG_BYTES: Final = 64 << 10
MAX_MESSAGE_BYTES: Final = 8 << 10
MAX_METRICS: Final = 32
"""As many as a message to the buyer carries."""
MAX_NAME_CHARS: Final = 128
MAX_PATH_CHARS: Final = 512
MAX_PARAMETERS: Final = 256
LINE: Final = AtMost(256)
MAX_INT: Final = 2**63 - 1

MAX_PARAMETER_BYTES: Final = 8 << 10

MAX_SHELL_BYTES: Final = 16 << 10
SHELL_WINDOW_BYTES: Final = 64 << 10
"""How far each side of a shell may send ahead of what the other has read, in bytes."""
MAX_ARGUMENTS: Final = 64
MAX_ARGUMENT_BYTES: Final = 4 << 10
MAX_TERMINAL_SIDE: Final = 1000

FAILURE_KINDS: Final = frozenset(
    {"user-exception", "worker-died", "out-of-memory", "ray-lost", "bad-entry", "bad-state"}
)
"""What the runner itself can tell apart; the executor knows more kinds (``wall-limit``, ``stalled``, …)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Daemon → runner, once: what to run. A checkpoint of ``size_bytes`` follows in chunks if ``has_checkpoint``.

    Attributes:
        entry: ``"file.py:function"`` inside the job's code.
        workers: Ray workers that share the shard.
        parameters: names and values from the job file, the values as JSON text.
        round: the round in which this run joins the others.
        state_bytes: the largest state that the run may send or will be sent.
        output_bytes: all files of results together.
        threads: how many threads one worker should compute with.
        gpus: devices of the lease that Ray may hand out.
    """

    entry: str
    shard: int
    shards: int
    workers: int
    parameters: tuple[tuple[str, str], ...]
    round: int
    has_checkpoint: bool
    size_bytes: int
    state_bytes: int
    output_bytes: int
    threads: int
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Daemon → runner, before any run is known: have everything up that a run of this shape needs.

    Attributes:
        workers, gpus, threads: as in `Begin`, which has to name the same.
    """

    workers: int
    gpus: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Daemon → runner, between `Prepare` and `Begin`: is everything up still? It answers `Prepared`, or leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """Daemon → runner: the shards' reduced state of a round; chunks follow."""

    round: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointStored:
    """Daemon → runner: the checkpoint of this round is kept; the next may be sent."""

    round: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Daemon → runner: end at the next safe point; after ``grace_ms`` the sandbox is killed."""

    grace_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """Daemon → runner: end at the job's next checkpoint; after ``grace_ms`` the sandbox is killed."""

    grace_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Daemon → runner: the run has failed and is kept to be looked at. End the job's processes, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenShell:
    """Daemon → runner: start a program at a terminal of its own.

    Attributes:
        shell: its number, counted from 0 over the whole run.
        argv: the program and its arguments; none means a shell.
        columns, rows: the size of the terminal.
    """

    shell: int
    argv: tuple[str, ...]
    columns: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellInput:
    """Daemon → runner: bytes typed, never more than `SHELL_WINDOW_BYTES` ahead of the credit."""

    shell: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeShell:
    """Daemon → runner: the terminal has another size now."""

    shell: int
    columns: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseShell:
    """Daemon → runner: hang up; end the program and what it started at this terminal."""

    shell: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellCredit:
    """Either way: so many bytes of a shell were read, and as many more may be sent."""

    shell: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellOutput:
    """Runner → daemon: what a program wrote, never more than `SHELL_WINDOW_BYTES` ahead of the credit."""

    shell: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellEnded:
    """Runner → daemon: the program ended, after all of its output. 128 and more stand for a signal."""

    shell: int
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Runner → daemon: the interpreter is up and waits for `Begin`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Runner → daemon: all is up, and `Begin` would find its workers waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Runner → daemon: the first line of the job's code is about to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Runner → daemon: a step was done. Metrics are finite floats, averaged over the shard's workers."""

    step: int
    metrics: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Runner → daemon: what the job's code printed, as it came (it may be no text at all)."""

    stream: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """Runner → daemon: this shard's contribution to a round, already averaged over its workers; chunks follow."""

    round: int
    weight: float
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Runner → daemon: a state from which the shard can go on; chunks follow."""

    round: int
    step: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Runner → daemon: one file of the results, by its path relative to the output directory; chunks follow."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Runner → daemon: every worker returned and every output was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Runner → daemon: it was to leave, and has ended at a checkpoint that is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Runner → daemon: the run is over and not well. ``kind`` is one of `FAILURE_KINDS`."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Runner → daemon, every second: how much has happened so far, and whether all workers wait for a round."""

    progress: int
    waiting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Either way: the next bytes of the last header. Frames without bytes of their own may come in between."""

    data: bytes


FromDaemon = (
    Begin | RoundResult | CheckpointStored | Stop | Leave | Keep | OpenShell | ShellInput | ResizeShell | CloseShell
    | ShellCredit | Chunk | Prepare | Look
)  # fmt: skip
FromRunner = (
    Ready | Prepared | Started | Progress | Log | Sync | Checkpoint | Output | Finished | Left | Failed | Heartbeat
    | ShellOutput | ShellCredit | ShellEnded | Chunk
)  # fmt: skip
Frame = FromDaemon | FromRunner

_NAMES: Final[Mapping[type, str]] = {t: t.__name__ for t in (*get_args(FromDaemon), *get_args(FromRunner))}
_TO_RUNNER: Final = {t.__name__: t for t in get_args(FromDaemon)}
_TO_DAEMON: Final = {t.__name__: t for t in get_args(FromRunner)}


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda v: type(v) is int and low <= v <= high


def _text(longest: int) -> Callable[[Any], bool]:
    return lambda v: type(v) is str and len(v) <= longest


def _data(longest: int) -> Callable[[Any], bool]:
    return lambda v: type(v) is bytes and len(v) <= longest


def _shell_data(value: Any) -> bool:
    return type(value) is bytes and 0 < len(value) <= MAX_SHELL_BYTES


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_weight(value: Any) -> bool:
    return type(value) is float and math.isfinite(value) and 0.0 < value <= 1e9


def _is_line(text: str) -> bool:
    """Whether it fits into a ``Line``: names and paths go into the journal and to the buyer as such."""
    return LINE.fault(text) is None


def _is_name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable() and _is_line(value)


def _are_metrics(value: Any) -> bool:
    return (
        type(value) is tuple
        and len(value) <= MAX_METRICS
        and all(type(p) is tuple and len(p) == 2 and _is_name(p[0]) for p in value)
        and all(type(p[1]) is float and math.isfinite(p[1]) for p in value)
    )


def _are_parameters(value: Any) -> bool:
    return (
        type(value) is tuple
        and len(value) <= MAX_PARAMETERS
        and all(type(p) is tuple and len(p) == 2 and _is_name(p[0]) for p in value)
        and all(type(p[1]) is str and len(p[1]) <= MAX_PARAMETER_BYTES for p in value)
    )


def _are_arguments(value: Any) -> bool:
    return (
        type(value) is tuple
        and len(value) <= MAX_ARGUMENTS
        and all(type(one) is str and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in one) for one in value)
        and all(len(one.encode()) <= MAX_ARGUMENT_BYTES for one in value)
    )


def is_safe_path(path: str) -> bool:
    """Whether a path from a sandbox stays below the directory it will be put in: relative, plain, no dot parts."""
    parts = path.split("/")
    return (
        0 < len(path) <= MAX_PATH_CHARS
        and path.isprintable()
        and _is_line(path)
        and "\\" not in path
        and all(part not in ("", ".", "..") for part in parts)
    )


_CHECKS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "Begin.shard": _whole(0, 1 << 20),
    "Begin.shards": _whole(1, 1 << 20),
    "workers": _whole(1, 1024),
    "threads": _whole(1, 1024),
    "gpus": _whole(0, 1024),
    "entry": _text(MAX_PATH_CHARS),
    "parameters": _are_parameters,
    "round": _whole(0, 1 << 40),
    "step": _whole(0, MAX_INT),
    "has_checkpoint": _is_flag,
    "waiting": _is_flag,
    "size_bytes": _whole(0, 1 << 50),
    "state_bytes": _whole(0, 1 << 50),
    "output_bytes": _whole(0, 1 << 50),
    "grace_ms": _whole(0, 1 << 40),
    "progress": _whole(0, MAX_INT),
    "weight": _is_weight,
    "metrics": _are_metrics,
    "stream": lambda v: v in ("stdout", "stderr"),
    "Log.data": _data(MAX_LOG_BYTES),
    "Chunk.data": lambda v: type(v) is bytes and 0 < len(v) <= MAX_CHUNK_BYTES,
    "path": lambda v: type(v) is str and is_safe_path(v),
    "shell": _whole(0, 1 << 31),
    "argv": _are_arguments,
    "columns": _whole(1, MAX_TERMINAL_SIDE),
    "rows": _whole(1, MAX_TERMINAL_SIDE),
    "ShellInput.data": _shell_data,
    "ShellOutput.data": _shell_data,
    "ShellCredit.size_bytes": _whole(1, SHELL_WINDOW_BYTES),
    "status": _whole(0, 255),
    "kind": lambda v: type(v) is str and v in FAILURE_KINDS,
    "message": lambda v: type(v) is str and len(v.encode("utf-8", "surrogatepass")) <= MAX_MESSAGE_BYTES,
}


def encode(frame: Frame) -> bytes:
    """One frame with its length in front, ready to be written.

    Raises:
        TooLarge: the frame is over 1 MiB; that is a fault of the caller's.
    """
    values = {field.name: getattr(frame, field.name) for field in fields(frame)}
    _check(_NAMES[type(frame)], values)
    payload: bytes = msgpack.packb({"frame": _NAMES[type(frame)], **values}, use_bin_type=True)
    if len(payload) > MAX_FRAME_BYTES:
        raise TooLarge(_NAMES[type(frame)], f"{len(payload)} bytes in one frame")
    return len(payload).to_bytes(4, "big") + payload


def decode(payload: bytes, known: Mapping[str, type]) -> Any:
    """The frame that these bytes are.

    Args:
        payload: the bytes behind the length.
        known: the frames that may come from this side, `_TO_RUNNER` or `_TO_DAEMON` (see `FrameReader`).

    Raises:
        ProtocolError: they are none.
    """
    try:
        value = msgpack.unpackb(
            payload,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_map_len=32,
            max_array_len=512,
            max_str_len=64 << 10,
            max_bin_len=MAX_CHUNK_BYTES,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise Malformed("frame", "no msgpack within the limits") from error
    if not isinstance(value, dict) or not isinstance(value.get("frame"), str) or value["frame"] not in known:
        raise Malformed("frame", "no map that names a frame of this side")
    name = value.pop("frame")
    kind = known[name]
    if set(value) != {field.name for field in fields(kind)}:
        raise Malformed(name, "its fields are not the ones it has")
    _check(name, value)
    return kind(**value)


def _check(name: str, values: Mapping[str, Any]) -> None:
    for field, value in values.items():
        check = _CHECKS.get(f"{name}.{field}") or _CHECKS[field]
        if not check(value):
            raise Malformed(f"{name}.{field}", "wrong type or out of range")


class FrameReader:
    """Turns bytes as they arrive into frames."""

    def __init__(self, *, from_runner: bool) -> None:
        """Read what the runner says if ``from_runner``, else what the daemon says."""
        self._known = _TO_DAEMON if from_runner else _TO_RUNNER
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Every frame that is complete now.

        Raises:
            ProtocolError: the stream is no stream of frames; nothing after it can be trusted.
        """
        self._buffer += data
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > MAX_FRAME_BYTES:
                raise TooLarge("frame", f"{size} bytes")
            if len(self._buffer) < 4 + size:
                return
            payload = bytes(self._buffer[4 : 4 + size])
            del self._buffer[: 4 + size]
            yield decode(payload, self._known)
