"""Which processes are below one, whatever these do to be overlooked."""

import os
import signal
from pathlib import Path

from hansa.node.isolation.launcher_guard import _children
from hansa.node.isolation.process_tree import descendants


def test_a_process_whose_name_is_no_text_is_seen_with_all_below_it():
    """The kernel takes any bytes, and cuts a name after fifteen: in the middle of a letter that has more than one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        Path("/proc/self/comm").write_bytes(b"\xff) S 1 1\xd0")
        below = os.fork()
        if below:
            os.write(writing, str(below).encode())
        signal.pause()
        os._exit(0)
    below = int(os.read(reading, 20))
    try:
        assert child in _children()
        assert {child, below} <= set(descendants(os.getpid()))
        assert descendants(child) == [child, below]
    finally:
        for pid in (below, child):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
