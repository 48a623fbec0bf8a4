"""A run's results: the files below its output directory, read while they are sent."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hansa.proto.frames import MAX_CHUNK_BYTES, MAX_PATH_CHARS, Log, Output, is_safe_path
from hansa.worker.wire import Wire

MAX_FILES = 1000


class Unsteady(Exception):
    """A file became shorter while it was being sent, so something of the job's still writes to it."""


def send_outputs(wire: Wire, directory: Path, limit_bytes: int) -> None:
    """Send every file that fits, and say of the others that they were left out.

    Raises:
        Unsteady: see there.
    """
    files = files_below(directory)
    left_bytes = limit_bytes
    for path in files[:MAX_FILES]:
        name = path.relative_to(directory).as_posix()
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if not is_safe_path(name) or size_bytes > left_bytes:
                words = f"output left out: {name[:200]}, {size_bytes} bytes\n"
                wire.send(Log(stream="stderr", data=words.encode("utf-8", "replace")))
                continue
            left_bytes -= size_bytes
            wire.send_with(Output(path=name, size_bytes=size_bytes), _pieces(file.fileno(), size_bytes, name))
    if len(files) > MAX_FILES:
        words = f"{len(files) - MAX_FILES} outputs left out: at most {MAX_FILES} files are sent\n"
        wire.send(Log(stream="stderr", data=words.encode()))


def files_below(directory: Path) -> list[Path]:
    """Every plain file whose name is not too long, by a walk that does not recurse: a job may nest without end."""
    longest = len(str(directory)) + 1 + MAX_PATH_CHARS
    found, waiting = [], [str(directory)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    found.append(Path(entry.path))
                elif entry.is_dir(follow_symlinks=False) and len(entry.path) <= longest:
                    waiting.append(entry.path)
    return sorted(found)


def _pieces(descriptor: int, size_bytes: int, name: str) -> Iterator[bytes]:
    at = 0
    while at < size_bytes:
        piece = os.pread(descriptor, min(MAX_CHUNK_BYTES, size_bytes - at), at)
        if not piece:
            raise Unsteady(f"the output {name[:200]} became shorter while it was being sent")
        at += len(piece)
        yield piece
