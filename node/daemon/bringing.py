"""Blobs that come to a provider: from whom, for how long they are waited for, and who must show what is here already.

Fetching may take as long as bytes move, within a floor of speed: whoever hands them out one by one holds devices
without paying. Who knows the name of a blob does not thereby have it.
"""

import contextlib
import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from hansa.node.daemon.keeping import blobs_of_buyer, blobs_of_others
from hansa.node.daemon.laying_out import Unstageable
from hansa.node.daemon.run_logs import say_of_run
from hansa.node.engine.state import NodeState
from hansa.node.messaging.directory import Stranger
from hansa.node.quantities import format_size
from hansa.node.storage.blob_exchange import DiskFailed, FetchFailed
from hansa.node.storage.blob_shelf import BlobMissing, NoRoom
from hansa.proto.blob import BlobRef, chunk_count

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

STAGE_PATIENCE_S = 120.0
"""Without a single byte for so long, a fetch is given up."""
SLOWEST_BYTES_PER_S = 256 << 10
"""A job's files come at least this fast on the whole, or devices would be held for nothing."""
FILES_AT_ONCE = 3
RETRY_S = 1.0
SAY_EVERY_S = 5.0
_CHANCE = secrets.token_bytes(32)


@dataclass(slots=True, kw_only=True, eq=False)
class Fetching:
    """What one run waits for, how much of it has come, and for how long it is still waited for.

    Attributes:
        owners: who may be asked, the buyer first.
        like: what may be here already of blobs like these.
        foreign: what other buyers named here. Of these the buyer alone is asked: who mirrors them gives them to this
            node for the others' sake.
        fault: what failed on this machine last, and passes.
    """

    total_bytes: int
    owners: Sequence[bytes]
    like: Sequence[BlobRef] = ()
    foreign: frozenset[BlobRef] = frozenset()
    fault: str = ""
    came_bytes: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    latest: float = 0.0

    def begin(self) -> None:
        """The clock runs from now on."""
        now = trio.current_time()
        self.latest = now + STAGE_PATIENCE_S + self.total_bytes / SLOWEST_BYTES_PER_S
        self.scope.deadline = now + STAGE_PATIENCE_S

    def moved(self, size_bytes: int) -> None:
        """So many more bytes are here."""
        self.came_bytes += size_bytes
        self.scope.deadline = min(trio.current_time() + STAGE_PATIENCE_S, self.latest)


async def fetch_all(
    daemon: "Daemon", run: bytes, owners: Sequence[bytes], blobs: Sequence[BlobRef], like: Sequence[BlobRef] = ()
) -> None:
    """Bring blobs here, some at a time, and tell the buyer how far it is while that takes long."""
    buyers = blobs_of_buyer(daemon.state, owners[0])
    for blob in buyers.intersection(blobs):
        daemon.exchange.remember_shown(owners[0], blob)
    missing = [blob for blob in dict.fromkeys(blobs) if not _is_ready(daemon, blob, owners[0])]
    absent_bytes = sum(blob.size_bytes for blob in missing if not daemon.store.has(blob))
    foreign = blobs_of_others(daemon.state, owners[0]) if len(owners) > 1 else frozenset()
    fetching = Fetching(total_bytes=absent_bytes, owners=owners, like=like, foreign=foreign)
    if fetching.total_bytes > daemon.store.quota_bytes:
        raise Unstageable(f"this provider has no room for {format_size(fetching.total_bytes)}", "refused")
    fetching.begin()
    faults: list[Unstageable] = []
    with fetching.scope:
        async with trio.open_nursery() as nursery:
            queue = iter(missing)
            nursery.start_soon(_say_how_far, daemon, run, fetching)
            async with trio.open_nursery() as fetchers:
                for _ in range(min(FILES_AT_ONCE, len(missing))):
                    fetchers.start_soon(_fetch_each, daemon, queue, fetching, faults)
            nursery.cancel_scope.cancel()
    if faults:
        raise faults[0]
    if fetching.scope.cancelled_caught:
        came = f"{format_size(fetching.came_bytes)} of {format_size(fetching.total_bytes)} came"
        why = f"{came}; {fetching.fault}" if fetching.fault else came
        raise Unstageable(f"the job's code and files could not be fetched in time: {why}", "refused")


