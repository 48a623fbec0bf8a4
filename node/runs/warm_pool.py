"""Sandboxes that are prepared before anybody needs one, so that a run need not wait for its Ray.

A prepared sandbox is made like any other and holds nothing of any job: the runner is up in it, and Ray with workers
that know nothing yet. It is frozen, so it costs no processor time, and looked at now and then; one that is not as it
should be is ended and another made. A run that fits takes one, and it is nobody's before and nobody else's after:
whether it ends well or the run goes cold after all, a sandbox is never given twice.

What fits: a run of the shape that the last one had (workers, threads, /dev/shm) without devices, environment, image or
way out, since these are decided while a sandbox is made. Its limits, disks, code and inputs come with it.

No lease may fail for the sake of what is merely prepared. It is made only while all runs, at their limits, and it fit
into most of the memory; it goes when a run comes that needs the room; and the kernel ends it before any run.
"""

import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from hansa.node.isolation import launcher_protocol
from hansa.node.isolation.launcher_protocol import Ended, Kill, Pause, Refused, Resume, Start
from hansa.node.isolation.sandbox import SandboxSpec
from hansa.node.runs.executor_launcher import close_all
from hansa.node.runs.run_order import RunOrder, gpu_count
from hansa.proto import frames
from hansa.proto.errors import ProtocolError
from hansa.proto.market_documents import TIER_SANDBOX

PREPARED_BYTES: Final = 512 << 20
PREPARED_BYTES_PER_WORKER: Final = 128 << 20
MOST_OF_MEMORY: Final = (9, 10)
PROCESSES: Final = 4096
SCRATCH_BYTES: Final = 1 << 20
CPU_MILLIS: Final = 2000
PREPARE_S: Final = 300.0
"""It is given less processor time than what is paid for, so it may take long."""
LOOK_S: Final = 60.0
ANSWER_S: Final = 10.0
AGAIN_S: Final = 5.0
LONGEST_AGAIN_S: Final = 600.0
RECEIVE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What has to be known of a run while its sandbox is prepared."""

    workers: int = 1
    threads: int = 1
    shared_memory_bytes: int = 192 << 20

    @property
    def memory_bytes(self) -> int:
        """What a sandbox of this shape may use until it is a run's."""
        return PREPARED_BYTES + PREPARED_BYTES_PER_WORKER * self.workers + self.shared_memory_bytes // 2


def threads_of(order: RunOrder) -> int:
    """How many threads one worker of a run should compute with."""
    return max(1, order.limits.cpu_millis // 1000 // order.workers)


def shape_of(order: RunOrder) -> Shape | None:
    """The shape of a run that could take a prepared sandbox; ``None`` for one that could not."""
    furnished = (order.environment, order.image, order.egress, *order.device_nodes)
    if order.tier != TIER_SANDBOX or gpu_count(order) or any(one is not None for one in furnished):
        return None
    return Shape(
        workers=order.workers,
        threads=threads_of(order),
        shared_memory_bytes=order.limits.shared_memory_bytes,
    )


@dataclass(slots=True, kw_only=True, eq=False)
class PreparedSandbox:
    """One that is being prepared, or is.

    Attributes:
        name: what the launcher knows it by.
        stream: to its runner.
        ended: set when nothing of it is left, or it was refused.
        standing: whether it could be taken now. Whoever unsets it is the only one to speak with its runner.
    """

    name: bytes
    shape: Shape
    stream: trio.SocketStream | None = None
    answered: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    reader: frames.FrameReader = field(default_factory=lambda: frames.FrameReader(from_runner=True))
    standing: bool = False

    async def ask(self, frame: Any, within_s: float) -> bool:
        """Say something to its runner; whether it answers, and nothing else, that it is prepared."""
        assert self.stream is not None, "it has been made"
        try:
            with trio.fail_after(within_s):
                await self.stream.send_all(frames.encode(frame))
                return isinstance(await self.next_frame(), frames.Prepared)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError):
            return False

    async def next_frame(self) -> Any:
        """The one frame that it says next; ``None`` if it says nothing any more, or more than one."""
        assert self.stream is not None, "it has been made"
        while data := await self.stream.receive_some(RECEIVE_BYTES):
            found = list(self.reader.feed(data))
            if found:
                return found[0] if len(found) == 1 else None
        return None

    def close(self) -> None:
        """Hang up."""
        if self.stream is not None:
            self.stream.socket.close()


