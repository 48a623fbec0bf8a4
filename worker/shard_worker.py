"""The Ray actor in which one worker's share of a job's code runs.

The job's function runs in one thread of the actor while others take what it said and bring it what it waits for. Both
are ordinary actor calls, so arrays go through Ray's object store and it makes no difference on which machine the actor
is.
"""

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
from hansa.worker.context import Context, Stopping

MAX_UNREAD = 256
LOG_PIECE_BYTES = 32 << 10
LINGER_S = 0.05


class ShardWorker:
    """One of the workers of a shard; `Context` reaches the hub through it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Keep what the context needs and catch what the job prints, down to the file descriptors."""
        self._settings = settings
        self._unread: queue.Queue[tuple[Any, ...]] = queue.Queue(MAX_UNREAD)
        self._changed = threading.Condition()
        self._result: tuple[int, Any] | None = None
        self._stopping = False
        self._readers = [self._catch(1, "stdout"), self._catch(2, "stderr")]

    def process_id(self) -> int:
        """Answering at all says that the actor is up."""
        return os.getpid()

    def work(self) -> None:
        """Run the job's function to its end.

        The last message is ``("ended", how, words)``, where ``how`` is finished, stopped, bad-entry or user-exception.
        It is a message and no return value so that it cannot overtake what the job said before.
        """
        settings = dict(self._settings)
        entry = settings.pop("entry")
        code = Path(settings.pop("code"))
        try:
            function = load_entry(code, entry)
        except Exception:  # noqa: BLE001 - importing a stranger's module may raise anything
            self._ended("bad-entry", last_words(code))
            return
        try:
            context = Context(**settings, line=self)
            self.tell("started")
            function(context)
        except Stopping:
            self._ended("stopped", "")
        except BaseException:  # noqa: BLE001 - the same, and SystemExit is an end like any other
            self._ended("user-exception", last_words(code))
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

    def deliver(self, round_number: int, state: Any) -> None:
        """The result of a round."""
        with self._changed:
            self._result = (round_number, state)
            self._changed.notify_all()

    def stop(self) -> None:
        """The run is to end at the job's next call."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def tell(self, *message: Any) -> None:
        """Pass a message on; waits while too many lie unread, which slows a job that prints without end."""
        self._unread.put(message)

    def wait_for_round(self, at_least: int) -> tuple[int, Any]:
        """Wait as long as it takes: how long a round may last is not this side's business."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or (self._result is not None and self._result[0] >= at_least))
            if self._result is None or self._result[0] < at_least:
                raise Stopping
            return self._result

    @property
    def stopping(self) -> bool:
        """Whether the run is to end."""
        return self._stopping

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


def last_words(code: Path) -> str:
    """The traceback of what is being handled, less the frames that are ours, cut to its end if it is long."""
    kind, error, trace = sys.exc_info()
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith(str(code)):
        trace = trace.tb_next
    text = "".join(traceback.format_exception(kind, error, trace))
    return text.encode("utf-8", "replace")[-(MAX_MESSAGE_BYTES - 64) :].decode("utf-8", "ignore")
