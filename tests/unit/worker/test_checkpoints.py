from hansa.worker.checkpoints import Checkpoints, DropSaved, LeaveNow, Saved, SendSaved
from hansa.worker.handed_over import HandedOver


def saved(number, *, last=False):
    given = HandedOver(number=number, size_bytes=1, data=None)
    return Saved(given=given, round=0, step=number, last=last)


def test_a_checkpoint_is_sent_at_once_and_the_next_when_it_is_stored():
    checkpoints = Checkpoints()
    assert checkpoints.took(saved(1)) == [SendSaved(saved=saved(1))]
    assert checkpoints.took(saved(2)) == []
    assert checkpoints.waiting
    assert checkpoints.stored() == [SendSaved(saved=saved(2))]
    assert not checkpoints.waiting
    assert checkpoints.stored() == []


def test_a_newer_checkpoint_replaces_the_one_that_waits_and_never_the_one_on_its_way():
    checkpoints = Checkpoints()
    checkpoints.took(saved(1))
    checkpoints.took(saved(2))
    assert checkpoints.took(saved(3)) == [DropSaved(saved=saved(2))]
    assert checkpoints.stored() == [SendSaved(saved=saved(3))]


def test_the_run_leaves_when_its_last_checkpoint_is_stored_and_not_before():
    checkpoints = Checkpoints()
    checkpoints.took(saved(1))
    checkpoints.took(saved(2, last=True))
    assert checkpoints.stored() == [SendSaved(saved=saved(2, last=True))]
    assert checkpoints.stored() == [LeaveNow()]
