"""The executor against a launcher and a runner that the test plays, so that both may say what they never would."""

import dataclasses
import errno
import json
import os
import socket
import tracemalloc
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from integration.sandbox_harness import LIMITS, a_room, an_order

from hansa.node.isolation.launcher_protocol import (
    MAX_PACKET_BYTES,
    Ended,
    Kill,
    Pause,
    Refused,
    Resume,
    Start,
    Started,
    pack,
    send,
    unpack,
)
from hansa.node.runs.executor_clock import ExecutorSettings
from hansa.node.runs.executor_end import Over
from hansa.node.runs.executor_run import Supervision
from hansa.node.runs.run_shell import LOST_STATUS, ShellRefused
from hansa.proto import frames
from hansa.proto.blob import BlobRef
from hansa.proto.tensors import encode_state
from hansa.proto.workload import Parameter
from hansa.scheduler.run import (
    RunCheckpointed,
    RunFailed,
    RunFinished,
    RunKept,
    RunLogged,
    RunOutput,
    RunPaused,
    RunProgressed,
    RunResumed,
    RunStarted,
    RunStopped,
    RunSynced,
)

RUN = b"r" * 32
pytestmark = pytest.mark.trio


def encode_with(header, data):
    """A header and its bytes as frames."""
    yield frames.encode(header)
    for start in range(0, len(data), frames.MAX_CHUNK_BYTES):
        yield frames.encode(frames.Chunk(data=data[start : start + frames.MAX_CHUNK_BYTES]))


class Stage:
    """The test's end of everything: the launcher's socket and the runner's."""

    def __init__(self, room, control):
        self.room, self.control = room, control
        self.runner = None
        self.asked = []
        self.reader = frames.FrameReader(from_runner=False)
        self.heard = []

    async def next_request(self, kind):
        while True:
            message = unpack(await self.control.recv(MAX_PACKET_BYTES))
            self.asked.append(message)
            if isinstance(message, kind):
                return message

    async def furnish(self):
        """Be the launcher that makes a sandbox, and the runner in it until `Begin`."""
        message = await self.next_request(Start)
        ours, theirs = socket.socketpair()
        with theirs:
            send(self.control._sock, Started(run=message.run, pid=1, limits={}), (theirs.fileno(),))
        ours.setblocking(False)
        self.runner = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        await self.say(frames.Ready())
        return await self.next_frame()

    async def say(self, *said):
        for frame in said:
            await self.runner.send_all(frame if isinstance(frame, bytes) else frames.encode(frame))

    async def say_with(self, header, data):
        for piece in encode_with(header, data):
            await self.runner.send_all(piece)

    async def next_frame(self):
        while not self.heard:
            self.heard += self.reader.feed(await self.runner.receive_some(65536))
        return self.heard.pop(0)

    async def end(self, **facts):
        """Be the launcher when it is asked to kill; gives the last event."""
        await self.next_request(Kill)
        ended = {"run": RUN, "status": -9, "memory_kills": 0, "peak_bytes": 0, "words": "", **facts}
        await self.control.send(pack(Ended(**ended)))
        while self.room.executor.running:  # noqa: ASYNC110 - nothing tells it
            await trio.sleep(0.01)
        return self.room.events[-1]


@asynccontextmanager
async def a_stage(**settings):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    given = iter([(None, theirs)])
    with trio.fail_after(20):
        async with a_room(launch=lambda: next(given), settings=ExecutorSettings(**settings)) as room:
            stage = Stage(room, trio.socket.from_stdlib_socket(ours))
            try:
                yield stage
            finally:
                stage.control.close()
                if stage.runner is not None:
                    stage.runner.socket.close()


