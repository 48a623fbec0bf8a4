"""A market in one thread: a heap of (time, number, event), one seed, and nothing else that could differ.

The world owns time and the wires. Nodes put packets on it; it loses, delays, repeats and reorders them, and cuts the
wires between two of them, as its faults say. Faults are themselves drawn from the seed (swarm testing): most worlds
have only a few kinds of trouble, so that none can hide behind another.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

EPOCH_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How bad the world is while there is chaos.

    Attributes:
        loss: share of packets that never arrive.
        repeat: share that arrive twice.
        delay_ms: the longest that a packet takes; what overtakes what follows from it.
        partition: chance in each ten seconds that the wire between some two nodes is cut.
        partition_ms: for how long at the most.
        crash: chance at each batch that a node dies in it.
        downtime_ms: how long it lies there at the most.
        fetch_failure: share of attempts to fetch a blob that fail.
        reduction_failure: share of reductions that come to nothing.
        run_failure: share of runs that fail by themselves.
        reclaim: chance in each four seconds that some owner takes devices back, with notice or without.
        skew_ms: how far a clock may be off, either way.
        liars: share of nodes that lie.
        cancel: share of jobs that the user takes back.
        snapshot: chance at each batch that the state is written down whole.
    """

    loss: float = 0.0
    repeat: float = 0.0
    delay_ms: int = 30
    partition: float = 0.0
    partition_ms: int = 60_000
    crash: float = 0.0
    downtime_ms: int = 5_000
    fetch_failure: float = 0.0
    reduction_failure: float = 0.0
    run_failure: float = 0.0
    reclaim: float = 0.0
    skew_ms: int = 0
    liars: float = 0.0
    cancel: float = 0.0
    snapshot: float = 0.02


NONE = Faults()


def draw_faults(random: Random) -> Faults:
    """Each kind of trouble is on in about half of the worlds, and strong in some."""

    def some(*levels: float) -> float:
        return random.choice(levels) if random.random() < 0.5 else 0.0

    return Faults(
        loss=some(0.02, 0.1, 0.3),
        repeat=some(0.05, 0.3),
        delay_ms=random.choice((20, 200, 2_000)),
        partition=some(0.1, 0.4),
        partition_ms=random.choice((5_000, 40_000, 200_000)),
        crash=some(0.001, 0.005, 0.02),
        downtime_ms=random.choice((200, 5_000, 60_000)),
        fetch_failure=some(0.1, 0.5),
        reduction_failure=some(0.1, 0.5),
        run_failure=some(0.05, 0.3),
        reclaim=some(0.3, 1.0),
        skew_ms=int(some(1_000, 12_000)),
        liars=some(0.2, 0.5),
        cancel=some(0.1, 0.4),
        snapshot=random.choice((0.0, 0.02, 0.2)),
    )


class World:
    """Time, chance and wires."""

    def __init__(self, seed: int, faults: Faults) -> None:
        """A world at its beginning."""
        self.random = Random(seed)
        self.faults = faults
        self.now_ms = EPOCH_MS
        self.packets = 0
        self._number = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._cut_until_ms: dict[frozenset[bytes], int] = {}

    def after(self, delay_ms: int, action: Callable[..., None], *arguments: Any) -> None:
        """Let something happen later."""
        self._number += 1
        heapq.heappush(self._heap, (self.now_ms + max(0, delay_ms), self._number, action, arguments))

    def run_until(self, until_ms: int, done: Callable[[], bool] = lambda: False) -> bool:
        """Let everything happen up to a moment, or until ``done``; answers whether it was done."""
        checked_ms = self.now_ms
        while self._heap and self._heap[0][0] <= until_ms:
            self.now_ms, _, action, arguments = heapq.heappop(self._heap)
            action(*arguments)
            if self.now_ms - checked_ms >= 1_000:
                checked_ms = self.now_ms
                if done():
                    return True
        self.now_ms = until_ms
        return done()

    def chance(self, share: float) -> bool:
        """Whether something that happens so often happens now. Draws nothing where it never does."""
        return share > 0 and self.random.random() < share

    def heal(self) -> None:
        """No more trouble from here on."""
        self.faults = NONE
        self._cut_until_ms.clear()

    def cut(self, one: bytes, other: bytes, for_ms: int) -> None:
        """Nothing gets from one to the other for some time."""
        self._cut_until_ms[frozenset((one, other))] = self.now_ms + for_ms

    def carry(self, one: bytes, other: bytes, deliver: Callable[..., None], *packet: Any) -> None:
        """Bring a packet from one node to the other, perhaps."""
        self.packets += 1
        if self._cut_until_ms.get(frozenset((one, other)), 0) > self.now_ms or self.chance(self.faults.loss):
            return
        for _ in range(2 if self.chance(self.faults.repeat) else 1):
            self.after(self.random.randint(1, self.faults.delay_ms), deliver, *packet)
