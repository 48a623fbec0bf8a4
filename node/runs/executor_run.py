"""One run from its sandbox to its last event: what its runner says is taken, what it is told is sent, its limits held.

Everything a runner says is a stranger's word. So the limits are held here: the wall clock, the bytes of states, outputs
and logs, the rate of frames, heartbeats and progress.
"""

from typing import Any, Final

import trio

from hansa.node.fault_groups import one_fault
from hansa.node.isolation.launcher_protocol import (
    Count,
    Counted,
    Ended,
    Kill,
    Message,
    Pause,
    Resume,
)
from hansa.node.runs.executor_clock import TICK_S, RunClock
from hansa.node.runs.executor_end import (
    OF_THE_JOB,
    Circumstances,
    Over,
    clipped_reason,
    last_event,
    out_of_memory,
    over_of,
    reclaimed,
)
from hansa.node.runs.executor_intake import Blobs, Header, Intake, Stored
from hansa.node.runs.executor_launcher import KILL_WAIT_S
from hansa.node.runs.executor_line import RunnerLine
from hansa.node.runs.executor_news import RunNewsDesk
from hansa.node.runs.executor_sandbox import SandboxRequest, Surroundings
from hansa.node.runs.run_order import RunOrder, gpu_count, open_to_readers
from hansa.node.runs.run_shell import RunShell, RunShells, ShellRefused
from hansa.node.runs.warm_pool import threads_of
from hansa.node.storage.blob_shelf import BlobMissing
from hansa.node.storage.disk_faults import in_words
from hansa.node.storage.sealed_blobs import SealedBlobs
from hansa.node.storage.sealing import SealBroken
from hansa.proto import frames
from hansa.proto.blob import BlobRef
from hansa.proto.errors import ProtocolError, TooLarge
from hansa.proto.sealed import plain_size_bytes
from hansa.scheduler.run import (
    RunCheckpointed,
    RunEvent,
    RunKept,
    RunLogged,
    RunOutput,
    RunPaused,
    RunResumed,
    RunStarted,
    RunSynced,
)

MOST_FILES: Final = 1000
CHECKPOINT_PAUSE_S: Final = 1.0
COUNT_S: Final = 2.0
FRAMES_PER_S: Final = 2000
RECEIVE_BYTES: Final = 256 << 10


