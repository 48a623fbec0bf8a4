"""The sandbox's main program: frames to the daemon on one side, Ray and the job's code on the other.

    python -m hansa.worker.runner FD

It starts a cluster, lets the job's entry function run in every worker, and passes on what they say. It decides nothing
that matters: limits are held outside, since the job's code could replace this process at will.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from hansa.proto.errors import ProtocolError
from hansa.proto.frames import (
    MAX_LOG_BYTES,
    Begin,
    CheckpointStored,
    Chunk,
    CloseShell,
    Finished,
    Heartbeat,
    Keep,
    Leave,
    Left,
    Log,
    OpenShell,
    Progress,
    Ready,
    ResizeShell,
    RoundResult,
    ShellCredit,
    ShellInput,
    Started,
    Stop,
)
from hansa.worker.averaging import Uneven
from hansa.worker.checkpoints import Checkpoints, DropSaved, LeaveNow, Saved, SendSaved
from hansa.worker.cluster import end_processes, prepare_environment, ray_processes, read_own_gang
from hansa.worker.deaths import Deaths, read_crash
from hansa.worker.gang_outputs import bring_outputs
from hansa.worker.handed_over import SMALL_BYTES, HandedOver
from hansa.worker.hub import Contribute, Deliver, Hub, Report
from hansa.worker.outputs import Unsteady, send_outputs
from hansa.worker.readiness import RunningCluster, await_begin, start_workers
from hansa.worker.shard_worker import CHECKPOINT
from hansa.worker.shell_host import ShellHost, session_of
from hansa.worker.tasks import PoolRoom
from hansa.worker.transfers import Incoming, Outgoing
from hansa.worker.way_out import WAY_OUT, start_way_out
from hansa.worker.wire import Wire

CODE, INPUTS, OUTPUTS, WORK = Path("/job/code"), Path("/job/inputs"), Path("/job/outputs"), Path("/job/work")
BEAT_S = 1.0
TAKE_S = 20.0
STORE_S = 10.0
LAST_WORDS_S = 5.0
SWEEPS = 3
SWEEP_S = 0.3


class Run:
    """One run, from `Begin` to `Finished`, `Left` or `Failed`."""

    def __init__(self, wire: Wire, begin: Begin, standing: RunningCluster | None = None) -> None:
        """Nothing has happened yet, but that its workers may be up already."""
        self._wire = wire
        self._begin = begin
        self._hub = Hub(begin.workers)
        self._checkpoints = Checkpoints()
        self._lock = threading.Lock()
        self._shells = ShellHost(wire.send, WORK)
        self._deaths = Deaths(self._took_death)
        self._standing = standing
        self._ray: Any = None
        self._actors: list[Any] = []
        self._worker_pids: dict[int, int] = {}
        self._outgoing: Outgoing | None = None
        self._up = threading.Event()
        self._ready_to_work = threading.Event()
        self._incoming: tuple[int | None, Incoming | None] = (None, None)
        self._newest_result = -1
        self._result: bytes | None = None
        self._synced: dict[int, HandedOver] = {}
        self._progress = 0
        self._started = False
        self._stop_asked = False
        self._leaving = False
        self._left = False
        self._stored = threading.Event()
        self.kept = threading.Event()

    def beat(self) -> None:
        """Tell the daemon every second how far the job is; a run whose figure stands still is stuck."""
        while True:
            self._wire.send(Heartbeat(progress=self._progress, waiting=self._hub.waiting))
            time.sleep(BEAT_S)

    def execute(self) -> None:
        """Start Ray, run the job's code in every worker, and say how it ended."""
        if self._standing is None:
            prepare_environment(self._begin.threads)
        try:
            if WAY_OUT.exists():
                start_way_out()
            standing = self._standing or start_workers(self._begin.workers, self._begin.gpus)
            self._ray, self._actors = standing.ray, standing.actors
            self._settle_workers()
            self._outgoing = Outgoing(self._ray, self._actors, self._wire, self._begin.state_bytes)
            self._up.set()
            if self._begin.has_checkpoint:
                self._ready_to_work.wait()
            if self._leaving:
                self.leave()
            if self._stop_asked:
                self.stop()
            ending = self._follow([actor.work.remote() for actor in self._actors])
            if ending is None:
                self._conclude()
        except Uneven as error:
            ending = ("bad-state", str(error))
        except ProtocolError as error:
            ending = ("bad-state", error.why)
        except Unsteady as error:
            ending = ("user-exception", str(error))
        except Exception as error:  # noqa: BLE001 - Ray raises many kinds; any of them is the end of this run
            ending = self._whose_fault(error)
        if ending is not None:
            self._wire.fail(*ending)

    def take_frame(self, frame: Any) -> None:
        """Something the daemon said after `Begin`; called from the thread that reads."""
        match frame:
            case RoundResult():
                self._up.wait()
                wanted = frame.round > self._newest_result
                large = wanted and frame.size_bytes > SMALL_BYTES
                coming = Incoming(self._ray, self._actors, frame.round, frame.size_bytes) if large else None
                self._incoming = (frame.round if wanted else None, coming)
                self._newest_result = max(self._newest_result, frame.round)
            case Chunk():
                self._take_piece(frame.data)
            case CheckpointStored():
                with self._lock:
                    self._keep_in_order(self._checkpoints.stored())
                self._stored.set()
            case Stop():
                self._stop_asked = True
                self.stop()
            case Leave():
                self._leaving = True
                self.leave()
            case Keep():
                self.end_job()
            case OpenShell() | ShellInput() | ResizeShell() | ShellCredit() | CloseShell():
                self._shells.take(frame)

    def stop(self) -> None:
        """Let every worker end at its next call."""
        for actor in self._actors:
            actor.stop.remote()

    def leave(self) -> None:
        """Let the run end at its next checkpoint."""
        for actor in self._actors:
            actor.leave.remote()

    def end_job(self) -> None:
        """End all that the job's code runs in, so that its devices are free, and leave the rest to be looked at."""
        self.kept.set()
        for actor in self._actors:
            with contextlib.suppress(Exception):  # Ray may be broken; whoever looks at this run is to be heard still
                self._ray.kill(actor)  # on whichever machine it is; what it started beside itself ends below
        rays, shells = set(ray_processes().values()), self._shells.sessions()
        for _ in range(SWEEPS):
            end_processes(lambda pid: pid in rays or session_of(pid) in shells)
            time.sleep(SWEEP_S)

    def _take_piece(self, data: bytes) -> None:
        label, coming = self._incoming
        if label is None or (coming is not None and not coming.feed(data)):
            return
        self._incoming = (None, None)
        if label == CHECKPOINT:
            self._ready_to_work.set()
            return
        with self._lock:
            self._result = data if coming is None else None  # what is small is one chunk, and needs no way of its own
            self._act(self._hub.took_result(label))

    def expect_checkpoint(self) -> None:
        """The checkpoint that `Begin` announced comes next, and the workers are not there yet. Waits for them."""
        self._up.wait()
        self._incoming = (CHECKPOINT, Incoming(self._ray, self._actors, CHECKPOINT, self._begin.size_bytes))

    def _settle_workers(self) -> None:
        """Tell every worker what it is to do, and watch over it."""
        begin = self._begin
        settings = {
            "work": str(WORK),
            "entry": begin.entry,
            "code": str(CODE),
            "shard": begin.shard,
            "shards": begin.shards,
            "workers": begin.workers,
            "parameters": {name: json.loads(value) for name, value in begin.parameters},
            "inputs": INPUTS,
            "outputs": OUTPUTS,
            "round_number": begin.round,
            "has_checkpoint": begin.has_checkpoint,
            "room": self._room(),
        }
        settling = [actor.settle.remote({**settings, "worker": number}) for number, actor in enumerate(self._actors)]
        gang = read_own_gang()
        for number, pid in enumerate(self._ray.get(settling)):
            if gang is None or gang.place_of(number) == gang.place:  # elsewhere it is somebody else's number
                self._worker_pids[number] = pid
                self._deaths.watch(f"worker {number}", pid)
        for name, pid in ray_processes().items():
            self._deaths.watch(name, pid)

    def _room(self) -> PoolRoom | None:
        """What a pool of tasks may use: all that the shard has, where one process runs the job's code."""
        begin = self._begin
        if begin.workers > 1:
            return None
        return PoolRoom(gpus=begin.gpus, threads=begin.threads, state_bytes=begin.state_bytes)

    def _took_death(self, name: str, how: str) -> None:
        """Without one of Ray's own processes everything just hangs, silently. A worker's end Ray tells by itself."""
        if not name.startswith("worker "):
            self._wire.fail("ray-lost", f"Ray's {name} {how}")

    def _follow(self, working: list[Any]) -> tuple[str, str] | None:
        """Pass on what the workers say until all have returned: ``None``, or the kind and words of a failure."""
        assert self._outgoing is not None, "the workers are up"
        taking = {actor.take.remote(TAKE_S): number for number, actor in enumerate(self._actors)}
        living = set(taking.values())
        while living:
            ready, _ = self._ray.wait([*taking, *working], num_returns=1, timeout=BEAT_S)
            if self._outgoing.fault is not None:
                raise self._outgoing.fault
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
                if ended[0] not in ("finished", "stopped"):
                    return ended
                if ended[0] == "stopped" and self._leaving:
                    self._left = True
                with self._lock:
                    self._act(self._hub.took_end(number))
        return None

    def _conclude(self) -> None:
        """All workers have returned: send what is still to be sent, and say so."""
        assert self._outgoing is not None, "the workers were up"
        for report in self._hub.flush_reports():
            self._wire.send(Progress(step=report.step, metrics=report.metrics))
        deadline = time.monotonic() + STORE_S
        while self._checkpoints.waiting and time.monotonic() < deadline:
            self._stored.clear()
            self._stored.wait(BEAT_S)  # the newest may still wait for the one before it to be stored
        self._outgoing.flush()
        if self._left and not self._stop_asked:
            self._wire.send(Left())
            return
        gang = read_own_gang()
        if gang is not None:
            bring_outputs(self._ray, self._actors, gang, OUTPUTS, self._say)
        send_outputs(self._wire, OUTPUTS, self._begin.output_bytes)
        self._wire.send(Finished())

    def _say(self, text: str) -> None:
        """A line of ours in the run's log."""
        self._wire.send(Log(stream="stderr", data=text.encode("utf-8", "replace")))

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
                    with self._lock:
                        self._act(self._hub.took_report(worker, step, metrics))
                case ("sync", given, number, weight):
                    with self._lock:
                        self._synced[worker] = given
                        self._act(self._hub.took_sync(worker, number, weight))
                case ("checkpoint", given, number, step):
                    with self._lock:
                        saved = Saved(given=given, round=number, step=step, last=self._leaving)
                        self._keep_in_order(self._checkpoints.took(saved))
                case ("ended", how, words):
                    return how, words
        return None

    def _act(self, orders: list[Any]) -> None:
        for order in orders:
            match order:
                case Report():
                    self._wire.send(Progress(step=order.step, metrics=order.metrics))
                case Contribute():
                    assert self._outgoing is not None, "the workers are up"
                    self._outgoing.contribute(order, {worker: self._synced.pop(worker) for worker in order.weights})
                case Deliver():
                    assert self._outgoing is not None, "the workers are up"
                    while self._synced:  # nobody wants these any more
                        self._outgoing.drop(*self._synced.popitem())
                    for actor in self._actors:
                        actor.go_on.remote(order.round, self._result)

    def _keep_in_order(self, orders: list[Any]) -> None:
        for order in orders:
            assert self._outgoing is not None, "the workers are up"
            match order:
                case SendSaved(saved=saved):
                    self._outgoing.save(saved)
                case DropSaved(saved=saved):
                    self._outgoing.drop(0, saved.given)
                case LeaveNow():
                    self.stop()

    def _whose_fault(self, error: Exception) -> tuple[str, str]:
        """The kind and words of a failure that Ray told, with what the system knows of it."""
        names = {kind.__name__ for kind in type(error).__mro__}
        if "OutOfMemoryError" in names:
            return "out-of-memory", str(error)
        if names & {"ActorDiedError", "WorkerCrashedError", "RayActorError", "ActorUnavailableError"}:
            return "worker-died", self._how_workers_died() or f"{type(error).__name__}: {error}"
        return "ray-lost", f"{type(error).__name__}: {error}"

    def _how_workers_died(self) -> str:
        words = []
        for number, pid in self._worker_pids.items():
            how = self._deaths.how(f"worker {number}")
            if how is not None:
                crash = read_crash(pid)
                words.append(f"worker {number} {how}" + (f"\n{crash}" if crash else ""))
        return "\n".join(words)


def main() -> None:
    """Serve the run that the daemon names on the inherited socket, then leave by the shortest way."""
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    wire.send(Ready())
    frames = wire.frames()
    begin, standing = await_begin(wire, frames)
    os.chdir(WORK)  # where this process began may be what the run's disk covers by now
    run = Run(wire, begin, standing)
    threading.Thread(target=run.beat, daemon=True, name="hansa-heartbeat").start()

    def listen() -> None:
        if begin.has_checkpoint:
            run.expect_checkpoint()
        for frame in frames:
            run.take_frame(frame)
        os._exit(0)  # the daemon hung up: nobody is left to work for

    threading.Thread(target=listen, daemon=True, name="hansa-frames").start()
    run.execute()
    # Ray's own way out takes two seconds; the end of this process is the end of the sandbox anyway. The daemon closes
    # the socket when it has read everything, so wait for that rather than cut off the last frames.
    if run.kept.wait(LAST_WORDS_S):
        threading.Event().wait()  # until the daemon hangs up
    os._exit(0)


if __name__ == "__main__":
    main()
