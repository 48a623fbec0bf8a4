"""The buyer's orders to the world: write tenders, copy blobs, average rounds. Each outcome comes back as an event."""

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import trio

from hansa.market.effects import Send, clipped
from hansa.market.purchase_state import ENDED_BADLY, TAKEN_BACK, WITHOUT_FAULT
from hansa.node.daemon import run_logs
from hansa.node.daemon.checkpoint_check import fault_of
from hansa.node.daemon.mirror_tasks import while_wanted
from hansa.node.daemon.reduce import Reduced, reduce_round
from hansa.node.engine.events import (
    BlobFetched,
    BlobNotFetched,
    NobodyFits,
    RoundNotReduced,
    RoundReduced,
    TenderPrepared,
    TenderUndelivered,
)
from hansa.node.engine.logs import warn
from hansa.node.engine.queueing import has_asked, places
from hansa.node.engine.state import NodeState
from hansa.node.messaging.directory import Stranger
from hansa.node.plain_text import summary
from hansa.node.storage.blob_exchange import FetchFailed
from hansa.node.storage.blob_shelf import BlobMissing, NoRoom
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.disk_faults import in_words, passes
from hansa.node.storage.sealed_blobs import opened_file, read_blob
from hansa.node.storage.sealing import BlobKey, ContentKey, SealBroken, seal
from hansa.proto.blob import BlobRef
from hansa.proto.market_documents import Tender
from hansa.proto.messages import TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.sealed import is_sealed
from hansa.proto.typed_data import digest
from hansa.scheduler.job_events import FetchWanted, TenderWanted
from hansa.scheduler.job_queue import due_ms, is_too_late
from hansa.scheduler.job_state import Checkpoint, Job, Shard
from hansa.scheduler.rounds import Contribution, ReductionWanted, Rejected

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

TENDER_LIFE_MS = 30_000
"""How much longer than its bidding a tender stands: awards are confirmed in this time."""
NOBODY_PATIENCE_S = 5.0
"""How long a tender waits for the first fitting advert: a node that has just started has not heard them yet."""
ASKED_PATIENCE_S = 0.0
"""And one that follows a tender which came to nothing: whoever appears has it sent again anyway."""
NOBODY = "no provider is known whose advert fits"
TOO_LATE = "a run that began now might not end by the job's deadline"
FETCH_PATIENCE_S = 20.0
RETRY_S = 1.0
PASSING_S = 20.0
"""So long a lack of descriptors or memory is waited for before a round is put off."""
DISK_RETRY_S = 5.0
"""A checkpoint that came is looked at anew after so long, if this machine could not read it."""
LONGEST_REASON_BYTES = 256


async def prepare_tender(daemon: "Daemon", wanted: TenderWanted) -> None:
    """Find whom to invite and write the tender. Nobody found is an outcome too."""
    of = daemon.state.jobs.live.get(wanted.job)
    if of is None:
        return
    run_logs.tell_of_losses(daemon, of, wanted.shards)
    spec = of.spec
    failed = unwelcome(daemon.state, wanted)
    invited: tuple[bytes, ...] = ()
    asked = has_asked(of, wanted.shards)
    # A job's id is random, and nobody else has seen it before its tender; the time tells its tenders apart.
    chance = int.from_bytes(wanted.job[:8], "big") ^ daemon.now_ms()
    daemon.discovery.look_soon()
    with trio.move_on_after(ASKED_PATIENCE_S if asked else NOBODY_PATIENCE_S):
        while True:
            began_s = perf_counter()
            invited = daemon.book.matching(
                spec.requirements,
                spec.currency,
                spec.price_ceiling_e18_per_device_ms,
                chance=chance,
                without=failed,
            )
            daemon.figures.matched(perf_counter() - began_s)
            if len(invited) >= len(wanted.shards):
                break
            await trio.sleep(0.2)
    now_ms = daemon.now_ms()
    why_not = TOO_LATE if is_too_late(of, now_ms) else _too_few(daemon, of, wanted, invited) if asked else ""
    if why_not:
        daemon.tell(NobodyFits(job=wanted.job, shards=wanted.shards, reason=why_not, at_ms=now_ms))
        return
    if len(invited) < len(wanted.shards) and not asked:
        # Too few seem to fit. The others decline, and their reasons tell the developer what to change.
        others = daemon.book.others(invited, spec.currency)
        invited += tuple(account for account in others if account not in daemon.state.blocked)
    tender = Tender(
        facts=spec.facts,
        lease=spec.lease,
        deadline_ms=due_ms(of),
        signer=daemon.state.account,
        peer_id=daemon.state.peer_id,
        job=wanted.job,
        shards=wanted.shards,
        requirements=spec.requirements,
        currency=spec.currency,
        price_ceiling_e18_per_device_ms=spec.price_ceiling_e18_per_device_ms,
        splits=spec.splits,
        meter_interval_ms=spec.meter_interval_ms,
        bids_close_ms=now_ms + spec.bid_window_ms,
        expires_ms=now_ms + spec.bid_window_ms + TENDER_LIFE_MS,
        nonce=secrets.token_bytes(32),
    )
    daemon.tell(TenderPrepared(tender=tender, invited=invited, at_ms=now_ms))


