"""The Ray actor in which one worker of a pool of tasks does one item after the other.

It is its shard's process like any other: it has its own devices, loads the job's code anew, makes what the job wants to
have at hand once (a model), and what it prints goes the way of what the job's own process prints.
"""

import contextlib
import faulthandler
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hansa.worker.deaths import crash_path

# Nothing up here may import numpy: its libraries read how many threads they may use when they are loaded.

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

Outcome = tuple[str, bytes | str, float]
"""``"done"`` and the item's record, or ``"failed"`` and why; and how long it took, in seconds."""


class TaskWorker:
    """One of the workers of a pool."""

    def __init__(self, parent: int, threads: int) -> None:
        """Speak through the process that the job's own code runs in, and compute with so many threads."""
        self._crash = crash_path(os.getpid()).open("w", encoding="utf-8")
        _speak_through(parent)
        faulthandler.enable(self._crash, all_threads=False)
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
        _narrow_rocm()
        self._code = Path()
        self._function: Callable[..., Any] = print
        self._at_hand: tuple[Any, ...] = ()

    def load(self, code: str, entry: str, work: str) -> int:
        """Load the job's code, so that its functions can be named; gives the number of this process."""
        os.chdir(work)  # where it began may be what the run's disk covers by now
        from hansa.worker.shard_worker import load_entry  # noqa: PLC0415 - numpy comes with it

        self._code = Path(code)
        load_entry(self._code, entry)
        return os.getpid()

    def prepare(self, function: Callable[..., Any], setup: Callable[[], Any] | None) -> str:
        """Make what the tasks need; gives what went wrong, or nothing."""
        self._function = function
        try:
            if setup is not None:
                self._at_hand = (setup(),)
        except BaseException as error:  # noqa: BLE001 - a stranger's code may raise anything
            return self._words(error)
        return ""

    def perform(self, item: Any) -> Outcome:
        """Do one item."""
        from hansa.worker.states import for_keeping  # noqa: PLC0415 - loaded by now
        from hansa.worker.task_records import value_record  # noqa: PLC0415

        begun = time.monotonic()
        try:
            record = value_record(for_keeping(self._function(*self._at_hand, item)))
        except BaseException as error:  # noqa: BLE001 - the same, and a task that exits has not done its item
            return "failed", self._words(error), time.monotonic() - begun
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
        return "done", record, time.monotonic() - begun

    def _words(self, error: BaseException) -> str:
        from hansa.worker.shard_worker import last_words  # noqa: PLC0415

        return last_words(error, self._code)


def _speak_through(parent: int) -> None:
    """Write where another process of this sandbox writes. Where that cannot be, Ray keeps what is printed."""
    for number, stream in ((1, "stdout"), (2, "stderr")):
        with contextlib.suppress(OSError):
            theirs = os.open(f"/proc/{parent}/fd/{number}", os.O_WRONLY)
            os.dup2(theirs, number)
            os.close(theirs)
            text = open(number, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115 - stays open
            setattr(sys, stream, text)


def _narrow_rocm() -> None:
    """Ray hands out NVIDIA's GPUs only; of AMD's each worker takes those at the places that Ray gave it."""
    named = os.environ.get("ROCR_VISIBLE_DEVICES", "").split(",")
    places = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if named[0] and places[0] and all(place.isdigit() and int(place) < len(named) for place in places):
        os.environ["ROCR_VISIBLE_DEVICES"] = ",".join(named[int(place)] for place in places)
