import numpy as np
import pytest

from hansa.proto.errors import ProtocolError
from hansa.proto.tensors import decode_state, encode_state
from hansa.worker.averaging import Uneven, mean_parts, pieces_of, size_of


def encoded(value, shape=(2,)):
    return memoryview(encode_state({"w": np.full(shape, value)}))


def test_a_worker_counts_for_its_weight():
    parts = mean_parts([encoded(0.0), encoded(4.0)], [1.0, 3.0])
    assert decode_state(b"".join(parts))["w"].tolist() == [3.0, 3.0]


def test_the_pieces_are_the_parts_and_none_is_too_large():
    parts = mean_parts([encoded(1.5, (1000, 3))], [1.0])
    pieces = list(pieces_of(parts, 777))
    assert b"".join(pieces) == encode_state({"w": np.full((1000, 3), 1.5)})
    assert max(map(len, pieces)) <= 777
    assert sum(map(len, pieces)) == size_of(parts)


@pytest.mark.parametrize("other", [np.zeros(3), np.zeros((2, 1))])
def test_states_of_different_shapes_have_no_mean(other):
    with pytest.raises(Uneven):
        mean_parts([encoded(1.0), memoryview(encode_state({"w": other}))], [1.0, 1.0])


def test_states_of_different_numbers_of_arrays_have_no_mean():
    with pytest.raises(Uneven):
        mean_parts([encoded(1.0), memoryview(encode_state({"w": np.zeros(2), "b": np.zeros(1)}))], [1.0, 1.0])


def test_what_is_no_state_is_refused():
    with pytest.raises(ProtocolError):
        mean_parts([memoryview(b"junk")], [1.0])