def _too_few(daemon: "Daemon", of: Job, wanted: TenderWanted, invited: tuple[bytes, ...]) -> str:
    """Why those who fit could not take all shards now, as their adverts have it; empty if they could.

    Bids hold devices. Nobody's are held for a tender that cannot be filled.
    """
    room, wanted_shards = places(daemon.book, invited, of.spec.requirements), len(wanted.shards)
    if not room.owned:
        return NOBODY
    if room.owned < wanted_shards:
        return f"those that fit have devices for {room.owned} of the {wanted_shards} shards"
    # When more are free their adverts say so, and the job hears of it (hansa.node.engine.queueing).
    lacks = room.free < wanted_shards
    return f"those that fit have free devices for {room.free} of the {wanted_shards} shards now" if lacks else ""


def unwelcome(state: NodeState, wanted: TenderWanted) -> set[bytes]:
    """Who already failed this job, left it, or could not be paid: others are invited first.

    The cheapest of all may be one that never works. If the tender before this one found nobody else, they are welcome
    again, but who deserts is not, nor who lost one of these shards if the job says so, nor whom the owner has blocked.
    """
    ours = [bought for _, bought in state.purchases.all() if bought.tender.job == wanted.job]
    same = [bought for bought in ours if bought.tender.shards == wanted.shards]
    deserters = {account for bought in ours for account in bought.deserters} | state.blocked.keys()
    latest = max(same, key=lambda bought: bought.tender.bids_close_ms, default=None)
    of = state.jobs.get(wanted.job)
    if of is not None and not of.spec.retry_same_provider:
        deserters |= {
            entry.provider
            for bought in ours
            for entry in bought.placements
            if entry.why == ENDED_BADLY and entry.shard in wanted.shards
        }
    if latest is not None and latest.phase == "unfilled":
        return deserters
    left = (ENDED_BADLY, TAKEN_BACK, WITHOUT_FAULT)
    return deserters | {entry.provider for bought in ours for entry in bought.placements if entry.why in left}


def tell_undelivered(daemon: "Daemon", send: Send, why: str) -> None:
    """A message could not be brought. Of a tender its job wants to know: who never got it was not silent."""
    if isinstance(send.message, TenderSent):
        tender = digest(DOMAIN, send.message.tender.document)
        why = clipped(why, LONGEST_REASON_BYTES)
        daemon.tell(TenderUndelivered(tender=tender, provider=send.to, why=why, at_ms=daemon.now_ms()))


async def fetch_for_job(daemon: "Daemon", wanted: FetchWanted) -> None:
    """Copy a checkpoint or an output, as long as the shard that made it is the job's and has no newer one."""
    await while_wanted(daemon, wanted.blob, partial(_is_wanted, daemon, wanted), _fetch_for_job, wanted)


def _is_wanted(daemon: "Daemon", wanted: FetchWanted) -> bool:
    of: Job | None = daemon.state.jobs.live.get(wanted.job)
    shard = of.on(wanted.lease) if of is not None else None
    if shard is None:
        return False
    # If not, a newer checkpoint is copied instead.
    return wanted.blob in (shard.copying and shard.copying.blob, *(output.blob for output in shard.outputs))


