"""States of training as bytes: safetensors with a description of the nesting, never pickle.

A state is a tree of dicts with text keys, lists, tuples, numpy arrays and plain scalars. Its arrays become tensors of
one safetensors file (so any tool can open it), named by their path; the shape of the tree goes into the file's metadata
as JSON. Decoding is strict and bounded, because these bytes cross from one stranger to another.

This module reads and writes the format by itself, with the ``safetensors`` package as the oracle in the tests: it
must be deterministic to the byte (blobs are known by their hash) and answer hostile bytes with `ProtocolError` only.
A state is laid out so that a tensor that did not change lies where it lay before, however the scalars around it have
grown: then its chunks are the same ones, and a checkpoint after another costs what has changed.
numpy is allowed here although it is no codec, since arrays are what these messages are about; it does no I/O.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa.proto.errors import Malformed, TooLarge
from hansa.proto.typed_json import refuse_deep_nesting

MAX_HEADER_BYTES: Final = 4 << 20
MAX_TENSORS: Final = 20_000
MAX_DEPTH: Final = 32
MAX_DIMENSIONS: Final = 16
MEAN_BLOCK: Final = 1 << 18
OUTLINE_KEY: Final = "hansa"
ALIGNMENT: Final = 8
CHUNK_BYTES: Final = 1 << 20
"""A chunk of `hansa.proto.blob`, which a sandbox cannot import: it has no library for hashes there."""
STEADY_HEADER_BYTES: Final = 64 << 10
"""The header of a state that fills a chunk is padded to a multiple of this: one more digit in it moves nothing."""

_DTYPES: Final[Mapping[str, str]] = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "U32": "<u4",
    "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip
_NAMES: Final[Mapping[str, str]] = {text: name for name, text in _DTYPES.items()}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """A state taken apart.

    Attributes:
        arrays: every array by its name, in the order of the tree.
        outline: the tree as JSON text, with names where the arrays go.
    """

    arrays: Mapping[str, Array]
    outline: str


def take_apart(tree: Any) -> Tensors:
    """Separate a state into named arrays and the outline of its nesting.

    Raises:
        Malformed: something in it is neither dict, list, tuple, array nor scalar, or an array's type cannot be sent.
    """
    arrays: dict[str, Array] = {}
    outline = _outline_of(tree, (), arrays)
    return Tensors(arrays=arrays, outline=json.dumps(outline, separators=(",", ":"), ensure_ascii=True))


def put_together(tensors: Tensors) -> Any:
    """The tree that `take_apart` took apart.

    Raises:
        Malformed: outline and arrays do not belong together.
    """
    try:
        refuse_deep_nesting(tensors.outline)
        outline = json.loads(tensors.outline)
    except (ValueError, RecursionError) as error:
        raise Malformed("state", "its outline is no JSON") from error
    used: set[str] = set()
    tree = _tree_of(outline, tensors.arrays, used, 0)
    if used != set(tensors.arrays):
        raise Malformed("state", "its outline leaves arrays out")
    return tree


def encode_state(tree: Any) -> bytes:
    """A state as bytes; equal states give equal bytes.

    Raises:
        Malformed: see `take_apart`.
    """
    return write_tensors(take_apart(tree))


def decode_state(data: bytes | memoryview) -> Any:
    """The state that these bytes are. Arrays are read-only views into ``data``.

    Raises:
        ProtocolError: they are none.
    """
    return put_together(read_tensors(data))


def write_tensors(tensors: Tensors) -> bytes:
    """A safetensors file of these arrays, byte for byte the same every time."""
    return b"".join(tensor_parts(tensors))


def tensor_parts(tensors: Tensors) -> list[bytes | memoryview]:
    """The same file in parts, which are views of the arrays as far as that can be: nothing is in memory twice."""
    header: dict[str, Any] = {"__metadata__": {OUTLINE_KEY: tensors.outline}}
    parts: list[bytes | memoryview] = []
    at = 0
    for name, array in _in_order(tensors.arrays):
        plain = _plain(array)
        raw = plain.reshape(-1).view(np.uint8).data
        header[name] = {
            "dtype": _NAMES[plain.dtype.str],
            "shape": list(array.shape),
            "data_offsets": [at, at + raw.nbytes],
        }
        parts.append(raw)
        at += raw.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    if len(text) > MAX_HEADER_BYTES - STEADY_HEADER_BYTES:
        raise TooLarge("state", "its names and nesting take about 4 MiB or more")
    # A small state is one or two chunks in any case, and many of them pass in every round.
    padding = STEADY_HEADER_BYTES if at >= CHUNK_BYTES else ALIGNMENT
    text += b" " * (-(len(text) + 8) % padding)
    return [len(text).to_bytes(8, "little") + text, *parts]


def _in_order(arrays: Mapping[str, Array]) -> list[tuple[str, Array]]:
    """Where arrays lie in the file: wide elements first, which keeps each aligned without padding.

    Those smaller than a chunk come after the others: a list of losses that grows with every step shifts what lies
    behind it, and that must not be the weights.
    """
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    large = [(name, array) for name, array in ordered if array.nbytes >= CHUNK_BYTES]
    if sum(array.nbytes for _, array in large) % ALIGNMENT:
        return ordered  # the wide ones among the small would not be aligned behind these
    return [*large, *((name, array) for name, array in ordered if array.nbytes < CHUNK_BYTES)]


def read_tensors(data: bytes | memoryview) -> Tensors:
    """The arrays and the outline in a safetensors file that `write_tensors` could have written.

    Raises:
        ProtocolError: the bytes are something else, or reach outside of themselves, or overlap.
    """
    if len(data) < 8:
        raise Malformed("state", "shorter than its own length")
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise TooLarge("state", "a header over 4 MiB")
    if 8 + size > len(data):
        raise Malformed("state", "the header reaches past the end")
    try:
        text = bytes(data[8 : 8 + size]).decode("utf-8")
        refuse_deep_nesting(text)
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed("state", "its header is no JSON") from error
    if not isinstance(header, dict):
        raise Malformed("state", "its header is no map")
    metadata = header.pop("__metadata__", None)
    outline = metadata.get(OUTLINE_KEY) if isinstance(metadata, dict) else None
    if not isinstance(outline, str):
        raise Malformed("state", "it has no outline")
    if len(header) > MAX_TENSORS:
        raise TooLarge("state", f"more than {MAX_TENSORS} arrays")
    body = memoryview(data)[8 + size :]
    found = [(name, *_placed(entry)) for name, entry in header.items()]
    end = 0
    for _name, _dtype, _shape, start, stop in sorted(found, key=lambda item: (item[3], item[4])):
        if start != end:
            raise Malformed("state", "its arrays overlap or leave a gap")
        end = stop
    if end != len(body):
        raise Malformed("state", "bytes that belong to no array")
    try:
        arrays = {
            name: np.frombuffer(body[start:stop], dtype=dtype).reshape(shape)
            for name, dtype, shape, start, stop in found
        }
    except ValueError as error:
        raise Malformed("state", "an array of an impossible shape") from error
    return Tensors(arrays=arrays, outline=outline)


def weighted_mean(states: Sequence[Mapping[str, Array]], weights: Sequence[float]) -> dict[str, Array]:
    """The mean of states with the same names and shapes, summed in float64 and given back in each array's own type.

    Whole numbers are rounded to the nearest; truth values are taken from the first, since they have no mean.
    """
    assert states, "a mean of nothing"
    assert len(states) == len(weights), "a weight for each state"
    total = float(sum(weights))
    mean: dict[str, Array] = {}
    for name, first in states[0].items():
        if first.dtype.kind == "b":
            mean[name] = first
            continue
        mean[name] = _mean_of([state[name] for state in states], [weight / total for weight in weights])
    return mean


def _mean_of(arrays: Sequence[Array], shares: Sequence[float]) -> Array:
    """The mean of one array, block by block: the sums are wider than the arrays and must not be in memory whole."""
    first = arrays[0]
    mean = np.empty(first.shape, dtype=first.dtype)
    flat, sources = mean.reshape(-1), [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    for start in range(0, flat.size, MEAN_BLOCK):
        stop = min(flat.size, start + MEAN_BLOCK)
        summed = np.zeros(stop - start, dtype=np.float64)
        for source, share in zip(sources, shares, strict=True):
            summed += source[start:stop].astype(np.float64) * share
        if first.dtype.kind in "iu":
            limits = np.iinfo(first.dtype)
            summed = np.clip(np.rint(summed), float(limits.min), float(limits.max))
        flat[start:stop] = summed.astype(first.dtype)
    return mean


def _plain(array: Array) -> Array:
    """The array in C order and little-endian, as it goes into the file."""
    if array.dtype.newbyteorder("<").str not in _NAMES and array.dtype.str not in _NAMES:
        raise Malformed("state", f"an array of type {array.dtype.name[:40]} cannot be sent")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False) if array.dtype.itemsize > 1 else array
    return np.ascontiguousarray(little)


def _outline_of(node: Any, path: tuple[str, ...], arrays: dict[str, Array]) -> Any:
    where = "/".join(path)
    if len(path) > MAX_DEPTH:
        raise Malformed("state", "nested too deeply")
    if isinstance(node, np.generic):
        node = np.asarray(node)
    if isinstance(node, np.ndarray):
        if node.dtype.newbyteorder("<").str not in _NAMES and node.dtype.str not in _NAMES:
            raise Malformed(
                "state", f"{where or 'it'} is an array of type {node.dtype.name[:40]}, which cannot be sent"
            )
        name = where or "value"
        while name in arrays or name == "__metadata__":
            name += "'"
        arrays[name] = node
        return {"a": name}
    if isinstance(node, dict):
        if not all(isinstance(key, str) for key in node):
            raise Malformed("state", f"a key in {where or 'it'} is no text")
        return {"d": [[key, _outline_of(value, (*path, key), arrays)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        kind = "l" if isinstance(node, list) else "t"
        return {kind: [_outline_of(value, (*path, str(i)), arrays) for i, value in enumerate(node)]}
    if node is None or isinstance(node, (bool, int, float, str)):
        if isinstance(node, float):
            return {"f": node.hex()}
        if isinstance(node, int) and not isinstance(node, bool) and node.bit_length() > 64:
            raise Malformed("state", f"{where or 'it'} is a number over 64 bits")
        return {"s": node}
    raise Malformed("state", f"{where or 'it'} is neither an array nor a plain value")


def _tree_of(outline: Any, arrays: Mapping[str, Array], used: set[str], depth: int) -> Any:
    if depth > MAX_DEPTH or not isinstance(outline, dict) or len(outline) != 1:
        raise Malformed("state", "its outline is malformed")
    ((kind, value),) = outline.items()
    match kind, value:
        case "a", str() if value in arrays and value not in used:
            used.add(value)
            return arrays[value]
        case "s", None | bool() | str():
            return value
        case "s", int() if value.bit_length() <= 64:
            return value
        case "f", str() if len(value) <= 40:
            try:
                return float.fromhex(value)
            except (ValueError, OverflowError) as error:
                raise Malformed("state", "its outline holds no number") from error
        case (("l" | "t"), list()):
            items = [_tree_of(item, arrays, used, depth + 1) for item in value]
            return items if kind == "l" else tuple(items)
        case "d", list():
            tree: dict[str, Any] = {}
            for pair in value:
                if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or pair[0] in tree:
                    raise Malformed("state", "its outline is malformed")
                tree[pair[0]] = _tree_of(pair[1], arrays, used, depth + 1)
            return tree
        case _:
            raise Malformed("state", "its outline is malformed")


def _placed(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape and place of one array, each checked against the others."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Malformed("state", "an array without its three facts")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise Malformed("state", "an array of an unknown type")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(s) for s in shape):
        raise Malformed("state", "an array without a shape")
    if not isinstance(place, list) or len(place) != 2 or not all(_is_size(p) for p in place):
        raise Malformed("state", "an array without a place")
    count = 1
    for length in shape:
        count *= length
    start, stop = place
    if stop - start != count * np.dtype(_DTYPES[dtype]).itemsize:
        raise Malformed("state", "an array whose shape and bytes disagree")
    return _DTYPES[dtype], tuple(shape), start, stop


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 50
