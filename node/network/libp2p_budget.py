"""How much received data all connections together may hold while nobody has read it yet."""

from collections import Counter
from typing import Protocol

MOST_SILENT = 8_192
"""Streams on which nothing was said, on all connections together."""


class Holder(Protocol):
    """A connection, as the budget sees it."""

    def abort(self, why: str | None = None) -> None:
        """End it at once; ``why`` if the peer is to blame."""


class Listener(Protocol):
    """A connection on which the peer has opened streams and said nothing on them yet."""

    def end_oldest_silent(self) -> None:
        """End the one that has been silent for longest."""


class ReceiveBudget:
    """Bytes held, for each connection and in all. Whoever oversteps its own part, or holds the most of all, goes."""

    def __init__(self, each_bytes: int, total_bytes: int) -> None:
        """Nothing is held yet."""
        self.each_bytes = each_bytes
        self.total_bytes = total_bytes
        self.held_bytes = 0
        self._held: dict[Holder, int] = {}
        self._silent: Counter[Listener] = Counter()
        self._all_silent = 0

    def take(self, holder: Holder, size_bytes: int) -> None:
        """The connection keeps so much more."""
        held = self._held.get(holder, 0) + size_bytes
        self._held[holder] = held
        self.held_bytes += size_bytes
        if held > self.each_bytes:
            holder.abort("hoards memory: too much unread on one connection")
        elif self.held_bytes > self.total_bytes:
            # Not the one whose bytes came last: that may be anybody. The hoarder pays.
            max(self._held, key=lambda each: self._held[each]).abort("hoards memory: holds the most when all is taken")

    def give_back(self, holder: Holder, size_bytes: int) -> None:
        """So much was read or dropped."""
        if holder in self._held:
            self._held[holder] -= size_bytes
            self.held_bytes -= size_bytes

    def opened(self, listener: Listener) -> None:
        """One more silent stream, which costs a kibibyte and more; if they are many whoever has most loses one."""
        self._silent[listener] += 1
        self._all_silent += 1
        if self._all_silent > MOST_SILENT:
            max(self._silent, key=lambda each: self._silent[each]).end_oldest_silent()

    def spoken_on(self, listener: Listener, number: int = 1) -> None:
        """So many of them are silent no more, or over."""
        self._silent[listener] -= number
        self._all_silent -= number
        if self._silent[listener] <= 0:
            del self._silent[listener]

    def forget(self, holder: Holder) -> None:
        """The connection is over."""
        self.held_bytes -= self._held.pop(holder, 0)
