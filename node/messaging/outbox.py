"""Brings messages to accounts, in order, again and again until each is in the receiver's journal.

Nothing here is durable: after a crash the machines say again what is outstanding. Every account has a queue and, while
there is something in it, a task of its own, so one that is away delays nobody else. What a job printed has a queue
beside it: a job that talks without end must not keep its own receipts waiting.
"""

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import trio

from hansa.market.effects import Send, sealed
from hansa.node.messaging.directory import Directory, Stranger
from hansa.node.messaging.spoken import NotInOlder, Spoken
from hansa.node.network.net import Net, NetError, Refused, RemoteFault, TooBig
from hansa.proto.messages import CreditGranted, PaymentAcknowledged, RunLogSent, as_of
from hansa.proto.protocols import MARKET, OLDER_MARKET, number_of
from hansa.proto.signing import SigningKey

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 3.0
MOST_WAITING = 5_000
"""Messages in one queue. Beyond this those go that would be pointless soonest."""
MOST_REFUSALS = 5
MOST_FAULTS = 20
"""How often the other side may fail over one message. It may be in the middle of a restart; but what it can never take
must not stand before everything else for ever."""
NO_ROOM = "busy"
UNREACHED = "its node could not be reached in time"

Lane = tuple[bytes, str]
"""A queue: to which account, and for what: what jobs print, and debts, of which the other side takes only so many."""
PRINTED, DEBTS, REST = "printed", "debts", "rest"


class Outbox:
    """The queues."""

    def __init__(
        self,
        net: Net,
        directory: Directory,
        key: SigningKey,
        now_ms: Callable[[], int],
        lost: Callable[[Send, str], None] | None = None,
    ) -> None:
        """``key`` signs what machines left unsigned; ``lost`` is told what could not be brought, and why not."""
        self._lost = lost
        self._market = Spoken(net, (MARKET, OLDER_MARKET), now_ms)
        self._directory = directory
        self._key = key
        self._now_ms = now_ms
        self._queues: dict[Lane, list[Send]] = {}
        self._kicks: dict[Lane, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self.counters: Counter[str] = Counter()
        self.delivered = 0

    async def serve(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Bring messages until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep(math.inf)

    def put(self, send: Send) -> None:
        """Take a message over. One that replaces another takes its place in the queue."""
        assert self._nursery is not None, "serve first"
        lane = (send.to, _kind_of(send.message))
        queue = self._queues.get(lane)
        if queue is None:
            queue = self._queues[lane] = []
            self._nursery.start_soon(self._bring_all, lane)
        if send.replaces:
            for index, waiting in enumerate(queue):
                # The first is on its way right now; its successor stands behind it.
                if index and waiting.replaces == send.replaces:
                    queue[index] = send
                    return
        queue.append(send)
        if len(queue) > MOST_WAITING:
            del queue[min(range(1, len(queue)), key=lambda index: queue[index].keep_until_ms)]
            self.counters["outbox: queue over its limit"] += 1

    def kick(self, account: bytes) -> None:
        """The account's node is there: do not wait out the pause."""
        for kind in (PRINTED, DEBTS, REST):
            event = self._kicks.get((account, kind))
            if event is not None:
                event.set()

    async def _bring_all(self, lane: Lane) -> None:
        queue = self._queues[lane]
        while queue:
            why = await self._bring(queue[0], lane)
            self.delivered += not why
            send = queue.pop(0)
            if why and self._lost is not None:
                self._lost(send, why)
        del self._queues[lane]

    async def _bring(self, send: Send, lane: Lane) -> str:
        """One message, until it is there, or pointless. Answers why it is not there; nothing if it is."""
        why = UNREACHED
        message = sealed(send.message, self._key)
        pause_s, refusals, faults = FIRST_PAUSE_S, 0, 0
        while self._now_ms() <= send.keep_until_ms:
            try:
                peer_id = await self._directory.reach(send.to)
                await self._market.request(
                    peer_id, lambda protocol_id: as_of(message, number_of(protocol_id)), max_response_bytes=1
                )
            except NotInOlder:
                self.counters[f"outbox: an older node knows no {type(message).__name__}"] += 1
                return "its node is of an older version, which does not know this"
            except TooBig:
                self.counters["outbox: message over its limit"] += 1
                return "it is larger than its node takes"
            except Refused as fault:
                refusals += not fault.why.startswith(NO_ROOM)
                self.counters["outbox: refused"] += 1
                why = f"its node refused to take it: {fault.why}"
                if refusals >= MOST_REFUSALS:
                    return why
            except RemoteFault:
                faults += 1
                self.counters["outbox: not taken"] += 1
                why = "its node failed over it"
                if faults >= MOST_FAULTS:
                    return why
            except (NetError, Stranger):
                self.counters["outbox: not reached"] += 1
                why = UNREACHED
            else:
                return ""
            await self._pause(lane, pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
        self.counters["outbox: out of date"] += 1
        return why

    async def _pause(self, lane: Lane, pause_s: float) -> None:
        event = self._kicks[lane] = trio.Event()
        # Jitter, so that many nodes that lost one peer do not all come back to it at once. Nothing secret is drawn.
        with trio.move_on_after(pause_s * random.uniform(0.7, 1.3)):  # noqa: S311
            await event.wait()
        del self._kicks[lane]


def _kind_of(message: Any) -> str:
    """Which queue a message stands in: many payments recorded at once keep no voucher and no stop waiting."""
    if isinstance(message, RunLogSent):
        return PRINTED
    return DEBTS if isinstance(message, CreditGranted | PaymentAcknowledged) else REST
