"""What may come over the unix sockets that a job can write to."""

import contextlib
import socket
from typing import Final

_SO_PASSRIGHTS: Final = 83
"""Python has no name for it yet; Linux has it since 6.16."""


def take_no_descriptors(end: socket.socket) -> None:
    """Have the kernel refuse whoever sends descriptors to this end, or to what it accepts.

    A descriptor that nobody asked for is closed by whoever reads past it, and to close some of them takes as long as
    their sender likes. On an older kernel the filter of system calls stands alone against that.
    """
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
