"""How fast blobs move between this node and each peer, by this node's own clock and the bytes that it saw move.

Everything that moves one way between this node and one peer at a time is one transfer, over however many channels. It
is over when nothing moved for a moment, and one that lasts is told of in parts. What else moved the same way meanwhile
is looked at too: then this node's own line may have been what held it up (``hansa.market.bandwidth``).
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from hansa.market.bandwidth import LONG_MS, rate_of

LULL_S: Final = 0.25
"""So long without anything underway, and what comes next is another transfer."""
LONGEST_S: Final = 10.0
"""What lasts for longer is told of in parts, each so long."""
TELL_EVERY_S: Final = 5.0
"""Of one peer and way no more is told: each time the journal is written to."""
MOST_TOLD: Final = 1_024
FORGET_S: Final = 3_600.0
"""What our own line has carried at the most counts half as much after so long."""
NEGLIGIBLE: Final = 4
"""What moved beside a transfer does not count if it was less than this part of it."""

Measured = Callable[[str, str, int, bool], None]
"""Told of a peer, a way, bytes in a second, and whether our own line may have been what held it up."""


@dataclass(slots=True, eq=False)
class _Window:
    """What moved between this node and one peer, one way, without a pause.

    Attributes:
        began_s, last_s: from when to when.
        total_before, total: what had moved that way, with anybody, at these times.
        moved: what of it was this peer's.
        underway: how many of its channels move something now.
        others: with whom else something was underway meanwhile.
        lasting: how many channels at least have been moving something, or nothing, from its beginning until now.
    """

    began_s: float
    last_s: float
    total_before: int
    total: int
    moved: int = 0
    underway: int = 0
    others: set[str] = field(default_factory=set)
    lasting: int = 0

    @property
    def has_even_share(self) -> bool:
        """Whether it got no less than its even share of what moved beside it."""
        everything = self.total - self.total_before
        others = everything - self.moved
        return others * NEGLIGIBLE > self.moved and self.moved * (len(self.others) + 1) >= everything

    @property
    def everything_per_s(self) -> float:
        """How fast everything that way moved together."""
        return (self.total - self.total_before) / max(self.last_s - self.began_s, 0.001)


class LineMeter:
    """Measures. ``moved`` may be called in any thread, the rest in the thread of the event loop."""

    def __init__(self, tell: Measured | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """``tell`` hears of every transfer that says something."""
        self._tell = tell
        self._clock = clock
        self._lock = threading.Lock()
        self._totals: dict[str, int] = {}
        self._windows: dict[tuple[str, str], _Window] = {}
        self._told_s: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._most_per_s: dict[str, tuple[float, float]] = {}

    @contextmanager
    def underway(self, peer_id: str, way: str) -> Iterator[None]:
        """For as long as the context lasts, something moves on one channel."""
        key = (peer_id, way)
        self._begin(key)
        try:
            yield
        finally:
            window = self._windows[key]
            with self._lock:
                window.underway -= 1
                window.lasting -= 1
                self._touch(window, way)
            self.sweep()

    def moved(self, peer_id: str, way: str, size_bytes: int) -> None:
        """So many bytes moved more; only what is underway counts."""
        with self._lock:
            self._totals[way] = self._totals.get(way, 0) + size_bytes
            window = self._windows.get((peer_id, way))
            if window is not None:
                window.moved += size_bytes
                self._touch(window, way)

    def sweep(self) -> None:
        """Tell of transfers that are over, and of those that last."""
        now_s = self._clock()
        for key, window in list(self._windows.items()):
            is_over = not window.underway and now_s - window.last_s > LULL_S
            if not is_over and now_s - window.began_s < LONGEST_S:
                continue
            with self._lock:
                del self._windows[key]
                if window.underway:
                    # What is still waited for took until now, whenever its last byte came.
                    self._touch(window, key[1])
            self._tell_of(key, window, now_s)
            if window.underway:
                self._open(key, window.underway)

    def _begin(self, key: tuple[str, str]) -> None:
        self.sweep()
        if key in self._windows:
            self._windows[key].underway += 1
            self._meet(key, self._windows[key])
        else:
            self._open(key, 1)

    def _open(self, key: tuple[str, str], underway: int) -> None:
        now_s, total = self._clock(), self._totals.get(key[1], 0)
        window = _Window(began_s=now_s, last_s=now_s, total_before=total, total=total, underway=underway)
        window.lasting = underway
        self._meet(key, window)
        with self._lock:
            self._windows[key] = window

    def _meet(self, key: tuple[str, str], window: _Window) -> None:
        """Something is underway in this window now: whoever else moves something the same way shares our line."""
        peer_id, way = key
        for (other, other_way), beside in self._windows.items():
            if other_way == way and other != peer_id and beside.underway:
                window.others.add(other)
                beside.others.add(peer_id)

    def _touch(self, window: _Window, way: str) -> None:
        window.last_s, window.total = self._clock(), self._totals.get(way, 0)

    def _tell_of(self, key: tuple[str, str], window: _Window, now_s: float) -> None:
        bytes_per_s = self._rate_of(window)
        told_s = self._told_s.get(key)
        if self._tell is None or not bytes_per_s or (told_s is not None and now_s - told_s < TELL_EVERY_S):
            return
        self._told_s[key] = now_s
        self._told_s.move_to_end(key)
        while len(self._told_s) > MOST_TOLD:
            self._told_s.popitem(last=False)
        self._note_most(key[1], window, now_s)
        is_bound = self._is_full(key[1], window) and window.has_even_share
        self._tell(*key, bytes_per_s, is_bound)

    @staticmethod
    def _rate_of(window: _Window) -> int:
        """Bytes in a second; 0 where it says nothing of the line.

        However little came counts where it was waited for all the time, else whoever moves nothing for a while would
        not be slow. Many small pieces that came one after another say nothing. If nothing came of anybody, it may be
        our own line that was down.
        """
        took_ms = int((window.last_s - window.began_s) * 1_000)
        found = rate_of(window.moved, took_ms)
        if found or window.lasting <= 0 or took_ms < LONG_MS:
            return found
        if window.others and window.total == window.total_before:
            return 0
        return max(1, window.moved * 1_000 // took_ms)

    def _note_most(self, way: str, window: _Window, now_s: float) -> None:
        most_per_s, at_s = self._most_per_s.get(way, (0.0, now_s))
        most_per_s *= math.pow(0.5, (now_s - at_s) / FORGET_S)
        self._most_per_s[way] = (max(most_per_s, window.everything_per_s), now_s)

    def _is_full(self, way: str, window: _Window) -> bool:
        """Whether our own line may have been full: it carried half as much as ever lately, or more.

        Else several that are slow alike could pass for a line of ours that is.
        """
        most_per_s, _ = self._most_per_s[way]
        return window.everything_per_s * 2 >= most_per_s
