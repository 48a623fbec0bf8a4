"""Before a run: bring its code, its files and its checkpoint here, lay them out, and order the sandbox.

What a job brings comes from a stranger, so it is bounded before it is fetched and checked before it is used. Fetching
may take as long as bytes move, within a floor of speed: whoever hands them out one by one holds devices without paying.
"""

import contextlib
import hashlib
import logging
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from hansa.market.effects import clipped
from hansa.market.sale_state import Sale
from hansa.market.shares import WHOLE_MILLI, share_given
from hansa.node.agents.agent_cluster import Unplaceable
from hansa.node.daemon.keeping import blobs_of_buyer, blobs_of_others, was_staged
from hansa.node.daemon.laying_out import Unstageable, lay_out, read_list, stored, unpack_code
from hansa.node.engine.state import NodeState
from hansa.node.isolation.trees import Trees
from hansa.node.messaging.directory import Stranger
from hansa.node.messaging.key_exchange import NoKeys, ask_for_keys
from hansa.node.quantities import format_size
from hansa.node.runs.environments import NotBuilt, ShippedWheel
from hansa.node.runs.images import NoImage, pulled, shipped
from hansa.node.runs.locks import LARGEST_LOCK_BYTES, PINNED
from hansa.node.runs.run_order import RunLimits, RunOrder
from hansa.node.storage.agent_streams import leaf
from hansa.node.storage.blob_exchange import DiskFailed, FetchFailed
from hansa.node.storage.blob_shelf import BlobMissing, NoRoom
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.disk_faults import in_words
from hansa.node.storage.sealed_blobs import read_blob
from hansa.node.storage.sealing import BlobKey, SealBroken, ShardKeys
from hansa.proto.blob import BlobRef, chunk_count
from hansa.proto.errors import ProtocolError
from hansa.proto.market_documents import FEATURE_DEPENDENCIES, FEATURE_IMAGE, TIER_NONE, TIER_SANDBOX
from hansa.proto.sealed import is_sealed
from hansa.proto.workload import (
    FILE_IMAGE,
    FILE_INPUT,
    FILE_LOCK,
    FILE_WHEEL,
    ListedFile,
)
from hansa.scheduler.run import STAGING, RunFailed, RunLogged, StartRun

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