async def test_a_run_is_told_from_its_start_to_its_end(tmp_path):
    async with a_stage() as stage:
        parameters = (Parameter(name="rate", value=json.dumps(0.5)),)
        await stage.room.executor.start(an_order(tmp_path, "", parameters=parameters, shard=1, shards=3, round=2))
        begin = await stage.furnish()
        assert (begin.shard, begin.shards, begin.round, begin.parameters) == (1, 3, 2, (("rate", "0.5"),))
        state = encode_state({"w": 1.0})
        await stage.say(frames.Started(), frames.Progress(step=1, metrics=(("loss", 1.0),)))
        await stage.say_with(frames.Sync(round=2, weight=1.5, size_bytes=len(state)), state)
        while not any(isinstance(event, RunSynced) for event in stage.room.events):  # noqa: ASYNC110
            await trio.sleep(0.01)
        await stage.room.executor.deliver_round(RUN, 2, stage.room.blobs.put_bytes(state))
        assert await stage.next_frame() == frames.RoundResult(round=2, size_bytes=len(state))
        await stage.next_frame()
        await stage.say_with(frames.Checkpoint(round=3, step=1, size_bytes=len(state)), state)
        assert await stage.next_frame() == frames.CheckpointStored(round=3, step=1)
        await stage.say_with(frames.Output(path="a/b", size_bytes=2), b"ok")
        await stage.say(frames.Log(stream="stdout", data="grüße\x1b[2J".encode()), frames.Finished())
        await stage.end()
        kinds = [type(event) for event in stage.room.events]
    assert kinds == [RunStarted, RunProgressed, RunSynced, RunCheckpointed, RunOutput, RunLogged, RunFinished]
    assert stage.room.log == "grüße[2J"


async def test_a_run_whose_sandbox_has_ended_is_over_although_somebody_holds_its_socket(tmp_path):
    async with a_stage(last_words_s=0.3) as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()  # and the socket stays open
        await stage.control.send(pack(Ended(run=RUN, status=-9, memory_kills=0, peak_bytes=0, words="")))
        with trio.fail_after(5):
            while stage.room.executor.running:  # noqa: ASYNC110 - nothing tells it
                await trio.sleep(0.01)
        failed = stage.room.events[-1]
    assert isinstance(failed, RunFailed)
    assert failed.kind == "sandbox-lost"
    assert "status -9" in failed.reason


async def test_a_run_of_no_workers_is_its_jobs_fault_and_no_sandbox_is_made_for_it(tmp_path):
    """Such an award is refused today. A lease that was journaled before that stands all the same."""
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", workers=0))
        with trio.fail_after(10):
            while stage.room.executor.running:  # noqa: ASYNC110 - nothing tells it
                await trio.sleep(0.01)
        (failed,) = stage.room.events
        with trio.move_on_after(0.2) as quiet:
            await stage.next_request(Start)
    assert isinstance(failed, RunFailed)
    assert (failed.kind, failed.reason) == ("bad-entry", "the job has no workers")
    assert quiet.cancelled_caught


async def test_a_sandbox_that_never_reads_what_it_is_to_do_is_given_up(tmp_path):
    async with a_stage(ready_s=0.5) as stage:
        checkpoint = stage.room.blobs.put_bytes(bytes(8 << 20))
        await stage.room.executor.start(an_order(tmp_path, "", checkpoint=checkpoint))
        message = await stage.next_request(Start)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            send(stage.control._sock, Started(run=message.run, pid=1, limits={}), (theirs.fileno(),))
            failed = await stage.end()
    assert isinstance(failed, RunFailed)
    assert failed.kind == "silent"


async def test_a_sandbox_that_comes_too_late_is_ended(tmp_path):
    async with a_stage(ready_s=0.2) as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.next_request(Start)
        while stage.room.executor.running:  # noqa: ASYNC110 - nothing tells it
            await trio.sleep(0.01)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            send(stage.control._sock, Started(run=RUN, pid=1, limits={}), (theirs.fileno(),))
            assert await stage.next_request(Kill) == Kill(run=RUN)


