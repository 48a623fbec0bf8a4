"""The node's time: the wall clock's, but while money runs it never goes back.

How long a run may go on unpaid, when a lease ends and when a stop's patience is over are deadlines. With a wall clock
that is set back by an hour, none of them would come for an hour, and the run would go on unpaid.
"""

import time
from collections.abc import Callable
from typing import Final

JUMP_MS: Final = 30_000
"""What partners bear with (``hansa.market.receipts``). A clock that is corrected by less has not jumped."""
KEEP_TIME: Final = "Keep it with NTP (systemd-timesyncd, chrony): others believe no node with another time."
CLOCK_ADVICE: Final = "most peers have another time than this machine: is this machine's clock right?"


def wall_clock_ms() -> int:
    """UTC in ms, as this machine tells it."""
    return time.time_ns() // 1_000_000


def monotonic_clock_ms() -> int:
    """The time since some moment in ms; nobody sets it."""
    return time.monotonic_ns() // 1_000_000


class SteadyClock:
    """Follows the wall clock forward at once, and goes on at the pace of time where that goes back."""

    def __init__(
        self, wall_ms: Callable[[], int] = wall_clock_ms, monotonic_ms: Callable[[], int] = monotonic_clock_ms
    ) -> None:
        """Begin with the wall clock's time."""
        self.wall_ms, self._monotonic_ms = wall_ms, monotonic_ms
        # One object, since threads ask too: both halves are always of one moment.
        self._anchor = (wall_ms(), monotonic_ms())
        self._seen = self._anchor

    def now_ms(self) -> int:
        """UTC in ms; never less than it was, but for ``go_back``."""
        wall_ms, monotonic_ms = self.wall_ms(), self._monotonic_ms()
        anchor_ms, anchored_ms = self._anchor
        now_ms = max(wall_ms, anchor_ms + monotonic_ms - anchored_ms)
        self._anchor = (now_ms, monotonic_ms)
        return now_ms

    def begin_at(self, least_ms: int) -> None:
        """Be no earlier than this from now on: what an earlier life of the node was told."""
        self._anchor = (max(self.now_ms(), least_ms), self._monotonic_ms())

    def ahead_ms(self) -> int:
        """By how much this clock is before the wall's, since that was set back."""
        return self.now_ms() - self.wall_ms()

    def go_back(self) -> None:
        """Take the wall's time, whatever was told before."""
        self._anchor = (self.wall_ms(), self._monotonic_ms())

    def jumped_ms(self) -> int:
        """By how much the wall clock was set since this was last asked; 0 if by no more than ``JUMP_MS``."""
        wall_ms, monotonic_ms = self.wall_ms(), self._monotonic_ms()
        jumped_ms = (wall_ms - self._seen[0]) - (monotonic_ms - self._seen[1])
        self._seen = (wall_ms, monotonic_ms)
        return jumped_ms if abs(jumped_ms) > JUMP_MS else 0
