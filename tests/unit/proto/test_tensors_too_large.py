"""States that are refused for the size of what stands before their arrays."""

import json

import numpy as np
import pytest

from hansa.proto.errors import TooLarge
from hansa.proto.tensors import MAX_HEADER_BYTES, MAX_TENSORS, OUTLINE_KEY, decode_state, encode_state


def test_a_state_whose_names_fill_the_header_is_refused_before_it_is_written():
    with pytest.raises(TooLarge, match="names and nesting"):
        encode_state({"x" * MAX_HEADER_BYTES: np.zeros(1)})


def test_a_header_that_says_it_is_too_long_is_refused_before_it_is_looked_for():
    said = (MAX_HEADER_BYTES + 1).to_bytes(8, "little")
    with pytest.raises(TooLarge, match="a header over"):
        decode_state(said)
    with pytest.raises(TooLarge, match="a header over"):
        decode_state(said + b"{}" + b" " * MAX_HEADER_BYTES)


def test_a_state_of_too_many_arrays_is_refused_before_any_is_placed():
    header = {"__metadata__": {OUTLINE_KEY: "null"}} | {str(number): 0 for number in range(MAX_TENSORS + 1)}
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= MAX_HEADER_BYTES, "it is the count that is refused"
    with pytest.raises(TooLarge, match="more than"):
        decode_state(len(text).to_bytes(8, "little") + text)
