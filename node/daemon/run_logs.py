"""What runs print, on its way to who pays for them: for people, never journaled, best effort."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from hansa.market.effects import Send
from hansa.node.plain_text import summary
from hansa.proto.messages import RunLogSent
from hansa.scheduler.job_state import Job
from hansa.scheduler.run import RunLogged

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

PIECE_CHARS = 500
LONGEST_WORDS = 1_000
KEEP_MS = 30_000
"""Whoever is away for longer misses what was printed meanwhile."""


def pass_on(daemon: "Daemon", event: RunLogged) -> None:
    """At the provider: bring what a run printed to its buyer, in pieces."""
    sale = daemon.state.sale_on(event.run)
    if sale is None:
        return
    for start in range(0, len(event.text), PIECE_CHARS):
        message = RunLogSent(lease=event.run, text=event.text[start : start + PIECE_CHARS])
        if sale.buyer == daemon.account.address:
            keep(daemon, sale.buyer, message)
        else:
            daemon.outbox.put(Send(to=sale.buyer, message=message, keep_until_ms=daemon.now_ms() + KEEP_MS))


def keep(daemon: "Daemon", sender: bytes, message: RunLogSent) -> None:
    """At the buyer: keep what came for a shard, if its provider says it."""
    bought = daemon.state.purchase_on(message.lease)
    if bought is None:
        return
    for placement in bought.placements:
        if placement.lease == message.lease and placement.provider == sender:
            daemon.job_logs.append(bought.tender.job, placement.shard, message.text, daemon.now_ms())


def tell_of_losses(daemon: "Daemon", of: Job, shards: Collection[int]) -> None:
    """At the buyer: why these shards look for a provider once more, once for each lease that came to nothing.

    Who follows a job by its log reads there what ``hansa watch`` says, and not the same beginning again and again.
    """
    for shard in of.shards:
        if shard.shard not in shards or not shard.attempts or not shard.reason:
            continue
        if daemon.told_losses.get((of.job, shard.shard)) != shard.lease:
            daemon.told_losses[of.job, shard.shard] = shard.lease
            words = f"[buyer] attempt {shard.attempts} came to nothing: {summary(shard.reason, LONGEST_WORDS)}\n"
            daemon.job_logs.append(of.job, shard.shard, words, daemon.now_ms())


def say_of_run(daemon: "Daemon", run: bytes, text: str) -> None:
    """A line of this node's own in a run's log."""
    daemon.tell(RunLogged(run=run, text=f"[provider] {text}", at_ms=daemon.now_ms()))
