import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.node.daemon.reduce import reduce_round
from hansa.proto.tensors import decode_state, encode_state


def a_state(value, size=8):
    return encode_state({"layer": {"weights": np.full(size, value, dtype=np.float32)}, "name": "net"})


def weights_of(data):
    return decode_state(data)["layer"]["weights"]


def test_the_mean_counts_by_weight_and_keeps_type_and_nesting():
    reduced = reduce_round(None, [(0, 1.0, a_state(1.0)), (1, 3.0, a_state(2.0))])
    assert reduced.accepted == (0, 1)
    assert decode_state(reduced.state)["name"] == "net"
    assert weights_of(reduced.state).dtype == np.float32
    assert np.allclose(weights_of(reduced.state), 1.75)


def test_a_sign_flip_times_ten_is_turned_away():
    previous = a_state(1.0)
    honest = [(shard, 1.0, a_state(1.1 + shard / 100)) for shard in range(3)]
    reduced = reduce_round(previous, [*honest, (3, 1.0, a_state(1.0 - 10 * 0.1))])
    assert reduced.accepted == (0, 1, 2)
    assert "times the median step" in reduced.rejected[3]


def test_a_step_against_the_others_of_the_right_length_is_turned_away_among_four():
    honest = [(shard, 1.0, a_state(1.1)) for shard in range(3)]
    reduced = reduce_round(a_state(1.0), [*honest, (3, 1.0, a_state(0.9))])
    assert reduced.rejected == {3: "its step goes against the others'"}


def test_among_three_the_direction_is_not_judged():
    reduced = reduce_round(a_state(1.0), [(0, 1.0, a_state(1.1)), (1, 1.0, a_state(1.1)), (2, 1.0, a_state(0.9))])
    assert reduced.accepted == (0, 1, 2)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_turned_away(poison):
    reduced = reduce_round(None, [(0, 1.0, a_state(1.0)), (1, 1.0, a_state(poison))])
    assert reduced.accepted == (0,)
    assert "not finite" in reduced.rejected[1]


def test_another_shape_than_the_rest_is_turned_away_even_when_it_comes_first():
    reduced = reduce_round(None, [(0, 1.0, a_state(1.0, size=9)), (1, 1.0, a_state(1.0)), (2, 1.0, a_state(1.0))])
    assert reduced.accepted == (1, 2)
    assert "shapes" in reduced.rejected[0]


def test_a_weight_counts_for_three_times_the_lower_median_at_most():
    reduced = reduce_round(None, [(0, 1.0, a_state(0.0)), (1, 1e9, a_state(4.0))])
    assert np.allclose(weights_of(reduced.state), 3.0)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_weight_is_turned_away(weight):
    assert reduce_round(None, [(0, weight, a_state(1.0))]).state is None


def test_a_state_over_the_limit_is_not_read():
    assert "over 10 bytes" in reduce_round(None, [(0, 1.0, a_state(1.0))], limit_bytes=10).rejected[0]


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_any_bytes_are_turned_away_and_the_sound_one_remains(junk):
    contributions = [(0, 1.0, a_state(1.0)), *((number + 1, 1.0, data) for number, data in enumerate(junk))]
    reduced = reduce_round(None, contributions)
    assert reduced.accepted == (0,)
    assert set(reduced.rejected) == set(range(1, len(junk) + 1))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6), st.randoms())
def test_the_order_of_contributions_makes_no_difference(values, random):
    contributions = [(shard, 1.0 + shard, a_state(value)) for shard, value in enumerate(values)]
    mixed = contributions.copy()
    random.shuffle(mixed)
    one, other = reduce_round(a_state(0.5), contributions), reduce_round(a_state(0.5), mixed)
    assert one.state == other.state
    assert one.accepted == other.accepted


def test_a_state_that_cannot_be_written_again_is_a_rejection_and_no_fault():
    """Names outside ASCII grow when they are written: what could just be read is too large to be passed on."""
    plain = encode_state({"w": np.ones(4)})
    size = int.from_bytes(plain[:8], "little")
    name = "\u00e9" * 600_000
    text = plain[8 : 8 + size].decode().rstrip().replace('"w"', f'"{name}"').replace('\\"w\\"', f'\\"{name}\\"')
    header = json.dumps(json.loads(text), ensure_ascii=False).encode()
    data = len(header).to_bytes(8, "little") + header + plain[8 + size :]
    reduced = reduce_round(None, [(0, 1.0, data)])
    assert reduced.state is None
    assert not reduced.accepted
    assert "cannot be passed on" in reduced.rejected[0]


def test_a_mean_over_the_limit_is_a_rejection_since_nobody_could_read_it():
    data = a_state(1.0)
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size].rstrip()
    tight = len(text).to_bytes(8, "little") + text + data[8 + size :]
    assert len(tight) < len(data)
    reduced = reduce_round(None, [(0, 1.0, tight)], limit_bytes=len(tight))
    assert reduced.state is None
    assert "cannot be passed on" in reduced.rejected[0]