PROCESSES = 4096
LOG_BYTES = 8 << 20
STAGE_PATIENCE_S = 120.0
"""Without a single byte for so long, a fetch is given up."""
SLOWEST_BYTES_PER_S = 256 << 10
"""A job's files come at least this fast on the whole, or devices would be held for nothing."""
FILES_AT_ONCE = 3
RETRY_S = 1.0
MOST_EARLIER = 4
SAY_EVERY_S = 5.0
LONGEST_REASON_BYTES = 2_000
PIN = "run "
_CHANCE = secrets.token_bytes(32)
_LOG = logging.getLogger("hansa.staging")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What lies ready for a run."""

    code: Path
    inputs: Path | None = None
    environment: Path | None = None
    image: Path | None = None
    keys: ShardKeys | None = field(default=None, repr=False)


async def start_run(daemon: "Daemon", order: StartRun) -> None:
    """Bring everything here, lay it out, and start the sandbox. What this machine cannot do costs this run only."""
    try:
        await _start_run(daemon, order)
    except* OSError as group:  # a full disk, say: whoever filled it is not to end everybody's runs
        fault = leaf(group)
        _LOG.warning("run %s cannot be laid out: %s", order.run.hex()[:16], fault)
        words = in_words(fault)
        reason = f"this provider cannot lay out the job's files: {words}"
        daemon.tell(RunFailed(run=order.run, kind="refused", reason=reason, at_ms=daemon.now_ms()))


async def _start_run(daemon: "Daemon", order: StartRun) -> None:
    entry = daemon.state.sale_on(order.run)
    assert entry is not None
    assert entry.workload is not None
    assert entry.award is not None
    try:
        with trio.CancelScope() as daemon.staging[order.run]:
            staged = await _stage(daemon, order, entry)
            if daemon.cluster is not None:
                await daemon.cluster.wait_for(entry.bid.devices)
    except Unplaceable as fault:
        daemon.tell(RunFailed(run=order.run, kind="refused", reason=str(fault), at_ms=daemon.now_ms()))
        return
    except Unstageable as fault:
        # The words may hold a file's name out of the buyer's package.
        why = clipped(str(fault), LONGEST_REASON_BYTES)
        daemon.tell(RunFailed(run=order.run, kind=fault.kind, reason=why, at_ms=daemon.now_ms()))
        return
    finally:
        scope = daemon.staging.pop(order.run)
    current = daemon.state.runs.live.get(order.run)
    if scope.cancelled_caught or current is None or current.phase != STAGING:
        # It was told to stop while its code was on the way, and its devices may be somebody else's by now.
        forget_run(daemon, order.run)
        return
    run_order = _run_order(daemon, order, entry, staged)
    if daemon.cluster is not None:
        try:
            nodes = daemon.cluster.place(order.run, entry.bid.devices, run_order.workers, run_order.limits.memory_bytes)
        except Unplaceable as fault:
            daemon.tell(RunFailed(run=order.run, kind="refused", reason=str(fault), at_ms=daemon.now_ms()))
            return
        run_order = replace(run_order, **nodes)
    await daemon.executor.start(run_order)


def _run_order(daemon: "Daemon", order: StartRun, entry: Sale, staged: Staged) -> RunOrder:
    workload, award = entry.workload, entry.award
    assert workload is not None
    assert award is not None
    by_id = {device.id: device for device in daemon.state.capacity.devices}
    cpu_millis = sum(by_id[device].cores_milli for device in entry.bid.devices if device in by_id)
    cpu_millis = cpu_millis * share_given(entry.bid) // WHOLE_MILLI
    limits = RunLimits(
        memory_bytes=workload.memory_bytes,
        cpu_millis=max(cpu_millis, 100),
        processes=PROCESSES,
        scratch_bytes=workload.scratch_bytes,
        wall_ms=workload.wall_ms,
        stall_ms=workload.stall_ms,
        state_bytes=workload.state_bytes,
        output_bytes=workload.output_bytes,
        log_bytes=LOG_BYTES,
        shared_memory_bytes=workload.shared_memory_bytes,
        keep_failed_ms=workload.keep_failed_ms,
    )
    return RunOrder(
        run=order.run,
        entry=workload.entry,
        code=staged.code,
        inputs=staged.inputs,
        environment=staged.environment,
        image=staged.image,
        shard=award.shard,
        shards=workload.shards,
        workers=workload.workers,
        parameters=workload.parameters,
        limits=limits,
        egress=_way_out(daemon, order.run, entry),
        # No promise means no other walls than there are.
        tier=TIER_SANDBOX if entry.bid.tier == TIER_NONE else entry.bid.tier,
        gpu_minors=daemon.inventory.gpu_minors(entry.bid.devices),
        device_nodes=daemon.inventory.device_nodes(entry.bid.devices),
        cuda_devices=daemon.inventory.cuda_devices(entry.bid.devices),
        rocm_devices=daemon.inventory.rocm_devices(entry.bid.devices),
        checkpoint=order.checkpoint,
        round=order.round,
        keys=staged.keys,
    )


def _way_out(daemon: "Daemon", run: bytes, entry: Sale) -> Path | None:
    """The socket of the proxy through which the run reaches the hosts that its tender asked for, if it did."""
    hosts = entry.tender.requirements.egress
    if not hosts or entry.workload is None or run in daemon.executor.running:
        return None
    return daemon.egress.open(run, wanted=hosts, limit_bytes=entry.workload.egress_bytes)


async def _stage(daemon: "Daemon", order: StartRun, entry: Sale) -> Staged:
    workload, award = entry.workload, entry.award
    assert workload is not None
    assert award is not None
    folder = run_folder(daemon, order.run)
    keys = await _keys(daemon, order.run, entry)
    both = keys.both if keys is not None else None
    wanted = [workload.package, *([order.checkpoint] if order.checkpoint else [])]
    mirrors = daemon.state.mirrors.get(order.run)
    named = mirrors.sources if mirrors else ()
    owners = (entry.buyer, *(source for source in named if not is_buyer_here(daemon.state, source)))
    reference, listed = "", list[ListedFile]()
    if workload.files is not None:
        await _fetch(daemon, order.run, owners, [workload.files])
        reference, listed = await trio.to_thread.run_sync(read_list, daemon.store, workload, award.shard, both)
        wanted += [file.blob for file in listed]
        _remember_files(daemon, order.run, entry.buyer, listed)
    await trio.to_thread.run_sync(daemon.store.pin_exactly, set(wanted), PIN + order.run.hex())
    await _fetch(daemon, order.run, owners, wanted, like=_earlier_checkpoints(daemon, entry))
    await trio.to_thread.run_sync(unpack_code, daemon.store, workload.package, folder, both)
    inputs = [file for file in listed if file.kind == FILE_INPUT]
    if inputs:
        await trio.to_thread.run_sync(lay_out, daemon.store, inputs, folder / "inputs", both)
    return Staged(
        code=folder / "code",
        inputs=folder / "inputs" if inputs else None,
        environment=await _environment(daemon, order.run, listed, both),
        image=await _image(daemon, order.run, reference, listed),
        keys=keys,
    )


def _remember_files(daemon: "Daemon", run: bytes, buyer: bytes, listed: Sequence[ListedFile]) -> None:
    """A run that had begun before a crash had been shown these very files, and its buyer may be away by now."""
    current = daemon.state.runs.live.get(run)
    if current is not None and was_staged(current):
        for file in listed:
            daemon.exchange.remember_shown(buyer, file.blob)


async def _keys(daemon: "Daemon", run: bytes, entry: Sale) -> ShardKeys | None:
    """What a sealed job's shard is opened with, which its buyer gives to whoever has the lease; it stays in memory."""
    if not is_sealed(entry.tender.requirements):
        return None
    own = daemon.state.account
    try:
        if entry.buyer != own:
            return await ask_for_keys(daemon.net, daemon.directory, run, buyer=entry.buyer, provider=own)
        keys = daemon.key_desk.keys_for(own, run)
    except NoKeys as fault:
        raise Unstageable(str(fault), "refused") from fault
    if keys is None:
        raise Unstageable("the lease of this sealed job is over", "refused")
    return keys


