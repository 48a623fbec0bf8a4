"""Runs as a provider's executor would tell of them, without any sandbox: steps, rounds, checkpoints, outputs, ends."""

from dataclasses import dataclass, field
from typing import Any

from simulation.parts import WHOLE
from simulation.world import World

from hansa.proto.blob import blob_ref
from hansa.scheduler import run

STALL_MS = 60_000


@dataclass(slots=True, kw_only=True)
class Script:
    """One run in its imagined sandbox."""

    lease: bytes
    devices: tuple[bytes, ...]
    part_milli: int
    rounds: int
    steps_a_round: int
    fails: str
    round: int = 0
    step: int = 0
    phase: str = "staging"
    paused: bool = False
    leaving: bool = False
    keep_failed_ms: int = 0
    held: list[Any] = field(default_factory=list)
    waiting_since_ms: int = 0


DEAF = 0.15
"""Share of runs that do not leave when they are told to, and have to be stopped."""
KEPT_FAILURES = ("worker-died", "out-of-memory", "user-exception", "stalled")
FAILURES = ("worker-died", "out-of-memory", "ray-lost", "sandbox-lost", "user-exception", "stalled")


class ScriptedExecutor:
    """All runs of one node. It dies with the node's daemon, and a new one is made."""

    def __init__(self, world: World, node: Any) -> None:
        """No runs yet."""
        self._world, self._node = world, node
        self.scripts: dict[bytes, Script] = {}
        self.dead = False

    def _tell(self, event: Any) -> None:
        if not self.dead:
            self._node.market.auditor.note_run(event)
            self._node.hear(event)

    def _later(self, script: Script, delay_ms: int, action: Any) -> None:
        def act() -> None:
            if self.dead or self.scripts.get(script.lease) is not script:
                return
            if script.paused:
                script.held.append(action)
            else:
                action(script)

        self._world.after(delay_ms, act)

    def start(
        self,
        order: run.StartRun,
        *,
        devices: tuple[bytes, ...],
        part_milli: int,
        rounds: int,
        steps_a_round: int,
        keep_failed_ms: int,
    ) -> None:
        """``StartRun``: a fresh sandbox, from the checkpoint's round."""
        if order.run in self.scripts:
            return
        for device in devices:
            busy = sum(script.part_milli for script in self.scripts.values() if device in script.devices)
            assert busy + part_milli <= WHOLE, "two runs have one device at one instant"
        chance = self._world.random
        fails = chance.choice(FAILURES) if self._world.chance(self._world.faults.run_failure) else ""
        script = Script(
            lease=order.run,
            devices=devices,
            part_milli=part_milli,
            rounds=rounds,
            steps_a_round=steps_a_round,
            fails=fails,
            round=order.round,
            keep_failed_ms=keep_failed_ms,
        )
        script.step = script.round * steps_a_round
        if order.checkpoint is not None:
            script.round, script.step = self._node.market.progress_in.get(
                order.checkpoint.root, (script.round, script.step)
            )
        self.scripts[order.run] = script
        self._later(script, chance.randint(100, 2_500), self._started)

    def _now_ms(self) -> int:
        return int(self._node.now_ms())

    def _started(self, script: Script) -> None:
        script.phase = "running"
        self._tell(run.RunStarted(run=script.lease, at_ms=self._now_ms()))
        self._work(script)

    def _work(self, script: Script) -> None:
        if script.round >= script.rounds:
            self._later(script, 100, self._finish)
        else:
            self._later(script, self._world.random.randint(200, 1_500), self._stepped)

    def _stepped(self, script: Script) -> None:
        if script.fails and self._world.chance(0.3):
            if script.keep_failed_ms and script.fails in KEPT_FAILURES and not script.leaving:
                self._keep(script)
            else:
                self._fail(script)
            return
        script.step += 1
        metrics = (("loss", 1.0 / script.step),)
        self._tell(run.RunProgressed(run=script.lease, step=script.step, metrics=metrics, at_ms=self._now_ms()))
        if script.step % script.steps_a_round:
            self._work(script)
        elif self._node.is_training(script.lease):
            self._sync(script)
        else:
            script.round += 1
            self._checkpoint(script)
            self._work(script)

    def _keep(self, script: Script) -> None:
        """A failed run stays to be looked at, and goes when nobody looks any more."""
        script.phase = "kept"
        at_ms = self._now_ms()
        until_ms = at_ms + script.keep_failed_ms
        self._tell(
            run.RunKept(run=script.lease, kind=script.fails, reason="as scripted …", until_ms=until_ms, at_ms=at_ms)
        )

        def forgotten() -> None:
            if self.scripts.get(script.lease) is script:
                self._fail(script)

        self._world.after(script.keep_failed_ms, forgotten)

    def _fail(self, script: Script) -> None:
        del self.scripts[script.lease]
        self._tell(run.RunFailed(run=script.lease, kind=script.fails, reason="as scripted …", at_ms=self._now_ms()))

    def _sync(self, script: Script) -> None:
        script.phase, script.waiting_since_ms = "waiting", self._world.now_ms
        state = blob_ref(script.lease + script.step.to_bytes(8, "big"))
        self._tell(
            run.RunSynced(run=script.lease, round=script.round, weight_ppm=1_000_000, state=state, at_ms=self._now_ms())
        )
        waiting_for = script.round + 1

        def stall(late: Script) -> None:
            if late.phase == "waiting" and late.round + 1 == waiting_for:
                del self.scripts[late.lease]
                event = run.RunFailed(run=late.lease, kind="stalled", reason="no round came", at_ms=self._now_ms())
                self._tell(event)

        self._later(script, STALL_MS, stall)

    def deliver_round(self, lease: bytes, number: int) -> None:
        """``DeliverRound``, its state fetched."""
        script = self.scripts.get(lease)
        if script is None or script.phase != "waiting" or number <= script.round:
            return
        script.phase, script.round = "running", number
        script.step = max(script.step, number * script.steps_a_round)
        if self._world.chance(0.5):
            self._checkpoint(script)
        self._work(script)

    def _checkpoint(self, script: Script) -> None:
        blob = blob_ref(b"checkpoint" + script.lease + script.step.to_bytes(8, "big"))
        self._node.market.progress_in[blob.root] = (script.round, script.step)
        number = script.round if self._node.is_training(script.lease) else 0
        self._tell(
            run.RunCheckpointed(run=script.lease, round=number, step=script.step, checkpoint=blob, at_ms=self._now_ms())
        )
        if script.leaving:
            self._leave(script)

    def _finish(self, script: Script) -> None:
        for number in range(self._world.random.randint(0, 2)):
            blob = blob_ref(script.lease + bytes([number]))
            self._tell(run.RunOutput(run=script.lease, path=f"out/{number}", blob=blob, at_ms=self._now_ms()))
        del self.scripts[script.lease]
        self._tell(run.RunFinished(run=script.lease, at_ms=self._now_ms()))

    def stop(self, order: run.StopRun) -> None:
        """``StopRun``: at once if there is no sandbox, else within the grace, a pause or not."""
        script = self.scripts.get(order.run)

        def stopped() -> None:
            if self.scripts.get(order.run) is script:
                self.scripts.pop(order.run, None)
                self._tell(run.RunStopped(run=order.run, at_ms=self._now_ms()))

        self._world.after(self._world.random.randint(0, order.grace_ms) if script else 0, stopped)

    def leave(self, order: run.LeaveRun) -> None:
        """``LeaveRun``: at the next checkpoint, or when there is no time left for one."""
        script = self.scripts.get(order.run)
        if script is None or self._world.chance(DEAF):
            return
        if script.phase == "kept":
            self._fail(script)
            return
        script.leaving = True

        def late() -> None:
            if self.scripts.get(order.run) is script:
                self._leave(script)

        self._world.after(order.by_ms - self._now_ms(), late)

    def _leave(self, script: Script) -> None:
        del self.scripts[script.lease]
        self._tell(run.RunFailed(run=script.lease, kind=run.RECLAIMED, reason="as it was told", at_ms=self._now_ms()))

    def pause(self, lease: bytes) -> None:
        """``PauseWanted``."""
        script = self.scripts.get(lease)
        if script is not None and not script.paused:
            script.paused = True
            self._tell(run.RunPaused(run=lease, at_ms=self._now_ms()))

    def resume(self, lease: bytes) -> None:
        """``ResumeWanted``: what was held back happens now."""
        script = self.scripts.get(lease)
        if script is not None and script.paused:
            script.paused = False
            self._tell(run.RunResumed(run=lease, at_ms=self._now_ms()))
            held, script.held = script.held, []
            for action in held:
                self._later(script, 0, action)
