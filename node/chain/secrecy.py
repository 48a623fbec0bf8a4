"""What keeps a process's memory, and so its keys, from being written down or read by others of the same user.

A core dump of a process that holds a key is the key in a file. Where the kernel's ``core_pattern`` is a pipe the limit
on its size is not looked at, so the process is marked as not to be dumped as well; that also keeps other processes of
the same user from reading its memory or its environment. Programs that it starts are not marked: ``exec`` takes that
back.
"""

import ctypes
import resource

_PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """Leave no core dump of this process, and let nobody but root attach to it.

    Raises:
        OSError: the kernel did not do it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the process cannot be kept from being dumped")
