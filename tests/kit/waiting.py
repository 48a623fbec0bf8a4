"""Waiting for what is seen from outside only: another node's doing, a file, a log."""

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def until(condition: Callable[[], T], seconds: float = 60) -> T:
    """What the condition gives once it is true. Long by default: a test that will pass waits no longer than it must."""
    with trio.fail_after(seconds):
        while not (found := condition()):  # noqa: ASYNC110 - nothing tells when it is so
            await trio.sleep(0.01)
    return found