async def _fetch_for_job(daemon: "Daemon", wanted: FetchWanted) -> None:
    is_told = False
    while True:
        of: Job | None = daemon.state.jobs.live.get(wanted.job)
        shard = of.on(wanted.lease) if of is not None else None
        if shard is None or not _is_wanted(daemon, wanted):
            return
        # What the provider may learn from what is not asked for, it has itself: the checkpoint before this one.
        like = [shard.checkpoint.blob] if shard.checkpoint else []
        if await _fetch(daemon, wanted.blob, wanted.provider, like) is None:
            if shard.copying is None or shard.copying.blob != wanted.blob:
                break
            assert of is not None, "its shard is there"
            try:
                why = await _fault_of_copied(daemon, of, shard)
            except OSError as fault:
                if not is_told:
                    warn(f"a checkpoint cannot be looked at, which is tried again: {in_words(fault)}")
                is_told = True
                await trio.sleep(DISK_RETRY_S)
                continue
            if not why:
                break
            why = clipped(why, LONGEST_REASON_BYTES)
            _say_of(daemon, wanted.job, shard.shard, f"the checkpoint of step {shard.copying.step} is refused: {why}")
            refused = BlobNotFetched(
                job=wanted.job, lease=wanted.lease, blob=wanted.blob, refusal=why, at_ms=daemon.now_ms()
            )
            daemon.tell(refused)
            return
        daemon.tell(BlobNotFetched(job=wanted.job, lease=wanted.lease, blob=wanted.blob, at_ms=daemon.now_ms()))
        await trio.sleep(RETRY_S)
    daemon.tell(BlobFetched(job=wanted.job, lease=wanted.lease, blob=wanted.blob, at_ms=daemon.now_ms()))


class KeyLost(Exception):
    """This node has lost the key of a sealed job."""


def key_of(daemon: "Daemon", of: Job) -> ContentKey | None:
    """What a job's blobs are sealed under, if they are. Raises ``KeyLost``."""
    if not is_sealed(of.spec.requirements):
        return None
    key = daemon.job_keys.find(of.job)
    if key is None:
        raise KeyLost("this node has lost the key of the sealed job")
    return key


async def _fault_of_copied(daemon: "Daemon", of: Job, shard: Shard) -> str:
    assert shard.copying is not None, "this is what was copied"
    try:
        key = key_of(daemon, of)
    except KeyLost as fault:
        return str(fault)
    keys = key.of_shard(shard.shard).both if key is not None else None
    return await trio.to_thread.run_sync(_fault_of, daemon.store, shard.copying, shard.checkpoint, keys)


def _fault_of(
    store: BlobStore, announced: Checkpoint, before: Checkpoint | None, keys: Sequence[BlobKey] | None
) -> str:
    """Why what came is no checkpoint; one that is gone again is none either.

    Raises ``OSError`` where this machine cannot read it: a good one would be refused for that, and its work be lost.
    """
    path = store.path(announced.blob)
    if path is None:
        return "it was fetched and is gone again: this node's blob quota is too small"
    if keys is None:
        return fault_of(path, announced, store.path(before.blob) if before is not None else None)
    try:
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(opened_file(store, announced.blob, keys, store.directory))
            earlier = None
            if before is not None and store.has(before.blob):
                with contextlib.suppress(SealBroken):
                    earlier = stack.enter_context(opened_file(store, before.blob, keys, store.directory))
            return fault_of(opened, announced, earlier)
    except SealBroken as fault:
        return f"it cannot be opened: {fault}"
    except BlobMissing as fault:
        return f"it cannot be read: {fault}"


async def _fetch(daemon: "Daemon", blob: BlobRef, owner: bytes, like: Sequence[BlobRef] = ()) -> str | None:
    """Bring one blob here. Answers why it could not be done, or None."""
    if owner == daemon.state.account:
        return None if daemon.store.has(blob) else "it is not here any more"
    try:
        peer_id = await daemon.directory.reach(owner)
        await daemon.exchange.fetch(blob, [peer_id], like=like)
    except (FetchFailed, NoRoom, Stranger) as fault:
        return str(fault)
    return None


def _say_of(daemon: "Daemon", job: bytes, shard: int, words: str) -> None:
    """A line of this node's own in a shard's log."""
    daemon.job_logs.append(job, shard, f"[buyer] {words}\n", daemon.now_ms())


