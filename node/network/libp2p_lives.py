"""Lives of the library's parts: what falls is made anew, after a rest that grows from fall to fall."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from multiaddr import Multiaddr

from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_stack import Stack

FIRST_REST_S = 0.2
LONGEST_REST_S = 30.0
SOUND_S = 60.0
"""A life that lasted so long was no part of a row of falls."""

Part = Callable[[Stack], Awaitable[None]]
"""Something that runs beside the host, once for each life of it."""


class Lives:
    """The life that is now, those that were, and what runs in each of them."""

    def __init__(
        self,
        build: Callable[[], Stack],
        parts: Sequence[Part],
        faults: Faults,
        *,
        begin: Callable[[Stack], None],
        fell: Callable[[], None],
    ) -> None:
        """Build the first; it does not run yet.

        Args:
            build: makes the library's parts, wired up.
            parts: what runs beside them in every life.
            faults: where falls are counted.
            begin: told of each life that has begun.
            fell: told of each that has fallen.
        """
        self._build, self._parts, self._faults = build, list(parts), faults
        self._begin, self._on_fall = begin, fell
        self.restarts = 0
        self.stack = build()

    async def live(self, listen: list[Multiaddr], *, task_status: Any) -> None:
        """Run the library's parts, and others like them when they have fallen."""
        rest = _Rest()
        is_first = True
        while True:
            rest.began()
            try:
                async with self.stack.running(listen):
                    self._begin(self.stack)
                    for part in self._parts:
                        self.stack.soon(self._guarded, part)
                    if is_first:
                        task_status.started()
                        is_first = False
                    await trio.sleep_forever()
            except BaseExceptionGroup as group:
                faults, others = group.split(Exception)
                if others is not None:
                    # We are being stopped; what broke over it is of no interest any more.
                    raise others from None
                if is_first or faults is None:
                    raise
                self._fell(faults)
            except Exception as fault:
                if is_first:
                    raise
                self._fell(fault)
            await rest.take()
            self.stack = self._build()

    def _fell(self, fault: Exception) -> None:
        """Nothing that a peer does may get here, and if something does, it costs connections and nothing else."""
        self.restarts += 1
        self._faults.report("net.restarted", fault)
        self._on_fall()

    def attach(self, part: Part) -> None:
        """Have something run beside the host in this life of it and in those to come."""
        self._parts.append(part)
        self.stack.soon(self._guarded, part)

    async def _guarded(self, part: Part) -> None:
        """Run a part of the network, and again after a pause when it has failed: it must end neither us nor itself."""
        stack, rest = self.stack, _Rest()
        while True:
            rest.began()
            try:
                await part(stack)
            except Exception as fault:  # noqa: BLE001  # whatever a peer provoked in it
                self._faults.report(f"net.part_failed {getattr(part, '__qualname__', 'a part')}", fault)
            else:
                return
            await rest.take()


class _Rest:
    """Between a fall and the next try: longer each time, and short again after one that lasted."""

    def __init__(self) -> None:
        self._next_s, self._began = FIRST_REST_S, 0.0

    def began(self) -> None:
        self._began = trio.current_time()

    async def take(self) -> None:
        if trio.current_time() - self._began > SOUND_S:
            self._next_s = FIRST_REST_S
        await trio.sleep(self._next_s)
        self._next_s = min(LONGEST_REST_S, 2 * self._next_s)
