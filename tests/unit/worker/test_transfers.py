"""What leaves a sandbox is held to the run's limit before a byte of it is fetched."""

import socket

import pytest

from hansa.proto.errors import Malformed
from hansa.worker.checkpoints import Saved
from hansa.worker.handed_over import HandedOver
from hansa.worker.hub import Contribute
from hansa.worker.transfers import Outgoing
from hansa.worker.wire import Wire


@pytest.mark.parametrize("what", ["state", "checkpoint"])
def test_what_is_over_the_limit_of_the_run_is_named_with_both_sizes_and_nothing_of_it_is_sent(what):
    """The words are what a developer reads, and what the hint to raise limits.state goes by."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outgoing = Outgoing(None, (), Wire(ours), 2)
        given = HandedOver(number=1, size_bytes=3, data=b"abc")
        if what == "state":
            outgoing.contribute(Contribute(round=1, weights={0: 1.0}), {0: given})
        else:
            outgoing.save(Saved(given=given, round=0, step=1, last=False))
        with pytest.raises(Malformed, match=f"a {what} of 3 bytes is over the limit of the run, 2 bytes"):
            outgoing.flush()
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
