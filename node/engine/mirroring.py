"""The provider's room for copies of other shards' checkpoints: what buyers ask of it, and when it is all forgotten.

The copies of one lease are a ``scheduler.mirror`` machine, which lives as long as the lease may still run something.
"""

from collections.abc import Iterator
from typing import Any

from hansa.market.sale_state import Sale
from hansa.node.engine.events import CopyFetched, MessageArrived
from hansa.node.engine.state import NodeState
from hansa.proto import messages
from hansa.proto.blob import BlobRef
from hansa.proto.sealed import weight_bytes
from hansa.scheduler import mirror
from hansa.scheduler.mirror import Grant, Mirror

Effects = list[Any]

PAID_FOR = ("leased", "funding", "running", "delivering")
"""Phases of a sale in which its lease pays for the copies that are kept under it."""


def hear(state: NodeState, event: MessageArrived, entry: Sale) -> Effects:
    """The buyer of a lease wants a copy held, released, or given to somebody."""
    effects = sweep(state, event.at_ms)
    if entry.phase not in PAID_FOR or entry.workload is None:
        state.ignore("mirror", "the wish of a buyer whose lease is over")
        return effects
    news: Any = None
    match event.message:
        case messages.MirrorWanted(shard=shard, checkpoint=checkpoint, holder=holder):
            weight = weight_bytes(checkpoint, entry.tender.requirements)
            if not 0 < weight <= entry.workload.state_bytes or shard >= entry.workload.shards:
                state.ignore("mirror", "a copy without bytes or over the workload's limit, or of no shard of the job")
                return effects
            news = mirror.CopyWanted(
                shard=shard,
                checkpoint=checkpoint,
                holder=holder,
                most_bytes=_room_bytes(state, entry.lease, event.sender),
                at_ms=event.at_ms,
            )
        case messages.MirrorReleased(shard=shard):
            news = mirror.CopyUnwanted(shard=shard, at_ms=event.at_ms)
        case messages.CheckpointGranted(checkpoint=checkpoint, account=account):
            news = mirror.Granted(grant=Grant(account=account, checkpoint=checkpoint), at_ms=event.at_ms)
    return effects + _of_lease(state, entry, news)


def name_sources(state: NodeState, order: messages.RunOrdered, entry: Sale, at_ms: int) -> None:
    """A run is ordered whose checkpoint others have beside the buyer."""
    if order.mirrors and order.checkpoint is not None and order.checkpoint.size_bytes > 0:
        _of_lease(state, entry, mirror.SourcesNamed(accounts=order.mirrors, at_ms=at_ms))


def _of_lease(state: NodeState, entry: Sale, news: Any) -> Effects:
    if state.mirrors.get(entry.lease) is None:
        state.begin("mirror", state.mirrors, entry.lease, Mirror(lease=entry.lease, buyer=entry.buyer))
    return _advance(state, entry.lease, news)


def take_copy(state: NodeState, event: CopyFetched) -> Effects:
    """A copy that was on its way is here."""
    return _advance(state, event.lease, mirror.CopyCame(checkpoint=event.checkpoint, at_ms=event.at_ms))


def restart(state: NodeState, at_ms: int) -> Effects:
    """Copies that were on their way are fetched again."""
    effects = sweep(state, at_ms)
    return effects + [effect for current in state.mirrors.live.values() for effect in mirror.outstanding(current)]


def sweep(state: NodeState, at_ms: int) -> Effects:
    """Forget what was kept under leases that are over."""
    effects: Effects = []
    for lease in [lease for lease in state.mirrors.live if not is_paid_for(state, lease)]:
        effects += _advance(state, lease, mirror.LeaseEnded(at_ms=at_ms))
    return effects


def is_paid_for(state: NodeState, lease: bytes) -> bool:
    """Whether the lease of a mirror may still run something."""
    entry = state.sale_on(lease)
    return entry is not None and entry.phase in PAID_FOR


def mirrored_blobs(state: NodeState) -> set[BlobRef]:
    """Every copy that is held or on its way, and paid for."""
    live = (current for lease, current in state.mirrors.live.items() if is_paid_for(state, lease))
    return {blob for current in live for copy in current.copies for blob in copy.blobs}


def granted_by(state: NodeState, account: bytes, blob: BlobRef) -> Iterator[bytes]:
    """The buyers that let an account have a blob which they themselves may have, if anybody does."""
    for lease, current in state.mirrors.live.items():
        entry = state.sale_on(lease)
        if entry is None or entry.workload is None or entry.phase not in PAID_FOR:
            continue
        code = {entry.workload.package, entry.workload.files}
        for grant in current.grants:
            if grant.account == account and (blob == grant.checkpoint or blob in code):
                yield current.buyer


def _room_bytes(state: NodeState, lease: bytes, buyer: bytes) -> int:
    """What one lease's copies may take of the owner's limit. A buyer's own node is no second place."""
    if state.terms is None or buyer == state.account:
        return 0
    others = sum(current.size_bytes for key, current in state.mirrors.live.items() if key != lease)
    return max(0, state.terms.mirror_bytes - others)


def _advance(state: NodeState, lease: bytes, event: Any) -> Effects:
    return list(state.turn("mirror", state.mirrors, lease, mirror.advance, event))
