"""The Ray actor in which one worker's share of a job's code runs.

The job's function runs in one thread of the actor while others take what it said and bring it what it waits for. Both
are ordinary actor calls, and states come and go in pieces, so it makes no difference on which machine the actor is.
"""

import faulthandler
import importlib.util
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hansa.proto.frames import MAX_MESSAGE_BYTES
from hansa.proto.tensors import decode_state
from hansa.worker.context import Context, Stopping
from hansa.worker.deaths import crash_path
from hansa.worker.handed_over import SMALL_BYTES, HandedOver
from hansa.worker.outputs import files_below

MAX_UNREAD = 256
LOG_PIECE_BYTES = 32 << 10
LINGER_S = 0.05
CHECKPOINT = -1
"""The label of the checkpoint that a run goes on from, among the numbers of rounds."""


class ShardWorker:
    """One of the workers of a shard; `Context` reaches the hub through it."""

    def __init__(self) -> None:
        """Know nothing of the run yet; catch what the job will print, down to the file descriptors."""
        self._settings: dict[str, Any] = {}
        self._unread: queue.Queue[tuple[Any, ...]] = queue.Queue(MAX_UNREAD)
        self._changed = threading.Condition()
        self._stopping = False
        self._leaving = False
        self._lock = threading.Lock()
        self._handed_over = 0
        self._held: dict[int, bytes] = {}
        self._coming: dict[int, tuple[bytearray, list[int]]] = {}
        self._due: int | None = None
        # What a signal did to this process could not be told by it; the runner reads this then.
        self._crash = crash_path(os.getpid()).open("w", encoding="utf-8")
        faulthandler.enable(self._crash, all_threads=False)
        self._readers = [self._catch(1, "stdout"), self._catch(2, "stderr")]

    def process_id(self) -> int:
        """Answering at all says that the actor is up."""
        return os.getpid()

    def settle(self, settings: dict[str, Any]) -> int:
        """Take what the context needs, and a place in the run's own directory; gives the number of this process."""
        self._settings = settings
        os.chdir(settings["work"])  # where it began may be what the run's disk covers by now
        return os.getpid()

    def work(self) -> None:
        """Run the job's function to its end.

        The last message is ``("ended", how, words)``, where ``how`` is finished, stopped, bad-entry or user-exception.
        It is a message and no return value so that it cannot overtake what the job said before.
        """
        settings = dict(self._settings)
        entry = settings.pop("entry")
        code = Path(settings.pop("code"))
        del settings["work"]
        try:
            function = load_entry(code, entry)
        except BaseException as error:  # noqa: BLE001 - importing a stranger's module may raise anything
            kind, words = fault_of(error, code)
            self._ended("bad-entry" if kind == "user-exception" else kind, words)
            return
        try:
            begun = self._arrived(CHECKPOINT) if settings.pop("has_checkpoint") else None
            context = Context(**settings, checkpoint=begun, line=self, code=code, entry=entry)
            self.tell("started")
            function(context)
        except Stopping:
            self._ended("stopped", "")
        except BaseException as error:  # noqa: BLE001 - the same, and SystemExit is an end like any other
            if isinstance(error, SystemExit) and error.code in (None, 0):
                self._ended("finished", "")
            else:
                self._ended(*fault_of(error, code))
        else:
            self._ended("finished", "")

    def take(self, timeout_s: float) -> list[tuple[Any, ...]]:
        """What the job said since the last call; waits up to ``timeout_s`` for the first of it."""
        messages = []
        try:
            messages.append(self._unread.get(timeout=timeout_s))
            while len(messages) < MAX_UNREAD:
                messages.append(self._unread.get_nowait())
        except queue.Empty:
            pass
        return messages

    def take_piece(self, label: int, size_bytes: int, at: int, piece: bytes) -> None:
        """A piece of a state that comes: the result of a round, by its number, or `CHECKPOINT`."""
        with self._lock:
            if label not in self._coming:
                for other in [other for other in self._coming if other != self._due]:
                    del self._coming[other]  # overtaken before anybody needed it
                self._coming[label] = bytearray(size_bytes), [0]
            buffer, got = self._coming[label]
            buffer[at : at + len(piece)] = piece
            got[0] += len(piece)

    def give_piece(self, number: int, at: int, most_bytes: int) -> bytes:
        """A piece of what was handed over; with the last of them it is forgotten."""
        data = self._held[number]
        if at + most_bytes >= len(data):
            self.drop(number)
        return data[at : at + most_bytes]

    def drop(self, number: int) -> None:
        """What was handed over is not needed any more."""
        self._held.pop(number, None)

    def go_on(self, round_number: int, data: bytes | None) -> None:
        """The result of a round is the one to go on from: these bytes, or else those that are here already."""
        if data is not None:
            self.take_piece(round_number, len(data), 0, data)
        with self._changed:
            self._due = round_number
            self._changed.notify_all()

    def list_outputs(self) -> list[tuple[str, int]]:
        """The files of results on this actor's machine, with their sizes; for a run on several."""
        directory = Path(self._settings["outputs"])
        return [(path.relative_to(directory).as_posix(), path.lstat().st_size) for path in files_below(directory)]

    def read_output(self, name: str, at: int, most_bytes: int) -> bytes:
        """A piece of one of them."""
        with Path(self._settings["outputs"], name).open("rb") as file:
            return os.pread(file.fileno(), most_bytes, at)

    def stop(self) -> None:
        """The run is to end at the job's next call."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def leave(self) -> None:
        """The run is to end at its next checkpoint."""
        self._leaving = True

    def hand_over(self, kind: str, data: bytes, *facts: Any) -> None:
        """Say that these bytes are there, and keep them until they are fetched, unless they are few."""
        self._handed_over += 1
        small = len(data) <= SMALL_BYTES
        if not small:
            self._held[self._handed_over] = data
        given = HandedOver(number=self._handed_over, size_bytes=len(data), data=data if small else None)
        self.tell(kind, given, *facts)

    def tell(self, *message: Any) -> None:
        """Pass a message on; waits while too many lie unread, which slows a job that prints without end."""
        self._unread.put(message)

    def wait_for_round(self, at_least: int) -> tuple[int, Any]:
        """Wait as long as it takes: how long a round may last is not this side's business."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or (self._due is not None and self._due >= at_least))
            if self._due is None or self._due < at_least:
                raise Stopping
            due = self._due
        return due, decode_state(self._arrived(due))

    def wait_for_end(self) -> None:
        """Wait until the run is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping)

    @property
    def stopping(self) -> bool:
        """Whether the run is to end."""
        return self._stopping

    @property
    def leaving(self) -> bool:
        """Whether it is to end at the next checkpoint."""
        return self._leaving

    def _arrived(self, label: int) -> memoryview:
        """The bytes of a state of which every piece is here; they are not kept any longer."""
        with self._lock:
            buffer, got = self._coming.pop(label)
        assert got[0] == len(buffer), "a state is used when it is complete"
        return memoryview(buffer).toreadonly()

    def _ended(self, how: str, words: str) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(LINGER_S)  # the threads that read the pipes need a moment for the last lines
        self.tell("ended", how, words)

    def _catch(self, number: int, stream: str) -> threading.Thread:
        """Put a pipe in place of a file descriptor, so that C code and subprocesses are heard too."""
        reading, writing = os.pipe()
        os.dup2(writing, number)
        os.close(writing)
        text = open(number, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115 - stays open
        setattr(sys, stream, text)
        thread = threading.Thread(target=self._listen, args=(reading, stream), daemon=True, name=f"hansa-{stream}")
        thread.start()
        return thread

    def _listen(self, reading: int, stream: str) -> None:
        while data := os.read(reading, LOG_PIECE_BYTES):
            self.tell("log", stream, data)


def load_entry(code: Path, entry: str) -> Callable[[Context], object]:
    """The function that ``"file.py:function"`` names in the job's code."""
    file, _, name = entry.partition(":")
    path = (code / file).resolve()
    if not path.is_relative_to(code.resolve()) or not path.is_file():
        raise FileNotFoundError(f"the job has no file {file}")
    sys.path.insert(0, str(code))
    spec = importlib.util.spec_from_file_location("hansa_job", path)
    assert spec is not None, "every file has a spec"
    assert spec.loader is not None, "and that a loader"
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["hansa_job"] = module
    spec.loader.exec_module(module)
    function: Callable[[Context], object] = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{entry} is no function")
    return function


