"""A pool of workers for the items of a sweep or of batch inference: Ray's side of ``ctx.tasks``.

Each worker is an actor that lives for the whole pool and has whole devices. A second item waits at a worker only where
items are short, since what waits behind a long one could be done elsewhere. A worker that dies is replaced; which item
it was at is known from the order in which they were given to it.
"""

import functools
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hansa.worker.deaths import Deaths, read_crash
from hansa.worker.task_tally import Tally
from hansa.worker.task_worker import TaskWorker

TICK_S = 0.2
SHORT_S = 0.1
"""Items that take less than this on the average are given out two at a time."""

_SERIAL = itertools.count()


class SetupFailed(RuntimeError):
    """What the tasks need could not be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """An item is done or has failed.

    Attributes:
        record: what it gave, as `hansa.worker.task_records` keeps it; ``None`` if it failed.
        error: why it failed.
        attempts: how many workers were at it.
    """

    number: int
    record: bytes | None
    error: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Staff:
    """What the workers of a pool are.

    Attributes:
        function, setup: what they do with an item, and what they do before the first.
        code, entry: the job's code.
        work: the directory in which they work.
        size: how many there are at the most.
        gpus_each: GPUs of each.
        threads: how many threads each should compute with.
        timeout_s: the longest that an item may take.
        deaths: how many may die one after the other before one has been set up.
    """

    function: Callable[..., Any]
    setup: Callable[[], Any] | None
    code: str
    entry: str
    work: str
    size: int
    gpus_each: int
    threads: int
    timeout_s: float | None
    deaths: int


@dataclass(slots=True)
class _Worker:
    actor: Any
    name: str
    loading: Any
    preparing: Any
    pid: int = 0
    at_work: deque[tuple[int, Any]] = field(default_factory=deque)
    since_s: float = 0.0


class TaskPool:
    """The workers, and what they are at."""

    def __init__(self, staff: Staff, items: Sequence[Any], tally: Tally, on_tick: Callable[[], None]) -> None:
        """Hire nobody yet. ``on_tick`` is called all the time and may raise, which ends the pool."""
        import ray  # noqa: PLC0415 - a job without pools has no need of it in its own process

        self._ray = ray
        self._staff = staff
        self._items = items
        self._tally = tally
        self._on_tick = on_tick
        self._workers: dict[int, _Worker] = {}
        self._hired = 0
        self._deaths_in_setup = 0
        self._durations_s: deque[float] = deque(maxlen=32)

    def results(self) -> Iterator[Settled]:
        """Every item as it is settled, until all are. The workers end with this.

        Raises:
            SetupFailed: see there.
        """
        try:
            while self._tally.open:
                self._on_tick()
                yield from self._hand_out()
                yield from self._take_what_came()
        finally:
            for worker in self._workers.values():
                self._ray.kill(worker.actor)

    def _hire(self) -> None:
        staff = self._staff
        options = {"num_cpus": 0, "num_gpus": staff.gpus_each, "max_concurrency": 1}
        actor = self._ray.remote(TaskWorker).options(**options).remote(os.getpid(), staff.threads)
        self._workers[self._hired] = _Worker(
            actor=actor,
            name=f"task worker {next(_SERIAL)}",
            loading=actor.load.remote(staff.code, staff.entry, staff.work),
            preparing=actor.prepare.remote(staff.function, staff.setup),
        )
        self._hired += 1

    def _hand_out(self) -> Iterator[Settled]:
        while len(self._workers) < min(self._staff.size, self._tally.open):
            self._hire()
        depth = 2 if self._durations_s and sum(self._durations_s) / len(self._durations_s) < SHORT_S else 1
        for level in range(depth):  # one each before anybody has two
            for key, worker in self._workers.items():
                if worker.preparing is None and len(worker.at_work) == level:
                    number = self._tally.give(key)
                    if number is not None:
                        yield from self._submit(key, worker, number)

    def _submit(self, key: int, worker: _Worker, number: int) -> Iterator[Settled]:
        if not worker.at_work:
            worker.since_s = time.monotonic()
        try:
            worker.at_work.append((number, worker.actor.perform.remote(self._items[number])))
        except Exception as error:  # noqa: BLE001 - an item that cannot be handed over, which only it is to blame for
            yield self._failed(key, number, f"the item could not be given to a worker: {type(error).__name__}: {error}")

    def _take_what_came(self) -> Iterator[Settled]:
        """Wait a moment for news of any worker, and take all that there is."""
        refs = {ref: key for key, worker in self._workers.items() for ref in _awaited(worker)}
        if not refs:
            return
        self._ray.wait(list(refs), num_returns=1, timeout=TICK_S)
        ready, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=0)
        came = set(ready)
        for key in {refs[ref]: None for ref in ready}:
            yield from self._take_from(key, came)
        if self._staff.timeout_s is not None:
            yield from self._end_what_takes_too_long(self._staff.timeout_s)

    def _take_from(self, key: int, came: set[Any]) -> Iterator[Settled]:
        """What one worker has to tell, in the order in which it was given its items."""
        from ray.exceptions import RayActorError, RayError  # noqa: PLC0415 - see above

        worker = self._workers[key]
        try:
            if worker.loading in came:
                worker.pid, worker.loading = self._ray.get(worker.loading), None
                _deaths().watch(worker.name, worker.pid)
            if worker.preparing in came:
                words = self._ray.get(worker.preparing)
                if words:
                    raise SetupFailed(f"what the tasks need could not be made:\n{words}")
                worker.preparing, self._deaths_in_setup = None, 0
            while worker.at_work and worker.at_work[0][1] in came:
                number, ref = worker.at_work[0]
                try:
                    how, what, took_s = self._ray.get(ref)
                except RayActorError:
                    raise
                except RayError as error:  # it could not be read over there, or its result not here
                    how, what, took_s = "failed", f"{type(error).__name__}: {error}", 0.0
                worker.at_work.popleft()
                worker.since_s = time.monotonic()
                self._durations_s.append(took_s)
                if how == "done":
                    attempts = self._tally.deaths(number) + 1
                    self._tally.settle(key, number)
                    yield Settled(number=number, record=what, error="", attempts=attempts)
                else:
                    yield self._failed(key, number, what)
        except RayActorError as error:
            yield from self._bury(key, self._how_died(worker, error))

    def _failed(self, key: int, number: int, words: str) -> Settled:
        attempts = self._tally.deaths(number) + 1
        self._tally.settle(key, number)
        return Settled(number=number, record=None, error=words, attempts=attempts)

    def _bury(self, key: int, how: str, *, again: bool = True) -> Iterator[Settled]:
        """A worker is gone: another takes its place, and the item that it was at is tried again or given up."""
        worker = self._workers.pop(key)
        if worker.preparing is not None:
            self._deaths_in_setup += 1
            if self._deaths_in_setup > self._staff.deaths:
                raise SetupFailed(f"what the tasks need could not be made: the worker that made it {how}")
        given_up = self._tally.lose(key, again=again)
        if given_up is not None:
            attempts = self._tally.deaths(given_up)
            yield Settled(number=given_up, record=None, error=f"its worker {how}", attempts=attempts)

    def _end_what_takes_too_long(self, timeout_s: float) -> Iterator[Settled]:
        for key, worker in list(self._workers.items()):
            if worker.at_work and time.monotonic() - worker.since_s > timeout_s:
                self._ray.kill(worker.actor)
                yield from self._bury(key, f"was ended, since it took longer than {timeout_s:g} s", again=False)

    def _how_died(self, worker: _Worker, error: Exception) -> str:
        if not worker.pid:  # it never said which process it is
            return f"died: {error}"
        crash = read_crash(worker.pid)
        return (_deaths().how(worker.name) or "died") + (f"\n{crash}" if crash else "")


@functools.cache
def _deaths() -> Deaths:
    """Notices how workers end, for all pools of this process."""
    return Deaths(lambda _name, _how: None)


def _awaited(worker: _Worker) -> Iterator[Any]:
    """What is to come from a worker."""
    for ref in (worker.loading, worker.preparing):
        if ref is not None:
            yield ref
    for _number, ref in worker.at_work:
        yield ref
