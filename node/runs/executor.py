"""Runs jobs: asks the launcher for sandboxes, has each run supervised, and tells the engine what happens.

States, checkpoints and files go into the blob store as they arrive, and the engine is told their names.
"""

import time
from collections.abc import Callable, Mapping

import trio

from hansa.node.devices.gpu_users import Told
from hansa.node.isolation.launcher_link import Launch, start_launcher
from hansa.node.isolation.launcher_protocol import NO_PROCESS, Count, Counted, Kill, Message, Started
from hansa.node.runs.executor_clock import ExecutorSettings
from hansa.node.runs.executor_intake import Blobs
from hansa.node.runs.executor_launcher import LauncherService, Starting, close_all
from hansa.node.runs.executor_run import Supervision
from hansa.node.runs.executor_sandbox import Surroundings
from hansa.node.runs.run_order import RunOrder
from hansa.node.runs.run_shell import RunShell, ShellRefused
from hansa.node.runs.warm_pool import WarmPool
from hansa.proto.blob import BlobRef
from hansa.scheduler.run import RunEvent

COUNT_EVERY_S = 1.0


class Executor:
    """Starts and supervises the runs of one daemon.

    Use it as a task: ``await nursery.start(executor.serve)``. Cancelling that task ends every sandbox.
    """

    def __init__(
        self,
        *,
        tell: Callable[[RunEvent], None],
        blobs: Blobs,
        now_ms: Callable[[], int],
        launch: Launch = start_launcher,
        settings: ExecutorSettings | None = None,
        warm: int = 0,
        memory_bytes: int = 0,
        say: Callable[[str], None] = lambda _words: None,
    ) -> None:
        """Tell events to ``tell``, which must not block; ``now_ms`` is the daemon's clock.

        ``warm`` sandboxes are kept prepared, as far as ``memory_bytes`` suffices for them beside all runs; ``say``
        takes words for the owner.

        ``launch`` gives a launcher's socket, and its process if it is a child of ours. It is called again if the
        launcher dies, from the main thread.
        """
        self._tell = tell
        self._runs: dict[bytes, Supervision] = {}
        self._pids: dict[bytes, int] = {}
        self._told: dict[bytes, Told] = {}
        self._launcher = LauncherService(launch, hear=self._hear, lost=self._lose)
        self.pool = WarmPool(
            count=warm,
            memory_bytes=memory_bytes,
            ask=self._launcher.ask,
            launcher_there=lambda: self._launcher.connected,
            sold_bytes=lambda: sum(one.memory_bytes for one in self._runs.values()),
            say=say,
        )
        self._around = Surroundings(
            tell=tell,
            blobs=blobs,
            now_ms=now_ms,
            ask=self._launcher.ask,
            launcher_there=lambda: self._launcher.connected,
            settings=settings or ExecutorSettings(),
            pool=self.pool,
        )
        self._nursery: trio.Nursery | None = None

    @property
    def running(self) -> frozenset[bytes]:
        """The runs that have not ended."""
        return frozenset(self._runs)

    @property
    def pids(self) -> Mapping[bytes, int]:
        """The outermost process of each run that has a sandbox, as the machine sees it whose launcher this is."""
        return dict(self._pids)

    @property
    def told(self) -> Mapping[bytes, Told]:
        """What the launcher told last of what each run uses, since this process may not be allowed to see it."""
        return dict(self._told)

    async def serve(self, task_status: Starting = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a launcher and supervise runs until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.pool.serve)
            nursery.start_soon(self._keep_counting)
            try:
                await self._launcher.serve(task_status)
            finally:
                self._nursery = None

    async def start(self, order: RunOrder) -> None:
        """Start a run. What comes of it, even a refusal, is told as events."""
        assert self._nursery is not None, "serve first"
        if order.run in self._runs:
            return  # orders are repeated after a restart
        self._runs[order.run] = supervision = Supervision(order, self._around)
        self._nursery.start_soon(self._supervise, order.run, supervision)

    async def stop(self, run: bytes, grace_ms: int) -> None:
        """Ask a run to end, and end it after the grace. A run that is not there needs no stopping."""
        if run in self._runs:
            await self._runs[run].stop(grace_ms)

    async def leave(self, run: bytes, grace_ms: int, reason: str) -> None:
        """Ask a run to end at its next checkpoint, and end it after the grace; the reason is its owner's.

        It ends as `RunFailed` of the kind `RECLAIMED`, or, if its job finishes meanwhile, as finished.
        """
        if run in self._runs:
            await self._runs[run].leave(grace_ms, reason)

    async def fail(self, run: bytes, kind: str, reason: str) -> None:
        """End a run at once that must not go on, for a reason that was seen outside its sandbox. It is not kept."""
        if run in self._runs:
            self._runs[run].fail(kind, reason)

    async def pause(self, run: bytes) -> None:
        """Let nothing of a run compute; its memory stays."""
        if run in self._runs:
            await self._runs[run].pause()

    async def resume(self, run: bytes) -> None:
        """Let it compute again."""
        if run in self._runs:
            await self._runs[run].resume()

    async def deliver_round(self, run: bytes, round_number: int, state: BlobRef) -> None:
        """Hand a run the result of a round; it takes any that is not older than the one it waits for.

        Raises:
            BlobMissing: the state is not in the store.
            SealBroken: it cannot be opened with the run's keys.
            ValueError: it is larger than the run's states may be.
        """
        if run in self._runs:
            await self._runs[run].deliver_round(round_number, state)

    async def open_shell(self, run: bytes, argv: tuple[str, ...], columns: int, rows: int) -> RunShell:
        """Start a program at a terminal in a run's sandbox, or a shell if ``argv`` is empty.

        It works while the run runs and while it is kept after a failure.

        Raises:
            ShellRefused: it cannot be had now; the text says why.
        """
        if run not in self._runs:
            raise ShellRefused("the run is not there, or has ended")
        return await self._runs[run].open_shell(argv, columns, rows)

    async def _supervise(self, run: bytes, supervision: Supervision) -> None:
        await supervision.supervise()
        del self._runs[run]
        self._pids.pop(run, None)
        self._told.pop(run, None)
        self._tell(supervision.last_event())

    async def _hear(self, message: Message, descriptors: list[int]) -> None:
        supervision = self._runs.get(message.run)
        if supervision is not None:
            if isinstance(message, Started) and message.pid != NO_PROCESS:
                self._pids[message.run] = message.pid
            elif isinstance(message, Counted):
                pids = frozenset(message.pids)
                self._told[message.run] = Told(at_s=time.monotonic(), pids=pids, cpu_ms=message.cpu_ms)
            supervision.hear(message, descriptors)
            return
        if self.pool.hear(message, descriptors):
            return
        close_all(descriptors)
        if isinstance(message, Started):
            await self._launcher.ask(Kill(run=message.run))  # it came too late to be of use

    async def _keep_counting(self) -> None:
        """Ask the launcher every second what the runs use."""
        while True:
            await trio.sleep(COUNT_EVERY_S)
            for run in list(self._pids):
                await self._launcher.ask(Count(run=run))

    def _lose(self) -> None:
        self.pool.lose()
        for supervision in self._runs.values():
            supervision.lose()
