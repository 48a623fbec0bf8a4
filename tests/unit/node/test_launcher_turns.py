"""In which order the launcher does what has become ready at once."""

import os
import selectors
import socket

from hansa.node.isolation.launcher import Launcher


def test_what_was_closed_meanwhile_is_not_heard_under_a_number_that_is_anothers_now():
    """A read from the other one blocks, and nobody else is paused, ended or killed for so long."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    launcher = Launcher(theirs)
    selector, done = launcher._selector, []
    first, second = os.pipe(), os.pipe()

    def take_the_place_of(pipe, name):
        def act():
            done.append(name)
            selector.unregister(pipe[0])
            os.dup2(ours.fileno(), pipe[0])
            selector.register(pipe[0], selectors.EVENT_READ, lambda: done.append("the new one"))

        return act

    # Whichever of the two comes first replaces the other.
    selector.register(first[0], selectors.EVENT_READ, take_the_place_of(second, "first"))
    selector.register(second[0], selectors.EVENT_READ, take_the_place_of(first, "second"))
    for _, end in (first, second):
        os.write(end, b"x")
    launcher._do_what_is_ready(10)
    assert done in (["first"], ["second"])
    for descriptor in (*first, *second):
        os.close(descriptor)
    ours.close()
    theirs.close()
