"""What the operator must put right. Each error is one line and a hint; the command line exits with code 2."""

import errno
from pathlib import Path


class OperatorError(Exception):
    """Something that the person running this node can and must change.

    Attributes:
        what: what is wrong, in one clause.
        hint: what to do about it.
        quote: lines of the operator's own text with a mark under the place; empty where one clause says it all.
    """

    def __init__(self, what: str, hint: str, quote: str = "") -> None:
        """Keep the parts as fields."""
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.quote = quote


class ConfigError(OperatorError):
    """A setting, a file or an argument is missing, unknown or out of range."""


class PortInUse(OperatorError):
    """Somebody else listens on the address that this node was told to use."""


class WalletLocked(OperatorError):
    """The key is encrypted, and no passphrase was given or it was the wrong one."""


class NoSandbox(OperatorError):
    """This machine cannot confine a stranger's job, so none is accepted."""


FULL_DISK_HINT = "make room on the disk, then start again: nothing that was written is lost"
BROKEN_DISK_HINT = "is the disk full, does it fail (dmesg says so), or is there a limit on the size of files?"
DAMAGED_HINT = (
    "keep the directory as it is, look whether the disk fails (dmesg says so), and restore the newest copy of the whole"
    " directory, never of this file alone: docs/running-a-node.md says under Backups when one may go on from it"
)


def operator_error_in(fault: BaseException, place: Path | None = None) -> OperatorError | None:
    """What the operator must mend, if that alone brought a program down; a full disk is such a thing.

    Tasks that run side by side end in a group of what befell each, however many nurseries deep.

    Args:
        fault: what ended the program.
        place: a directory that is on the disk, if one is known.
    """
    leaves = [fault]
    while any(isinstance(each, BaseExceptionGroup) for each in leaves):
        leaves = [
            leaf for each in leaves for leaf in (each.exceptions if isinstance(each, BaseExceptionGroup) else (each,))
        ]
    mistakes = [_mistake(leaf, place) for leaf in leaves]
    return None if None in mistakes else mistakes[0]


def _mistake(fault: BaseException, place: Path | None) -> OperatorError | None:
    if isinstance(fault, OperatorError):
        return fault
    of, look = ("", "df") if place is None else (f" of {place}", f"df {place}")
    if _is_full_disk(fault):
        return OperatorError(f"the disk{of} is full: {fault}", f"{FULL_DISK_HINT}; {look} shows how full it is")
    if _is_broken_disk(fault):
        return OperatorError(f"the disk{of} can be read or written no more: {fault}", f"{BROKEN_DISK_HINT}: {look}")
    if _is_damaged(fault):
        return OperatorError(f"a database{of} is damaged: {fault}", DAMAGED_HINT)
    return None


def _is_full_disk(fault: BaseException) -> bool:
    if isinstance(fault, OSError):
        return fault.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(fault, "sqlite_errorname", "") == "SQLITE_FULL"


def _is_broken_disk(fault: BaseException) -> bool:
    """SQLite cannot always tell a disk that is full from one that fails, or from a limit on the size of files."""
    return str(getattr(fault, "sqlite_errorname", "")).startswith("SQLITE_IOERR")


def _is_damaged(fault: BaseException) -> bool:
    """As a power cut leaves a file on a disk that does not keep what it promised to have written."""
    return str(getattr(fault, "sqlite_errorname", "")).startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def storage_hint(fault: Exception, otherwise: str) -> str:
    """What to do about a database that cannot be read: nothing is broken where only the disk is full."""
    if _is_full_disk(fault):
        return FULL_DISK_HINT
    if _is_damaged(fault):
        return DAMAGED_HINT
    return BROKEN_DISK_HINT if _is_broken_disk(fault) else otherwise