async def reduce(daemon: "Daemon", wanted: ReductionWanted) -> None:
    """Fetch a round's states, check them against each other, average what is sound."""
    of = daemon.state.jobs.live.get(wanted.job)
    if of is None:
        return
    limit_bytes = of.spec.state_bytes
    missing: dict[int, str] = {}
    async with trio.open_nursery() as nursery:
        for contribution in wanted.contributions:
            nursery.start_soon(_fetch_contribution, daemon, contribution, missing)
    here = [entry for entry in wanted.contributions if entry.shard not in missing]
    until_s = trio.current_time() + PASSING_S
    while True:
        try:
            key = key_of(daemon, of)
            reduced = await trio.to_thread.run_sync(_reduce, daemon.store, wanted.previous, here, limit_bytes, key)
            rejected = {**missing, **reduced.rejected}
            blob, unsound = None, not missing and reduced.state is None
            if reduced.state is not None:
                sealed = (
                    reduced.state if key is None else await trio.to_thread.run_sync(seal, key.shared, reduced.state)
                )
                blob = await trio.to_thread.run_sync(daemon.store.put_bytes, sealed)
            break
        except (BlobMissing, KeyLost, NoRoom, OSError, SealBroken, ValueError, MemoryError) as fault:
            if passes(fault) and trio.current_time() < until_s:
                await trio.sleep(RETRY_S)
                continue
            # Evicted between the fetch and the sum, no room for the result, a disk that fails. It is this machine's
            # fault, so what was contributed stays, for nobody gives it twice: the round is tried again when it is due.
            rejected, blob, unsound = {}, None, False
            words = in_words(fault) if isinstance(fault, OSError) else str(fault) or type(fault).__name__
            what = f"round {wanted.round} could not be averaged here, and is tried again: {words}"
            _say_of(daemon, wanted.job, min((entry.shard for entry in here), default=0), what)
            break
    if blob is None:
        # Nor is what did not come dropped where nothing was averaged: it goes on coming from where it was.
        rejected = {shard: reason for shard, reason in rejected.items() if shard not in missing}
        for shard, reason in sorted(missing.items()):
            what = f"its state of round {wanted.round} did not come, and is fetched again"
            _say_of(daemon, wanted.job, shard, f"{what}: {summary(reason, LONGEST_REASON_BYTES)}")
    # A reason may hold a stranger's words in any script, and the journal takes only so many bytes of them.
    left_out = tuple(
        Rejected(shard=shard, reason=clipped(reason, LONGEST_REASON_BYTES))
        for shard, reason in sorted(rejected.items())
    )
    outcome: Any
    if blob is None:
        outcome = RoundNotReduced(
            job=wanted.job, round=wanted.round, rejected=left_out, unsound=unsound, at_ms=daemon.now_ms()
        )
    else:
        outcome = RoundReduced(
            job=wanted.job,
            round=wanted.round,
            state=blob,
            accepted=reduced.accepted,
            rejected=left_out,
            at_ms=daemon.now_ms(),
        )
    daemon.tell(outcome)


async def _fetch_contribution(daemon: "Daemon", contribution: Contribution, missing: dict[int, str]) -> None:
    why = "it came too slowly"
    # Around the fetch too: one that hands its bytes out one by one must not hold up everybody's round.
    with trio.move_on_after(FETCH_PATIENCE_S) as patience:
        while (fault := await _fetch(daemon, contribution.state, contribution.provider)) is not None:
            why = fault
            await trio.sleep(RETRY_S)
    if patience.cancelled_caught:
        missing[contribution.shard] = why


def _reduce(
    store: BlobStore,
    previous: BlobRef | None,
    contributions: list[Contribution],
    limit_bytes: int,
    key: ContentKey | None,
) -> Reduced:
    before, broken = None, {}
    if previous is not None and store.has(previous):
        before = read_blob(store, previous, limit_bytes, (key.shared,) if key is not None else None)
    parts = []
    for entry in contributions:
        keys = (key.own(entry.shard),) if key is not None else None
        try:
            data = read_blob(store, entry.state, limit_bytes, keys)
        except SealBroken as fault:
            broken[entry.shard] = f"its state cannot be opened: {fault}"
            continue
        parts.append((entry.shard, entry.weight_milli / 1000, data))
    reduced = reduce_round(before, parts, limit_bytes=limit_bytes)
    return replace(reduced, rejected={**reduced.rejected, **broken}) if broken else reduced