async def test_a_launcher_that_is_being_restarted_is_awaited(tmp_path):
    first, second = (socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    answers = iter([(None, first[0]), ConnectionRefusedError(), (None, second[0])])

    def launch():
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    second[1].settimeout(5)
    with first[1], second[1], trio.fail_after(20):
        async with a_room(launch=launch) as room:
            first[1].close()
            await trio.sleep(0.1)
            while not room.executor._launcher.connected:  # noqa: ASYNC110 - nothing tells it
                await trio.sleep(0.05)
            await room.executor.start(an_order(tmp_path, ""))
            assert isinstance(unpack(await trio.to_thread.run_sync(second[1].recv, MAX_PACKET_BYTES)), Start)


GARBAGE = {
    "no frame": b"GET / HTTP/1.1\r\n\r\n",
    "too long": b"\xff\xff\xff\xff",
    "a chunk alone": frames.encode(frames.Chunk(data=b"x")),
    "more bytes than declared": b"".join(
        frames.encode(frame) for frame in (frames.Output(path="a", size_bytes=1), frames.Chunk(data=b"xy"))
    ),
    "a header within a header": b"".join(
        frames.encode(frame)
        for frame in (frames.Sync(round=0, weight=1.0, size_bytes=9), frames.Output(path="a", size_bytes=9))
    ),
    "a state over the limit": frames.encode(frames.Sync(round=0, weight=1.0, size_bytes=LIMITS.state_bytes + 1)),
    "an output over the limit": frames.encode(frames.Output(path="a", size_bytes=LIMITS.output_bytes + 1)),
    "two states without an answer": b"".join(
        piece for _ in range(2) for piece in encode_with(frames.Sync(round=0, weight=1.0, size_bytes=1), b"x")
    ),
    "two checkpoints at once": b"".join(
        piece for _ in range(2) for piece in encode_with(frames.Checkpoint(round=0, step=0, size_bytes=1), b"x")
    ),
    "too many files": b"".join(frames.encode(frames.Output(path=f"f{number}", size_bytes=0)) for number in range(1001)),
}


@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE.keys())
async def test_a_sandbox_that_breaks_the_protocol_is_ended(tmp_path, said):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.say(said)
        failed = await stage.end()
    assert isinstance(failed, RunFailed)
    assert failed.kind == "protocol"


async def test_outputs_together_stay_within_the_limit(tmp_path):
    async with a_stage() as stage:
        limits = dataclasses.replace(LIMITS, output_bytes=10)
        await stage.room.executor.start(an_order(tmp_path, "", limits=limits))
        await stage.furnish()
        await stage.say_with(frames.Output(path="a", size_bytes=6), b"123456")
        await stage.say(frames.Output(path="b", size_bytes=5))
        assert (await stage.end()).kind == "protocol"


@pytest.mark.parametrize(
    ("kind", "limits", "settings", "said"),
    [
        ("wall-limit", {"wall_ms": 300}, {}, [frames.Started()]),
        ("silent", {}, {"ready_s": 0.3}, []),
        ("silent", {}, {"silence_s": 0.3}, [frames.Started(), frames.Heartbeat(progress=1, waiting=False)]),
        ("stalled", {"stall_ms": 300}, {}, [frames.Started()]),
    ],
)
async def test_time_that_runs_out_is_told_by_its_kind(tmp_path, kind, limits, settings, said):
    async with a_stage(**settings) as stage:
        await stage.room.executor.start(an_order(tmp_path, "", limits=dataclasses.replace(LIMITS, **limits)))
        await stage.furnish()
        await stage.say(*said)
        assert (await stage.end()).kind == kind


async def test_a_start_that_takes_longer_than_a_job_may_stall_is_no_stall(tmp_path):
    async with a_stage() as stage:
        limits = dataclasses.replace(LIMITS, stall_ms=600)
        await stage.room.executor.start(an_order(tmp_path, "", limits=limits))
        await stage.furnish()
        await stage.say(frames.Heartbeat(progress=0, waiting=False))
        await trio.sleep(1)  # Ray comes up
        await stage.say(frames.Started())
        with trio.move_on_after(0.35) as patience:
            await stage.next_request(Kill)
        assert patience.cancelled_caught, "it was ended as soon as it had begun"
        failed = await stage.end()
    assert failed.kind == "stalled"


