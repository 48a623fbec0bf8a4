from hansa.worker.hub import Contribute, Deliver, Hub, Report


def test_the_shard_speaks_once_all_its_workers_have():
    hub = Hub(2)
    assert hub.took_sync(0, 0, 1.0) == []
    assert not hub.waiting
    assert hub.took_sync(1, 0, 3.0) == [Contribute(round=0, weights={0: 1.0, 1: 3.0})]
    assert hub.waiting


def test_the_result_goes_to_everyone_and_the_next_round_begins():
    hub = Hub(1)
    hub.took_sync(0, 0, 1.0)
    assert hub.took_result(0) == [Deliver(round=0)]
    assert not hub.waiting
    assert hub.took_sync(0, 1, 1.0) == [Contribute(round=1, weights={0: 1.0})]


def test_a_late_shard_gets_the_newest_result_and_sends_nothing():
    hub = Hub(1)
    assert hub.took_result(7) == []
    assert hub.took_sync(0, 3, 1.0) == [Deliver(round=7)]


def test_an_older_result_is_of_no_use():
    hub = Hub(1)
    hub.took_result(7)
    assert hub.took_result(6) == []
    assert hub.took_sync(0, 0, 1.0) == [Deliver(round=7)]


def test_a_worker_that_returned_is_not_waited_for():
    hub = Hub(2)
    hub.took_sync(0, 0, 1.0)
    assert hub.took_end(1) == [Contribute(round=0, weights={0: 1.0})]
    assert hub.took_end(0) == []
    assert not hub.waiting


def test_a_contribution_is_not_sent_twice():
    hub = Hub(2)
    hub.took_sync(0, 0, 1.0)
    hub.took_sync(1, 0, 1.0)
    assert hub.took_end(1) == []


def test_figures_are_averaged_over_the_workers_that_gave_them():
    hub = Hub(2)
    assert hub.took_report(0, 5, (("loss", 1.0), ("only", 2.0))) == []
    assert hub.took_report(1, 5, (("loss", 3.0),)) == [Report(step=5, metrics=(("loss", 2.0), ("only", 2.0)))]


def test_steps_that_one_worker_never_reports_do_not_pile_up():
    hub = Hub(2)
    sent = [report.step for step in range(200) for report in hub.took_report(0, step, ())]
    assert sent == list(range(200 - 64))
    assert [report.step for report in hub.flush_reports()] == list(range(200 - 64, 200))
