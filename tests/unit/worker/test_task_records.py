"""What is kept of settled items, and what is made of a checkpoint that is not in order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.proto.errors import ProtocolError
from hansa.proto.tensors import decode_state, encode_state
from hansa.worker.task_records import Records, error_record, records_from_state, value_record


def some_records():
    records = Records(10, 5)
    records.add(12, value_record({"loss": 0.5, "w": np.arange(3)}))
    records.add(10, error_record("ValueError: no"))
    return records


def through_a_checkpoint(records):
    return decode_state(encode_state({"tasks": {"score": records.to_state()}}))["tasks"]["score"]


def test_records_come_back_from_a_checkpoint_in_the_order_in_which_they_were_settled():
    back = records_from_state(through_a_checkpoint(some_records()))
    assert (back.first, back.count, list(back), len(back)) == (10, 5, [12, 10], 2)
    assert 12 in back
    assert 11 not in back
    value = back.read(12)["value"]
    assert (value["loss"], value["w"].tolist()) == (0.5, [0, 1, 2])
    assert back.read(10) == {"error": "ValueError: no"}
    back.add(11, value_record(None))
    assert records_from_state(through_a_checkpoint(back)).read(11) == {"value": None}


def test_a_later_checkpoint_begins_with_the_bytes_of_an_earlier_one():
    records = some_records()
    before = records.to_state()["records"].tobytes()
    records.add(14, value_record(1))
    assert records.to_state()["records"].tobytes().startswith(before)
    assert records.size_bytes == len(records.to_state()["records"])


def test_nothing_that_is_executed_when_it_is_read_can_be_kept():
    with pytest.raises(ProtocolError, match="neither"):
        value_record(object())


@given(st.binary(max_size=200), st.integers(0, 300))
def test_bytes_that_are_no_records_are_taken_whole_or_not_at_all(junk, at):
    state = through_a_checkpoint(some_records())
    data = bytearray(state["records"].tobytes())
    data[at : at + len(junk)] = junk
    back = records_from_state({**state, "records": np.frombuffer(bytes(data), dtype=np.uint8)})
    if back is not None:
        assert all(10 <= number < 15 and {"value", "error"} & back.read(number).keys() for number in back)
        assert back.to_state()["records"].tobytes() == bytes(data), "nothing is left out"


def test_a_letter_that_changed_in_a_checkpoint_is_read_as_it_stands():
    """Nothing here tells that: a checkpoint is known by its hash, and who brings another is found out before."""
    state = through_a_checkpoint(some_records())
    data = state["records"].tobytes().replace(b"ValueError: no", b"ValueError: NO")
    back = records_from_state({**state, "records": np.frombuffer(data, dtype=np.uint8)})
    assert back.read(10) == {"error": "ValueError: NO"}


@pytest.mark.parametrize(
    "changes", [{"first": 11}, {"count": 2}, {"first": None}, {"records": None}, {"records": np.ones(20, np.uint8)}]
)
def test_records_of_other_items_are_not_taken(changes):
    assert records_from_state({**through_a_checkpoint(some_records()), **changes}) is None


def test_an_item_that_is_in_the_records_twice_is_not_believed():
    state = some_records().to_state()
    assert records_from_state({**state, "records": np.concatenate([state["records"]] * 2)}) is None


def test_a_record_that_says_neither_a_value_nor_an_error_is_not_taken():
    for told in (["value"], {"other": 1}, "error"):
        records = Records(0, 1)
        records.add(0, encode_state(told))
        assert records_from_state(records.to_state()) is None


@pytest.mark.parametrize("state", [None, 3, [], {}, {"records": np.ones(1)}])
def test_what_is_no_records_is_not_taken(state):
    assert records_from_state(state) is None