def _earlier_checkpoints(daemon: "Daemon", entry: Sale) -> list[BlobRef]:
    """What may be here of the same shard's earlier checkpoints: it ran here before, or was mirrored here."""
    workload, award, state = entry.workload, entry.award, daemon.state
    assert workload is not None
    assert award is not None
    found: list[BlobRef] = []
    for lease, run in state.runs.all():
        sale, copies = state.sale_on(lease), state.mirrors.get(lease)
        if sale is None or sale.buyer != entry.buyer or sale.workload is None or sale.workload.job != workload.job:
            continue
        if sale.award is not None and sale.award.shard == award.shard and run.checkpoint is not None:
            found += [run.checkpoint] if _is_shown(daemon, run.checkpoint, entry.buyer) else []
        copy = copies.copy_of(award.shard) if copies is not None else None
        if copy is not None and copy.held is not None:
            found.append(copy.held)
    return found[-MOST_EARLIER:]


async def _environment(
    daemon: "Daemon", run: bytes, listed: Sequence[ListedFile], keys: Sequence[BlobKey] | None
) -> Path | None:
    """The job's own packages, if it names any."""
    locks = [file for file in listed if file.kind == FILE_LOCK]
    if not locks:
        return None
    if FEATURE_DEPENDENCIES not in daemon.furnishings:
        raise Unstageable("this provider installs no packages for jobs", "refused")
    if locks[0].blob.size_bytes > LARGEST_LOCK_BYTES:
        raise Unstageable("the job's lock is larger than any lock")
    since = trio.current_time()
    # A first time may be minutes and gigabytes, and all that the buyer would see is a run that does not start.
    say(daemon, run, "the job's packages: installing what is not here yet\n")
    try:
        data = await trio.to_thread.run_sync(read_blob, daemon.store, locks[0].blob, LARGEST_LOCK_BYTES, keys)
        text = data.decode()
        wheels = [
            ShippedWheel(name=file.path, path=stored(daemon.store, file.blob))
            for file in listed
            if file.kind == FILE_WHEEL
        ]
        ready = await daemon.environments.bring(text, wheels, run, version(PINNED))
    except (ProtocolError, UnicodeDecodeError, SealBroken) as fault:
        raise Unstageable(f"the job's lock cannot be used: {fault}") from fault
    except NotBuilt as fault:
        raise Unstageable(str(fault), "bad-entry" if fault.is_jobs_fault else "refused") from fault
    except BlobMissing as fault:
        raise Unstageable(str(fault), "refused") from fault
    say(daemon, run, f"the job's packages are ready after {trio.current_time() - since:.1f} s\n")
    return ready


