"""A run's way to its sandbox: a prepared one if one fits, else one that the launcher makes now."""

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from hansa.node.isolation.launcher_protocol import Adopt, Kill, Message, Refused, Start, Started
from hansa.node.runs.executor_clock import TICK_S, ExecutorSettings
from hansa.node.runs.executor_end import Over
from hansa.node.runs.executor_intake import Blobs
from hansa.node.runs.executor_launcher import close_all
from hansa.node.runs.run_order import RunOrder, spec_of
from hansa.node.runs.warm_pool import PreparedSandbox, WarmPool
from hansa.scheduler.run import RunEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a run's supervision reaches of the world.

    Attributes:
        tell: takes its events, without blocking.
        blobs: where states and files go.
        now_ms: the daemon's clock.
        ask: tells the launcher something.
        launcher_there: whether there is a launcher.
        settings: how patient it is.
        pool: sandboxes that are prepared.
    """

    tell: Callable[[RunEvent], None]
    blobs: Blobs
    now_ms: Callable[[], int]
    ask: Callable[[Message], Awaitable[None]]
    launcher_there: Callable[[], bool]
    settings: ExecutorSettings
    pool: WarmPool


class SandboxRequest:
    """What is asked of the launcher for one run, and what it answers."""

    def __init__(self, order: RunOrder, around: Surroundings, gone: trio.Event) -> None:
        """``gone`` is set when the launcher, or the sandbox, is not there any more."""
        self._order = order
        self._around = around
        self._gone = gone
        self._reply, self._replies = trio.open_memory_channel[tuple[Message, list[int]]](8)

    def answer(self, message: Message, descriptors: list[int]) -> None:
        """The launcher says that it has made the sandbox, or why not."""
        self._reply.send_nowait((message, descriptors))

    async def get(self) -> trio.SocketStream:
        """A prepared sandbox if there is one that fits, else one that is made now."""
        prepared = await self._around.pool.take(self._order)
        if prepared is not None:
            try:
                begun = await self._begin_in(prepared)
            except BaseException:
                prepared.close()
                raise
            if begun is not None:
                return begun
            prepared.close()  # what was begun with it cannot be undone; the launcher ends it
        await self._around.pool.make_room()
        await self._around.ask(Start(run=self._order.run, spec=spec_of(self._order)))
        message, descriptors = await self._await_reply()
        if isinstance(message, Refused):
            raise Over("refused", f"no sandbox: {message.reason}")
        if not descriptors:
            # Where this process has as many as it may have, the kernel drops what comes with a message.
            await self._around.ask(Kill(run=self._order.run))
            raise Over("refused", "no sandbox: the provider's node has too many files open")
        stream = socket.socket(fileno=descriptors[0])
        stream.setblocking(False)
        return trio.SocketStream(trio.socket.from_stdlib_socket(stream))

    async def _begin_in(self, prepared: PreparedSandbox) -> trio.SocketStream | None:
        """Make a prepared sandbox this run's; ``None`` if that cannot be done."""
        pool = self._around.pool
        await pool.make_room()
        await self._around.ask(Adopt(run=self._order.run, prepared=prepared.name, spec=spec_of(self._order)))
        message, descriptors = await self._await_reply()
        close_all(descriptors)
        if isinstance(message, Started):
            pool.begun += 1
            return prepared.stream
        if isinstance(message, Refused):
            pool.complain(f"a prepared sandbox could not be used: {message.reason}")
        return None

    async def _await_reply(self) -> tuple[Message, list[int]]:
        """The launcher's answer to `Start`, unless the launcher goes first."""
        with trio.move_on_after(self._around.settings.ready_s):
            while not self._gone.is_set():
                with trio.move_on_after(TICK_S):
                    return await self._replies.receive()
        raise Over("sandbox-lost", "the launcher did not answer")

    async def turn_away_late_answers(self) -> None:
        """A sandbox that comes when its run is over is of no use."""
        while self._replies.statistics().current_buffer_used:
            _message, descriptors = self._replies.receive_nowait()
            close_all(descriptors)
            with trio.CancelScope(shield=True):
                await self._around.ask(Kill(run=self._order.run))
