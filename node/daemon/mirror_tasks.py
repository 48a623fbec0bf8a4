"""Copies of checkpoints on their way: a provider fetches another shard's, a buyer fetches back what it lost."""

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from hansa.node.daemon.bringing import Fetching, is_buyer_here, is_proved, peers_of
from hansa.node.engine.events import CopyFetched
from hansa.node.engine.logs import warn
from hansa.node.storage.blob_exchange import DiskFailed, FetchFailed
from hansa.node.storage.blob_shelf import NoRoom
from hansa.node.storage.disk_faults import in_words
from hansa.proto.blob import BlobRef
from hansa.scheduler.job_state import Job
from hansa.scheduler.mirror import FetchCopy

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

RETRY_S = 2.0
LOOK_EVERY_S = 0.5
"""How often it is looked whether what is being fetched is still wanted."""


@dataclass(slots=True, eq=False)
class CopyTurn:
    """Of the copies of one shard under one lease only the newest is fetched, when the one before has let go.

    A buyer may name ever new ones, each in a message: there is one task for all of them, which goes on to the newest.

    Attributes:
        newest: the one that was ordered last.
        scope: around the fetch that goes on.
    """

    newest: FetchCopy
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


async def fetch_copy(daemon: "Daemon", order: FetchCopy) -> None:
    """Bring a checkpoint here from its buyer or from whoever made it, as long as it is wanted."""
    if not _is_wanted(daemon, order):
        return
    key = order.lease, order.shard
    turn = daemon.copies.get(key)
    if turn is not None:
        turn.newest = order
        turn.scope.cancel()
        return
    turn = daemon.copies[key] = CopyTurn(newest=order)
    try:
        served = None
        while turn.newest is not served:
            served = turn.newest
            wanted = partial(_is_wanted, daemon, served)
            with trio.CancelScope() as turn.scope:
                await while_wanted(daemon, served.checkpoint, wanted, _fetch_until, served)
    finally:
        del daemon.copies[key]


async def _fetch_until(daemon: "Daemon", order: FetchCopy) -> None:
    is_told = False
    while True:
        try:
            if await _fetch(daemon, order):
                break
        except DiskFailed as fault:
            if not is_told:
                warn(
                    f"a copy of a checkpoint cannot be kept, which is tried again: {'; '.join(fault.reasons.values())}"
                )
            is_told = True
        await trio.sleep(RETRY_S)
    daemon.tell(CopyFetched(lease=order.lease, checkpoint=order.checkpoint, at_ms=daemon.now_ms()))


async def while_wanted(
    daemon: "Daemon",
    blob: BlobRef,
    is_wanted: Callable[[], bool],
    fetch: Callable[["Daemon", Any], Awaitable[None]],
    order: Any,
) -> None:
    """Fetch a blob until it is wanted no more, and then give its room back: what has come of it is of no use."""

    async def watch(scope: trio.CancelScope) -> None:
        while True:
            if not is_wanted():
                break
            await trio.sleep(LOOK_EVERY_S)
        scope.cancel()

    if not is_wanted():
        return
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            await fetch(daemon, order)
            nursery.cancel_scope.cancel()
    finally:
        if not is_wanted():
            with trio.CancelScope(shield=True):
                await _discard_part(daemon, blob)


async def _discard_part(daemon: "Daemon", blob: BlobRef) -> None:
    try:
        await trio.to_thread.run_sync(daemon.store.discard_part, blob)
    except OSError as fault:
        # It stays in the store's books, and goes when its room is needed or when it is old.
        warn(f"a fetch that was given up left its part behind: {in_words(fault)}")


def _is_wanted(daemon: "Daemon", order: FetchCopy) -> bool:
    current = daemon.state.mirrors.live.get(order.lease)
    copy = current.copy_of(order.shard) if current is not None else None
    return copy is not None and copy.wanted == order.checkpoint


async def _fetch(daemon: "Daemon", order: FetchCopy) -> bool:
    """Whether the copy is here, and its buyer's. Raises ``DiskFailed``.

    The holder is whoever the buyer names. It gives what *this node* may have there: as the provider of another buyer,
    or because another buyer lets it. So its bytes are taken from it, and prove nothing for who named it: what a buyer
    has a right to by asking for a copy, it must have had before, and itself shows a part of.
    """
    buyer = await peers_of(daemon, (order.buyer,))
    if not daemon.store.has(order.checkpoint):
        # Another buyer's line is not to be used up by who names it, either.
        holder = () if is_buyer_here(daemon.state, order.holder) else (order.holder,)
        sources = [*buyer, *(await peers_of(daemon, holder))]
        like = [order.like] if order.like else []
        try:
            shown = await daemon.exchange.fetch_shown(order.checkpoint, sources, like=like)
        except DiskFailed:
            raise
        except (FetchFailed, NoRoom):
            return False
        if shown and sources == buyer:
            return True
    return await is_proved(daemon, order.checkpoint, order.buyer, buyer)


async def bring_back_for(daemon: "Daemon", job: bytes) -> None:
    """Fetch what a job of ours needs and this node has lost, from whoever holds it for us.

    Each of its blobs is waited for as long as its bytes move, within a floor of speed.
    """
    of = daemon.state.jobs.live.get(job)
    for blob, accounts in lost(daemon, of) if of is not None else ():
        fetching = Fetching(total_bytes=blob.size_bytes, owners=accounts)
        fetching.begin()
        with fetching.scope, contextlib.suppress(FetchFailed, NoRoom):
            sources = await peers_of(daemon, fetching.owners)
            await daemon.exchange.fetch(blob, sources, moved=fetching.moved)


def lost(daemon: "Daemon", of: Job) -> list[tuple[BlobRef, tuple[bytes, ...]]]:
    """Which blobs of a job are not here, each with the accounts that may have it."""
    if of.phase != "running":
        return []
    running = tuple(shard.provider for shard in of.shards if of.on(shard.lease) is shard)
    wanted: list[tuple[BlobRef, tuple[bytes, ...]]] = [(of.package, running)]
    if of.files is not None:
        wanted.append((of.files, running))
    for shard in of.shards:
        if shard.checkpoint is not None and shard.phase != "finished":
            mirror = (shard.mirror.provider,) if shard.mirror is not None else ()
            wanted.append((shard.checkpoint.blob, (*mirror, shard.provider)))
    return [(blob, accounts) for blob, accounts in wanted if not daemon.store.has(blob)]
