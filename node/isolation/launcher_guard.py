"""No sandbox outlives its launcher, however either ends.

Where the launcher can make process namespaces (`confine.own_processes`: it is root), the kernel sees to it. A sandbox's
outer process is the first in one and has asked to die with the launcher (PR_SET_PDEATHSIG); with it ends all that is
below it, at whatever moment. An ordinary user has process namespaces only inside a user namespace, which some systems
allow to nobody but bubblewrap. There bubblewrap's inner process asks by itself to die with the outer one, and does that
only once its sandbox is furnished. If the outer dies before, by whatever hand, the inner waits for it for ever or,
worse, goes on to run the job with nobody to watch it (both seen). Therefore two processes watch over each other:

- the launcher is a *subreaper*: what loses its parent falls to it. A child of its that it did not start is such an
  inner process, and is ended before the run is said to have ended;
- the launcher itself has a guard, its parent, that is a subreaper too: when the launcher is killed, the guard ends what
  falls to it, and removes control groups. When the guard is killed, the kernel tells the launcher, which ends
  everything and itself.

Only who kills both in the same few milliseconds in which a sandbox without such a namespace begins can leave an inner
process behind. What waits in a driver outlives everybody until the driver is done with it.
"""

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NoReturn

from hansa.node.isolation import confine
from hansa.node.isolation.cgroups import remove_leftovers
from hansa.node.isolation.ordinary_turns import take_ordinary_turns
from hansa.node.isolation.process_tree import parent_in

END_S = 10.0
TOLD = frozenset({signal.SIGTERM, signal.SIGINT})


def serve_guarded(control: socket.socket, serve: Callable[[int], None]) -> None:
    """Run ``serve`` in a child, and return once that has ended and nothing that it started is left.

    Args:
        control: the launcher's socket, which only the child may hold: its end is how the daemon learns of the child's.
        serve: the launcher's whole life. It is given a descriptor that becomes readable when it is told to end.
    """
    us = os.getpid()
    control.set_inheritable(False)  # whoever started us had to hand it down; it goes no further, least to a sandbox
    take_ordinary_turns()
    confine.adopt_orphans()
    with told_later():
        child = os.fork()
        if child == 0:
            _live(us, serve)
        for number in TOLD:
            signal.signal(number, lambda *_: _tell(child))
    control.close()
    os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        remove_leftovers()  # what is frozen does not die of a signal everywhere
    end_children()


def end_children(spared: Collection[int] = ()) -> None:
    """End our children and all that falls to us when they die, until there is none but those ``spared``.

    What is in their process namespaces ends with them: the kernel sees to that before they can be waited for.
    """
    deadline = time.monotonic() + END_S
    while (ours := [pid for pid in _children() if pid not in spared]) and time.monotonic() < deadline:
        for pid in ours:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
        for pid in ours:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


@contextlib.contextmanager
def told_later() -> Iterator[None]:
    """Hold back the signals that end us, where an end halfway through would leave two processes that think alike."""
    signal.pthread_sigmask(signal.SIG_BLOCK, TOLD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)


def _live(guard: int, serve: Callable[[int], None]) -> NoReturn:
    """In the child: be the launcher, then leave without a way back into the guard's code."""
    status = 1
    try:
        # Not by raising from the handler: an exception that comes at any point of any code is now and then swallowed,
        # by a callback that nobody waits for, and then the launcher would live on (seen).
        told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in TOLD:
            signal.signal(number, lambda *_: _write(tell))
        confine.die_with(guard, signal.SIGTERM)
        confine.adopt_orphans()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
        serve(told)
        status = 0
    except BaseException:  # noqa: BLE001 - what the interpreter would do, but here the guard's code would go on
        traceback.print_exc(file=sys.stderr)
    finally:
        try:
            for number in TOLD:
                signal.signal(number, signal.SIG_IGN)
            end_children()
        finally:
            os._exit(status)


def _write(tell: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(tell, b"!")


def _tell(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)


def _children() -> list[int]:
    """Our children. Not every kernel keeps the list, so look at everybody."""
    us = os.getpid()
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and parent_in(entry) == us]
