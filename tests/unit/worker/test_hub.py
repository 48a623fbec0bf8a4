import numpy as np
import pytest

from hansa.proto.errors import ProtocolError
from hansa.proto.tensors import decode_state, encode_state
from hansa.worker.hub import Contribute, Deliver, Hub, Report, Uneven


def a_state(value):
    return {"w": np.full(2, value)}


def test_the_shard_speaks_once_all_its_workers_have():
    hub = Hub(2)
    assert hub.took_sync(0, 0, 1.0, a_state(0.0)) == []
    assert not hub.waiting
    (contribution,) = hub.took_sync(1, 0, 3.0, a_state(4.0))
    assert isinstance(contribution, Contribute)
    assert (contribution.round, contribution.weight) == (0, 4.0)
    assert decode_state(contribution.state)["w"].tolist() == [3.0, 3.0]
    assert hub.waiting


def test_the_result_goes_to_everyone_and_the_next_round_begins():
    hub = Hub(1)
    hub.took_sync(0, 0, 1.0, a_state(1.0))
    (delivery,) = hub.took_result(0, encode_state(a_state(5.0)))
    assert isinstance(delivery, Deliver)
    assert delivery.state["w"].tolist() == [5.0, 5.0]
    assert not hub.waiting
    assert [type(order) for order in hub.took_sync(0, 1, 1.0, a_state(6.0))] == [Contribute]


def test_a_late_shard_gets_the_newest_result_and_sends_nothing():
    hub = Hub(1)
    assert hub.took_result(7, encode_state(a_state(5.0))) == []
    assert [order.round for order in hub.took_sync(0, 3, 1.0, a_state(1.0))] == [7]


def test_an_older_result_is_of_no_use():
    hub = Hub(1)
    hub.took_result(7, encode_state(a_state(5.0)))
    assert hub.took_result(6, encode_state(a_state(9.0))) == []
    (delivery,) = hub.took_sync(0, 0, 1.0, a_state(1.0))
    assert delivery.round == 7


def test_a_worker_that_returned_is_not_waited_for():
    hub = Hub(2)
    hub.took_sync(0, 0, 1.0, a_state(1.0))
    assert [type(order) for order in hub.took_end(1)] == [Contribute]
    assert hub.took_end(0) == []
    assert not hub.waiting


def test_a_contribution_is_not_sent_twice():
    hub = Hub(2)
    hub.took_sync(0, 0, 1.0, a_state(1.0))
    hub.took_sync(1, 0, 1.0, a_state(1.0))
    assert hub.took_end(1) == []


def test_states_of_different_shapes_have_no_mean():
    hub = Hub(2)
    hub.took_sync(0, 0, 1.0, a_state(1.0))
    with pytest.raises(Uneven):
        hub.took_sync(1, 0, 1.0, {"w": np.zeros(3)})


def test_a_result_that_is_none_is_refused():
    with pytest.raises(ProtocolError):
        Hub(1).took_result(0, b"junk")


def test_figures_are_averaged_over_the_workers_that_gave_them():
    hub = Hub(2)
    assert hub.took_report(0, 5, (("loss", 1.0), ("only", 2.0))) == []
    assert hub.took_report(1, 5, (("loss", 3.0),)) == [Report(step=5, metrics=(("loss", 2.0), ("only", 2.0)))]


def test_steps_that_one_worker_never_reports_do_not_pile_up():
    hub = Hub(2)
    sent = [report.step for step in range(200) for report in hub.took_report(0, step, ())]
    assert sent == list(range(200 - 64))
    assert [report.step for report in hub.flush_reports()] == list(range(200 - 64, 200))