def fault_of(error: BaseException, code: Path) -> tuple[str, str]:
    """Which kind of failure an exception out of the job's code is, and the words for it."""
    words = last_words(error, code)
    if isinstance(error, SystemExit):
        code_given = 0 if error.code is None else error.code
        status, said = (code_given, "") if isinstance(code_given, int) else (1, f": {str(code_given)[:256]}")
        return "user-exception", f"exited with status {status}{said}\n{words}"
    if isinstance(error, MemoryError):
        return "out-of-memory", f"there was not the memory that it asked for\n{words}"
    if isinstance(error, Exception) and "out of memory" in str(error).lower().replace("_", " "):
        return "out-of-memory", f"a device had not the memory that it asked for\n{words}"  # as CUDA's libraries put it
    return "user-exception", words


def last_words(error: BaseException, code: Path) -> str:
    """The traceback of an exception, less the frames that are ours, cut to its end if it is long."""
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith(str(code)):
        trace = trace.tb_next
    data = "".join(traceback.format_exception(type(error), error, trace)).encode("utf-8", "replace")
    most = MAX_MESSAGE_BYTES - 512
    if len(data) <= most:
        return data.decode()
    # The first line tells readers that it is a traceback; half a line after it would only puzzle them.
    end = data[64 - most :].decode("utf-8", "ignore")
    return "Traceback (most recent call last):\n" + (end.partition("\n")[2] or end)
