"""How often somebody may do something: so many at once, and so many a second in the long run, for each of many."""

from collections import OrderedDict
from collections.abc import Callable, Hashable


class Allowances:
    """One allowance for each key. The keys that were used least lately are forgotten first, and begin anew."""

    def __init__(self, per_s: float, at_once: int, now_s: Callable[[], float], *, most_keys: int = 4096) -> None:
        """Everybody begins with ``at_once``."""
        self._per_s, self._at_once, self._now_s, self._most_keys = per_s, at_once, now_s, most_keys
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def has(self, key: Hashable) -> bool:
        """Whether this key may have one more now; nothing is taken."""
        return self._left_of(key, self._now_s()) >= 1

    def _left_of(self, key: Hashable, now: float) -> float:
        left, since = self._left.get(key, (float(self._at_once), now))
        return min(float(self._at_once), left + (now - since) * self._per_s)

    def take(self, key: Hashable) -> bool:
        """One more of this key's, if it may have it."""
        now = self._now_s()
        left = self._left_of(key, now)
        granted = left >= 1
        self._left[key] = (left - granted, now)
        self._left.move_to_end(key)
        while len(self._left) > self._most_keys:
            self._left.popitem(last=False)
        return granted
