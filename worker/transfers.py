"""States on their way between the workers and the daemon, a piece at a time.

A worker holds the bytes of what it gave until they are fetched, and collects the bytes of what it gets; in between
they pass through the runner piece by piece, as arguments and results of actor calls. So no state is in the runner's
memory or in Ray's object store whole, and it makes no difference on which machine a worker is. (Only the mean over
several workers needs their states side by side.)
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hansa.proto.errors import Malformed
from hansa.proto.frames import MAX_CHUNK_BYTES, Checkpoint, Sync
from hansa.worker.averaging import mean_parts, pieces_of, size_of
from hansa.worker.checkpoints import Saved
from hansa.worker.handed_over import HandedOver
from hansa.worker.hub import Contribute
from hansa.worker.wire import Wire

FETCH_BYTES = 4 << 20
MOST_ON_THE_WAY = 8


class Incoming:
    """Brings the bytes of one state to every worker."""

    def __init__(self, ray: Any, actors: Sequence[Any], label: int, size_bytes: int) -> None:
        """The state is known to the workers by its label."""
        self._ray = ray
        self._actors = actors
        self._label = label
        self._size_bytes = size_bytes
        self._at = 0
        self._on_the_way: list[Any] = []

    def feed(self, data: bytes) -> bool:
        """The next bytes; gives whether every worker has all of them now."""
        piece = self._ray.put(data)
        self._on_the_way += [
            actor.take_piece.remote(self._label, self._size_bytes, self._at, piece) for actor in self._actors
        ]
        self._at += len(data)
        complete = self._at >= self._size_bytes
        self._settle(0 if complete else MOST_ON_THE_WAY)
        return complete

    def _settle(self, most: int) -> None:
        while len(self._on_the_way) > most:
            done, self._on_the_way = self._ray.wait(self._on_the_way, num_returns=1)
            self._ray.get(done)


class Outgoing:
    """Fetches what the workers hold and sends it out, one after the other, in a thread of its own.

    Attributes:
        fault: why something could not be sent; the run is over then.
    """

    def __init__(self, ray: Any, actors: Sequence[Any], wire: Wire, state_bytes: int) -> None:
        """Send nothing that is larger than ``state_bytes``."""
        self.fault: Exception | None = None
        self._ray = ray
        self._actors = actors
        self._wire = wire
        self._state_bytes = state_bytes
        self._work: queue.Queue[Callable[[], None]] = queue.Queue()
        threading.Thread(target=self._serve, daemon=True, name="hansa-outgoing").start()

    def contribute(self, order: Contribute, given: Mapping[int, HandedOver]) -> None:
        """Send the mean of the states that these workers have handed over."""
        self._work.put(lambda: self._send_contribution(order, given))

    def save(self, saved: Saved) -> None:
        """Send a checkpoint."""
        self._work.put(lambda: self._send_checkpoint(saved))

    def drop(self, worker: int, given: HandedOver) -> None:
        """Nobody wants this any more."""
        if given.data is None:
            self._actors[worker].drop.remote(given.number)

    def flush(self) -> None:
        """Wait until everything was sent, or something could not be. Raises what went wrong."""
        done = threading.Event()
        self._work.put(done.set)
        while not done.wait(0.1):
            if self.fault is not None:
                break
        if self.fault is not None:
            raise self.fault

    def _serve(self) -> None:
        while True:
            work = self._work.get()
            try:
                work()
            except Exception as fault:  # noqa: BLE001 - the main thread tells what becomes of it
                self.fault = fault
                return

    def _send_contribution(self, order: Contribute, given: Mapping[int, HandedOver]) -> None:
        weight = sum(order.weights.values())
        if len(order.weights) == 1:
            (worker,) = order.weights
            size_bytes = given[worker].size_bytes
            pieces: Iterator[bytes] = self._fetch(worker, given[worker])
        else:
            states = [memoryview(b"".join(self._fetch(worker, given[worker]))) for worker in order.weights]
            parts = mean_parts(states, list(order.weights.values()))
            size_bytes, pieces = size_of(parts), pieces_of(parts, MAX_CHUNK_BYTES)
        self._hold_limit("state", size_bytes)
        self._wire.send_with(Sync(round=order.round, weight=weight, size_bytes=size_bytes), pieces)

    def _send_checkpoint(self, saved: Saved) -> None:
        size_bytes = saved.given.size_bytes
        self._hold_limit("checkpoint", size_bytes)
        header = Checkpoint(round=saved.round, step=saved.step, size_bytes=size_bytes)
        self._wire.send_with(header, self._fetch(0, saved.given))

    def _hold_limit(self, what: str, size_bytes: int) -> None:
        if size_bytes > self._state_bytes:
            words = f"a {what} of {size_bytes} bytes is over the limit of the run, {self._state_bytes} bytes"
            raise Malformed(what, words)

    def _fetch(self, worker: int, given: HandedOver) -> Iterator[bytes]:
        """The bytes that were handed over, in pieces. The next ones are fetched while some are sent."""
        if given.data is not None:
            yield given.data
            return
        actor = self._actors[worker]
        coming = actor.give_piece.remote(given.number, 0, FETCH_BYTES)
        for at in range(0, given.size_bytes, FETCH_BYTES):
            piece = self._ray.get(coming)
            if at + FETCH_BYTES < given.size_bytes:
                coming = actor.give_piece.remote(given.number, at + FETCH_BYTES, FETCH_BYTES)
            yield from pieces_of([piece], MAX_CHUNK_BYTES)
