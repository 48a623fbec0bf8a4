"""Before a run: bring its code, its files and its checkpoint here, lay them out, and order the sandbox.

What a job brings comes from a stranger, so it is bounded before it is fetched (``hansa.node.daemon.bringing``) and
checked before it is used (``hansa.node.daemon.laying_out``).
"""

import logging
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from hansa.market.effects import clipped
from hansa.market.sale_state import Sale
from hansa.market.shares import WHOLE_MILLI, share_given
from hansa.node.agents.agent_cluster import Unplaceable
from hansa.node.daemon.bringing import fetch_all, is_buyer_here, is_shown
from hansa.node.daemon.keeping import was_staged
from hansa.node.daemon.laying_out import Unstageable, lay_out, read_list, stored, unpack_code
from hansa.node.daemon.run_logs import say_of_run
from hansa.node.fault_groups import leaf
from hansa.node.isolation.trees import Trees
from hansa.node.messaging.key_exchange import NoKeys, ask_for_keys
from hansa.node.runs.environments import NotBuilt, ShippedWheel
from hansa.node.runs.images import NoImage, pulled, shipped
from hansa.node.runs.locks import LARGEST_LOCK_BYTES, PINNED
from hansa.node.runs.run_order import RunLimits, RunOrder
from hansa.node.storage.blob_shelf import BlobMissing
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.disk_faults import in_words
from hansa.node.storage.sealed_blobs import read_blob
from hansa.node.storage.sealing import BlobKey, SealBroken, ShardKeys
from hansa.proto.blob import BlobRef
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
from hansa.scheduler.run import STAGING, RunFailed, StartRun

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

PROCESSES = 4096
LOG_BYTES = 8 << 20
MOST_EARLIER = 4
LONGEST_REASON_BYTES = 2_000
PIN = "run "
_LOG = logging.getLogger("hansa.staging")


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
    if daemon.cluster is not None and run_order.workers > 0:  # one of none ends with the executor's words, as anywhere
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
        await fetch_all(daemon, order.run, owners, [workload.files])
        reference, listed = await trio.to_thread.run_sync(read_list, daemon.store, workload, award.shard, both)
        wanted += [file.blob for file in listed]
        _remember_files(daemon, order.run, entry.buyer, listed)
    await trio.to_thread.run_sync(daemon.store.pin_exactly, set(wanted), PIN + order.run.hex())
    await fetch_all(daemon, order.run, owners, wanted, like=_earlier_checkpoints(daemon, entry))
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
            found += [run.checkpoint] if is_shown(daemon, run.checkpoint, entry.buyer) else []
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
    say_of_run(daemon, run, "the job's packages: installing what is not here yet\n")
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
    say_of_run(daemon, run, f"the job's packages are ready after {trio.current_time() - since:.1f} s\n")
    return ready


async def _image(daemon: "Daemon", run: bytes, reference: str, listed: Sequence[ListedFile]) -> Path | None:
    """The root of the job's image, if it has one."""
    archives = [file for file in listed if file.kind == FILE_IMAGE]
    if not archives and not reference:
        return None
    if FEATURE_IMAGE not in daemon.furnishings:
        raise Unstageable("this provider runs no images", "refused")
    since = trio.current_time()
    say_of_run(daemon, run, "the job's image: unpacking it, if it is not here yet\n")
    try:
        wanted = pulled(reference)
        if archives:
            wanted = shipped(archives[0].blob.root, stored(daemon.store, archives[0].blob))
        ready = await daemon.images.bring(wanted, run)
    except (NoImage, BlobMissing) as fault:
        raise Unstageable(str(fault), "refused") from fault
    say_of_run(daemon, run, f"the job's image is ready after {trio.current_time() - since:.1f} s\n")
    return ready


def run_folder(daemon: "Daemon", run: bytes) -> Path:
    """Where everything lies that belongs to one run only; it goes with the run."""
    return daemon.runs_dir / run.hex()


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
