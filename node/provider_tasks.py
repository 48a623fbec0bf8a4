"""The provider's orders to the world: stage a run, stop it, hand it a round's result. Outcomes come back as events."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from hansa.market.effects import clipped
from hansa.node.blob_exchange import FetchFailed
from hansa.node.blobs import BlobMissing, BlobStore, NoRoom
from hansa.node.directory import Stranger
from hansa.node.packages import unpack
from hansa.node.run_order import RunLimits, RunOrder
from hansa.node.selling import DeliverRound
from hansa.proto.blob import BlobRef
from hansa.proto.errors import ProtocolError
from hansa.scheduler.run import STAGING, LeaveRun, RunFailed, RunStopped, StartRun

if TYPE_CHECKING:
    from hansa.node.daemon import Daemon

PROCESSES = 4096
LOG_BYTES = 8 << 20
LARGEST_UNPACKED_BYTES = 1 << 30
STAGE_PATIENCE_S = 120.0
RETRY_S = 1.0
LONGEST_REASON_BYTES = 2_000


class Unstageable(Exception):
    """A run that cannot be started here, and why, in words for its buyer."""


async def start_run(daemon: "Daemon", order: StartRun) -> None:
    """Bring the job's code and its checkpoint here, unpack, and start the sandbox."""
    entry = daemon.state.sale_on(order.run)
    assert entry is not None
    assert entry.workload is not None
    workload = entry.workload
    code = daemon.runs_dir / order.run.hex()
    try:
        with trio.fail_after(STAGE_PATIENCE_S):
            await bring(daemon, workload.package, entry.buyer)
            if order.checkpoint is not None:
                await bring(daemon, order.checkpoint, entry.buyer)
        await trio.to_thread.run_sync(_unpack, daemon.store, workload.package, code)
    except trio.TooSlowError:
        why = "the job's code or its checkpoint could not be fetched in time"
        daemon.tell(RunFailed(run=order.run, kind="refused", reason=why, at_ms=daemon.now_ms()))
        return
    except Unstageable as fault:
        # The words may hold a file's name out of the buyer's package.
        why = clipped(str(fault), LONGEST_REASON_BYTES)
        daemon.tell(RunFailed(run=order.run, kind="bad-entry", reason=why, at_ms=daemon.now_ms()))
        return
    by_id = {device.id: device for device in daemon.state.capacity.devices}
    cpu_millis = sum(by_id[device].cores_milli for device in entry.bid.devices if device in by_id)
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
    award = entry.award
    assert award is not None
    run_order = RunOrder(
        run=order.run,
        entry=workload.entry,
        code=code,
        inputs=None,
        shard=award.shard,
        shards=workload.shards,
        workers=workload.workers,
        parameters=workload.parameters,
        limits=limits,
        gpu_minors=daemon.inventory.gpu_minors(entry.bid.devices),
        checkpoint=order.checkpoint,
        round=order.round,
    )
    current = daemon.state.runs.live.get(order.run)
    if current is None or current.phase != STAGING:
        # It was told to stop while its code was on the way, and its devices may be somebody else's by now.
        forget_code(daemon, order.run)
        return
    await daemon.executor.start(run_order)


async def bring(daemon: "Daemon", blob: BlobRef, owner: bytes) -> None:
    """Fetch a blob from the account that has it, trying again until cancelled."""
    while not daemon.store.has(blob):
        try:
            peer_id = await daemon.directory.reach(owner)
            await daemon.exchange.fetch(blob, [peer_id])
        except NoRoom as fault:
            raise Unstageable(f"this provider has no room for it: {fault}") from fault
        except (FetchFailed, Stranger):
            await trio.sleep(RETRY_S)


def _unpack(store: BlobStore, package: BlobRef, code: Path) -> None:
    path = store.path(package)
    if path is None:
        raise Unstageable("the job's code was fetched and is gone again: this provider's blob quota is too small")
    shutil.rmtree(code, ignore_errors=True)
    try:
        code.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("rb") as archive:
            unpack(archive, code, limit_bytes=LARGEST_UNPACKED_BYTES)
    except (ProtocolError, OSError) as fault:
        raise Unstageable(f"the job's package cannot be unpacked: {fault}") from fault


async def stop_run(daemon: "Daemon", run: bytes, grace_ms: int) -> None:
    """End a run. One that never got as far as a sandbox has ended with that."""
    if run in daemon.executor.running:
        await daemon.executor.stop(run, grace_ms)
    else:
        daemon.tell(RunStopped(run=run, at_ms=daemon.now_ms()))


async def leave_run(daemon: "Daemon", order: LeaveRun) -> None:
    """Have a run go when its devices are wanted back."""
    await trio.sleep(max(0, order.by_ms - daemon.now_ms()) / 1000)
    await daemon.executor.stop(order.run, 0)


async def deliver_round(daemon: "Daemon", order: DeliverRound) -> None:
    """Fetch a round's result and hand it to the run that waits for it, unless it ended meanwhile."""
    while order.lease in daemon.executor.running:
        with trio.move_on_after(STAGE_PATIENCE_S):
            try:
                await bring(daemon, order.state, order.buyer)
                await daemon.executor.deliver_round(order.lease, order.round - 1, order.state)
            except (BlobMissing, Unstageable):
                # There was no room for it, or it went to make some: other blobs go sooner or later.
                await trio.sleep(RETRY_S)
                continue
            return


def forget_code(daemon: "Daemon", run: bytes) -> None:
    """Remove what was unpacked for a run that ended."""
    shutil.rmtree(daemon.runs_dir / run.hex(), ignore_errors=True)
