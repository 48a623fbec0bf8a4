"""Asking the router of a home network to forward our port (UPnP), in a process of its own.

The library that speaks to routers is C, reads what any device of the network sends, and can hang: none of that is for
the daemon. The process says one line of JSON; whatever else happens means that nothing is forwarded.
"""

import contextlib
import ipaddress
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import trio

from hansa.proto.egress import is_public

PATIENCE_S = 20.0
WITHDRAW_S = 5.0
"""Stopping waits no longer than this for a router, which may be gone; what it still forwards ends within the hour."""
LARGEST_ANSWER_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarding:
    """What came of asking.

    Attributes:
        host: the router's outside as it says itself, empty if nothing is forwarded.
        port: the outside port, 0 if nothing is forwarded.
        says: what happened, in words for the operator.
    """

    host: str = ""
    port: int = 0
    says: str


async def forward(port: int, interface: str = "") -> Forwarding:
    """Ask for a port. ``interface`` is the address to ask from; empty lets the system choose."""
    try:
        with trio.fail_after(PATIENCE_S):
            said = await _ask("forward", str(port), interface)
    except trio.TooSlowError:
        return Forwarding(says="the router did not answer in time")
    except OSError:
        return Forwarding(says="the process that asks routers cannot be started")
    return judge(said)


async def withdraw(outside: int, port: int, interface: str = "") -> bool:
    """Have the router forward ``outside`` no longer, if it is still to our ``port``. Whether it said that it does not.

    Returns in time whatever the router does, also where everything else is being cancelled.
    """
    withdrawn = False
    with (
        trio.CancelScope(shield=True),
        trio.move_on_after(WITHDRAW_S),
        contextlib.suppress(OSError, ValueError, KeyError, TypeError),
    ):
        said = await _ask("withdraw", str(outside), str(port), interface)
        withdrawn = json.loads(said)["withdrawn"] is True
    return withdrawn


async def _ask(*words: str) -> bytes:
    """What the process says. Raises ``OSError`` where it cannot be had, never a group of them, which hides its kind."""
    try:
        return await _said_by_process(*words)
    except BaseExceptionGroup as group:
        faults, rest = group.split(OSError)
        if rest is not None:
            # Somebody cancels us, say: that is for those who did, and without what their scopes would let through.
            raise rest from None
        raise OSError(str(faults)) from group


async def _said_by_process(*words: str) -> bytes:
    command = [sys.executable, "-P", "-m", "hansa.node.network.upnp_process", *words]
    run = partial(trio.run_process, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=b"", check=False, cwd="/")
    said = b""
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(run, command)
        assert process.stdout is not None
        while len(said) <= LARGEST_ANSWER_BYTES:
            part = await process.stdout.receive_some(LARGEST_ANSWER_BYTES)
            if not part:
                break
            said += part
        else:
            # Not what it was written to say: whatever it is now, it is ended.
            nursery.cancel_scope.cancel()
    return said[:LARGEST_ANSWER_BYTES]


def judge(said: bytes) -> Forwarding:
    """What the process said. A router whose outside is not public is behind another one."""
    try:
        answer = json.loads(said)
        host, port, why = str(answer["host"]), int(answer["port"]), str(answer["why"])[:200]
        if not port:
            return Forwarding(says=why)
        outside = ipaddress.ip_address(host)
    except (ValueError, KeyError, TypeError):
        return Forwarding(says="no router that can be asked was found")
    if not 0 < port < 65536:
        return Forwarding(says="the router names a port that is none")
    if not is_public(outside):
        return Forwarding(says=f"the router forwards port {port}, but is itself behind another one ({host})")
    return Forwarding(host=host, port=port, says=f"the router forwards {host} port {port}")
