"""The limits on a run's time: how long it may take, say nothing, stand still, and go on once it is to end."""

from dataclasses import dataclass
from typing import Final

from hansa.node.runs.executor_end import Over, reclaimed
from hansa.node.runs.run_order import RunLimits

TICK_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSettings:
    """How patient the executor is.

    Attributes:
        ready_s: from the start of a sandbox to its first frame.
        silence_s: between two frames; a runner sends one every second whatever the job does.
        last_words_s: from a sandbox's end to the end of what it said. Whoever still holds its socket then is nobody
            to wait for.
        progress_s: at most one progress event of a run in this time, since each is written to the journal.
    """

    ready_s: float = 60.0
    silence_s: float = 60.0
    last_words_s: float = 10.0
    progress_s: float = 0.1


class RunClock:
    """The time of one run. It stands still while the run is paused, but for what the run was told to do by a moment.

    Attributes:
        spent_s: how long the run has lived, pauses left out.
        paused: whether it is paused.
        started: whether the job's code runs.
        waiting: whether all of its workers wait for a round, so that standing still is as it should be.
        step: the newest step that the job reported, if it has.
    """

    def __init__(self, limits: RunLimits, settings: ExecutorSettings, now_s: float) -> None:
        """Begin with the sandbox."""
        self.spent_s = 0.0
        self.paused = False
        self.started = False
        self.waiting = False
        self.step: int | None = None
        self._limits = limits
        self._settings = settings
        self._seen_s = now_s
        self._heard_s = 0.0
        self._moved_s = 0.0
        self._progress = -1
        self._stop_at_s: float | None = None
        self._leave_at_s: float | None = None
        self._leave_why = ""
        self._kept_until_s: float | None = None

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stop_at_s is not None

    @property
    def leave_why(self) -> str | None:
        """Why it was told to leave, if it was."""
        return None if self._leave_at_s is None else self._leave_why

    # What the run does.

    def heard(self) -> None:
        """It said something."""
        self._heard_s = self.spent_s

    def begin(self) -> None:
        """The job's code begins. How long its cluster took to come up is not time in which the job did nothing."""
        self.started = True
        self._moved_s = self.spent_s

    def beat(self, progress: int, *, waiting: bool) -> None:
        """It said how far it is, and whether it waits for the others."""
        self.waiting = waiting
        if progress != self._progress:
            self._progress = progress
            self._moved_s = self.spent_s

    def delivered(self) -> None:
        """A part of what it made is here. How long this machine takes to keep it is no time in which it did nothing."""
        self._moved_s = self.spent_s

    # What it is told.

    def stop_by(self, at_s: float) -> None:
        """It has to have stopped then; a second wish may only shorten its time."""
        self._stop_at_s = at_s if self._stop_at_s is None else min(self._stop_at_s, at_s)

    def leave_by(self, at_s: float, why: str) -> None:
        """It has to have left then; a second wish may only shorten its time."""
        self._leave_at_s = at_s if self._leave_at_s is None else min(self._leave_at_s, at_s)
        self._leave_why = why

    def keep_from(self, now_s: float) -> float:
        """It failed and is kept; gives for how long, in seconds: its time on the whole still ends."""
        left_s = max(0.0, self._limits.wall_ms / 1000 - self.spent_s)
        keep_s = min(self._limits.keep_failed_ms / 1000, left_s)
        self._kept_until_s = now_s + keep_s
        return keep_s

    # The time itself.

    def tick(self, now_s: float) -> None:
        """Time has passed."""
        if not self.paused:
            # A machine that slept is not a job that hung.
            self.spent_s += min(now_s - self._seen_s, 10 * TICK_S)
        self._seen_s = now_s
        if self.waiting:
            self._moved_s = self.spent_s  # it does what it should

    def end(self, now_s: float) -> Over | None:
        """Why the run is over now, if its time has come in any way."""
        limits, settings = self._limits, self._settings
        if self._stop_at_s is not None and now_s >= self._stop_at_s:
            return Over("stopped")
        if self._leave_at_s is not None and now_s >= self._leave_at_s:
            return reclaimed(self._leave_why)
        if self.spent_s * 1000 > limits.wall_ms:
            return Over("wall-limit", f"it ran for longer than {limits.wall_ms / 1000:g} s")
        patience_s = settings.silence_s if self._progress >= 0 else settings.ready_s
        if self.spent_s - self._heard_s > patience_s:
            return Over("silent", f"the sandbox said nothing for {patience_s:g} s")
        if self._kept_until_s is not None:
            return Over("kept", "") if now_s >= self._kept_until_s else None
        if self.started and (self.spent_s - self._moved_s) * 1000 > limits.stall_ms:
            place = "before its first step" if self.step is None else f"after step {self.step}"
            return Over(
                "stalled", f"for {limits.stall_ms / 1000:g} s it neither printed nor reported anything, {place}"
            )
        return None
