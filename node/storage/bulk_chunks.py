"""What is said on a bulk channel: chunks so-and-so of this blob, and then nothing but their bytes.

A request is 48 bytes, the answer one byte and the chunks one after the other; both sides know how long each is. Whoever
fetches has two requests on their way, so that the line is never idle while one is thought about.
"""

import os
import struct
import time
from collections import deque
from queue import SimpleQueue
from threading import Thread
from typing import Final, Protocol

from hansa.node.storage.blob_partial import Partial
from hansa.node.storage.bulk_line import BulkLine, LineBroken
from hansa.proto.blob import CHUNK_BYTES, MAX_BLOB_BYTES, BlobRef, chunk_count, chunk_size_bytes
from hansa.proto.errors import Malformed

REQUEST: Final = struct.Struct(">32sQII")
SENT, NONE_FOR_YOU = 0, 1
LONGEST_RUN: Final = 16
"""Chunks in one request. Whether they may be had is asked again for the next."""
PIECE_BYTES: Final = 128 << 10
"""Read and sent at once, so that what was read is still in the core's cache when it is encrypted."""
UNDERWAY: Final = 2
BUFFERS: Final = 3
"""Chunks that one channel holds: one that comes, one that is checked and written, one between them."""
SHORT_S: Final = 0.1
LONG_S: Final = 0.5
"""A run that took less is followed by a longer one, and one that took more by a shorter: who is slow holds little."""


class NotGiven(Exception):
    """The other side gives us nothing of this blob."""


class WrongBytes(Exception):
    """The other side sent what is not the blob's."""


class Lacking(Protocol):
    """The chunks that are still to come; see ``hansa.node.storage.blob_fetch``."""

    def take(self, most: int) -> range:
        """Some that follow one another, which the caller must now bring or give back."""

    def done(self, size_bytes: int) -> None:
        """One of them is here."""

    def give_back(self, indices: range) -> None:
        """These could not be brought."""


def parse_request(data: bytes) -> tuple[BlobRef, range]:
    """Which chunks are wanted. Raises ``Malformed``."""
    root, size_bytes, first, count = REQUEST.unpack(data)
    if size_bytes > MAX_BLOB_BYTES or not 0 < count <= LONGEST_RUN or first + count > chunk_count(size_bytes):
        raise Malformed("bulk", "no such chunks")
    return BlobRef(root=root, size_bytes=size_bytes), range(first, first + count)


def send_chunks(line: BulkLine, file: int, ref: BlobRef, indices: range, chunk_s: float) -> None:
    """Answer a request, in a thread. ``file`` is the blob's, open. Each chunk must be taken within ``chunk_s``."""
    buffer = line.buffer(PIECE_BYTES)
    line.send_all(memoryview(bytes((SENT,))), time.monotonic() + chunk_s)
    for index in indices:
        due_s = time.monotonic() + chunk_s
        at, left = index * CHUNK_BYTES, chunk_size_bytes(ref.size_bytes, index)
        while left:
            view = buffer[: min(left, PIECE_BYTES)]
            if os.preadv(file, [view], at) != len(view):
                raise OSError("a blob became shorter")
            line.send_all(view, due_s)
            at, left = at + len(view), left - len(view)


def bring_chunks(line: BulkLine, partial: Partial, lacking: Lacking, chunk_s: float) -> None:
    """Fetch until nothing is lacking that nobody else brings, in a thread. Each run must come within ``chunk_s``.

    A run is as long as lately came in half a second, so that only who becomes far slower within one is given up; with
    the time for each chunk anew it could hold what it has taken for half a minute times the chunks in it.

    Raises:
        LineBroken: the connection ended or is too slow.
        NotGiven: the other side refuses.
        WrongBytes: it lies.
        OSError: this node's disk.
    """
    writer = _Writer(partial, lacking)
    underway: deque[range] = deque()
    width = 1
    try:
        while writer.fault is None:
            while len(underway) < UNDERWAY and (run := lacking.take(width)):
                underway.append(run)
                request = REQUEST.pack(partial.ref.root, partial.ref.size_bytes, run.start, len(run))
                line.send_all(memoryview(request), time.monotonic() + chunk_s)
            if not underway:
                break
            took_s = _receive_run(line, underway, writer, chunk_s)
            underway.popleft()
            if took_s < SHORT_S:
                width = min(LONGEST_RUN, width * 2)
            elif took_s > LONG_S:
                width = max(1, width // 2)
    finally:
        line.broken = line.broken or bool(underway)  # what was asked for would come as the answer to the next request
        for run in reversed(underway):
            lacking.give_back(run)
        writer.finish()
    if writer.fault is not None:
        line.broken = True
        raise writer.fault


def _receive_run(line: BulkLine, underway: deque[range], writer: "_Writer", chunk_s: float) -> float:
    """The answer to the oldest request, chunk by chunk. Says how many seconds it took."""
    started_s = time.monotonic()
    due_s = started_s + chunk_s
    status = bytearray(1)
    line.receive_into(memoryview(status), due_s)
    if status[0] != SENT:
        raise NotGiven
    while run := underway[0]:
        ready_s = time.monotonic()
        view = writer.free.get()[: chunk_size_bytes(writer.partial.ref.size_bytes, run.start)]
        due_s += time.monotonic() - ready_s  # our own disk's time is not the other side's
        try:
            line.receive_into(view, due_s)
        except LineBroken:
            writer.free.put(memoryview(view.obj))
            raise
        underway[0] = run[1:]
        writer.filled.put((run.start, view))
    return time.monotonic() - started_s


class _Writer:
    """Checks chunks and writes them in a thread of its own, while the next ones are received."""

    def __init__(self, partial: Partial, lacking: Lacking) -> None:
        """Begin to wait for chunks."""
        self.partial = partial
        self.fault: Exception | None = None
        self.free: SimpleQueue[memoryview] = SimpleQueue()
        self.filled: SimpleQueue[tuple[int, memoryview] | None] = SimpleQueue()
        for _ in range(BUFFERS):
            self.free.put(memoryview(bytearray(CHUNK_BYTES)))
        self._lacking = lacking
        self._thread = Thread(target=self._run, name="bulk writer", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Nothing more comes; wait until all is written."""
        self.filled.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self.filled.get()) is not None:
            index, view = item
            try:
                if self.fault is None:
                    self.partial.write(index, view)
            except ValueError:
                self.fault = WrongBytes()
            except Exception as fault:  # noqa: BLE001  # told to whoever waits for the writer
                self.fault = fault
            if self.fault is None:
                self._lacking.done(len(view))
            else:
                self._lacking.give_back(range(index, index + 1))
            self.free.put(memoryview(view.obj))
