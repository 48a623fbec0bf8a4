"""Runs jobs: asks the launcher for sandboxes, speaks with the runners in them, and tells the engine what happens.

Everything a runner says is a stranger's word. So the limits are held here: the wall clock, the bytes of states, outputs
and logs, the rate of frames, heartbeats and progress. States, checkpoints and files go into the blob store as they
arrive, and the engine is told their names.
"""

import codecs
import contextlib
import os
import socket
import subprocess
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio

from hansa.node import launcher_protocol
from hansa.node.blobs import BlobMissing, NoRoom
from hansa.node.launcher import Launch, start_launcher
from hansa.node.launcher_protocol import Ended, Kill, Message, Pause, Refused, Resume, Start, Started
from hansa.node.run_order import RunLimits, RunOrder, open_to_readers, spec_of
from hansa.proto import frames
from hansa.proto.blob import BlobRef
from hansa.proto.errors import ProtocolError, TooLarge
from hansa.scheduler.run import (
    RunCheckpointed,
    RunEvent,
    RunFailed,
    RunFinished,
    RunLogged,
    RunOutput,
    RunPaused,
    RunProgressed,
    RunResumed,
    RunStarted,
    RunStopped,
    RunSynced,
)

TICK_S: Final = 0.1
MOST_FILES: Final = 1000
LOG_PIECE_CHARS: Final = 4096
LARGEST_REASON_CHARS: Final = 4000
CHECKPOINT_PAUSE_S: Final = 1.0
FRAMES_PER_S: Final = 2000
KILL_WAIT_S: Final = 20.0


class Blobs(Protocol):
    """What the executor needs of the blob store. Called in worker threads, since files may be large."""

    def put_bytes(self, data: bytes) -> BlobRef:
        """Keep these bytes."""

    def read_bytes(self, ref: BlobRef, limit: int) -> bytes:
        """The bytes of a blob that is not longer than ``limit``."""


