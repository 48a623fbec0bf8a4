"""``ctx.tasks``: the items of a sweep or of batch inference, spread over a shard's devices.

The job's function runs once and asks for pools; the workers of a pool (`hansa.worker.task_pool`) have the devices. Here
is what the job sees of it, and what makes a pool worth its name on somebody else's machine: a settled item is a step,
which is what is paid for, and what was settled before a move is taken from the checkpoint and not done again.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hansa.proto.tensors import decode_state
from hansa.worker.task_pool import Settled, Staff, TaskPool
from hansa.worker.task_records import Records, error_record, records_from_state
from hansa.worker.task_tally import Tally

CHECKPOINT_S = 5.0
COSTLY = 20
"""A checkpoint of items comes after so many times the time that the last one took, if that is later."""
REPORT_S = 0.1
MOST_TOLD = 20
"""Failed items that the log tells of, for each pool."""
WINDOW = 4
"""Items per worker that may be ahead of one that takes long, where results come in order."""
SPARE_BYTES = 64 << 10


class TooManyFailures(RuntimeError):
    """More items failed than the job allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What became of one item.

    Attributes:
        index: its place among all items of the pool, on all shards.
        item: the item itself.
        value: what the function gave, with read-only numpy arrays in place of tensors; ``None`` if it failed.
        error: why it failed, in words; empty if it did not.
        attempts: how many workers were at it, 0 if it was done before the run moved here.
    """

    index: int
    item: Any
    value: Any
    error: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRoom:
    """What pools may use.

    Attributes:
        threads: how many cores there are.
        state_bytes: the largest checkpoint.
    """

    gpus: int
    threads: int
    state_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the job asked of one pool; see ``Context.tasks``."""

    function: Callable[..., Any]
    setup: Callable[[], Any] | None
    name: str
    workers: int | None
    gpus_each: int
    ordered: bool
    retries: int
    timeout_s: float | None
    most_failures: int | None
    keep: bool

    def check(self) -> None:
        """Refuse what makes no sense before anything is done.

        Raises:
            ValueError: with the name of the option.
        """
        least = {"workers": self.workers, "gpus_each": self.gpus_each, "timeout_s": self.timeout_s}
        for name, value in least.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above zero")
        for name, value in {"retries": self.retries, "most_failures": self.most_failures}.items():
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be below zero")


class Host(Protocol):
    """What a context does for its pools."""

    def look_up(self) -> None:
        """Raise ``Stopping`` if the run is to end, once what is settled is kept."""

    def count_step(self, **metrics: float) -> None:
        """One more step is done."""

    def tell_steps(self, *, at_once: bool = False) -> None:
        """Report the steps that were counted; soon, if that was done a moment ago."""

    def keep_tasks(self) -> None:
        """Send a checkpoint."""