async def _image(daemon: "Daemon", run: bytes, reference: str, listed: Sequence[ListedFile]) -> Path | None:
    """The root of the job's image, if it has one."""
    archives = [file for file in listed if file.kind == FILE_IMAGE]
    if not archives and not reference:
        return None
    if FEATURE_IMAGE not in daemon.furnishings:
        raise Unstageable("this provider runs no images", "refused")
    since = trio.current_time()
    say(daemon, run, "the job's image: unpacking it, if it is not here yet\n")
    try:
        wanted = pulled(reference)
        if archives:
            wanted = shipped(archives[0].blob.root, stored(daemon.store, archives[0].blob))
        ready = await daemon.images.bring(wanted, run)
    except (NoImage, BlobMissing) as fault:
        raise Unstageable(str(fault), "refused") from fault
    say(daemon, run, f"the job's image is ready after {trio.current_time() - since:.1f} s\n")
    return ready


def run_folder(daemon: "Daemon", run: bytes) -> Path:
    """Where everything lies that belongs to one run only; it goes with the run."""
    return daemon.runs_dir / run.hex()


# Fetching.


async def _fetch(
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
        say(daemon, run, text)


def say(daemon: "Daemon", run: bytes, text: str) -> None:
    """A line of this provider's own in the run's log."""
    daemon.tell(RunLogged(run=run, text=f"[provider] {text}", at_ms=daemon.now_ms()))


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
    return daemon.store.has(blob) and _is_shown(daemon, blob, buyer)


def _is_shown(daemon: "Daemon", blob: BlobRef, buyer: bytes) -> bool:
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


def forget_run(daemon: "Daemon", run: bytes) -> None:
    """Remove what was laid out for a run that ended, and let go of what it held. Nothing here waits."""
    folder = run_folder(daemon, run)
    gone = folder.with_name(f"gone-{secrets.token_hex(8)}")
    try:
        folder.rename(gone)
    except FileNotFoundError:
        pass
    except OSError:
        # It is removed where it stands; what even then is left goes at the next start.
        gone = folder
    daemon.later(_remove, daemon.store, daemon.trees, run, gone)


def _remove(store: BlobStore, trees: Trees, run: bytes, folder: Path) -> None:
    try:
        store.pin_exactly((), PIN + run.hex())
    except OSError as fault:
        # The books in memory let go; those on disk follow with the next that is written, or at the next start.
        _LOG.warning("it could not be written down that run %s is over: %s", run.hex()[:16], in_words(fault))
    trees.let_go(run)
    shutil.rmtree(folder, ignore_errors=True)
