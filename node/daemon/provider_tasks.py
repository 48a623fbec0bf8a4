"""The provider's orders to the world: ask for a price; have a staged run stop, leave, take a round's result."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from hansa.node.daemon.bringing import RETRY_S, STAGE_PATIENCE_S, bring
from hansa.node.daemon.laying_out import Unstageable
from hansa.node.daemon.mirror_tasks import while_wanted
from hansa.node.engine.answering import PriceWanted
from hansa.node.engine.held_time import paid_times
from hansa.node.engine.logs import log_line
from hansa.node.engine.selling import DeliverRound
from hansa.node.pricing.price_program import priced, question_about
from hansa.node.storage.blob_shelf import BlobMissing
from hansa.node.storage.sealing import SealBroken
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest
from hansa.scheduler.run import LeaveRun, RunStopped

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon


async def price_tender(daemon: "Daemon", wanted: PriceWanted) -> None:
    """Ask the owner's program for the price of a tender, unless it thinks about that very tender already."""
    program, tender = daemon.price_program, digest(DOMAIN, wanted.tender)
    if program is None or tender in program.thinking_of:
        return
    program.thinking_of.add(tender)
    try:
        capacity, now_ms = daemon.state.capacity, daemon.now_ms
        devices = {device.id: device for device in capacity.devices}
        leased = sum(capacity.phase_of(device) == "leased" for device in devices)
        question = question_about(wanted, devices, leased=leased, owned=len(devices), at_ms=now_ms())
        is_known = wanted.tender.signer in paid_times(daemon.state)
        said = await priced(program, wanted, question, is_known=is_known, now_ms=now_ms)
    finally:
        program.thinking_of.discard(tender)
    if said.fault:
        log_line(f"the pricing program named no price: {said.fault}")
    daemon.tell(said)


async def stop_run(daemon: "Daemon", run: bytes, grace_ms: int) -> None:
    """End a run. One that never got as far as a sandbox has ended with that."""
    if run in daemon.executor.running:
        await daemon.executor.stop(run, grace_ms)
    else:
        if run in daemon.staging:
            daemon.staging[run].cancel()
        daemon.tell(RunStopped(run=run, at_ms=daemon.now_ms()))


async def leave_run(daemon: "Daemon", order: LeaveRun) -> None:
    """Have a run end at its next checkpoint, since its devices are wanted back."""
    await daemon.executor.leave(order.run, max(0, order.by_ms - daemon.now_ms()), order.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTurn:
    """Of the rounds that a run is told of only the newest is fetched.

    Attributes:
        newest: the one that was told last.
        scope: around what is done about it.
    """

    newest: DeliverRound
    scope: trio.CancelScope


async def deliver_round(daemon: "Daemon", order: DeliverRound) -> None:
    """Fetch a round's result and hand it to the run that waits for it, unless it ended or a newer one came meanwhile.

    A buyer may say as often as it likes that a round is published: what is no news is not acted upon.
    """
    turns = daemon.round_turns
    for ended in turns.keys() - daemon.executor.running:
        del turns[ended]
    before = turns.get(order.lease)
    if order.lease not in daemon.executor.running or order.round <= (before.newest.round if before else 0):
        return
    if before is not None:
        before.scope.cancel()
    with trio.CancelScope() as scope:
        turns[order.lease] = RoundTurn(newest=order, scope=scope)
        await while_wanted(daemon, order.state, partial(_is_awaited, daemon, order), _deliver_round, order)


def _is_awaited(daemon: "Daemon", order: DeliverRound) -> bool:
    turn = daemon.round_turns.get(order.lease)
    return turn is not None and turn.newest.state == order.state and order.lease in daemon.executor.running


async def _deliver_round(daemon: "Daemon", order: DeliverRound) -> None:
    while order.lease in daemon.executor.running:
        with trio.move_on_after(STAGE_PATIENCE_S):
            try:
                await bring(daemon, order.state, [order.buyer])
                await daemon.executor.deliver_round(order.lease, order.round - 1, order.state)
            except (BlobMissing, Unstageable, OSError):
                # There was no room for it, it went to make some, or too many files are open: that passes.
                await trio.sleep(RETRY_S)
                continue
            except (SealBroken, ValueError) as fault:
                await daemon.executor.fail(order.lease, "bad-state", f"what a round came to cannot be opened: {fault}")
            return
