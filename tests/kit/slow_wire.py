"""A wire with delay and loss between two namespaces: two tap devices and a thread, since not every kernel has netem."""

import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import threading
import time
from collections.abc import Callable

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
LARGEST_FRAME_BYTES = 65_536
MOST_WAITING = 4_096
"""Frames on the way; further ones are lost, as in a router's queue."""


def make_tap(name: str) -> int:
    """A tap device in the namespace of this thread. Raises ``OSError`` where there are none."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class SlowWire:
    """Carries frames until it is closed. Losses are drawn from a seed."""

    def __init__(self, ends: tuple[int, int], *, delay_s: float, loss: float, seed: int = 1) -> None:
        self._other = {ends[0]: ends[1], ends[1]: ends[0]}
        self._delay_s, self._loss, self._chance = delay_s, loss, random.Random(seed)
        self._ended = threading.Event()
        self.carried = self.lost = 0
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        numbers = itertools.count()
        while not self._ended.is_set():
            wait_s = 0.1 if not waiting else max(0.0, min(0.1, waiting[0][0] - time.monotonic()))
            for end in select.select(list(self._other), [], [], wait_s)[0]:
                for frame in _frames(end):
                    if self._chance.random() < self._loss or len(waiting) >= MOST_WAITING:
                        self.lost += 1
                    else:
                        due = time.monotonic() + self._delay_s
                        heapq.heappush(waiting, (due, next(numbers), self._other[end], frame))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, end, frame = heapq.heappop(waiting)
                try:
                    os.write(end, frame)
                    self.carried += 1
                except OSError:
                    self.lost += 1

    def close(self) -> None:
        """End it, and both devices."""
        self._ended.set()
        self._thread.join(5)
        for end in self._other:
            os.close(end)


def _frames(end: int) -> list[bytes]:
    found = []
    while len(found) < 64:
        try:
            found.append(os.read(end, LARGEST_FRAME_BYTES))
        except OSError:
            break
    return found


def tap_in(enter: Callable[[str], None], namespace: str, name: str) -> int:
    """A tap device in a namespace, made by a thread that goes there."""
    made: list[int | OSError] = []

    def make() -> None:
        try:
            enter(namespace)
            made.append(make_tap(name))
        except OSError as fault:
            made.append(fault)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]
