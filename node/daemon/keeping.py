"""Which blobs this node needs, and who may have them: both follow from the state, so a restart forgets neither."""

from collections import OrderedDict
from dataclasses import fields, is_dataclass
from typing import Any

from hansa.market.sale_state import Sale
from hansa.node.engine.mirroring import granted_by, is_paid_for, mirrored_blobs
from hansa.node.engine.state import NodeState
from hansa.node.storage.file_lists import FileLists
from hansa.proto.blob import BlobRef
from hansa.scheduler.run import Run

MOST_GRANTS = 20_000


def wanted_blobs(state: NodeState, lists: FileLists | None = None) -> set[BlobRef]:
    """Everything that must not be evicted. What a run of ours was given is held by whoever staged it."""
    wanted: set[BlobRef] = set()
    for job in state.jobs.live.values():
        wanted.add(job.package)
        if job.files is not None:
            wanted.add(job.files)
            wanted.update(lists.blobs(job.files) if lists is not None else ())
        wanted.update(shard.checkpoint.blob for shard in job.shards if shard.checkpoint)
    for _, job in state.jobs.all():
        wanted.update(output.blob for shard in job.shards for output in shard.outputs if output.here)
    for rounds in state.rounds.live.values():
        if rounds.state is not None:
            wanted.add(rounds.state)
    wanted |= mirrored_blobs(state)
    for lease, run in state.runs.all():
        sale = state.sale_on(lease)
        if sale is None or sale.phase not in ("running", "delivering"):
            continue
        wanted.update(result.blob for result in run.outputs)
        if run.checkpoint is not None:
            wanted.add(run.checkpoint)
    return wanted


def checkpoint_blobs(state: NodeState) -> set[BlobRef]:
    """The newest states that something could go on from. What was among them and is not any more has been replaced."""
    found = mirrored_blobs(state)
    for job in state.jobs.live.values():
        found.update(shard.checkpoint.blob for shard in job.shards if shard.checkpoint)
    found.update(rounds.state for rounds in state.rounds.live.values() if rounds.state is not None)
    for lease, run in state.runs.all():
        sale = state.sale_on(lease)
        if sale is not None and sale.phase in ("running", "delivering") and run.checkpoint is not None:
            found.add(run.checkpoint)
    return found


def blobs_in(message: Any) -> set[BlobRef]:
    """The blobs that a message gives its receiver a right to.

    An award is not among those messages: who wins and never confirms has no business with the job's code. The package
    is a provider's from the moment in which its run is ordered, by the state of the job.
    """
    found: set[BlobRef] = set()
    for field in fields(message):
        value = getattr(message, field.name)
        if isinstance(value, BlobRef):
            found.add(value)
        elif is_dataclass(value) and not isinstance(value, type):
            found |= blobs_in(value)
    return found


class BlobGrants:
    """Who was told of which blob, and may therefore fetch it."""

    def __init__(self, lists: FileLists | None = None) -> None:
        """Begin with nobody. ``lists`` knows the files of this buyer's jobs."""
        self._lists = lists
        self._told: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()

    def give(self, account: bytes, message: Any) -> None:
        """The account is being told of the message's blobs."""
        for blob in blobs_in(message):
            self._told[account, blob.root] = None
            self._told.move_to_end((account, blob.root))
        while len(self._told) > MOST_GRANTS:
            self._told.popitem(last=False)

    def allow(self, state: NodeState, account: bytes, blob: BlobRef) -> bool:
        """Whether an account may have a blob: it was told of it since the start, or its lease says so."""
        if self._is_theirs(state, account, blob):
            return True
        # A buyer gives on what it may have itself, and nothing else that lies here.
        return any(self._is_theirs(state, buyer, blob) for buyer in granted_by(state, account, blob))

    def _is_theirs(self, state: NodeState, account: bytes, blob: BlobRef) -> bool:
        told = (account, blob.root) in self._told
        return told or blob in _by_lease(state, account) or self._is_file_of_lease(state, account, blob)

    def _is_file_of_lease(self, state: NodeState, account: bytes, blob: BlobRef) -> bool:
        """Whether one of the account's shards needs this file: a shard's own files are no business of another's."""
        for job in state.jobs.live.values():
            if job.files is None or self._lists is None:
                continue
            for shard in job.shards:
                if shard.provider != account or job.on(shard.lease) is not shard:
                    continue
                if blob == job.files or self._lists.is_for(job.files, blob, shard.shard):
                    return True
        return False


def _by_lease(state: NodeState, account: bytes) -> set[BlobRef]:
    found: set[BlobRef] = set()
    for job in state.jobs.live.values():
        for shard in job.shards:
            if shard.provider != account or job.on(shard.lease) is not shard:
                continue
            found.add(job.package)
            found.update({shard.checkpoint.blob} if shard.checkpoint else ())
            rounds = state.rounds.live.get(job.job)
            found.update({rounds.state} if rounds is not None and rounds.state is not None else ())
    for lease, mirror in state.mirrors.live.items():
        if mirror.buyer == account and is_paid_for(state, lease):
            found.update(copy.held for copy in mirror.copies if copy.held is not None)
    for lease, run in state.runs.all():
        sale = state.sale_on(lease)
        if sale is not None and sale.buyer == account:
            found |= _of_run(sale, run)
    return found


def was_staged(run: Run) -> bool:
    """Whether the run's code has run, and so its buyer had shown all that it named: a name alone opens nothing."""
    return run.begun or run.counted_ms > 0 or run.checkpoint_at_ms > 0


def _of_run(sale: Sale, run: Run) -> set[BlobRef]:
    found = _made_by(run)
    if was_staged(run):
        # Its own code: a buyer that lost its disk needs it to have its shards go on elsewhere.
        named = (sale.workload.package, sale.workload.files) if sale.workload is not None else ()
        found.update(blob for blob in (*named, run.checkpoint) if blob is not None)
    return found


def _made_by(run: Run) -> set[BlobRef]:
    """What a run made itself, and was not merely told to go on from."""
    found = {result.blob for result in run.outputs}
    if run.checkpoint is not None and run.checkpoint_at_ms > 0:
        found.add(run.checkpoint)
    return found


def blobs_of_others(state: NodeState, buyer: bytes) -> frozenset[BlobRef]:
    """What any other buyer has named at this provider, as far as its state knows: a run's code, its states, copies."""
    found: set[BlobRef | None] = set()
    for _, sale in state.sales.all():
        if sale.buyer != buyer and sale.workload is not None:
            found |= {sale.workload.package, sale.workload.files}
    for lease, run in state.runs.all():
        of = state.sale_on(lease)
        if of is not None and of.buyer != buyer:
            found |= {run.checkpoint, *(result.blob for result in run.outputs)}
    for _, mirror in state.mirrors.all():
        if mirror.buyer != buyer:
            found.update(blob for copy in mirror.copies for blob in copy.blobs)
    return frozenset(blob for blob in found if blob is not None)


def blobs_of_buyer(state: NodeState, buyer: bytes) -> set[BlobRef]:
    """What by the state of a provider came from this buyer, or was made for it."""
    found: set[BlobRef] = set()
    for lease, run in state.runs.all():
        sale = state.sale_on(lease)
        if sale is None or sale.buyer != buyer:
            continue
        found |= _of_run(sale, run)
    for mirror in state.mirrors.live.values():
        if mirror.buyer == buyer:
            found.update(copy.held for copy in mirror.copies if copy.held is not None)
    return found
