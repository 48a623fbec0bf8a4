"""Brings the Ray workers of one shard together, so that the shard speaks with one voice.

Pure: it is told what the workers said and answers with what is to be done. It lives in the runner, which is Ray's
driver, not in an actor of its own: that saves a process of about 70 MB and half a second in every run, and arrays still
travel through Ray's object store.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hansa.proto.frames import MAX_METRICS
from hansa.proto.tensors import Tensors, decode_state, take_apart, weighted_mean, write_tensors

MAX_OPEN_STEPS = 64


class Uneven(ValueError):
    """The workers' states have different shapes, so there is no mean of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribute:
    """Send the shard's contribution out."""

    round: int
    weight: float
    state: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """Hand the result of a round to every worker."""

    round: int
    state: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Send the shard's figures for a step out."""

    step: int
    metrics: tuple[tuple[str, float], ...]


class Hub:
    """What the workers of one shard have said and not yet been answered."""

    def __init__(self, workers: int) -> None:
        """Nothing was said by any of these workers yet."""
        self._living = set(range(workers))
        self._states: dict[int, tuple[int, float, Any]] = {}
        self._steps: dict[int, dict[int, tuple[tuple[str, float], ...]]] = {}
        self._sent = -1
        self._result: tuple[int, Any] | None = None

    @property
    def waiting(self) -> bool:
        """Whether every worker that still runs waits for the result of a round."""
        return bool(self._living) and self._living <= set(self._states)

    def took_sync(self, worker: int, round_number: int, weight: float, tree: Any) -> list[Contribute | Deliver]:
        """A worker gave its state and waits."""
        self._states[worker] = (round_number, weight, tree)
        return self._settle()

    def took_result(self, round_number: int, state: bytes) -> list[Contribute | Deliver]:
        """The daemon brought the result of a round. An older one than the newest known is of no use.

        Raises:
            ProtocolError: the state is none.
        """
        if self._result is None or round_number > self._result[0]:
            self._result = (round_number, decode_state(state))
        return self._settle()

    def took_end(self, worker: int) -> list[Contribute | Deliver]:
        """A worker returned; the others no longer wait for it."""
        self._living.discard(worker)
        self._states.pop(worker, None)
        return self._settle()

    def took_report(self, worker: int, step: int, metrics: tuple[tuple[str, float], ...]) -> list[Report]:
        """A worker did a step. The mean goes out once all have, or when too many steps are open."""
        self._steps.setdefault(step, {})[worker] = metrics
        done = [number for number, said in self._steps.items() if self._living <= set(said)]
        if not done and len(self._steps) > MAX_OPEN_STEPS:
            done = [min(self._steps)]
        return [Report(step=number, metrics=_mean_metrics(self._steps.pop(number))) for number in sorted(done)]

    def flush_reports(self) -> list[Report]:
        """What some workers reported and others never will."""
        reports = [Report(step=number, metrics=_mean_metrics(said)) for number, said in sorted(self._steps.items())]
        self._steps.clear()
        return reports

    def _settle(self) -> list[Contribute | Deliver]:
        if not self.waiting:
            return []
        wanted = max(number for number, _weight, _tree in self._states.values())
        if self._result is not None and self._result[0] >= wanted:
            # The others have gone on without us (or this is the answer): every worker continues from the same state.
            self._states.clear()
            return [Deliver(round=self._result[0], state=self._result[1])]
        if wanted <= self._sent:
            return []
        self._sent = wanted
        parts = [(weight, take_apart(tree)) for _number, weight, tree in self._states.values()]
        _must_match([tensors for _weight, tensors in parts])
        mean = weighted_mean([tensors.arrays for _weight, tensors in parts], [weight for weight, _tensors in parts])
        state = write_tensors(Tensors(arrays=mean, outline=parts[0][1].outline))
        return [Contribute(round=wanted, weight=sum(weight for weight, _tensors in parts), state=state)]


def _must_match(states: list[Tensors]) -> None:
    first = states[0]
    for other in states[1:]:
        for name, array in first.arrays.items():
            if name not in other.arrays or other.arrays[name].shape != array.shape:
                raise Uneven(f"the workers' states differ in {name}")
        if len(other.arrays) != len(first.arrays):
            raise Uneven("the workers' states have different numbers of arrays")


def _mean_metrics(said: Mapping[int, tuple[tuple[str, float], ...]]) -> tuple[tuple[str, float], ...]:
    gathered: dict[str, list[float]] = {}
    for worker in sorted(said):
        for name, value in said[worker]:
            gathered.setdefault(name, []).append(value)
    return tuple((name, sum(values) / len(values)) for name, values in gathered.items())[:MAX_METRICS]