class Starting(Protocol):
    """trio's task status, as far as it is used here (the name that trio gives it is not in every set of stubs)."""

    def started(self) -> None:
        """The task is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSettings:
    """How patient the executor is.

    Attributes:
        ready_s: from the start of a sandbox to its first frame.
        silence_s: between two frames; a runner sends one every second whatever the job does.
        last_words_s: from a sandbox's end to the end of what it said. Whoever still holds its socket then is nobody
            to wait for.
        progress_s: at most one progress event of a run in this time, since each is written to the journal.
    """

    ready_s: float = 60.0
    silence_s: float = 60.0
    last_words_s: float = 10.0
    progress_s: float = 0.1


class Over(Exception):
    """A run has come to its end.

    Attributes:
        event: makes the last event about it, given the time.
    """

    def __init__(self, kind: str, reason: str = "") -> None:
        """Keep how it ended: ``"finished"`` or a kind of failure with its reason."""
        super().__init__(kind)
        self.kind = kind
        self.reason = reason


@dataclass(slots=True, kw_only=True, eq=False)
class _Live:
    """A run that has not ended."""

    order: RunOrder
    reply: trio.MemorySendChannel[tuple[Message, list[int]]]
    replies: trio.MemoryReceiveChannel[tuple[Message, list[int]]]
    gone: trio.Event = field(default_factory=trio.Event)
    ended: Ended | None = None
    stream: trio.SocketStream | None = None
    writing: trio.Lock = field(default_factory=trio.Lock)
    decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    stop_at: float | None = None
    paused: bool = False
    started: bool = False
    clock_s: float = 0.0
    heard_s: float = 0.0
    moved_s: float = 0.0
    progress: int = -1
    waiting: bool = False
    awaited_round: int | None = None
    unacknowledged: bool = False
    log_left: int = 0
    log_text: str = ""
    output_left: int = 0
    files: int = 0
    told_progress_s: float = -1e9
    progress_event: frames.Progress | None = None


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
    ) -> None:
        """Tell events to ``tell``, which must not block; ``now_ms`` is the daemon's clock.

        ``launch`` gives a launcher's socket, and its process if it is a child of ours. It is called again if the
        launcher dies, from the main thread.
        """
        self._tell_event = tell
        self._blobs = blobs
        self._now_ms = now_ms
        self._launch = launch
        self._settings = settings or ExecutorSettings()
        self._runs: dict[bytes, _Live] = {}
        self._control: trio.socket.SocketType | None = None
        self._nursery: trio.Nursery | None = None

    @property
    def running(self) -> frozenset[bytes]:
        """The runs that have not ended."""
        return frozenset(self._runs)

    async def serve(self, task_status: Starting = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a launcher and supervise runs until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                while True:
                    try:
                        process, control = self._launch()
                    except OSError:
                        if task_status is not trio.TASK_STATUS_IGNORED:
                            raise  # there never was one: that is for the operator to mend
                        await trio.sleep(1)  # it is being restarted
                        continue
                    try:
                        await self._serve_launcher(control, task_status)
                    finally:
                        self._control = None
                        control.close()  # the launcher ends everything when it sees this
                        if process is not None:
                            with trio.CancelScope(shield=True):
                                await _reap(process)
                    task_status = trio.TASK_STATUS_IGNORED
                    await trio.sleep(1)  # it died; a launcher that always dies must not keep a core busy
            finally:
                self._nursery = None

    async def start(self, order: RunOrder) -> None:
        """Start a run. What comes of it, even a refusal, is told as events."""
        assert self._nursery is not None, "serve first"
        if order.run in self._runs:
            return  # orders are repeated after a restart
        reply, replies = trio.open_memory_channel[tuple[Message, list[int]]](8)
        live = _Live(order=order, reply=reply, replies=replies)
        live.log_left = order.limits.log_bytes
        live.output_left = order.limits.output_bytes
        self._runs[order.run] = live
        self._nursery.start_soon(self._supervise, live)

    async def stop(self, run: bytes, grace_ms: int) -> None:
        """Ask a run to end, and end it after the grace. A run that is not there needs no stopping."""
        live = self._runs.get(run)
        if live is None:
            return
        deadline = trio.current_time() + grace_ms / 1000
        live.stop_at = deadline if live.stop_at is None else min(live.stop_at, deadline)
        if live.paused and grace_ms > 0:
            await self.resume(run)  # it cannot save anything while it does not compute
        await self._send(live, frames.encode(frames.Stop(grace_ms=grace_ms)))

    async def pause(self, run: bytes) -> None:
        """Let nothing of a run compute; its memory stays."""
        live = self._runs.get(run)
        if live is not None and not live.paused:
            live.paused = True
            await self._ask(Pause(run=run))
            self._tell_event(RunPaused(run=run, at_ms=self._now_ms()))

    async def resume(self, run: bytes) -> None:
        """Let it compute again."""
        live = self._runs.get(run)
        if live is not None and live.paused:
            await self._ask(Resume(run=run))
            live.paused = False
            self._tell_event(RunResumed(run=run, at_ms=self._now_ms()))

    async def deliver_round(self, run: bytes, round_number: int, state: BlobRef) -> None:
        """Hand a run the result of a round; it takes any that is not older than the one it waits for.

        Raises:
            BlobMissing: the state is not in the store.
        """
        live = self._runs.get(run)
        if live is None:
            return
        data = await trio.to_thread.run_sync(self._blobs.read_bytes, state, live.order.limits.state_bytes)
        if live.awaited_round is not None and round_number >= live.awaited_round:
            live.awaited_round = None
        await self._send_with(live, frames.RoundResult(round=round_number, size_bytes=len(data)), data)

    async def _serve_launcher(self, control: socket.socket, task_status: Starting) -> None:
        """Take what the launcher says until it is gone."""
        control.setblocking(False)
        self._control = trio.socket.from_stdlib_socket(control)
        task_status.started()
        while True:
            try:
                packet, ancillary, _flags, _address = await self._control.recvmsg(
                    launcher_protocol.MAX_PACKET_BYTES, socket.CMSG_SPACE(16)
                )
            except OSError:
                packet, ancillary = b"", []
            if not packet:
                for live in self._runs.values():
                    live.gone.set()
                return
            message = launcher_protocol.unpack(packet)
            descriptors = launcher_protocol.descriptors_in(ancillary)
            live_run = self._runs.get(message.run)
            if live_run is None:
                for descriptor in descriptors:
                    os.close(descriptor)
                if isinstance(message, Started):
                    await self._ask(Kill(run=message.run))  # it came too late to be of use
            elif isinstance(message, Ended):
                live_run.ended = message
                live_run.gone.set()
            else:
                live_run.reply.send_nowait((message, descriptors))

    async def _supervise(self, live: _Live) -> None:
        """One run from its sandbox to its last event."""
        run = live.order.run
        try:
            over = await self._live_through(live)
            if live.stream is not None:
                await self._ask(Kill(run=run))
                with trio.move_on_after(KILL_WAIT_S):
                    await live.gone.wait()
        finally:
            if live.stream is not None:
                live.stream.socket.close()
        self._flush(live)
        del self._runs[run]
        self._tell_event(self._last_event(live, over))

    async def _live_through(self, live: _Live) -> Over:
        """Everything up to the moment when the run is to be ended, and why."""
        try:
            begin, checkpoint = await self._furnish(live)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_time, live)
                # Beside the clock: a sandbox that never reads must not hold us up for ever.
                nursery.start_soon(self._send_with, live, begin, checkpoint)
                await self._listen(live, nursery)
        except Exception as error:
            reason = _leaf(error)
            if isinstance(reason, Over):
                return reason
            if isinstance(reason, ProtocolError):
                return Over("protocol", f"the sandbox said something it must not: {reason.where}: {reason.why}")
            if isinstance(reason, (OSError, trio.BrokenResourceError)):
                return Over("sandbox-lost", f"talking to the sandbox failed: {type(reason).__name__}")
            raise
        raise AssertionError("a run is only over by an exception")

    async def _furnish(self, live: _Live) -> tuple[frames.Begin, bytes]:
        """Have the sandbox made; gives what it is to be told first, and the checkpoint that goes with it."""
        order, limits = live.order, live.order.limits
        checkpoint = b""
        if order.checkpoint is not None:
            try:
                checkpoint = await trio.to_thread.run_sync(self._blobs.read_bytes, order.checkpoint, limits.state_bytes)
            except (BlobMissing, ValueError) as error:
                raise Over("refused", f"its checkpoint cannot be had: {error}") from error
        for directory in filter(None, (order.code, order.inputs)):
            await trio.to_thread.run_sync(open_to_readers, directory)
        if self._control is None:
            raise Over("refused", "the launcher is not there")
        await self._ask(Start(run=order.run, spec=spec_of(order)))
        message, descriptors = await self._await_reply(live)
        if isinstance(message, Refused):
            raise Over("refused", f"no sandbox: {message.reason}")
        stream = socket.socket(fileno=descriptors[0])
        stream.setblocking(False)
        live.stream = trio.SocketStream(trio.socket.from_stdlib_socket(stream))
        begin = frames.Begin(
            entry=order.entry,
            shard=order.shard,
            shards=order.shards,
            workers=order.workers,
            parameters=tuple((parameter.name, parameter.value) for parameter in order.parameters),
            round=order.round,
            has_checkpoint=order.checkpoint is not None,
            size_bytes=len(checkpoint),
            state_bytes=limits.state_bytes,
            output_bytes=limits.output_bytes,
            threads=max(1, limits.cpu_millis // 1000 // order.workers),
            gpus=len(order.gpu_minors),
        )
        return begin, checkpoint

    async def _await_reply(self, live: _Live) -> tuple[Message, list[int]]:
        """The launcher's answer to `Start`, unless the launcher goes first."""
        with trio.move_on_after(self._settings.ready_s):
            while not live.gone.is_set():
                with trio.move_on_after(TICK_S):
                    return await live.replies.receive()
        raise Over("sandbox-lost", "the launcher did not answer")

    async def _listen(self, live: _Live, nursery: trio.Nursery) -> None:
        """Take the runner's frames until the run is over."""
        assert live.stream is not None, "furnished"
        limits = live.order.limits
        reader = frames.FrameReader(from_runner=True)
        assembler = frames.Assembler(lambda header: _largest(live, header, limits))
        budget, refilled = float(FRAMES_PER_S), trio.current_time()
        while data := await live.stream.receive_some(256 << 10):
            live.heard_s = live.clock_s
            for frame in reader.feed(data):
                budget -= 1
                complete = assembler.feed(frame)
                if complete is not None:
                    await self._take(live, complete, nursery)
            now = trio.current_time()
            budget = min(float(FRAMES_PER_S), budget + (now - refilled) * FRAMES_PER_S)
            refilled = now
            if budget < 0:  # whoever talks too much is listened to less; the socket fills up and the talker waits
                await trio.sleep(-budget / FRAMES_PER_S)
        raise Over("sandbox-lost", "the sandbox ended without a word")

    async def _take(self, live: _Live, frame: Any, nursery: trio.Nursery) -> None:
        """One complete frame, or a header with all of its bytes."""
        run = live.order.run
        match frame:
            case frames.Ready():
                pass
            case frames.Started():
                if not live.started:
                    live.started = True
                    self._tell_event(RunStarted(run=run, at_ms=self._now_ms()))
            case frames.Progress():
                live.progress_event = frame
            case frames.Heartbeat():
                live.waiting = frame.waiting
                if frame.progress != live.progress:
                    live.progress = frame.progress
                    live.moved_s = live.clock_s
            case frames.Log():
                self._take_log(live, frame.data)
            case frames.Whole(header=frames.Sync() as header, data=data):
                await self._take_sync(live, header, data)
            case frames.Whole(header=frames.Checkpoint() as header, data=data):
                await self._take_checkpoint(live, header, data, nursery)
            case frames.Whole(header=frames.Output() as header, data=data):
                live.output_left -= len(data)
                live.files += 1
                blob = await self._keep(data)
                self._tell_event(RunOutput(run=run, path=header.path, blob=blob, at_ms=self._now_ms()))
            case frames.Finished():
                raise Over("finished")
            case frames.Failed():
                raise Over(frame.kind, frame.message)

    async def _keep(self, data: bytes) -> BlobRef:
        try:
            return await trio.to_thread.run_sync(self._blobs.put_bytes, data)
        except NoRoom as error:
            raise Over("no-room", f"the provider has no room for what the run made: {error}") from error

    async def _take_sync(self, live: _Live, header: frames.Sync, data: bytes) -> None:
        if live.awaited_round is not None:
            raise ProtocolError("Sync", "came while the one before it was not answered")
        live.awaited_round = header.round
        self._flush_progress(live)
        state = await self._keep(data)
        weight_ppm = max(1, round(header.weight * 1_000_000))
        self._tell_event(
            RunSynced(run=live.order.run, round=header.round, weight_ppm=weight_ppm, state=state, at_ms=self._now_ms())
        )

    async def _take_checkpoint(
        self, live: _Live, header: frames.Checkpoint, data: bytes, nursery: trio.Nursery
    ) -> None:
        if live.unacknowledged:
            raise ProtocolError("Checkpoint", "came before the last one was acknowledged")
        live.unacknowledged = True
        self._flush_progress(live)
        checkpoint = await self._keep(data)
        self._tell_event(
            RunCheckpointed(
                run=live.order.run,
                round=header.round,
                step=header.step,
                checkpoint=checkpoint,
                at_ms=self._now_ms(),
            )
        )
        nursery.start_soon(self._acknowledge, live, header)

    async def _acknowledge(self, live: _Live, header: frames.Checkpoint) -> None:
        """A job that checkpoints without pause would fill the disk; so the next is welcome a little later."""
        await trio.sleep(CHECKPOINT_PAUSE_S)
        live.unacknowledged = False
        await self._send(live, frames.encode(frames.CheckpointStored(round=header.round, step=header.step)))

    def _take_log(self, live: _Live, data: bytes) -> None:
        if live.log_left <= 0:
            return
        kept = data[: live.log_left]
        live.log_left -= len(kept)
        live.log_text += printable(live.decoder.decode(kept))
        if live.log_left <= 0:
            live.log_text += "\n[more output than the run may keep; the rest is dropped]\n"

    async def _keep_time(self, live: _Live) -> None:
        """Hold the limits on time, and tell what is better told in pieces of a fitting size."""
        limits, settings = live.order.limits, self._settings
        last = trio.current_time()
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            if not live.paused:
                live.clock_s += min(now - last, 10 * TICK_S)  # a machine that slept is not a job that hung
            last = now
            if live.gone.is_set():
                if live.ended is None:
                    raise Over("sandbox-lost", "the launcher died, and the sandbox with it")
                await trio.sleep(settings.last_words_s)  # what it still said is in the socket, and then its end
                raise Over("sandbox-lost", "the sandbox ended, and somebody else holds its socket")
            if live.stop_at is not None and now >= live.stop_at:
                raise Over("stopped")
            if live.clock_s * 1000 > limits.wall_ms:
                raise Over("wall-limit", f"it ran for longer than {limits.wall_ms / 1000:g} s")
            patience_s = settings.silence_s if live.progress >= 0 else settings.ready_s
            if live.clock_s - live.heard_s > patience_s:
                raise Over("silent", f"the sandbox said nothing for {patience_s:g} s")
            if live.waiting:
                live.moved_s = live.clock_s  # it does what it should: wait for the others
            if live.started and (live.clock_s - live.moved_s) * 1000 > limits.stall_ms:
                raise Over("stalled", f"the job showed no progress for {limits.stall_ms / 1000:g} s")
            self._flush_logs(live)
            if live.clock_s - live.told_progress_s >= settings.progress_s:
                self._flush_progress(live)

    def _flush(self, live: _Live) -> None:
        self._flush_logs(live)
        self._flush_progress(live)

    def _flush_logs(self, live: _Live) -> None:
        text, live.log_text = live.log_text, ""
        for start in range(0, len(text), LOG_PIECE_CHARS):
            piece = text[start : start + LOG_PIECE_CHARS]
            self._tell_event(RunLogged(run=live.order.run, text=piece, at_ms=self._now_ms()))

    def _flush_progress(self, live: _Live) -> None:
        frame, live.progress_event = live.progress_event, None
        if frame is not None:
            live.told_progress_s = live.clock_s
            event = RunProgressed(run=live.order.run, step=frame.step, metrics=frame.metrics, at_ms=self._now_ms())
            self._tell_event(event)

    def _last_event(self, live: _Live, over: Over) -> RunEvent:
        """How it ended, with what the launcher saw taken into account."""
        run, now_ms = live.order.run, self._now_ms()
        if over.kind == "finished" and live.stop_at is None:
            return RunFinished(run=run, at_ms=now_ms)
        if live.stop_at is not None:
            return RunStopped(run=run, at_ms=now_ms)
        kind, reason = over.kind, over.reason
        suspicious = kind in ("worker-died", "ray-lost", "sandbox-lost", "silent", "stalled", "user-exception")
        if live.ended is not None and live.ended.memory_kills > 0 and suspicious:
            mebibytes = live.order.limits.memory_bytes >> 20
            kind, reason = "out-of-memory", f"it needed more than its {mebibytes} MiB of memory"
        elif kind == "sandbox-lost" and live.ended is not None:
            words = " ".join(printable(live.ended.words).split())[-300:]
            reason = f"{reason} (status {live.ended.status}{': ' if words else ''}{words})"
        return RunFailed(run=run, kind=kind, reason=printable(reason)[:LARGEST_REASON_CHARS], at_ms=now_ms)

    async def _ask(self, message: Message) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):
                await self._control.send(launcher_protocol.pack(message))

    async def _send(self, live: _Live, data: bytes) -> None:
        if live.stream is not None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async with live.writing:
                    await live.stream.send_all(data)

    async def _send_with(self, live: _Live, header: Any, data: bytes) -> None:
        if live.stream is not None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async with live.writing:
                    for piece in frames.encode_with(header, data):
                        await live.stream.send_all(piece)


def printable(text: str) -> str:
    """The text without what could steer a terminal: no control, format or private characters but newline and tab."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs"))


def _largest(live: _Live, header: Any, limits: RunLimits) -> int:
    if isinstance(header, frames.Output):
        if live.files >= MOST_FILES:
            raise TooLarge("Output", f"more than {MOST_FILES} files")
        return live.output_left
    return limits.state_bytes


def _leaf(error: Exception) -> Exception:
    """The first exception in a group of groups."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a launcher to end its sandboxes and itself."""
    with trio.move_on_after(KILL_WAIT_S):
        while process.poll() is None:  # noqa: ASYNC110 - no event tells it
            await trio.sleep(0.02)
    if process.poll() is None:
        process.kill()
        process.wait()
