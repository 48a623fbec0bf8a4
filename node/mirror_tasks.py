"""Copies of checkpoints on their way: a provider fetches another shard's, a buyer fetches back what it lost."""

import contextlib
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from hansa.node.blob_exchange import FetchFailed
from hansa.node.blobs import BlobMissing, NoRoom
from hansa.node.directory import Stranger
from hansa.node.events import CopyFetched
from hansa.proto.blob import BlobRef, chunk_count
from hansa.scheduler.job_state import Job
from hansa.scheduler.mirror import FetchCopy

if TYPE_CHECKING:
    from hansa.node.daemon import Daemon

RETRY_S = 2.0


async def peers_of(daemon: "Daemon", accounts: Sequence[bytes]) -> list[str]:
    """Where those of some accounts are that can be reached now, in their order."""
    found: dict[int, str] = {}

    async def reach(number: int, account: bytes) -> None:
        with contextlib.suppress(Stranger):
            found[number] = await daemon.directory.reach(account)

    async with trio.open_nursery() as nursery:
        for number, account in enumerate(accounts):
            if account not in (daemon.state.account, bytes(20)):
                nursery.start_soon(reach, number, account)
    return [found[number] for number in sorted(found)]


async def fetch_copy(daemon: "Daemon", order: FetchCopy) -> None:
    """Bring a checkpoint here from its buyer or from whoever made it, as long as it is wanted."""
    while _is_wanted(daemon, order):
        if await _fetch(daemon, order):
            daemon.tell(CopyFetched(lease=order.lease, checkpoint=order.checkpoint, at_ms=daemon.now_ms()))
            return
        await trio.sleep(RETRY_S)


def _is_wanted(daemon: "Daemon", order: FetchCopy) -> bool:
    current = daemon.state.mirrors.live.get(order.lease)
    return current is not None and any(copy.wanted == order.checkpoint for copy in current.copies)


async def _fetch(daemon: "Daemon", order: FetchCopy) -> bool:
    sources = await peers_of(daemon, (order.buyer, order.holder))
    if daemon.store.has(order.checkpoint):
        # It may be here for somebody else. What a buyer has a right to by asking for a copy, it must have had before.
        return await _is_proved(daemon, order.checkpoint, sources)
    try:
        await daemon.exchange.fetch(order.checkpoint, sources, like=[order.like] if order.like else [])
    except (FetchFailed, NoRoom):
        return False
    return True


async def _is_proved(daemon: "Daemon", blob: BlobRef, sources: Sequence[str]) -> bool:
    """Whether one of the sources shows a chunk, drawn by chance, of a blob that is here already."""
    count = chunk_count(blob.size_bytes)
    if count == 0:
        return True
    try:
        return await daemon.exchange.holds(blob, secrets.randbelow(count), sources)
    except BlobMissing:
        return False


async def bring_back(daemon: "Daemon") -> None:
    """Fetch what jobs of ours need and this node has lost: checkpoints and code, from whoever holds them for us."""
    for of in list(daemon.state.jobs.live.values()):
        for blob, accounts in lost(daemon, of):
            with contextlib.suppress(FetchFailed, NoRoom):
                await daemon.exchange.fetch(blob, await peers_of(daemon, accounts))


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
