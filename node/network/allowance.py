"""How often somebody may do something: so many at once, and so many a second in the long run, for each of many."""

from collections import OrderedDict
from collections.abc import Callable, Hashable


class Allowances:
    """One allowance for each key. The keys that were used least lately are forgotten first, and begin anew."""

    def __init__(self, per_s: float, at_once: int, now_s: Callable[[], float], *, most_keys: int = 4096) -> None:
        """Everybody begins with ``at_once``."""
        self._per_s, self._at_once, self._now_s, self._most_keys = per_s, at_once, now_s, most_keys
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable) -> bool:
        """One more of this key's, if it may have it."""
        now = self._now_s()
        left, since = self._left.get(key, (float(self._at_once), now))
        left = min(float(self._at_once), left + (now - since) * self._per_s)
        granted = left >= 1
        self._left[key] = (left - granted, now)
        self._left.move_to_end(key)
        while len(self._left) > self._most_keys:
            self._left.popitem(last=False)
        return granted
