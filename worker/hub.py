"""Brings the Ray workers of one shard together, so that the shard speaks with one voice.

Pure: it is told what the workers said and answers with what is to be done. The states themselves never come here: a
worker holds its own until it is fetched, so only numbers are kept. It lives in the runner, which is Ray's driver, not
in an actor of its own: that saves a process of about 70 MB and half a second in every run.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hansa.proto.frames import MAX_METRICS

MAX_OPEN_STEPS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribute:
    """Send the shard's contribution out: the mean of the states of these workers.

    Attributes:
        round: the round that it is for.
        weights: how much each worker's state counts, by the worker's number.
    """

    round: int
    weights: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """Let every worker go on from the result of a round, which they have."""

    round: int


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
        self._given: dict[int, tuple[int, float]] = {}
        self._steps: dict[int, dict[int, tuple[tuple[str, float], ...]]] = {}
        self._sent = -1
        self._result: int | None = None

    @property
    def waiting(self) -> bool:
        """Whether every worker that still runs waits for the result of a round."""
        return bool(self._living) and self._living <= set(self._given)

    def took_sync(self, worker: int, round_number: int, weight: float) -> list[Contribute | Deliver]:
        """A worker has its state ready and waits."""
        self._given[worker] = (round_number, weight)
        return self._settle()

    def took_result(self, round_number: int) -> list[Contribute | Deliver]:
        """Every worker has the result of a round. An older one than the newest known is of no use."""
        if self._result is None or round_number > self._result:
            self._result = round_number
        return self._settle()

    def took_end(self, worker: int) -> list[Contribute | Deliver]:
        """A worker returned; the others no longer wait for it."""
        self._living.discard(worker)
        self._given.pop(worker, None)
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
        wanted = max(number for number, _weight in self._given.values())
        if self._result is not None and self._result >= wanted:
            # The others have gone on without us (or this is the answer): every worker continues from the same state.
            self._given.clear()
            return [Deliver(round=self._result)]
        if wanted <= self._sent:
            return []
        self._sent = wanted
        return [Contribute(round=wanted, weights={worker: weight for worker, (_, weight) in self._given.items()})]


def _mean_metrics(said: Mapping[int, tuple[tuple[str, float], ...]]) -> tuple[tuple[str, float], ...]:
    gathered: dict[str, list[float]] = {}
    for worker in sorted(said):
        for name, value in said[worker]:
            gathered.setdefault(name, []).append(value)
    return tuple((name, sum(values) / len(values)) for name, values in gathered.items())[:MAX_METRICS]
