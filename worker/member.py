"""A gang's other machines: a Ray node that joins the head's cluster, and nothing else.

    python -m hansa.worker.member FD

The shard's workers that belong on this machine are started in it by the head. It ends when the daemon hangs up, when
its Ray does, or when the head cannot be found; what that means for the run is decided outside.
"""

import os
import socket
import sys
import threading
import time

from hansa.proto.gang import address_of
from hansa.worker.cluster import GANG_PORT, join_cluster, prepare_environment, ray_processes, read_own_gang

FIND_S = 60.0
LOOK_S = 1.0
LOST = 3


def main() -> None:
    """Join, and stay for as long as the daemon's socket is open."""
    line = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_leave_with, args=(line,), daemon=True, name="hansa-line").start()
    gang = read_own_gang()
    assert gang is not None, "a member is started with its gang"
    prepare_environment(max(1, (os.cpu_count() or 1) // gang.workers[gang.place]))
    _await_head()
    join_cluster(gang)
    while "raylet" in ray_processes():
        time.sleep(LOOK_S)
    print("Ray has ended on this machine", file=sys.stderr, flush=True)  # noqa: T201 - the launcher keeps these words
    os._exit(LOST)


def _await_head() -> None:
    """Return once the head's cluster can be spoken to."""
    deadline = time.monotonic() + FIND_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection((address_of(0), GANG_PORT), timeout=LOOK_S).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    print("the head's Ray could not be reached", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(LOST)


def _leave_with(line: socket.socket) -> None:
    while line.recv(4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
