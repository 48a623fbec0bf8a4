"""What the executor tells of a run: its machine hears it first, then the sale, and then the buyer is told."""

from collections.abc import Iterator
from typing import Any

from hansa.market import sale, sale_events
from hansa.market.effects import Send, clipped
from hansa.market.sale_state import Sale
from hansa.node.engine.events import DevicesUsed, RunNews
from hansa.node.engine.selling_turns import LAST_ROUND, advance_run, advance_sale, progress_of
from hansa.node.engine.state import NodeState
from hansa.proto import messages
from hansa.scheduler import run
from hansa.scheduler.run import Run

Effects = list[Any]

NEWS_KEEP_MS = 60_000
"""A report or a checkpoint that could not be brought for so long is overtaken."""
ROUND_KEEP_MS = 3_600_000


def take_use(state: NodeState, event: DevicesUsed) -> Effects:
    """The driver's samples: how much of a lease's time its devices really computed."""
    entry = state.sale_on(event.lease)
    if entry is None:
        state.ignore("sale", "the use of devices without a lease")
        return []
    return advance_sale(state, entry.bid_digest, sale_events.UseSampled(busy_ms=event.busy_ms))


def take_run_news(state: NodeState, event: RunNews) -> Effects:
    """The executor tells of a run: the run's machine, then the sale's, then the buyer."""
    entry = state.sale_on(event.run)
    if entry is None or state.runs.get(event.run) is None:
        state.ignore("run", "news of no run of ours")
        return []
    effects = advance_run(state, event)
    current = state.runs.get(event.run)
    assert current is not None
    match event:
        case run.RunStarted(at_ms=at_ms):
            effects += advance_sale(state, entry.bid_digest, sale_events.RunBegan(at_ms=at_ms))
        case run.RunProgressed(step=step):
            effects += advance_sale(state, entry.bid_digest, progress_of(current, event.at_ms, step))
        case run.RunSynced() | run.RunCheckpointed():
            effects += advance_sale(state, entry.bid_digest, progress_of(current, event.at_ms, None))
    if isinstance(event, run.RunKept) and current.phase != run.KEPT:
        return effects  # it was told to stop before, and goes
    return effects + _tell_buyer(entry, event)


def _tell_buyer(entry: Sale, event: RunNews) -> Effects:
    lease, keep_ms, replaces = event.run, NEWS_KEEP_MS, ""
    message: Any = None
    match event:
        case run.RunStarted():
            message, replaces = messages.RunReported(lease=lease, step=0, metrics=(), started=True), "started"
        case run.RunProgressed(step=step, metrics=metrics):
            named = tuple(messages.Metric(name=name, value=value) for name, value in metrics[: messages.MAX_METRICS])
            message = messages.RunReported(lease=lease, step=step, metrics=named, started=True)
            replaces = f"step {step}"
        case run.RunSynced(round=number, weight_ppm=weight_ppm, state=contribution):
            # A job's code counts the rounds that it has behind it, the market the one that is being made.
            # Nor does any weight count for nothing: a contribution without one is turned away.
            weight_milli = max(1, weight_ppm // 1000)
            message = messages.RoundContributed(
                lease=lease, round=min(number + 1, LAST_ROUND), weight_milli=weight_milli, state=contribution
            )
            keep_ms, replaces = ROUND_KEEP_MS, "contribution"
        case run.RunCheckpointed(round=number, step=step, checkpoint=checkpoint):
            message = messages.CheckpointStored(
                lease=lease, round=min(number, LAST_ROUND), step=step, checkpoint=checkpoint
            )
            keep_ms, replaces = ROUND_KEEP_MS, "checkpoint"
        case run.RunOutput(path=path, blob=blob):
            message = messages.OutputStored(lease=lease, path=path, blob=blob)
            keep_ms = sale.DELIVERY_MS
        case run.RunKept(kind=kind, reason=reason, until_ms=until_ms):
            message = messages.RunKept(lease=lease, kind=kind, reason=clipped(reason, 8_000), until_ms=until_ms)
            keep_ms, replaces = ROUND_KEEP_MS, "kept"
    if message is None:
        return []
    keep_until_ms = event.at_ms + keep_ms
    replaces = replaces and f"{replaces} {lease.hex()}"
    return [Send(to=entry.buyer, message=message, keep_until_ms=keep_until_ms, replaces=replaces)]


def tell_checkpoint(state: NodeState, current: Run, at_ms: int) -> Effects:
    """The newest checkpoint of a run, said again to its buyer: the word of it may have died with the daemon."""
    entry = state.sale_on(current.run)
    if entry is None or current.checkpoint is None or not current.checkpoint_at_ms:
        return []
    told = run.RunCheckpointed(
        run=current.run,
        round=current.checkpoint_round,
        step=current.checkpoint_step,
        checkpoint=current.checkpoint,
        at_ms=at_ms,
    )
    return _tell_buyer(entry, told)


def life_signs(state: NodeState, at_ms: int) -> Iterator[Send]:
    """What tells the buyers that their runs live, or wait for money; said every few seconds, kept nowhere."""
    for waiting in state.sales.live.values():
        if waiting.phase in ("leased", "funding"):
            yield _life_sign(waiting, step=0, started=False, at_ms=at_ms)
    for lease, current in state.runs.live.items():
        entry = state.sale_on(lease)
        if entry is not None and entry.phase == "running":
            started = current.phase == run.RUNNING
            yield _life_sign(entry, step=current.step, started=started, at_ms=at_ms)


def _life_sign(entry: Sale, *, step: int, started: bool, at_ms: int) -> Send:
    sign = messages.RunReported(lease=entry.lease, step=step, metrics=(), started=started)
    replaces = f"life {entry.lease.hex()}"
    return Send(to=entry.buyer, message=sign, keep_until_ms=at_ms + NEWS_KEEP_MS, replaces=replaces)
