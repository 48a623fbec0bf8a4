import json
import math

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hansa.proto import blob
from hansa.proto.blob import chunks_of
from hansa.proto.errors import Malformed, ProtocolError
from hansa.proto.tensors import (
    CHUNK_BYTES,
    Tensors,
    decode_state,
    encode_state,
    put_together,
    read_tensors,
    take_apart,
    weighted_mean,
)

DTYPES = ["<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "|u1", "<u2", "<u4", "<u8", "|b1"]
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=10)
TREES = st.recursive(
    ARRAYS | SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (math.isnan(one) and math.isnan(other)))


@given(TREES)
def test_any_state_comes_out_as_it_went_in(tree):
    assert same(tree, decode_state(encode_state(tree)))


@given(TREES)
def test_the_safetensors_package_reads_the_same_arrays(tree):
    mine = take_apart(tree).arrays
    theirs = safetensors.numpy.load(encode_state(tree))
    assert set(mine) == set(theirs)
    assert all(same(mine[name].reshape(mine[name].shape), theirs[name]) for name in mine)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_state_or_a_protocol_error(data):
    for framed in (data, len(data).to_bytes(8, "little") + data):
        try:
            decode_state(framed)
        except ProtocolError:
            continue


STATE = encode_state({"a": np.arange(6.0).reshape(2, 3), "b": [1, 2.5, "x", (np.ones(2, "<i4"),)]})


@given(st.integers(0, len(STATE) - 1), st.integers(0, 255))
def test_a_state_with_one_byte_changed_is_a_state_or_a_protocol_error(at, byte):
    changed = bytearray(STATE)
    changed[at] = byte
    try:
        decode_state(bytes(changed))
    except ProtocolError:
        return


@given(st.integers(0, len(STATE) - 1))
def test_a_state_cut_short_is_refused(length):
    with pytest.raises(ProtocolError):
        decode_state(STATE[:length])


def hostile(header, body=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(start, stop, shape, dtype="U8"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


OUTLINE = {"__metadata__": {"hansa": '{"a":"x"}'}}


@pytest.mark.parametrize(
    "data",
    [
        hostile({}),
        hostile({**OUTLINE, "x": entry(0, 10, [10])}, b"123"),
        hostile({**OUTLINE, "x": entry(0, 2, [3])}, b"12"),
        hostile({**OUTLINE, "x": entry(0, 0, [0, 1 << 49, 1 << 49])}),
        hostile({**OUTLINE, "x": entry(0, 2, [2]), "y": entry(0, 2, [2])}, b"12"),
        hostile({**OUTLINE, "x": entry(1, 2, [1])}, b"12"),
        hostile({**OUTLINE, "x": entry(0, 1, [1]), "unseen": entry(1, 2, [1])}, b"12"),
        hostile({**OUTLINE, "x": entry(0, 2, [2], "OBJECT")}, b"12"),
        hostile({**OUTLINE, "x": entry(0, 2, [2], ["U8"])}, b"12"),
        hostile({**OUTLINE, "x": entry(0, 1, [True])}, b"1"),
        hostile({"__metadata__": {"hansa": "[" * 100_000}}),
        hostile({"__metadata__": {"hansa": '{"l":[' * 40 + "]}" * 40}}),
        hostile({"__metadata__": {"hansa": '{"s":1e999}'}}),
        hostile({"__metadata__": {"hansa": '{"s":%s}' % ("9" * 5000)}}),
        (1 << 40).to_bytes(8, "little"),
    ],
)
def test_a_hostile_state_is_refused(data):
    with pytest.raises(ProtocolError):
        decode_state(data)


@pytest.mark.parametrize("leaf", [object(), {1: 2}, np.array(["text"]), np.array([object()]), 1 << 70, {1, 2}])
def test_what_has_no_form_on_the_wire_is_refused_with_its_place(leaf):
    with pytest.raises(Malformed, match="layer"):
        encode_state({"layer": leaf})


def test_keys_that_make_the_same_path_do_not_collide():
    tree = {"a/b": np.zeros(1), "a": {"b": np.ones(1)}, "__metadata__": np.full(1, 2.0)}
    assert same(tree, decode_state(encode_state(tree)))


def test_the_mean_of_whole_numbers_is_rounded_and_kept_in_range():
    states = [{"n": np.array([255, 1], "u1")}, {"n": np.array([255, 2], "u1")}]
    assert weighted_mean(states, [1.0, 3.0])["n"].tolist() == [255, 2]


def test_the_mean_of_half_precision_does_not_overflow_on_the_way():
    states = [{"x": np.full(2, 60_000, "<f2")}] * 4
    assert weighted_mean(states, [1.0] * 4)["x"].tolist() == [60_000, 60_000]


def test_brackets_without_end_are_refused_before_json_follows_them_down_the_stack():
    # Some libraries raise the recursion limit so far that json would run off the end of the C stack instead of raising.
    header = b'{"a":' + b"[" * 2_000 + b"]" * 2_000 + b"}"
    with pytest.raises(Malformed, match="nested deeper"):
        read_tensors(len(header).to_bytes(8, "little") + header)
    with pytest.raises(Malformed, match="nested deeper"):
        put_together(Tensors(arrays={}, outline="[" * 2_000 + "]" * 2_000))


def chunks(tree) -> list[bytes]:
    return list(chunks_of(encode_state(tree)))


def model(**more) -> dict:
    """Some large weights of two types, and a few small ones."""
    random = np.random.default_rng(1)
    weights = {f"layer{i}": random.normal(size=400_000).astype("<f4") for i in range(4)}
    return {"weights": weights, "bias": np.zeros(10, "<f4"), "mask": np.ones(3 << 20, "|u1"), **more}


def test_a_state_that_fills_a_chunk_keeps_its_chunks_when_the_numbers_around_it_grow():
    before = chunks(model(step=9, losses=[0.5], seen=np.zeros(1)))
    after = chunks(model(step=123_456_789, losses=[0.5, 1 / 3], seen=np.zeros(2)))
    changed = [i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
    # The header and, at the end, what is small.
    assert changed in ([0], [0, len(before) - 1])


def test_one_changed_layer_costs_its_own_chunks_only():
    tree = model()
    before = chunks(tree)
    tree["weights"]["layer1"] = tree["weights"]["layer1"] + 1
    after = chunks(tree)
    changed = sum(one != other for one, other in zip(before, after, strict=True))
    assert changed <= tree["weights"]["layer1"].nbytes // CHUNK_BYTES + 2 < len(before)


def test_every_array_is_aligned_wherever_it_lies():
    odd = {"odd": np.ones((1 << 20) + 1, "|u1"), "wide": np.ones(3), "large": np.ones(1 << 18)}
    for tree in (model(seen=np.zeros(3)), odd):
        for array in read_tensors(encode_state(tree)).arrays.values():
            assert array.flags.aligned


def test_the_safetensors_package_reads_a_large_state():
    tree = model(seen=np.zeros(3), step=1)
    theirs = safetensors.numpy.load(encode_state(tree))
    assert all(same(array, theirs[name]) for name, array in take_apart(tree).arrays.items())


def test_a_chunk_is_as_long_as_a_blob_has_it():
    assert CHUNK_BYTES == blob.CHUNK_BYTES


def test_a_small_state_stays_small():
    assert len(encode_state({"x": np.zeros(4), "step": 1})) < 300
