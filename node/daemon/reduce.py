"""The buyer's side of a training round: strangers' contributions become one state, or are turned away with a reason.

Every contribution is a stranger's bytes. So each is decoded strictly, compared with the others in shape, and looked at
for what an attack would need: numbers that are not finite, a step far larger or smaller than the others' (a sign flip
times ten made the plain mean diverge), a direction against everybody's. What remains is averaged by weight.

Fewer than three shards cannot be protected by statistics, and the direction is only judged among four or more: with
three, two liars would be the majority.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hansa.proto.errors import ProtocolError, TooLarge
from hansa.proto.tensors import Array, Tensors, read_tensors, weighted_mean, write_tensors

NORM_FACTOR = 3.0
LEAST_FOR_NORM = 3
LEAST_FOR_DIRECTION = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """What came of a round.

    Attributes:
        state: the new state, or ``None`` when no contribution was sound.
        accepted: the shards whose contributions are in it.
        rejected: the others, each with a reason in words.
    """

    state: bytes | None
    accepted: tuple[int, ...]
    rejected: Mapping[int, str]


def reduce_round(
    previous: bytes | None, contributions: Sequence[tuple[int, float, bytes]], *, limit_bytes: int = 1 << 30
) -> Reduced:
    """Average what the shards sent.

    Args:
        previous: the state of the round before, from which they started, if there is one.
        contributions: ``(shard, weight, state)``, at most one of a shard.
        limit_bytes: a larger state is turned away unread.
    """
    rejected: dict[int, str] = {}
    sound: dict[int, tuple[float, Tensors]] = {}
    for shard, weight, data in contributions:
        assert shard not in sound.keys() | rejected.keys(), "one contribution of a shard"
        fault, tensors = _read(weight, data, limit_bytes)
        if tensors is None:
            rejected[shard] = fault
        else:
            sound[shard] = (weight, tensors)
    base = _read(1.0, previous, limit_bytes)[1] if previous is not None else None
    _reject_odd_shapes(sound, rejected, base)
    if base is not None or len(sound) >= LEAST_FOR_NORM:
        deltas = {shard: _delta(tensors, base) for shard, (_weight, tensors) in sound.items()}
        _reject_odd_norms(deltas, rejected)
        _reject_against_the_rest(deltas, rejected)
    kept = {shard: entry for shard, entry in sorted(sound.items()) if shard not in rejected}
    if not kept:
        return Reduced(state=None, accepted=(), rejected=rejected)
    weights = _capped([weight for weight, _tensors in kept.values()])
    mean = weighted_mean([tensors.arrays for _weight, tensors in kept.values()], weights)
    first = next(iter(kept.values()))[1]
    try:
        state = write_tensors(Tensors(arrays=mean, outline=first.outline))
        if len(state) > limit_bytes:
            raise TooLarge("state", f"over {limit_bytes} bytes")
    except ProtocolError as error:
        # Names outside ASCII and left-out padding take more room when written again than they took to be read.
        refused = dict.fromkeys(kept, f"its state cannot be passed on: {error.why}")
        return Reduced(state=None, accepted=(), rejected={**rejected, **refused})
    return Reduced(state=state, accepted=tuple(kept), rejected=rejected)


def _capped(weights: list[float]) -> list[float]:
    """A weight is a stranger's word, too: none counts for more than three times the lower median."""
    middle = sorted(weights)[(len(weights) - 1) // 2]
    return [min(weight, middle * NORM_FACTOR) for weight in weights]


def _read(weight: float, data: bytes, limit_bytes: int) -> tuple[str, Tensors | None]:
    if not (math.isfinite(weight) and weight > 0):
        return "its weight is no finite number above zero", None
    if len(data) > limit_bytes:
        return f"its state is over {limit_bytes} bytes", None
    try:
        tensors = read_tensors(data)
    except ProtocolError as error:
        return f"its state cannot be read: {error.why}", None
    for array in tensors.arrays.values():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return "its state holds numbers that are not finite", None
    return "", tensors


def _reject_odd_shapes(sound: dict[int, tuple[float, Tensors]], rejected: dict[int, str], base: Tensors | None) -> None:
    """Hold all against the state before, or against the shape that most have (the lowest shard's among equals)."""
    shapes = {shard: _shape_of(tensors) for shard, (_weight, tensors) in sound.items()}
    if base is not None:
        wanted = _shape_of(base)
    elif shapes:
        counted = list(shapes.values())
        wanted = max((shapes[shard] for shard in sorted(shapes)), key=counted.count)
    else:
        return
    for shard, shape in shapes.items():
        if shape != wanted:
            del sound[shard]
            rejected[shard] = "its state has other arrays, shapes or types than the rest"


def _shape_of(tensors: Tensors) -> tuple[str, tuple[tuple[str, str, tuple[int, ...]], ...]]:
    arrays = sorted((name, array.dtype.str, array.shape) for name, array in tensors.arrays.items())
    return tensors.outline, tuple(arrays)


def _delta(tensors: Tensors, base: Tensors | None) -> NDArray[np.float64]:
    """All of a state's real numbers in one row, less what they were before."""
    parts = []
    for name in sorted(tensors.arrays):
        array: Array = tensors.arrays[name]
        if array.dtype.kind == "f":
            before = base.arrays[name].astype(np.float64) if base is not None else 0.0
            parts.append((array.astype(np.float64) - before).ravel())
    return np.concatenate(parts) if parts else np.zeros(0)


def _reject_odd_norms(deltas: dict[int, NDArray[np.float64]], rejected: dict[int, str]) -> None:
    if len(deltas) < LEAST_FOR_NORM:
        return
    with np.errstate(over="ignore"):
        norms = {shard: float(np.linalg.norm(delta)) for shard, delta in deltas.items()}
    median = float(np.median(list(norms.values())))
    for shard, norm in norms.items():
        if not median / NORM_FACTOR <= norm <= median * NORM_FACTOR:
            rejected[shard] = f"its step is {norm / median if median else math.inf:.3g} times the median step"
            del deltas[shard]


def _reject_against_the_rest(deltas: dict[int, NDArray[np.float64]], rejected: dict[int, str]) -> None:
    if len(deltas) < LEAST_FOR_DIRECTION:
        return
    middle = np.median(np.stack(list(deltas.values())), axis=0)
    if not middle.any():
        return
    for shard, delta in deltas.items():
        if float(delta @ middle) <= 0.0:
            rejected[shard] = "its step goes against the others'"
