"""A protocol that answers with what it was asked."""

import trio

from hansa.node.network.net import Context

ECHO = "/hansa/echo/1"


async def echo(_context: Context, data: bytes) -> bytes:
    """What was asked."""
    await trio.lowlevel.checkpoint()
    return data
