"""What befell tasks that ran side by side: a group of exceptions, however many nurseries deep, and what it comes to."""

import trio


def leaf(error: BaseException) -> BaseException:
    """The first exception in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def one_fault(group: BaseExceptionGroup[BaseException], kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The first exception of these kinds in a group that holds nothing else; None where it holds something else.

    Tasks that were cancelled count for nothing. Where a deadline passes in the very turn in which one task fails, trio
    leaves the others' cancellation in the group, and whoever looked for the fault alone would take the group for one
    that nobody knows. The fault may be raised in its place: whoever cancelled us does so again wherever we wait next.
    """
    known, rest = group.split(kinds)
    if known is None or (rest is not None and rest.split(trio.Cancelled)[1] is not None):
        return None
    return leaf(known)
