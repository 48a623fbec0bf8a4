"""The sandbox's main program: frames to the daemon on one side, Ray and the job's code on the other.

    python -m hansa.worker.runner FD

It starts a cluster, lets the job's entry function run in every worker, and passes on what they say. It decides nothing
that matters: limits are held outside, since the job's code could replace this process at will.
"""

import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hansa.proto.errors import Malformed, ProtocolError
from hansa.proto.frames import (
    MAX_LOG_BYTES,
    MAX_MESSAGE_BYTES,
    Assembler,
    Begin,
    Checkpoint,
    CheckpointStored,
    Failed,
    Finished,
    Frame,
    FrameReader,
    Heartbeat,
    Log,
    Output,
    Progress,
    Ready,
    RoundResult,
    Started,
    Stop,
    Sync,
    Whole,
    encode,
    encode_with,
    is_safe_path,
)
from hansa.worker.cluster import prepare_environment, ray_processes, start_cluster
from hansa.worker.hub import Contribute, Deliver, Hub, Report, Uneven

CODE, INPUTS, OUTPUTS = Path("/job/code"), Path("/job/inputs"), Path("/job/outputs")
BEAT_S = 1.0
TAKE_S = 20.0
MAX_FILES = 1000
STORE_S = 10.0


class Wire:
    """The socket to the daemon. Many threads write, one reads."""

    def __init__(self, connection: socket.socket) -> None:
        """Frames of several threads must not mix, nor chunks of two states."""
        self._connection = connection
        self._frame_lock = threading.Lock()
        self._whole_lock = threading.Lock()

    def send(self, frame: Frame) -> None:
        """One frame; it may come between the chunks of a state."""
        self._write(encode(frame))

    def send_with(self, header: Frame, data: bytes) -> None:
        """A header and its bytes, with no other header in between."""
        with self._whole_lock:
            for piece in encode_with(header, data):
                self._write(piece)

    def frames(self) -> Iterator[Any]:
        """What the daemon says, until it hangs up."""
        reader = FrameReader(from_runner=False)
        while data := self._connection.recv(256 << 10):
            yield from reader.feed(data)

    def _write(self, data: bytes) -> None:
        with self._frame_lock:
            self._connection.sendall(data)