class Pools:
    """The pools of one run, and what is kept of them.

    Attributes:
        changed: whether something was settled that no checkpoint holds.
        own_bytes: what the job's own state takes in the checkpoint.
        opened: whether there has been a pool.
    """

    def __init__(self, room: PoolRoom, code: Path, entry: str, kept: Any, host: Host) -> None:
        """Go on from what a checkpoint held, if it held any."""
        self._room = room
        self._code = str(code)
        self._entry = entry
        self._host = host
        self._before = dict(kept) if isinstance(kept, dict) else {}
        self._records: dict[str, Records] = {}
        self._asked: dict[str, int] = {}
        self._due_s = time.monotonic() + CHECKPOINT_S
        self._told_full = False
        self.changed = False
        self.own_bytes = 0
        self.opened = False

    @property
    def size_bytes(self) -> int:
        """What the records of this run's pools take."""
        return sum(one.size_bytes for one in self._records.values())

    def to_state(self) -> dict[str, Any]:
        """What is settled, as a part of a checkpoint. Pools that this run has not come to yet are in it, too."""
        now = {name: records.to_state() for name, records in self._records.items()}
        return {**self._before, **now}

    def open(self, wish: Wish, items: Sequence[Any], share: range) -> Iterator[TaskResult]:
        """Do the items of this share, as ``wish`` says."""
        self.opened = True
        records = self._records_of(wish, share)
        size = self._size(wish)
        window = WINDOW * size if wish.ordered else None
        tally = Tally(share, list(records), retries=wish.retries, window=window)
        staff = Staff(
            function=wish.function,
            setup=wish.setup,
            code=self._code,
            entry=self._entry,
            work=str(Path.cwd()),
            size=size,
            gpus_each=wish.gpus_each if self._room.gpus else 0,
            threads=max(1, self._room.threads // size),
            timeout_s=wish.timeout_s,
            deaths=wish.retries,
        )
        pool = TaskPool(staff, items, tally, self._tick)
        results = self._results(wish, items, records, pool, len(share))
        return _in_order(results, share) if wish.ordered else results

    def _size(self, wish: Wish) -> int:
        room = self._room
        if wish.gpus_each > max(room.gpus, 1):
            raise ValueError(f"gpus_each is {wish.gpus_each}, and the shard has {room.gpus} GPUs")
        most = room.gpus // wish.gpus_each if room.gpus else room.threads
        return min(most, wish.workers or most)

    def _records_of(self, wish: Wish, share: range) -> Records:
        """What is known of this pool. It goes by its name, else by the function's and how often that was asked for."""
        name = wish.name or getattr(wish.function, "__qualname__", "tasks")
        nth = self._asked[name] = self._asked.get(name, 0) + 1
        if wish.name and nth > 1:
            raise ValueError(f"there has been a pool named {name!r} in this run")
        key = name if nth == 1 else f"{name} {nth}"
        before = self._before.pop(key, None)
        known = None if before is None else records_from_state(before)
        if before is not None and (known is None or (known.first, known.count) != (share.start, len(share))):
            _say(f"the items of {key} are not those of the checkpoint, so all of them are done anew")
            known = None
        records = Records(share.start, len(share)) if known is None else known
        if wish.keep:
            self._records[key] = records
        return records

    def _results(
        self, wish: Wish, items: Sequence[Any], records: Records, pool: TaskPool, count: int
    ) -> Iterator[TaskResult]:
        failures = done = 0
        for number in records:
            done += 1
            result = _from_record(number, items[number], records.read(number), 0)
            failures += bool(result.error)
            yield result
        for settled in pool.results():
            done += 1
            failures += bool(settled.error)
            self._keep(wish, records, settled)
            self._host.count_step(done=done - failures, failed=failures, left=count - done)
            if settled.error and failures <= MOST_TOLD:
                _say(f"item {settled.number} failed: {settled.error}")
            if wish.most_failures is not None and failures > wish.most_failures:
                raise TooManyFailures(f"{failures} items failed, the last one is {settled.number}: {settled.error}")
            record = {"error": settled.error} if settled.record is None else _value_of(settled.record)
            yield _from_record(settled.number, items[settled.number], record, settled.attempts)
        self._host.tell_steps(at_once=True)

    def _keep(self, wish: Wish, records: Records, settled: Settled) -> None:
        if not wish.keep:
            return
        record = settled.record or error_record(settled.error)
        if self.size_bytes + self.own_bytes + len(record) + SPARE_BYTES <= self._room.state_bytes:
            records.add(settled.number, record)
            self.changed = True
        elif not self._told_full:
            self._told_full = True
            _say("the results are larger than limits.state: after a move, those from here on would be made again")

    def _tick(self) -> None:
        """What is to be done now and then while a pool is at work."""
        self._host.look_up()
        self._host.tell_steps()
        now_s = time.monotonic()
        if self.changed and now_s >= self._due_s:
            self._host.keep_tasks()
            took_s = time.monotonic() - now_s
            self._due_s = now_s + max(CHECKPOINT_S, COSTLY * took_s)


def _in_order(results: Iterator[TaskResult], share: range) -> Iterator[TaskResult]:
    early: dict[int, TaskResult] = {}
    for number in share:
        while number not in early:
            result = next(results)
            early[result.index] = result
        yield early.pop(number)
    yield from results  # none are left, but it has last words


def _value_of(record: bytes) -> dict[str, Any]:
    value: dict[str, Any] = decode_state(record)
    return value


def _from_record(number: int, item: Any, record: dict[str, Any], attempts: int) -> TaskResult:
    error = str(record.get("error", ""))
    return TaskResult(index=number, item=item, value=record.get("value"), error=error, attempts=attempts)


def _say(text: str) -> None:
    """A line of ours in the run's log, among what the job's own code prints."""
    print(text.rstrip(), file=sys.stderr, flush=True)  # noqa: T201 - caught like the job's
