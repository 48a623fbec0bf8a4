"""What a daemon looks like that strangers' bytes have not hurt."""

from hostile.stranger import a_stranger
from kit.peer_frames import framed

from hansa.node.daemon.daemon import Daemon
from hansa.proto.protocols import HELLO

OURS = (
    "handler_failed",
    "rpc_failed",
    "task_failed",
    "part_failed",
    "serve_failed",
    "validator_failed",
    "find_failed",
    "net.restarted",
)
"""Counters of exceptions that nobody thought of have one of these in their names."""


def fallen_over(daemon: Daemon) -> dict[str, int]:
    """What of ours raised something that it should not have."""
    return {reason: n for reason, n in daemon.counters().items() if n and any(mark in reason for mark in OURS)}


async def serves_the_honest(daemon: Daemon) -> bool:
    """Whether a newcomer gets an answer to its hello."""
    async with a_stranger(daemon.net.addrs()[0]) as honest:
        stream = await honest.say(HELLO, framed(HELLO, honest.hello))
        heard = await honest.await_ends([stream], 10)
        return b"Hello" in heard[stream]