class Run:
    """One run, from `Begin` to `Finished` or `Failed`."""

    def __init__(self, wire: Wire, begin: Begin, checkpoint: bytes | None) -> None:
        """Nothing has happened yet."""
        self._wire = wire
        self._begin = begin
        self._checkpoint = checkpoint
        self._hub = Hub(begin.workers)
        self._hub_lock = threading.Lock()
        self._actors: list[Any] = []
        self._ray: Any = None
        self._progress = 0
        self._started = False
        self._stop_asked = False
        self._saved: tuple[int, int, bytes] | None = None
        self._unsaved: tuple[int, int] | None = None
        self._stored = threading.Event()

    def beat(self) -> None:
        """Tell the daemon every second how far the job is; a run whose figure stands still is stuck."""
        while True:
            self._wire.send(Heartbeat(progress=self._progress, waiting=self._hub.waiting))
            time.sleep(BEAT_S)

    def execute(self) -> None:
        """Start Ray, run the job's code in every worker, and say how it ended."""
        prepare_environment(self._begin.threads)
        try:
            self._ray = start_cluster(self._begin.workers, self._begin.gpus)
            self._actors = self._start_workers()
            if self._stop_asked:
                self.stop()
            ending = self._follow([actor.work.remote() for actor in self._actors])
        except Uneven as error:
            ending = ("bad-state", str(error))
        except ProtocolError as error:
            ending = ("bad-state", error.why)
        except Exception as error:  # noqa: BLE001 - Ray raises many kinds; any of them is the end of this run
            ending = (self._whose_fault(error), f"{type(error).__name__}: {error}")
        if ending is not None:
            words = ending[1].encode("utf-8", "replace")[: MAX_MESSAGE_BYTES - 8].decode("utf-8", "ignore")
            self._wire.send(Failed(kind=ending[0], message=words))
            return
        for report in self._hub.flush_reports():
            self._wire.send(Progress(step=report.step, metrics=report.metrics))
        self._send_last_checkpoint()
        self._send_outputs()
        self._wire.send(Finished())

    def take_frame(self, frame: Any) -> None:
        """Something the daemon said after `Begin`; called from the thread that reads."""
        if isinstance(frame, Whole) and isinstance(frame.header, RoundResult):
            with self._hub_lock:
                self._act(self._hub.took_result(frame.header.round, frame.data))
        elif isinstance(frame, CheckpointStored):
            with self._hub_lock:
                self._unsaved = None
                if self._saved is not None:
                    self._send_checkpoint()
                self._stored.set()
        elif isinstance(frame, Stop):
            self.stop()

    def stop(self) -> None:
        """Let every worker end at its next call."""
        self._stop_asked = True
        for actor in self._actors:
            actor.stop.remote()

    def _start_workers(self) -> list[Any]:
        from hansa.worker.shard_worker import ShardWorker  # noqa: PLC0415 - Ray must be up before its workers are

        begin = self._begin
        actor_class = self._ray.remote(
            num_cpus=1, num_gpus=begin.gpus / begin.workers if begin.gpus else 0, max_concurrency=4
        )(ShardWorker)
        settings = {
            "entry": begin.entry,
            "code": str(CODE),
            "shard": begin.shard,
            "shards": begin.shards,
            "workers": begin.workers,
            "parameters": {name: json.loads(value) for name, value in begin.parameters},
            "inputs": INPUTS,
            "outputs": OUTPUTS,
            "round_number": begin.round,
            "checkpoint": self._checkpoint,
        }
        actors = [actor_class.remote({**settings, "worker": number}) for number in range(begin.workers)]
        self._ray.get([actor.process_id.remote() for actor in actors])
        return actors

    def _follow(self, working: list[Any]) -> tuple[str, str] | None:
        """Pass on what the workers say until all have returned: ``None``, or the kind and words of a failure."""
        servers = ray_processes()
        looked_s = time.monotonic()
        taking = {actor.take.remote(TAKE_S): number for number, actor in enumerate(self._actors)}
        living = set(taking.values())
        while living:
            ready, _ = self._ray.wait([*taking, *working], num_returns=1, timeout=1.0)
            if time.monotonic() - looked_s > BEAT_S:  # without the GCS everything just hangs, silently
                looked_s = time.monotonic()
                if ray_processes() != servers:
                    return "ray-lost", "one of Ray's servers died"
            for done in ready:
                if done in working:
                    self._ray.get(done)  # it returns nothing; it raises if the worker died
                    working.remove(done)
                    continue
                number = taking.pop(done)
                ended = self._take_messages(number, self._ray.get(done))
                if ended is None:
                    taking[self._actors[number].take.remote(TAKE_S)] = number
                    continue
                living.discard(number)
                if ended[0] in ("bad-entry", "user-exception"):
                    return ended
                with self._hub_lock:
                    self._act(self._hub.took_end(number))
        return None

    def _take_messages(self, worker: int, messages: list[tuple[Any, ...]]) -> tuple[str, str] | None:
        """Pass on what one worker said; gives the kind and words of its end if that was among it."""
        for message in messages:
            self._progress += 1
            match message:
                case ("started",):
                    if not self._started:
                        self._started = True
                        self._wire.send(Started())
                case ("log", stream, data):
                    for start in range(0, len(data), MAX_LOG_BYTES):
                        self._wire.send(Log(stream=stream, data=data[start : start + MAX_LOG_BYTES]))
                case ("report", step, metrics):
                    with self._hub_lock:
                        self._act(self._hub.took_report(worker, step, metrics))
                case ("sync", number, weight, tree):
                    with self._hub_lock:
                        self._act(self._hub.took_sync(worker, number, weight, tree))
                case ("checkpoint", number, step, state):
                    with self._hub_lock:
                        self._saved = (number, step, state)
                        if self._unsaved is None:
                            self._send_checkpoint()
                case ("ended", how, words):
                    return how, words
        return None

    def _act(self, orders: list[Any]) -> None:
        for order in orders:
            match order:
                case Report():
                    self._wire.send(Progress(step=order.step, metrics=order.metrics))
                case Contribute():
                    if len(order.state) > self._begin.state_bytes:
                        raise Malformed("state", f"{len(order.state)} bytes are over the limit of the run")
                    header = Sync(round=order.round, weight=order.weight, size_bytes=len(order.state))
                    self._wire.send_with(header, order.state)
                case Deliver():
                    kept = self._ray.put(order.state)
                    for actor in self._actors:
                        actor.deliver.remote(order.round, kept)

    def _send_checkpoint(self) -> None:
        """The newest checkpoint; while one is on its way, a newer one replaces the one that waits."""
        assert self._saved is not None, "there is one to send"
        number, step, state = self._saved
        self._saved = None
        self._unsaved = (number, step)
        if len(state) > self._begin.state_bytes:
            raise Malformed("checkpoint", f"{len(state)} bytes are over the limit of the run")
        self._wire.send_with(Checkpoint(round=number, step=step, size_bytes=len(state)), state)

    def _send_last_checkpoint(self) -> None:
        """The newest may still wait for the one before it to be stored."""
        deadline = time.monotonic() + STORE_S
        while self._saved is not None and time.monotonic() < deadline:
            self._stored.clear()
            self._stored.wait(BEAT_S)

    def _send_outputs(self) -> None:
        files = sorted(path for path in OUTPUTS.rglob("*") if stat.S_ISREG(path.lstat().st_mode))
        left = self._begin.output_bytes
        for path in files[:MAX_FILES]:
            name = path.relative_to(OUTPUTS).as_posix()
            size = path.stat().st_size
            if not is_safe_path(name) or size > left:
                self._wire.send(Log(stream="stderr", data=f"output left out: {name[:200]}, {size} bytes\n".encode()))
                continue
            data = path.read_bytes()
            left -= len(data)
            self._wire.send_with(Output(path=name, size_bytes=len(data)), data)

    def _whose_fault(self, error: Exception) -> str:
        names = {kind.__name__ for kind in type(error).__mro__}
        if "OutOfMemoryError" in names:
            return "out-of-memory"
        if names & {"ActorDiedError", "WorkerCrashedError", "RayActorError", "ActorUnavailableError"}:
            return "worker-died"
        return "ray-lost"


def main() -> None:
    """Serve the run that the daemon names on the inherited socket, then leave by the shortest way."""
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    wire.send(Ready())
    frames = wire.frames()
    assembler = Assembler(lambda header: header.size_bytes)  # the daemon is trusted here
    whole = next(filter(None, (assembler.feed(frame) for frame in frames)))
    begin = whole.header
    run = Run(wire, begin, whole.data if begin.has_checkpoint else None)
    threading.Thread(target=run.beat, daemon=True, name="hansa-heartbeat").start()

    def listen() -> None:
        for frame in frames:
            complete = assembler.feed(frame)
            if complete is not None:
                run.take_frame(complete)
        os._exit(0)  # the daemon hung up: nobody is left to work for

    threading.Thread(target=listen, daemon=True, name="hansa-frames").start()
    run.execute()
    # Ray's own way out takes two seconds; the end of this process is the end of the sandbox anyway. The daemon closes
    # the socket when it has read everything, so wait for that rather than cut off the last frames.
    time.sleep(5)
    os._exit(0)


if __name__ == "__main__":
    main()
