"""A protocol that answers with what it was asked, and waiting for what another node did."""

from collections.abc import Callable
from typing import TypeVar

import trio

from hansa.node.network.net import Context

ECHO = "/hansa/echo/1"
T = TypeVar("T")


async def echo(_context: Context, data: bytes) -> bytes:
    """What was asked."""
    await trio.lowlevel.checkpoint()
    return data


async def until(condition: Callable[[], T], seconds: float = 15) -> T:
    """What the condition gives once it is true: what another node did is seen from outside only."""
    with trio.fail_after(seconds):
        while not (found := condition()):  # noqa: ASYNC110
            await trio.sleep(0.01)
    return found
