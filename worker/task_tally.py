"""Which items of a pool of tasks are to be done, who does which, and whose worker died. Pure.

Items are known by their numbers. A worker that dies takes the item that it was at with it: that one is blamed, and
tried again by another worker until its retries are used up. What merely waited behind it is given out again, blameless.
"""

from collections import deque
from collections.abc import Collection, Sequence


class Tally:
    """The items of one pool."""

    def __init__(self, numbers: Sequence[int], done: Collection[int], *, retries: int, window: int | None) -> None:
        """Nobody has been given anything.

        Args:
            numbers: all items, in their order.
            done: those of them that need not be done.
            retries: how many more workers one item may cost after the first.
            window: how far ahead of the first item that is not settled any may be given out.
        """
        self._order = list(numbers)
        self._settled = set(done)
        self._todo = deque(number for number in numbers if number not in self._settled)
        self._retries = retries
        self._window = window
        self._floor = 0
        self._held: dict[int, deque[int]] = {}
        self._deaths: dict[int, int] = {}

    @property
    def open(self) -> int:
        """How many items are not settled."""
        return len(self._todo) + sum(map(len, self._held.values()))

    def deaths(self, number: int) -> int:
        """How many workers this item has cost."""
        return self._deaths.get(number, 0)

    def held_by(self, worker: int) -> Sequence[int]:
        """What a worker has, the one that it is at first."""
        return self._held.get(worker, ())

    def give(self, worker: int) -> int | None:
        """The next item for a worker, behind those that it has; ``None`` if there is none for now."""
        if not self._todo or not self._within(self._todo[0]):
            return None
        number = self._todo.popleft()
        self._held.setdefault(worker, deque()).append(number)
        return number

    def settle(self, worker: int, number: int) -> None:
        """A worker's item is done, or has failed for good."""
        self._held[worker].remove(number)
        self._settled.add(number)

    def lose(self, worker: int, *, again: bool) -> int | None:
        """A worker is gone. Gives the item that is given up with it, if its retries are used up or ``again`` is not."""
        held = self._held.pop(worker, deque())
        if not held:
            return None
        blamed = held.popleft()
        self._deaths[blamed] = self.deaths(blamed) + 1
        self._todo.extendleft(reversed(held))
        if again and self._deaths[blamed] <= self._retries:
            self._todo.appendleft(blamed)
            return None
        self._settled.add(blamed)
        return blamed

    def _within(self, number: int) -> bool:
        if self._window is None:
            return True
        while self._floor < len(self._order) and self._order[self._floor] in self._settled:
            self._floor += 1
        return number < self._order[self._floor] + self._window
