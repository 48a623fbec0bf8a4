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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from hansa.proto.frames import MAX_METRICS, MAX_NAME_CHARS
from hansa.proto.tensors import decode_state, encode_state
from hansa.worker.states import back_into, to_arrays


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
        if checkpoint is not None:
            saved = decode_state(checkpoint)
            self._restored = saved["state"]
            self._step = saved["step"]
            self.round = max(round_number, saved["round"])

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
        saved = {"round": self.round, "step": self._step, "state": _for_keeping(state)}
        self._line.hand_over("checkpoint", encode_state(saved), self.round, self._step)
        if leaving:
            self._line.wait_for_end()
            raise Stopping

    def restore(self) -> Any | None:
        """The state of the last checkpoint, with numpy arrays for tensors, or ``None`` in a run that starts fresh."""
        return self._restored

    def report(self, *, step: int, **metrics: float) -> None:
        """Say that a step was done and how it went. The shard's figure is the mean of its workers'.

        Raises:
            Stopping: the run is to end.
        """
        if self._line.stopping:
            raise Stopping
        self._step = max(0, int(step))
        kept = []
        for name, value in list(metrics.items())[:MAX_METRICS]:
            number = float(value)
            if math.isfinite(number):
                kept.append((name[:MAX_NAME_CHARS], number))
            else:
                self._line.tell("log", "stderr", f"metric {name} is {number} at step {step}\n".encode())
        self._line.tell("report", self._step, tuple(kept))


def _for_keeping(tree: Any) -> Any:
    """Arrays for everything that has an array, while plain numbers stay what they are."""
    if isinstance(tree, dict):
        return {str(key): _for_keeping(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        kept = [_for_keeping(value) for value in tree]
        return kept if isinstance(tree, list) else tuple(kept)
    if tree is None or isinstance(tree, (str, bool, int, float)):
        return tree
    return to_arrays(tree)
