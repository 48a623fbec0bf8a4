"""What it means that the system would not give or take a file: which faults pass by themselves, and how each is told.

Whose bytes they were, or whose disk, is nobody's business but the owner's: the words name no path.
"""

import errno
from typing import Final

PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EINTR})
"""There was no descriptor or no memory left at that moment. Others end when their file does, and give theirs back."""

OF_NAMES: Final = frozenset(
    {
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENOENT,
        errno.ELOOP,
        errno.EILSEQ,
        errno.EINVAL,
    }
)
"""What a stranger's archive can bring about by what it calls its files."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def passes(fault: BaseException) -> bool:
    """Whether the same may well be had a moment later."""
    return isinstance(fault, OSError) and fault.errno in PASSING


def is_full(fault: BaseException) -> bool:
    """Whether there was no room."""
    return isinstance(fault, OSError) and fault.errno in FULL


def is_of_machine(fault: BaseException) -> bool:
    """Whether it says something of this machine, and not of the names or the bytes that it was given."""
    return isinstance(fault, OSError) and fault.errno is not None and fault.errno not in OF_NAMES


def in_words(fault: BaseException) -> str:
    """The fault in the system's words."""
    return (fault.strerror if isinstance(fault, OSError) else None) or type(fault).__name__
