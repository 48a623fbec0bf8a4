"""Brings messages to accounts, in order, again and again until each is in the receiver's journal.

Nothing here is durable: after a crash the machines say again what is outstanding. Every account has a queue and, while
there is something in it, a task of its own, so one that is away delays nobody else.
"""

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import trio

from hansa.market.effects import Send, sealed
from hansa.node.directory import Directory, Stranger
from hansa.node.net import Net, NetError, Refused, TooBig
from hansa.proto.codec import encode
from hansa.proto.protocols import MARKET
from hansa.proto.signing import SigningKey

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 3.0
MOST_WAITING = 5_000
"""Messages to one account. Beyond this the oldest go: what mattered is said again after a restart."""
MOST_REFUSALS = 5
NO_ROOM = "busy"


class Outbox:
    """The queues."""

    def __init__(self, net: Net, directory: Directory, key: SigningKey, now_ms: Callable[[], int]) -> None:
        """``key`` signs what machines left unsigned."""
        self._net = net
        self._directory = directory
        self._key = key
        self._now_ms = now_ms
        self._queues: dict[bytes, list[Send]] = {}
        self._kicks: dict[bytes, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self.counters: Counter[str] = Counter()

    async def serve(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Bring messages until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep(math.inf)

    def put(self, send: Send) -> None:
        """Take a message over. One that replaces another takes its place in the queue."""
        assert self._nursery is not None, "serve first"
        queue = self._queues.get(send.to)
        if queue is None:
            queue = self._queues[send.to] = []
            self._nursery.start_soon(self._bring_all, send.to)
        if send.replaces:
            for index, waiting in enumerate(queue):
                # The first is on its way right now; its successor stands behind it.
                if index and waiting.replaces == send.replaces:
                    queue[index] = send
                    return
        queue.append(send)
        if len(queue) > MOST_WAITING:
            del queue[1]
            self.counters["outbox: queue over its limit"] += 1

    def kick(self, account: bytes) -> None:
        """The account's node is there: do not wait out the pause."""
        event = self._kicks.get(account)
        if event is not None:
            event.set()

    async def _bring_all(self, account: bytes) -> None:
        queue = self._queues[account]
        while queue:
            send = queue[0]
            if await self._bring(send):
                self.counters["outbox: delivered"] += 1
            queue.pop(0)
        del self._queues[account]

    async def _bring(self, send: Send) -> bool:
        """One message, until it is there, or pointless. Answers whether it is there."""
        data = encode(sealed(send.message, self._key))
        pause_s, refusals = FIRST_PAUSE_S, 0
        while self._now_ms() <= send.keep_until_ms:
            try:
                peer_id = await self._directory.reach(send.to)
                await self._net.request(peer_id, MARKET, data, max_response_bytes=1)
            except TooBig:
                self.counters["outbox: message over its limit"] += 1
                return False
            except Refused as fault:
                refusals += fault.why != NO_ROOM
                self.counters["outbox: refused"] += 1
                if refusals >= MOST_REFUSALS:
                    return False
            except (NetError, Stranger):
                self.counters["outbox: not reached"] += 1
            else:
                return True
            await self._pause(send.to, pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
        self.counters["outbox: out of date"] += 1
        return False

    async def _pause(self, account: bytes, pause_s: float) -> None:
        event = self._kicks[account] = trio.Event()
        # Jitter, so that many nodes that lost one peer do not all come back to it at once. Nothing secret is drawn.
        with trio.move_on_after(pause_s * random.uniform(0.7, 1.3)):  # noqa: S311
            await event.wait()
        del self._kicks[account]