async def test_a_job_that_waits_for_the_others_has_not_stalled(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", limits=dataclasses.replace(LIMITS, stall_ms=300)))
        await stage.furnish()
        await stage.say(frames.Started(), frames.Heartbeat(progress=1, waiting=True))
        await trio.sleep(1)
        assert stage.room.executor.running
        await stage.say(frames.Finished())
        assert isinstance(await stage.end(), RunFinished)


@pytest.mark.parametrize("delivers", ["many files", "one that is large"])
async def test_a_job_that_delivers_for_longer_than_it_may_stall_has_not_stalled(tmp_path, delivers):
    """All is computed, and a slow disk takes its time to keep it."""
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", limits=dataclasses.replace(LIMITS, stall_ms=500)))
        await stage.furnish()
        await stage.say(frames.Started(), frames.Heartbeat(progress=1, waiting=False))
        if delivers == "one that is large":
            await stage.say(frames.Output(path="large", size_bytes=10))
        for number in range(10):
            await trio.sleep(0.15)
            kind = frames.Chunk(data=b"x") if delivers == "one that is large" else None
            await stage.say(kind or frames.Output(path=f"f{number}", size_bytes=0))
        await stage.say(frames.Finished())
        assert isinstance(await stage.end(), RunFinished)


async def test_time_does_not_pass_for_a_paused_run(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", limits=dataclasses.replace(LIMITS, wall_ms=600)))
        await stage.furnish()
        await stage.say(frames.Started())
        await stage.room.executor.pause(RUN)
        await stage.next_request(Pause)
        await trio.sleep(1)
        await stage.room.executor.resume(RUN)
        await stage.next_request(Resume)
        assert stage.room.executor.running
        assert {RunPaused, RunResumed} <= {type(event) for event in stage.room.events}
        assert (await stage.end()).kind == "wall-limit"


async def test_a_pause_that_came_before_there_was_anything_to_pause_is_said_again(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.room.executor.pause(RUN)
        await stage.furnish()
        await stage.room.wait_for(RunPaused)
        with trio.fail_after(10):
            while sum(isinstance(message, Pause) for message in stage.asked) < 2:
                await stage.next_request(Pause)
        await stage.say(frames.Started())
        await stage.room.executor.pause(RUN)
        with trio.fail_after(10):
            while sum(isinstance(message, Pause) for message in stage.asked) < 3:
                await stage.next_request(Pause)
        assert sum(isinstance(event, RunPaused) for event in stage.room.events) == 1


async def test_a_worker_killed_for_memory_is_told_as_such(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.say(frames.Failed(kind="worker-died", message="ActorDiedError"))
        assert (await stage.end(memory_kills=1)).kind == "out-of-memory"


async def test_a_sandbox_that_ends_without_a_word_is_told_with_its_own_complaint(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.runner.aclose()
        failed = await stage.end(status=1, words="bwrap: no\x1b[31m way\n")
    assert failed.kind == "sandbox-lost"
    assert failed.reason.endswith("(status 1: bwrap: no[31m way)")


async def test_a_launcher_that_refuses_is_told(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.next_request(Start)
        await stage.control.send(pack(Refused(run=RUN, reason="bubblewrap is missing")))
        while not stage.room.events:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert stage.room.events[0].kind == "refused"
    assert "bubblewrap is missing" in stage.room.events[0].reason


async def test_a_stop_is_passed_on_and_after_its_grace_the_run_is_ended(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.say(frames.Started())
        await stage.room.executor.stop(RUN, 300)
        assert await stage.next_frame() == frames.Stop(grace_ms=300)
        assert isinstance(await stage.end(), RunStopped)


async def test_a_repeated_order_changes_nothing(tmp_path):
    async with a_stage() as stage:
        order = an_order(tmp_path, "")
        await stage.room.executor.start(order)
        await stage.furnish()
        await stage.room.executor.start(order)
        await stage.say(frames.Finished())
        await stage.end()
        assert sum(isinstance(message, Start) for message in stage.asked) == 1


async def test_what_is_over_the_limit_of_the_log_is_dropped_and_said_so(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", limits=dataclasses.replace(LIMITS, log_bytes=100)))
        await stage.furnish()
        await stage.say(*[frames.Log(stream="stdout", data=b"x" * 60)] * 5, frames.Finished())
        await stage.end()
    assert stage.room.log.count("x") == 100
    assert "dropped" in stage.room.log


async def test_progress_is_told_in_moderation(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.say(*[frames.Progress(step=step, metrics=()) for step in range(500)], frames.Finished())
        await stage.end()
    told = [event.step for event in stage.room.events if isinstance(event, RunProgressed)]
    assert told[-1] == 499
    assert len(told) < 20


async def test_a_store_without_room_fails_the_run_and_not_the_daemon(tmp_path):
    async with a_stage() as stage:
        stage.room.blobs.quota_bytes = 0
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.say_with(frames.Output(path="a", size_bytes=1), b"x")
        assert (await stage.end()).kind == "no-room"


async def test_a_checkpoint_that_this_machine_cannot_read_fails_the_run_in_words(tmp_path, monkeypatch):
    async with a_stage() as stage:
        ref = stage.room.blobs.put_bytes(b"checkpoint")

        def broken(_ref):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(stage.room.blobs.directory))

        monkeypatch.setattr(stage.room.blobs, "reader", broken)
        await stage.room.executor.start(an_order(tmp_path, "", checkpoint=ref))
        while not stage.room.events:  # noqa: ASYNC110
            await trio.sleep(0.01)
    (failed,) = stage.room.events
    assert failed.kind == "refused"
    assert failed.reason == "its checkpoint cannot be read: Input/output error"


async def test_a_sandbox_that_comes_without_its_line_is_ended_and_said_in_words(tmp_path):
    """Where a process has as many files open as it may have, the kernel drops the descriptor beside a message."""
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        message = await stage.next_request(Start)
        await stage.control.send(pack(Started(run=message.run, pid=1, limits={})))
        assert (await stage.next_request(Kill)).run == message.run
        while not stage.room.events:  # noqa: ASYNC110
            await trio.sleep(0.01)
    (failed,) = stage.room.events
    assert (failed.kind, failed.reason) == ("refused", "no sandbox: the provider's node has too many files open")


async def test_half_a_state_that_cannot_be_removed_ends_one_run_and_no_daemon(tmp_path, monkeypatch):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.say(frames.Sync(round=0, weight=1.0, size_bytes=9), frames.Chunk(data=b"half"))
        while not list((stage.room.blobs.directory / "new").iterdir()):  # noqa: ASYNC110
            await trio.sleep(0.01)
        monkeypatch.setattr(stage.room.blobs, "drop_writing", cannot)
        await stage.room.executor.stop(RUN, 0)
        assert isinstance(await stage.end(), RunStopped)


def cannot(*_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


async def test_a_launcher_that_takes_nothing_holds_up_nobody_for_good(tmp_path, monkeypatch):
    """Its socket is full and then it is lost: whoever waits to pause or resume a run goes on."""
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        asked = 0

        async def pause(task_status):
            nonlocal asked
            task_status.started()
            while True:
                await trio.lowlevel.checkpoint()
                await stage.room.executor.pause(RUN)
                await stage.room.executor.leave(RUN, 60_000, "")
                await stage.room.executor.resume(RUN)
                asked += 1

        async with trio.open_nursery() as nursery:
            await nursery.start(pause)
            before = -1
            while before != asked:
                before = asked
                await trio.sleep(0.3)
            stage.control.close()
            while asked == before:  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_a_run_that_ends_in_the_turn_in_which_the_daemon_does_takes_nothing_else_with_it(tmp_path, monkeypatch):
    """The group of its end and of the others' cancellation went on to where nobody waits for a run's end."""

    async def end_with_the_daemon(_self):
        await trio.testing.wait_all_tasks_blocked()
        stopping.cancel()
        raise Over("sandbox-lost", "the launcher died, and the sandbox with it")

    monkeypatch.setattr(Supervision, "_keep_time", end_with_the_daemon)
    with trio.CancelScope() as stopping:
        async with a_stage() as stage:
            await stage.room.executor.start(an_order(tmp_path, ""))
            await stage.furnish()
            await trio.sleep_forever()
    assert stopping.cancelled_caught


async def test_a_checkpoint_that_is_not_there_fails_the_run_and_not_the_daemon(tmp_path):
    async with a_stage() as stage:
        ref = BlobRef(root=b"x" * 32, size_bytes=1)
        await stage.room.executor.start(an_order(tmp_path, "", checkpoint=ref))
        while not stage.room.events:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert stage.room.events[0].kind == "refused"


async def test_a_state_is_never_in_memory_whole(tmp_path):
    size_bytes = 48 << 20
    limits = dataclasses.replace(LIMITS, state_bytes=size_bytes)
    chunk = frames.encode(frames.Chunk(data=bytes(frames.MAX_CHUNK_BYTES)))
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", limits=limits))
        await stage.furnish()
        tracemalloc.start()
        try:
            await stage.say(frames.Sync(round=0, weight=1.0, size_bytes=size_bytes))
            for _ in range(size_bytes // frames.MAX_CHUNK_BYTES):
                await stage.say(chunk)
            synced = await stage.room.wait_for(RunSynced)
            await stage.room.executor.deliver_round(RUN, 0, synced.state)
            left = size_bytes
            while left:
                stage.heard.clear()
                frame = await stage.next_frame()
                left -= len(frame.data) if isinstance(frame, frames.Chunk) else 0
                for other in stage.heard:
                    left -= len(other.data)
            _now, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak_bytes < 8 << 20, f"{peak_bytes >> 20} MiB"


async def test_a_state_that_was_broken_off_leaves_nothing_behind(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.say(frames.Sync(round=0, weight=1.0, size_bytes=3 << 20), frames.Chunk(data=bytes(1 << 19)))
        await trio.sleep(0.2)
        assert stage.room.blobs.size_bytes == 3 << 20, "its room is kept"
        await stage.say(frames.Finished())
        assert isinstance(await stage.end(), RunFinished)
        assert stage.room.blobs.size_bytes == 0
        assert list((stage.room.blobs.directory / "new").iterdir()) == []


async def test_what_is_said_to_a_run_before_it_has_begun_comes_after_its_beginning(tmp_path):
    async with a_stage() as stage:
        checkpoint = stage.room.blobs.put_bytes(bytes(2 << 20))
        await stage.room.executor.start(an_order(tmp_path, "", checkpoint=checkpoint))
        await stage.room.executor.deliver_round(RUN, 3, checkpoint)
        await stage.room.executor.leave(RUN, 60_000, "the owner needs it")
        begin = await stage.furnish()
        assert (begin.has_checkpoint, begin.size_bytes) == (True, 2 << 20)
        said = [await stage.next_frame() for _ in range(10)]
    kinds = [type(frame) for frame in said]
    assert kinds.count(frames.Chunk) == 8
    assert kinds.index(frames.RoundResult) >= 4, "a state at a time"
    assert kinds.index(frames.Leave) == 0, "a word does not wait for a state"


async def test_a_state_goes_on_whoever_wanted_it_sent_is_cancelled(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        state = stage.room.blobs.put_bytes(bytes(8 << 20))  # more than a socket holds
        with trio.move_on_after(0.2):
            await stage.room.executor.deliver_round(RUN, 0, state)
            await trio.sleep_forever()
        said = [await stage.next_frame() for _ in range(17)]
    assert [type(frame) for frame in said] == [frames.RoundResult] + [frames.Chunk] * 16


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_rounds_that_a_runner_does_not_read_hold_one_file_and_no_more(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        state = stage.room.blobs.put_bytes(bytes(8 << 20))  # more than a socket holds
        await stage.room.executor.deliver_round(RUN, 0, state)
        await trio.sleep(0.2)  # it is being sent, and nobody reads
        before = open_files()
        for number in range(1, 200):
            await stage.room.executor.deliver_round(RUN, number, state)
        assert open_files() <= before + 1
        for number in (0, 198, 199):
            await stage.room.executor.deliver_round(RUN, number, state)
        said = [await stage.next_frame() for _ in range(34)]
    assert [frame.round for frame in said if isinstance(frame, frames.RoundResult)] == [0, 199]


async def test_a_state_larger_than_the_runs_own_is_not_passed_on(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        with pytest.raises(ValueError, match="smaller"):
            await stage.room.executor.deliver_round(RUN, 0, BlobRef(root=b"x" * 32, size_bytes=LIMITS.state_bytes + 1))


# Runs that are to leave, runs that are kept, and terminals in them.


async def test_a_run_that_is_to_leave_and_says_that_it_left_ends_as_reclaimed(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.say(frames.Started())
        await stage.room.executor.leave(RUN, 60_000, "the owner needs it")
        assert await stage.next_frame() == frames.Leave(grace_ms=60_000)
        before_s = trio.current_time()
        await stage.say_with(frames.Checkpoint(round=0, step=3, size_bytes=1), b"x")
        assert await stage.next_frame() == frames.CheckpointStored(round=0, step=3)
        assert trio.current_time() - before_s < 0.5, "the last one is not made to wait"
        await stage.say(frames.Left())
        failed = await stage.end()
    assert (failed.kind, failed.reason) == ("reclaimed", "the owner needs it")


async def test_a_run_that_does_not_leave_in_time_is_ended_as_reclaimed(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.say(frames.Started())
        await stage.room.executor.leave(RUN, 60_000, "the owner needs it")
        await stage.room.executor.leave(RUN, 300, "the owner needs it now")
        with trio.fail_after(3):
            failed = await stage.end()
    assert (failed.kind, failed.reason) == ("reclaimed", "the owner needs it now")


async def test_a_run_that_was_not_told_to_leave_cannot_say_that_it_left(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.say(frames.Started(), frames.Left())
        await trio.sleep(0.3)
        assert stage.room.executor.running
        await stage.say(frames.Finished())
        assert isinstance(await stage.end(), RunFinished)


async def test_a_run_that_finishes_or_fails_while_it_is_to_leave_ends_like_that(tmp_path):
    for last, kind in (
        (frames.Finished(), None),
        (frames.Failed(kind="user-exception", message="x"), "user-exception"),
    ):
        async with a_stage() as stage:
            limits = dataclasses.replace(LIMITS, keep_failed_ms=60_000)
            await stage.room.executor.start(an_order(tmp_path, "", limits=limits))
            await stage.furnish()
            await stage.say(frames.Started())
            await stage.room.executor.leave(RUN, 60_000, "the owner needs it")
            await stage.say(last)
            ended = await stage.end()
        assert getattr(ended, "kind", None) == kind


async def test_a_paused_run_that_is_to_leave_stays_paused(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.room.executor.pause(RUN)
        await stage.room.executor.leave(RUN, 300, "the owner needs it")
        assert (await stage.end()).kind == "reclaimed"
        assert not any(isinstance(message, Resume) for message in stage.asked)


def keeping(**changes):
    return dataclasses.replace(LIMITS, **{"keep_failed_ms": 60_000, **changes})


async def test_a_run_that_failed_by_its_own_fault_is_kept_and_then_ends_as_it_would_have(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", limits=keeping(keep_failed_ms=500, stall_ms=100)))
        await stage.furnish()
        await stage.say(frames.Started(), frames.Progress(step=4, metrics=()))
        await stage.say(frames.Failed(kind="user-exception", message="ValueError"))
        kept = await stage.room.wait_for(RunKept)
        assert (kept.kind, kept.reason, kept.until_ms - kept.at_ms) == ("user-exception", "ValueError", 500)
        assert await stage.next_frame() == frames.Keep()
        # It is over for the engine, whatever its sandbox still says.
        await stage.say(frames.Progress(step=5, metrics=()), frames.Finished(), frames.Left())
        await stage.say(frames.Failed(kind="worker-died", message="the job was ended"))
        await stage.say_with(frames.Sync(round=0, weight=1.0, size_bytes=1), b"x")
        await stage.say_with(frames.Output(path="a", size_bytes=1), b"x")
        await stage.say(frames.Log(stream="stdout", data=b"seen"))
        failed = await stage.end()
    assert (failed.kind, failed.reason) == ("user-exception", "ValueError")
    kinds = [type(event) for event in stage.room.events]
    assert kinds == [RunStarted, RunProgressed, RunKept, RunLogged, RunFailed]


async def test_a_job_that_hangs_is_kept_too(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", limits=keeping(stall_ms=300)))
        await stage.furnish()
        await stage.say(frames.Started())
        kept = await stage.room.wait_for(RunKept)
        assert kept.kind == "stalled"
        assert kept.reason.endswith("before its first step")
        await stage.room.executor.stop(RUN, 60_000)
        with trio.fail_after(3):
            assert (await stage.end()).kind == "stalled"


@pytest.mark.parametrize("kind", ["ray-lost"])
async def test_a_run_that_failed_by_no_fault_of_the_jobs_is_not_kept(tmp_path, kind):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", limits=keeping()))
        await stage.furnish()
        await stage.say(frames.Started(), frames.Failed(kind=kind, message="x"))
        assert (await stage.end()).kind == kind
        assert not any(isinstance(event, RunKept) for event in stage.room.events)


async def test_a_run_is_kept_no_longer_than_its_time_on_the_whole(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", limits=keeping(wall_ms=800)))
        await stage.furnish()
        await stage.say(frames.Started(), frames.Failed(kind="bad-state", message="x"))
        kept = await stage.room.wait_for(RunKept)
        assert kept.until_ms - kept.at_ms <= 800
        with trio.fail_after(3):
            assert (await stage.end()).kind == "bad-state"


async def test_a_run_that_is_stopped_is_not_kept_and_one_that_is_kept_does_not_wait_to_leave(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", limits=keeping()))
        await stage.furnish()
        await stage.say(frames.Started())
        await stage.room.executor.stop(RUN, 60_000)
        await stage.say(frames.Failed(kind="user-exception", message="x"))
        assert isinstance(await stage.end(), RunStopped)
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", limits=keeping()))
        await stage.furnish()
        await stage.say(frames.Started(), frames.Failed(kind="user-exception", message="x"))
        await stage.room.wait_for(RunKept)
        await stage.room.executor.leave(RUN, 60_000, "the owner needs it")
        with trio.fail_after(3):
            assert (await stage.end()).kind == "user-exception"


async def test_memory_that_was_used_up_while_a_run_was_kept_is_not_how_it_failed(tmp_path):
    for kind, told in (("user-exception", "user-exception"), ("worker-died", "out-of-memory")):
        async with a_stage() as stage:
            await stage.room.executor.start(an_order(tmp_path, "", limits=keeping(keep_failed_ms=200)))
            await stage.furnish()
            await stage.say(frames.Started(), frames.Failed(kind=kind, message="x"))
            assert (await stage.end(memory_kills=1)).kind == told


async def test_a_terminal_in_a_run_types_hears_and_ends(tmp_path):
    async with a_stage() as stage:
        with pytest.raises(ShellRefused):
            await stage.room.executor.open_shell(RUN, (), 80, 24)
        await stage.room.executor.start(an_order(tmp_path, ""))
        with pytest.raises(ShellRefused):
            await stage.room.executor.open_shell(RUN, (), 80, 24)
        await stage.furnish()
        shell = await stage.room.executor.open_shell(RUN, ("ls",), 80, 24)
        assert await stage.next_frame() == frames.OpenShell(shell=0, argv=("ls",), columns=80, rows=24)
        await shell.send(b"q")
        assert await stage.next_frame() == frames.ShellInput(shell=0, data=b"q")
        await stage.say(frames.ShellOutput(shell=0, data=b"a.txt"), frames.ShellEnded(shell=0, status=0))
        assert await shell.receive(5) == b"a.txt"
        other = await stage.room.executor.open_shell(RUN, (), 80, 24)
        await stage.room.executor.pause(RUN)
        with pytest.raises(ShellRefused, match="paused"):
            await stage.room.executor.open_shell(RUN, (), 80, 24)
        await stage.room.executor.resume(RUN)
        await stage.say(frames.Finished())
        await stage.end()
    assert shell.ended == 0
    assert other.ended == LOST_STATUS


async def test_a_sandbox_that_writes_beyond_a_terminals_window_is_ended(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        await stage.room.executor.open_shell(RUN, (), 80, 24)
        piece = frames.encode(frames.ShellOutput(shell=0, data=bytes(frames.MAX_SHELL_BYTES)))
        await stage.say(*[piece] * (frames.SHELL_WINDOW_BYTES // frames.MAX_SHELL_BYTES + 1))
        assert (await stage.end()).kind == "protocol"


async def test_a_sandbox_that_reads_nothing_holds_up_nobody_who_speaks_to_it_for_long(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, ""))
        await stage.furnish()
        shell = await stage.room.executor.open_shell(RUN, (), 80, 24)
        with trio.move_on_after(1):
            while True:  # more than the socket and the queue take
                await shell.resize(80, 24)
        with trio.fail_after(1):
            await stage.room.executor.stop(RUN, 100)
        assert isinstance(await stage.end(), RunStopped)
