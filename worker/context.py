"""What job code sees of Hansa: one object, handed to the job's entry function.

    def train(ctx):
        state = ctx.restore() or fresh_model(ctx.parameters)
        rows = my_rows[ctx.share(len(my_rows))]
        while ctx.round < 30:
            state = ctx.sync(a_few_steps(state, rows), weight=len(rows))
            ctx.report(step=ctx.round, loss=...)
            ctx.checkpoint(state)

The same function runs in every Ray worker of every shard; ``ctx.shard`` and ``ctx.worker`` say which one this is.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hansa.proto.frames import MAX_METRICS, MAX_NAME_CHARS
from hansa.proto.tensors import decode_state, encode_state
from hansa.worker.states import back_into, for_keeping, to_arrays, to_work_on
from hansa.worker.tasks import REPORT_S, PoolRoom, Pools, TaskResult, Wish

SMALL_STATE_BYTES = 32 << 20
"""A state that is kept here for the sake of pools that may come."""


class Stopping(BaseException):
    """The run is to end. Raised by ``ctx.sync`` and ``ctx.report``, and by ``ctx.checkpoint`` in a run that leaves.

    A `BaseException`, so that a job's ``except Exception`` lets it by.
    """


class Line(Protocol):
    """How a context reaches the hub of its shard."""

    def tell(self, *message: Any) -> None:
        """Pass a message on; waits while too many lie unread."""

    def hand_over(self, kind: str, data: bytes, *facts: Any) -> None:
        """Keep these bytes until they are fetched, and say that they are there."""

    def wait_for_round(self, at_least: int) -> tuple[int, Any]:
        """Wait for the result of this round or a later one.

        Raises:
            Stopping: the run is to end.
        """

    def wait_for_end(self) -> None:
        """Wait until the run is to end."""

    @property
    def stopping(self) -> bool:
        """Whether the run is to end."""

    @property
    def leaving(self) -> bool:
        """Whether it is to end at the next checkpoint."""


class Context:
    """A job's view of the run that it is part of.

    Attributes:
        shard: the number of this shard, from 0.
        shards: how many shards the job has, on other people's machines as a rule.
        worker: the number of this worker within its shard, from 0.
        workers: how many workers share this shard.
        parameters: what the job file says under ``[parameters]``.
        inputs: directory of the job's input files, read-only.
        outputs: directory whose files are sent to the buyer when the run has finished.
        round: the next round to sync. It may jump ahead after a restart or when this shard was late.
    """

    def __init__(
        self,
        *,
        shard: int,
        shards: int,
        worker: int,
        workers: int,
        parameters: Mapping[str, Any],
        inputs: Path,
        outputs: Path,
        round_number: int,
        checkpoint: bytes | memoryview | None,
        line: Line,
        room: PoolRoom | None = None,
        code: Path = Path(),
        entry: str = "",
    ) -> None:
        self.shard = shard
        self.shards = shards
        self.worker = worker
        self.workers = workers
        self.parameters = parameters
        self.inputs = inputs
        self.outputs = outputs
        self.round = round_number
        self._step = 0
        self._line = line
        self._restored: Any = None
        self._last: bytes | memoryview | None = checkpoint
        self._last_is_gone = False
        self._counted: dict[str, float] | None = None
        self._told_s = -math.inf
        self._said_too_many = False
        kept: Any = None
        if checkpoint is not None:
            saved = decode_state(checkpoint)
            self._restored = saved["state"]
            self._step = saved["step"]
            self.round = max(round_number, saved["round"])
            kept = saved.get("tasks")
        self._pools = None if room is None else Pools(room, code, entry, kept, self)

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to end: save what is worth saving and return."""
        return self._line.stopping

    @property
    def leaving(self) -> bool:
        """Whether the provider takes its devices back: the next ``ctx.checkpoint`` of worker 0 ends the run.

        There is time until then, which is limited: checkpoint as soon as the state is worth it, and in any case do not
        return because of this, since a job that returns has finished.
        """
        return self._line.leaving

    def share(self, count: int) -> slice:
        """Which of ``count`` items belong to this worker of this shard; all shares together are all items, once."""
        position = self.shard * self.workers + self.worker
        places = self.shards * self.workers
        return slice(count * position // places, count * (position + 1) // places)

    def sync(self, state: Any, weight: float = 1.0) -> Any:
        """Give this worker's state to the round, wait, and get the average of all workers of all shards.

        Args:
            state: dicts, lists and tuples of numpy arrays, torch tensors or numbers. The same shape everywhere.
            weight: how much it counts, e.g. the number of rows it was trained on.

        Raises:
            Stopping: the run is to end.
        """
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError("a weight must be a finite number above zero")
        if self._line.stopping:
            raise Stopping
        self._line.hand_over("sync", encode_state(to_arrays(state)), self.round, float(weight))
        published, result = self._line.wait_for_round(self.round)
        self.round = published + 1
        return back_into(state, result)

    def checkpoint(self, state: Any) -> None:
        """Keep a state from which this shard can go on, on this machine or another. Only worker 0's is sent.

        In a run that leaves this is the end of it, once the state is stored; another provider goes on from there.

        Raises:
            Stopping: the run is to leave, and its last state is stored.
        """
        if self._line.leaving and self._line.stopping:
            raise Stopping
        if self.worker != 0:
            return
        leaving = self._line.leaving
        self._last = None  # the one before need not be in memory beside it
        self._save(for_keeping(state))
        if leaving:
            self._line.wait_for_end()
            raise Stopping

    def restore(self) -> Any | None:
        """The state of the last checkpoint, with numpy arrays for tensors, or ``None`` in a run that starts fresh.

        Each call gives arrays of their own, so that training may go on in place; they take as much memory as the state.
        """
        return to_work_on(self._restored)

    def report(self, *, step: int, **metrics: float) -> None:
        """Say that a step was done and how it went. The shard's figure is the mean of its workers'.

        Raises:
            Stopping: the run is to end.
        """
        if self._line.stopping:
            raise Stopping
        self._step = max(0, int(step))
        kept = []
        if len(metrics) > MAX_METRICS and not self._said_too_many:
            self._said_too_many = True
            self._say_too_many(list(metrics))
        for name, value in list(metrics.items())[:MAX_METRICS]:
            number = float(value)
            if math.isfinite(number):
                kept.append((name[:MAX_NAME_CHARS], number))
            else:
                self._line.tell("log", "stderr", f"metric {name} is {number} at step {step}\n".encode())
        self._line.tell("report", self._step, tuple(kept))

    def _say_too_many(self, names: list[str]) -> None:
        left = f"{names[MAX_METRICS][:MAX_NAME_CHARS]} is left out, and {len(names) - MAX_METRICS - 1} more"
        words = f"of {len(names)} metrics of a step only the first {MAX_METRICS} are kept: {left}\n"
        self._line.tell("log", "stderr", words.encode(errors="replace"))

    def tasks(
        self,
        function: Callable[..., Any],
        items: Iterable[Any],
        *,
        setup: Callable[[], Any] | None = None,
        name: str = "",
        workers: int | None = None,
        gpus_each: int = 1,
        ordered: bool = False,
        retries: int = 2,
        timeout_s: float | None = None,
        most_failures: int | None = None,
        keep: bool = True,
        share: bool = True,
    ) -> Iterator[TaskResult]:
        """Do every item by ``function(item)``, spread over the devices of this shard; gives results as they come.

        A settled item is a step and is reported as such. Results are kept in the checkpoint: in a run that goes on from
        one, those that were settled come again, first and at once, and are not done again.

        Args:
            function: named in the job's file, or made of what is. It gives what a checkpoint may hold.
            items: the same in every run of the job, in the same order.
            setup: called once in each worker; what it gives is the first argument of ``function`` then.
            name: what the pool is known by in the checkpoint; the function's name unless it is said.
            workers: how many processes; as many as there are devices, unless it is fewer.
            gpus_each: whole GPUs of each worker, where the shard has GPUs.
            ordered: give the results in the order of the items.
            retries: how often an item is tried again whose worker died.
            timeout_s: an item that takes longer has failed.
            most_failures: the job ends when more items than this have failed. ``None``: however many.
            keep: whether results go into the checkpoint.
            share: do only this shard's share of the items.

        Raises:
            Stopping: the run is to end.
            TooManyFailures, SetupFailed: see there.
        """
        if self._pools is None:
            raise ValueError("a pool of tasks needs all of the shard: leave workers at 1 in job.toml")
        wish = Wish(
            function=function, setup=setup, name=name, workers=workers, gpus_each=gpus_each, ordered=ordered,
            retries=retries, timeout_s=timeout_s, most_failures=most_failures, keep=keep,
        )  # fmt: skip
        wish.check()
        known: Sequence[Any] = items if isinstance(items, Sequence) else list(items)
        every = range(len(known))
        return self._pools.open(wish, known, every[self.share(len(every))] if share else every)

    def look_up(self) -> None:
        """For a pool: end if the run is to end, once what is settled is kept."""
        if not self._line.stopping and (not self._line.leaving or self._last_is_gone):
            return
        if not self._line.stopping or (self._pools and self._pools.changed and not self._line.leaving):
            leaving = self._line.leaving
            self.keep_tasks()
            if leaving:
                self._line.wait_for_end()
        raise Stopping

    def count_step(self, **metrics: float) -> None:
        """For a pool: an item is settled."""
        self._step += 1
        self._counted = metrics

    def tell_steps(self, *, at_once: bool = False) -> None:
        """For a pool: report the items that were settled; a job of very short ones is not to drown in reports."""
        now_s = time.monotonic()
        if self._counted is not None and (at_once or now_s >= self._told_s + REPORT_S):
            counted, self._counted, self._told_s = self._counted, None, now_s
            self.report(step=self._step, **counted)

    def keep_tasks(self) -> None:
        """For a pool: send a checkpoint of what is settled, with the state that the job gave last."""
        if not self._last_is_gone:
            self._save(None if self._last is None else decode_state(self._last)["state"])

    def _save(self, state: Any) -> None:
        saved = {"round": self.round, "step": self._step, "state": state}
        if self._pools is not None:
            saved["tasks"] = self._pools.to_state()
            self._pools.changed = False
        data = encode_state(saved)
        if self._pools is not None:
            # A job that trains is not to pay for pools with a second copy of its state. A pool that it comes to later
            # keeps nothing, then, before the job's next checkpoint: else that of the pool would take its state's place.
            self._last = data if self._pools.opened or len(data) <= SMALL_STATE_BYTES else None
            self._last_is_gone = self._last is None
            self._pools.own_bytes = len(data) - self._pools.size_bytes
        self._line.hand_over("checkpoint", data, self.round, self._step)
