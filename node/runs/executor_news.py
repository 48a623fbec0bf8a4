"""What is told of a run in pieces of a fitting size: its output as text within a limit, its progress in moderation."""

import codecs
from collections.abc import Callable
from typing import Final

from hansa.node.runs.executor_end import printable
from hansa.proto.frames import Progress
from hansa.scheduler.run import RunEvent, RunLogged, RunProgressed

LOG_PIECE_CHARS: Final = 4096
LAST_LINE: Final = "\n[more output than the run may keep; the rest is dropped]\n"


class RunNewsDesk:
    """Gathers what one run prints and reports, and tells it when it is flushed."""

    def __init__(
        self, run: bytes, *, log_bytes: int, tell: Callable[[RunEvent], None], now_ms: Callable[[], int]
    ) -> None:
        """Tell at most ``log_bytes`` of what the run prints."""
        self._run = run
        self._tell = tell
        self._now_ms = now_ms
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._log_left = log_bytes
        self._log_text = ""
        self._progress: Progress | None = None

    def took_log(self, data: bytes) -> None:
        """It printed something."""
        if self._log_left <= 0:
            return
        kept = data[: self._log_left]
        self._log_left -= len(kept)
        self._log_text += printable(self._decoder.decode(kept))
        if self._log_left <= 0:
            self._log_text += LAST_LINE

    def took_progress(self, frame: Progress) -> None:
        """It reported a step; the newest is told."""
        self._progress = frame

    def flush(self) -> None:
        """Tell everything."""
        self.flush_logs()
        self.flush_progress()

    def flush_logs(self) -> None:
        """Tell what it printed."""
        text, self._log_text = self._log_text, ""
        for start in range(0, len(text), LOG_PIECE_CHARS):
            piece = text[start : start + LOG_PIECE_CHARS]
            self._tell(RunLogged(run=self._run, text=piece, at_ms=self._now_ms()))

    def flush_progress(self) -> bool:
        """Tell how far it is; gives whether there was anything to tell."""
        frame, self._progress = self._progress, None
        if frame is None:
            return False
        self._tell(RunProgressed(run=self._run, step=frame.step, metrics=frame.metrics, at_ms=self._now_ms()))
        return True