class WarmPool:
    """Keeps so many sandboxes prepared, if there is the memory.

    Attributes:
        begun: how many runs began in one.
    """

    def __init__(
        self,
        *,
        count: int,
        memory_bytes: int,
        ask: Callable[[launcher_protocol.Message], Awaitable[None]],
        launcher_there: Callable[[], bool],
        sold_bytes: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        """Keep ``count`` of them.

        Args:
            count: how many.
            memory_bytes: what this machine has.
            ask: tells the launcher something.
            launcher_there: whether there is one.
            sold_bytes: what all runs that have not ended may use.
            say: takes words for the owner.
        """
        self._count = count
        self._memory_bytes = memory_bytes
        self._ask = ask
        self._launcher_there = launcher_there
        self._sold_bytes = sold_bytes
        self._say = say
        self._shape = Shape()
        self._held: dict[bytes, PreparedSandbox] = {}
        self._changed = trio.Event()
        self._why = ""
        self.begun = 0

    @property
    def standing(self) -> int:
        """How many could be taken now."""
        return sum(1 for one in self._held.values() if one.standing)

    async def serve(self) -> None:
        """Keep them until cancelled."""
        if self._count == 0:
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_after)
                await self._keep_preparing()
        finally:
            self.lose()

    async def _keep_preparing(self) -> None:
        again_s = AGAIN_S
        while True:
            changed = self._changed
            if not self._wants_one():
                with trio.move_on_after(AGAIN_S):
                    await changed.wait()
            elif await self._prepare():
                again_s = AGAIN_S
            else:
                await trio.sleep(again_s)  # what cannot be made now must not keep a core busy
                again_s = min(again_s * 2, LONGEST_AGAIN_S)

    async def take(self, order: RunOrder) -> PreparedSandbox | None:
        """A sandbox for a run, looked at a moment ago, which is the run's from now on; ``None`` if none fits."""
        shape = shape_of(order)
        if shape is None or self._count == 0:
            return None
        await self.expect(shape)
        while found := next((one for one in self._held.values() if one.standing and one.shape == shape), None):
            found.standing = False
            await self._ask(Resume(run=found.name))
            if await found.ask(frames.Look(), ANSWER_S) and not found.ended.is_set():
                self._forget(found.name)
                return found
            await self._end(found)
        return None

    async def expect(self, shape: Shape) -> None:
        """The next run will most likely be of this shape; the last one was."""
        if shape != self._shape:
            self._shape = shape
            for one in [one for one in self._held.values() if one.shape != shape]:
                if one.name in self._held:  # else it became a run's while another was ended
                    await self._end(one)

    def _forget(self, name: bytes) -> None:
        """It is none of these any more."""
        self._held.pop(name, None)
        self._wake()

    async def make_room(self) -> None:
        """Let prepared ones go as long as all runs at their limits and these do not fit."""
        for one in list(self._held.values()):
            if self._fits(0):
                return
            if one.name in self._held:  # else it became a run's while another was ended
                await self._end(one)

    def hear(self, message: launcher_protocol.Message, descriptors: list[int]) -> bool:
        """What the launcher says of a sandbox; whether it is one of these."""
        one = self._held.get(message.run)
        if one is None:
            return False
        if isinstance(message, launcher_protocol.Started) and one.stream is None and descriptors:
            line = socket.socket(fileno=descriptors[0])
            line.setblocking(False)
            one.stream = trio.SocketStream(trio.socket.from_stdlib_socket(line))
            close_all(descriptors[1:])
        else:
            close_all(descriptors)
        if isinstance(message, Ended | Refused):
            if isinstance(message, Refused):
                self.complain(f"no sandbox could be prepared: {message.reason}")
            one.ended.set()
            one.standing = False
            one.close()
            self._forget(message.run)
        one.answered.set()
        return True

    def lose(self) -> None:
        """The launcher has died, and they with it."""
        for one in list(self._held.values()):
            one.ended.set()
            one.answered.set()
            one.standing = False
            one.close()
            self._forget(one.name)

    def _wants_one(self) -> bool:
        return self._launcher_there() and len(self._held) < self._count and self._fits(self._shape.memory_bytes)

    def _fits(self, more_bytes: int) -> bool:
        held_bytes = sum(one.shape.memory_bytes for one in self._held.values())
        most, of = MOST_OF_MEMORY
        return self._sold_bytes() + held_bytes + more_bytes <= self._memory_bytes * most // of

    async def _prepare(self) -> bool:
        """Make one; whether that went well."""
        shape = self._shape
        one = PreparedSandbox(name=secrets.token_bytes(16), shape=shape)
        self._held[one.name] = one
        spec = SandboxSpec(
            program="hansa.worker.runner",
            code=None,
            inputs=None,
            memory_bytes=shape.memory_bytes,
            shared_memory_bytes=shape.shared_memory_bytes,
            cpu_millis=CPU_MILLIS,
            processes=PROCESSES,
            scratch_bytes=SCRATCH_BYTES,
            output_bytes=SCRATCH_BYTES,
            gpu_minors=(),
        )
        await self._ask(Start(run=one.name, spec=spec))
        with trio.move_on_after(PREPARE_S):
            await one.answered.wait()
            if one.stream is not None and await self._bring_up(one) and shape == self._shape:
                await self._ask(Pause(run=one.name))
                one.standing = not one.ended.is_set()
                self._why = ""
                return True
        await self._end(one)
        return False

    async def _bring_up(self, one: PreparedSandbox) -> bool:
        """Have the runner start Ray and its workers."""
        try:
            ready = await one.next_frame()
        except (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError):
            return False
        wanted = frames.Prepare(workers=one.shape.workers, gpus=0, threads=one.shape.threads)
        return ready == frames.Ready() and await one.ask(wanted, PREPARE_S)

    async def _look_after(self) -> None:
        """Look at each from time to time: what is frozen cannot say that something in it has died."""
        while True:
            await trio.sleep(LOOK_S)
            for one in [one for one in self._held.values() if one.standing]:
                if not one.standing:
                    continue  # it became a run's, or ended, while another was looked at
                one.standing = False  # nobody takes it meanwhile
                await self._ask(Resume(run=one.name))
                well = await one.ask(frames.Look(), ANSWER_S)
                if well:
                    await self._ask(Pause(run=one.name))
                one.standing = well and not one.ended.is_set()
                if not well:
                    await self._end(one)

    async def _end(self, one: PreparedSandbox) -> None:
        one.standing = False
        one.close()
        one.answered.set()
        self._forget(one.name)
        await self._ask(Kill(run=one.name))

    def complain(self, why: str) -> None:
        """Tell the owner, once for each reason: it is tried again and again."""
        if why != self._why:
            self._say(why)
        self._why = why

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