class Supervision:
    """A run that has not ended, and everything that may be asked of it."""

    def __init__(self, order: RunOrder, around: Surroundings) -> None:
        """Nothing has been done yet."""
        self._order = order
        self._around = around
        self._blobs: Blobs = around.blobs if order.keys is None else SealedBlobs(around.blobs, order.keys)
        self._clock = RunClock(order.limits, around.settings, trio.current_time())
        self._news = RunNewsDesk(order.run, log_bytes=order.limits.log_bytes, tell=self._tell, now_ms=around.now_ms)
        self._line = RunnerLine()
        self._shells = RunShells(self._line.send)
        self._gone = trio.Event()
        self._request = SandboxRequest(order, around, self._gone)
        self._ended: Ended | None = None
        self._counted: Counted | None = None
        self._count_came = trio.Event()
        self._stream: trio.SocketStream | None = None
        self._over = Over("sandbox-lost")
        self._kept: Over | None = None
        self._ended_from_outside: Over | None = None
        self._awaited_round: int | None = None
        self._unacknowledged = False
        self._output_left = order.limits.output_bytes
        self._files = 0
        self._told_progress_s = -1e9

    @property
    def memory_bytes(self) -> int:
        """What it may use."""
        return self._order.limits.memory_bytes

    # What may be asked of it.

    async def stop(self, grace_ms: int) -> None:
        """Ask it to end, and end it after the grace. What is kept is looked at no longer."""
        self._clock.stop_by(trio.current_time() + (0 if self._kept else grace_ms / 1000))
        if self._clock.paused and grace_ms > 0:
            await self.resume()  # it cannot save anything while it does not compute
        self._line.post(frames.Stop(grace_ms=grace_ms))

    async def leave(self, grace_ms: int, reason: str) -> None:
        """Ask it to end at its next checkpoint, and end it after the grace. One that is paused stays so."""
        self._clock.leave_by(trio.current_time() + (0 if self._kept else grace_ms / 1000), reason)
        self._line.post(frames.Leave(grace_ms=grace_ms))

    def fail(self, kind: str, reason: str) -> None:
        """End it at once. What it has must be free again, so it is not kept to be looked at."""
        self._ended_from_outside = self._ended_from_outside or Over(kind, reason)

    async def pause(self) -> None:
        """Let nothing of it compute; its memory stays."""
        told, self._clock.paused = self._clock.paused, True
        # Also when it is known: the launcher forgets a pause of what it has not made yet.
        await self._around.ask(Pause(run=self._order.run))
        if not told:
            self._tell(RunPaused(run=self._order.run, at_ms=self._around.now_ms()))

    async def resume(self) -> None:
        """Let it compute again."""
        if self._clock.paused:
            await self._around.ask(Resume(run=self._order.run))
            self._clock.paused = False
            self._tell(RunResumed(run=self._order.run, at_ms=self._around.now_ms()))

    async def deliver_round(self, round_number: int, state: BlobRef) -> None:
        """Hand it the result of a round; it takes any that is not older than the one it waits for.

        Raises:
            BlobMissing: the state is not in the store.
            SealBroken: it cannot be opened with this run's keys.
            ValueError: it is larger than this run's states may be.
        """
        size_bytes = self._size_bytes(state)
        if size_bytes > self._order.limits.state_bytes:
            raise ValueError(f"a state of {size_bytes} bytes, and this run's are smaller")
        file = await trio.to_thread.run_sync(self._blobs.reader, state)
        if self._awaited_round is not None and round_number >= self._awaited_round:
            self._awaited_round = None
        self._line.post_round(frames.RoundResult(round=round_number, size_bytes=size_bytes), file)

    async def open_shell(self, argv: tuple[str, ...], columns: int, rows: int) -> RunShell:
        """Start a program at a terminal inside. Raises ``ShellRefused``."""
        if self._stream is None or self._gone.is_set():
            raise ShellRefused("the run's sandbox is not there yet, or no more")
        if self._clock.paused:
            raise ShellRefused("the run is paused, so nothing in it can be started")
        return await self._shells.open(argv, columns, rows)

    # What the launcher says.

    def hear(self, message: Message, descriptors: list[int]) -> None:
        """An answer to `Start`, or the sandbox's end, or what it used."""
        if isinstance(message, Ended):
            self._ended = message
            self._gone.set()
        elif isinstance(message, Counted):
            self._counted = message
            self._count_came.set()
        else:
            self._request.answer(message, descriptors)

    def lose(self) -> None:
        """The launcher has died, and its sandboxes with it."""
        self._gone.set()

    # Its life.

    async def supervise(self) -> None:
        """Live through it; its last event is told by whoever awaited this, with `last_event`."""
        try:
            self._over = await self._live_through()
            if self._stream is not None:
                await self._around.ask(Kill(run=self._order.run))
                with trio.move_on_after(KILL_WAIT_S):
                    await self._gone.wait()
        finally:
            self._line.close()
            self._shells.lose()
            if self._stream is not None:
                self._stream.socket.close()
            await self._request.turn_away_late_answers()
        self._news.flush()

    def last_event(self) -> RunEvent:
        """How it ended."""
        known = Circumstances(stopping=self._clock.stopping, kept=self._kept, ended=self._ended)
        return last_event(self._order, self._over, known, self._around.now_ms())

    async def _live_through(self) -> Over:
        """Everything up to the moment when the run is to be ended, and why."""
        intake = Intake(self._blobs, self._admit, self._order.checkpoint)
        try:
            begin = await self._furnish()
            self._line.post_first(*begin)
            assert self._stream is not None, "furnished"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_time)
                # Beside the clock: a sandbox that never reads must not hold us up for ever.
                nursery.start_soon(self._line.serve, self._stream)
                await self._listen(intake, nursery)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this run and no other
            return over_of(error)
        except BaseExceptionGroup as group:
            fault = one_fault(group, (Exception,))
            if not isinstance(fault, Exception):
                raise
            return over_of(fault)  # in the turn in which everybody is told to end
        finally:
            await intake.drop()
        raise AssertionError("a run is only over by an exception")

    async def _furnish(self) -> tuple[frames.Begin, Any]:
        """Have the sandbox made; gives what it is to be told first, and the checkpoint that goes with it."""
        order, limits = self._order, self._order.limits
        file, size_bytes = None, 0
        if order.workers < 1:
            # No award buys such a run today; a lease that was journaled before that was looked at may.
            raise Over("bad-entry", "the job has no workers")
        try:
            for directory in filter(None, (order.code, order.inputs)):
                await trio.to_thread.run_sync(open_to_readers, directory)
        except OSError as error:
            raise Over("refused", f"its files cannot be laid out: {in_words(error)}") from error
        if not self._around.launcher_there():
            raise Over("refused", "the launcher is not there")
        if order.checkpoint is not None:
            size_bytes = self._size_bytes(order.checkpoint)
            if size_bytes > limits.state_bytes:
                raise Over("refused", f"its checkpoint of {size_bytes} bytes is over the limit of its states")
            try:
                file = await trio.to_thread.run_sync(self._blobs.reader, order.checkpoint)
            except BlobMissing as error:
                raise Over("refused", f"its checkpoint cannot be had: {error}") from error
            except SealBroken as error:
                raise Over("refused", f"its checkpoint cannot be opened: {error}") from error
            except OSError as error:
                raise Over("refused", f"its checkpoint cannot be read: {in_words(error)}") from error
        try:
            self._stream = await self._request.get()
            if self._clock.paused:
                await self._around.ask(Pause(run=self._order.run))
        except BaseException:
            if file is not None:
                file.close()
            raise
        begin = frames.Begin(
            entry=order.entry,
            shard=order.shard,
            shards=order.shards,
            workers=order.workers,
            parameters=tuple((parameter.name, parameter.value) for parameter in order.parameters),
            round=order.round,
            has_checkpoint=order.checkpoint is not None,
            size_bytes=size_bytes,
            state_bytes=limits.state_bytes,
            output_bytes=limits.output_bytes,
            threads=threads_of(order),
            gpus=gpu_count(order),
        )
        return begin, file

    def _size_bytes(self, blob: BlobRef) -> int:
        """What a runner gets or gives of a blob: what it holds, if it is sealed."""
        return blob.size_bytes if self._order.keys is None else plain_size_bytes(blob.size_bytes)

    async def _listen(self, intake: Intake, nursery: trio.Nursery) -> None:
        """Take the runner's frames until the run is over."""
        assert self._stream is not None, "furnished"
        reader = frames.FrameReader(from_runner=True)
        budget, refilled_s = float(FRAMES_PER_S), trio.current_time()
        while data := await self._stream.receive_some(RECEIVE_BYTES):
            self._clock.heard()
            for frame in reader.feed(data):
                budget -= 1
                complete = await intake.feed(frame)
                if isinstance(frame, frames.Output | frames.Chunk):
                    self._clock.delivered()
                if isinstance(complete, frames.Failed) and complete.kind == "worker-died" and self._kept is None:
                    await self._count()
                if complete is not None:
                    self._take(complete, nursery)
            now_s = trio.current_time()
            budget = min(float(FRAMES_PER_S), budget + (now_s - refilled_s) * FRAMES_PER_S)
            refilled_s = now_s
            if budget < 0:  # whoever talks too much is listened to less; the socket fills up and the talker waits
                await trio.sleep(-budget / FRAMES_PER_S)
        raise Over("sandbox-lost", "the sandbox ended without a word")

    def _admit(self, header: Header) -> int:
        """How many bytes a header may bring, if it may come at all now."""
        match header:
            case frames.Output():
                if self._files >= MOST_FILES:
                    raise TooLarge("Output", f"more than {MOST_FILES} files")
                allowed_bytes = self._output_left
                self._files += 1
                self._output_left -= header.size_bytes
                return allowed_bytes
            case frames.Sync() if self._awaited_round is not None:
                raise ProtocolError("Sync", "came while the one before it was not answered")
            case frames.Checkpoint() if self._unacknowledged:
                raise ProtocolError("Checkpoint", "came before the last one was acknowledged")
        return self._order.limits.state_bytes

    def _take(self, frame: Any, nursery: trio.Nursery) -> None:
        """One frame that stands alone, or a header with all of its bytes in the store."""
        run, at_ms = self._order.run, self._around.now_ms()
        match frame:
            case frames.Started():
                if not self._clock.started:
                    self._clock.begin()
                    self._tell(RunStarted(run=run, at_ms=at_ms))
            case frames.Progress():
                self._clock.step = max(self._clock.step or 0, frame.step)
                self._news.took_progress(frame)
            case frames.Heartbeat():
                self._clock.beat(frame.progress, waiting=frame.waiting)
            case frames.Log():
                self._news.took_log(frame.data)
            case Stored(header=frames.Sync() as header, blob=state):
                self._awaited_round = header.round
                self._news.flush_progress()
                weight_ppm = max(1, round(header.weight * 1_000_000))
                self._tell(RunSynced(run=run, round=header.round, weight_ppm=weight_ppm, state=state, at_ms=at_ms))
            case Stored(header=frames.Checkpoint(round=number, step=step), blob=blob):
                self._unacknowledged = True
                self._news.flush_progress()
                self._tell(RunCheckpointed(run=run, round=number, step=step, checkpoint=blob, at_ms=at_ms))
                nursery.start_soon(self._acknowledge, number, step)
            case Stored(header=frames.Output(path=path), blob=blob):
                self._tell(RunOutput(run=run, path=path, blob=blob, at_ms=at_ms))
            case frames.ShellOutput() | frames.ShellCredit() | frames.ShellEnded():
                self._shells.take(frame)
            case frames.Finished() if self._kept is None:
                raise Over("finished")
            case frames.Left() if self._clock.leave_why is not None and self._kept is None:
                raise reclaimed(self._clock.leave_why)
            case frames.Failed() if self._kept is None:
                self._conclude(Over(frame.kind, frame.message))

    async def _count(self) -> None:
        """Have the launcher tell what the run has used, and whether it was out of memory; it may not know."""
        self._count_came = trio.Event()
        await self._around.ask(Count(run=self._order.run))
        with trio.move_on_after(COUNT_S):
            await self._count_came.wait()

    async def _acknowledge(self, round_number: int, step: int) -> None:
        """A job that checkpoints without pause would fill the disk; so the next is welcome a little later."""
        if self._clock.leave_why is None:
            await trio.sleep(CHECKPOINT_PAUSE_S)
        self._unacknowledged = False
        self._line.post(frames.CheckpointStored(round=round_number, step=step))

    def _conclude(self, over: Over) -> None:
        """The run has failed: it is kept for a while if its buyer wants that and it is the job's own failure."""
        clock, keep_ms = self._clock, self._order.limits.keep_failed_ms
        if over.kind == "worker-died" and self._counted is not None and self._counted.memory_kills > 0:
            over = out_of_memory(self._order)
        if keep_ms <= 0 or over.kind not in OF_THE_JOB or clock.stopping or clock.leave_why is not None:
            raise over
        self._news.flush()
        now_ms = self._around.now_ms()
        until_ms = now_ms + round(clock.keep_from(trio.current_time()) * 1000)
        reason = clipped_reason(over.reason)
        self._tell(RunKept(run=self._order.run, kind=over.kind, reason=reason, until_ms=until_ms, at_ms=now_ms))
        self._kept = over
        self._line.post(frames.Keep())

    async def _keep_time(self) -> None:
        """Hold the limits on time, and tell what is better told in pieces of a fitting size."""
        clock, settings = self._clock, self._around.settings
        while True:
            await trio.sleep(TICK_S)
            now_s = trio.current_time()
            clock.tick(now_s)
            if self._ended_from_outside is not None:
                raise self._ended_from_outside
            if self._gone.is_set():
                if self._ended is None:
                    raise Over("sandbox-lost", "the launcher died, and the sandbox with it")
                await trio.sleep(settings.last_words_s)  # what it still said is in the socket, and then its end
                raise Over("sandbox-lost", "the sandbox ended, and somebody else holds its socket")
            over = clock.end(now_s)
            if over is not None:
                self._conclude(over)
            self._news.flush_logs()
            if clock.spent_s - self._told_progress_s >= settings.progress_s and self._news.flush_progress():
                self._told_progress_s = clock.spent_s

    def _tell(self, event: RunEvent) -> None:
        """Tell an event. Of a run that is kept only what it prints and whether it is paused is news."""
        if self._kept is None or isinstance(event, RunLogged | RunPaused | RunResumed):
            self._around.tell(event)
