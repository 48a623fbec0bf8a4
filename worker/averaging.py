"""The mean of the states of a shard's workers, as the parts of a file that is written while it is sent."""

from collections.abc import Iterator, Sequence

from hansa.proto.tensors import Tensors, read_tensors, tensor_parts, weighted_mean

Part = bytes | memoryview


class Uneven(ValueError):
    """The workers' states have different shapes, so there is no mean of them."""


def mean_parts(states: Sequence[memoryview], weights: Sequence[float]) -> list[Part]:
    """The parts of the encoded mean of encoded states.

    Raises:
        Uneven: they have no mean.
        ProtocolError: one of them is no state.
    """
    parts = [read_tensors(state) for state in states]
    _must_match(parts)
    mean = weighted_mean([tensors.arrays for tensors in parts], weights)
    return tensor_parts(Tensors(arrays=mean, outline=parts[0].outline))


def size_of(parts: Sequence[Part]) -> int:
    """How many bytes these parts have together."""
    return sum(memoryview(part).nbytes for part in parts)


def pieces_of(parts: Sequence[Part], piece_bytes: int) -> Iterator[bytes]:
    """The bytes of these parts in pieces that are not larger than that."""
    for part in parts:
        view = memoryview(part)
        for start in range(0, view.nbytes, piece_bytes):
            yield bytes(view[start : start + piece_bytes])


def _must_match(states: Sequence[Tensors]) -> None:
    first = states[0]
    for other in states[1:]:
        for name, array in first.arrays.items():
            if name not in other.arrays or other.arrays[name].shape != array.shape:
                raise Uneven(f"the workers' states differ in {name}")
        if len(other.arrays) != len(first.arrays):
            raise Uneven("the workers' states have different numbers of arrays")