async def _fetch_each(
    daemon: "Daemon", queue: Iterator[BlobRef], fetching: Fetching, faults: list[Unstageable]
) -> None:
    for blob in queue:
        if faults:
            return
        try:
            await bring(daemon, blob, fetching.owners, fetching)
        except Unstageable as fault:
            faults.append(fault)


async def _say_how_far(daemon: "Daemon", run: bytes, fetching: Fetching) -> None:
    while True:
        await trio.sleep(SAY_EVERY_S)
        text = f"fetching: {format_size(fetching.came_bytes)} of {format_size(fetching.total_bytes)}\n"
        say_of_run(daemon, run, text)


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


async def bring(
    daemon: "Daemon",
    blob: BlobRef,
    owners: Sequence[bytes],
    fetching: Fetching | None = None,
) -> None:
    """Fetch a blob from the accounts that have it, whichever of them answer, trying again until cancelled.

    The first of the owners is the buyer. One that lies here already, for whomever, must be shown by one of them: who
    knows a blob's name does not thereby have it.
    """
    buyer = owners[0]
    moved, like = (fetching.moved, fetching.like) if fetching is not None else (None, ())
    if fetching is not None and blob in fetching.foreign:
        owners = owners[:1]
    while not _is_ready(daemon, blob, buyer):
        sources = await peers_of(daemon, owners)
        try:
            shown = not daemon.store.has(blob) and await daemon.exchange.fetch_shown(
                blob, sources, like=like, moved=moved
            )
            if shown or await is_proved(daemon, blob, buyer, sources):
                daemon.exchange.remember_shown(buyer, blob)
            else:
                await trio.sleep(RETRY_S)
        except NoRoom as fault:
            raise Unstageable(f"this provider has no room for it: {fault}", "refused") from fault
        except DiskFailed as fault:
            why = "; ".join(fault.reasons.values())
            if not fault.passes:
                raise Unstageable(f"this provider cannot lay out the job's files: {why}", "refused") from fault
            if fetching is not None:
                fetching.fault = why
            await trio.sleep(RETRY_S)
        except FetchFailed:
            await trio.sleep(RETRY_S)


def _is_ready(daemon: "Daemon", blob: BlobRef, buyer: bytes) -> bool:
    return daemon.store.has(blob) and is_shown(daemon, blob, buyer)


def is_shown(daemon: "Daemon", blob: BlobRef, buyer: bytes) -> bool:
    """Whether it is known that the buyer has, or had, the blob. What lies here is all this node's own already."""
    if buyer == daemon.state.account or daemon.exchange.was_shown(buyer, blob):
        return True
    return blob in blobs_of_buyer(daemon.state, buyer)


async def is_proved(daemon: "Daemon", blob: BlobRef, buyer: bytes, sources: Sequence[str]) -> bool:
    """Whether one of the sources shows a chunk, drawn by chance, of a blob that is here already. Raises ``DiskFailed``.

    It is drawn once for each buyer: who has one chunk of another's blob could else have it asked for until it is that.
    """
    count = chunk_count(blob.size_bytes)
    if count == 0:
        return True
    drawn = hashlib.blake2b(buyer + blob.root, key=_CHANCE, digest_size=8).digest()
    try:
        return await daemon.exchange.holds(blob, int.from_bytes(drawn, "big") % count, sources)
    except BlobMissing:
        return False


def is_buyer_here(state: NodeState, account: bytes) -> bool:
    """Whether an account buys, or has bought, of this node: it would give its own blobs to this node.

    And so it is not asked for any that somebody else names it as a source of.
    """
    return any(sale.buyer == account for _, sale in state.sales.all())
